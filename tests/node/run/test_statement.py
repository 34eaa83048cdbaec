"""A donor's statement: figures, words, and the command."""

import json
import sqlite3

import pytest

from dht.identity import Identity
from dht.receipts.ledger import Ledger
from dht.receipts.reservation_table import UnsignedEnd
from dht.receipts.totals import Totals
from dht.records import Envelope
from dht.work import WorkKind
from node.cli import main
from node.config import LEDGER
from node.run.receipt_forms import amounts, amounts_alone, size
from node.run.statement import StatementOptions, make_statement
from node.run.statement_words import as_json, as_lines
from tests.dht.receipts.ledger_kit import CONSUMER, OTHER, OWN, envelope, spoil
from tests.dht.samples import EPOCH_BEGAN, MANIFEST

ME = OWN.peer_id
LATER = EPOCH_BEGAN + 3000
DIGITS = MANIFEST.hex()[:8]


@pytest.fixture
def home(tmp_path):
    Identity.load_or_create(tmp_path / "identity")
    with Ledger.open(tmp_path / LEDGER) as ledger:
        ledger.append(ME, envelope(seq=2))
        ledger.append(ME, envelope(seq=3, t_last=LATER, sessions=2))
        ledger.append(ME, envelope(work_kind=WorkKind.PREFILL, amount=1000))
        ledger.append(ME, envelope(OWN, OTHER, manifest=bytes(32)))
        ledger.append(ME, envelope(CONSUMER, OWN, t_last=LATER))
        ledger.note_unsigned_end(ME, UnsignedEnd(OTHER.peer_id, False, MANIFEST, 16, EPOCH_BEGAN))
        ledger.note_unsigned_end(ME, UnsignedEnd(OTHER.peer_id, False, MANIFEST, 8, EPOCH_BEGAN + 1))
        ledger.note_unsigned_end(ME, UnsignedEnd(CONSUMER.peer_id, True, MANIFEST, 1, LATER))
        ledger.note_model(MANIFEST, "gpt2")
    return tmp_path


def statement(home, since_s=None):
    with Ledger.open_to_read(home / LEDGER) as ledger:
        return make_statement(ledger, StatementOptions(home, since_s))


def test_everything_is_counted_per_peer_and_per_model(home):
    made = statement(home)
    assert made.own == (ME,)
    assert (made.given.total.tokens, made.given.total.prefill_tokens) == (192 + 1000 + 64, 1000)
    assert (made.given.total.block_tokens, made.given.total.sessions) == (4 * 1256, 3)
    assert [(peer, total.tokens) for peer, total in made.given.per_peer] == [
        (CONSUMER.peer_id, 1192),
        (OTHER.peer_id, 64),
    ]
    assert [(manifest, total.tokens) for manifest, total in made.given.per_model] == [(MANIFEST, 1192), (bytes(32), 64)]
    assert [(peer, total.tokens) for peer, total in made.taken.per_peer] == [(CONSUMER.peer_id, 64)]
    assert len(made.unsigned) == 3


def test_since_a_date_only_what_came_later_is_counted(home):
    made = statement(home, LATER)
    assert (made.given.total.tokens, made.given.total.sessions) == (64, 1)
    assert made.taken.total.tokens == 64
    assert [end.peer for end in made.unsigned] == [CONSUMER.peer_id]


def test_the_words_answer_all_four_questions(home):
    said = "\n".join(as_lines(statement(home)))
    for part in (
        "You gave 5,024 block-tokens (1,256 tokens, 1,000 of them prompt) in 3 sessions; 192.0 KiB came in, 192.0 KiB",
        f"  to {CONSUMER.peer_id}: 4,768 block-tokens",
        f"  with gpt2@{DIGITS}: 4,768 block-tokens",
        "  with 00000000: 256 block-tokens",
        "You took 256 block-tokens from 1 peer.",
        f"  from {CONSUMER.peer_id}: 256 block-tokens (64 tokens) in 1 session",
        f"{OTHER.peer_id}: 24 tokens that you computed for it in 2 sessions, the last at 2024-10-04 00:00:01 UTC",
        f"{CONSUMER.peer_id}: 1 token that it computed for you in 1 session, the last at ",
        "Your key is NOT safe.",
        "It has no backup",
    ):
        assert part in said, said
    assert "since 2024-09-07 19:30 UTC" in as_lines(statement(home, 1_725_737_400))[0]
    assert "\n".join(as_lines(statement(home))) == said


