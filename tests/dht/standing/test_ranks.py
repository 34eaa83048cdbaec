"""Who is trusted with work, and since when again."""

from hypothesis import given
from hypothesis import strategies as st

from dht.reputation import Conviction, Evidence, Succeeded, Work, score
from dht.standing.ranks import NEW, WATCHED_EPOCHS, Rank, ranks_of

WORKS = tuple(Work("anchor", provider, 100, 4096 * 30) for provider in ("good", "liar", "two faces", "old"))


def ranks(epoch=100, **changes):
    renewed = tuple(work._replace(epoch=epoch) for work in WORKS)
    return ranks_of(score(Evidence(works=renewed, **changes), ["anchor"], epoch))


def test_work_for_an_anchor_makes_established_and_whoever_is_unknown_is_new():
    found = ranks()
    assert found.has_flow
    assert {found.of(peer).rank for peer in ("good", "liar", "old")} == {Rank.ESTABLISHED}
    assert found.of("good").weight == 1
    assert found.of("somebody") == NEW


def test_a_convict_gets_no_work_until_its_conviction_has_faded_for_weeks():
    def rank(ago):
        return ranks(epoch=100 + ago, convictions=(Conviction("liar", 100),)).of("liar")

    assert rank(0)[:2] == rank(60)[:2] == (Rank.CONVICTED, 0.0)
    assert rank(100).rank is Rank.ESTABLISHED
    assert 0 < rank(100).weight < rank(200).weight < 1


def test_a_convict_without_flow_is_no_newcomer():
    assert ranks(convictions=(Conviction("fled", 100),)).of("fled").rank is Rank.CONVICTED


def test_a_liar_with_two_receipts_never_gets_work_and_neither_does_a_dead_identity():
    found = ranks(equivocators=frozenset({"two faces"}), successions=(Succeeded("old", "heir", 101),))
    assert found.of("two faces")[:2] == (Rank.EQUIVOCATOR, 0.0)
    found = ranks(epoch=101, successions=(Succeeded("old", "heir", 101),))
    assert found.of("old")[:2] == (Rank.ENDED, 0.0)


def test_without_flow_all_but_convicts_are_newcomers():
    found = ranks_of(score(Evidence(works=WORKS, convictions=(Conviction("liar", 100),)), [], 100))
    assert not found.has_flow
    assert {found.of(peer).rank for peer in ("anchor", "good", "old")} == {Rank.NEWCOMER}
    assert found.of("liar").rank is Rank.CONVICTED


@given(st.integers(0, 5), st.integers(0, 359))
def test_a_weight_is_a_share_and_only_established_and_new_peers_have_one(num, ago):
    found = ranks(epoch=500, convictions=(Conviction("liar", 500 - ago),) * num).of("liar")
    assert 0 <= found.weight <= 1
    assert (found.weight > 0) == (found.rank in (Rank.ESTABLISHED, Rank.NEWCOMER))


def test_who_has_worked_for_trusted_peers_for_a_few_epochs_only_is_watched_and_so_is_who_was_convicted():
    def is_watched(peer="good", *more, **changes):
        evidence = Evidence(works=WORKS + more, **changes)
        return ranks_of(score(evidence, ["anchor"], 100), evidence.works).of(peer).is_watched

    long_ago = Work("anchor", "good", 100 - WATCHED_EPOCHS, 4096)
    assert is_watched()
    assert is_watched("good", long_ago._replace(epoch=101 - WATCHED_EPOCHS))
    assert not is_watched("good", long_ago)
    assert is_watched("good", long_ago._replace(consumer="nobody")), "anybody can sign for any past"
    assert is_watched("good", long_ago, convictions=(Conviction("good", 1),))
    assert is_watched("somebody")
