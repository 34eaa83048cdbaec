"""One case, from the claim through as many levels as it takes. Pure; the phases are those of ``timeline``.

    claim ──nobody denies it──> upheld by default ──────────────┐ the accused appeals
      │ denied, by the accused or by an anchor for it,          │
      │ or made by somebody whom nobody trusts                  v
    level 1: 7 holders of the blocks ──decided──> settled ──loser appeals──> level 2: 15 of the whole swarm,
      └──────────────── unresolved ──────────────────────────────────────────^   │      │   or of the holders
                                        settled <──decided clearly───────────────┘      │ unresolved, close, or the
                                           ^                                            v loser stakes its bond
                                           └────────── decided, or left open ───── level 3: the anchors

Whoever forces the last level against a clear verdict stakes its bond: it has one, and if it loses has none until the
matter is forgotten. If the anchors cannot tell, the clear verdict stands then. What four of level 1 have found stands,
too, where nobody above it finds otherwise; in all other cases nothing follows. Guilt counts from when it is found, or
silence has shown it, until another level finds otherwise: an appeal buys no time. Against a judgement by default
holders are asked, because those who cannot tell would acquit everybody who is silent first.
This file decides nothing about other cases; ``judge`` does.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from dht.judgement.committee import committee, panel
from dht.judgement.docket import Case, FirstSeen, record_id
from dht.judgement.outcomes import Ruling, State
from dht.judgement.timeline import Act, Phase, Timeline, phase_of
from dht.judgement.votes import Decision, Tally, count, decide
from dht.rules import Rules

LEVEL_1_SIZE = 7
LEVEL_2_SIZE = 15

FEW_HOLDERS = 10
"""Where fewer peers hold the blocks and are heeded, all of them but the parties are level 1."""

MIN_HOLDERS = 3
"""Where fewer hold them, the accused among these, nothing follows for anybody: there would be no committee. Receipts
say who does, and two peers that sign for each other make two: so nothing is spared or convicted by this alone."""

MIN_JURORS = 2
"""Where fewer of the holders beside the parties are heeded, silence proves nothing but to an anchor: nobody who holds
the blocks could judge, and names that hold them by receipts of each other must not stand in for such."""

MIN_VOTES = 4
"""So many votes of level 1 for one side stand where nobody above it can tell."""

REACH = Fraction(3, 5)
"""Heeded is whose credibility is at least this share of the highest: nobody else judges, or is believed because others
are silent.

