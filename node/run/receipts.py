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
from node.config import LEDGER
from node.errors import UserError
from node.run.damage_words import lost_in_words
from node.run.exit_codes import LEDGER_MENDED, OK
from node.run.receipt_forms import Names, as_csv, as_json_lines, as_table, in_order, sums_in_lines

_WIDTH_OF_A_FILE = 200
"""Columns of the table where no terminal says how many there are."""

_WIDTH_OF_WHOLE_IDS = 180
"""Columns below which the table shows only the ends of peer ids."""

_NOTHING_HELD = "No receipts: this node holds none that both sides have signed."
_NOTHING_SINCE = "No receipts: this node holds some, but none of work that ended in the span of that --since."
_NOTHING_WANTED = "No receipts: this node holds some, but none with that --provider, --consumer or --since."


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
    where = {
        "copy a server's from `efedllm status --json`.": options.providers,
        "copy a client's from the consumers that `efedllm receipts --json` lists, or your own from "
        "`efedllm identity show`.": options.consumers,
    }
    for mend, peers in where.items():
        for peer in peers:
            try:
                peer_id_to_bytes(peer)
            except ValueError:
                raise UserError(f"{peer[:80]!r} is no peer id; {mend}") from None


def run_receipts(options: ReceiptsOptions) -> int:
    """List what the ledger of this home holds; returns the exit code."""
    check_peers(options)
    with Ledger.open_to_read(options.home / LEDGER, tell=say) as ledger:
        if options.verify:
            for finding in ledger.set_aside():
                sys.stderr.write(f"Row {finding.row} was set aside before ({finding.reason}).\n")
            num, findings = ledger.verify()
            sys.stderr.write(f"{num} receipts were checked, {len(findings)} of them are damaged.\n")
        held = [signed.record for own in ledger.owners() for signed in ledger.newest(own, options.since_s or 0)]
        chosen = wanted(held, options)
        show(options, chosen, ledger.model_names(), "" if chosen else _why_none(ledger, is_any_held=bool(held)))
        lost = ledger.lost()
        for line in lost_in_words(lost):
            say(line)
        return LEDGER_MENDED if ledger.notices or lost else OK


def say(sentence: str) -> None:
    """Tell a command's user something beside its answer."""
    sys.stderr.write(f"{sentence}\n")


def _why_none(ledger: Ledger, *, is_any_held: bool) -> str:
    if is_any_held:
        return _NOTHING_WANTED
    return _NOTHING_SINCE if any(ledger.newest(own) for own in ledger.owners()) else _NOTHING_HELD


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


def show(options: ReceiptsOptions, receipts: list[Receipt], names: Names, nothing: str) -> None:
    """Print receipts in the form that was asked for; of people's form also who did how much for whom.

    Args:
        options: What was asked for.
        receipts: In their order.
        names: Of models.
        nothing: What to say where there are none, in a sentence.
    """
    if options.form == "json":
        sys.stdout.write(as_json_lines(receipts, names))
    elif options.form == "csv":
        sys.stdout.write(as_csv(receipts, names))
    elif receipts:
        _print_table(receipts, names)
    if not receipts:
        (sys.stdout if options.form == "table" else sys.stderr).write(f"{nothing}\n")


def _print_table(receipts: list[Receipt], names: Names) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    is_narrow = console.width < _WIDTH_OF_WHOLE_IDS
    console.print(as_table(receipts, names, is_narrow=is_narrow))
    sys.stdout.write("".join(f"{line}\n" for line in sums_in_lines(receipts)))
