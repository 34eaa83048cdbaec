"""Ed25519's curve in plain integers: for making signatures that no library makes, and for saying what one should say.

Slow, and not constant in time: nothing secret may pass through here. Points are ``(x, y)``. RFC 8032, section 5.1.
"""

from __future__ import annotations

import hashlib
from itertools import count

P = 2**255 - 19
"""The field's prime."""
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Order of the base point; the curve has eight times as many points."""
_D = -121665 * pow(121666, -1, P) % P

Point = tuple[int, int]
NEUTRAL: Point = (0, 1)


def add(one: Point, other: Point) -> Point:
    """Add two points."""
    (x1, y1), (x2, y2) = one, other
    product = _D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P
    return x, y


def times(scalar: int, point: Point) -> Point:
    """Add a point to itself so many times."""
    total = NEUTRAL
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point = add(point, point)
        scalar >>= 1
    return total


def negative(point: Point) -> Point:
    """Mirror a point."""
    return -point[0] % P, point[1]


def encode(point: Point) -> bytes:
    """Write y in 255 bits and the lowest bit of x above: the only encoding that RFC 8032 allows."""
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decode(data: bytes) -> Point | None:
    """Read a point as leniently as the first implementation does: y may exceed the prime, and zero may be negative."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number % 2**255 % P
    x = _x_of(y)
    if x is None:
        return None
    return (-x % P if x & 1 != sign else x), y


def _x_of(y: int) -> int | None:
    square = (y * y - 1) * pow(_D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return x if x * x % P == square else None


def _base() -> Point:
    y = 4 * pow(5, -1, P) % P
    x = _x_of(y)
    assert x is not None
    return (x if x & 1 == 0 else P - x), y


BASE = _base()


def _torsion() -> Point:
    """Find a point of order eight: what is left of any point when the large order is taken out."""
    for y in count(2):
        x = _x_of(y)
        if x is not None:
            point = times(ORDER, (x, y))
            if times(4, point) != NEUTRAL:
                return point
    raise AssertionError


TORSION = _torsion()
"""A point of order eight; its multiples are the points of small order."""


def challenge(nonce_point: bytes, key: bytes, message: bytes) -> int:
    """Hash a signature's point, the public key and the message to the scalar that both sides use."""
    return int.from_bytes(hashlib.sha512(nonce_point + key + message).digest(), "little") % ORDER


def secret_scalar(seed: bytes) -> int:
    """Give the scalar of a secret seed."""
    number = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    return number & (2**254 - 8) | 2**254


def is_valid(key: bytes, message: bytes, signature: bytes) -> bool:
    """Say what a check without cofactor says that compares the encodings of R: the rule of this network.

    Args:
        key: Public key, 32 bytes.
        message: What was signed.
        signature: R and S, 32 bytes each.
    """
    point, scalar = decode(key), int.from_bytes(signature[32:], "little")
    if point is None or scalar >= ORDER:
        return False
    product = times(challenge(signature[:32], key, message), point)
    return encode(add(times(scalar, BASE), negative(product))) == signature[:32]
