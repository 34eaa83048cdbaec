"""Where each chunk of a session stands in its history, as long as the history holds all of it. Pure.

Stages keep their outputs by position, as the history stands. A chunk can be opened while nothing of it, nor of what
lies before it, has been cropped, and no rows were selected:

    chunks of the history     | 0 .... 64 | 64 ... 128 | 128 . 140 |
    crop to 64, step at 64    | 0 .... 64 | 64 ... 65              the second and the third are gone, the next stands
    crop to 30, step at 30                                         the first holds what was cropped: gone; and whatever
                                                                   follows lies behind what can be opened no more

Chunks are cut as in ``commitment.chunks``, from the headers of steps alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from node.commitment.chunks import WINDOW, piece_header
from node.wire import Step


@dataclass(slots=True)
class Tile:
    """One chunk, and the positions that went by in it, in their order."""

    segment: int
    index: int
    first: int
    """Its first position."""
    rows: int
    end: int
    """One past its last position so far."""
    runs: list[list[int]] = field(default_factory=list)
    """Its pieces: pairs of a number of positions, and how many pieces have so many, one behind the other."""
    headers: bytearray = field(default_factory=bytearray)
    """Headers of its pieces, as they are hashed."""

    @property
    def place(self) -> tuple[int, int]:
        """Segment and index."""
        return self.segment, self.index

    def grow(self, tokens: int) -> None:
        """Take a piece."""
        self.end += tokens
        if self.runs and self.runs[-1][0] == tokens:
            self.runs[-1][1] += 1
        else:
            self.runs.append([tokens, 1])

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield first position and number of positions of each piece."""
        position = self.first
        for tokens, count in self.runs:
            for _ in range(count):
                yield position, tokens
                position += tokens


class Trail:
    """The chunks of one session that stand in its history without gaps from its beginning."""

    def __init__(self) -> None:
        self._segment = self._index = 0
        self._open: Tile | None = None
        self._filled = 0
        """Positions that have gone by in the open chunk, those that were cropped included."""
        self._tiles: list[Tile] = []
        self._numbers: dict[tuple[int, int], int] = {}
        """Where each of them stands in the list, by segment and index."""

    def sent(self, step: Step, segment: int) -> list[tuple[Tile, int, int]]:
        """Note a step that was sent; return the chunks that it is in, and which positions of it each of them has."""
        if segment > self._segment:
            self._open, self._segment, self._index = None, segment, 0
        if step.rows is not None:
            self._forget(0)
        elif step.crop is not None:
            self._forget(step.crop)
        touched, position, end = [], step.position, step.position + step.shape[1]
        while position < end:
            window = position // WINDOW
            tile = self._open
            if tile is None or tile.first // WINDOW != window:
                tile = self._begin(position, step.shape[0])
            last = min(end, (window + 1) * WINDOW, position + WINDOW - self._filled)
            tile.headers += piece_header(step, position, last)
            tile.grow(last - position)
            touched.append((tile, position, last))
            self._filled += last - position
            position = last
            if last % WINDOW == 0 or self._filled == WINDOW:
                self._open = None
        return touched

    def _begin(self, position: int, rows: int) -> Tile:
        tile = Tile(self._segment, self._index, position, rows, position)
        self._open, self._filled = tile, 0
        self._index += 1
        if position == (self._tiles[-1].end if self._tiles else 0):
            self._numbers[tile.place] = len(self._tiles)
            self._tiles.append(tile)
        return tile

    def _forget(self, position: int) -> None:
        """Note that positions from this one on are not what they were."""
        while self._tiles and self._tiles[-1].end > position:
            del self._numbers[self._tiles.pop().place]

    def up_to(self, segment: int, index: int) -> tuple[Tile, ...] | None:
        """Return the chunks from the beginning of the history up to one; None: something of them is gone."""
        number = self._numbers.get((segment, index))
        return None if number is None else tuple(self._tiles[: number + 1])
