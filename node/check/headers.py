"""Read and write the header of a chunk: which pieces of which steps its bytes are, as stages hash it.

``node.commitment`` hashes headers as steps go by; whoever runs a chunk again needs to know what is in them.
docs/protocol.md, Commitments, is the specification. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from node.commitment.chunks import WINDOW
from node.errors import FalseEvidence
from node.wire import CODECS

MAX_HEADER_BYTES = 2**18
"""Of 64 pieces that select 1,024 rows each, and then some."""

_PIECE = struct.Struct(">IHIIB")
_CROP = struct.Struct(">I")
_HAS_CROP, _HAS_ROWS, _IS_HISTORY = 1, 2, 4


class Piece(NamedTuple):
    """Some consecutive positions of one step."""

    first: int  # position
    num_rows: int
    num_positions: int
    num_answered: int  # last positions that a stage with a head answers for
    crop: int | None = None  # positions from this one on are forgotten first
    rows: tuple[int, ...] | None = None  # then these rows of the history are kept, in this order
    is_history: bool = False  # sent again for a stage that took another one's place


class Header(NamedTuple):
    """What a chunk is made of."""

    codec: str  # of the session's hidden states
    pieces: tuple[Piece, ...]  # in the order in which they went by

    @property
    def num_places(self) -> int:
        """Rows times positions."""
        return sum(piece.num_rows * piece.num_positions for piece in self.pieces)

    def to_bytes(self) -> bytes:
        """Write as it is hashed."""
        return self.codec.encode() + b"\0" + b"".join(map(_write_piece, self.pieces))

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """Read.

        Raises:
            FalseEvidence: not the header of any chunk.
        """
        codec, _, rest = data.partition(b"\0")
        known = next((name for name in CODECS if name.encode() == codec), None)
        if known is None:
            raise FalseEvidence("The header of a chunk names no codec of hidden states.")
        pieces: list[Piece] = []
        at = 0
        try:
            while at < len(rest) and len(pieces) < WINDOW:
                piece, at = _read_piece(rest, at)
                pieces.append(piece)
        except struct.error:
            raise FalseEvidence("The header of a chunk ends within a piece.") from None
        header = cls(known, tuple(pieces))
        if at != len(rest) or not _is_chunk(pieces) or header.to_bytes() != data:
            raise FalseEvidence("The header of a chunk describes none.")
        return header


def _write_piece(piece: Piece) -> bytes:
    flags = (piece.crop is not None) * _HAS_CROP | (piece.rows is not None) * _HAS_ROWS | piece.is_history * _IS_HISTORY
    data = _PIECE.pack(piece.first, piece.num_rows, piece.num_positions, piece.num_answered, flags)
    if piece.crop is not None:
        data += _CROP.pack(piece.crop)
    if piece.rows is not None:
        data += struct.pack(f">{len(piece.rows)}H", *piece.rows)
    return data


def _read_piece(data: bytes, at: int) -> tuple[Piece, int]:
    first, num_rows, num_positions, num_answered, flags = _PIECE.unpack_from(data, at)
    at += _PIECE.size
    crop: int | None = None
    rows: tuple[int, ...] | None = None
    if flags & _HAS_CROP:
        (crop,) = _CROP.unpack_from(data, at)
        at += _CROP.size
    if flags & _HAS_ROWS:
        selected = struct.Struct(f">{num_rows}H")
        rows = selected.unpack_from(data, at)
        at += selected.size
    return Piece(first, num_rows, num_positions, num_answered, crop, rows, bool(flags & _IS_HISTORY)), at


def _is_chunk(pieces: Sequence[Piece]) -> bool:
    """Say whether pieces are those of one chunk: in one window, of as many positions as it has at most."""
    windows = {place // WINDOW for piece in pieces for place in (piece.first, piece.first + piece.num_positions - 1)}
    return (
        len(windows) == 1
        and all(piece.num_rows and piece.num_positions for piece in pieces)
        and all(piece.num_answered <= piece.num_positions for piece in pieces)
        and sum(piece.num_positions for piece in pieces) <= WINDOW
    )
