"""Keep records by key and subkey until they expire, within a quota per key.

In place of ``DHTLocalStorage``, whose stock behaviour this mends (TRUST 3.5):
- A: a refused older record still replaces the heap entry, and the stored record is dropped at the older expiry;
- B: a plain value wipes a key's dictionary: here there are no plain values;
- C: every store grows the heap by an entry: here a record that is not newer changes nothing, and what newer ones leave
  behind is swept out;
- E: one key takes any number of subkeys: here their number and bytes are bounded, and so are all keys' together, also
  where longer records replace shorter ones, and in a key that authors share each has only so many;
- subkeys of mixed types with equal expiry raise in the heap's comparison: here subkeys are bytes.

Two members that hold the same under a key find so by a digest of 32 bytes.
This file does not know what a record means; the validator has seen every record before. It runs on the event loop.
"""

import hashlib
import heapq
import random
import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils.timed_storage import TimedStorage

from dht.identity import PEER_ID_BYTES

MAX_SUBKEYS = 4096
"""Most records under one key, whatever a swarm's parameters say."""

MAX_KEY_BYTES = 2_500_000
"""Most bytes of records under one key; one answer carries a whole key, and p2pd carries 4 MiB."""

MIN_CHARGE_BYTES = MAX_KEY_BYTES // MAX_SUBKEYS
"""A shorter record is counted as one of so many bytes: where all places are taken, each can still be renewed."""

CHARGE_STEP_BYTES = 256
"""A longer one as a multiple of so many, so that its owner can renew it with some bytes more though the key is full."""

MAX_KEYS = 65536
"""Most keys."""

MAX_KEYS_OF_ONE = MAX_KEYS // 16
"""Most keys that one member may have begun: those of 70 providers with 56 epochs each, and a region has 64 members."""

MAX_BYTES = 2**30
"""Most bytes of records under all keys, counted as above."""

RECOUNT_S = 60.0
"""Seconds between two counts of all bytes; in between, what expires is not noticed."""

PLACES_BYTES = 16
"""Bytes of a digest that tell subkeys and expiries apart; those after them tell values apart as well."""

DIGEST_BYTES = 32

ANSWER_BYTES = 64
"""What an answer holds beside its records, in bytes."""

RECORD_BYTES = 24
"""What an answer holds of each record beside its subkey and its value, in bytes."""

SWEPT_AT = 16
"""Heap entries of replaced records that are let lie in the smallest storage."""


