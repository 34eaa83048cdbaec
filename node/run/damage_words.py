"""Say in words what a ledger has lost to damage, and how it is had again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dht.receipts.receipt_rows import Finding
from node.run.receipt_forms import counted

MEND = "`efedllm receipts --join CODE --repair`"
"""The command that has receipts again from the DHT."""

_NAMED = 5
"""Rows that are named one by one."""


def lost_in_words(lost: Sequence[Finding]) -> list[str]:
    """Name the rows of a ledger that do not count and that nothing stands for; nothing where there are none."""
    if not lost:
        return []
    named = ", ".join(f"row {finding.row} ({finding.reason})" for finding in lost[:_NAMED])
    more = f" and {len(lost) - _NAMED:,} more" if len(lost) > _NAMED else ""
    return [f"{len(lost):,} set aside: {named}{more}. What they held is not counted; the DHT may hold it: {MEND}."]


def aside_in_words(aside: Sequence[Path]) -> list[str]:
    """Name the damaged ledgers that are kept beside the present one; nothing where there are none."""
    if not aside:
        return []
    names = ", ".join(path.name for path in aside[-_NAMED:])
    what = counted(len(aside), "damaged ledger")
    lies, it = ("lies", "it") if len(aside) == 1 else ("lie", "they")
    return [f"{what} {lies} beside the present one, which may lack what {it} held: {names}. Mend: {MEND}."]
