"""Count which member sent what stands in a storage, and say what the one who has most gives up first.

Members share three things: a node's keys, its bytes, and the places and bytes of one key. Each is given to whoever asks
while there is some; then whoever has most gives way to whoever has less, so that a flood takes room from itself alone.
And of what one member sends, what is worth more has its place before what is worth less.
- A key is counted for one member that has something there: who began it, while it has.
- Of what a member has, what it keeps for others goes before what names itself, and proofs go last; then keys far from
  our own id go before near ones, and in one key what expires soon before what expires late.

This file does not know the records, nor how much room there is. Pure; it runs on the event loop.
"""

from collections.abc import Collection
from enum import IntEnum
from typing import NamedTuple

from hivemind.dht.routing import DHTID

from dht.hardening.shares import Place, Rank, Shares

MAX_PASSED_ON = 64
"""Keys that are counted for others than before while one is looked for that can be dropped."""


class Worth(IntEnum):
    """Which of a member's records go last where it has to make room."""

    KEPT = 0  # of others, whose holder it is
    OWN = 1  # names the member that sent it
    LASTING = 2  # a proof, which nobody may make again


class Sent(NamedTuple):
    """What is counted of one record."""

    sender: bytes
    charge: int  # bytes as counted
    expires_s: float  # unix seconds


class Key:
    """Who sent what stands under one key."""

    __slots__ = ("bytes", "holder", "num_bytes", "places", "sent")

    def __init__(self, holder: bytes) -> None:
        self.holder = holder  # for whom it is counted
        self.num_bytes = 0
        self.sent: dict[bytes, Sent] = {}  # by subkey
        self.places: Shares[bytes] | None = None  # who has how many of its places, once that was asked for,
        self.bytes: Shares[bytes] | None = None  # and how many of its bytes


