"""Keep records by key and subkey until they expire, within a quota per key.

In place of ``DHTLocalStorage``, whose stock behaviour this mends (TRUST 3.5):
- A: a refused older record still replaces the heap entry, and the stored record is dropped at the older expiry;
- B: a plain value wipes a key's dictionary: here there are no plain values;
- C: every store grows the heap by an entry: here a record that is not newer changes nothing, and what newer ones leave
  behind is swept out;
- E: one key takes any number of subkeys: here their number and bytes are bounded, and so are all keys' together, also
  where longer records replace shorter ones, and in a key that authors share each has only so many;
- F: who comes first fills a node, or a key: here whoever sent most gives way to who sent less, in keys and in bytes;
- subkeys of mixed types with equal expiry raise in the heap's comparison: here subkeys are bytes.

Two members that hold the same under a key find so by a digest of 32 bytes.
This file does not know what a record means; the validator has seen every record before. It runs on the event loop.
"""

import hashlib
import heapq
import random
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils import timed_storage
from hivemind.utils.timed_storage import TimedStorage, ValueWithExpiration

from dht.hardening.tenants import Key, Sent, Tenants, Worth
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

MAX_EXPIRED_AT_ONCE = 256
"""Keys that are dropped at once when they have expired."""

OURSELVES = b""
"""In place of a sender: we stored it ourselves."""

NOWHERE = DHTID(0)
"""An id for a storage that no node has."""


