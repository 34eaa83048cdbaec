"""The hours of the day in which a donor gives. Pure: the minute of the day is passed in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from node.errors import UserError

_MINUTES_A_DAY = 24 * 60
_RANGE = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Hours:
    """Ranges of minutes of the day, half-open; one may reach over midnight."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> Hours:
        """Read ``22:00-07:00``, or several of these with commas between them.

        Raises:
            UserError: it is malformed, or a range is empty.
        """
        return cls(tuple(_parse_range(part.strip()) for part in text.split(",")))

    def __str__(self) -> str:
        return ", ".join(f"{_clock(start)}-{_clock(end)}" for start, end in self.ranges)

    def contain(self, minute: int) -> bool:
        """Say whether the donor gives at ``minute`` of the day (0 to 1439)."""
        return any(
            start <= minute < end if start < end else minute >= start or minute < end for start, end in self.ranges
        )


def _parse_range(text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    first, last = (_minute(match[1], match[2]), _minute(match[3], match[4])) if match else (None, None)
    if first is None or last is None or first % _MINUTES_A_DAY == last:
        raise UserError(f"--hours {text!r} is no range of hours; write HH:MM-HH:MM, for example 22:00-07:00.")
    return first % _MINUTES_A_DAY, last


def _minute(hour: str, minute: str) -> int | None:
    whole = int(hour) * 60 + int(minute)
    return whole if int(minute) < 60 and whole <= _MINUTES_A_DAY else None


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
