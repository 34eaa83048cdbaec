"""Fuzz the frames of a session: their bytes, the streams they come on, and what a stage admits of them."""

import asyncio
import contextlib
import struct
from dataclasses import fields

import msgpack

from node.errors import FrameError, Refused, SessionError
from node.serve.session import Compute, Known, Repeat, StageSession
from node.transport import FrameStream
from node.wire import (
    _FRAMES,
    CODECS,
    IDS,
    LOGITS,
    MAX_BATCH,
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_LENGTH,
    MAX_SCORED_POSITIONS,
    MAX_STEP_POSITIONS,
    Frame,
    Open,
    Opening,
    Result,
    Step,
    decode,
    encode,
    payload_bytes,
    pushed_session,
)
from tests.fuzz.draw import Draw, draw_value
from tests.fuzz.records import ALICE

SESSION = b"the fuzz session"
HIDDEN = 4
VOCABULARY = 100


def drawn_header(draw: Draw) -> dict[object, object]:
    """A frame's header: of a known kind as a rule, with fields that are near what they should be."""
    kind = draw.one_of(tuple(_FRAMES))
    header: dict[object, object] = {"kind": kind if not draw.rarely() else draw_value(draw)}
    frame = _FRAMES.get(kind)
    for part in fields(frame) if frame is not None else ():
        if part.name != "payload" and not draw.rarely():
            header[part.name] = drawn_field(draw, part.name)
    if draw.rarely():
        header[draw.one_of(("session", "position", "unknown", 5, b"kind"))] = draw_value(draw)
    return header


def drawn_field(draw: Draw, name: str) -> object:
    if draw.rarely():
        return draw.one_of(
            (draw_value(draw), None, 1.5, {}, {"a": 1}, msgpack.ExtType(5, b""), msgpack.Timestamp(1, 0))
        )
    match name:
        case "session":
            return SESSION
        case "manifest":
            return bytes(32)
        case "shape":
            return [draw.number(3), draw.number(70), draw.one_of((HIDDEN, 1, 2**24))]
        case "codec" | "dtype":
            return draw.one_of((*CODECS, IDS, LOGITS, "float64"))
        case "left_padding" | "rows":
            return [draw.number(4) for _ in range(draw.number(4))] if draw.flag() else None
        case "crop":
            return draw.number(80) if draw.flag() else None
        case "sampling":
            return [float(draw.number(5)), draw.number(5), draw.number(2) / 2, draw.edge()] if draw.flag() else None
        case "previous" | "next" | "peer":
            return draw.one_of(("", ALICE.peer_id, "12D3KooW"))
        case "next_addresses":
            return ["/ip4/1.2.3.4/tcp/5"]
        case "embed" | "retryable":
            return draw.flag()
        case "adapter" | "code" | "message":
            return draw.some_bytes(9).decode("latin-1")
        case "offer" | "body":
            return draw.some_bytes(300)
        case "offer_signature" | "agreement" | "signature":
            return draw.blob(draw.one_of((64, 0, 63)))
    return draw.edge() if draw.flag() else draw.number(70)


def drawn_body(draw: Draw) -> bytes:
    """A frame behind its prefix: whole as a rule, with the payload that its shape asks for."""
    header = drawn_header(draw)
    payload = b""
    codec, shape = header.get("codec"), header.get("shape")
    if codec in (*CODECS, IDS, LOGITS) and type(shape) is list and len(shape) == 3 and {*map(type, shape)} == {int}:
        payload = bytes(max(0, min(payload_bytes(codec, tuple(shape)), 2**16)))
    try:
        body = msgpack.packb(header) + payload
    except (ValueError, OverflowError, TypeError):
        body = draw.rest()
    if draw.rarely():
        at = draw.number(min(len(body), 255))
        body = body[:at] + draw.some_bytes(9) + body[at + draw.number(9) :]
    return body


def check_frame(frame: Frame, body: bytes) -> None:
    """What was read says what was sent, within the bounds that memory was promised for."""
    assert len(frame.session) == 16
    if isinstance(frame, Step | Result | Opening):
        assert len(frame.payload) == payload_bytes(frame.codec, frame.shape) <= len(body)
    head, payload = encode(frame)
    assert decode(head[4:] + bytes(payload)) == frame


def frames(data: bytes) -> None:
    """Any bytes are a frame, or refused."""
    draw = Draw(data)
    for body in (data, drawn_body(draw)):
        for read in (decode, lambda head: pushed_session(head[:MAX_HEADER_BYTES])):
            try:
                frame = read(body)
            except FrameError:
                continue
            if frame is not None and not isinstance(frame, bytes):
                check_frame(frame, body)


class Bytes:
    """A stream whose other side has sent some pieces and gone."""

    def __init__(self, peer_id: str, pieces: list[bytes]) -> None:
        self.peer_id = peer_id
        self.reader = asyncio.StreamReader(limit=2**16)
        for piece in pieces:
            self.reader.feed_data(piece)
        self.reader.feed_eof()


