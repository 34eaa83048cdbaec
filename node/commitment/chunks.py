"""Chunks: what has gone one way in a session, hashed window by window as it passes. Nothing of it is kept.

A chunk is what lies in one window of 64 aligned positions, in the order in which it went by: of each step its header
and its payload's bytes. A step that reaches over several windows is cut at their borders, each part of its payload row
by row. A chunk ends where its window ends, with its 64th position (a history may be cropped and go through a window
again), when a position outside its window comes, and where a segment ends. All of this follows from the steps alone, so
everyone who sees the same steps cuts them alike, and nobody has to say where.

    positions   0 ........... 64 ........... 128 .. 140      one prefill of 130, then 10 tokens, then crop to 70
    chunks      |  index 0    |  index 1     | index 2 |
                              70 ... 128 .. 140              index 3 from 70, index 4 from 128

A segment is a stretch of a session between repairs. The client numbers them, and a step names the one that it is in.
Pure: no I/O, no tensors, no clock. Runs in the event loop, on every step: some microseconds and what SHA-256 takes.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from dht.codec import encode
from node.merkle import hash_leaf
from node.wire import ID_BYTES, LOGIT_BYTES, LOGITS, Payload, Step, payload_parts

WINDOW = 64
"""Positions of a window, and of a chunk at most."""
NOTHING = sha256(b"").digest()
"""Hash of no bytes: what goes in where a stage sends its outputs once more."""

_SMALL = 2**14
_MAX_SMALL = 2**16
"""Payloads of so many bytes are gathered, so many bytes of them, before they are hashed."""

_HEADER = struct.Struct(">IHIIB")
"""Of a piece: first position, rows, positions, positions answered for, flags."""
_HAS_CROP = 1
_HAS_ROWS = 2
_IS_HISTORY = 4
_LEAF = struct.Struct(">16sIII32s32s32s")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of what went one way between two neighbours."""

    segment: int
    """The segment that it is in."""
    index: int
    """Its number in the segment, from 0."""
    first: int
    """Its first position."""
    header: bytes
    """sha256 of the session's codec and the headers of its pieces, 32 bytes."""
    digest: bytes
    """sha256 of the bytes that went, 32 bytes."""

    def voucher_body(self, session: bytes) -> bytes:
        """Return what its sender signs towards its receiver, as ``Domain.CHUNK``."""
        return encode([session, self.segment, self.index, self.first, self.header, self.digest])


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a stage commits to: a chunk that went in, and what came out for it."""

    segment: int
    """The segment that it is in."""
    index: int
    """Its number in the segment, from 0; chunks sent again have numbers, and a segment, of their own."""
    first: int
    """Its first position."""
    header: bytes
    """As in ``Chunk``."""
    taken: bytes
    """sha256 of the bytes that went in; ``NOTHING``: the bytes that came out are only sent again."""
    given: bytes
    """sha256 of the bytes that came out."""
    voucher: bytes = b""
    """Signature of the stage before over what went in, 64 bytes; empty where nobody can be asked for it."""

    @property
    def is_resent(self) -> bool:
        """Whether it holds outputs that are sent once more, to a new stage."""
        return self.taken == NOTHING

    @property
    def chunk_in(self) -> Chunk:
        """What the stage says it was sent."""
        return Chunk(self.segment, self.index, self.first, self.header, self.taken)

    @property
    def chunk_out(self) -> Chunk:
        """What the stage says it has sent."""
        return Chunk(self.segment, self.index, self.first, self.header, self.given)

    def hash(self, session: bytes) -> bytes:
        """Return its hash in the session's Merkle tree."""
        numbers = (self.segment, self.index, self.first)
        return hash_leaf(_LEAF.pack(session, *numbers, self.header, self.taken, self.given))


