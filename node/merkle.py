"""The Merkle tree of RFC 6962, section 2.1: its root, grown leaf by leaf, and proofs that a leaf is in it.

Leaves come as hashes. A tree that grows is kept as its complete subtrees alone, one hash for each bit of its size that
is set, so that a session of a million leaves costs twenty hashes of memory. Pure; it knows nothing of what is hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()
"""Root of a tree without leaves."""


def hash_leaf(content: bytes) -> bytes:
    """Return the hash of a leaf with this content."""
    return sha256(b"\x00" + content).digest()


def hash_pair(left: bytes, right: bytes) -> bytes:
    """Return the hash of the node above two others."""
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """A tree that leaves are appended to, and of which nothing but the root is wanted."""

    def __init__(self) -> None:
        self.size = 0
        """Leaves so far."""
        self._peaks: list[bytes] = []
        """Roots of the complete subtrees, the largest first."""

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash."""
        size = self.size
        while size & 1:
            leaf = hash_pair(self._peaks.pop(), leaf)
            size >>= 1
        self._peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the root over all leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            root = hash_pair(peak, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the root over the hashes of leaves."""
    tree = CompactRange()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def prove(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the path from leaf ``index`` to the root: the hashes beside it, from below."""
    assert 0 <= index < len(leaves)
    path: list[bytes] = []
    first, last = 0, len(leaves)
    while last - first > 1:
        middle = first + _largest_power_below(last - first)
        if index < middle:
            path.append(root_of(leaves[middle:last]))
            last = middle
        else:
            path.append(root_of(leaves[first:middle]))
            first = middle
    return path[::-1]


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Say whether ``path`` shows that ``leaf`` is number ``index`` of the ``size`` leaves under ``root``."""
    if not 0 <= index < size:
        return False
    here, last = index, size - 1
    for beside in path:
        if last == 0:
            return False
        if here & 1 or here == last:
            leaf = hash_pair(beside, leaf)
            while not here & 1 and here:  # Levels at which this node has no other beside it.
                here, last = here >> 1, last >> 1
        else:
            leaf = hash_pair(leaf, beside)
        here, last = here >> 1, last >> 1
    return last == 0 and leaf == root


def _largest_power_below(size: int) -> int:
    """Return the largest power of two that is smaller than ``size``, which is 2 or more."""
    return 1 << (size - 1).bit_length() - 1
