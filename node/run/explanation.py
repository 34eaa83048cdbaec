"""An explanation of a route, as an event for scripts and as a table for people."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from node.client.explain import Candidate, Explanation
from node.run.events import Reporter

_WIDTH_OF_A_FILE = 200
"""Columns of the table where no terminal says how many there are."""


def tell_explanation(reporter: Reporter, explanation: Explanation) -> None:
    """Write ``explanation`` as an event, if events were asked for, and as a table on stderr."""
    reporter.event("explain", as_fields(explanation))
    reporter.say(as_table(explanation, _width()))


def as_fields(explanation: Explanation) -> dict[str, Any]:
    """Return the fields of the event; times in ms."""
    return {
        "policy": str(explanation.objective),
        "token_ms": _ms(explanation.cost_us),
        "candidates": [
            {
                "peer_id": candidate.peer_id,
                "blocks": f"{candidate.start}:{candidate.end}",
                "block_ms": _ms(candidate.block_us),
                "queue_ms": _ms(candidate.queue_us),
                "round_trip_ms": _ms(candidate.round_trip_us),
                "taken": _span(candidate.taken),
                "token_ms": _ms(candidate.cost_us),
                "reason": candidate.reason,
            }
            for candidate in explanation.candidates
        ],
    }


def as_table(explanation: Explanation, width: int) -> str:
    """Return the table as lines of text of at most ``width`` columns."""
    drawn = io.StringIO()
    Console(file=drawn, width=width, markup=False).print(_table(explanation), *_notes(explanation), sep="\n")
    return "\n".join(line.rstrip() for line in drawn.getvalue().rstrip().splitlines())


def _table(explanation: Explanation) -> Table:
    table = Table(title=f"Servers of the model, for the {explanation.objective} route", title_justify="left")
    for column in ("blocks", "peer", "ms/block", "queue ms", "round trip ms", "taken", "ms/token", "why not"):
        table.add_column(column, overflow="fold")
    for candidate in explanation.candidates:
        table.add_row(*_cells(candidate))
    return table


def _cells(candidate: Candidate) -> Iterable[str]:
    yield f"{candidate.start}:{candidate.end}"
    yield candidate.peer_id
    for us in (candidate.block_us, candidate.queue_us, candidate.round_trip_us):
        yield _in_words(us)
    yield _span(candidate.taken) or "-"
    yield _in_words(candidate.cost_us)
    yield _plain(candidate.reason)


def _notes(explanation: Explanation) -> Iterable[str]:
    if explanation.cost_us is not None:
        yield f"Expected: {_in_words(explanation.cost_us)} ms for one token of a single session."
    if explanation.slowest_us is not None:
        yield f"Its slowest stage computes for at most {_in_words(explanation.slowest_us)} ms of that."


def _span(taken: tuple[int, int] | None) -> str | None:
    return f"{taken[0]}:{taken[1]}" if taken else None


def _ms(us: int | None) -> float | None:
    return us / 1000 if us is not None else None


def _in_words(us: int | None) -> str:
    return f"{us / 1000:.2f}" if us is not None else "-"


def _plain(text: str) -> str:
    """Return a text that a peer may have had a hand in, without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else _WIDTH_OF_A_FILE