Credibility saturates, so it takes a third of the typical flow (36 % of it where there is one anchor). A name for which
one server signs has an eighth of its flow at most, however many names there are, and however they sign for each other;
with less to reach, names of two servers would judge.
"""

_STATES = {
    Decision.UPHELD: State.UPHELD,
    Decision.REFUTED: State.REJECTED,
    Decision.UNRESOLVED: State.UNRESOLVED,
}
_BODIES = ("", "holders of the blocks", "peers of the whole swarm", "anchors")


def _body(level: int, *, is_by_default: bool) -> str:
    return _BODIES[1] if level == 2 and is_by_default else _BODIES[level]


@dataclass(frozen=True, slots=True)
class Bench:
    """What a case is judged by, besides its own records."""

    rules: Rules  # of the swarm
    holders: frozenset[str]  # peers that hold the blocks, the parties as well
    credibility: Mapping[str, int]  # as of the start of the claim's epoch, in units of 2**-40
    anchors: Collection[str]  # peer ids
    bondless: frozenset[str] = frozenset()  # peers that cannot force the last level
    first_seen_s: FirstSeen = field(default_factory=dict)


def rule(case: Case, bench: Bench, now_s: float) -> Ruling:
    """Say where a case stands at unix second ``now_s``."""
    return _Trial(case, bench, now_s).run()


class _Trial:
    """One walk through the levels, as far as they have come."""

    def __init__(self, case: Case, bench: Bench, now_s: float) -> None:
        self._case, self._bench, self._now_s = case, bench, now_s
        self._clock = Timeline.of(case.claim.t, bench.rules)
        self._committees: list[tuple[str, ...]] = []
        self._tallies: list[Tally | None] = []
        self._backed_by = ""
        self._is_by_default = False
        self._defenders = panel(case.claim, bench.anchors)

    def run(self) -> Ruling:
        """Go as far as time has come."""
        if len(self._bench.holders) < MIN_HOLDERS:
            why, settled = f"Fewer than {MIN_HOLDERS} peers hold these blocks.", phase_of(1, Act.CONTEST)
            is_final = self._is_settled(settled)  # Others may have read more receipts, so the accused may deny it.
            return self._ruling(State.LOCAL, why, self._clock.settles_s(settled), is_final=is_final)
        decision, level = self._first()
        if decision is None:
            return self._pending()
        if decision is not Decision.UNRESOLVED and not self._is_appealed(2, decision):
            return self._standing(decision, level, phase_of(2, Act.APPEAL))
        found, self._is_by_default = decision, not level
        decision = self._vote(2)
        if decision is None:
            return self._pending(found)
        tally = self._tallies[1]
        assert tally is not None
        if decision is not Decision.UNRESOLVED and not tally.is_close:
            loser = self._loser(decision)
            if loser in self._bench.bondless or not self._is_appealed(3, decision):
                return self._standing(decision, 2, phase_of(3, Act.APPEAL))
            self._backed_by = loser
        last, settled_s = self._vote(3), self._clock.settles_s(phase_of(3, Act.REVEAL))
        if last is None:
            return self._pending(found if decision is Decision.UNRESOLVED else decision)
        if last is Decision.UNRESOLVED and self._backed_by:  # Anchors that are away free nobody.
            return self._decided(decision, 2, settled_s)
        if last is Decision.UNRESOLVED and level == 1 and self._stands_alone(found, decision):
            return self._decided(found, 1, settled_s)
        return self._decided(last, 3, settled_s)

    def _stands_alone(self, found: Decision, above: Decision) -> bool:
        """Say whether what level 1 has found is enough where nobody above it could tell: not the word of two."""
        tally = self._tallies[0]
        votes = {Decision.UPHELD: tally.upheld, Decision.REFUTED: tally.refuted}.get(found, 0) if tally else 0
        return votes >= MIN_VOTES and above in (found, Decision.UNRESOLVED)

    def _first(self) -> tuple[Decision | None, int]:
        """Return what holds before anybody appeals, and the level that says so; None: not yet known."""
        denial = phase_of(1, Act.CONTEST)
        if any(self._is_asked(1, peer, denial) for peer in (self._case.accused, *self._defenders)):
            return self._vote(1), 1
        if not self._is_settled(denial):
            return None, 0
        return (Decision.UPHELD, 0) if self._is_accuser_heeded() else (self._vote(1), 1)

    def _is_accuser_heeded(self) -> bool:
        """Say whether silence proves anything: new ids cost nothing, and can be made for a late claim."""
        accuser, heeded = self._case.claim.accuser, self._heeded()
        jurors = self._bench.holders & heeded - {accuser, self._case.accused}
        return accuser in self._bench.anchors or (accuser in heeded and len(jurors) >= MIN_JURORS)

    def _heeded(self) -> frozenset[str]:
        """Return the peers of whom levels 1 and 2 are drawn."""
        credibility = self._bench.credibility
        highest = max(credibility.values(), default=0)
        least, whole = highest * REACH.numerator, REACH.denominator
        return frozenset(peer for peer, its in credibility.items() if 0 < least <= whole * its)

    def _vote(self, level: int) -> Decision | None:
        """Call a level; return what it decides, None while it has not ended."""
        self._committees += [()] * (level - 1 - len(self._committees))
        self._tallies += [None] * (level - 1 - len(self._tallies))
        self._committees.append(self._members(level))
        if not self._is_settled(phase_of(level, Act.REVEAL)):
            self._tallies.append(None)
            return None
        seen = self._bench.first_seen_s
        verdicts = [(verdict, seen.get(record_id(verdict))) for verdict in self._case.verdicts]
        tally = count(verdicts, self._committees[-1], level, self._clock)
        self._tallies.append(tally)
        return decide(tally, level)

    def _members(self, level: int) -> tuple[str, ...]:
        claim, bench = self._case.claim, self._bench
        if level == 3:
            return panel(claim, bench.anchors)
        heeded = self._heeded()
        among = bench.holders & heeded if level == 1 or self._is_by_default else heeded
        size = LEVEL_2_SIZE if level == 2 else LEVEL_1_SIZE if len(among) >= FEW_HOLDERS else FEW_HOLDERS
        return committee(claim, level, among, bench.credibility, size)

    def _is_asked(self, level: int, peer: str, phase: Phase) -> bool:
        """Say whether a peer has asked for a level in time."""
        return any(
            contest.level == level
            and contest.contester == peer
            and self._clock.is_timely(phase, contest.t, self._bench.first_seen_s.get(record_id(contest)))
            for contest in self._case.contests
        )

    def _is_appealed(self, level: int, decision: Decision) -> bool:
        return self._is_asked(level, self._loser(decision), phase_of(level, Act.APPEAL))

    def _loser(self, decision: Decision) -> str:
        return self._case.accused if decision is Decision.UPHELD else self._case.claim.accuser

    def _is_settled(self, phase: Phase) -> bool:
        return self._now_s >= self._clock.settles_s(phase)

    def _pending(self, found: Decision = Decision.UNRESOLVED) -> Ruling:
        """Return what holds until the level that was called has ended: guilt that the one before it found."""
        level = len(self._committees)
        body = _body(level, is_by_default=self._is_by_default)
        why = f"It is with {body}." if level else "It can still be denied."
        state = State.UPHELD if found is Decision.UPHELD else State.PENDING
        return self._ruling(state, why, self._clock.ends_all_s, is_final=False)

    def _standing(self, decision: Decision, level: int, appeal: Phase) -> Ruling:
        """Return what holds unless the loser appeals."""
        settled_s = self._clock.settles_s(appeal if level else phase_of(1, Act.CONTEST))
        if self._is_settled(appeal):
            return self._decided(decision, level, settled_s)
        loser = self._loser(decision)
        may_appeal = appeal.level < 3 or loser not in self._bench.bondless
        if level == 0:  # Who is silent is not waited for; it may speak up late.
            ruling = self._decided(decision, level, settled_s)
        else:
            why = f"{self._said(level)} It can be appealed against."
            state = State.UPHELD if decision is Decision.UPHELD else State.PENDING
            ruling = self._ruling(state, why, self._clock.ends_all_s)
        return ruling._replace(is_final=False, loser=loser if may_appeal else "")

    def _decided(self, decision: Decision, level: int, settled_s: int) -> Ruling:
        return self._ruling(_STATES[decision], self._said(level), settled_s)

    def _said(self, level: int) -> str:
        if not level:
            return "Nobody denied it in time."
        tally, body = self._tallies[level - 1], _body(level, is_by_default=self._is_by_default)
        assert tally is not None
        return (
            f"Of {tally.size} {body} {tally.upheld} found the work false, {tally.refuted} right, "
            f"{tally.inconclusive} could not tell."
        )

    def _ruling(self, state: State, why: str, settled_s: int, *, is_final: bool = True) -> Ruling:
        case = self._case
        return Ruling(
            claim=case.hash,
            accuser=case.claim.accuser,
            accused=case.accused,
            epoch=case.claim.epoch,
            number=case.claim.number,
            chunk=case.chunk,
            state=state,
            why=why,
            settled_s=settled_s,
            level=len(self._committees),
            is_final=is_final,
            phase=self._clock.open_phase(self._now_s),
            committees=tuple(self._committees),
            tallies=tuple(self._tallies),
            defenders=self._defenders,
            backed_by=self._backed_by,
        )
