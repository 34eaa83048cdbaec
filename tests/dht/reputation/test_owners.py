"""Identities of one owner have one account; nobody gains by having more of them, and scores do not know of it."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dht.reputation import Affiliated, Contribution, Evidence, Succeeded, Work, contributions, score
from dht.reputation.owners import owners_of
from tests.dht.reputation import drawn
from tests.dht.reputation.drawn import ANCHORS, EPOCH, PEERS, everyone_works_for_everyone

UNIT = 4096
HONEST = Evidence(works=everyone_works_for_everyone(work=UNIT))
affiliated = st.builds(Affiliated, st.sampled_from((*PEERS, "x", "y")), st.sampled_from((*PEERS, "x", "y")))


def contributed(evidence):
    return contributions(score(evidence, ANCHORS, EPOCH), evidence)


def owned(*affiliations, works=()):
    return replace(HONEST, works=HONEST.works + works, affiliations=affiliations)


def test_those_that_an_identity_has_named_are_its_owners_as_it_is_itself():
    assert owners_of([Affiliated("s", "x"), Affiliated("s", "t"), Affiliated("u", "z")]) == {
        "s": "s", "x": "s", "t": "s", "u": "u", "z": "u"
    }  # fmt: skip
    assert owners_of([]) == {}


def test_nobody_is_brought_in_by_somebody_elses_leave():
    """X, whom A has agreed to, cannot take strangers to A: neither as theirs nor as its own."""
    assert owners_of([Affiliated("a", "x"), Affiliated("b", "x")]) == {}
    assert owners_of([Affiliated("a", "x"), Affiliated("x", "y")]) == {"a": "a", "x": "a"}
    assert owners_of([Affiliated("a", "b"), Affiliated("b", "a")]) == {}


@given(st.lists(affiliated, max_size=12), st.randoms(use_true_random=False))
def test_the_order_does_not_matter_and_both_have_signed(pairs, random):
    owners = owners_of(pairs)
    assert owners == owners_of(random.sample(pairs, len(pairs)))
    assert all(owners[owner] == owner for owner in owners.values())
    assert all(peer == owner or (owner, peer) in pairs for peer, owner in owners.items())


def test_a_client_is_served_by_what_its_owners_server_gave():
    taken = (Work("x", "h", EPOCH, 3 * UNIT),)
    assert contributed(owned(works=taken))["x"] == Contribution(0, 3 * UNIT)
    found = contributed(owned(Affiliated("g", "x"), works=taken))
    assert found["x"] == found["g"] == Contribution(7 * UNIT, 10 * UNIT)
    assert contributed(owned(Affiliated("g", "new")))["new"] == contributed(HONEST)["g"], "before its first receipt"
    assert found["h"] == contributed(owned(works=taken))["h"], "nobody else is touched"


def test_more_clients_are_one_account_and_not_more_credit():
    taken = tuple(Work(f"x{number}", "h", EPOCH, UNIT) for number in range(20))
    found = contributed(owned(*(Affiliated("g", work.consumer) for work in taken), works=taken))
    assert {found[work.consumer] for work in taken} == {Contribution(7 * UNIT, 27 * UNIT)}


def test_work_for_oneself_is_no_merit_and_no_debt():
    own = (Work("x", "g", EPOCH, 40 * UNIT), Work("g", "x", EPOCH, 40 * UNIT))
    assert contributed(owned(Affiliated("g", "x"), works=own))["x"] == contributed(HONEST)["g"]


def test_an_heir_takes_its_place_among_its_owners_identities():
    moved = replace(owned(Affiliated("g", "x")), successions=(Succeeded("g", "new", EPOCH),))
    earlier = replace(moved, works=tuple(work._replace(epoch=EPOCH - 1) for work in HONEST.works))
    found = contributed(earlier)
    assert found["x"] == found["new"]
    assert found["x"].provided > 0


@given(drawn.evidence, st.lists(affiliated, max_size=6))
def test_scores_do_not_know_of_it_and_no_owner_has_more_than_its_identities(evidence, pairs):
    known = replace(evidence, affiliations=tuple(pairs))
    plain, scores = score(evidence, ANCHORS, EPOCH), score(known, ANCHORS, EPOCH)
    assert plain.digest == scores.digest
    alone, together, owners = contributions(plain, evidence), contributions(scores, known), owners_of(pairs)
    for owner in set(owners.values()):
        members = [peer for peer in owners if owners[peer] == owner]
        accounts = {together.get(peer, Contribution(0, 0)) for peer in members}
        if not evidence.successions:
            assert len(accounts) == 1
            (account,) = accounts
            for number in range(2):
                assert account[number] <= sum(alone.get(peer, Contribution(0, 0))[number] for peer in members) + len(
                    members
                )
