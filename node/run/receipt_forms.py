"""Write receipts as a table, as JSON or as CSV. Pure: everything that is shown is handed in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from dht.work import UNITS, Receipt
from node.run.since import in_words

FIELDS = (
    "provider", "consumer", "epoch", "lane", "kind", "seq", "model", "manifest", "blocks", "profile", "sessions",
    "amount", "unit", "work", "bytes_in", "bytes_out", "commitment", "t_first", "t_last",
)  # fmt: skip
"""Fields of a receipt in JSON and CSV, in this order."""

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
    return sorted(receipts, key=lambda receipt: (receipt.epoch, receipt.slot, receipt.seq))


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


def as_table(receipts: Iterable[Receipt], names: Names) -> Table:
    """Lay out what people want to see of them."""
    table = Table()
    for column in ("last (UTC)", "kind", "provider", "consumer", "model", "blocks", "amount", "work", "seq"):
        table.add_column(column, overflow="fold", justify="right" if column in ("amount", "work", "seq") else "left")
    for receipt in receipts:
        cells = (
            in_words(receipt.t_last), receipt.work_kind.name.lower(), receipt.provider, receipt.consumer,
            model_name(receipt.manifest, names), f"{receipt.start}:{receipt.end}",
            f"{receipt.amount} {UNITS[receipt.work_kind]}", str(receipt.work), str(receipt.seq),
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))  # Names come from peers and may look like markup.
    return table


def _harmless(text: str) -> str:
    """Keep a spreadsheet from taking a name that a peer chose for a formula."""
    return f"'{text}" if text[:1] in "=+-@" else text
