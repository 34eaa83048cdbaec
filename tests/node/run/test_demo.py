"""What the demo says at its end of who did how much."""

import io
import json

from dht.receipts.ledger import Ledger
from node.config import LEDGER
from node.run.demo import say_receipts
from node.run.events import Reporter
from tests.dht.receipts.ledger_kit import CONSUMER, OWN, envelope


def said(home, *, events_json: bool):
    out, err = io.StringIO(), io.StringIO()
    say_receipts(home, Reporter(events_json=events_json, out=out, err=err))
    return out.getvalue(), err.getvalue()


def test_who_did_how_much_is_said_from_the_receipts_of_a_home(tmp_path):
    with Ledger.open(tmp_path / LEDGER) as ledger:
        ledger.append(CONSUMER.peer_id, envelope())
    assert f"{OWN.peer_id} did 256 block-tokens (64 tokens) in 1 session for" in said(tmp_path, events_json=False)[1]
    event = json.loads(said(tmp_path, events_json=True)[0])
    fields = {"provider": OWN.peer_id, "consumer": CONSUMER.peer_id, "tokens": 64, "block_tokens": 256}
    assert event == {"event": "work", **fields}


def test_no_receipts_are_said_too(tmp_path):
    assert "No receipts" in said(tmp_path, events_json=False)[1]
    assert said(tmp_path, events_json=True)[0] == ""
