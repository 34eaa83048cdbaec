"""``efedllm statement``: what this node gave and took, who has not signed, and whether its key is safe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dht.receipts.ledger import Ledger
from dht.receipts.ledger_file import kept_aside
from dht.receipts.totals import Change, Totals, group, totals_of
from node.config import LEDGER
from node.run.exit_codes import LEDGER_MENDED, OK
from node.run.key_care import look_at_keys
from node.run.receipts import say
from node.run.statement_words import Side, Statement, as_json, as_lines


@dataclass(frozen=True, slots=True)
class StatementOptions:
    """What is asked for."""

    home: Path
    since_s: int | None = None  # unix seconds; None: from the beginning
    as_json: bool = False


def run_statement(options: StatementOptions) -> int:
    """Print the statement; returns the exit code."""
    with Ledger.open_to_read(options.home / LEDGER, tell=say) as ledger:
        statement = make_statement(ledger, options)
        if options.as_json:
            sys.stdout.write(json.dumps(as_json(statement)) + "\n")
        else:
            sys.stdout.write("".join(f"{line}\n" for line in as_lines(statement)))
        return LEDGER_MENDED if ledger.notices or statement.lost else OK


def make_statement(ledger: Ledger, options: StatementOptions) -> Statement:
    """Ask the ledger and look at the key."""
    since_s = options.since_s or 0
    own = ledger.owners()
    changes = [(peer, change) for peer in own for change in ledger.changes(peer, since_s)]
    ends = [end for peer in own for end in ledger.unsigned(peer, since_s)]
    return Statement(
        own=tuple(own),
        since_s=since_s,
        given=_given(change for peer, change in changes if change.newest.provider == peer),
        taken=_taken(change for peer, change in changes if change.newest.consumer == peer),
        unsigned=tuple(sorted(ends, key=lambda end: (end.t, end.peer, end.amount))),
        keys=look_at_keys(options.home),
        names=ledger.model_names(),
        lost=tuple(ledger.lost()),
        aside=tuple(kept_aside(options.home / LEDGER)),
    )


def _given(changes: Iterable[Change]) -> Side:
    held = list(changes)
    return Side(totals_of(held), tuple(group(held, lambda receipt: receipt.consumer)), _per_model(held))


def _taken(changes: Iterable[Change]) -> Side:
    held = list(changes)
    return Side(totals_of(held), tuple(group(held, lambda receipt: receipt.provider)), _per_model(held))


def _per_model(changes: list[Change]) -> tuple[tuple[bytes, Totals], ...]:
    return tuple(group(changes, lambda receipt: receipt.manifest))
