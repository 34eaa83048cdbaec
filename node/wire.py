"""Frames of ``/efedllm/session/1``: their structure, bounds and bytes. No I/O, no tensors, no thread of its own.

A frame is ``u32 length | msgpack header | payload``: ``length`` counts header and payload, the header is a map with the
frame's kind and fields, and the payload is what remains, the bytes of one tensor in its codec (empty in frames that
carry none). Everything is bounded before it is allocated; an unknown kind, an unknown or missing field, a
value out of range or a payload of another size than shape and codec say raises ``FrameError``.

The classes below are the specification: every field has its meaning, unit and bound beside it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from math import prod
from typing import Any, ClassVar, Protocol, TypeAlias

import msgpack

from dht.identity import peer_id_to_bytes
from node.errors import FrameError

PROTOCOL = "/efedllm/session/1"
MAX_FRAME_BYTES = 64 * 2**20
"""Header and payload of one frame together."""
MAX_HEADER_BYTES = 64 * 2**10
MAX_BATCH = 1024
"""Rows of one session."""
MAX_LENGTH = 2**24
"""Positions of one session."""
MAX_STEP_TOKENS = 4096
"""Positions per row of one step."""
MAX_STEP_POSITIONS = 2**14
"""Rows times positions per row of one step; ``max_step_tokens`` gives both bounds at once."""
LENGTH_BYTES = 4

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Activation codecs that send a dtype raw, and its bytes per element."""
INT8_BLOCK = 64
"""Elements along the hidden dimension that share a scale in the codec ``int8``; the last block may be shorter."""
SCALE_BYTES = 2
"""One scale of the codec ``int8``, a float16."""
CODECS = (*ITEM_BYTES, "int8")
"""Activation codecs of this version: how hidden states travel."""
IDS = "ids"
"""Codec of token ids, in steps of clients that hold no embeddings and in results that were sampled: uint32 each."""
LOGITS = "logits"
"""Codec of the largest logits of each position: the ids of all, uint32 each, then the logits of all, float32 each."""
ID_BYTES = 4
LOGIT_BYTES = 4
MAX_TOP = 1024
"""Logits of one position that a stage sends."""
MAX_SCORED_POSITIONS = 128
"""Rows times positions of one step that the last stage computes logits for."""
MAX_OFFER_BYTES = 256
MAX_CHECKPOINT_BYTES = 60 * 2**10
MAX_COSIGN_BYTES = 1024
MAX_OPENING_BYTES = 2**17
"""Payload of one piece of an opening; a single position of many rows may have more."""
MAX_REVEALS = 256
"""Reveals that a stage answers for one session."""
MAX_REVEALED_SHARE = 16
"""A stage sends so many times the bytes that a session's log holds when it is asked, for all its reveals together."""
LOG_KEPT_S = 120.0
"""So long after the end of its session what a stage has handed on may be opened, s."""
LOG_HELD_S = 10.0
"""For so long it is not let go of for other sessions either, s."""
MAX_TEMPERATURE = 1000.0
MAX_SEED = 2**64 - 1

Payload: TypeAlias = bytes | bytearray | memoryview
Check: TypeAlias = Callable[[Any], Any]
Sampling: TypeAlias = tuple[float, int, float, int]
"""Temperature, top_k, top_p and seed."""


def _uint(limit: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not 0 <= value <= limit:
            raise FrameError(f"must be an integer from 0 to {limit}")
        return value

    return check


def _text(limit: int) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or len(value) > limit:
            raise FrameError(f"must be a string of at most {limit} characters")
        return value

    return check


def _peer(value: Any) -> str:
    text = _text(64)(value)
    try:
        if text:
            peer_id_to_bytes(text)
    except ValueError:
        raise FrameError("must be empty or a peer id in base58") from None
    return str(text)


def _blob(size: int) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) != size:
            raise FrameError(f"must be {size} bytes")
        return value

    return check


def _bytes(*sizes: int) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) not in sizes:
            raise FrameError(f"must be {' or '.join(map(str, sizes))} bytes")
        return value

    return check


def _some_bytes(limit: int) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) > limit:
            raise FrameError(f"must be at most {limit} bytes")
        return value

    return check


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise FrameError("must be a boolean")
    return value


def _one_of(*known: str) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or value not in known:
            raise FrameError(f"must be one of {', '.join(known)}")
        return value

    return check


def _number(limit: float) -> Check:
    def check(value: Any) -> float:
        if type(value) is not float or not 0 <= value <= limit:  # This way round it holds for a NaN too.
            raise FrameError(f"must be a float from 0 to {limit:g}")
        return value

    return check


