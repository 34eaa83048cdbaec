"""Admit peers, and open and serve streams among admitted peers only.

One exchange of hellos per pair of peers and process (see ``handshake``). A stream to a member starts with one byte from
the side that was called: 1, go on; 0, you are not admitted, whereupon the caller, whom a restarted peer has forgotten,
says hello once more. What outsiders can open is bounded in time, size and number.
A peer is dialled at its own addresses first; where no one listens there, over a relay that it names (``circuits``).
This file does not know the DHT's calls nor what runs over the streams. It runs on the event loop.
"""

import asyncio
import contextlib
import logging
import secrets
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dht.codec import Fields, Value, decode, encode
from dht.errors import (
    BadRecord,
    DhtError,
    IdentityInUse,
    NotAdmitted,
    PeerUnreachable,
    ProtocolViolation,
    RemoteError,
    UnavailableError,
)
from dht.identity import PEER_ID_BYTES, peer_id_to_bytes, peer_id_to_str
from dht.membership.book import AddressBook, is_circuit
from dht.membership.endpoints import first_listening, is_listening, is_multiaddr, peer_at, tcp_endpoint
from dht.membership.handshake import (
    HELLO_VERSION,
    MAX_ADDRESS_BYTES,
    MAX_ADDRESSES,
    MAX_HELLO_BYTES,
    NONCE_BYTES,
    Card,
    Initiator,
    Refusal,
    RefusedError,
    Responder,
    refuse_hello,
    refuse_proof,
)

logger = logging.getLogger(__name__)

HELLO_PROTOCOL = "/efedllm/hello/1"
PEERS_PROTOCOL = "/efedllm/peers/1"

HELLO_S = 5.0
"""Seconds that one exchange of hellos may take."""

MAX_HELLOS = 64
"""Exchanges that are answered at once; more are refused."""

MAX_HELLOS_PER_PEER = 2
"""Exchanges with one peer id that are answered at once."""

MAX_MEMBERS = 50_000
"""Admitted peers that are remembered; the one admitted first is forgotten first and says hello again."""

MAX_ASKED = 16
"""Most peers that one question of the peers protocol names."""

MAX_PEERS_BYTES = 64 * 1024
"""Longest message of the peers protocol."""

DIRECT_S = 0.8
"""Seconds that a peer's own addresses have, to be heard from and then to connect, before a relay is tried."""

MAX_DETOURS = 2
"""Relays that are tried for one peer."""

PEERS_IDLE_S = 30.0
"""Seconds after which a silent stream of the peers protocol is closed."""

_ADMITTED = b"\x01"
_STRANGER = b"\x00"


