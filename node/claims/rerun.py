"""Make of verified evidence the work that ``node.check`` runs again: the history as the claimed chunk saw it. Pure.

    headers     0..64   64..128   crop to 100, 100..128   128..140
    history     |------ 0 to 100 -----||-- 100 to 128 --||-- 128 to 140 --|

A crop forgets what lies behind it. Selections of rows are not run; then nobody can tell.
"""

from __future__ import annotations

from collections.abc import Iterator

from node.check.check import Piece, Work
from node.check.evidence import Evidence
from node.check.headers import Header
from node.commitment.chunks import cut_payload
from node.errors import CannotCheck
from node.wire import payload_bytes


def work_of(evidence: Evidence, hidden_size: int) -> Work:
    """Return what went in and what came out.

    Args:
        evidence: as ``unpack_and_verify`` returns it.
        hidden_size: of the model.

    Raises:
        CannotCheck: it is of a session that evidence does not describe wholly.
    """
    codec, headers = evidence.codec, evidence.headers
    rows = headers[0].pieces[0].num_rows
    shape = (rows, 1, hidden_size)
    history: list[Piece] = []
    for header, chunk in zip(headers, evidence.computed, strict=True):
        if any(piece.num_rows != rows or piece.rows is not None for piece in header.pieces):
            raise CannotCheck("Rows were selected, as for beams, and such a session is not run again.")
        _go_through(history, header, list(_cut(chunk.taken, header, codec, shape)), shape, codec)
    given = tuple(_cut(evidence.given, headers[-1], codec, shape))
    return Work(rows, hidden_size, codec, tuple(history), given, evidence.left_padding)


def _cut(data: bytes, header: Header, codec: str, shape: tuple[int, int, int]) -> Iterator[Piece]:
    """Cut what went by in a chunk into its pieces; ``shape`` is that of one position in all rows."""
    size = payload_bytes(codec, shape)
    if len(data) != sum(piece.num_positions for piece in header.pieces) * size:
        raise CannotCheck("They are no hidden states of the model at every position.")
    at = 0
    for piece in header.pieces:
        yield Piece(data[at : at + piece.num_positions * size], piece.num_positions)
        at += piece.num_positions * size


def _go_through(
    history: list[Piece], header: Header, taken: list[Piece], shape: tuple[int, int, int], codec: str
) -> None:
    """Let a chunk's pieces go into the history."""
    for number, (piece, went_in) in enumerate(zip(header.pieces, taken, strict=True)):
        if piece.crop is not None:
            if number:
                raise CannotCheck("The history was cropped within a chunk.")
            _crop(history, piece.crop, codec, shape)
        if sum(each.num_positions for each in history) != piece.first:
            raise CannotCheck("The history has a gap.")
        history.append(went_in)


def _crop(history: list[Piece], position: int, codec: str, shape: tuple[int, int, int]) -> None:
    """Forget what lies behind a position."""
    rows, _, hidden_size = shape
    end = sum(piece.num_positions for piece in history)
    while history and end > position:
        last = history.pop()
        end -= last.num_positions
        if end < position:
            whole = (rows, last.num_positions, hidden_size)
            kept = b"".join(cut_payload(last.payload, codec, whole, 0, position - end))
            history.append(Piece(kept, position - end))
            return