def _list(item: Check, limit: int) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > limit:
            raise FrameError(f"must be a list of at most {limit} entries")
        return tuple(item(entry) for entry in value)

    return check


def _tuple(*items: Check) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(items):
            raise FrameError(f"must be a list of {len(items)} entries")
        return tuple(item(entry) for item, entry in zip(items, value, strict=True))

    return check


def _optional(item: Check) -> Check:
    return lambda value: None if value is None else item(value)


def _shape(value: Any) -> tuple[int, ...]:
    shape = _list(_uint(MAX_LENGTH), 3)(value)
    if len(shape) != 3 or 0 in shape:
        raise FrameError("must be three positive integers: rows, tokens, hidden size")
    return tuple(shape)


_SESSION = _blob(16)
_POSITION = _uint(MAX_LENGTH)
_COUNT = _uint(2**32)
_SEGMENT = _uint(2**32 - 1)
_SIGNATURE = _bytes(0, 64)


class _Frame(Protocol):
    KIND: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Open:
    """Client to stage: start a session over some of the stage's blocks."""

    KIND: ClassVar[str] = "open"
    session: bytes = field(metadata={"check": _SESSION})
    """Random id chosen by the client, 16 bytes."""
    manifest: bytes = field(metadata={"check": _blob(32)})
    """Identity of the model, sha256."""
    start: int = field(metadata={"check": _uint(2**16)})
    """First block to run."""
    end: int = field(metadata={"check": _uint(2**16)})
    """One past the last block to run."""
    batch: int = field(metadata={"check": _uint(MAX_BATCH)})
    """Rows of the first step."""
    left_padding: tuple[int, ...] = field(metadata={"check": _list(_POSITION, MAX_BATCH)})
    """Padding positions at the start of each row; empty when there are none."""
    max_length: int = field(metadata={"check": _POSITION})
    """Positions that the session may reach; the stage reserves memory for them."""
    codec: str = field(metadata={"check": _text(16)})
    """How hidden states travel in this session; one of ``CODECS``, or the stage says politely which it speaks."""
    previous: str = field(metadata={"check": _peer})
    """Peer that may push steps; empty: steps come on this stream."""
    next: str = field(metadata={"check": _peer})
    """Peer to push outputs to; empty: outputs return on this stream as results."""
    next_addresses: tuple[str, ...] = field(metadata={"check": _list(_text(256), 16)})
    """Multiaddrs of ``next``."""
    adapter: str = field(default="", metadata={"check": _text(128)})
    """Name of an adapter to apply; empty: none. Reserved, refused politely until it exists."""
    embed: bool = field(default=False, metadata={"check": _flag})
    """Steps carry token ids, in the codec ``ids``; the stage embeds them. Only where ``start`` is 0."""
    top: int = field(default=0, metadata={"check": _uint(MAX_TOP)})
    """Results carry so many of the largest logits of a position, in the codec ``logits``; 0: hidden states."""
    sampling: Sampling | None = field(
        default=None,
        metadata={
            "check": _optional(_tuple(_number(MAX_TEMPERATURE), _uint(MAX_LENGTH), _number(1.0), _uint(MAX_SEED)))
        },
    )
    """Results carry ids that the stage samples, in the codec ``ids``, instead of logits: temperature (0: the likeliest
    token), top_k (0: all), top_p (above 0), seed. This and ``top`` only where ``end`` is the model's last block."""
    steps: int = field(default=0, metadata={"check": _uint(2**32)})
    """Steps of the session that were answered before this stage took another one's place."""
    offer: bytes = field(default=b"", metadata={"check": _some_bytes(MAX_OFFER_BYTES)})
    """What the client asks for and will sign for (``node.agreement.offers``); empty: it signs for nothing."""
    offer_signature: bytes = field(default=b"", metadata={"check": _SIGNATURE})
    """The client's, over the offer."""
    segment: int = field(default=0, metadata={"check": _SEGMENT})
    """Segment of the session in which the stage begins (``node.commitment.chunks``)."""
    sent: int = field(default=0, metadata={"check": _COUNT})
    """Steps of the session that had been sent when it was opened here; those after them are in a later segment."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Stage to client: the session is open and its memory reserved."""

    KIND: ClassVar[str] = "accept"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    dtype: str = field(metadata={"check": _text(32)})
    """The dtype that the stage computes in."""
    agreement: bytes = field(default=b"", metadata={"check": _SIGNATURE})
    """The stage's signature over the offer; empty where there was none."""


