"""``efedllm identity rotate``: a swarm knows the heir before the key is replaced, and nothing is lost in between."""

from pathlib import Path

import pytest

from dht.errors import IdentityInUse
from dht.identity import Identity, peer_id_to_bytes
from dht.records import Kind
from dht.swarm import Swarm
from dht.testnet import testnet
from node.cli import main
from node.errors import NotStored
from node.run import rotation
from node.run.rotation import SUCCESSOR, rotate


@pytest.fixture
def old(tmp_path: Path) -> Identity:
    return Identity.load_or_create(tmp_path / "identity")


async def heirs(swarm: Swarm, old: Identity) -> list[str]:
    return [record.new for record in await swarm.fetch(Kind.SUCCESSION, (peer_id_to_bytes(old.peer_id),))]


async def test_the_heir_is_known_in_the_swarm_and_the_old_key_is_kept(tmp_path: Path, old: Identity, capsys):
    async with testnet(2) as (first, second):
        await rotate(tmp_path, first.join_code)
        new = Identity.load(tmp_path / "identity")
        assert new.peer_id != old.peer_id
        assert await heirs(second, old) == [new.peer_id]
    said = capsys.readouterr()
    assert said.out == f"{new.peer_id}\n"
    assert old.peer_id in said.err
    (kept,) = tmp_path.glob(f"identity.{old.peer_id[-8:]}.*")
    assert Identity.load(kept).peer_id == old.peer_id
    assert not (tmp_path / SUCCESSOR).exists()


async def test_killed_in_between_it_goes_on_with_the_same_heir(tmp_path: Path, old: Identity, monkeypatch):
    def be_killed(*_: object) -> None:
        raise KeyboardInterrupt

    async with testnet(2) as (first, second):
        with monkeypatch.context() as patched:
            patched.setattr(rotation, "replace_identity", be_killed)
            with pytest.raises(KeyboardInterrupt):
                await rotate(tmp_path, first.join_code)
        assert Identity.load(tmp_path / "identity").peer_id == old.peer_id
        await rotate(tmp_path, first.join_code)
        assert await heirs(second, old) == [Identity.load(tmp_path / "identity").peer_id]


async def test_an_heir_that_nobody_knows_takes_no_place(tmp_path: Path, old: Identity):
    async with testnet(1) as (first,):
        first.validator.knows_rules = False  # so that it refuses every record of lasting worth
        with pytest.raises(NotStored, match="nothing has changed"):
            await rotate(tmp_path, first.join_code)
    assert Identity.load(tmp_path / "identity").peer_id == old.peer_id


async def test_a_running_node_keeps_its_identity(tmp_path: Path, old: Identity):
    async with testnet(1) as (first,), Swarm(old, join=first.join_code):
        with pytest.raises(IdentityInUse):
            await rotate(tmp_path, first.join_code)
    assert Identity.load(tmp_path / "identity").peer_id == old.peer_id


def test_without_an_identity_there_is_nothing_to_rotate(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path / "none"))
    address = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.ephemeral().peer_id}"
    assert main(["identity", "rotate", "--join", address]) == 23
    assert "`efedllm identity show` makes one" in capsys.readouterr().err
    monkeypatch.delenv("EFEDLLM_JOIN", raising=False)
    assert main(["identity", "rotate"]) == 23
    assert "--join CODE" in capsys.readouterr().err
