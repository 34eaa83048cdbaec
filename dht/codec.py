"""Encode and decode the values that are signed or sent to peers: one byte string per value, one value per byte string.

The format is msgpack without its freedoms: positional arrays of integers, byte strings, text, booleans and nested
arrays. No floats, maps, extension types or nil, integers and lengths in their shortest form only.
This file does not know what any value means. It runs wherever it is called and holds no state.
"""

from typing import TYPE_CHECKING, TypeAlias

import msgpack

from dht.errors import BadRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

Value: TypeAlias = "bool | int | bytes | str | Sequence[Value]"

MAX_DEPTH = 6
"""Nested arrays at most."""

MAX_ITEMS = 256
"""Items per array at most; the decoder allocates an array from its claimed length, so the claim is bounded."""

MAX_VALUES = 2**14
"""Values in all at most, arrays counted: each costs a reader ten times what it has on the wire, and a thread that
makes them from one long message lets no other run meanwhile."""

UINT64_MAX = 2**64 - 1
INT64_MIN = -(2**63)


def encode(value: Value) -> bytes:
    """Encode canonically.

    Raises:
        TypeError: The value holds something other than integers, bytes, text, booleans and sequences of them.
        ValueError: An integer is outside 64 bits, an array too long or the nesting too deep.
    """
    _check(value, MAX_DEPTH)
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except OverflowError:
        raise ValueError("integer outside 64 bits") from None
    return packed


def decode(data: bytes, max_bytes: int) -> Value:
    """Decode bytes from the network, and accept them only if ``encode`` would give the same bytes again.

    Raises:
        BadRecord: Too long, truncated, trailing bytes, a type outside the format, or not canonical.
    """
    if len(data) > max_bytes:
        raise BadRecord(f"{len(data)} bytes where at most {max_bytes} are allowed")
    if len(data) > MAX_VALUES and not _are_few_values(data):
        raise BadRecord(f"more than {MAX_VALUES} values")
    try:
        value: Value = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            max_array_len=MAX_ITEMS,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=max_bytes,
            max_bin_len=max_bytes,
        )
        again = encode(value)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadRecord(f"not a canonical value: {type(error).__name__}") from None
    if again != data:
        raise BadRecord("not in canonical form")
    return value


_PAYLOADS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xDC: 2, 0xDD: 4}
"""Bytes behind the first one of an integer, or of the header of an array."""

_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Bytes of the length of what follows: byte strings and text."""


def _are_few_values(data: bytes) -> bool:
    """Say whether there are ``MAX_VALUES`` at most, from their headers alone; what has no place here counts as one."""
    at = num_values = 0
    while at < len(data) and num_values <= MAX_VALUES:
        first, num_values = data[at], num_values + 1
        at += 1
        if (width := _LENGTHS.get(first)) is not None:
            at += width + int.from_bytes(data[at : at + width], "big")
        elif 0xA0 <= first < 0xC0:
            at += first - 0xA0
        else:
            at += _PAYLOADS.get(first, 0)
    return num_values <= MAX_VALUES


_SCALARS = frozenset({int, bytes, str, bool})


def _check(value: object, depth: int) -> None:
    if type(value) is list or type(value) is tuple:  # exactly: msgpack's extension type is a kind of tuple
        if depth == 0 or len(value) > MAX_ITEMS:
            raise ValueError("array too long or nested too deep")
        if not _SCALARS.issuperset(map(type, value)):  # most arrays hold nothing else, and are many
            for item in value:
                _check(item, depth - 1)
    elif not isinstance(value, int | bytes | str):  # bool included
        raise TypeError(f"{type(value).__name__} has no place in a canonical value")


class Fields:
    """Take the fields of a decoded positional array one by one, with type and range checks.

    Every method raises ``BadRecord`` with the field's name when the next field is missing or out of bounds.
    """

    def __init__(self, value: object) -> None:
        if not isinstance(value, list):
            raise BadRecord("an array is expected")
        self._rest: list[object] = value[::-1]

    def _take(self, name: str) -> object:
        try:
            return self._rest.pop()
        except IndexError:
            raise BadRecord(f"{name} is missing") from None

    def uint(self, name: str, max_value: int, *, min_value: int = 0) -> int:
        """Take an integer in ``[min_value, max_value]``."""
        value = self._take(name)
        if type(value) is not int or not min_value <= value <= max_value:
            raise BadRecord(f"{name} is not an integer in [{min_value}, {max_value}]")
        return value

    def flag(self, name: str) -> bool:
        """Take a boolean."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise BadRecord(f"{name} is not a boolean")
        return value

    def blob(self, name: str, *sizes_bytes: int) -> bytes:
        """Take a byte string whose length is one of ``sizes_bytes``."""
        value = self._take(name)
        if not isinstance(value, bytes) or len(value) not in sizes_bytes:
            raise BadRecord(f"{name} is not {' or '.join(map(str, sizes_bytes))} bytes")
        return value

    def some_bytes(self, name: str, max_bytes: int) -> bytes:
        """Take a byte string of at most ``max_bytes``."""
        value = self._take(name)
        if not isinstance(value, bytes) or len(value) > max_bytes:
            raise BadRecord(f"{name} is not at most {max_bytes} bytes")
        return value

    def text(self, name: str, max_bytes: int) -> str:
        """Take printable text of at most ``max_bytes`` UTF-8 bytes."""
        value = self._take(name)
        if not isinstance(value, str) or len(value.encode()) > max_bytes or not value.isprintable():
            raise BadRecord(f"{name} is not printable text of at most {max_bytes} bytes")
        return value

    def items(self, name: str, max_items: int) -> list[object]:
        """Take an array of at most ``max_items``."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) > max_items:
            raise BadRecord(f"{name} is not an array of at most {max_items}")
        return value

    def texts(self, name: str, max_items: int, max_bytes: int) -> tuple[str, ...]:
        """Take an array of at most ``max_items`` texts of at most ``max_bytes`` each."""
        items = Fields(self.items(name, max_items))
        taken = []
        while items.more():
            taken.append(items.text(name, max_bytes))
        return tuple(taken)

    def more(self) -> bool:
        """Say whether fields are left."""
        return bool(self._rest)

    def end(self) -> None:
        """Refuse fields that were not asked for."""
        if self._rest:
            raise BadRecord(f"{len(self._rest)} unknown fields")