@dataclass(frozen=True, slots=True)
class Step:
    """Client or previous stage to stage: hidden states, or token ids, of consecutive positions."""

    KIND: ClassVar[str] = "step"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    position: int = field(metadata={"check": _POSITION})
    """Position of the first token of the payload; makes a repeated step idempotent."""
    shape: tuple[int, ...] = field(metadata={"check": _shape})
    """Rows, tokens, hidden size of the payload; of token ids the last is 1."""
    codec: str = field(metadata={"check": _one_of(*CODECS, IDS)})
    """The session's codec, or ``ids``."""
    payload: Payload
    """The tensor in the codec, as many bytes as ``payload_bytes`` says."""
    crop: int | None = field(default=None, metadata={"check": _optional(_POSITION)})
    """Forget every position from this one on before the step."""
    rows: tuple[int, ...] | None = field(
        default=None, metadata={"check": _optional(_list(_uint(MAX_BATCH - 1), MAX_BATCH))}
    )
    """Keep these rows of the history, in this order, before the step (beam search)."""
    logits_to_keep: int = field(default=1, metadata={"check": _uint(MAX_STEP_TOKENS)})
    """How many of the last positions a stage with a head answers for; at least 1. Others hand it on."""
    replay: int = field(default=0, metadata={"check": _uint(2**16)})
    """The step is history for so many stages from this one on, which run and keep it; nobody answers. 0: it is none."""
    number: int = field(default=0, metadata={"check": _uint(2**32)})
    """The step's number in its session, from 1, when it is sent again: who has run it passes over it. Of the last piece
    of a history, the number of the last step in it. 0: the next, or history of which more comes."""
    segment: int = field(default=0, metadata={"check": _SEGMENT})
    """Segment of the session that the step is in."""


@dataclass(frozen=True, slots=True)
class Result:
    """Last stage to client: what the last block gives for a step."""

    KIND: ClassVar[str] = "result"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    position: int = field(metadata={"check": _POSITION})
    """The step's position."""
    shape: tuple[int, ...] = field(metadata={"check": _shape})
    """Rows, tokens, hidden size of the payload; with a head: rows, the step's last positions, ids or logits of each."""
    codec: str = field(metadata={"check": _one_of(*CODECS, IDS, LOGITS)})
    """The session's codec, ``ids`` or ``logits``."""
    payload: Payload
    """The tensor in the codec, as many bytes as ``payload_bytes`` says."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Stage to client: no, and why. Ends the session unless it names none."""

    KIND: ClassVar[str] = "refuse"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``; zeros when the frame refused names none."""
    code: str = field(metadata={"check": _text(32)})
    """Stable word for programs: see docs/protocol.md."""
    message: str = field(metadata={"check": _text(512)})
    """One sentence for people, with the mend."""
    retryable: bool = field(default=False, metadata={"check": _flag})
    """True: the same request may succeed later, or elsewhere."""
    retry_after_ms: int = field(default=0, metadata={"check": _uint(2**31)})
    """When to ask this stage again, ms."""


@dataclass(frozen=True, slots=True)
class StageLost:
    """Stage to client: a stage beside this one does not take what it is given, or gives what it must not."""

    KIND: ClassVar[str] = "stage_lost"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    peer: str = field(metadata={"check": _peer})
    """The peer of that stage."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Client to stage: hand your outputs on to another stage from now on, what you have handed on so far first."""

    KIND: ClassVar[str] = "replay"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    tag: int = field(metadata={"check": _uint(2**32)})
    """Chosen by the client; the answer has the same."""
    next: str = field(metadata={"check": _peer})
    """The stage that takes the place of the one behind."""
    next_addresses: tuple[str, ...] = field(metadata={"check": _list(_text(256), 16)})
    """Multiaddrs of ``next``."""
    answered: int = field(metadata={"check": _uint(2**32)})
    """Steps that the client has the results of; those after them are sent as steps again, those before as history."""
    stages: int = field(metadata={"check": _uint(2**16)})
    """How many stages, from ``next`` on, are new and need the history; at least 1."""
    segment: int = field(default=0, metadata={"check": _SEGMENT})
    """Segment of what is sent again."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """Client to stage: steps come from another stage from now on."""

    KIND: ClassVar[str] = "adopt"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    tag: int = field(metadata={"check": _uint(2**32)})
    """Chosen by the client; the answer has the same."""
    previous: str = field(metadata={"check": _peer})
    """Peer that may push steps."""
    segment: int = field(default=0, metadata={"check": _SEGMENT})
    """Segment in which that stage begins."""
    sent: int = field(default=0, metadata={"check": _COUNT})
    """Steps of the session that had been sent by then."""


@dataclass(frozen=True, slots=True)
class Voucher:
    """Previous stage to stage, before the step that completes a chunk: what it has sent, signed."""

    KIND: ClassVar[str] = "voucher"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    segment: int = field(metadata={"check": _SEGMENT})
    """Segment of the chunk."""
    index: int = field(metadata={"check": _SEGMENT})
    """Its number in the segment."""
    signature: bytes = field(metadata={"check": _blob(64)})
    """The sender's, over ``node.commitment.chunks.Chunk.voucher_body``."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Stage to client: what it has done since the last one, to be signed for."""

    KIND: ClassVar[str] = "checkpoint"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    body: bytes = field(metadata={"check": _some_bytes(MAX_CHECKPOINT_BYTES)})
    """``node.agreement.checkpoint.Checkpoint``."""


