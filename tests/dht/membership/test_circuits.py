"""Members that no one can dial, and the relay that carries to them; nodes on loopback, and members who misuse it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from dht.codec import encode
from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.membership import relay as relay_module
from dht.membership.book import CIRCUIT
from dht.membership.circuits import ARRIVE_PROTOCOL, CARRY_PROTOCOL, RESERVE_PROTOCOL, Verdict, splice
from dht.membership.members import Stream, read_message, write_message
from dht.membership.relay import Relay
from dht.parameters import JoinCode, split_address
from dht.swarm import Swarm
from tests.dht.samples import SECRET

ECHO = "/test/echo/1"


@dataclass
class Three:
    relay: Swarm
    hidden: Swarm
    caller: Swarm
    circuit: str
    """The hidden node's address over the relay, with its id."""

    async def reserve(self) -> Verdict:
        transport, peer = split_address(self.relay.addresses[0])
        return await self.hidden._circuits.reserve(transport, peer, [])

    async def dial(self) -> Stream:
        return await self.caller.dial(self.hidden.peer_id, ECHO, addresses=[self.circuit])


@pytest.fixture
async def three() -> AsyncIterator[Three]:
    """A relay, and two members that no one ever named to each other; on one machine nobody is hidden by itself."""
    async with Swarm(Identity.ephemeral(), name="lab", secret=SECRET, carry=True) as relay:
        join = JoinCode(tuple(relay.addresses), "lab", b"", SECRET)
        async with (
            Swarm(Identity.ephemeral(), join=join, client_mode=True) as hidden,
            Swarm(Identity.ephemeral(), join=join, client_mode=True) as caller,
        ):

            async def echo(stream: Stream) -> None:
                stream.writer.write(stream.peer_id.encode() + await stream.reader.readexactly(4))

            await hidden.serve(ECHO, echo)
            yield Three(relay, hidden, caller, f"{relay.addresses[0]}{CIRCUIT}/p2p/{hidden.peer_id}")


async def test_a_hidden_member_is_reached_and_both_know_whom_they_talk_to(three: Three):
    assert await three.reserve() == Verdict.DONE
    assert three.hidden.num_relays == 1
    assert three.circuit in three.hidden.addresses
    stream = await three.dial()
    stream.writer.write(b"here")
    assert await stream.reader.read(200) == three.caller.peer_id.encode() + b"here"
    assert stream.peer_id == three.hidden.peer_id
    await stream.close()
    (seen,) = await three.caller._control.seen_at(three.hidden.peer_id)
    assert not any(address.startswith(f"{seen}/") for address in three.hidden.addresses)


async def test_who_has_not_asked_for_it_is_not_carried_to(three: Three):
    with pytest.raises(PeerUnreachable, match="does not carry to peer"):
        await three.dial()


async def test_a_reservation_ends_with_its_stream_and_can_be_made_again(three: Three):
    await three.reserve()
    await three.hidden._circuits._reservations[three.relay.peer_id].stream.close()
    async with asyncio.timeout(5):
        while three.hidden.num_relays:
            await asyncio.sleep(0.01)
    with pytest.raises(PeerUnreachable, match="NO_SUCH_PEER"):
        await three.dial()
    await three.reserve()
    await (await three.dial()).close()


async def test_when_the_connection_is_gone_the_next_call_makes_another(three: Three):
    await three.reserve()
    await (await three.dial()).close()
    await three.caller._control.disconnect(three.hidden.peer_id)
    await (await three.dial()).close()


async def test_a_member_that_is_not_our_relay_cannot_call_our_p2pd(three: Three):
    stream = await three.caller.dial(three.hidden.peer_id, ARRIVE_PROTOCOL, addresses=three.hidden.addresses)
    async with asyncio.timeout(5):
        assert await stream.reader.read() == b""
    await stream.close()


async def test_a_full_relay_says_so(three: Three, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relay_module, "MAX_RESERVATIONS", 0)
    assert await three.reserve() == Verdict.FULL
    assert three.hidden.num_relays == 0
    monkeypatch.setattr(relay_module, "MAX_RESERVATIONS", 1)
    await three.reserve()
    monkeypatch.setattr(relay_module, "MAX_CIRCUITS_PER_CALLER", 0)
    with pytest.raises(PeerUnreachable, match="FULL"):
        await three.dial()


async def test_places_on_a_relay_are_free_again_when_circuits_end(three: Three, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relay_module, "MAX_CIRCUITS_PER_CALLER", 1)
    await three.reserve()
    for _ in range(3):
        await (await three.dial()).close()
        await three.caller._control.disconnect(three.hidden.peer_id)
        async with asyncio.timeout(5):
            while three.caller._circuits._made:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("protocol", [RESERVE_PROTOCOL, CARRY_PROTOCOL])
@pytest.mark.parametrize("question", [b"\xc1", encode([]), encode([1]), encode(["a", "b"]), encode([bytes(38)])])
async def test_what_is_no_question_ends_the_stream_alone(three: Three, protocol: str, question: bytes):
    stream = await three.caller.dial(three.relay.peer_id, protocol)
    await write_message(stream.writer, question)
    async with asyncio.timeout(5):
        with pytest.raises((EOFError, ConnectionError)):
            await read_message(stream.reader, 100)
    await stream.close()
    assert await three.reserve() == Verdict.DONE


async def test_a_way_that_leads_in_a_circle_is_not_taken(three: Three):
    hidden, caller, relay = (each.peer_id for each in (three.hidden, three.caller, three.relay))
    three.caller._membership.learn(relay, [f"/ip4/192.0.2.1/tcp/1/p2p/{hidden}{CIRCUIT}"], own_word=True)
    for over in (hidden, caller, relay):
        with pytest.raises(PeerUnreachable, match="is no way to peer"):
            await three.caller._circuits.reach(hidden, f"/ip4/192.0.2.1/tcp/1/p2p/{over}{CIRCUIT}")


async def test_a_relay_tries_no_address_but_public_ones_of_the_host_that_asks(monkeypatch: pytest.MonkeyPatch):
    tried: list[str] = []

    async def first_listening(addresses: list[str]) -> str | None:
        tried.extend(addresses)
        return None

    async def seen_at(_: str) -> list[str]:
        return ["/ip4/44.0.0.9/tcp/50000", "/ip4/10.0.0.9/tcp/50000"]

    monkeypatch.setattr(relay_module, "first_listening", first_listening)
    relay = Relay(None, seen_at)
    own = ["/ip4/44.0.0.9/tcp/31338", "/ip4/10.0.0.9/tcp/31338", "/ip4/44.0.0.8/tcp/22", "/ip4/127.0.0.1/tcp/22"]
    assert await relay._judge("peer", (*own, "/dns4/localhost/tcp/22", "/ip4/44.0.0.9/udp/1")) == Verdict.DONE
    assert tried == ["/ip4/44.0.0.9/tcp/31338"]


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Stream, Stream]]:
    accepted = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *ends: accepted.set_result(ends), "127.0.0.1", 0)
    near = Stream("near", *await asyncio.open_connection(*server.sockets[0].getsockname()))
    far = Stream("far", *await accepted)
    try:
        yield near, far
    finally:
        await near.close()
        await far.close()
        server.close()


async def test_two_streams_are_one_until_one_of_them_ends():
    async with pair() as (left, near), pair() as (right, far):
        splicing = asyncio.create_task(splice(near, far))
        left.writer.write(b"there")
        assert await right.reader.readexactly(5) == b"there"
        right.writer.write(b"last word")
        right.writer.close()
        async with asyncio.timeout(5):
            assert await left.reader.read() == b"last word"
            await splicing