class Tap:
    """Hashes what goes one way: steps to a stage, outputs from it, or what is sent again.

    Args:
        codec: the session's, in which hidden states travel; token ids and logits at the ends have their own.
        segment: the first segment.
    """

    __slots__ = ("_codec", "_data", "_filled", "_first", "_header", "_small", "index", "segment")

    def __init__(self, codec: str, segment: int = 0) -> None:
        self.segment = segment
        self.index = 0
        """Chunks closed in this segment."""
        self._codec = codec.encode() + b"\x00"
        self._first = self._filled = 0
        self._header = bytearray()
        self._small, self._data = bytearray(), sha256()
        """What is not hashed yet: hashing 2 KiB or more lets another thread run, which may take its time."""

    def copy(self) -> Tap:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._header, other._small = self._header[:], self._small[:]  # noqa: SLF001 - one of our own
        other._data = self._data.copy()  # noqa: SLF001 - one of our own
        return other

    def put(self, step: Step, segment: int, payload: Payload) -> bool:
        """Take what goes by if it goes on in the open chunk and leaves it open, as while decoding; say whether it did.

        What ``add`` would do, in one call: this runs twice for every step at every stage.
        """
        position, (rows, tokens, _) = step.position, step.shape
        window = self._first // WINDOW
        if (
            not 0 < self._filled < WINDOW - tokens
            or not window == position // WINDOW == (position + tokens) // WINDOW
            or segment > self.segment
            or step.crop is not None
            or step.rows is not None
            or step.replay
            or len(payload) > _SMALL
            or len(self._small) > _MAX_SMALL
        ):
            return False
        self._header += _HEADER.pack(position, rows, tokens, min(tokens, step.logits_to_keep), 0)
        self._small += payload
        self._filled += tokens
        return True

    def add(self, step: Step, segment: int, codec: str, shape: tuple[int, ...], payload: Payload) -> list[Chunk]:
        """Take what goes by for a step; return the chunks that are complete.

        Args:
            step: its header; its payload is not looked at.
            segment: the one that the step is in; one that has passed means the present one.
            codec: how ``payload`` travels.
            shape: rows, positions and width of ``payload``; a head may answer for the last positions only.
            payload: what goes by.
        """
        if self.put(step, segment, payload):
            return []
        closed = self.cut(segment) if segment > self.segment else []
        position, tokens = step.position, step.shape[1]
        end = position + tokens
        while position < end:
            window = position // WINDOW
            if self._filled and self._first // WINDOW != window:
                closed.append(self._close())
            if not self._filled:
                self._open(position)
            last = min(end, (window + 1) * WINDOW, position + WINDOW - self._filled)
            self._header += piece_header(step, position, last)
            if last - position == tokens:
                self._hash(payload)
            else:
                answered = end - shape[1]
                for part in cut_payload(payload, codec, shape, max(position, answered) - answered, last - answered):
                    self._hash(part)
            self._filled += last - position
            position = last
            if last % WINDOW == 0 or self._filled == WINDOW:
                closed.append(self._close())
        return closed

    def cut(self, segment: int) -> list[Chunk]:
        """End the segment and begin another; return the chunk that this leaves incomplete, if there is one."""
        closed = self.seal()
        self.segment, self.index = segment, 0
        return closed

    def seal(self) -> list[Chunk]:
        """End the chunk that is open, if there is one, and return it."""
        return [self._close()] if self._filled else []

    def _open(self, position: int) -> None:
        self._first = position
        self._header, self._data = bytearray(self._codec), sha256()

    def _hash(self, part: Payload) -> None:
        if len(part) <= _SMALL:
            self._small += part
            if len(self._small) > _MAX_SMALL:
                self._hash_small()
        else:
            self._hash_small()
            self._data.update(part)

    def _hash_small(self) -> None:
        self._data.update(self._small)
        self._small.clear()

    def _close(self) -> Chunk:
        self._hash_small()
        chunk = Chunk(self.segment, self.index, self._first, sha256(self._header).digest(), self._data.digest())
        self.index += 1
        self._filled = 0
        return chunk


def piece_header(step: Step, first: int, last: int) -> bytes:
    """Return the header of the positions ``[first, last)`` of a step; what changes before it stands at the first."""
    is_first = first == step.position
    crop = step.crop if is_first else None
    rows = step.rows if is_first else None
    flags = (crop is not None) * _HAS_CROP | (rows is not None) * _HAS_ROWS | (step.replay > 0) * _IS_HISTORY
    end = step.position + step.shape[1]
    answered = 0 if step.replay else max(0, last - max(first, end - step.logits_to_keep))
    header = _HEADER.pack(first, step.shape[0], last - first, answered, flags)
    if crop is not None:
        header += struct.pack(">I", crop)
    if rows is not None:
        header += struct.pack(f">{len(rows)}H", *rows)
    return header


def cut_payload(payload: Payload, codec: str, shape: tuple[int, ...], first: int, last: int) -> Iterator[memoryview]:
    """Yield the bytes of positions ``[first, last)`` of a payload: part by part, and in each part row by row.

    Args:
        payload: in ``codec``.
        codec: any.
        shape: rows, positions and width.
        first: position in the payload.
        last: one past the last one.
    """
    rows, positions, width = shape
    view, offset = memoryview(payload), 0
    for size in _parts(codec, width) if first < last else ():
        for row in range(rows):
            begin = offset + row * positions * size
            yield view[begin + first * size : begin + last * size]
        offset += rows * positions * size


def _parts(codec: str, width: int) -> tuple[int, ...]:
    return (ID_BYTES * width, LOGIT_BYTES * width) if codec == LOGITS else payload_parts(codec, width)