@dataclass(frozen=True, slots=True)
class Cosign:
    """Client to stage: its signatures under the receipts of a checkpoint."""

    KIND: ClassVar[str] = "cosign"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    body: bytes = field(metadata={"check": _some_bytes(MAX_COSIGN_BYTES)})
    """``node.agreement.checkpoint.Cosign``."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Client to stage: are you there?"""

    KIND: ClassVar[str] = "probe"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    tag: int = field(metadata={"check": _uint(2**32)})
    """Chosen by the client; the answer has the same."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Stage to client: the answer to ``probe``, ``adopt`` and ``replay``."""

    KIND: ClassVar[str] = "alive"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    tag: int = field(metadata={"check": _uint(2**32)})
    """Of the frame that this answers."""
    taken: int = field(metadata={"check": _uint(2**32)})
    """Steps that the stage has admitted, those answered before it was opened included."""
    handed_on: int = field(metadata={"check": _uint(2**32)})
    """Steps of them whose outputs it has handed on; 0 while it has not the whole history of those before it."""


MAX_DRAIN_S = 2**20
"""Longest time that a leaving server can name, s."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Stage to client: this server is leaving; no new sessions, finish or move this one."""

    KIND: ClassVar[str] = "drain"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""
    seconds: int = field(metadata={"check": _uint(MAX_DRAIN_S)})
    """How long running sessions are still served, s."""


@dataclass(frozen=True, slots=True)
class Close:
    """Client to stage: the session is over; free its memory."""

    KIND: ClassVar[str] = "close"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``."""


@dataclass(frozen=True, slots=True)
class Reveal:
    """Client to stage, on a stream of its own: send what you have handed on at these positions once more, to me."""

    KIND: ClassVar[str] = "reveal"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``open``; the session may have ended."""
    first: int = field(metadata={"check": _POSITION})
    """First position."""
    end: int = field(metadata={"check": _POSITION})
    """One past the last position."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Stage to client: a piece of what was asked for, in the order of positions and without gaps."""

    KIND: ClassVar[str] = "opening"
    session: bytes = field(metadata={"check": _SESSION})
    """The id from ``reveal``."""
    position: int = field(metadata={"check": _POSITION})
    """Position of the first token of the payload."""
    shape: tuple[int, ...] = field(metadata={"check": _shape})
    """Rows, tokens, hidden size of the payload."""
    codec: str = field(metadata={"check": _one_of(*CODECS)})
    """The session's codec."""
    payload: Payload
    """The bytes that were handed on, as many as ``payload_bytes`` says."""


Sendable: TypeAlias = (
    Open
    | Accept
    | Step
    | Result
    | Refuse
    | StageLost
    | Replay
    | Adopt
    | Probe
    | Alive
    | Drain
    | Close
    | Voucher
    | Checkpoint
    | Cosign
    | Reveal
    | Opening
)
Frame: TypeAlias = Sendable

_FRAMES: dict[str, type[Sendable]] = {
    frame.KIND: frame
    for frame in (
        Open,
        Accept,
        Step,
        Result,
        Refuse,
        StageLost,
        Replay,
        Adopt,
        Probe,
        Alive,
        Drain,
        Close,
        Voucher,
        Checkpoint,
        Cosign,
        Reveal,
        Opening,
    )
}
NO_SESSION = bytes(16)


def _header_fields(frame: type[Sendable]) -> dict[str, tuple[Check, Any]]:
    """Return each header field's check and default."""
    return {part.name: (part.metadata["check"], part.default) for part in fields(frame) if part.name != "payload"}


_HEADERS = {kind: _header_fields(frame) for kind, frame in _FRAMES.items()}


