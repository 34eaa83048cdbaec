"""Who judges: a draw among peers, weighted by credibility, that everyone makes alike and nobody can steer. Pure.

Each peer's hash, taken as a number in (0, 1], is turned into an exponential waiting time whose rate is the peer's
credibility; those with the shortest times sit. That is a weighted draw without replacement, whose result does not
depend on who else is listed. (Rendezvous hashing, Thaler and Ravishankar 1998; weights after Efraimidis and Spirakis
2006.) Logarithms are integers by a rule of their own, because libraries' floats differ in the last place.

The draw hangs on the receipt that a claim holds and on the level, and on nothing else of the claim: an accuser cannot
try other times, numbers or errors until it likes the committee. It can take another receipt, which the accused must
have signed, for real work.
"""

import functools
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256

from dht.claim import Claim
from dht.codec import encode
from dht.identity import peer_id_to_bytes

LOG_BITS = 32
"""Bits after the point of a logarithm."""

RANK_BITS = 40
"""Bits by which it is shifted before it is divided by a credibility, which has as many after its point."""

_REMEMBERED = 2**14
"""Waiting times that are remembered: 30 us each, and a case is looked at again and again while it is open."""


def minus_log2(number: int) -> int:
    """Return 64 - log2(number), in units of 2**-32, for a number from 1 to 2**64.

    The mantissa has 63 bits after the point. It is squared 32 times, each time rounded down to as many; wherever it
    reaches two, it is halved (rounded down) and gives a bit of the logarithm.
    """
    assert 0 < number <= 2**64
    exponent = number.bit_length() - 1
    mantissa = number << 63 - exponent if exponent <= 63 else number >> exponent - 63
    log = exponent
    for _ in range(LOG_BITS):
        mantissa = mantissa * mantissa >> 63
        bit = mantissa >> 64
        mantissa >>= bit
        log = log << 1 | bit
    return (64 << LOG_BITS) - log


def seed_of(claim: Claim, level: int) -> bytes:
    """Return what the draw for a level hangs on, 32 bytes."""
    return sha256(encode(["efedllm/committee/1", sha256(claim.receipt).digest(), level])).digest()


def rank_of(seed: bytes, peer: bytes, credibility: int) -> int:
    """Return a peer's place in a draw: the lower, the earlier.

    Args:
        seed: ``seed_of``.
        peer: Binary peer id, 38 bytes.
        credibility: Above zero, in units of 2**-40.
    """
    return (_waiting(seed, peer) << RANK_BITS) // credibility


@functools.lru_cache(_REMEMBERED)
def _waiting(seed: bytes, peer: bytes) -> int:
    return minus_log2(int.from_bytes(sha256(seed + peer).digest()[:8], "big") + 1)


def committee(
    claim: Claim, level: int, candidates: Iterable[str], credibility: Mapping[str, int], size: int
) -> tuple[str, ...]:
    """Draw who judges a claim; whoever accuses or is accused, or has no credibility, does not.

    Args:
        claim: What is judged.
        level: 1 or 2.
        candidates: Peers, in any order.
        credibility: Of peers as of the claim's epoch, in units of 2**-40; who is not in it has none.
        size: How many sit, if there are as many.

    Returns:
        Members in the order of their ranks.
    """
    seed, parties = seed_of(claim, level), {claim.accuser, claim.accused}
    ranked = sorted(
        (rank_of(seed, peer_id_to_bytes(peer), credibility[peer]), peer_id_to_bytes(peer), peer)
        for peer in set(candidates) - parties
        if credibility.get(peer, 0) > 0
    )
    return tuple(peer for _, _, peer in ranked[:size])


def panel(claim: Claim, anchors: Collection[str]) -> tuple[str, ...]:
    """Return the anchors that judge a claim: all that have no part in it."""
    return tuple(sorted(set(anchors) - {claim.accuser, claim.accused}))