def streams(data: bytes) -> None:
    """Whatever comes on a stream, frames are read from it to its end, and no more memory is taken than was sent."""
    draw = Draw(data)
    pieces = []
    for _ in range(1 + draw.number(4)):
        body = drawn_body(draw)
        length = len(body) if not draw.rarely() else draw.one_of((0, len(body) - 1, len(body) + 1, 2**26, 2**32 - 1))
        pieces.append(struct.pack(">I", length) + body)
    if draw.rarely():
        pieces.append(draw.rest())
    asyncio.run(_read_all(pieces, draw.one_of((MAX_FRAME_BYTES, MAX_HEADER_BYTES, 100)), peeks=draw.flag()))


async def _read_all(pieces: list[bytes], max_bytes: int, *, peeks: bool) -> None:
    stream = FrameStream(Bytes(ALICE.peer_id, pieces))  # type: ignore[arg-type]
    total = sum(map(len, pieces))
    with contextlib.suppress(FrameError):
        while True:
            head = await stream.peek(MAX_HEADER_BYTES) if peeks else b""
            assert head is None or len(head) <= MAX_HEADER_BYTES
            if await stream.receive(max_bytes) is None:
                break
            assert stream.bytes_in <= total
    assert len(stream._held) <= total


def drawn_opening(draw: Draw) -> Open:
    """An ``open`` that may contradict itself, with what the wire lets through."""
    return Open(
        session=SESSION,
        manifest=bytes(32),
        start=draw.number(2),
        end=4,
        batch=draw.one_of((1, 2, 3, 0, MAX_BATCH)),
        left_padding=tuple(draw.number(5) for _ in range(draw.number(3))),
        max_length=draw.one_of((70, 0, 1, 200, MAX_LENGTH)),
        codec=draw.one_of((*CODECS, IDS, "float64")),
        previous=draw.one_of(("", ALICE.peer_id)),
        next=draw.one_of(("", ALICE.peer_id)),
        next_addresses=(),
        embed=draw.rarely(),
        top=draw.number(5) if draw.rarely() else 0,
        sampling=(1.0, 5, draw.number(2) / 2, 7) if draw.rarely() else None,
        steps=draw.number(3) if draw.flag() else 0,
    )


def sessions(data: bytes) -> None:
    """A stage's session admits what fits to it, and is as it was after what does not."""
    draw = Draw(data)
    opened = drawn_opening(draw)
    try:
        session = StageSession(opened, HIDDEN, VOCABULARY)
    except (SessionError, Refused):
        return
    assert session.max_step_bytes <= payload_bytes("float32", (1, MAX_STEP_POSITIONS, HIDDEN))
    while not draw.is_used_up:
        step = drawn_step(draw, session)
        before = _state(session)
        try:
            order = session.receive(step)
        except SessionError:
            assert _state(session) == before
            continue
        check_order(session, step, order, before)


def _state(session: StageSession) -> tuple[object, ...]:
    return session.length, session.batch, session.taken, session._left_padding, session._last


def drawn_step(draw: Draw, session: StageSession) -> Step:
    """The step that the session waits for, or one near it."""
    codec, width = (IDS, 1) if session.opened.embed else (session.opened.codec, HIDDEN)
    rows = session.batch if not draw.rarely() else draw.one_of((1, 2, 5, MAX_BATCH))
    crop = draw.number(session.length + 1) if draw.rarely() else None
    selected = tuple(draw.number(session.batch) for _ in range(rows)) if draw.rarely() else None
    position = session.length if crop is None else crop
    shape = (rows, 1 + draw.number(draw.one_of((0, 3, 70))), width if not draw.rarely() else 2)
    codec = codec if not draw.rarely() else draw.one_of((*CODECS, IDS))
    ids = struct.pack("<I", draw.number(VOCABULARY) if draw.rarely() else 0)
    size = payload_bytes(codec, shape)
    return Step(
        session=SESSION,
        position=position if not draw.rarely() else draw.edge() % MAX_LENGTH,
        shape=shape,
        codec=codec,
        payload=ids * (size // 4) if codec == IDS else bytes(size),
        crop=crop,
        rows=selected,
        logits_to_keep=draw.number(3) if draw.rarely() else 1,
        replay=draw.number(2) if draw.rarely() else 0,
        number=draw.one_of((0, session.taken, session.taken + 1, session.taken + 2)) if draw.rarely() else 0,
    )


def check_order(session: StageSession, step: Step, order: object, before: tuple[object, ...]) -> None:
    assert session.length <= session.opened.max_length
    assert 1 <= session.batch <= MAX_BATCH
    assert not session._left_padding or len(session._left_padding) == session.batch
    if isinstance(order, Repeat | Known):
        assert _state(session) == before
        return
    assert isinstance(order, Compute)
    assert step.position + step.shape[1] == session.length
    assert step.shape[0] == session.batch
    assert not (session.opened.top or session.opened.sampling) or (
        step.shape[0] * step.logits_to_keep <= MAX_SCORED_POSITIONS
    )
