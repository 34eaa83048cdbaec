import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dht.directory import read_directory
from dht.errors import (
    AddressInUse,
    BadAddress,
    ClockSkew,
    DaemonDied,
    IdentityInUse,
    NotAdmitted,
    PeerUnreachable,
)
from dht.identity import Identity
from dht.parameters import JoinCode, SwarmParameters, parameters_hash
from dht.records import Kind, seal
from dht.swarm import Stream, Swarm
from dht.testnet import testnet
from tests.dht.samples import MANIFEST, SECRET, announcement, echo


async def eventually(condition, timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.1)


async def test_five_nodes_that_know_only_the_first_all_talk_to_one_another():
    async with testnet(5, secret=SECRET) as nodes:
        for node in nodes:
            await node.serve("/test/echo/1", echo)
        for caller in nodes:
            for called in nodes:
                if caller is not called:
                    stream = await caller.dial(called.peer_id, "/test/echo/1")
                    stream.writer.write(b"hello")
                    assert await stream.reader.readexactly(5) == b"hello"
                    await stream.close()


async def test_a_record_that_one_node_stores_every_node_fetches():
    async with testnet(4) as nodes:
        owner = nodes[1]
        record = announcement(owner._identity)
        assert await owner.store(seal(record, owner._identity))
        for node in nodes:
            assert await node.fetch(Kind.ANNOUNCE, (MANIFEST, 0)) == [record]
            assert await node.fetch(Kind.ANNOUNCE, (MANIFEST, 1)) == []


async def test_an_older_record_is_not_stored_over_a_newer_one():
    async with testnet(3) as nodes:
        owner, now = nodes[2], int(time.time())
        assert await owner.store(seal(announcement(owner._identity, end=8, t=now), owner._identity))
        assert not await owner.store(seal(announcement(owner._identity, end=6, t=now - 5), owner._identity))
        assert [record.end for record in await nodes[0].fetch(Kind.ANNOUNCE, (MANIFEST, 0))] == [8]


async def test_parameters_are_found_by_the_hash_in_the_join_code():
    async with testnet(2) as (founder, joiner):
        parameters = SwarmParameters(founder.peer_id, int(time.time()), 86400, "lab", private=False, epoch_s=5)
        signed = seal(parameters, founder._identity)
        assert await founder.store(signed)
        assert await joiner.fetch(Kind.PARAMETERS, (parameters_hash(signed.envelope),)) == [parameters]


async def test_a_frame_of_64_mib_passes_through_a_stream():
    async with testnet(2) as (caller, called):
        await called.serve("/test/echo/1", echo)
        stream = await caller.dial(called.peer_id, "/test/echo/1")
        frame = os.urandom(2**20) * 64

        async def send() -> None:
            stream.writer.write(frame)
            await stream.writer.drain()

        _, answer = await asyncio.gather(send(), stream.reader.readexactly(len(frame)))
        assert answer == frame
        await stream.close()


async def test_a_handler_that_raises_closes_its_stream_and_the_node_goes_on(caplog):
    async def broken(stream: Stream) -> None:
        raise RuntimeError("a bug in a handler")

    async with testnet(2) as (caller, called):
        await called.serve("/test/broken/1", broken)
        for _ in range(2):
            stream = await caller.dial(called.peer_id, "/test/broken/1")
            assert await stream.reader.read() == b""
            await stream.close()
        assert await caller.ping(called.peer_id) < 1
    assert "a bug in a handler" in caplog.text


async def test_dialling_what_a_peer_does_not_serve_says_so():
    async with testnet(2) as (caller, called):
        with pytest.raises(PeerUnreachable, match="does not serve /test/nothing/1"):
            await caller.dial(called.peer_id, "/test/nothing/1")


async def test_dialling_an_unknown_peer_fails_in_time():
    async with testnet(2) as (caller, _):
        started = time.monotonic()
        with pytest.raises(PeerUnreachable):
            await caller.dial(Identity.ephemeral().peer_id, "/test/echo/1", timeout_s=2)
        assert time.monotonic() - started < 2.5


