"""Reach members that no one can dial, and be one of them: connections carried by a relay (``relay``).

    caller                        relay                          hidden node
    p2pd ── 127.0.0.1 ── us ══ CARRY ══ us ══ ARRIVE ══ us ── 127.0.0.1 ── p2pd
     └────────────────── one libp2p connection, TLS from end to end ────────┘

The hidden node keeps a stream to the relay open (RESERVE), which is its wish to be reached. p2pd takes the near end for
a peer on this machine. The relay sees what travels only as ciphertext, and both ends check each other's id as always.
The address of such a way is written as libp2p writes it: ``<relay's address>/p2p/<relay>/p2p-circuit``.
This file does not know when a circuit is needed (``members`` and ``swarm`` do). It runs on the event loop.
"""

import asyncio
import contextlib
import enum
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dht.codec import Fields, Value, decode, encode
from dht.errors import DhtError, PeerUnreachable
from dht.identity import peer_id_to_bytes
from dht.membership.book import CIRCUIT, MAX_ADDRESSES, is_circuit
from dht.membership.endpoints import first_listening, tcp_endpoint
from dht.membership.members import Membership, Stream, read_message, write_message

logger = logging.getLogger(__name__)

RESERVE_PROTOCOL = "/efedllm/relay/reserve/1"
CARRY_PROTOCOL = "/efedllm/relay/carry/1"
ARRIVE_PROTOCOL = "/efedllm/relay/arrive/1"

OPEN_S = 4.0
"""Seconds until a circuit stands, or counts as impossible; less than an exchange of hellos may take."""

MAX_ARRIVALS = 512
"""Circuits to us that are open at once."""

MAX_QUESTION_BYTES = 4096
"""Longest message to a relay; its answers are as short."""

_PIECE_BYTES = 2**16


class Verdict(enum.IntEnum):
    """What a relay answers."""

    DONE = 0  # the reservation stands; or: the circuit stands, bytes follow
    NOT_NEEDED = 1  # to a reservation: you can be dialled at an address that you gave
    NO_SUCH_PEER = 2  # to a caller: that peer has no reservation here
    FULL = 3  # too many at once: try another relay, or later


class Transport(Protocol):
    """What this file needs of the connection to p2pd."""

    async def connect(self, peer_id: str, addresses: Sequence[str], timeout_s: float) -> None:
        """Connect to a peer."""

    async def disconnect(self, peer_id: str) -> None:
        """Close all connections to a peer."""


@dataclass(frozen=True, slots=True)
class _Reservation:
    address: str  # at which the relay carries to us
    stream: Stream  # stands as long as the reservation does
    watching: asyncio.Task[None]