class RecordStorage(DHTLocalStorage):
    """Subkeyed records only; of two records for one place the later expiry stays."""

    def __init__(self, shares: Mapping[DHTID, int] = MappingProxyType({}), own_id: DHTID = NOWHERE) -> None:
        """Start empty.

        Args:
            shares: Of keys that authors share and whose subkeys begin with the author's 38 bytes: most records of one.
            own_id: Our own DHT id; what is far from it goes first.
        """
        super().__init__()
        self.max_subkeys = MAX_SUBKEYS
        """Most records under one key, as the swarm's parameters say."""
        self.num_refused = 0
        """Records for which there was no room."""
        self._author_shares = shares
        self._own_id = own_id
        self._empty()

    def _empty(self) -> None:
        self._tenants = Tenants(self._own_id)
        self._digests: dict[DHTID, tuple[bytes, float]] = {}  # digest, and when the first of its records expires
        self._counted_s = time.monotonic()

    def store(self, key: DHTID, value: object, expiration_time: float, subkey: object = None) -> bool:
        """Store a record under ``subkey``; a value without one is refused."""
        if not isinstance(subkey, bytes) or not isinstance(value, bytes):
            return False
        return self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(
        self,
        key: DHTID,
        subkey: bytes,
        value: bytes,
        expiration_time: float,
        sender: bytes = OURSELVES,
        worth: Worth = Worth.KEPT,
    ) -> bool:
        """Store a record; False when a newer one stands there, there is no room, or it has expired.

        A repeated store of the record that stands there changes nothing and gives True. What replaces another stays
        counted for whoever sent that, unless its author sends it.

        Args:
            key: Of the DHT.
            subkey: Its place under the key.
            value: Its bytes.
            expiration_time: Unix seconds.
            sender: The member that sends it.
            worth: How long it stays where its sender must make room.
        """
        standing = self.standing(key, subkey)
        if standing is not None and standing[1] >= expiration_time:
            return standing == (value, expiration_time)
        if expiration_time < timed_storage.get_dht_time():
            return False
        charge = more = _charge(value)
        room_for = worth
        if standing is not None:
            more -= _charge(standing[0])
            room_for = Worth.KEPT  # or what it replaces might make room for it
            if worth is Worth.OWN:
                self._tenants.count(key, subkey, Sent(sender, charge - more, standing[1]), worth)
            else:
                sender = self._tenants.sender(key, subkey)
        if not self._make_room(key, subkey, more, sender, room_for):
            self.num_refused += 1
            return False
        self._tenants.count(key, subkey, Sent(sender, charge, expiration_time), worth)
        self._put(key, subkey, value, expiration_time)
        return True

    def _put(self, key: DHTID, subkey: bytes, value: bytes, expires_s: float) -> None:
        current = self.data.get(key)
        records = _dictionary() if current is None else current.value
        records.store(subkey, value, expires_s)
        _sweep(records)
        self._digests.pop(key, None)
        if current is None or records.latest_expiration_time > current.expiration_time:
            super(DHTLocalStorage, self).store(key, records, records.latest_expiration_time)
            _sweep(self)

    # -- making room -------------------------------------------------------------------------------------------------

    def can_store(self, key: DHTID, subkey: bytes, value: bytes, sender: bytes, worth: Worth) -> bool:
        """Say whether there is or would be made room for one more record, before anyone checks it."""
        self.get(key)
        return self._has_place(key, subkey, sender, worth) and self._has_bytes(key, _charge(value), sender, worth)

    def _has_place(self, key: DHTID, subkey: bytes, sender: bytes, worth: Worth) -> bool:
        """Say whether one more record may stand at ``subkey``, whatever its length."""
        under = self._tenants.under(key)
        if under is None:
            return len(self) < MAX_KEYS or self._tenants.can_free_key(sender, worth)
        if subkey in under.sent:
            return True
        share, author = self._author_shares.get(key), subkey[:PEER_ID_BYTES]
        if share is not None and sum(each.startswith(author) for each in under.sent) >= share:
            return False
        return not self._is_full(under) or self._tenants.can_free_place_in(key, sender, worth)

    def _has_bytes(self, key: DHTID, more: int, sender: bytes, worth: Worth) -> bool:
        if more <= 0:
            return True
        under = self._tenants.under(key)
        is_full = under is not None and under.num_bytes + more > MAX_KEY_BYTES
        if is_full and not self._tenants.can_free_bytes_in(key, sender, more, worth):
            return False
        return self._has_room(more) or self._tenants.can_free_bytes(sender, more, worth)

    def _make_room(self, key: DHTID, subkey: bytes, more: int, sender: bytes, worth: Worth) -> bool:
        """Have whoever has most give up what is lacking; False, and nothing is lost, where nobody has to."""
        if not self._has_place(key, subkey, sender, worth) or not self._has_bytes(key, more, sender, worth):
            return False
        tenants, under = self._tenants, self._tenants.under(key)
        if under is None and len(self) >= MAX_KEYS:
            freed = tenants.key_to_free(sender, worth)
            if freed is None:
                return False
            del self[freed]
        if under is not None:
            if subkey not in under.sent and self._is_full(under):
                self._forget(key, tenants.place_to_free(key, sender, worth))
            while more > 0 and under.num_bytes + more > MAX_KEY_BYTES:
                self._forget(key, tenants.bytes_to_free(key, sender, more, worth))
        while more > 0 and tenants.num_bytes + more > MAX_BYTES:
            self._free_part(sender, more, worth)
        return True

    def _is_full(self, under: Key) -> bool:
        return len(under.sent) >= min(self.max_subkeys, MAX_SUBKEYS)

    def _free_part(self, sender: bytes, more: int, worth: Worth) -> None:
        key, subkeys = self._tenants.part_to_free(sender, more, worth)
        for subkey in subkeys:
            self._forget(key, subkey)

    def _has_room(self, more: int) -> bool:
        if self._tenants.num_bytes + more <= MAX_BYTES:
            return True
        if time.monotonic() - self._counted_s < RECOUNT_S:
            return False
        self._counted_s = time.monotonic()
        for key in list(self.data):
            self.get(key)
        return self._tenants.num_bytes + more <= MAX_BYTES

    def _forget(self, key: DHTID, subkey: bytes) -> None:
        """Drop a record, and its key with the last."""
        records = self.data[key].value
        if len(records) == 1:
            del self[key]
            return
        del records[subkey]
        self._tenants.uncount(key, subkey)
        self._digests.pop(key, None)

    def __delitem__(self, key: DHTID) -> None:
        """Drop a key with all that stands there."""
        if key in self.data:
            super().__delitem__(key)
            self._tenants.drop(key)
            self._digests.pop(key, None)

    # -- expiring ----------------------------------------------------------------------------------------------------

    def _remove_outdated(self) -> None:
        """Drop keys that have expired, so many at once that nobody waits for it."""
        now_s, heap = timed_storage.get_dht_time(), self.expiration_heap
        for _ in range(MAX_EXPIRED_AT_ONCE):
            if self.frozen or not heap or heap[0].expiration_time >= now_s:
                return
            entry = heapq.heappop(heap)
            if self.key_to_heap.get(entry.key) == entry:
                del self[entry.key]

    def get(self, key: DHTID) -> ValueWithExpiration[DictionaryDHTValue] | None:
        """Give what stands under a key and has not expired."""
        self._remove_outdated()
        current, now_s = self.data.get(key), timed_storage.get_dht_time()
        heap = [] if current is None else current.value.expiration_heap
        while heap and heap[0].expiration_time < now_s:
            entry = heapq.heappop(heap)
            if current.value.key_to_heap.get(entry.key) == entry:
                self._forget(key, entry.key)
        return self.data.get(key)

    def clear(self) -> None:
        """Drop everything."""
        super().clear()
        self._empty()

    # -- reading -----------------------------------------------------------------------------------------------------

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
        if standing is None:
            return b""
        known = self._digests.get(key)
        if known is not None and time.time() < known[1]:
            return known[0]
        records = self.records(key)
        digest = digest_of(records)
        self._digests[key] = digest, min(expires_s for _, _, expires_s in records)
        return digest


def _dictionary() -> DictionaryDHTValue:
    """Make a dictionary that lets go of nothing by itself: what it holds is counted."""
    records = DictionaryDHTValue()
    records.frozen = True
    return records


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
