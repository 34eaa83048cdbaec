"""``efedllm receipts``: the receipts that this node holds, every signature checked again.

Without hivemind, whose import takes seconds: ``swarm_receipts`` reads the DHT.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dht.identity import peer_id_to_bytes
from dht.receipts.ledger import Ledger
from dht.work import Receipt, Slot
from node.errors import UserError
from node.run.exit_codes import LEDGER_MENDED, OK
from node.run.receipt_forms import Names, as_csv, as_json_lines, as_table, in_order

LEDGER = "ledger.sqlite"
"""Name of the ledger in a node's directory."""

_WIDTH_OF_A_FILE = 200
"""Columns of the table where no terminal says how many there are."""


@dataclass(frozen=True, slots=True)
class ReceiptsOptions:
    """What is asked for."""

    home: Path
    providers: tuple[str, ...] = ()  # peer ids; empty: whoever worked
    consumers: tuple[str, ...] = ()  # peer ids; empty: whomever it was for
    since_s: int | None = None  # unix seconds: work that ended since then; None: all
    form: str = "table"  # or "json", "csv"
    verify: bool = False  # check every row of the ledger, also of receipts that newer ones have replaced
    repair: bool = False  # of a swarm: write what this home's ledger lacks of its own


def check_peers(options: ReceiptsOptions) -> None:
    """Refuse what is no peer id.

    Raises:
        UserError: With the mend.
    """
    for peer in (*options.providers, *options.consumers):
        try:
            peer_id_to_bytes(peer)
        except ValueError:
            raise UserError(f"{peer[:80]!r} is no peer id; copy one from `efedllm status --json`.") from None


def run_receipts(options: ReceiptsOptions) -> int:
    """List what the ledger of this home holds; returns the exit code."""
    check_peers(options)
    with Ledger.open_to_read(options.home / LEDGER) as ledger:
        if options.verify:
            for finding in ledger.set_aside():
                sys.stderr.write(f"Row {finding.row} was set aside before ({finding.reason}).\n")
            num, findings = ledger.verify()
            sys.stderr.write(f"{num} receipts were checked, {len(findings)} of them are damaged.\n")
        held = [signed.record for own in ledger.owners() for signed in ledger.newest(own, options.since_s or 0)]
        show(options, wanted(held, options), ledger.model_names())
        for notice in ledger.notices:
            sys.stderr.write(f"{notice}\n")
        return LEDGER_MENDED if ledger.notices else OK


def wanted(receipts: Iterable[object], options: ReceiptsOptions) -> list[Receipt]:
    """Choose what was asked for, of each slot the newest, oldest first."""
    chosen: dict[Slot, Receipt] = {}
    for receipt in receipts:
        if isinstance(receipt, Receipt) and _is_wanted(receipt, options):
            held = chosen.setdefault(receipt.slot, receipt)
            chosen[receipt.slot] = max(held, receipt, key=lambda one: one.seq)
    return in_order(chosen.values())


def _is_wanted(receipt: Receipt, options: ReceiptsOptions) -> bool:
    return (
        (not options.providers or receipt.provider in options.providers)
        and (not options.consumers or receipt.consumer in options.consumers)
        and receipt.t_last >= (options.since_s or 0)
    )


def show(options: ReceiptsOptions, receipts: list[Receipt], names: Names) -> None:
    """Print receipts in the form that was asked for."""
    if options.form == "json":
        sys.stdout.write(as_json_lines(receipts, names))
    elif options.form == "csv":
        sys.stdout.write(as_csv(receipts, names))
    elif receipts:
        Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE).print(as_table(receipts, names))
    else:
        sys.stdout.write("No receipts: nothing that both sides have signed for is held here.\n")
