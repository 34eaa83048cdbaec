"""What a ledger has lost is said in a line, however much it is."""

from pathlib import Path

from dht.receipts.receipt_rows import Finding
from node.run.damage_words import aside_in_words, lost_in_words


def test_nothing_is_said_where_nothing_is_lost():
    assert lost_in_words(()) == aside_in_words(()) == []


def test_many_rows_are_counted_and_a_few_named():
    (line,) = lost_in_words([Finding(row, "oversize") for row in range(1, 1206)])
    assert line.startswith("1,205 set aside: row 1 (oversize), row 2 (oversize)")
    assert "row 5 (oversize) and 1,200 more. What they held is not counted" in line
    assert "row 6" not in line


def test_damaged_ledgers_are_named_with_the_mend():
    (line,) = aside_in_words([Path("/home/ledger.sqlite.damaged-1"), Path("/home/ledger.sqlite.damaged-2")])
    assert line == (
        "2 damaged ledgers lie beside the present one, which may lack what they held: ledger.sqlite.damaged-1, "
        "ledger.sqlite.damaged-2. Mend: `efedllm receipts --join CODE --repair`."
    )