async def test_dialling_takes_the_addresses_that_the_caller_knows():
    async with testnet(2) as (first, second), Swarm(Identity.ephemeral(), name="testnet") as stranger:
        await stranger.serve("/test/echo/1", echo)
        stream = await second.dial(stranger.peer_id, "/test/echo/1", addresses=stranger.addresses)
        await stream.close()
        assert stranger.peer_id not in first.members()


async def test_junk_addresses_do_not_stop_a_dial():
    async with testnet(2) as (first, second):
        second._membership.forget(first.peer_id)
        await first.serve("/test/echo/1", echo)
        stream = await second.dial(first.peer_id, "/test/echo/1", addresses=["junk", "/ip4/999.0.0.1/tcp/1", ""])
        await stream.close()


async def test_a_client_stores_nothing_for_others_and_can_be_dialled_back():
    async with testnet(2, secret=SECRET) as nodes:
        join = JoinCode(tuple(nodes[0].addresses), "testnet", b"", SECRET)
        async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as client:
            await client.serve("/test/echo/1", echo)
            stream = await nodes[0].dial(client.peer_id, "/test/echo/1")
            await stream.close()
            assert await nodes[1].store(seal(announcement(nodes[1]._identity), nodes[1]._identity))
            assert len(client._overlay.protocol.storage) == 0
            assert len(await client.fetch(Kind.ANNOUNCE, (MANIFEST, 0))) == 1


async def test_a_client_meets_only_whom_it_joins_through_until_it_looks_for_something():
    async with testnet(6) as nodes:
        assert all([await node.store(seal(announcement(node._identity), node._identity)) for node in nodes])
        join = JoinCode(tuple(nodes[0].addresses), "testnet", b"")
        async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as client:
            assert client.members() == [nodes[0].peer_id]
            assert len(await client.fetch(Kind.ANNOUNCE, (MANIFEST, 0))) == len(nodes)
            assert set(client.members()) == {node.peer_id for node in nodes}


async def test_a_node_that_joins_waits_for_a_bootstrap_that_is_too_busy_to_answer_in_time():
    async with testnet(1) as (first,):
        join = JoinCode(tuple(first.addresses), "testnet", b"")
        os.kill(first._daemon.pid, signal.SIGSTOP)
        try:
            joining = asyncio.create_task(Swarm(Identity.ephemeral(), join=join).__aenter__())
            await asyncio.sleep(6.0)  # Longer than one exchange of hellos may take.
            assert not joining.done()
        finally:
            os.kill(first._daemon.pid, signal.SIGCONT)
        swarm = await joining
        assert swarm.members() == [first.peer_id]
        await swarm.__aexit__(None, None, None)


async def test_a_node_that_joins_does_not_wait_where_no_one_listens():
    async with testnet(1) as (first,):
        join = JoinCode(tuple(first.addresses), "testnet", b"")
    began_s = time.monotonic()
    with pytest.raises(PeerUnreachable, match="no one listens"):
        async with Swarm(Identity.ephemeral(), join=join):
            pass
    assert time.monotonic() - began_s < 4.0


