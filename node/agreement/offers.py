"""OFFER and ACCEPT: what a consumer asks of a provider in a session, signed by both before anything is counted.

The offer rides in ``open``, the provider's signature in ``accept``. It names a lane: the slot in which receipts of one
consumer at one provider replace each other. A lane is for one manifest, span and profile, and one session at a time. A
consumer draws lanes at random and takes one again only when the session before it there has ended with everything
signed; a lane that was in use when a process was killed is forgotten, so nobody signs twice for the same place.
Pure: randomness and time are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from random import Random
from typing import ClassVar, Self, TypeAlias

from dht.codec import Fields, decode, encode
from dht.domains import Domain
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.records import MAX_BLOCKS, MAX_TIME_S, take_peer_id
from dht.rules import MAX_SKEW_S
from dht.work import MAX_COUNT, MAX_LANE, Receipt, WorkKind
from node.errors import Refused

Sign: TypeAlias = Callable[[int, bytes], bytes]
"""``Identity.sign``."""
Verify: TypeAlias = Callable[[bytes, int, bytes, bytes], bool]
"""``dht.identity.verify``."""
Terms: TypeAlias = tuple[bytes, int, int, bytes]
"""Manifest, first block, one past the last block, profile."""

MAX_LANES = 256
"""Lanes of one consumer that a provider counts in, in one epoch."""
MAX_LANES_IN_ALL = 2**16
"""Lanes of all consumers that a provider remembers, about a kilobyte each."""


def profile_digest(weights: str, codec: str, adapter: str = "") -> bytes:
    """Return the digest of how a span is held and its hidden states are sent, 32 bytes.

    Args:
        weights: what the weights are held in, as the server announces it (``dtype``).
        codec: of the session's hidden states.
        adapter: name of the adapter that is applied; empty: none.
    """
    return sha256(encode(["efedllm/profile/1", weights, codec, adapter])).digest()


def padding_digest(left_padding: Sequence[int]) -> bytes:
    """Return the digest of how many positions at the start of each row are no text, 32 bytes.

    Args:
        left_padding: one count per row, as the session is opened; empty, or all zeros: there are none.
    """
    return sha256(encode(["efedllm/padding/1", pack_padding(left_padding)])).digest()


def pack_padding(left_padding: Sequence[int]) -> bytes:
    """Write counts of padding, as evidence has them: four bytes, big endian, for each row; none where all are zero."""
    return b"".join(count.to_bytes(4, "big") for count in left_padding) if any(left_padding) else b""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a consumer asks for; signed by it as ``Domain.OFFER``."""

    MAX_BYTES: ClassVar[int] = 256

    session: bytes  # id of the session, 16 bytes
    consumer: str  # peer id of the client
    provider: str  # peer id of the stage
    manifest: bytes  # identity of the model, 32 bytes
    start: int  # first block
    end: int  # one past the last block
    profile: bytes  # ``profile_digest``, 32 bytes
    padding: bytes  # ``padding_digest``, 32 bytes: without it nobody could run the session again
    lane: int  # in which the session's work is counted
    max_tokens: int  # rows times positions that the session may reach
    t: int  # when it was signed, unix seconds

    @property
    def terms(self) -> Terms:
        """What a lane is for."""
        return (self.manifest, self.start, self.end, self.profile)

    def to_body(self) -> bytes:
        """Encode canonically."""
        consumer, provider = peer_id_to_bytes(self.consumer), peer_id_to_bytes(self.provider)
        return encode([self.session, consumer, provider, *self.terms, self.padding, self.lane, self.max_tokens, self.t])

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        offer = cls(
            session=fields.blob("session", 16),
            consumer=take_peer_id(fields, "consumer"),
            provider=take_peer_id(fields, "provider"),
            manifest=fields.blob("manifest", 32),
            start=fields.uint("start", MAX_BLOCKS),
            end=fields.uint("end", MAX_BLOCKS),
            profile=fields.blob("profile", 32),
            padding=fields.blob("padding", 32),
            lane=fields.uint("lane", MAX_LANE),
            max_tokens=fields.uint("max_tokens", MAX_COUNT),
            t=fields.uint("t", MAX_TIME_S),
        )
        fields.end()
        if offer.start >= offer.end or offer.consumer == offer.provider:
            raise BadRecord("an offer is for some blocks of another peer")
        return offer


