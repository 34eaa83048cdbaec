"""The commands `receipts`, on a ledger and on a swarm that is made up."""

import contextlib
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dht.identity import Identity
from dht.parameters import JoinCode
from dht.receipts.ledger import Ledger
from dht.receipts.newcomer import Beginning
from dht.receipts.reservation_table import UnsignedEnd
from dht.records import Envelope, ManifestRecord, place
from dht.rules import Rules
from node.cli import main
from node.config import LEDGER
from node.errors import UserError
from node.run import swarm_receipts
from node.run.exit_codes import LEDGER_MENDED, OK
from node.run.receipts import _NOTHING_SINCE, ReceiptsOptions, run_receipts
from node.run.swarm_receipts import epochs, run_swarm_receipts
from tests.dht.receipts.ledger_kit import CONSUMER, OTHER, OWN, envelope, made, spoil
from tests.dht.samples import EPOCH, EPOCH_BEGAN, MANIFEST


@pytest.fixture
def home(tmp_path):
    with Ledger.open(tmp_path / LEDGER) as ledger:
        for seq in (1, 2):
            ledger.append(OWN.peer_id, envelope(seq=seq))
        ledger.append(OWN.peer_id, envelope(OTHER, OWN, t_last=EPOCH_BEGAN + 3000))
        ledger.append(OTHER.peer_id, envelope(OTHER, OWN, t_last=EPOCH_BEGAN + 3000))
        ledger.append(CONSUMER.peer_id, envelope(seq=1))  # whose node of the same home has not got the second one
        ledger.note_model(MANIFEST, "gpt2")
    return tmp_path


def listed(capsys, options):
    code = run_receipts(replace(options, form="json"))
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_newest_of_each_slot_is_listed_once(home, capsys):
    code, found = listed(capsys, ReceiptsOptions(home))
    assert code == OK
    assert {(fields["provider"], fields["seq"]) for fields in found} == {(OWN.peer_id, 2), (OTHER.peer_id, 1)}
    assert len(found) == 2
    assert {fields["model"] for fields in found} == {f"gpt2@{MANIFEST.hex()[:8]}"}
    assert listed(capsys, ReceiptsOptions(home))[1] == found


@pytest.mark.parametrize(
    ("changes", "providers"),
    [
        ({"providers": (OWN.peer_id,)}, [OWN.peer_id]),
        ({"consumers": (OWN.peer_id,)}, [OTHER.peer_id]),
        ({"consumers": (CONSUMER.peer_id,), "providers": (OTHER.peer_id,)}, []),
        ({"since_s": EPOCH_BEGAN + 3000}, [OTHER.peer_id]),
        ({"since_s": EPOCH_BEGAN + 3001}, []),
    ],
)
def test_what_was_not_asked_for_is_left_out(home, capsys, changes, providers):
    code, found = listed(capsys, replace(ReceiptsOptions(home), **changes))
    assert (code, [fields["provider"] for fields in found]) == (OK, providers)


def test_no_receipts_are_said_in_a_sentence_and_no_ledger_is_made(tmp_path, capsys):
    assert run_receipts(ReceiptsOptions(tmp_path)) == OK
    assert capsys.readouterr().out.startswith("No receipts: this node holds none")
    assert list(tmp_path.iterdir()) == []


def test_a_span_in_which_nothing_falls_is_told_from_an_empty_ledger(home, capsys):
    assert run_receipts(ReceiptsOptions(home, since_s=EPOCH_BEGAN + 3001)) == OK
    assert capsys.readouterr().out == f"{_NOTHING_SINCE}\n"
    assert run_receipts(ReceiptsOptions(home, providers=(OTHER.peer_id,), consumers=(OTHER.peer_id,))) == OK
    assert "but none with that --provider" in capsys.readouterr().out


def test_what_cannot_be_made_again_is_named_each_time_and_a_changed_row_is_counted_again(home, capsys):
    signature = Envelope.from_bytes(envelope(seq=2)).signatures[0]
    spoil(home / LEDGER, signature, bytes([signature[0] ^ 1]))
    for _ in range(2):
        assert run_receipts(ReceiptsOptions(home, form="json")) == LEDGER_MENDED
        said = capsys.readouterr()
        assert "1 set aside: row 2 (a signature is not its author's)" in said.err
        assert "`efedllm receipts --join CODE --repair`" in said.err
        assert {json.loads(line)["seq"] for line in said.out.splitlines()} == {1}
    with Ledger.open(home / LEDGER) as ledger:
        ledger.repair(OWN.peer_id, [envelope(seq=2)])
    assert run_receipts(ReceiptsOptions(home)) == OK
    assert "set aside" not in capsys.readouterr().err