async def test_without_the_bootstrap_the_others_go_on_and_through_it_restarted_new_nodes_join(tmp_path: Path):
    founder = Identity.load_or_create(tmp_path / "founder")
    async with contextlib.AsyncExitStack() as stack:
        bootstrap = await stack.enter_async_context(contextlib.AsyncExitStack())
        first = await bootstrap.enter_async_context(Swarm(founder, name="lab", secret=SECRET))
        join = JoinCode(tuple(first.addresses), "lab", b"", SECRET)
        nodes = [await stack.enter_async_context(Swarm(Identity.ephemeral(), join=join)) for _ in range(4)]
        await nodes[0].serve("/test/echo/1", echo)
        running = await nodes[3].dial(nodes[0].peer_id, "/test/echo/1")
        listen = [address.partition("/p2p/")[0] for address in first.addresses]

        await bootstrap.aclose()
        running.writer.write(b"on")
        assert await running.reader.readexactly(2) == b"on"
        await running.close()
        assert await nodes[1].store(seal(announcement(nodes[1]._identity), nodes[1]._identity))
        for node in nodes:
            assert len(await node.fetch(Kind.ANNOUNCE, (MANIFEST, 0))) == 1

        again = await stack.enter_async_context(Swarm(founder, name="lab", secret=SECRET, listen=listen))
        await eventually(lambda: asyncio.sleep(0, len(again._overlay.protocol.routing_table.uid_to_peer_id) == 4))
        newcomer = await stack.enter_async_context(Swarm(Identity.ephemeral(), join=join))
        assert len(await newcomer.fetch(Kind.ANNOUNCE, (MANIFEST, 0))) == 1
        stream = await newcomer.dial(nodes[0].peer_id, "/test/echo/1")
        await stream.close()


async def test_a_peer_that_restarted_and_forgot_us_is_greeted_once_more(tmp_path: Path):
    identity = Identity.load_or_create(tmp_path / "identity")
    async with Swarm(Identity.ephemeral(), name="lab") as caller:
        async with Swarm(identity, join=JoinCode(tuple(caller.addresses), "lab")) as called:
            listen = [address.partition("/p2p/")[0] for address in called.addresses]
            assert await caller.ping(called.peer_id) < 1
        async with Swarm(identity, name="lab", listen=listen) as again:
            assert caller.peer_id not in again.members()
            assert again.peer_id in caller.members()
            await again.serve("/test/echo/1", echo)
            stream = await caller.dial(again.peer_id, "/test/echo/1")
            await stream.close()
            assert caller.peer_id in again.members()


async def test_a_peer_that_restarted_elsewhere_is_let_in_although_another_one_has_its_old_port_by_now(tmp_path: Path):
    identity = Identity.load_or_create(tmp_path / "identity")
    async with Swarm(Identity.ephemeral(), name="lab") as first:
        join = JoinCode(tuple(first.addresses), "lab")
        async with Swarm(identity, join=join) as before:
            (old,) = [address.partition("/p2p/")[0] for address in before.addresses]
        async with Swarm(Identity.ephemeral(), join=join, listen=[old]), Swarm(identity, join=join) as again:
            assert first.peer_id in again.members()


async def test_a_frozen_node_keeps_its_identity():
    seed = Identity.ephemeral().seed()
    async with Swarm(Identity.ephemeral(), name="lab") as first:
        join = JoinCode(tuple(first.addresses), "lab")
        async with Swarm(Identity.from_seed(seed), join=join) as frozen:
            os.kill(frozen._daemon.pid, signal.SIGSTOP)
            try:
                with pytest.raises(IdentityInUse):
                    await Swarm(Identity.from_seed(seed), join=join).__aenter__()
            finally:
                os.kill(frozen._daemon.pid, signal.SIGCONT)


# -- what goes wrong, and what is said ------------------------------------------------------------------------------


async def test_a_taken_port_is_named():
    async with Swarm(Identity.ephemeral()) as first:
        listen = [first.addresses[0].partition("/p2p/")[0]]
        port = listen[0].rpartition("/")[2]
        with pytest.raises(AddressInUse, match=port):
            await Swarm(Identity.ephemeral(), listen=listen).__aenter__()


@pytest.mark.parametrize("listen", ["nonsense", "/ip4/127.0.0.1/tcp/99999", "/ip4/localhost/tcp/1", ""])
async def test_a_malformed_listen_address_is_refused_before_anything_starts(listen: str):
    with pytest.raises(BadAddress):
        Swarm(Identity.ephemeral(), listen=[listen])


async def test_listening_on_an_address_of_another_machine_says_so():
    with pytest.raises(BadAddress):
        await Swarm(Identity.ephemeral(), listen=["/ip4/192.0.2.1/tcp/0"]).__aenter__()