def accept(offer_body: bytes, sign: Sign) -> bytes:
    """Return a provider's signature over an offer that it takes."""
    return sign(Domain.ACCEPT, sha256(offer_body).digest())


def is_accepted(offer: Offer, signature: bytes, verify: Verify) -> bool:
    """Say whether the provider of an offer has signed that it takes it."""
    digest = sha256(offer.to_body()).digest()
    return verify(peer_id_to_bytes(offer.provider), Domain.ACCEPT, digest, signature)


def read_offer(body: bytes, signature: bytes, wanted: Offer, verify: Verify, now_s: float) -> Offer:
    """Return the offer in ``body`` if it is the one that its session needs.

    Args:
        body: as it came.
        signature: of the consumer.
        wanted: what the session says of itself; its lane and time do not count.
        verify: checks the signature.
        now_s: unix time, s.

    Raises:
        Refused: it is malformed, not signed, for something else, or from another time.
    """
    try:
        offer = Offer.from_body(body)
    except BadRecord as error:
        raise Refused(
            "bad_offer", f"The offer cannot be read: {error}; send the one that the protocol describes."
        ) from error
    if replace(offer, lane=wanted.lane, t=wanted.t) != wanted:
        raise Refused("bad_offer", "The offer is for something else than the session; make it from what you open.")
    if abs(offer.t - now_s) > MAX_SKEW_S:
        off = f"{abs(offer.t - now_s):.0f} s {'ahead of' if offer.t > now_s else 'behind'}"
        raise Refused("clock", f"Your clock is {off} mine, and {MAX_SKEW_S} s is the most; set it and try again.")
    if not verify(peer_id_to_bytes(offer.consumer), Domain.OFFER, body, signature):
        raise Refused("bad_offer", "The offer is not signed by who opens the session; sign it with your peer's key.")
    return offer


@dataclass(slots=True)
class Tally:
    """What a provider has counted in one slot."""

    t_first: int
    t_last: int
    sessions: int = 0
    amount: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seq: int = 0
    """Of the last receipt that was signed here."""


@dataclass(slots=True)
class Lane:
    """A lane as its provider keeps it: counters that go on from session to session."""

    offer: Offer
    """The last one; its terms are the lane's."""
    epoch: int
    """When it was last opened."""
    is_open: bool = True
    is_spent: bool = False
    """Whether a session has ended here with something unsigned: no other may count in it."""
    tallies: dict[tuple[int, WorkKind], Tally] = field(default_factory=dict)
    """By epoch and kind of work."""

    @property
    def last_epoch(self) -> int:
        """The last one in which it was opened or counted in."""
        return max([self.epoch, *(counted for counted, _ in self.tallies)])