def test_an_emptied_ledger_is_said(home, capsys):
    (home / LEDGER).write_bytes(b"")
    assert run_receipts(ReceiptsOptions(home)) == LEDGER_MENDED
    said = capsys.readouterr()
    assert "it has been emptied" in said.err
    assert "holds none" in said.out


def test_a_damaged_receipt_is_named_and_gives_the_exit_code(home, capsys):
    signature = Envelope.from_bytes(envelope(seq=1)).signatures[0]
    spoil(home / LEDGER, signature, bytes([signature[0] ^ 1]))
    assert run_receipts(ReceiptsOptions(home)) == OK
    assert run_receipts(ReceiptsOptions(home, verify=True)) == LEDGER_MENDED
    said = capsys.readouterr().err
    assert "5 receipts were checked, 1 of them are damaged." in said
    assert "Row 1 of the ledger is damaged" in said
    assert run_receipts(ReceiptsOptions(home, verify=True)) == OK
    assert "Row 1 was set aside before" in capsys.readouterr().err


def test_what_is_no_peer_id_is_refused_with_the_mend(home):
    with pytest.raises(UserError, match="no peer id; copy a server's from `efedllm status --json`"):
        run_receipts(ReceiptsOptions(home, providers=("12D3",)))
    with pytest.raises(UserError, match=r"no peer id; copy a client's from .* `efedllm identity show`"):
        run_receipts(ReceiptsOptions(home, consumers=("12D3",)))


def test_the_command_line_names_what_is_asked_for(home, capsys, monkeypatch):
    monkeypatch.setenv("EFEDLLM_HOME", str(home))
    monkeypatch.setenv("EFEDLLM_JOIN", "/ip4/127.0.0.1/tcp/1/p2p/" + OWN.peer_id)
    assert main(["receipts", "--csv", "--provider", OWN.peer_id, "--since", "2000-01-01"]) == OK
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["receipts"]) == OK
    assert OTHER.peer_id in capsys.readouterr().out
    assert main(["receipts", "--provider", "x"]) == 23
    assert main(["receipts", "--join", "x"]) == 6
    assert main(["receipts", "--repair"]) == 23
    for wrong in (["--since", "tomorrow"], ["--json", "--csv"], ["--join", "x", "--verify"]):
        with pytest.raises(SystemExit) as ended:
            main(["receipts", *wrong])
        assert ended.value.code == 2