class Transport(Protocol):
    """What this file needs of the connection to p2pd."""

    async def connect(self, peer_id: str, addresses: Sequence[str], timeout_s: float) -> None:
        """Connect to a peer."""

    async def connected_peers(self) -> set[str]:
        """Give the peers that there is a connection with."""
        ...

    async def open_stream(self, peer_id: str, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a raw stream."""
        ...

    async def handle_stream(
        self, protocol: str, handler: Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> None:
        """Serve raw streams."""


LAST_WORD_S = 1.0
"""Seconds that a peer has to close a stream on which we have spoken last."""
MAX_LAST_WORDS = 64
"""Streams of strangers that are given this time at once."""
_MAX_UNREAD_BYTES = 2**16
"""What a peer may still send meanwhile; it is thrown away."""
CLOSE_S = 2.0
"""Seconds that a closing stream may take to hand over what is still to be sent."""


@dataclass(slots=True)
class Stream:
    """A raw two-way stream to an admitted peer; frame lengths are the user's to bound."""

    peer_id: str  # who is at the other end, authenticated by libp2p
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def finish(self) -> None:
        """Wait until the peer closes, for a while, then close: whoever says last why a stream ends does so.

        p2pd closes the reading half of a stream first; its own reader takes that for an error, and when it is faster
        than the closing of the other half it resets the stream. A reset overtakes what the peer has not read yet, and
        the last word would be lost.
        """
        if not self.writer.is_closing():
            unread = _MAX_UNREAD_BYTES
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    while unread > 0 and (piece := await self.reader.read(unread)):
                        unread -= len(piece)
        await self.close()

    async def close(self) -> None:
        """Close both directions; a peer that has gone already is no error, one that does not read is not waited for."""
        self.writer.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.writer.wait_closed()
        except TimeoutError:
            self.writer.transport.abort()
        except (OSError, EOFError):
            pass


class Membership:
    """Who is admitted, from this node's point of view."""

    def __init__(
        self,
        transport: Transport,
        key: bytes,
        peer_id: str,
        *,
        answers_dht: bool,
        addresses: Callable[[], Sequence[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the membership of one swarm.

        Args:
            transport: The connection to p2pd.
            key: The swarm's membership key, 32 bytes.
            peer_id: Our own.
            answers_dht: Whether we answer DHT calls.
            addresses: Gives where we listen now, without /p2p/.
            clock: Unix seconds.
        """
        self.book = AddressBook()
        self._transport = transport
        self._key = key
        self._peer_id = peer_id
        self._answers_dht = answers_dht
        self._addresses = addresses
        self._clock = clock
        self._instance = secrets.token_bytes(16)
        self._members: OrderedDict[str, Card] = OrderedDict()
        self._skews_s: dict[str, float] = {}
        self._greeting: dict[str, asyncio.Task[None]] = {}
        self._answering: Counter[str] = Counter()
        self._num_last_words = 0
        self._num_served: Counter[str] = Counter()
        self._dialled: weakref.WeakKeyDictionary[asyncio.StreamWriter, str] = weakref.WeakKeyDictionary()
        self.detour: Callable[[str, str], Awaitable[None]] | None = None  # (peer, circuit): connects over a relay
        self.refused: Counter[str] = Counter()  # exchanges that we refused, by reason

    async def start(self) -> None:
        """Answer hellos and questions for addresses."""
        await self._transport.handle_stream(HELLO_PROTOCOL, self._serve_hello)
        await self.serve(PEERS_PROTOCOL, self._serve_peers)

    async def stop(self) -> None:
        """End the exchanges that we started."""
        tasks = list(self._greeting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- who belongs -------------------------------------------------------------------------------------------------

    def is_admitted(self, peer_id: str) -> bool:
        """Say whether a peer has proved that it belongs to the swarm."""
        return peer_id in self._members

    def forget(self, peer_id: str) -> None:
        """Drop a peer's admission; it or we must say hello again."""
        self._members.pop(peer_id, None)

    def members(self) -> list[str]:
        """List the admitted peers."""
        return list(self._members)

    def skew_s(self, peer_id: str) -> float:
        """Give how many seconds a peer's clock was ahead of ours when we said hello."""
        return self._skews_s.get(peer_id, 0.0)

    def _admit(self, peer_id: str, card: Card) -> None:
        self._members[peer_id] = card
        self._members.move_to_end(peer_id)
        self.book.learn(peer_id, card.addresses, own_word=True)
        if len(self._members) > MAX_MEMBERS:
            oldest, _ = self._members.popitem(last=False)
            self._skews_s.pop(oldest, None)

    async def ensure(self, peer_id: str) -> None:
        """Make a peer and us members of each other; at once when we are already, and connected.

        A member that we have lost is looked for before p2pd dials it: p2pd shuns whoever it could not reach for longer
        and longer, also when the peer has long been back.

        Raises:
            PeerUnreachable: It does not answer.
            NotAdmitted: It is of another swarm, or speaks another version.
            IdentityInUse: It knows a live node with our identity.
        """
        if peer_id in self._members and peer_id in await self._transport.connected_peers():
            return
        task = self._greeting.get(peer_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._greet(peer_id))
            self._greeting[peer_id] = task
            task.add_done_callback(lambda done: self._greeted(peer_id, done))
        await asyncio.shield(task)

    def _greeted(self, peer_id: str, task: asyncio.Task[None]) -> None:
        del self._greeting[peer_id]
        if not task.cancelled():
            task.exception()  # every caller may have gone; the outcome is theirs, not the loop's

    async def _greet(self, peer_id: str) -> None:
        try:
            async with asyncio.timeout(HELLO_S):
                await self._reach(peer_id)
                reader, writer = await self._transport.open_stream(peer_id, HELLO_PROTOCOL)
                try:
                    await self._say_hello(peer_id, reader, writer)
                finally:
                    await Stream(peer_id, reader, writer).close()
        except TimeoutError:
            raise PeerUnreachable(f"peer {peer_id} does not answer within {HELLO_S:g} s") from None
        except (EOFError, ConnectionError):
            raise PeerUnreachable(f"peer {peer_id} ended the exchange of hellos") from None
        except RefusedError as error:
            raise _explained(peer_id, error) from None
        except RemoteError as error:
            raise NotAdmitted(f"peer {peer_id} is not of this swarm: {error}") from None

    async def _say_hello(self, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        side = Initiator(self._key, self._peer_id, peer_id, secrets.token_bytes(NONCE_BYTES))
        await write_message(writer, side.hello())
        proof = side.prove(await read_message(reader, MAX_HELLO_BYTES), self._card())
        await write_message(writer, proof)
        card = side.admit(await read_message(reader, MAX_HELLO_BYTES))
        self._skews_s[peer_id] = card.time_ms / 1000 - self._clock()
        self._admit(peer_id, card)

    def _card(self) -> Card:
        addresses = [each for each in self._addresses() if len(each) <= MAX_ADDRESS_BYTES]
        return Card(self._instance, int(self._clock() * 1000), self._answers_dht, tuple(addresses[:MAX_ADDRESSES]))

    async def _serve_hello(self, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._answering.total() >= MAX_HELLOS or self._answering[peer_id] >= MAX_HELLOS_PER_PEER:
            self.refused[Refusal.BUSY.name] += 1
            await write_message(writer, refuse_hello(Refusal.BUSY))
            await self._finish_of_stranger(Stream(peer_id, reader, writer))
            return
        self._answering[peer_id] += 1
        try:
            async with asyncio.timeout(HELLO_S):
                await self._answer_hello(peer_id, reader, writer)
        finally:
            self._answering[peer_id] -= 1
            if not self._answering[peer_id]:
                del self._answering[peer_id]
        await self._finish_of_stranger(Stream(peer_id, reader, writer))

    async def _finish_of_stranger(self, stream: Stream) -> None:
        """End a stream of a peer that may be nobody's: with its last word heard, unless too many wait for that."""
        if self._num_last_words >= MAX_LAST_WORDS:
            await stream.close()
            return
        self._num_last_words += 1
        try:
            await stream.finish()
        finally:
            self._num_last_words -= 1

    async def _answer_hello(self, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            side = Responder(self._key, self._peer_id, peer_id, secrets.token_bytes(NONCE_BYTES))
        except ValueError:
            raise ProtocolViolation("a peer without an Ed25519 identity") from None
        try:
            greeting = side.greet(await read_message(reader, MAX_HELLO_BYTES))
        except RefusedError as error:
            self.refused[error.refusal.name] += 1
            await write_message(writer, refuse_hello(error.refusal))
            return
        await write_message(writer, greeting)
        try:
            card = side.admit(await read_message(reader, MAX_HELLO_BYTES))
            await self._refuse_twins(peer_id, card)
        except RefusedError as error:
            self.refused[error.refusal.name] += 1
            await write_message(writer, refuse_proof(error.refusal))
            return
        self._admit(peer_id, card)
        await write_message(writer, side.prove(self._card()))

    async def _refuse_twins(self, peer_id: str, card: Card) -> None:
        """Refuse a second live node with one identity; a restarted one, whose old addresses are dead, passes.

        So does one whose old port somebody else has by now: who listens there must prove to be this peer.
        """
        known = self._members.get(peer_id)
        if known is None or known.instance == card.instance:
            return
        elsewhere = [address for address in known.addresses if address not in card.addresses]
        if any(await asyncio.gather(*(_is_at(peer_id, address) for address in elsewhere))):
            raise RefusedError(Refusal.IDENTITY_IN_USE)

    # -- where members are -------------------------------------------------------------------------------------------

    def learn(self, peer_id: str, addresses: Sequence[str], *, own_word: bool = False) -> None:
        """Remember where a peer is; addresses may end with its id.

        Args:
            peer_id: Whose addresses they are.
            addresses: Multiaddrs; what is none is left out.
            own_word: True when the peer itself signed them.
        """
        bare = (address.removesuffix(f"/p2p/{peer_id}") for address in addresses[: 2 * MAX_ADDRESSES])
        self.book.learn(peer_id, tuple(each for each in bare if is_multiaddr(each)), own_word=own_word)

    async def _reach(self, peer_id: str) -> None:
        """Connect to a peer: where we believe it to be, or where those who named it say.

        Those are reached where we believe them to be, and not through others: peers that are lost together and have
        named each other would wait for each other.
        """
        tried = self.book.addresses(peer_id)
        try:
            await self._connect(peer_id, tried)
        except PeerUnreachable as error:
            self.book.doubt(peer_id)
            for namer in self.book.namers(peer_id):
                if namer in self._members and namer not in self._greeting:
                    with contextlib.suppress(UnavailableError, RemoteError):
                        if namer not in await self._transport.connected_peers():
                            await self._connect(namer, self.book.addresses(namer))
                        await self.ask_where(namer, [peer_id])
                found = self.book.addresses(peer_id)
                if found and found != tried:
                    await self._connect(peer_id, found)
                    return
            where = ", ".join(tried) or "no address"
            raise PeerUnreachable(f"peer {peer_id} does not answer ({where}): {_short(error)}") from None

    async def _connect(self, peer_id: str, addresses: Sequence[str]) -> None:
        """Let p2pd connect, unless plain TCP shows that no one is there.

        p2pd shuns an address that failed for longer and longer, and so would miss a peer that comes back; and it
        takes its time over a dead one.
        """
        if self.detour is not None and any(map(is_circuit, addresses)):
            if peer_id not in await self._transport.connected_peers():
                await self._connect_round_about(peer_id, self.detour)
            return
        if addresses and all(tcp_endpoint(address) for address in addresses):
            listening = await asyncio.gather(*(is_listening(address) for address in addresses))
            if not any(listening) and peer_id not in await self._transport.connected_peers():
                raise PeerUnreachable("no one listens there")
        await self._transport.connect(peer_id, addresses, HELLO_S)

    async def _connect_round_about(self, peer_id: str, detour: Callable[[str, str], Awaitable[None]]) -> None:
        """Connect to a peer that names relays: directly where that works at once, else over one of them."""
        if await self._connect_directly(peer_id):
            return
        failure = PeerUnreachable("no one listens there")
        for circuit in self.book.circuits(peer_id)[:MAX_DETOURS]:
            try:
                await detour(peer_id, circuit)
            except (PeerUnreachable, NotAdmitted) as error:
                failure = PeerUnreachable(str(error))
            else:
                return
        raise failure

    async def _connect_directly(self, peer_id: str) -> bool:
        address = await first_listening(self.book.direct(peer_id), DIRECT_S)
        if address is None:
            return False
        try:
            await self._transport.connect(peer_id, [address], DIRECT_S)
        except PeerUnreachable:
            self.book.mistook(peer_id, address)
            return False
        return True

    async def ask_where(self, namer: str, peers: Sequence[str]) -> None:
        """Ask a member where other peers are, and remember what it says."""
        stream = await self.dial(namer, PEERS_PROTOCOL)
        try:
            async with asyncio.timeout(HELLO_S):
                await write_message(stream.writer, encode([peer_id_to_bytes(peer) for peer in peers[:MAX_ASKED]]))
                answer = Fields(decode(await read_message(stream.reader, MAX_PEERS_BYTES), MAX_PEERS_BYTES))
        except (TimeoutError, EOFError, ConnectionError):
            raise PeerUnreachable(f"peer {namer} does not say where others are") from None
        finally:
            await stream.close()
        asked = set(peers)
        for _ in range(MAX_ASKED):
            if not answer.more():
                break
            entry = Fields(answer.items("entry", 2))
            peer = take_peer_id(entry)
            addresses = entry.texts("addresses", MAX_ADDRESSES, MAX_ADDRESS_BYTES)
            if peer in asked:
                self.learn(peer, addresses)

    async def _serve_peers(self, stream: Stream) -> None:
        """Tell a member where the peers are that it asks for; an empty question is a ping."""
        with contextlib.suppress(EOFError, ConnectionError, TimeoutError):
            while True:
                async with asyncio.timeout(PEERS_IDLE_S):
                    request = Fields(decode(await read_message(stream.reader, MAX_PEERS_BYTES), MAX_PEERS_BYTES))
                answer: list[Value] = []
                while request.more() and len(answer) < MAX_ASKED:
                    peer = take_peer_id(request)
                    answer.append([peer_id_to_bytes(peer), list(self.book.addresses(peer))])
                await write_message(stream.writer, encode(answer))

    # -- streams -----------------------------------------------------------------------------------------------------

    async def dial(self, peer_id: str, protocol: str) -> Stream:
        """Open a stream to a member's handler; the caller bounds the time.

        Raises:
            PeerUnreachable: It does not answer, or has no such handler.
            NotAdmitted: It is not of this swarm.
        """
        for _ in range(2):
            await self.ensure(peer_id)
            reader, writer = await self._open(peer_id, protocol)
            stream = Stream(peer_id, reader, writer)
            try:
                status = await reader.readexactly(1)
            except (EOFError, ConnectionError):
                await stream.close()
                raise PeerUnreachable(f"peer {peer_id} closed the stream {protocol}") from None
            except BaseException:
                writer.close()
                raise
            if status == _ADMITTED:
                self._dialled[writer] = peer_id
                return stream
            await stream.close()
            self.forget(peer_id)
        raise NotAdmitted(f"peer {peer_id} does not keep us as a member")

    def num_streams(self, peer_id: str) -> int:
        """Count the streams that are open to and from a member."""
        dialled = sum(peer == peer_id and not writer.is_closing() for writer, peer in self._dialled.items())
        return dialled + self._num_served[peer_id]

    async def _open(self, peer_id: str, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.book.circuits(peer_id) and peer_id not in await self._transport.connected_peers():
            await self._reach(peer_id)  # p2pd would try the near end of a circuit that has ended
        try:
            return await self._transport.open_stream(peer_id, protocol)
        except PeerUnreachable as error:
            if "protocols not supported" in str(error):
                raise PeerUnreachable(f"peer {peer_id} does not serve {protocol}") from None
        await self._reach(peer_id)
        return await self._transport.open_stream(peer_id, protocol)

    async def serve(self, protocol: str, handler: Callable[[Stream], Coroutine[Any, Any, None]]) -> None:
        """Call ``handler`` with every stream that an admitted peer opens; a stranger is told that it is one."""

        async def guarded(peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if peer_id not in self._members:
                self.refused["STRANGER"] += 1
                writer.write(_STRANGER)
                await self._finish_of_stranger(Stream(peer_id, reader, writer))
                return
            stream = Stream(peer_id, reader, writer)
            writer.write(_ADMITTED)
            self._num_served[peer_id] += 1
            try:
                await handler(stream)
            finally:
                self._num_served[peer_id] -= 1
                if not self._num_served[peer_id]:
                    del self._num_served[peer_id]
            await stream.finish()

        await self._transport.handle_stream(protocol, guarded)


async def write_message(writer: asyncio.StreamWriter, message: bytes) -> None:
    """Send one short message: u16 length, then the bytes."""
    writer.write(len(message).to_bytes(2, "big") + message)
    await writer.drain()


async def read_message(reader: asyncio.StreamReader, max_bytes: int) -> bytes:
    """Receive one short message.

    Raises:
        ProtocolViolation: It is longer than ``max_bytes``.
        asyncio.IncompleteReadError: The stream ended.
    """
    length = int.from_bytes(await reader.readexactly(2), "big")
    if length > max_bytes:
        raise ProtocolViolation(f"a message of {length} bytes where {max_bytes} are allowed")
    return await reader.readexactly(length)


async def _is_at(peer_id: str, address: str) -> bool:
    """Say whether a peer listens at an address, or something that does not say who it is: the peer may be frozen."""
    try:
        return await peer_at(address) == peer_id
    except PeerUnreachable:
        return True


def take_peer_id(fields: Fields) -> str:
    """Take a peer id from a message.

    Raises:
        BadRecord: It is none.
    """
    try:
        return peer_id_to_str(fields.blob("peer id", PEER_ID_BYTES))
    except ValueError:
        raise BadRecord("not the peer id of an Ed25519 key") from None


def _explained(peer_id: str, error: RefusedError) -> DhtError:
    if error.refusal == Refusal.IDENTITY_IN_USE:
        return IdentityInUse(
            "another running node has this identity (the swarm knows it alive): stop it, or give this one its own"
        )
    if error.refusal == Refusal.VERSION:
        return NotAdmitted(
            f"peer {peer_id} speaks version {error.detail} of the protocol and this program {HELLO_VERSION}: "
            "update the older one"
        )
    if error.refusal == Refusal.BUSY:
        return PeerUnreachable(f"peer {peer_id} has too many newcomers at once: try again in a few seconds")
    return NotAdmitted(
        f"peer {peer_id} does not let us in: this swarm is private, or of another name; "
        "join with the code that its bootstrap printed"
    )


def _short(error: Exception) -> str:
    return str(error).replace("\n", " ")[:160]
