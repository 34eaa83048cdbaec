"""What one member has to do now, or may do, about the claims that stand. Pure: whoever runs it signs and publishes.

A member acts by its own clock. What it committed to and with which salt it keeps itself, on its disk: without that it
cannot reveal.
"""

from collections.abc import Iterable
from typing import NamedTuple

from dht.judgement.docket import Case
from dht.judgement.outcomes import Outcomes, Ruling, State
from dht.judgement.timeline import Act, Timeline
from dht.rules import Rules
from dht.verdict import VerdictPhase


class Duty(NamedTuple):
    """One thing to sign."""

    act: Act  # commit and reveal are duties; contest and appeal rights: of a party, or of an anchor for the accused
    claim: bytes  # hash of the claim, 32 bytes
    level: int  # 1 to 3
    until_s: int  # unix second from which on it is too late


def duties(member: str, cases: Iterable[Case], outcomes: Outcomes, rules: Rules, now_s: float) -> list[Duty]:
    """List what ``member`` may sign now, what ends first before the rest.

    Args:
        member: Peer id.
        cases: As ``open_cases`` orders them.
        outcomes: What ``judge`` says of them as of ``now_s``.
        rules: Of the swarm.
        now_s: Unix seconds, by the member's clock.
    """
    by_hash = {case.hash: case for case in cases}
    due = [
        Duty(ruling.phase.act, ruling.claim, ruling.phase.level, Timeline.of(case.claim.t, rules).ends_s(ruling.phase))
        for ruling in outcomes.rulings
        if ruling.phase is not None
        for case in [by_hash[ruling.claim]]
        if _is_due(member, case, ruling)
    ]
    return sorted(due, key=lambda duty: (duty.until_s, duty.claim))


def _is_due(member: str, case: Case, ruling: Ruling) -> bool:
    phase = ruling.phase
    assert phase is not None
    if phase.act is Act.CONTEST:
        is_open = ruling.state in (State.PENDING, State.LOCAL)
        return is_open and member in (ruling.accused, *ruling.defenders) and not _has_asked(member, case, phase.level)
    if phase.act is Act.APPEAL:
        return member == ruling.loser and not _has_asked(member, case, phase.level)
    if member not in ruling.committee(phase.level):
        return False
    mine = {each.phase for each in case.verdicts if (each.member, each.level) == (member, phase.level)}
    return mine == (set() if phase.act is Act.COMMIT else {VerdictPhase.COMMIT})


def _has_asked(member: str, case: Case, level: int) -> bool:
    return any((contest.contester, contest.level) == (member, level) for contest in case.contests)
