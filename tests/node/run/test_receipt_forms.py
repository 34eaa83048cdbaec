"""Receipts as a table, as JSON and as CSV."""

import csv
import io
import json
from dataclasses import replace

from rich.console import Console

from dht.identity import Identity
from dht.work import WorkKind
from node.run.receipt_forms import (
    FIELDS,
    MAX_SUMS,
    as_csv,
    as_fields,
    as_json_lines,
    as_table,
    in_order,
    model_name,
    sums_in_lines,
)
from tests.dht.receipts.ledger_kit import CONSUMER, OTHER, OWN, made
from tests.dht.samples import MANIFEST

ONE, TWO = made(), made(consumer=OTHER, seq=2)
NAMES = {MANIFEST: "gpt2"}
DIGITS = MANIFEST.hex()[:8]


def printed(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_a_model_is_named_where_its_name_is_known():
    assert (model_name(MANIFEST, NAMES), model_name(MANIFEST, {})) == (f"gpt2@{DIGITS}", DIGITS)


def test_a_receipt_is_one_json_object_with_every_field():
    (line,) = as_json_lines([ONE], NAMES).splitlines()
    fields = json.loads(line)
    assert list(fields) == list(FIELDS)
    assert (fields["provider"], fields["consumer"], fields["kind"]) == (OWN.peer_id, CONSUMER.peer_id, "decode")
    assert (fields["blocks"], fields["amount"], fields["unit"], fields["work"]) == ("0:4", 64, "tokens", 256)
    assert bytes.fromhex(fields["manifest"]) == MANIFEST


def test_csv_has_a_header_and_what_json_has():
    rows = list(csv.DictReader(io.StringIO(as_csv([ONE, TWO], NAMES))))
    assert rows == [{name: str(value) for name, value in as_fields(receipt, NAMES).items()} for receipt in (ONE, TWO)]
    assert as_csv([], {}) == ",".join(FIELDS) + "\n"


def test_a_spreadsheet_takes_no_name_for_a_formula():
    (row,) = csv.DictReader(io.StringIO(as_csv([ONE], {MANIFEST: "=HYPERLINK(1)"})))
    assert row["model"].startswith("'=")


def test_a_table_shows_whole_peer_ids_and_takes_no_markup_from_names():
    shown = printed(as_table([ONE], {MANIFEST: "[red]x"}))
    for part in (OWN.peer_id, CONSUMER.peer_id, "[red]x@", "64 tokens", "256", "0:4"):
        assert part in shown.replace("\n", "")


def test_kib_are_not_called_tokens():
    relayed = replace(ONE, work_kind=WorkKind.RELAY, work=64)
    assert as_fields(relayed, {})["unit"] == "KiB"
    assert "64 KiB" in printed(as_table([relayed], {}))


def test_the_order_does_not_depend_on_how_they_came():
    many = [made(lane=lane, seq=seq, consumer=peer) for lane in (1, 2) for seq in (1, 2) for peer in (CONSUMER, OTHER)]
    assert in_order(many) == in_order(reversed(many))
    assert in_order([made(epoch=3), made(epoch=2)])[0].epoch == 2
    first, last = replace(ONE, lane=9, t_last=ONE.t_last - 1), ONE
    assert in_order([last, first]) == [first, last], "oldest first"


def test_in_a_narrow_terminal_peers_are_told_apart_by_their_ends():
    shown = printed(as_table([ONE], NAMES, is_narrow=True))
    assert f"...{OWN.peer_id[-6:]}" in shown
    assert OWN.peer_id not in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_sums_say_who_did_how_much_for_whom_most_work_first():
    more = replace(ONE, lane=9, amount=640, work=2560)
    first, *lines = sums_in_lines([TWO, ONE, more])
    assert first.startswith("Who did how much for whom")
    assert lines == [
        f"  {OWN.peer_id} did 2,816 block-tokens (704 tokens) in 2 sessions for {CONSUMER.peer_id}",
        f"  {OWN.peer_id} did 512 block-tokens (128 tokens) in 1 session for {OTHER.peer_id}",
    ]


def test_of_very_many_pairs_the_first_are_shown_and_the_others_counted():
    pairs = [replace(ONE, consumer=Identity.ephemeral().peer_id) for _ in range(MAX_SUMS + 3)]
    lines = sums_in_lines(pairs)
    assert len(lines) == MAX_SUMS + 2
    assert lines[-1] == "  and 3 more pairs of peers"
