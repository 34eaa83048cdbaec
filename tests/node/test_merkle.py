"""The tree is that of RFC 6962: what a naive recursion gives, and what other programs give."""

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from node.merkle import EMPTY_ROOT, CompactRange, hash_leaf, is_included, prove, root_of

KNOWN = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
"""Leaves of Certificate Transparency's own tests."""
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def naive(contents):
    if not contents:
        return sha256(b"").digest()
    if len(contents) == 1:
        return sha256(b"\x00" + contents[0]).digest()
    half = 1
    while half * 2 < len(contents):
        half *= 2
    return sha256(b"\x01" + naive(contents[:half]) + naive(contents[half:])).digest()


def test_roots_are_those_of_certificate_transparency():
    leaves = [hash_leaf(bytes.fromhex(content)) for content in KNOWN]
    assert {size: root_of(leaves[:size]).hex() for size in range(9)} == ROOTS
    assert EMPTY_ROOT.hex() == ROOTS[0]


@given(st.lists(st.binary(max_size=3), max_size=70))
def test_a_tree_that_grows_has_at_every_size_the_root_of_the_naive_recursion(contents):
    tree = CompactRange()
    assert tree.root() == naive([])
    for size, content in enumerate(contents, start=1):
        tree.append(hash_leaf(content))
        assert tree.size == size
        assert tree.root() == naive(contents[:size])


def test_a_tree_of_any_size_keeps_no_more_than_a_hash_for_each_bit_of_it():
    tree = CompactRange()
    for number in range(5000):
        tree.append(hash_leaf(number.to_bytes(2, "big")))
    assert len(tree._peaks) == (5000).bit_count()


@given(st.integers(1, 70), st.data())
def test_a_proof_holds_for_its_leaf_and_place_and_for_nothing_else(size, data):
    leaves = [hash_leaf(number.to_bytes(2, "big")) for number in range(size)]
    index = data.draw(st.integers(0, size - 1))
    path, root = prove(leaves, index), root_of(leaves)
    assert is_included(leaves[index], index, size, path, root)
    assert not is_included(hash_leaf(b"other"), index, size, path, root)
    assert not is_included(leaves[index], index, size, [*path, root], root)
    assert not is_included(leaves[index], index, size, path, hash_leaf(b"other"))
    assert not is_included(leaves[index], size, size, path, root)
    for other in set(range(size)) - {index}:
        assert not is_included(leaves[index], other, size, path, root)
    if path:
        assert not is_included(leaves[index], index, size, path[:-1], root)
        changed = [*path[:-1], hash_leaf(b"other")]
        assert not is_included(leaves[index], index, size, changed, root)