class Tenants:
    """Which member has how much of a storage."""

    def __init__(self, own_id: DHTID) -> None:
        self.num_bytes = 0  # of all keys
        self._own_id = own_id
        self._under: dict[DHTID, Key] = {}
        self._keys: Shares[DHTID] = Shares()
        self._parts: Shares[DHTID] = Shares()  # in bytes: what a member has under one key

    def under(self, key: DHTID) -> Key | None:
        """Give what is counted under a key."""
        return self._under.get(key)

    def sender(self, key: DHTID, subkey: bytes) -> bytes:
        """Name who sent a record that is counted."""
        return self._under[key].sent[subkey].sender

    # -- counting ----------------------------------------------------------------------------------------------------

    def count(self, key: DHTID, subkey: bytes, sent: Sent, worth: Worth) -> None:
        """Count a record, in place of the one that was counted there."""
        under = self._under.get(key)
        rank = int(worth), -int(self._own_id.xor_distance(key))
        if under is None:
            under = self._under[key] = Key(sent.sender)
            self._keys.add(sent.sender, key, 1, rank)
        standing = under.sent.get(subkey)
        self._add(key, under, subkey, sent, rank)
        if standing is not None:
            self._take(key, under, subkey, standing)
        self._settle(key, under)

    def uncount(self, key: DHTID, subkey: bytes) -> None:
        """Forget a record, and with the last one its key."""
        under = self._under[key]
        self._take(key, under, subkey, under.sent.pop(subkey))
        self._settle(key, under)

    def drop(self, key: DHTID) -> None:
        """Forget a key."""
        under = self._under.pop(key)
        for sender in {sent.sender for sent in under.sent.values()}:
            self._parts.take(sender, key, self._parts.weight_at(sender, key))
        self._keys.take(under.holder, key, 1)
        self.num_bytes -= under.num_bytes

    def _add(self, key: DHTID, under: Key, subkey: bytes, sent: Sent, rank: Rank) -> None:
        under.sent[subkey] = sent
        under.num_bytes += sent.charge
        self.num_bytes += sent.charge
        self._parts.add(sent.sender, key, sent.charge, rank)
        if under.places is not None and under.bytes is not None:
            _add_within(under.places, under.bytes, subkey, sent, rank)

    def _take(self, key: DHTID, under: Key, subkey: bytes, sent: Sent) -> None:
        under.num_bytes -= sent.charge
        self.num_bytes -= sent.charge
        self._parts.take(sent.sender, key, sent.charge)
        if under.places is not None and under.bytes is not None:
            under.places.take(sent.sender, subkey, 1)
            under.bytes.take(sent.sender, subkey, sent.charge)

    def _settle(self, key: DHTID, under: Key) -> None:
        """Count a key for someone who has something there, as long as anyone has."""
        if not under.sent:
            self.drop(key)
        elif not self._parts.weight_at(under.holder, key):
            self._pass_on(key, under, next(iter(under.sent.values())).sender)
        else:
            self._keys.add(under.holder, key, 0, self._parts.rank_at(under.holder, key))

    def _pass_on(self, key: DHTID, under: Key, heir: bytes) -> None:
        self._keys.take(under.holder, key, 1)
        under.holder = heir
        self._keys.add(heir, key, 1, self._parts.rank_at(heir, key))

    # -- what goes first ---------------------------------------------------------------------------------------------

    def can_free_key(self, sender: bytes, worth: Worth) -> bool:
        """Say whether anybody has to give up a key so that ``sender`` can begin one."""
        return _giver(self._keys, sender, 1, worth) is not None

    def can_free_bytes(self, sender: bytes, num_bytes: int, worth: Worth) -> bool:
        """Say whether anybody has to give up bytes so that ``sender`` gets some."""
        return _giver(self._parts, sender, num_bytes, worth) is not None

    def can_free_place_in(self, key: DHTID, sender: bytes, worth: Worth) -> bool:
        """Say whether anybody has to give up a place under a key so that ``sender`` gets one."""
        return _giver(self._within(key)[0], sender, 1, worth) is not None

    def can_free_bytes_in(self, key: DHTID, sender: bytes, num_bytes: int, worth: Worth) -> bool:
        """Say whether anybody has to give up bytes under a key so that ``sender`` gets some."""
        return _giver(self._within(key)[1], sender, num_bytes, worth) is not None

    def key_to_free(self, sender: bytes, worth: Worth) -> DHTID | None:
        """Name a key that goes so that ``sender`` can begin one; None where nobody has to make room for it.

        A key in which somebody with fewer keys has something too is counted for that one instead, and stays.
        """
        for _ in range(MAX_PASSED_ON):
            giver = _giver(self._keys, sender, 1, worth)
            if giver is None:
                return None
            key = self._keys.first(giver)
            under = self._under[key]
            others = {sent.sender for sent in under.sent.values()} - {giver}
            heir = min(others, key=self._keys.weight, default=giver)
            if self._keys.weight(heir) + 1 >= self._keys.weight(giver):
                return key
            self._pass_on(key, under, heir)
        return None

    def part_to_free(self, sender: bytes, num_bytes: int, worth: Worth) -> tuple[DHTID, Collection[bytes]]:
        """Name a key and those of its records that go so that ``sender`` gets bytes."""
        giver = _giver(self._parts, sender, num_bytes, worth)
        giver = self._parts.heaviest() if giver is None else giver  # None: the heaviest has given some already
        assert giver is not None
        key = self._parts.first(giver)
        return key, [subkey for subkey, sent in self._under[key].sent.items() if sent.sender == giver]

    def place_to_free(self, key: DHTID, sender: bytes, worth: Worth) -> bytes:
        """Name the record that goes so that ``sender`` gets its place."""
        return _first(self._within(key)[0], sender, 1, worth)

    def bytes_to_free(self, key: DHTID, sender: bytes, num_bytes: int, worth: Worth) -> bytes:
        """Name a record that goes so that ``sender`` gets bytes under a key."""
        return _first(self._within(key)[1], sender, num_bytes, worth)

    def _within(self, key: DHTID) -> tuple[Shares[bytes], Shares[bytes]]:
        """Give who has how many places and bytes of a key; counted along from the first time that this is asked."""
        under = self._under[key]
        if under.places is None or under.bytes is None:
            under.places, under.bytes = Shares(), Shares()
            for subkey, sent in under.sent.items():
                _add_within(under.places, under.bytes, subkey, sent, self._parts.rank_at(sent.sender, key))
        return under.places, under.bytes


def _add_within(places: Shares[bytes], num_bytes: Shares[bytes], subkey: bytes, sent: Sent, rank: Rank) -> None:
    places.add(sent.sender, subkey, 1, (rank[0], sent.expires_s))
    num_bytes.add(sent.sender, subkey, sent.charge, (rank[0], sent.expires_s))


def _giver(shares: Shares[Place], sender: bytes, weight: int, worth: Worth) -> bytes | None:
    """Say who gives way to ``sender``: who has most, or itself where it keeps what is worth less; None: nobody."""
    if shares.gap(sender) >= 2 * weight:
        return shares.heaviest()
    if not shares.weight(sender):
        return None
    first = shares.first(sender)
    gives = shares.rank_at(sender, first)[0] < worth and shares.weight_at(sender, first) >= weight
    return sender if gives else None


def _first(shares: Shares[Place], sender: bytes, weight: int, worth: Worth) -> Place:
    giver = _giver(shares, sender, weight, worth)
    heaviest = shares.heaviest() if giver is None else giver  # None: the heaviest has given some already
    assert heaviest is not None
    return shares.first(heaviest)
