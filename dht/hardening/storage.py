"""Keep records by key and subkey until they expire, within a quota per key.

In place of ``DHTLocalStorage``, whose stock behaviour this mends (TRUST 3.5):
- A: a refused older record still replaces the heap entry, and the stored record is dropped at the older expiry;
- B: a plain value wipes a key's dictionary: here there are no plain values;
- C: every repeated store grows the heap by an entry: here a record that is not newer changes nothing;
- E: one key takes any number of subkeys: here their number and bytes are bounded;
- subkeys of mixed types with equal expiry raise in the heap's comparison: here subkeys are bytes.

This file does not know what a record means; the validator has seen every record before. It runs on the event loop.
"""

from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue

MAX_SUBKEYS = 4096
"""Most records under one key, whatever a swarm's parameters say."""

MAX_KEY_BYTES = 2_500_000
"""Most bytes of records under one key; one answer carries a whole key, and p2pd carries 4 MiB."""

MAX_KEYS = 65536
"""Most keys."""


class RecordStorage(DHTLocalStorage):
    """Subkeyed records only; of two records for one place the later expiry stays."""

    max_subkeys: int = MAX_SUBKEYS
    """Most records under one key, as the swarm's parameters say."""

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
        if standing is None and not self.can_add(key, records, len(value)):
            return False
        if not records.store(subkey, value, expiration_time):
            return False
        if current is None or records.latest_expiration_time > current.expiration_time:
            super(DHTLocalStorage, self).store(key, records, records.latest_expiration_time)
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
