"""The course of one trial, unit by unit, as ``dht.judgement.proceedings`` has it: the same levels, decisions and times.

There each node works it out again from signed records; here who denies, appeals and votes what is drawn once, when the
claim is made. ``tests/scripts/test_simulated_trials.py`` holds one against the other. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dht.judgement.outcomes import State
from dht.judgement.proceedings import MIN_HOLDERS, MIN_VOTES
from dht.judgement.timeline import Act, phase_of
from dht.judgement.votes import Decision, Tally, decide

_STATES = {
    Decision.UPHELD: State.UPHELD,
    Decision.REFUTED: State.REJECTED,
    Decision.UNRESOLVED: State.UNRESOLVED,
}


class Step(NamedTuple):
    """What holds from some time on."""

    units: int  # after the claim; UNITS_PER_EPOCH of them are an epoch
    state: State
    level: int  # that has been asked last; 0: none
    is_final: bool = False


@dataclass(frozen=True)
class Trial:
    """What those who have a part in a trial do."""

    num_holders: int  # of the blocks, the parties as well
    is_denied: bool  # in time, by the accused or by an anchor for it
    is_heeded: bool  # the accuser is so much trusted that silence proves it right
    appeals: Callable[[int, Decision], bool]  # whether who has lost asks for a level; for the last one: has a bond left
    vote: Callable[[int, bool], Tally]  # of a level; whether against a judgement by default


def course(trial: Trial) -> tuple[Step, ...]:
    """Say what holds from when on, the last step for good."""
    denial = _settled(1, Act.CONTEST)
    if trial.num_holders < MIN_HOLDERS:
        return Step(0, State.LOCAL, 0), Step(denial, State.LOCAL, 0, is_final=True)
    steps, tally = [Step(0, State.PENDING, 0)], None
    if trial.is_denied or not trial.is_heeded:
        tally = trial.vote(1, False)
        first = decide(tally, 1)
        steps.append(_so_far(_settled(1, Act.REVEAL), first, 1))
    else:
        first = Decision.UPHELD
        steps.append(_so_far(denial, first, 0))
    if first is not Decision.UNRESOLVED and not trial.appeals(2, first):
        return (*steps, _final(_settled(2, Act.APPEAL), first, steps[-1].level))
    second_tally = trial.vote(2, tally is None)
    second = decide(second_tally, 2)
    steps.append(_so_far(_settled(2, Act.REVEAL), first if second is Decision.UNRESOLVED else second, 2))
    is_clear = second is not Decision.UNRESOLVED and not second_tally.is_close
    if is_clear and not trial.appeals(3, second):
        return (*steps, _final(_settled(3, Act.APPEAL), second, 2))
    last = decide(trial.vote(3, False), 3)
    if last is Decision.UNRESOLVED and is_clear:
        last = second
    elif last is Decision.UNRESOLVED and second in (first, Decision.UNRESOLVED) and _votes(tally, first) >= MIN_VOTES:
        last = first
    return (*steps, _final(_settled(3, Act.REVEAL), last, 3))


def standing(steps: Sequence[Step], units: float) -> Step:
    """Return what holds so long after the claim."""
    return next(step for step in reversed(steps) if step.units <= units)


def _settled(level: int, act: Act) -> int:
    return phase_of(level, act).settled


def _so_far(units: int, found: Decision, level: int) -> Step:
    """Guilt counts until another level finds otherwise; that a claim was false counts when it is final."""
    return Step(units, State.UPHELD if found is Decision.UPHELD else State.PENDING, level)


def _final(units: int, found: Decision, level: int) -> Step:
    return Step(units, _STATES[found], level, is_final=True)


def _votes(tally: Tally | None, side: Decision) -> int:
    """Count the votes of level 1 for a side; none where it was not asked."""
    return 0 if tally is None else {Decision.UPHELD: tally.upheld, Decision.REFUTED: tally.refuted}.get(side, 0)
