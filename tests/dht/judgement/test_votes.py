"""Which votes count, and what they decide together."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.judgement.timeline import Act, Timeline, phase_of
from dht.judgement.votes import Decision, Tally, count, decide
from dht.verdict import Opinion, commit, reveal
from tests.dht.judgement.town import DOWN, PEERS, RULES, SHRUG, UP, claim_of

CLAIM = claim_of()
CLOCK = Timeline.of(CLAIM.t, RULES)
MEMBERS = PEERS[2:9]
COMMIT_S, REVEAL_S = (CLOCK.opens_s(phase_of(1, act)) for act in (Act.COMMIT, Act.REVEAL))


def both(member, opinion, salt=b"s" * 32, *, level=1, committed_s=COMMIT_S, revealed_s=REVEAL_S):
    said = (member, CLAIM.epoch, CLAIM.hash, level, opinion, salt)
    return [commit(*said, committed_s), reveal(*said, 500_000, revealed_s)]


def tally(*verdicts, seen=None, level=1):
    return count([(each, (seen or {}).get(each)) for each in verdicts], MEMBERS, level, CLOCK)


@given(st.permutations([each for member in MEMBERS[:4] for each in both(member, UP)] * 2))
def test_the_order_and_number_of_copies_do_not_matter(verdicts):
    assert tally(*verdicts) == Tally(7, 4, 0, 0)


@given(st.lists(st.sampled_from([UP, DOWN, SHRUG, None]), min_size=7, max_size=7))
def test_every_member_has_one_vote(opinions):
    said = [
        each for member, opinion in zip(MEMBERS, opinions, strict=True) if opinion for each in both(member, opinion)
    ]
    found = tally(*said)
    assert (found.upheld, found.refuted, found.inconclusive) == tuple(
        opinions.count(each) for each in (UP, DOWN, SHRUG)
    )


def test_who_is_not_of_the_committee_or_speaks_at_another_level_has_no_vote():
    assert tally(*both(PEERS[20], UP)).num_valid == 0
    assert tally(*both(MEMBERS[0], UP, level=2)).num_valid == 0
    other = [replace(each, level=2) for each in both(MEMBERS[0], UP)]
    assert tally(*other, level=2).num_valid == 0, "a commitment is for one level"


def test_a_lazy_juror_that_copies_what_others_reveal_has_no_vote():
    lazy, honest = MEMBERS[:2]
    committed, revealed = both(honest, UP)
    assert tally(committed, revealed).upheld == 1
    copied_reveal = replace(revealed, member=lazy)
    blind = commit(lazy, CLAIM.epoch, CLAIM.hash, 1, Opinion.REFUTED, b"l" * 32, COMMIT_S)
    for own in ([], [replace(committed, member=lazy)], [blind]):
        assert tally(committed, revealed, copied_reveal, *own).num_valid == 1


def test_a_lazy_juror_that_dates_its_commitment_back_is_seen_too_late():
    committed, revealed = both(MEMBERS[0], UP)
    first_reveal_s = REVEAL_S
    assert tally(committed, revealed, seen={committed: first_reveal_s - 1}).num_valid == 1
    assert tally(committed, revealed, seen={committed: first_reveal_s}).num_valid == 0


def test_who_commits_to_two_things_has_no_vote_and_who_opens_another_neither():
    once, again = both(MEMBERS[0], UP), both(MEMBERS[0], DOWN, b"t" * 32)
    assert tally(*once, *again).num_valid == 0
    assert tally(*once, again[1]) == Tally(7, 1, 0, 0), "what was not committed to is void, and harms nothing"
    assert tally(once[0], again[1]).num_valid == 0
    assert tally(once[1]).num_valid == 0
    late = replace(again[0], t=REVEAL_S)
    assert tally(*once, late) == Tally(7, 1, 0, 0)


@pytest.mark.parametrize("shift", [-(10**6), -1, 10**6])
def test_late_and_early_votes_are_void(shift):
    assert tally(*both(MEMBERS[0], UP, committed_s=COMMIT_S + shift)).num_valid == 0
    assert tally(*both(MEMBERS[0], UP, revealed_s=REVEAL_S + shift)).num_valid == 0


@pytest.mark.parametrize(
    ("level", "votes", "expected"),
    [
        (1, (7, 5, 0, 0), Decision.UPHELD),
        (1, (7, 4, 1, 0), Decision.UPHELD),
        (1, (7, 4, 2, 0), Decision.UPHELD),  # exactly two thirds
        (1, (7, 4, 3, 0), Decision.UNRESOLVED),
        (1, (7, 4, 0, 3), Decision.UNRESOLVED),
        (1, (7, 4, 0, 0), Decision.UNRESOLVED),  # three stayed away: no quorum
        (1, (7, 1, 5, 0), Decision.REFUTED),
        (1, (7, 0, 0, 7), Decision.UNRESOLVED),
        (1, (3, 2, 1, 0), Decision.UPHELD),
        (1, (2, 1, 1, 0), Decision.UNRESOLVED),
        (1, (1, 1, 0, 0), Decision.UNRESOLVED),  # nobody decides alone
        (1, (0, 0, 0, 0), Decision.UNRESOLVED),
        (2, (15, 8, 7, 0), Decision.UPHELD),
        (2, (15, 4, 5, 0), Decision.REFUTED),
        (2, (15, 7, 0, 0), Decision.UNRESOLVED),
        (2, (15, 5, 5, 5), Decision.UNRESOLVED),
        (3, (5, 3, 2, 0), Decision.UPHELD),
        (3, (5, 2, 2, 1), Decision.UNRESOLVED),
        (3, (5, 0, 3, 0), Decision.REFUTED),
        (3, (5, 0, 2, 0), Decision.UNRESOLVED),
    ],
)
def test_a_level_decides_by_these_votes(level, votes, expected):
    assert decide(Tally(*votes), level) is expected


@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 15), st.sampled_from([1, 2, 3]))
def test_nobody_wins_with_fewer_votes_and_sides_are_alike(upheld, refuted, inconclusive, level):
    size = upheld + refuted + inconclusive
    decision = decide(Tally(size, upheld, refuted, inconclusive), level)
    mirrored = decide(Tally(size, refuted, upheld, inconclusive), level)
    swap = {Decision.UPHELD: Decision.REFUTED, Decision.REFUTED: Decision.UPHELD}
    assert mirrored is swap.get(decision, Decision.UNRESOLVED)
    if decision is not Decision.UNRESOLVED:
        assert (upheld > refuted) == (decision is Decision.UPHELD)


def test_a_verdict_is_close_between_a_third_and_two_thirds():
    close = [Tally(15, upheld, 15 - upheld, 0).is_close for upheld in range(16)]
    assert close == [False] * 5 + [True] * 6 + [False] * 5
