"""Write receipts as a table, as JSON or as CSV. Pure: everything that is shown is handed in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE
from rich.table import Table
from rich.text import Text

from dht.receipts.totals import Change, Totals, group
from dht.work import UNITS, Receipt
from node.run.since import in_words

FIELDS = (
    "provider", "consumer", "epoch", "lane", "kind", "seq", "model", "manifest", "blocks", "profile", "sessions",
    "amount", "unit", "work", "bytes_in", "bytes_out", "commitment", "t_first", "t_last",
)  # fmt: skip
"""Fields of a receipt in JSON and CSV, in this order."""

MAX_SUMS = 20
"""Pairs of peers whose sums are shown."""

Names = Mapping[bytes, str]


def model_name(manifest: bytes, names: Names) -> str:
    """Return ``name@first8hex`` of a model, or the 8 digits alone where nobody here knows its name."""
    digits = manifest.hex()[:8]
    return f"{names[manifest]}@{digits}" if manifest in names else digits


def as_fields(receipt: Receipt, names: Names) -> dict[str, Any]:
    """Return the fields of a receipt by name; bytes in hexadecimal, times in unix seconds."""
    values = (
        receipt.provider, receipt.consumer, receipt.epoch, receipt.lane, receipt.work_kind.name.lower(), receipt.seq,
        model_name(receipt.manifest, names), receipt.manifest.hex(), f"{receipt.start}:{receipt.end}",
        receipt.profile.hex(), receipt.sessions, receipt.amount, UNITS[receipt.work_kind], receipt.work,
        receipt.bytes_in, receipt.bytes_out, receipt.commitment.hex(), receipt.t_first, receipt.t_last,
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def in_order(receipts: Iterable[Receipt]) -> list[Receipt]:
    """Sort receipts, oldest first, so that the same ones always come in the same order."""
    return sorted(receipts, key=lambda receipt: (receipt.t_last, receipt.slot, receipt.seq))


def as_json_lines(receipts: Iterable[Receipt], names: Names) -> str:
    """Write one JSON object a line."""
    return "".join(json.dumps(as_fields(receipt, names)) + "\n" for receipt in receipts)


def as_csv(receipts: Iterable[Receipt], names: Names) -> str:
    """Write a header and one line for each receipt (RFC 4180, lines end with LF)."""
    written = io.StringIO()
    rows = csv.DictWriter(written, FIELDS, lineterminator="\n")
    rows.writeheader()
    for receipt in receipts:
        fields = as_fields(receipt, names)
        rows.writerow({**fields, "model": _harmless(fields["model"])})
    return written.getvalue()


def as_table(receipts: Iterable[Receipt], names: Names, *, is_narrow: bool = False) -> Table:
    """Lay out what people want to see of them.

    Args:
        receipts: In their order.
        names: Of models.
        is_narrow: There is no room for two peer ids: show their ends.
    """
    table = Table(box=SIMPLE if is_narrow else HEAVY_HEAD, padding=(0, 1))
    for column in ("last (UTC)", "kind", "provider", "consumer", "model", "blocks", "amount", "work", "seq"):
        table.add_column(column, overflow="fold", justify="right" if column in ("amount", "work", "seq") else "left")
    for receipt in receipts:
        peers = (receipt.provider, receipt.consumer)
        cells = (
            in_words(receipt.t_last, "%m-%d %H:%M" if is_narrow else "%Y-%m-%d %H:%M:%S"),
            receipt.work_kind.name.lower(), *(_end_of(peer) if is_narrow else peer for peer in peers),
            model_name(receipt.manifest, names), f"{receipt.start}:{receipt.end}",
            f"{receipt.amount} {UNITS[receipt.work_kind]}", str(receipt.work), str(receipt.seq),
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))  # Names come from peers and may look like markup.
    return table


def _end_of(peer_id: str) -> str:
    """Show the end of a peer id, which tells it apart; all of them begin alike."""
    return f"...{peer_id[-6:]}"


def sums_of_pairs(receipts: Iterable[Receipt]) -> list[tuple[tuple[str, str], Totals]]:
    """Add receipts up by provider and consumer, most work first."""
    return group(map(Change, receipts), lambda receipt: (receipt.provider, receipt.consumer))


def sums_in_lines(receipts: Iterable[Receipt]) -> list[str]:
    """Say who did how much for whom, most work first."""
    sums = sums_of_pairs(receipts)
    if not sums:
        return ["No receipts: nothing was done that both sides have signed for."]
    lines = [f"  {provider} did {amounts(total)} for {consumer}" for (provider, consumer), total in sums[:MAX_SUMS]]
    if len(sums) > MAX_SUMS:
        lines.append(f"  and {len(sums) - MAX_SUMS:,} more pairs of peers")
    return ["Who did how much for whom, by what both have signed:", *lines]


def amounts(total: Totals) -> str:
    """Say sums in words: "1,024 block-tokens (256 tokens, 200 of them prompt) in 2 sessions"."""
    prompt = f", {total.prefill_tokens:,} of them prompt" if total.prefill_tokens else ""
    tokens = f" ({counted(total.tokens, 'token')}{prompt})"
    return f"{_work(total, tokens)} in {counted(total.sessions, 'session')}"


def amounts_alone(total: Totals) -> str:
    """Say sums in words without tokens and sessions, which are counted once at every peer that they go through."""
    return _work(total, "")


def _work(total: Totals, tokens: str) -> str:
    parts = []
    if total.tokens or not total.relayed_kib:
        parts.append(f"{counted(total.block_tokens, 'block-token')}{tokens}")
    if total.relayed_kib:
        parts.append(f"{size(total.relayed_kib * 1024)} of weights")
    return " and ".join(parts)


def counted(number: int, noun: str) -> str:
    """Write "1 token", "2,048 tokens"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(num_bytes: int) -> str:
    """Write a size with the unit that makes it shortest."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def _harmless(text: str) -> str:
    """Keep a spreadsheet from taking a name that a peer chose for a formula."""
    return f"'{text}" if text[:1] in "=+-@" else text