class LaneBook:
    """The lanes that consumers have opened at one provider."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, int], Lane] = {}
        """The one that was opened longest ago first."""
        self._of: dict[str, dict[int, Lane]] = {}
        """The same by consumer."""
        self._since = 0
        """Lanes of earlier epochs have been dropped."""

    def __len__(self) -> int:
        return len(self._lanes)

    def open(self, offer: Offer, epoch: int, *, was_used: bool = False) -> Lane:
        """Return the lane that an offer names.

        Args:
            offer: signatures checked.
            epoch: of now.
            was_used: whether the ledger knows the lane in this epoch.

        Raises:
            Refused: the lane is open, is for something else, or belongs to a time that is forgotten here.
        """
        key = (offer.consumer, offer.lane)
        lane = self._lanes.get(key)
        if lane is None:
            if was_used:
                raise _no_lane("has been used in this epoch")
            self._make_room(offer.consumer, epoch)
            lane = self._lanes[key] = self._of.setdefault(offer.consumer, {})[offer.lane] = Lane(offer, epoch)
            return lane
        if lane.is_open:
            raise _no_lane("is open in another session")
        if lane.is_spent or lane.offer.terms != offer.terms:
            raise _no_lane("has ended with something unsigned" if lane.is_spent else "is for other blocks or weights")
        lane.offer, lane.epoch, lane.is_open = offer, max(lane.epoch, epoch), True  # Clocks are set back.
        self._lanes[key] = self._lanes.pop(key)
        of_consumer = self._of[offer.consumer]
        of_consumer[offer.lane] = of_consumer.pop(offer.lane)
        return lane

    def close(self, lane: Lane, *, is_settled: bool) -> None:
        """Note that the session in a lane has ended; ``is_settled``: all that it counted is signed by both."""
        lane.is_open = False
        lane.is_spent = not is_settled
        key = (lane.offer.consumer, lane.offer.lane)
        if is_settled and not lane.tallies and self._lanes.get(key) is lane:
            self._drop(key)

    def forget(self, epoch: int) -> None:
        """Drop lanes that have counted nothing since before ``epoch``: their numbers start anew."""
        if epoch <= self._since:
            return
        self._since = epoch
        for key, lane in list(self._lanes.items()):
            if not lane.is_open and lane.last_epoch < epoch:
                self._drop(key)

    def _make_room(self, consumer: str, epoch: int) -> None:
        """Drop a lane where there are too many, the one used longest ago: what is signed there, the ledger knows.

        Raises:
            Refused: the consumer has counted in too many this epoch; every one is a place on the DHT.
        """
        of_consumer = self._of.get(consumer, {})
        if len(of_consumer) >= MAX_LANES:
            past = (number for number, lane in of_consumer.items() if not lane.is_open and lane.last_epoch < epoch)
            oldest = next(past, None)
            if oldest is None:
                raise _no_lane(f"is one more than the {MAX_LANES} that may be counted in in one epoch")
            self._drop((consumer, oldest))
        if len(self._lanes) >= MAX_LANES_IN_ALL:
            oldest_key = next((key for key, lane in self._lanes.items() if not lane.is_open), None)
            if oldest_key is not None:
                self._drop(oldest_key)

    def _drop(self, key: tuple[str, int]) -> None:
        consumer, number = key
        del self._lanes[key]
        of_consumer = self._of[consumer]
        del of_consumer[number]
        if not of_consumer:
            del self._of[consumer]


@dataclass(slots=True)
class ConsumerLane:
    """A lane as its consumer keeps it: what it has signed there."""

    number: int
    signed: dict[tuple[int, WorkKind], Receipt] = field(default_factory=dict)
    """The newest receipt of each epoch and kind of work."""


class ConsumerLanes:
    """The lanes of one consumer's process.

    Args:
        random: draws their numbers.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._free: dict[tuple[str, Terms], list[ConsumerLane]] = {}

    def take(self, provider: str, terms: Terms) -> ConsumerLane:
        """Return a lane for a session: one that has ended well, or a new one."""
        free = self._free.get((provider, terms))
        return free.pop() if free else ConsumerLane(self._random.getrandbits(32))

    def give_back(self, lane: ConsumerLane, provider: str, terms: Terms) -> None:
        """Note that the session in a lane has ended with everything signed."""
        self._free.setdefault((provider, terms), []).append(lane)

    def free(self) -> Iterator[tuple[str, Terms, ConsumerLane]]:
        """Yield the lanes that may be taken again, with their providers and what they are for."""
        for (provider, terms), lanes in self._free.items():
            for lane in lanes:
                yield provider, terms, lane

    def forget(self, provider: str) -> None:
        """Drop the lanes of a provider that does not know them any more: it has started anew."""
        for key in [key for key in self._free if key[0] == provider]:
            del self._free[key]


def _no_lane(why: str) -> Refused:
    return Refused("lane", f"That lane {why}; draw another number and open the session again.", retryable=True)
