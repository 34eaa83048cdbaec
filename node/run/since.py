"""Read what a user gives to ``--since``. Pure."""

from __future__ import annotations

import datetime
import re

_UNITS_S = {"hour": 3600, "day": 86400, "week": 7 * 86400}


def parse_since(text: str, now_s: float) -> int:
    """Return the unix second that a date ("2026-11-01", its beginning in UTC) or a span ("7 days") means.

    Raises:
        ValueError: It means neither, or lies ahead; the message says how to write it.
    """
    match = re.fullmatch(r"(\d{1,5})\s*(hour|day|week)s?", text.strip().lower())
    if match is not None:
        return max(0, int(now_s) - int(match[1]) * _UNITS_S[match[2]])
    try:
        day = datetime.datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=datetime.UTC)
    except ValueError:
        raise ValueError(f"{text!r} is no date; write for example 2026-11-01, or 7 days") from None
    since_s = int(day.timestamp())
    if since_s > now_s:
        raise ValueError(f"{text!r} lies ahead; write a date that has been")
    return max(0, since_s)


def in_words(t: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Write a unix second as people read it, in UTC; what no calendar holds as a number."""
    try:
        return datetime.datetime.fromtimestamp(t, datetime.UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return str(int(t))