class RecordStorage(DHTLocalStorage):
    """Subkeyed records only; of two records for one place the later expiry stays."""

    def __init__(self, shares: Mapping[DHTID, int] = MappingProxyType({})) -> None:
        """Start empty.

        Args:
            shares: Of keys that authors share and whose subkeys begin with the author's 38 bytes: most records of one.
        """
        super().__init__()
        self.max_subkeys = MAX_SUBKEYS
        """Most records under one key, as the swarm's parameters say."""
        self._shares = shares
        self._digests: dict[DHTID, tuple[bytes, float]] = {}  # digest, and when the first of its records expires
        self._charges: dict[DHTID, int] = {}  # an upper bound of the bytes that are counted under a key
        self._begun_by: dict[DHTID, bytes] = {}  # which member began a key
        self._num_begun: Counter[bytes] = Counter()  # an upper bound of the keys that each has begun
        self._num_bytes = 0  # an upper bound of what is counted under all keys
        self._counted_s = self._asked_s = time.monotonic()

    def store(self, key: DHTID, value: object, expiration_time: float, subkey: object = None) -> bool:
        """Store a record under ``subkey``; a value without one is refused."""
        if not isinstance(subkey, bytes) or not isinstance(value, bytes):
            return False
        return self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(
        self, key: DHTID, subkey: bytes, value: bytes, expiration_time: float, sender: bytes = b""
    ) -> bool:
        """Store a record; False when a newer one stands there, the key is full, or it has expired.

        A repeated store of the record that stands there changes nothing and gives True. Of keys that ``sender`` begins
        only so many are taken; none: it is our own.
        """
        current = self.get(key)
        records = current.value if current is not None else DictionaryDHTValue()
        standing = records.get(subkey)
        if standing is not None and standing.expiration_time >= expiration_time:
            return bool(standing.value == value and standing.expiration_time == expiration_time)
        if standing is None and not self._has_place(records, key, subkey):
            return False
        if sender and current is None and not self._may_begin(sender):
            return False
        more = _charge(value) - (_charge(standing.value) if standing is not None else 0)
        charged = self._charged(records, key, more)
        if more > 0 and not (charged + more <= MAX_KEY_BYTES and self._has_room(more)):
            return False
        if not records.store(subkey, value, expiration_time):
            return False
        _sweep(records)
        if sender and current is None:
            self._begun_by[key] = sender
            self._num_begun[sender] += 1
        self._num_bytes += more
        self._charges[key] = charged + more
        self._digests.pop(key, None)
        if current is None or records.latest_expiration_time > current.expiration_time:
            super(DHTLocalStorage, self).store(key, records, records.latest_expiration_time)
            _sweep(self)
            if len(self._charges) > 2 * len(self.data) + SWEPT_AT:  # Most are of keys that have expired.
                self._charges = {each: self._charges[each] for each in self._charges.keys() & self.data.keys()}
                self._count_begun()
        return True

    def _has_place(self, records: DictionaryDHTValue, key: DHTID, subkey: bytes) -> bool:
        """Say whether one more record may stand at ``subkey``, whatever its length."""
        if len(records) == 0:
            return len(self) < MAX_KEYS
        if len(records) >= min(self.max_subkeys, MAX_SUBKEYS):
            return False
        share = self._shares.get(key)
        author = subkey[:PEER_ID_BYTES]
        return share is None or sum(each.startswith(author) for each in records.data) < share

    def _may_begin(self, sender: bytes) -> bool:
        """Say whether a member may begin a key; what has expired is noticed where it matters."""
        if self._num_begun[sender] >= MAX_KEYS_OF_ONE and time.monotonic() - self._asked_s >= RECOUNT_S:
            self._asked_s = time.monotonic()
            self._count_begun()
        return self._num_begun[sender] < MAX_KEYS_OF_ONE

    def _count_begun(self) -> None:
        self._begun_by = {key: self._begun_by[key] for key in self._begun_by.keys() & self.data.keys()}
        self._num_begun = Counter(self._begun_by.values())

    def _charged(self, records: DictionaryDHTValue, key: DHTID, more: int) -> int:
        """Say how many bytes are counted under a key: at most, and exactly where it matters."""
        charged = self._charges.get(key, 0) if len(records) else 0
        if charged + more <= MAX_KEY_BYTES:
            return charged
        return sum(_charge(value) for _, (value, _) in records.items())

    def standing(self, key: DHTID, subkey: bytes) -> tuple[bytes, float] | None:
        """Give the value that stands at a place, and when it expires."""
        current = self.get(key)
        found = current.value.get(subkey) if current is not None else None
        return (found.value, found.expiration_time) if found is not None else None

    def records(self, key: DHTID) -> list[tuple[bytes, bytes, float]]:
        """List subkey, value and expiry of what stands under a key."""
        current = self.get(key)
        if current is None:
            return []
        return [(subkey, value, expires_s) for subkey, (value, expires_s) in current.value.items()]

    def digest(self, key: DHTID) -> bytes:
        """Hash what stands under a key, as ``digest_of`` does; no bytes where nothing does."""
        standing = self.get(key)
        if standing is None or not len(standing.value):
            self._digests.pop(key, None)
            return b""
        known = self._digests.get(key)
        if known is not None and time.time() < known[1]:
            return known[0]
        records = self.records(key)
        digest = digest_of(records)
        self._digests[key] = digest, min(expires_s for _, _, expires_s in records)
        if len(self._digests) > 2 * len(self.data) + SWEPT_AT:  # Most are of keys that have expired.
            self._digests = {key: self._digests[key] for key in self._digests.keys() & self.data.keys()}
        return digest

    def _has_room(self, more: int) -> bool:
        if self._num_bytes + more <= MAX_BYTES:
            return True
        if time.monotonic() - self._counted_s < RECOUNT_S:
            return False
        self._counted_s = time.monotonic()
        self._num_bytes = sum(_charge(value) for key in list(self.data) for _, value, _ in self.records(key))
        return self._num_bytes + more <= MAX_BYTES


def _charge(value: bytes) -> int:
    """Say as how many bytes a record is counted."""
    if len(value) <= MIN_CHARGE_BYTES:
        return MIN_CHARGE_BYTES
    return -(-len(value) // CHARGE_STEP_BYTES) * CHARGE_STEP_BYTES


def _sweep(storage: TimedStorage) -> None:
    """Drop the heap entries of records that newer ones have replaced, once they are as many as the others."""
    if len(storage.expiration_heap) > 2 * len(storage.key_to_heap) + SWEPT_AT:
        storage.expiration_heap = list(storage.key_to_heap.values())
        heapq.heapify(storage.expiration_heap)


def some_that_fit(
    records: Sequence[tuple[bytes, bytes, float]], room_bytes: int, draw: random.Random
) -> list[tuple[bytes, bytes, float]]:
    """Choose records that fit into an answer, by chance: nobody can foresee whom an answer leaves out.

    Args:
        records: Subkey, value and expiry of each.
        room_bytes: Length of the answer at most.
        draw: Must not be foreseen by those who store.
    """
    chosen, left = [], room_bytes - ANSWER_BYTES
    for record in draw.sample(records, len(records)):
        num_bytes = len(record[0]) + len(record[1]) + RECORD_BYTES
        if num_bytes <= left:
            left -= num_bytes
            chosen.append(record)
    return chosen


def digest_of(records: Iterable[tuple[bytes, bytes, float]]) -> bytes:
    """Hash subkeys, values and expiries, in whatever order they come: 32 bytes, or none where there is nothing."""
    places, values = hashlib.sha256(), hashlib.sha256()
    for subkey, value, expires_s in (ordered := sorted(records)):
        places.update(struct.pack(">Id", len(subkey), expires_s))
        places.update(subkey)
        values.update(hashlib.sha256(value).digest())
    return places.digest()[:PLACES_BYTES] + values.digest()[: DIGEST_BYTES - PLACES_BYTES] if ordered else b""
