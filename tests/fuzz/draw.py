"""Turn the bytes of a fuzzer into choices: the same bytes give the same choices, and any bytes give some."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

EDGES = (0, 1, 2, 15, 16, 31, 32, 63, 64, 65, 127, 128, 255, 256, 2**16 - 1, 2**16, 2**24, 2**32 - 1, 2**32, 2**40)
"""Numbers at which something in the formats ends."""


class Draw:
    """Takes choices from the front of ``data``; when it is used up, every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_used_up(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self, limit: int) -> int:
        """A number from 0 to ``limit``, of as few bytes as can say it."""
        value = 0
        for _ in range((limit.bit_length() + 7) // 8):
            value = value << 8 | self.byte()
        return value % (limit + 1)

    def flag(self) -> bool:
        return self.byte() & 1 == 1

    def rarely(self) -> bool:
        """True once in 16 times, and never when the bytes are used up."""
        return self.byte() & 15 == 15

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.number(len(values) - 1)]

    def edge(self) -> int:
        """A number near one at which something ends, of either sign; at times any of 64 bits."""
        what = self.number(len(EDGES) + 3)
        if what < len(EDGES):
            return max(0, EDGES[what] + self.number(2) - 1)
        return (self.number(2**64 - 1), 2**63 - 1, -self.number(2**63 - 1) - 1, 2**53 + self.number(2))[
            what - len(EDGES)
        ]

    def blob(self, size: int) -> bytes:
        """So many bytes; what is missing is zero."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken.ljust(size, b"\0")

    def some_bytes(self, limit: int) -> bytes:
        return self.blob(self.number(limit))

    def rest(self) -> bytes:
        taken, self._at = self._data[self._at :], len(self._data)
        return taken


def draw_value(draw: Draw, depth: int = 3) -> object:
    """A value of the canonical format, or close to one."""
    match draw.number(7 if depth else 5):
        case 0:
            return draw.edge()
        case 1:
            return draw.flag()
        case 2:
            return draw.blob(draw.one_of((32, 38, 64, 0, 16, 20, 31, 33, 65)))
        case 3:
            return draw.some_bytes(40)
        case 4:
            return draw.some_bytes(12).decode("utf-8", "replace")
        case 5:
            return draw.number(255)
        case _:
            return [draw_value(draw, depth - 1) for _ in range(draw.number(6))]


def mutated(draw: Draw, fields: Sequence[object]) -> list[object]:
    """The fields of an array, some of them changed, left out, doubled, or exchanged for another's."""
    changed = list(fields)
    for _ in range(draw.number(3)):
        index = draw.number(max(0, len(changed) - 1))
        match draw.number(5):
            case 0 if changed and isinstance(changed[index], list):
                changed[index] = mutated(draw, changed[index])
            case 1 if changed:
                del changed[index]
            case 2:
                changed.insert(index, draw_value(draw))
            case 3 if changed:
                changed[index] = changed[draw.number(len(changed) - 1)]
            case 4 if changed and isinstance(changed[index], int):
                changed[index] = max(-(2**63), min(2**64 - 1, changed[index] + draw.number(4) - 2))
            case _ if changed:
                changed[index] = draw_value(draw)
    return changed
