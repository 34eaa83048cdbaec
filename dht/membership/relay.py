"""Carry connections to members that no one can dial: what a bootstrap does beside being known (see ``circuits``).

In place of p2pd's own relay, which carries for strangers too, and 128 KiB and two minutes a connection, whatever its
options say, until other peers have told it that it is public. Here both ends are members of one swarm, private or not.
What a member can take of this node is bounded in number; bytes are held back as fast as the far side reads them.
This file does not know what the bytes are: they are encrypted from end to end. It runs on the event loop.
"""

import asyncio
import contextlib
import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable

from dht.codec import Fields, decode, encode
from dht.errors import DhtError
from dht.membership.book import MAX_ADDRESSES
from dht.membership.circuits import (
    ARRIVE_PROTOCOL,
    CARRY_PROTOCOL,
    MAX_QUESTION_BYTES,
    OPEN_S,
    RESERVE_PROTOCOL,
    Verdict,
    splice,
)
from dht.membership.endpoints import first_listening, tcp_endpoint
from dht.membership.handshake import MAX_ADDRESS_BYTES
from dht.membership.members import Membership, Stream, read_message, take_peer_id, write_message

MAX_RESERVATIONS = 4096
"""Members that are carried to."""

MAX_CIRCUITS = 1024
"""Circuits that are open at once; each takes two streams."""

MAX_CIRCUITS_PER_CALLER = 64
"""Of one member."""

QUESTION_S = 5.0
"""Seconds that a member has to say what it wants."""


class Relay:
    """The carrying of one node."""

    def __init__(self, membership: Membership, seen_at: Callable[[str], Awaitable[list[str]]]) -> None:
        """Make a relay.

        Args:
            membership: Streams among members.
            seen_at: Gives the multiaddrs from which a peer is connected to us.
        """
        self._membership = membership
        self._seen_at = seen_at
        self._reserved: dict[str, Stream] = {}
        self._circuits: Counter[str] = Counter()

    async def start(self) -> None:
        """Take reservations and callers."""
        await self._membership.serve(RESERVE_PROTOCOL, self._serve_reservation)
        await self._membership.serve(CARRY_PROTOCOL, self._serve_caller)

    async def _serve_reservation(self, stream: Stream) -> None:
        peer_id = stream.peer_id
        wish = await _question(stream)
        addresses = wish.texts("addresses", MAX_ADDRESSES, MAX_ADDRESS_BYTES)
        wish.end()
        verdict = await self._judge(peer_id, addresses)
        if verdict == Verdict.DONE:
            self._reserved[peer_id] = stream
            self._membership.learn(peer_id, addresses, own_word=True)
        try:
            await _answer(stream, verdict)
            if verdict == Verdict.DONE:
                with contextlib.suppress(OSError):
                    await stream.reader.read(1)  # nothing more is said; the end of the stream ends the reservation
        finally:
            if self._reserved.get(peer_id) is stream:
                del self._reserved[peer_id]

    async def _judge(self, peer_id: str, addresses: tuple[str, ...]) -> Verdict:
        if await self._can_be_dialled(peer_id, addresses):
            return Verdict.NOT_NEEDED
        if len(self._reserved) >= MAX_RESERVATIONS and peer_id not in self._reserved:
            return Verdict.FULL
        return Verdict.DONE

    async def _can_be_dialled(self, peer_id: str, addresses: tuple[str, ...]) -> bool:
        """Try a peer's addresses, but only at the public host that it calls from: no one shall scan others through us.

        A private address says nothing: we may be its neighbour, and others not.
        """
        seen = {_host(address) for address in await self._seen_at(peer_id)}
        own = [each for each in addresses if _is_public(_host(each)) and _host(each) in seen]
        return await first_listening(own) is not None

    async def _serve_caller(self, stream: Stream) -> None:
        question = await _question(stream)
        callee = take_peer_id(question)
        question.end()
        caller = stream.peer_id
        full = self._circuits.total() >= MAX_CIRCUITS or self._circuits[caller] >= MAX_CIRCUITS_PER_CALLER
        if callee not in self._reserved or callee == caller:
            await _answer(stream, Verdict.NO_SUCH_PEER)
        elif full:
            await _answer(stream, Verdict.FULL)
        else:
            self._circuits[caller] += 1
            try:
                await self._carry(stream, callee)
            finally:
                self._circuits[caller] -= 1
                self._circuits += Counter()  # drops those that are 0

    async def _carry(self, stream: Stream, callee: str) -> None:
        try:
            async with asyncio.timeout(OPEN_S):
                onward = await self._membership.dial(callee, ARRIVE_PROTOCOL)
        except (DhtError, TimeoutError):
            await _answer(stream, Verdict.NO_SUCH_PEER)
            return
        await _answer(stream, Verdict.DONE)
        await splice(stream, onward)


async def _question(stream: Stream) -> Fields:
    async with asyncio.timeout(QUESTION_S):
        return Fields(decode(await read_message(stream.reader, MAX_QUESTION_BYTES), MAX_QUESTION_BYTES))


async def _answer(stream: Stream, verdict: Verdict) -> None:
    await write_message(stream.writer, encode([int(verdict)]))


def _host(address: str) -> str:
    endpoint = tcp_endpoint(address)
    return endpoint[0] if endpoint is not None else ""


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False
