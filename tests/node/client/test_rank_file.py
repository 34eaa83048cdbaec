"""What a client knew last is known again, of the same swarm by the same anchors, and nothing else is believed."""

import pytest

from dht.standing.ranks import Rank, Ranked, Ranks
from node.client.rank_file import MAX_EPOCHS, Whose, read_ranks, write_ranks

WHOSE = Whose("ab" * 32, ("anchor",))
RANKS = Ranks(True, {"good": Ranked(Rank.ESTABLISHED, 0.75), "convict": Ranked(Rank.CONVICTED, 0.0)})


@pytest.fixture
def path(tmp_path):
    written = tmp_path / "home" / "standings.json"
    write_ranks(written, WHOSE, 100, RANKS)
    return written


def test_what_was_written_is_read_for_some_epochs(path):
    assert read_ranks(path, WHOSE, 100) == read_ranks(path, WHOSE, 100 + MAX_EPOCHS) == RANKS
    assert read_ranks(path, WHOSE, 101 + MAX_EPOCHS) is None
    assert read_ranks(path, WHOSE, 99) is None, "the clock was set back"
    assert [each.name for each in path.parent.iterdir()] == ["standings.json"]


def test_another_swarm_or_other_anchors_are_not_taken_for_this_one(path):
    assert read_ranks(path, Whose("cd" * 32, ("anchor",)), 100) is None
    assert read_ranks(path, Whose("ab" * 32, ("anchor", "me")), 100) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"swarm": 1}', "\x00", '{"peers": {"a": ["good", 1]}}'])
def test_a_damaged_file_is_as_good_as_none(path, text):
    path.write_text(text)
    assert read_ranks(path, WHOSE, 100) is None


def test_a_place_that_does_not_exist_spoils_the_file_and_a_weight_is_bounded(path):
    good = path.read_text()
    path.write_text(good.replace("established", "holy"))
    assert read_ranks(path, WHOSE, 100) is None
    path.write_text(good.replace("0.75", "1e300"))
    assert read_ranks(path, WHOSE, 100).of("good").weight == 1


def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_fails(tmp_path):
    (tmp_path / "file").write_text("")
    write_ranks(tmp_path / "file" / "standings.json", WHOSE, 100, RANKS)
    assert read_ranks(tmp_path / "file" / "standings.json", WHOSE, 100) is None
