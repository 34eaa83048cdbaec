"""Run one node's place in one swarm: p2pd, membership, DHT, streams; the only door through which ``node`` uses them.

    Swarm
     ├── Identity.lock, Daemon (p2pd), Control      a process and its socket
     ├── Membership                                 who belongs; streams among members
     ├── Circuits, and in a bootstrap Relay         connections to members that no one can dial
     ├── Charter                                    the swarm's rules
     └── Overlay over AdmittedProtocol, Keeper      records among members, and what keeps them there

This file does not know models, sessions or what travels in streams. It runs on the caller's event loop.
"""

import asyncio
import contextlib
import ipaddress
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence, Set
from typing import Any, Self

from dht.charter import Charter
from dht.errors import (
    BadRecord,
    ClockSkew,
    DaemonDied,
    DhtError,
    IdentityInUse,
    NotAdmitted,
    PeerUnreachable,
)
from dht.hardening.control import Control, address_bytes
from dht.hardening.daemon import Daemon, DaemonOptions
from dht.hardening.findings import Forestall
from dht.hardening.keeper import Keeper
from dht.hardening.overlay import Overlay, Placed
from dht.hardening.protocol import AdmittedProtocol
from dht.identity import Identity
from dht.membership.circuits import Circuits, Verdict
from dht.membership.endpoints import first_listening, tcp_endpoint
from dht.membership.handshake import MAX_ADDRESSES, membership_key
from dht.membership.members import LAST_WORD_S, PEERS_PROTOCOL, Membership, Stream, read_message, write_message
from dht.membership.relay import Relay
from dht.membership.speed import Speed
from dht.parameters import PUBLIC_NAME, JoinCode, SwarmParameters, parameters_hash, split_address
from dht.records import Announcement, KeyPart, Record, SignedRecord, key_bytes
from dht.rules import Rules
from dht.validation import REGISTRY, RecordValidator, is_regional, parse_envelope

__all__ = ["LAST_WORD_S", "Stream", "Swarm"]

logger = logging.getLogger(__name__)

LOOPBACK_LISTEN = ("/ip4/127.0.0.1/tcp/0",)
"""Where a swarm listens unless it is asked to be open to other machines."""

MAX_CLOCK_SKEW_S = 20.0
"""Seconds by which our clock may differ from the swarm's; records live for a minute."""

WATCH_S = 1.0
"""Seconds between two looks at the peers through which we joined."""

MAX_MISSED_S = 8.0
"""Most seconds between two tries to meet one of them again; the first comes at once, each later one takes its time."""

JOIN_S = 10.0
"""Seconds for which peers are asked again to let us in that listen and do not answer in time: they may be busy."""

TWIN_S = 3.0
"""Seconds for which we ask again where we are said to run already: what was killed just now may not have ended yet."""

REFRESH_S = 60.0
"""Seconds between two looks at our own neighbourhood in the DHT."""

MAX_RELAYS = 3
"""Bootstraps that carry to one node."""

RESERVE_S = 5.0
"""Seconds that a relay may take to answer, and until one that did not is asked again."""

READ_PARAMETERS_S = 5.0
"""Seconds that joining may wait for the swarm's parameters; after that the watch looks for them."""

DECODED_AT_ONCE = 64
"""Records that are decoded before the event loop gets its turn: 4 ms."""

_EMPTY_QUESTION = b"\x90"


