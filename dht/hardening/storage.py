"""Keep records by key and subkey until they expire, within a quota per key.

In place of ``DHTLocalStorage``, whose stock behaviour this mends (TRUST 3.5):
- A: a refused older record still replaces the heap entry, and the stored record is dropped at the older expiry;
- B: a plain value wipes a key's dictionary: here there are no plain values;
- C: every store grows the heap by an entry: here a record that is not newer changes nothing, and what newer ones leave
  behind is swept out;
- E: one key takes any number of subkeys: here their number and bytes are bounded, and so are all keys' together;
- subkeys of mixed types with equal expiry raise in the heap's comparison: here subkeys are bytes.

Two members that hold the same under a key find so by a digest of 32 bytes.
This file does not know what a record means; the validator has seen every record before. It runs on the event loop.
"""

import hashlib
import heapq
import struct
import time
from collections.abc import Iterable

from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils.timed_storage import TimedStorage

MAX_SUBKEYS = 4096
"""Most records under one key, whatever a swarm's parameters say."""

MAX_KEY_BYTES = 2_500_000
"""Most bytes of records under one key; one answer carries a whole key, and p2pd carries 4 MiB."""

MAX_KEYS = 65536
"""Most keys."""

MAX_BYTES = 2**30
"""Most bytes of records under all keys."""

RECOUNT_S = 60.0
"""Seconds between two counts of all bytes; in between, what expires is not noticed."""

PLACES_BYTES = 16
"""Bytes of a digest that tell subkeys and expiries apart; those after them tell values apart as well."""

DIGEST_BYTES = 32

SWEPT_AT = 16
"""Heap entries of replaced records that are let lie in the smallest storage."""


class RecordStorage(DHTLocalStorage):
    """Subkeyed records only; of two records for one place the later expiry stays."""

    def __init__(self) -> None:
        super().__init__()
        self.max_subkeys = MAX_SUBKEYS
        """Most records under one key, as the swarm's parameters say."""
        self._digests: dict[DHTID, tuple[bytes, float]] = {}  # digest, and when the first of its records expires
        self._num_bytes = 0  # an upper bound of what stands here
        self._counted_s = time.monotonic()

    def store(self, key: DHTID, value: object, expiration_time: float, subkey: object = None) -> bool:
        """Store a record under ``subkey``; a value without one is refused."""
        if not isinstance(subkey, bytes) or not isinstance(value, bytes):
            return False
        return self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: bytes, value: bytes, expiration_time: float) -> bool:
        """Store a record; False when a newer one stands there, the key is full, or it has expired.

        A repeated store of the record that stands there changes nothing and gives True.
        """
        current = self.get(key)
        records = current.value if current is not None else DictionaryDHTValue()
        standing = records.get(subkey)
        if standing is not None and standing.expiration_time >= expiration_time:
            return bool(standing.value == value and standing.expiration_time == expiration_time)
        if standing is None and not (self.can_add(key, records, len(value)) and self._has_room(len(value))):
            return False
        if not records.store(subkey, value, expiration_time):
            return False
        _sweep(records)
        self._num_bytes += len(value)
        self._digests.pop(key, None)
        if current is None or records.latest_expiration_time > current.expiration_time:
            super(DHTLocalStorage, self).store(key, records, records.latest_expiration_time)
            _sweep(self)
        return True

    def can_add(self, key: DHTID, records: DictionaryDHTValue, num_bytes: int) -> bool:
        """Say whether another record of ``num_bytes`` fits under ``key``."""
        if len(records) == 0:
            return len(self) < MAX_KEYS
        if len(records) >= min(self.max_subkeys, MAX_SUBKEYS):
            return False
        # Counting bytes walks the key, so it is done only where the quota could be near.
        if (len(records) + 1) * 4096 <= MAX_KEY_BYTES:
            return True
        return sum(len(value) for _, (value, _) in records.items()) + num_bytes <= MAX_KEY_BYTES

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
            self._forget_digests()
        return digest

    def _forget_digests(self) -> None:
        self._digests = {key: self._digests[key] for key in self._digests.keys() & self.data.keys()}

    def _has_room(self, num_bytes: int) -> bool:
        if self._num_bytes + num_bytes <= MAX_BYTES:
            return True
        if time.monotonic() - self._counted_s < RECOUNT_S:
            return False
        self._counted_s = time.monotonic()
        self._num_bytes = sum(len(value) for key in list(self.data) for _, value, _ in self.records(key))
        self._forget_digests()
        return self._num_bytes + num_bytes <= MAX_BYTES


def _sweep(storage: TimedStorage) -> None:
    """Drop the heap entries of records that newer ones have replaced, once they are as many as the others."""
    if len(storage.expiration_heap) > 2 * len(storage.key_to_heap) + SWEPT_AT:
        storage.expiration_heap = list(storage.key_to_heap.values())
        heapq.heapify(storage.expiration_heap)


def digest_of(records: Iterable[tuple[bytes, bytes, float]]) -> bytes:
    """Hash subkeys, values and expiries, in whatever order they come: 32 bytes, or none where there is nothing."""
    places, values = hashlib.sha256(), hashlib.sha256()
    for subkey, value, expires_s in (ordered := sorted(records)):
        places.update(struct.pack(">Id", len(subkey), expires_s))
        places.update(subkey)
        values.update(hashlib.sha256(value).digest())
    return places.digest()[:PLACES_BYTES] + values.digest()[: DIGEST_BYTES - PLACES_BYTES] if ordered else b""
