"""Successions: what was earned moves once, what was done wrong goes with it, and nobody can have both."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dht.reputation import Conviction, Evidence, OpenFail, Rejection, Succeeded, Work, score
from dht.reputation.successions import Estate, settle
from tests.dht.reputation import drawn
from tests.dht.reputation.drawn import ANCHORS, EPOCH, everyone_works_for_everyone

BEFORE = EPOCH - 5
HONEST = Evidence(works=everyone_works_for_everyone(epoch=BEFORE))


def scores_of(evidence, *successions):
    return score(replace(evidence, successions=successions), ANCHORS, EPOCH)


def test_an_heir_stands_where_the_old_one_stood_and_the_old_one_is_dead():
    before, after = scores_of(HONEST), scores_of(HONEST, Succeeded("h", "new", EPOCH))
    assert after.standing("new") == before.standing("h")
    assert after.standing("h").is_dead
    assert (after.standing("h").score, after.standing("h").is_newcomer) == (0, False)
    assert all(after.standing(peer) == before.standing(peer) for peer in "abcdefg")


def test_a_succession_of_the_future_does_not_count_yet():
    assert scores_of(HONEST, Succeeded("h", "new", EPOCH + 1)).digest == scores_of(HONEST).digest


def test_what_the_old_one_does_after_its_end_counts_for_nobody():
    late = Evidence(works=everyone_works_for_everyone(epoch=EPOCH))
    scores = scores_of(late, Succeeded("h", "new", EPOCH))
    assert scores.standing("new").flow == scores.standing("h").flow == 0


def test_a_liar_does_not_get_rid_of_what_he_did_by_a_new_key():
    guilty = replace(
        HONEST, convictions=(Conviction("h", EPOCH),), rejections=(Rejection("h", EPOCH),),
        open_fails=(OpenFail("c", "h"),), equivocators=frozenset({"g"}),
    )  # fmt: skip
    scores = scores_of(guilty, Succeeded("h", "new", BEFORE - 1), Succeeded("g", "other", EPOCH))
    assert scores.standing("new").penalty == scores_of(guilty).standing("h").penalty
    assert scores.standing("new").rejections == scores_of(guilty).standing("h").rejections
    assert scores.standing("other").is_equivocator
    after = scores_of(guilty, Succeeded("h", "new", EPOCH))
    assert after.credit["c"]["new"] == 0


def test_who_names_two_heirs_leaves_nothing_to_either():
    scores = scores_of(HONEST, Succeeded("h", "new", EPOCH), Succeeded("h", "other", EPOCH - 1))
    assert scores.standing("h").is_dead
    assert scores.standing("new") == scores.standing("other") == scores.standing("unknown")


def test_work_of_the_old_one_for_the_new_one_becomes_work_for_oneself_and_counts_nothing():
    friends = (Work("h", "new", BEFORE, 4096 * 50), Work("new", "h", BEFORE, 4096 * 50))
    without = scores_of(HONEST, Succeeded("h", "new", EPOCH))
    assert (
        scores_of(replace(HONEST, works=HONEST.works + friends), Succeeded("h", "new", EPOCH)).digest == without.digest
    )


def test_an_anchors_place_goes_to_its_heir():
    scores = scores_of(HONEST, Succeeded("a", "new", EPOCH))
    assert scores.anchors == ("b", "new")
    assert scores.standing("new") == scores_of(HONEST).standing("a")
    both = scores_of(HONEST, Succeeded("a", "new", EPOCH), Succeeded("a", "other", EPOCH))
    assert both.anchors == ANCHORS
    assert both.standing("a").is_dead


def test_chains_are_followed_and_circles_inherit_nothing():
    chain = (Succeeded("a", "b", 10), Succeeded("b", "c", 5))
    assert settle(chain, EPOCH) == {"a": Estate("c", 5), "b": Estate("c", 5)}
    circle = (Succeeded("a", "b", 10), Succeeded("b", "a", 12), Succeeded("x", "a", 20))
    assert {estate.heir for estate in settle(circle, EPOCH).values()} == {None}
    forked = (Succeeded("a", "b", 1), Succeeded("b", "c", 2), Succeeded("b", "d", 3))
    assert settle(forked, EPOCH)["a"].heir is None


@given(drawn.several(drawn.successions, 12), st.randoms(use_true_random=False))
def test_every_heir_lives_and_the_order_does_not_matter(successions, random):
    estates = settle(successions, EPOCH)
    assert not {estate.heir for estate in estates.values()} & estates.keys()
    assert settle(random.sample(successions, len(successions)), EPOCH) == estates
