import asyncio
import contextlib
import errno
import socket
from pathlib import Path

import pytest

from dht.errors import AddressInUse, BadAddress, DaemonDied, PeerUnreachable
from dht.hardening.control import Control, address_bytes
from dht.hardening.daemon import Daemon, DaemonOptions, _why_not_started, daemon_arguments, refuse_taken
from dht.identity import Identity


def arguments(**changes: object) -> dict[str, str]:
    options = {"listen": ["/ip4/127.0.0.1/tcp/0"], "announce": [], "reach_out": False}
    paths = (Path("/key"), Path("/control"), Path("/config"))
    listed = daemon_arguments(DaemonOptions(**(options | changes)), *paths)
    return dict(argument.removeprefix("-").split("=", 1) for argument in listed)


SECOND_NETWORK = {"dht", "dhtClient", "dhtServer", "b", "bootstrapPeers", "autoRelay", "trustedRelays"}


def test_on_loopback_nothing_reaches_out():
    given = arguments()
    assert given["natPortMap"] == "0"
    assert given["f"] == "/config"
    assert "announceAddrs" not in given


@pytest.mark.parametrize("reach_out", [False, True])
def test_p2pd_neither_relays_nor_dials_for_strangers_nor_runs_a_dht(reach_out):
    given = arguments(reach_out=reach_out, announce=["/ip4/5.6.7.8/tcp/9"])
    assert given["autonat"] == given["relay"] == given["relayService"] == "0"
    assert given["natPortMap"] == str(int(reach_out))
    assert given["announceAddrs"] == "/ip4/5.6.7.8/tcp/9"
    assert not SECOND_NETWORK & set(given)


def test_a_port_on_which_someone_listens_is_refused_and_a_free_one_is_not():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{listening.getsockname()[1]}"
        listening.listen()
        with pytest.raises(AddressInUse, match=address):
            refuse_taken(address)
    refuse_taken(address)
    refuse_taken("/ip4/127.0.0.1/tcp/0")
    refuse_taken("/ip4/127.0.0.1/udp/1/quic-v1")


def test_a_port_that_shares_itself_is_refused_too():
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with pytest.raises(AddressInUse):
            refuse_taken(f"/ip4/127.0.0.1/tcp/{listening.getsockname()[1]}")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("failed to listen on any addresses: [listen tcp4 127.0.0.1:1: bind: address already in use]", AddressInUse),
        ("failed to listen on any addresses: [listen tcp4 1.2.3.4:1: bind: cannot assign requested]", BadAddress),
        ('failed to parse multiaddr "/x"', BadAddress),
        ("panic: something else", DaemonDied),
    ],
)
def test_why_p2pd_did_not_start_is_told_by_its_last_line(line, error):
    assert type(_why_not_started(line)) is error


def test_a_relays_id_inside_an_address_is_written_as_libp2p_writes_it():
    identity = Identity.ephemeral()
    packed = address_bytes(f"/ip4/1.2.3.4/tcp/5/p2p/{identity.peer_id}/p2p-circuit")
    assert packed == bytes.fromhex("0401020304060005") + b"\xa5\x03\x26" + identity.peer_id_bytes + b"\xa2\x02"


@pytest.mark.parametrize(
    "address", ["", "x", "/", "/ip4", "/ip4/1.2.3.4/tcp/x", "/p2p/junk", "/ip4/1.2.3.4/tcp/1/p2p/Qm"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(BadAddress):
        address_bytes(address)


async def test_a_program_that_cannot_be_started_leaves_nothing(tmp_path, monkeypatch):
    async def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOEXEC, "Exec format error")

    monkeypatch.setattr("dht.hardening.daemon._socket_root", lambda: tmp_path)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail)
    with pytest.raises(DaemonDied, match="install hivemind again"):
        await Daemon.launch(DaemonOptions(["/ip4/127.0.0.1/tcp/0"], [], False), tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


async def test_p2pd_connects_says_from_where_and_offers_no_relay():
    first, second = Identity.ephemeral(), Identity.ephemeral()
    listen = ["/ip4/127.0.0.1/tcp/0"]
    async with contextlib.AsyncExitStack() as stack:
        controls = []
        for identity in (first, second):
            with identity.key_file() as key_file:
                daemon = await Daemon.launch(DaemonOptions(listen, [], False), key_file)
            stack.push_async_callback(daemon.stop)
            control = Control(daemon.socket, daemon.own_socket)
            stack.push_async_callback(control.close)
            await control.open()
            controls.append(control)
        await controls[1].connect(first.peer_id, (await controls[0].identify())[1], 5.0)
        assert await controls[0].connected_peers() == {second.peer_id}
        (seen,) = await controls[0].seen_at(second.peer_id)
        assert seen.startswith("/ip4/127.0.0.1/tcp/")
        assert await controls[1].seen_at(first.peer_id) == (await controls[0].identify())[1]
        with pytest.raises(PeerUnreachable, match="protocols not supported"):
            await controls[1].open_stream(first.peer_id, "/libp2p/circuit/relay/0.2.0/hop")
        await controls[1].disconnect(first.peer_id)
        assert await controls[1].connected_peers() == set()