async def test_bootstraps_that_do_not_answer_are_named():
    gone = [f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.ephemeral().peer_id}" for port in (1, 2)]
    with pytest.raises(PeerUnreachable) as caught:
        await Swarm(Identity.ephemeral(), join=JoinCode(tuple(gone))).__aenter__()
    for address in gone:
        assert address.rpartition("/")[2] in str(caught.value)


async def test_one_bootstrap_that_answers_is_enough():
    gone = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.ephemeral().peer_id}"
    async with (
        Swarm(Identity.ephemeral()) as first,
        Swarm(Identity.ephemeral(), join=JoinCode((gone, *first.addresses))) as second,
    ):
        assert second.members() == [first.peer_id]


@pytest.mark.parametrize("secret", [None, b"w" * 32])
async def test_a_private_swarm_needs_its_own_secret(secret: bytes | None):
    async with Swarm(Identity.ephemeral(), name="lab", secret=SECRET) as first:
        with pytest.raises(NotAdmitted, match="join with the code"):
            await Swarm(Identity.ephemeral(), join=JoinCode(tuple(first.addresses), "lab", b"", secret)).__aenter__()
        assert first.members() == []


async def test_swarms_of_other_names_or_secrets_do_not_see_each_other():
    places = [("one", None), ("two", None), ("one", SECRET), ("one", b"t" * 32)]
    async with contextlib.AsyncExitStack() as stack:
        swarms = []
        for name, secret in places:
            swarms.append(await stack.enter_async_context(Swarm(Identity.ephemeral(), name=name, secret=secret)))
        for swarm in swarms:
            assert await swarm.store(seal(announcement(swarm._identity), swarm._identity))
        for swarm in swarms:
            for other in swarms:
                if swarm is not other:
                    with pytest.raises(NotAdmitted):
                        await swarm.dial(other.peer_id, "/efedllm/peers/1", addresses=other.addresses)
            found = await swarm.fetch(Kind.ANNOUNCE, (MANIFEST, 0))
            assert [record.owner for record in found] == [swarm.peer_id]


async def test_a_clock_that_is_wrong_is_told_by_how_much():
    async with Swarm(Identity.ephemeral()) as first:
        first._membership._clock = lambda: time.time() + 90
        with pytest.raises(ClockSkew, match=r"(89|90) s behind"):
            await Swarm(Identity.ephemeral(), join=JoinCode(tuple(first.addresses))).__aenter__()


async def test_one_identity_file_runs_once(tmp_path: Path):
    identity = Identity.load_or_create(tmp_path / "identity")
    async with Swarm(identity):
        with pytest.raises(IdentityInUse, match=str(tmp_path)):
            await Swarm(Identity.load_or_create(tmp_path / "identity")).__aenter__()


async def test_a_copied_identity_is_refused_while_the_first_node_lives_and_let_in_when_it_is_dead(tmp_path: Path):
    first = Identity.load_or_create(tmp_path / "first")
    (tmp_path / "second").write_bytes((tmp_path / "first").read_bytes())
    async with Swarm(Identity.ephemeral()) as bootstrap:
        join = JoinCode(tuple(bootstrap.addresses))
        async with Swarm(first, join=join):
            with pytest.raises(IdentityInUse, match="another running node"):
                await Swarm(Identity.load_or_create(tmp_path / "second"), join=join).__aenter__()
        async with Swarm(Identity.load_or_create(tmp_path / "second"), join=join) as second:
            assert second.peer_id in bootstrap.members()


async def test_a_dead_p2pd_is_noticed_and_no_call_hangs():
    async with testnet(2) as (first, second):
        os.kill(first._daemon.pid, signal.SIGKILL)
        with pytest.raises(DaemonDied):
            async with asyncio.timeout(2):
                await first.wait_closed()
        async with asyncio.timeout(4):
            with pytest.raises((DaemonDied, PeerUnreachable)):
                await first.dial(second.peer_id, "/efedllm/peers/1")
            with pytest.raises(DaemonDied):
                await first.fetch(Kind.ANNOUNCE, (MANIFEST, 0))
            with pytest.raises(DaemonDied):
                await read_directory(first, MANIFEST, time.time())
            with pytest.raises(DaemonDied):
                await first.store(seal(announcement(first._identity), first._identity))
            await second.store(seal(announcement(second._identity), second._identity))


