"""Count in fixed point, Q40: the integer n stands for n / 2^40. Every division and every shift rounds down.

Floats would not do: peers have to find the same bits, and powers differ between libraries of mathematics.
Pure.
"""

from functools import lru_cache
from math import isqrt

BITS = 40
"""Digits behind the binary point."""

ONE = 1 << BITS
"""1 in Q40; as the half-life of a number in Q40 it makes ``decay`` the power of that number."""

MAX_WEIGHT = ONE << 20
"""No sum of convictions or rejections counts for more: it fits into 64 bits, and penalties are 0 long before."""

_GUARDED = 128
"""Bits of the powers that ``decay`` multiplies; 2^40 times their error is below 2^-70."""


def _roots() -> tuple[int, ...]:
    roots = [1 << (_GUARDED - 1)]
    while len(roots) <= _GUARDED:
        roots.append(isqrt(roots[-1] << _GUARDED))
    return tuple(roots[1:])


_ROOTS = _roots()
"""2^(-1/2), 2^(-1/4), 2^(-1/8) ... in units of 2^-128."""


def decay(age: int, half_life: int) -> int:
    """Give what is left of 1 after ``age``: 2^(-age/half_life) in Q40, rounded down.

    By definition the greatest integer d with d^half_life * 2^age <= 2^(40 * half_life).

    Args:
        age: Not negative, in the unit of ``half_life``.
        half_life: Positive.
    """
    whole, rest = divmod(age, half_life)
    power = 1 << _GUARDED
    for root in _ROOTS:
        if rest == 0:
            break
        rest *= 2
        if rest >= half_life:
            rest -= half_life
            power = power * root >> _GUARDED
    return power >> (_GUARDED - BITS + whole)


@lru_cache(maxsize=16)
def decay_table(length: int, half_life: int) -> tuple[int, ...]:
    """Give ``decay`` for the ages 0 to ``length`` - 1."""
    return tuple(decay(age, half_life) for age in range(length))
