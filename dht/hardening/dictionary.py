"""Read the dictionaries of records that travel in DHT calls, as hivemind packs them, without building its objects.

hivemind unpacks values with extension types before anything has checked them; here a dictionary is read field by field.
This file does not know what a record means. Pure.
"""

import msgpack

from dht.errors import ProtocolViolation
from dht.hardening.findings import StoredRecord
from dht.hardening.storage import MAX_SUBKEYS

_DICTIONARY_CODE = 0x50  # hivemind's msgpack extension type of a dictionary value


def unpack_dictionary(packed: bytes, *, wrapped: bool) -> list[StoredRecord]:
    """Read a dictionary of records as hivemind packs it, without ever building its objects.

    Args:
        packed: msgpack extension 0x50 around ``[maxsize, latest expiry, [[subkey, value, expiry], ...]]``.
        wrapped: False when the extension's header has been taken off.

    Raises:
        ProtocolViolation: Anything else.
    """
    try:
        if wrapped:
            outer = msgpack.unpackb(packed, ext_hook=lambda code, data: (code, data), max_ext_len=len(packed))
            if not isinstance(outer, tuple) or outer[0] != _DICTIONARY_CODE:
                raise ProtocolViolation("no dictionary of records")
            packed = outer[1]
        fields = msgpack.unpackb(packed, max_ext_len=0, max_map_len=0, max_array_len=MAX_SUBKEYS, raw=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ProtocolViolation("no dictionary of records") from error
    if not isinstance(fields, list) or len(fields) != 3 or not isinstance(fields[2], list):
        raise ProtocolViolation("no dictionary of records")
    return [_checked_entry(entry) for entry in fields[2]]


def _checked_entry(entry: object) -> StoredRecord:
    if not isinstance(entry, list) or len(entry) != 3:
        raise ProtocolViolation("no dictionary of records")
    subkey, value, expires_s = entry
    if not isinstance(subkey, bytes) or not isinstance(value, bytes) or not isinstance(expires_s, int | float):
        raise ProtocolViolation("no dictionary of records")
    return subkey, value, float(expires_s)
