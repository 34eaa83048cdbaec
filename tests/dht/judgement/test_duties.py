"""What a member is told to do, and until when."""

from dht.contest import Contest
from dht.judgement.docket import open_cases
from dht.judgement.duties import Duty, duties
from dht.judgement.judge import judge
from dht.judgement.outcomes import State
from dht.judgement.timeline import PHASES, Act, Timeline, phase_of
from dht.verdict import commit
from tests.dht.judgement.town import ACCUSED, ACCUSER, ANCHORS, DOWN, PEERS, RULES, UP, claim_of, court_of, play

CLAIM = claim_of()
CLOCK = Timeline.of(CLAIM.t, RULES)
COURT = court_of()


def due(member, town_or_cases, now_s):
    cases = getattr(town_or_cases, "cases", town_or_cases)
    return duties(member, cases, judge(cases, COURT, now_s), RULES, now_s)


def test_the_accused_may_deny_a_claim_until_its_window_ends():
    cases = open_cases([CLAIM], [], [])
    ends_s = CLOCK.ends_s(phase_of(1, Act.CONTEST))
    assert due(ACCUSED, cases, CLAIM.t) == [Duty(Act.CONTEST, CLAIM.hash, 1, ends_s)]
    assert due(ACCUSED, cases, ends_s) == []
    assert due(ACCUSER, cases, CLAIM.t) == due(PEERS[9], cases, CLAIM.t) == []
    denied = open_cases([CLAIM], [Contest(ACCUSED, CLAIM.epoch, CLAIM.hash, ACCUSER, 1, CLAIM.t)], [])
    assert due(ACCUSED, denied, CLAIM.t + 1) == []


def test_an_anchor_may_deny_a_claim_for_the_accused_and_nobody_else_may():
    cases, ends_s = open_cases([CLAIM], [], []), CLOCK.ends_s(phase_of(1, Act.CONTEST))
    assert due(ANCHORS[0], cases, CLAIM.t) == [Duty(Act.CONTEST, CLAIM.hash, 1, ends_s)]
    assert due(ANCHORS[0], cases, ends_s) == []


def test_the_accused_may_deny_a_claim_that_is_local_here_because_others_may_have_read_more_receipts():
    cases, court = open_cases([CLAIM], [], []), court_of(PEERS[:1])
    outcomes = judge(cases, court, CLAIM.t)
    assert (outcomes.rulings[0].state, outcomes.undecided) == (State.LOCAL, (CLAIM.hash,))
    assert [duty.act for duty in duties(ACCUSED, cases, outcomes, RULES, CLAIM.t)] == [Act.CONTEST]


def test_a_member_commits_then_reveals_and_only_what_it_committed_to():
    denial = Contest(ACCUSED, CLAIM.epoch, CLAIM.hash, ACCUSER, 1, CLAIM.t)
    cases = open_cases([CLAIM], [denial], [])
    commit_s, reveal_s = (CLOCK.opens_s(phase_of(1, act)) for act in (Act.COMMIT, Act.REVEAL))
    member = judge(cases, COURT, commit_s).rulings[0].committee(1)[0]
    assert [duty.act for duty in due(member, cases, commit_s)] == [Act.COMMIT]
    assert due(member, cases, reveal_s) == [], "who has not committed has nothing to reveal"
    made = commit(member, CLAIM.epoch, CLAIM.hash, 1, UP, bytes(32), commit_s)
    cases = open_cases([CLAIM], [denial], [made])
    assert due(member, cases, commit_s + 1) == []
    assert [duty.act for duty in due(member, cases, reveal_s)] == [Act.REVEAL]
    outsider = next(peer for peer in PEERS if peer not in judge(cases, COURT, commit_s).rulings[0].committee(1))
    assert due(outsider, cases, commit_s) == []


def test_between_phases_nobody_has_anything_to_do():
    town = play([CLAIM], lambda member, claim, level: UP if level == 1 else DOWN, court=COURT)
    for phase in PHASES:
        for now_s in (CLOCK.ends_s(phase), CLOCK.settles_s(phase) - 1):
            outcomes = judge(town.cases, COURT, now_s)
            assert not any(duties(member, town.cases, outcomes, RULES, now_s) for member in PEERS)


def test_nobody_works_on_a_claim_that_was_not_denied_and_only_the_loser_may_appeal():
    town = play([CLAIM], lambda *_: UP, court=COURT, denies=False, appeals=False)
    appeal_s = CLOCK.opens_s(phase_of(2, Act.APPEAL))
    assert town.verdicts == town.contests == []
    assert [(duty.act, duty.level) for duty in due(ACCUSED, town, appeal_s)] == [(Act.APPEAL, 2)]
    assert due(ACCUSER, town, appeal_s) == []
    lost = play([CLAIM], lambda *_: DOWN, court=COURT, appeals=False)
    assert [(duty.act, duty.level) for duty in due(ACCUSER, lost, appeal_s)] == [(Act.APPEAL, 2)]
    assert due(ACCUSED, lost, appeal_s) == []
