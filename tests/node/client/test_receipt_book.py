"""The book of what a client has signed for."""

from dht.rules import DEFAULT_RULES
from node.client.receipt_book import _open
from node.config import LEDGER
from tests.dht.receipts.ledger_kit import OWN, envelope


def test_a_client_says_that_its_ledger_was_damaged(tmp_path, caplog):
    path = tmp_path / LEDGER
    with _open(path, OWN.peer_id, DEFAULT_RULES) as ledger:
        ledger.append(OWN.peer_id, envelope())
    assert caplog.text == ""
    path.write_bytes(b"\xa5" * path.stat().st_size)
    with _open(path, OWN.peer_id, DEFAULT_RULES) as ledger:
        assert ledger.notices
    assert f"The ledger {path} was damaged (its beginning has been overwritten); it is kept as" in caplog.text