def max_step_tokens(rows: int) -> int:
    """Return how many positions per row a step of ``rows`` rows may carry."""
    return max(1, min(MAX_STEP_TOKENS, MAX_STEP_POSITIONS // rows))


def payload_bytes(codec: str, shape: tuple[int, ...]) -> int:
    """Return the size of a payload of ``shape`` (rows, tokens, and how much there is of a token) in ``codec``."""
    if codec in ITEM_BYTES:
        return prod(shape) * ITEM_BYTES[codec]
    if codec in (IDS, LOGITS):
        return prod(shape) * (ID_BYTES if codec == IDS else ID_BYTES + LOGIT_BYTES)
    rows, tokens, hidden_size = shape
    num_scales = -(-hidden_size // INT8_BLOCK)
    return rows * tokens * (num_scales * SCALE_BYTES + hidden_size)


def payload_parts(codec: str, width: int) -> tuple[int, ...]:
    """Return of what a payload consists in ``codec``: for each part, which lies row by row, its bytes per position.

    Args:
        codec: a raw codec, ``int8`` or ``ids``.
        width: how much there is of a position.
    """
    if codec == "int8":
        return -(-width // INT8_BLOCK) * SCALE_BYTES, width
    return (payload_bytes(codec, (1, 1, width)),)


def encode(frame: Sendable) -> tuple[bytes, Payload]:
    """Return the bytes to write for ``frame``: prefix with header, then the payload, which is not copied."""
    payload: Payload = frame.payload if isinstance(frame, Step | Result | Opening) else b""
    header: dict[str, Any] = {"kind": frame.KIND}
    for name, (_, default) in _HEADERS[frame.KIND].items():
        value = getattr(frame, name)
        if value != default:
            header[name] = value
    packed = msgpack.packb(header)
    num_bytes = len(packed) + memoryview(payload).nbytes
    return struct.pack(">I", num_bytes) + packed, payload


def decode_length(prefix: bytes) -> int:
    """Return how many bytes follow the 4-byte ``prefix``.

    Raises:
        FrameError: the frame would be empty or larger than ``MAX_FRAME_BYTES``.
    """
    (length,) = struct.unpack(">I", prefix)
    if not 0 < length <= MAX_FRAME_BYTES:
        raise FrameError(f"A frame of {length} bytes was announced; the bound is {MAX_FRAME_BYTES}.")
    return int(length)


def decode(body: Payload) -> Frame:
    """Return the frame whose header and payload are ``body``.

    The payload of the frame is a view into ``body``.

    Raises:
        FrameError: anything about the frame is not as specified.
    """
    view = memoryview(body)
    header, header_bytes = _unpack_header(view)
    kind = header.pop("kind", None)
    frame = _FRAMES.get(kind) if isinstance(kind, str) else None
    if frame is None:
        raise FrameError("The frame has an unknown kind.")
    values = _checked_values(frame, header)
    payload = view[header_bytes:]
    if issubclass(frame, Step | Result | Opening):
        expected = payload_bytes(values["codec"], values["shape"])
        if payload.nbytes != expected:
            raise FrameError(f"A {kind} frame carries {payload.nbytes} payload bytes; its shape asks for {expected}.")
        values["payload"] = payload
    elif payload.nbytes:
        raise FrameError(f"A {kind} frame carries {payload.nbytes} payload bytes and may carry none.")
    return frame(**values)


def pushed_session(head: Payload) -> bytes | None:
    """Return the session of a step, or of a voucher, which only push streams carry; None for other frames.

    Args:
        head: the frame's first ``MAX_HEADER_BYTES``.

    Raises:
        FrameError: this is not how a frame begins.
    """
    header, _ = _unpack_header(memoryview(head))
    session = header.get("session")
    is_pushed = header.get("kind") in (Step.KIND, Voucher.KIND)
    return session if is_pushed and isinstance(session, bytes) else None


def _unpack_header(view: memoryview) -> tuple[dict[Any, Any], int]:
    unpacker = msgpack.Unpacker(
        max_buffer_size=MAX_HEADER_BYTES, max_map_len=32, max_array_len=MAX_BATCH, max_ext_len=0, strict_map_key=True
    )
    try:
        unpacker.feed(view[:MAX_HEADER_BYTES])
        header = unpacker.unpack()
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise FrameError("The frame's header is not msgpack within its bounds.") from error
    if not isinstance(header, dict):
        raise FrameError("The frame's header is not a map.")
    return header, unpacker.tell()


def _checked_values(frame: type[Sendable], header: dict[Any, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, (check, default) in _HEADERS[frame.KIND].items():
        if name not in header:
            if default is MISSING:
                raise FrameError(f"A {frame.KIND} frame lacks the field {name}.")
            continue
        try:
            values[name] = check(header.pop(name))
        except FrameError as error:
            raise FrameError(f"The field {name} of a {frame.KIND} frame {error}.") from None
    if header:
        raise FrameError(f"A {frame.KIND} frame has {len(header)} unknown fields.")
    return values