class Circuits:
    """The circuits of one node: those that it makes, and those that end here."""

    def __init__(self, membership: Membership, transport: Transport, peer_id: str, door: Callable[[], str]) -> None:
        """Make the circuits of one node.

        Args:
            membership: Streams among members.
            transport: The connection to p2pd.
            peer_id: Our own.
            door: Gives a TCP multiaddr at which this machine reaches our own p2pd.
        """
        self._membership = membership
        self._transport = transport
        self._peer_id = peer_id
        self._door = door
        self._reservations: dict[str, _Reservation] = {}
        self._made: dict[str, asyncio.Task[None]] = {}
        self._num_arrivals = 0

    async def start(self) -> None:
        """Take circuits from relays that we have reserved, and offer ours to those who reach peers."""
        await self._membership.serve(ARRIVE_PROTOCOL, self._serve_arrival)
        self._membership.detour = self.reach

    async def stop(self) -> None:
        """End every circuit and reservation."""
        tasks = [*self._made.values(), *(each.watching for each in self._reservations.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- being reached -----------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> list[str]:
        """Multiaddrs at which relays carry to us, without our id."""
        return [each.address for each in self._reservations.values()]

    def has_reserved(self, relay: str) -> bool:
        """Say whether a relay carries to us now."""
        return relay in self._reservations

    async def reserve(self, transport: str, relay: str, addresses: Sequence[str]) -> Verdict:
        """Ask a member to carry to us; what it grants stands until the stream to it ends.

        Args:
            transport: Multiaddr at which others reach the relay.
            relay: Its peer id.
            addresses: Where we can be reached without it, as far as we know.

        Raises:
            PeerUnreachable: It does not answer, or is no relay.
        """
        address = f"{transport}/p2p/{relay}{CIRCUIT}"
        stream = await self._membership.dial(relay, RESERVE_PROTOCOL)
        verdict = Verdict.FULL
        try:
            wish: list[Value] = [*addresses[: MAX_ADDRESSES - 1], address]
            verdict = await _ask(stream, [wish])
        finally:
            if verdict != Verdict.DONE:
                await stream.close()
        if verdict == Verdict.DONE:
            watching = asyncio.get_running_loop().create_task(self._watch(relay, stream))
            self._reservations[relay] = _Reservation(address, stream, watching)
        return verdict

    async def _watch(self, relay: str, stream: Stream) -> None:
        try:
            with contextlib.suppress(OSError):
                await stream.reader.read(1)
        finally:
            del self._reservations[relay]
            await stream.close()

    async def _serve_arrival(self, stream: Stream) -> None:
        endpoint = tcp_endpoint(self._door())
        if not self.has_reserved(stream.peer_id) or self._num_arrivals >= MAX_ARRIVALS or endpoint is None:
            return
        self._num_arrivals += 1
        try:
            await splice(stream, Stream(self._peer_id, *await asyncio.open_connection(*endpoint)))
        finally:
            self._num_arrivals -= 1

    # -- reaching others ---------------------------------------------------------------------------------------------

    async def reach(self, peer_id: str, address: str) -> None:
        """Connect to a peer over a relay.

        Args:
            peer_id: Whom.
            address: The circuit's multiaddr.

        Raises:
            PeerUnreachable: The relay does not answer, or does not carry there.
        """
        transport, _, relay = address.removesuffix(CIRCUIT).rpartition("/p2p/")
        behind_another = any(map(is_circuit, self._membership.book.addresses(relay)))
        if relay in ("", self._peer_id, peer_id) or behind_another:
            raise PeerUnreachable(f"{address} is no way to peer {peer_id}")
        self._membership.learn(relay, [transport])
        try:
            async with asyncio.timeout(OPEN_S):
                stream = await self._membership.dial(relay, CARRY_PROTOCOL)
                try:
                    await _ask_for_circuit(stream, peer_id)
                    await self._connect_over(peer_id, stream)
                except BaseException:
                    stream.writer.close()
                    raise
        except (TimeoutError, OSError, EOFError, ValueError):
            raise PeerUnreachable(f"the relay {relay} does not answer") from None

    async def _connect_over(self, peer_id: str, stream: Stream) -> None:
        """Let p2pd connect to a peer through a stream to it, by way of a port of this machine that takes one call."""
        loop = asyncio.get_running_loop()
        called: asyncio.Future[Stream] = loop.create_future()

        def take_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if called.done():
                writer.close()
            else:
                called.set_result(Stream(self._peer_id, reader, writer))

        server = await asyncio.start_server(take_call, "127.0.0.1", 0, limit=_PIECE_BYTES)
        near = f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}"
        connecting = loop.create_task(self._transport.connect(peer_id, [near], OPEN_S))
        carrying: asyncio.Task[None] | None = None
        try:
            either: list[asyncio.Future[Any]] = [called, connecting]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if called.done():
                carrying = loop.create_task(splice(stream, called.result()))
            await connecting
        except BaseException:
            for task in (connecting, carrying):
                if task is not None:
                    task.cancel()
            raise
        finally:
            server.close()
        if carrying is None:  # p2pd had come to a connection by another way
            stream.writer.close()
            return
        self._made[peer_id] = carrying
        carrying.add_done_callback(lambda done: self._forget(peer_id, done))

    def _forget(self, peer_id: str, done: asyncio.Task[None]) -> None:
        if self._made.get(peer_id) is done:
            del self._made[peer_id]

    async def prefer_direct(self) -> None:
        """End circuits that nothing runs over to peers that can be dialled by now; the next call dials them."""
        for peer_id in list(self._made):
            book, streams = self._membership.book, self._membership.num_streams
            if streams(peer_id) or await first_listening(book.direct(peer_id)) is None:
                continue
            if not streams(peer_id):
                logger.debug("peer %s can be reached without a relay now", peer_id)
                with contextlib.suppress(DhtError):
                    await self._transport.disconnect(peer_id)


async def splice(left: Stream, right: Stream) -> None:
    """Carry bytes both ways between two streams until one of them ends; then close both."""
    loop = asyncio.get_running_loop()
    ways = [loop.create_task(_carry(*pair)) for pair in ((left, right), (right, left))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        left.writer.close()
        right.writer.close()
        await asyncio.gather(*ways, left.close(), right.close(), return_exceptions=True)


async def _carry(source: Stream, sink: Stream) -> None:
    with contextlib.suppress(OSError):
        while piece := await source.reader.read(_PIECE_BYTES):
            sink.writer.write(piece)
            await sink.writer.drain()


async def _ask_for_circuit(stream: Stream, peer_id: str) -> None:
    verdict = await _ask(stream, [peer_id_to_bytes(peer_id)])
    if verdict != Verdict.DONE:
        raise PeerUnreachable(f"the relay {stream.peer_id} does not carry to peer {peer_id}: {verdict.name}")


async def _ask(stream: Stream, question: Value) -> Verdict:
    await write_message(stream.writer, encode(question))
    answer = Fields(decode(await read_message(stream.reader, MAX_QUESTION_BYTES), MAX_QUESTION_BYTES))
    return Verdict(answer.uint("verdict", max(Verdict)))