class Swarm:
    """An async context manager; inside it, this node is a member of the swarm."""

    def __init__(
        self,
        identity: Identity,
        *,
        join: JoinCode | None = None,
        name: str = PUBLIC_NAME,
        secret: bytes | None = None,
        listen: Sequence[str] = LOOPBACK_LISTEN,
        announce: Sequence[str] = (),
        client_mode: bool = False,
        carry: bool = False,
        parameters: bytes = b"",
    ) -> None:
        """Describe the place; entering the context takes it.

        Args:
            identity: Who we are; locked while the swarm runs.
            join: Where to join; None: we are the first. Its name and secret replace the next two.
            name: The swarm's name.
            secret: Of a private swarm, 32 bytes; None: public.
            listen: Multiaddrs to listen on.
            announce: Multiaddrs to give to others instead of those.
            client_mode: True: store nothing for others, and be reached by none that we do not call.
            carry: True: carry connections to members that no one can dial, as bootstraps do.
            parameters: Envelope of the swarm's parameters, at a node that holds them; empty: they are read from the
                DHT, by the hash in ``join``, and a swarm without such a hash has the default rules.

        Raises:
            BadAddress: One of the addresses is malformed.
            BadRecord: The parameters are not those that ``join`` names.
        """
        self._identity = identity
        self._join = [split_address(address) for address in join.addresses] if join is not None else []
        self.name = join.name if join is not None else name
        self._secret = join.secret if join is not None else secret
        for address in (*listen, *announce, *(transport for transport, _ in self._join)):
            address_bytes(address)
        self._listen, self._announce = tuple(listen), tuple(announce)
        self._client_mode = client_mode
        self._carry = carry
        self._found_addresses: list[str] = []
        self._relays_due: dict[str, float] = {}  # monotonic seconds: when a bootstrap may be asked again
        self._leaving = False
        self._entered: contextlib.AsyncExitStack | None = None
        self.peer_id = identity.peer_id
        self.validator = RecordValidator()
        named = join.parameters_hash if join is not None else b""
        self._charter = Charter(named or (parameters and parameters_hash(parameters)), parameters, self.validator)

    @property
    def parameters(self) -> SwarmParameters | None:
        """What the founder decided; None while that is not known, and in a swarm without parameters."""
        return self._charter.parameters

    @property
    def parameters_envelope(self) -> bytes:
        """The sealed parameters as they stand on the DHT; empty while they are not known."""
        return self._charter.envelope

    @property
    def parameters_hash(self) -> bytes:
        """What the join code names: sha256 of the sealed parameters, 32 bytes; empty: the swarm has none."""
        return self._charter.hash

    async def wait_for_rules(self, timeout_s: float | None = None) -> Rules:
        """Wait until the swarm's rules are known: whoever makes a record that depends on them needs them first.

        Args:
            timeout_s: how long; None: for ever.

        Raises:
            PeerUnreachable: no member has told them by then.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._charter.wait()
        except TimeoutError:
            raise PeerUnreachable("no member of the swarm has its rules: is a bootstrap of it running?") from None

    @property
    def is_private(self) -> bool:
        """Say whether admission needs a secret."""
        return self._secret is not None

    @property
    def join_code(self) -> JoinCode:
        """What another node needs to join this swarm through us, the secret of a private one included."""
        return JoinCode(tuple(self.addresses), self.name, self.parameters_hash, self._secret)

    @property
    def addresses(self) -> list[str]:
        """Multiaddrs of this node, each with /p2p/ and its id: what others join through."""
        return [f"{address}/p2p/{self.peer_id}" for address in self._own_addresses()]

    @property
    def num_relays(self) -> int:
        """Count the relays over which members that cannot dial us reach us."""
        return len(self._circuits.addresses)

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._enter(stack)
            self._entered = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._entered is not None
        self._leaving = True
        await self._entered.aclose()

    async def _enter(self, stack: contextlib.AsyncExitStack) -> None:
        stack.enter_context(self._identity.lock())
        with self._identity.key_file() as key_file:
            self._daemon = await Daemon.launch(self._daemon_options(), key_file)
        stack.push_async_callback(self._daemon.stop)
        stack.callback(self._mark_leaving)
        self._control = Control(self._daemon.socket, self._daemon.own_socket)
        stack.push_async_callback(self._control.close)
        await self._control.open()
        await self._refresh_addresses()
        # What stands at a node that only relays reach costs every reader a circuit.
        client_mode = self._client_mode or (self._wants_relays and self._is_on_loopback)
        self._membership = Membership(
            self._control,
            membership_key(self.name, self._secret),
            self.peer_id,
            answers_dht=not client_mode,
            addresses=self._own_addresses,
        )
        stack.push_async_callback(self._membership.stop)
        self._circuits = Circuits(self._membership, self._control, self.peer_id, self._door)
        stack.push_async_callback(self._circuits.stop)
        protocol = await AdmittedProtocol.launch(
            self._control,
            validator=self.validator,
            is_admitted=self._membership.is_admitted,
            ensure=self._membership.ensure,
            forget=self._membership.forget,
            named=self._membership.book.named,
            client_mode=client_mode,
        )
        stack.push_async_callback(protocol.shutdown)
        self._overlay = Overlay(protocol)
        self._charter.limit(protocol.storage)
        await self._membership.start()
        await self._circuits.start()
        self._speed = Speed(self._membership)
        await self._speed.start()
        if self._carry:
            await Relay(self._membership, self._control.seen_at).start()
        await self._join_through()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_PARAMETERS_S):
                await self._charter.read(self._overlay)
        await self._reserve_relays()
        watch = asyncio.get_running_loop().create_task(self._watch())
        stack.push_async_callback(_cancelled, watch)
        if not client_mode:
            self._keeper = Keeper(self._overlay, lambda: self.validator.rules, is_regional, random.SystemRandom())
            stack.push_async_callback(_cancelled, asyncio.get_running_loop().create_task(self._keeper.run()))

    def _mark_leaving(self) -> None:
        self._leaving = True

    def _daemon_options(self) -> DaemonOptions:
        return DaemonOptions(listen=self._listen, announce=self._announce, reach_out=not self._is_on_loopback)

    @property
    def _is_on_loopback(self) -> bool:
        return all(_is_loopback(address) for address in self._listen)

    @property
    def _wants_relays(self) -> bool:
        """Say whether others may need one: not where all is one machine, nor where the user said how we are reached."""
        return bool(self._bootstraps()) and not (self._client_mode or self._carry or self._announce)

    def _bootstraps(self) -> dict[str, str]:
        """Give the transport of each peer through which we join and that other machines reach, the most public one."""
        ways = [way for way in self._join if way[1] != self.peer_id and not _is_loopback(way[0])]
        return {peer: transport for transport, peer in sorted(ways, key=lambda way: _is_public(way[0]))}

    async def _refresh_addresses(self) -> None:
        _, self._found_addresses = await self._control.identify()

    def _own_addresses(self) -> list[str]:
        found, circuits = self._found_addresses, self._circuits.addresses
        direct = [address for address in found if not _is_loopback(address)] or found
        return [*direct[: MAX_ADDRESSES - len(circuits)], *circuits]

    def _door(self) -> str:
        """Give an address at which this machine reaches our p2pd."""
        return next(iter([*filter(_is_loopback, self._found_addresses), *self._found_addresses, ""]))

    async def _reserve_relays(self) -> None:
        """Ask the bootstraps that do not carry to us, as soon as that is so; less often what has been asked in vain."""
        if not self._wants_relays:
            return
        for peer, transport in list(self._bootstraps().items())[:MAX_RELAYS]:
            due = time.monotonic() >= self._relays_due.get(peer, 0.0)
            if due and not self._circuits.has_reserved(peer) and self._membership.is_admitted(peer):
                await self._reserve_relay(peer, transport)

    async def _reserve_relay(self, peer: str, transport: str) -> None:
        verdict, again_s = None, RESERVE_S
        with contextlib.suppress(DhtError, TimeoutError, OSError, EOFError):
            async with asyncio.timeout(RESERVE_S):
                verdict = await self._circuits.reserve(transport, peer, self._own_addresses())
        if verdict is not None:
            again_s = 0.0 if verdict == Verdict.DONE else REFRESH_S
        self._relays_due[peer] = time.monotonic() + again_s

    # -- joining -----------------------------------------------------------------------------------------------------

    async def _join_through(self) -> None:
        """Become a member through the first bootstrap that answers; the others are met by the watch."""
        for transport, peer in self._join:
            self._membership.learn(peer, [*self._membership.book.addresses(peer), transport])
        peers = {peer for _, peer in self._join if peer != self.peer_id}
        if not peers:
            return
        admitted = await self._admitted_by(peers)
        skew_s = min((self._membership.skew_s(peer) for peer in admitted), key=abs)
        if abs(skew_s) > MAX_CLOCK_SKEW_S:
            raise ClockSkew(
                f"this machine's clock is {abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} the swarm's: "
                "set it, or let NTP do so"
            )
        if self._client_mode:
            # What it looks for is not near its own id: others it meets as it looks.
            await self._overlay.meet(admitted)
        else:
            await self._overlay.join(admitted)

    async def _admitted_by(self, peers: Set[str]) -> list[str]:
        """Be let in by one of several peers; those that are too busy to answer are asked again for a while.

        Raises:
            DhtError: Why nobody lets us in.
        """
        began_s = time.monotonic()
        until_s = began_s + JOIN_S
        while True:
            try:
                return await self._greet(peers)
            except IdentityInUse:
                if time.monotonic() >= began_s + TWIN_S:
                    raise
            except PeerUnreachable:
                is_late = time.monotonic() >= until_s
                if is_late or await first_listening([transport for transport, _ in self._join]) is None:
                    raise
            await asyncio.sleep(WATCH_S)

    async def _greet(self, peers: Set[str]) -> list[str]:
        """Say hello to several peers at once; return those that have let us in when the first one has."""
        attempts = {asyncio.get_running_loop().create_task(self._membership.ensure(peer)): peer for peer in peers}
        waiting, admitted = set(attempts), list[str]()
        try:
            while waiting and not admitted:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                admitted = [attempts[task] for task in done if task.exception() is None]
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if not admitted:
            raise _why_not_joined([task.exception() for task in attempts])
        return admitted

    async def _watch(self) -> None:
        """Meet the peers through which we joined again whenever they are gone, and keep our neighbourhood fresh."""
        bootstraps = {peer: transport for transport, peer in self._join if peer != self.peer_id}
        refreshed = time.monotonic()
        missed: dict[str, tuple[float, float]] = {}  # when to try again, monotonic seconds, and after how many seconds
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                connected = await self._control.connected_peers()
                for peer, transport in bootstraps.items():
                    if peer in connected and self._overlay.knows(peer):
                        missed.pop(peer, None)
                    elif time.monotonic() >= missed.get(peer, (0.0, 0.0))[0]:
                        await self._meet_again(peer, transport)
                        pause_s = min(MAX_MISSED_S, 2 * missed.get(peer, (0.0, WATCH_S / 2))[1])
                        missed[peer] = time.monotonic() + pause_s, pause_s
                await self._charter.read(self._overlay)
                await self._reserve_relays()
                if time.monotonic() - refreshed > REFRESH_S:
                    refreshed = time.monotonic()
                    await self._refresh_addresses()
                    await self._circuits.prefer_direct()
                    await self._overlay.join(self._membership.members()[-3:])
            except DaemonDied:
                return
            except (DhtError, TimeoutError, OSError) as error:
                logger.debug("watching the swarm: %s", error)

    async def _meet_again(self, peer: str, transport: str) -> None:
        self._membership.learn(peer, [transport])
        with contextlib.suppress(PeerUnreachable, NotAdmitted):
            await self._membership.ensure(peer)
            await self._overlay.join([peer])

    # -- records -----------------------------------------------------------------------------------------------------

    async def store(self, signed: SignedRecord) -> bool:
        """Publish a record at the members nearest to its key.

        Returns:
            True when at least one member holds it; False when a newer one stands there or it breaks the rules.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        if type(signed.record).IS_REGIONAL:
            return (await self.store_many([signed]))[0] > 0
        return await self._overlay.publish(signed.key, signed.subkey, signed.envelope, signed.expires_s) > 0

    async def store_many(self, records: Sequence[SignedRecord]) -> list[int]:
        """Publish records of regional kinds at all members of their regions, in few calls.

        Returns:
            For each how many members hold it now; 0 when a newer one stands there or it breaks the rules.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        placed = [Placed(signed.key, signed.subkey, signed.envelope, signed.expires_s) for signed in records]
        return await self._overlay.publish_many(placed)

    async def fetch(self, kind: int, key_parts: Sequence[KeyPart]) -> list[Record]:
        """Read the newest record of each subkey under a key, from all members that should hold some.

        Args:
            kind: Number of the kind.
            key_parts: Parts of the key, as the kind defines them.

        Returns:
            Records of that kind, signatures checked, none expired, tombstones included; in no particular order.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        records = [signed.record for signed in await self.read(kind, key_parts)]
        for record in records:
            if isinstance(record, Announcement):
                self._membership.learn(record.owner, record.addresses, own_word=True)
        return records

    async def read(
        self, kind: int, key_parts: Sequence[KeyPart], *, forestall: Forestall | None = None
    ) -> list[SignedRecord]:
        """Read as ``fetch`` does, and keep what was signed.

        Args:
            kind: Number of the kind.
            key_parts: Parts of the key, as the kind defines them.
            forestall: Checks signatures elsewhere where many come at once; those that it finds good must be
                remembered by our validator.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        key, is_regional = key_bytes(kind, tuple(key_parts)), REGISTRY[kind].IS_REGIONAL
        return await self._of_kind(kind, await self._overlay.collect(key, is_regional=is_regional, forestall=forestall))

    async def read_many(
        self, kind: int, keys: Sequence[Sequence[KeyPart]], *, forestall: Forestall | None = None
    ) -> AsyncIterator[list[SignedRecord]]:
        """Read under many keys of a regional kind at once, which takes far fewer calls than one after the other.

        Args:
            kind: Number of the kind.
            keys: Parts of each key.
            forestall: As for ``read``.

        Yields:
            What stands under one key, as ``read`` gives it, for every key, in no particular order.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        packed = [key_bytes(kind, tuple(parts)) for parts in keys]
        async for envelopes in self._overlay.collect_many(packed, forestall=forestall):
            yield await self._of_kind(kind, envelopes)

    async def _of_kind(self, kind: int, envelopes: Iterable[bytes]) -> list[SignedRecord]:
        found = []
        for number, envelope in enumerate(envelopes):
            if number % DECODED_AT_ONCE == DECODED_AT_ONCE - 1:
                await asyncio.sleep(0)
            try:
                _, placed = parse_envelope(envelope, self.validator.rules)
            except BadRecord:
                continue
            if int(kind) == placed.record.KIND and placed.expires_s > time.time():
                found.append(placed)
        return found

    def on_contradiction(self, contradicted: Callable[[bytes, bytes], None]) -> None:
        """Name who is told of two signed envelopes that claim one place and time, stored here or read elsewhere."""
        self._overlay.on_contradiction(contradicted)

    # -- streams -----------------------------------------------------------------------------------------------------

    async def dial(
        self, peer_id: str, protocol: str, *, addresses: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Stream:
        """Open a raw stream to a peer's handler, admission included.

        Args:
            peer_id: Whom to call.
            protocol: Name of its handler.
            addresses: Where it may be, when the caller knows.
            timeout_s: Seconds until it counts as unreachable.

        Raises:
            PeerUnreachable: It does not answer in time, or has no such handler.
            NotAdmitted: It is not of this swarm.
            DaemonDied: Our own p2pd has ended.
        """
        if addresses:
            self._membership.learn(peer_id, addresses)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._membership.dial(peer_id, protocol)
        except TimeoutError:
            raise PeerUnreachable(f"peer {peer_id} does not answer within {timeout_s:g} s") from None

    async def serve(self, protocol: str, handler: Callable[[Stream], Coroutine[Any, Any, None]]) -> None:
        """Call ``handler`` for every stream that a member opens; the stream is closed when it returns or raises."""
        await self._membership.serve(protocol, handler)

    async def ping(self, peer_id: str) -> float:
        """Measure one round trip to a member over an open stream, in seconds.

        Raises:
            PeerUnreachable: No answer within 5 s.
            NotAdmitted: It is not of this swarm.
        """
        stream = await self.dial(peer_id, PEERS_PROTOCOL)
        try:
            async with asyncio.timeout(5.0):
                started = time.perf_counter()
                await write_message(stream.writer, _EMPTY_QUESTION)
                await read_message(stream.reader, len(_EMPTY_QUESTION))
                return time.perf_counter() - started
        except (TimeoutError, EOFError, ConnectionError):
            raise PeerUnreachable(f"peer {peer_id} does not answer") from None
        finally:
            await stream.close()

    async def measure_speed(self, peer_id: str) -> float:
        """Measure how fast bytes travel to a member and back, the slower of both ways, in bytes per second.

        Takes up to some seconds, and 1.3 MiB each way.

        Raises:
            PeerUnreachable: It does not answer in time, or measures with somebody else.
            NotAdmitted: It is not of this swarm.
        """
        return await self._speed.measure(peer_id)

    def members(self) -> list[str]:
        """List the peers that are members with us, ourselves not among them."""
        return self._membership.members()

    async def wait_closed(self) -> None:
        """Wait until p2pd ends: return when we are leaving.

        Raises:
            DaemonDied: It ended by itself.
        """
        last_line = await self._daemon.wait()
        if not self._leaving:
            raise DaemonDied(f"the p2pd process of this node has ended ({last_line}): start the node again")


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _is_loopback(address: str) -> bool:
    return address.startswith(("/ip4/127.", "/ip6/::1/", "/unix/"))


def _is_public(address: str) -> bool:
    endpoint = tcp_endpoint(address)
    try:
        return endpoint is None or ipaddress.ip_address(endpoint[0]).is_global
    except ValueError:
        return True  # a name


def _why_not_joined(errors: Sequence[BaseException | None]) -> DhtError:
    """Choose what to say when no bootstrap let us in: what the user can mend first."""
    for family in (IdentityInUse, NotAdmitted, DaemonDied):
        for error in errors:
            if isinstance(error, family):
                return error
    return PeerUnreachable(
        "no peer of the swarm answers: " + "; ".join(str(error) for error in errors if error is not None)
    )
