"""``efedllm identity link`` and ``consent``: both keys sign, or nothing stands; scores of a real swarm then know it."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dht.ident import Affiliation
from dht.identity import Identity, peer_id_to_bytes
from dht.records import Kind
from dht.rules import DEFAULT_RULES
from dht.standing.board import ScoreBoard
from dht.swarm import Swarm
from dht.testnet import testnet
from node.cli import main
from node.config import CLIENT_IDENTITY, IDENTITY
from node.errors import NotStored, UserError
from node.run import affiliation
from node.run.affiliation import Consent, consent, link

OTHER = Identity.ephemeral().peer_id


async def members_of(swarm: Swarm, server: str) -> list[str]:
    found = await swarm.fetch(Kind.AFFILIATION, (peer_id_to_bytes(server),))
    return [record.member for record in found if isinstance(record, Affiliation)]


@pytest.fixture
def homes(tmp_path: Path):
    server = Identity.load_or_create(tmp_path / "server" / IDENTITY)
    client = Identity.load_or_create(tmp_path / "client" / CLIENT_IDENTITY)
    return tmp_path / "server", tmp_path / "client", server.peer_id, client.peer_id


async def test_one_home_has_both_keys_and_a_node_that_runs_goes_on(homes, capsys):
    home, _, server, _ = homes
    async with testnet(2) as (first, second), Swarm(Identity.load(home / IDENTITY), join=first.join_code):
        await link(home, first.join_code, None)
        client = Identity.load(home / CLIENT_IDENTITY).peer_id
        assert await members_of(second, server) == [client]
        standings = await ScoreBoard(second, anchors=[server]).refresh()
    assert [(each.owner, each.member) for each in standings.evidence.affiliations] == [(server, client)]
    said = capsys.readouterr()
    assert said.out == f"{client}\n"
    assert "for 90 days" in said.err


async def test_a_client_elsewhere_consents_by_a_line(homes, capsys):
    home, clients, server, client = homes
    async with testnet(2) as (first, second):
        await consent(clients, first.join_code, server)
        said = capsys.readouterr()
        assert "everybody can see" in said.err
        await link(home, first.join_code, said.out)
        assert await members_of(second, server) == [client]
    assert capsys.readouterr().out == f"{client}\n"


async def test_a_consent_is_for_one_server_and_cannot_be_made_up(homes, capsys):
    home, clients, server, _ = homes
    async with testnet(2) as (first, second):
        await consent(clients, first.join_code, OTHER)
        for_another = capsys.readouterr().out
        with pytest.raises(UserError, match="for another server"):
            await link(home, first.join_code, for_another)
        given = Consent.from_text(for_another)
        with pytest.raises(UserError, match="for another server"):
            await link(home, first.join_code, Consent(OTHER, given.epoch, given.signature).to_text())
        assert await members_of(second, server) == []


async def test_a_consent_holds_that_is_given_while_an_epoch_ends(homes, capsys, monkeypatch):
    home, clients, server, client = homes
    async with testnet(2) as (first, second):
        now_s, rules = time.time(), await first.wait_for_rules()
        nows_s = itertools.chain([rules.start_of(rules.epoch_of(now_s)) - 1], itertools.repeat(now_s))
        monkeypatch.setattr(affiliation, "time", SimpleNamespace(time=lambda: next(nows_s)))
        await consent(clients, first.join_code, server)
        await link(home, first.join_code, capsys.readouterr().out)
        assert await members_of(second, server) == [client]


@pytest.mark.parametrize(("ahead", "why"), [(9, "from the future"), (-DEFAULT_RULES.evidence_epochs - 9, "too old")])
async def test_a_consent_of_another_time_is_refused(homes, ahead, why):
    home, clients, server, client = homes
    async with testnet(1) as (first,):
        rules = await first.wait_for_rules()
        epoch = rules.epoch_of(time.time()) + ahead
        body = Affiliation(server, client, epoch).to_body()
        signature = Identity.load(clients / CLIENT_IDENTITY).sign(Kind.AFFILIATION, body)
        with pytest.raises(UserError, match=why):
            await link(home, first.join_code, Consent(client, epoch, signature).to_text())


@pytest.mark.parametrize("line", ["", "rubbish", "AAAA", "é", "k" * 500])
def test_a_line_that_is_none_is_refused_with_the_mend(line):
    with pytest.raises(UserError, match="identity consent"):
        Consent.from_text(line)


async def test_nothing_is_said_to_stand_that_does_not(homes):
    home, *_ = homes
    async with testnet(1) as (first,):
        first.validator.knows_rules = False  # so that it refuses every record of lasting worth
        with pytest.raises(NotStored, match="nothing has changed"):
            await link(home, first.join_code, None)


async def test_who_names_itself_or_nobody_is_told(homes):
    _, clients, _, client = homes
    async with testnet(1) as (first,):
        with pytest.raises(UserError, match="this client itself"):
            await consent(clients, first.join_code, client)
        with pytest.raises(UserError, match="no peer id"):
            await consent(clients, first.join_code, "nobody")


def test_without_a_server_there_is_nothing_to_link(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path / "none"))
    address = f"/ip4/127.0.0.1/tcp/9/p2p/{OTHER}"
    assert main(["identity", "link", "--join", address]) == 23
    assert "`efedllm identity show` makes one" in capsys.readouterr().err