async def test_a_record_of_our_own_does_not_hide_that_p2pd_is_dead():
    async with Swarm(Identity.ephemeral()) as swarm:
        await swarm.store(seal(announcement(swarm._identity), swarm._identity))
        assert len(await swarm.fetch(Kind.ANNOUNCE, (MANIFEST, 0))) == 1
        os.kill(swarm._daemon.pid, signal.SIGKILL)
        with pytest.raises(DaemonDied):
            await swarm.fetch(Kind.ANNOUNCE, (MANIFEST, 0))


async def test_wait_closed_returns_when_the_swarm_is_left():
    async with Swarm(Identity.ephemeral()) as swarm:
        waiting = asyncio.create_task(swarm.wait_closed())
        await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await waiting


# -- processes ------------------------------------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return status.strip() != "" and not status.startswith("Z")


NODE = """
    import asyncio, sys
    from dht.identity import Identity
    from dht.swarm import Swarm

    async def main():
        async with Swarm(Identity.ephemeral()) as swarm:
            print(swarm._daemon.pid, swarm._daemon.socket, flush=True)
            await asyncio.sleep(60)

    {run}
"""
RUNS = {
    "asyncio": "asyncio.run(main())",
    "uvloop": "import uvloop; uvloop.run(main())",
    "uvloop in a thread": (
        "import threading, uvloop; thread = threading.Thread(target=uvloop.run, args=(main(),), daemon=True); "
        "thread.start(); thread.join()"
    ),
    "thread": (
        "import threading; thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True); "
        "thread.start(); thread.join()"
    ),
}


def start_node(run: str) -> tuple[subprocess.Popen[str], int, Path]:
    code = textwrap.dedent(NODE).format(run=RUNS[run])
    node = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    pid, socket = node.stdout.readline().split()
    return node, int(pid), Path(socket)


@pytest.mark.parametrize("run", RUNS)
def test_ctrl_c_ends_p2pd_removes_its_sockets_and_warns_of_nothing(run: str):
    node, pid, socket = start_node(run)
    assert is_running(pid)
    assert socket.exists()
    if "thread" in run:  # the main thread gets the signal and leaves without a goodbye
        node.send_signal(signal.SIGKILL)
    else:
        node.send_signal(signal.SIGINT)
    _, errors = node.communicate(timeout=10)
    if "thread" not in run:
        assert not socket.parent.exists()
        assert "Warning" not in errors
        assert errors.strip().endswith("KeyboardInterrupt") or errors == ""
    wait_until_gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_killed_node_takes_p2pd_with_it_and_the_next_start_clears_its_sockets():
    node, pid, socket = start_node("asyncio")
    node.kill()
    node.communicate(timeout=10)
    wait_until_gone(pid)
    assert socket.parent.exists()
    following, _, _ = start_node("asyncio")
    assert not socket.parent.exists()
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=10)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < deadline, "p2pd still runs"
        time.sleep(0.02)


async def test_cancelling_a_start_leaves_no_p2pd():
    for delay_s in (0.0, 0.05, 0.15, 0.3):
        swarm = Swarm(
            Identity.ephemeral(), join=JoinCode((f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.ephemeral().peer_id}",))
        )
        task = asyncio.create_task(swarm.__aenter__())
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, PeerUnreachable)):
            await task
    listed = subprocess.run(["ps", "-A", "-o", "ppid=,comm="], capture_output=True, text=True, check=True).stdout
    children = [line.split(None, 1)[1] for line in listed.splitlines() if line.split()[0] == str(os.getpid())]
    assert not any("p2pd" in command for command in children)