def test_who_did_nothing_reads_so(tmp_path):
    assert as_lines(statement(tmp_path))[3:8] == [
        "You gave nothing.",
        "",
        "You took nothing.",
        "",
        "Nobody has had anything to sign.",
    ]


def test_everybody_has_signed_where_there_was_something_to_sign(tmp_path):
    with Ledger.open(tmp_path / LEDGER) as ledger:
        ledger.append(ME, envelope())
    assert "Everybody has signed." in as_lines(statement(tmp_path))


def test_json_has_what_the_words_have(home):
    fields = json.loads(json.dumps(as_json(statement(home))))
    assert fields["given"]["tokens"] == 1256
    assert [entry["model"] for entry in fields["given"]["models"]] == [f"gpt2@{DIGITS}", "00000000"]
    assert fields["taken"]["peers"][0]["peer_id"] == CONSUMER.peer_id
    assert [entry["peer_role"] for entry in fields["unsigned"]] == ["consumer", "consumer", "provider"]
    (key,) = fields["keys"]
    assert (key["of"], key["mode"], key["safe"], key["exported"]) == ("server", "0600", False, None)


@pytest.mark.parametrize(
    ("num_bytes", "words"), [(0, "0 B"), (1023, "1023 B"), (2**20, "1.0 MiB"), (2**53, "8,192.0 TiB")]
)
def test_sizes_read_well(num_bytes, words):
    assert size(num_bytes) == words


def test_weights_are_told_apart_from_tokens():
    assert amounts(Totals(relayed_kib=2048, sessions=1)) == "2.0 MiB of weights in 1 session"
    both = Totals(tokens=1, block_tokens=1, relayed_kib=1)
    assert amounts(both).startswith("1 block-token (1 token) and 1.0 KiB of weights in 0 sessions")
    assert amounts_alone(both) == "1 block-token and 1.0 KiB of weights"


def test_the_command_prints_the_statement(home, capsys, monkeypatch):
    monkeypatch.setenv("EFEDLLM_HOME", str(home))
    assert main(["statement", "--json", "--since", "2000-01-01"]) == 0
    assert json.loads(capsys.readouterr().out)["since"] == 946684800
    assert main(["statement"]) == 0
    assert "You gave" in capsys.readouterr().out


def test_damage_is_said_and_gives_the_exit_code(home, capsys, monkeypatch):
    monkeypatch.setenv("EFEDLLM_HOME", str(home))
    with (home / LEDGER).open("r+b") as file:
        file.write(bytes(100))
    assert main(["statement"]) == 31
    said = capsys.readouterr()
    assert "was damaged" in said.err
    assert "You gave" in said.out
    assert main(["statement"]) == 0
    (aside,) = home.glob("*.damaged-*[0-9]")
    said = capsys.readouterr()
    assert f"may lack what it held: {aside.name}. Mend: `efedllm receipts --join CODE --repair`." in said.out
    assert main(["statement", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged_ledgers"] == [str(aside)]


def test_a_row_that_cannot_be_made_again_is_named_each_time(home, capsys, monkeypatch):
    monkeypatch.setenv("EFEDLLM_HOME", str(home))
    signature = Envelope.from_bytes(envelope(CONSUMER, OWN, t_last=LATER)).signatures[0]
    spoil(home / LEDGER, signature, bytes([signature[0] ^ 1]))
    for _ in range(2):
        assert main(["statement"]) == 31
        said = capsys.readouterr().out
        assert "You took nothing." in said
        assert "1 set aside: row 5 (a signature is not its author's). What they held is not counted" in said
    assert main(["statement", "--json"]) == 31
    assert [lost["row"] for lost in json.loads(capsys.readouterr().out)["set_aside"]] == [5]


def test_a_changed_amount_is_put_right_and_nothing_vanishes(home, capsys, monkeypatch):
    monkeypatch.setenv("EFEDLLM_HOME", str(home))
    before = as_json(statement(home))
    with sqlite3.connect(home / LEDGER) as raw:
        (trigger,) = raw.execute("SELECT sql FROM sqlite_master WHERE name = 'receipts_stay_as_they_are'").fetchone()
        raw.execute("DROP TRIGGER receipts_stay_as_they_are")
        raw.execute("UPDATE receipts SET amount = amount + 8 WHERE id = 2")
        raw.execute(trigger)
    raw.close()
    assert as_json(statement(home)) == before
    assert main(["statement"]) == 0
    assert "set aside" not in capsys.readouterr().out
