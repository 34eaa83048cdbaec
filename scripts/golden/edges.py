"""Signatures on which Ed25519 libraries disagree, each under an IDENT record, with the verdict of this network's rule.

Every one is made without a library: keys and points of small order, encodings that are not canonical, S beyond the
order, points with a part of small order. The verdict is computed in integers; the tests compare the library with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from dht.ident import Ident, Role
from dht.identity import peer_id_to_str, signed_bytes
from dht.records import Envelope
from golden import curve

SEED = hashlib.sha256(b"golden edge").digest()
SCALAR = curve.secret_scalar(SEED)
KEY = curve.encode(curve.times(SCALAR, curve.BASE))
ANY = int.from_bytes(hashlib.sha512(b"any scalar").digest(), "little") % curve.ORDER
_PREFIX = bytes.fromhex("002408011220")

Sign = Callable[[bytes], bytes]
"""From a message to a signature."""


def all_edges() -> dict[str, Any]:
    """Return the file's content."""
    return {
        "about": "IDENT bodies of epoch 0 and signatures over them; valid: what every node says",
        "kind": int(Ident.KIND),
        "edges": [_edge(name, key, nonce, signature) for name, key, nonce, signature in _edges()],
    }


def _edge(name: str, key: bytes, nonce: int, signature: bytes) -> dict[str, Any]:
    body = _body(key, nonce)
    return {
        "name": name,
        "peer": peer_id_to_str(_PREFIX + key),
        "public_key": key.hex(),
        "body": body.hex(),
        "signature": signature.hex(),
        "envelope": Envelope(Ident.KIND, body, (signature,)).to_bytes().hex(),
        "valid": curve.is_valid(key, signed_bytes(Ident.KIND, body), signature),
    }


def _body(key: bytes, nonce: int) -> bytes:
    return Ident(peer_id_to_str(_PREFIX + key), 0, 0, nonce, Role.CLIENT, "").to_body()


def _edges() -> Iterator[tuple[str, bytes, int, bytes]]:
    """Yield name, public key, nonce of the record, signature."""
    yield "as the RFC says", KEY, 0, _signed(KEY, 0, _plain)
    yield from _scalars()
    yield from _points()
    yield from _small_keys()
    yield from _odd_keys()


def _signed(key: bytes, nonce: int, sign: Sign) -> bytes:
    return sign(signed_bytes(Ident.KIND, _body(key, nonce)))


def _with_point(encoded: bytes, r: int, message: bytes, key: bytes = KEY) -> bytes:
    """Sign with the secret scalar: R as it is given, and the S that belongs to ``r``."""
    s = (r + curve.challenge(encoded, key, message) * SCALAR) % curve.ORDER
    return encoded + s.to_bytes(32, "little")


def _plain(message: bytes) -> bytes:
    return _with_point(curve.encode(curve.times(ANY, curve.BASE)), ANY, message)


def _scalars() -> Iterator[tuple[str, bytes, int, bytes]]:
    good = _signed(KEY, 0, _plain)
    s = int.from_bytes(good[32:], "little")
    for name, number in (
        ("S plus the order", s + curve.ORDER),
        ("S plus fourteen times the order", s + 14 * curve.ORDER),
        ("S is the order", curve.ORDER),
        ("S with its highest bit", s | 2**255),
    ):
        yield name, KEY, 0, good[:32] + number.to_bytes(32, "little")
    yield "all zeros", KEY, 0, bytes(64)


def _points() -> Iterator[tuple[str, bytes, int, bytes]]:
    neutral = curve.encode(curve.NEUTRAL)
    yield "R is the neutral point", KEY, 0, _signed(KEY, 0, lambda message: _with_point(neutral, 0, message))
    for name, encoded in _odd_neutrals():
        yield f"R is {name}", KEY, 0, _signed(KEY, 0, lambda message, r=encoded: _with_point(r, 0, message))
    for order, part in ((2, curve.times(4, curve.TORSION)), (8, curve.TORSION)):
        mixed = curve.encode(curve.add(curve.times(ANY, curve.BASE), part))
        name = f"R with a part of order {order}"
        yield name, KEY, 0, _signed(KEY, 0, lambda message, r=mixed: _with_point(r, ANY, message))
        small = curve.encode(part)
        name = f"R of order {order}"
        yield name, KEY, 0, _signed(KEY, 0, lambda message, r=small: _with_point(r, 0, message))


def _odd_neutrals() -> Iterator[tuple[str, bytes]]:
    yield "the neutral point with y beyond the prime", (curve.P + 1).to_bytes(32, "little")
    yield "the neutral point with a negative zero", (1 | 2**255).to_bytes(32, "little")


def _small_keys() -> Iterator[tuple[str, bytes, int, bytes]]:
    """Yield what anyone can sign with: the key's part of the equation vanishes for one message in its order."""
    for order in (1, 2, 4, 8):
        key = curve.encode(curve.times(8 // order, curve.TORSION))
        yield from _without_secret(f"a key of order {order}", key, order)
    yield from _without_secret("a key of zeros, of order 4", bytes(32), 4)


def _odd_keys() -> Iterator[tuple[str, bytes, int, bytes]]:
    for name, key in _odd_neutrals():
        yield from _without_secret(f"a key that is {name}", key, 1)
    off_curve = next(y.to_bytes(32, "little") for y in count(2) if curve.decode(y.to_bytes(32, "little")) is None)
    yield "a key that is no point", off_curve, 0, curve.encode(curve.times(ANY, curve.BASE)) + bytes(32)
    mixed = curve.encode(curve.add(curve.times(SCALAR, curve.BASE), curve.TORSION))
    r = curve.encode(curve.times(ANY, curve.BASE))
    for vanishes in (True, False):
        nonce = _nonce(mixed, r, 8, vanishes=vanishes)
        name = f"a key with a part of order 8 that {'vanishes' if vanishes else 'stays'}"
        yield name, mixed, nonce, _signed(mixed, nonce, lambda message: _with_point(r, ANY, message, mixed))


def _without_secret(name: str, key: bytes, order: int) -> Iterator[tuple[str, bytes, int, bytes]]:
    r = curve.encode(curve.times(ANY, curve.BASE))
    signature = r + ANY.to_bytes(32, "little")
    yield f"{name}, signed without a secret", key, _nonce(key, r, order, vanishes=True), signature
    if order > 1:
        yield f"{name}, for another message", key, _nonce(key, r, order, vanishes=False), signature


def _nonce(key: bytes, r: bytes, order: int, *, vanishes: bool) -> int:
    """Find a record for which the key's part of small order vanishes, or does not."""
    for nonce in count():
        message = signed_bytes(Ident.KIND, _body(key, nonce))
        if (curve.challenge(r, key, message) % order == 0) == vanishes:
            return nonce
    raise AssertionError