def test_a_ledger_that_cannot_be_opened_gives_its_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path))
    (tmp_path / LEDGER).mkdir()
    assert main(["receipts"]) == 30
    assert len(capsys.readouterr().err.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------------- swarms


class FakeSwarm:
    """A swarm whose rules are known."""

    def __init__(self, *_: object, **__: object) -> None:
        self.validator = SimpleNamespace(rules=Rules())

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def wait_for_rules(self, timeout_s: float) -> Rules:
        assert timeout_s > 0
        return self.validator.rules

    def on_contradiction(self, contradicted) -> None:
        return None


@pytest.fixture
def asked(monkeypatch):
    """What is asked of a swarm of two servers: of whom receipts are read, and in which epochs."""
    calls = []

    async def begin(swarm, bootstraps, window, checker, rng):
        calls.append(("begin", tuple(bootstraps)))
        return Beginning((), (), (OWN.peer_id, OTHER.peer_id), tuple(window))

    async def complete(swarm, beginning, checker):
        calls.append((beginning.providers, beginning.rest))
        for data, receipt in ((envelope(), made()), (envelope(OTHER, OWN), made(OTHER, OWN))):
            yield place(receipt, data)

    async def read_models(swarm):
        return [ManifestRecord(MANIFEST, OWN.peer_id, 1, 1, "gpt2", "gpt2", 4, 8, 8)]

    fakes = {"Swarm": FakeSwarm, "read_models": read_models, "begin": begin, "complete": complete}
    for name, fake in fakes.items():
        monkeypatch.setattr(swarm_receipts, name, fake)
    return calls


async def test_a_swarm_s_receipts_are_listed_and_named(asked, tmp_path, capsys):
    join = JoinCode((f"/ip4/127.0.0.1/tcp/1/p2p/{OTHER.peer_id}",))
    assert await run_swarm_receipts(join, ReceiptsOptions(tmp_path, form="json")) == OK
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert {fields["provider"] for fields in found} == {OWN.peer_id, OTHER.peer_id}
    assert {fields["model"] for fields in found} == {f"gpt2@{MANIFEST.hex()[:8]}"}
    assert "what 2 peers did in 57 epochs (114 keys); every signature is checked." in said.err
    assert [call[0] for call in asked] == ["begin", tuple(sorted((OWN.peer_id, OTHER.peer_id)))]
    assert asked[0][1] == (OTHER.peer_id,), "snapshots of the bootstraps that the join code names"
    assert list(tmp_path.iterdir()) == []


async def test_the_table_says_who_did_how_much_for_whom(asked, tmp_path, capsys):
    assert await run_swarm_receipts(JoinCode(()), ReceiptsOptions(tmp_path)) == OK
    said = capsys.readouterr().out
    assert f"{OWN.peer_id} did 256 block-tokens (64 tokens) in 1 session for {CONSUMER.peer_id}" in said


async def test_where_nothing_is_found_it_is_said_when_something_may_come(asked, tmp_path, capsys):
    options = ReceiptsOptions(tmp_path, consumers=(OTHER.peer_id,))
    assert await run_swarm_receipts(JoinCode(()), options) == OK
    assert "at least every 600 s while they work" in capsys.readouterr().out


async def test_only_the_providers_that_are_named_are_read(asked, tmp_path, capsys):
    options = ReceiptsOptions(tmp_path, providers=(OWN.peer_id,), consumers=(OTHER.peer_id,), form="json")
    assert await run_swarm_receipts(JoinCode(()), options) == OK
    assert asked[0][0] == (OWN.peer_id,)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError), contextlib.redirect_stderr(sys.stdout):
        await run_swarm_receipts(JoinCode(()), replace(options, providers=("x",)))


async def test_a_ledger_is_filled_again_with_its_own_receipts(asked, tmp_path, capsys):
    identity = Identity.load_or_create(tmp_path / "identity")
    with Ledger.open(tmp_path / LEDGER) as ledger:
        ledger.note_unsigned_end(OWN.peer_id, UnsignedEnd(OTHER.peer_id, False, MANIFEST, 1, 1))
    options = ReceiptsOptions(tmp_path, form="json", repair=True)
    for num in (2, 0):
        assert await run_swarm_receipts(JoinCode(()), options) == OK
        assert f"{num} receipts were added to the ledger." in capsys.readouterr().err
    assert identity.peer_id in asked[1][0]
    with Ledger.open(tmp_path / LEDGER) as ledger:
        assert {signed.envelope for signed in ledger.newest(OWN.peer_id)} == {envelope(), envelope(OTHER, OWN)}
        assert ledger.owners() == [OWN.peer_id]


async def test_what_contradicts_the_ledger_is_left_out(asked, tmp_path, capsys):
    with Ledger.open(tmp_path / LEDGER) as ledger:
        ledger.append(OWN.peer_id, envelope(amount=65))
    assert await run_swarm_receipts(JoinCode(()), ReceiptsOptions(tmp_path, repair=True)) == OK
    assert "1 receipts were added to the ledger; 1 contradict what it holds" in capsys.readouterr().err


def test_no_epoch_is_asked_for_that_the_dht_holds_no_more():
    rules = Rules()
    now_s = EPOCH_BEGAN + 10
    assert epochs(rules, None, now_s) == range(EPOCH - 56, EPOCH + 1)
    assert epochs(rules, EPOCH_BEGAN - 1, now_s) == range(EPOCH - 1, EPOCH + 1)
    assert epochs(rules, 0, now_s) == range(EPOCH - 56, EPOCH + 1)
    assert epochs(Rules(epoch_s=5, window_epochs=8), None, 20) == range(5)


@pytest.mark.parametrize("command", ["receipts", "statement"])
def test_a_file_in_the_place_of_the_home_is_named_and_not_taken_for_an_empty_ledger(
    tmp_path, command, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path / "file"))
    assert main([command]) == 30
    said = capsys.readouterr()
    assert (said.out, "name a directory in EFEDLLM_HOME" in said.err) == ("", True)
