"""Evidence is kept as long as its claim lives and there is room, and nobody else on the machine reads it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.claims.shelf import Shelf


def test_what_was_put_is_found_by_its_hash_and_only_by_its_owner(tmp_path):
    shelf = Shelf(tmp_path / "evidence")
    name = shelf.put(b"what a user has written", 1000)
    assert shelf.get(name) == b"what a user has written"
    assert Shelf(tmp_path / "evidence").get(name) == b"what a user has written"
    assert shelf.get(bytes(32)) is None
    (path,) = (tmp_path / "evidence").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "evidence").stat().st_mode & 0o077 == 0


def test_what_the_disk_has_changed_is_not_handed_out(tmp_path):
    shelf = Shelf(tmp_path)
    name = shelf.put(b"true", 1000)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"fals")
    assert shelf.get(name) is None


def test_what_nobody_asks_for_any_more_goes_and_so_do_drafts_of_a_crash(tmp_path):
    shelf = Shelf(tmp_path)
    early, late = shelf.put(b"early", 1000), shelf.put(b"late", 2000)
    (tmp_path / "half.draft").write_bytes(b"ha")
    (tmp_path / "notes.txt").write_bytes(b"somebody's")
    shelf.tidy(1000)
    assert shelf.get(early) is None
    assert shelf.get(late) == b"late"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".evidence", ".txt"]


def test_the_same_evidence_stands_once(tmp_path):
    shelf = Shelf(tmp_path)
    assert shelf.put(b"one", 1000) == shelf.put(b"one", 3000)
    shelf.tidy(2000)
    assert len(list(tmp_path.iterdir())) == 1


def test_evidence_that_is_larger_than_the_shelf_is_refused(tmp_path):
    shelf = Shelf(tmp_path, max_bytes=4)
    kept = shelf.put(b"four", 1000)
    with pytest.raises(ValueError, match="more than are kept"):
        shelf.put(b"fives", 2000)
    assert shelf.get(kept) == b"four"


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.integers(1, 9)), max_size=12))
def test_a_full_shelf_lets_go_what_would_end_first_and_never_what_is_new(tmp_path_factory, puts):
    shelf = Shelf(tmp_path_factory.mktemp("shelf"), max_bytes=40, max_pieces=3)
    names = []
    for blob, until_s in puts:
        names.append(shelf.put(blob, until_s))
        assert shelf.get(names[-1]) == blob
        kept = [found for name in set(names) if (found := shelf.get(name)) is not None]
        assert len(kept) <= 3
        assert sum(map(len, kept)) <= 40
