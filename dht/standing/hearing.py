"""Judge all claims that are known, epoch by epoch: a claim is judged by those who were credible when it was made.

    for each epoch with claims that need a committee, about blocks that enough peers hold, oldest first:
        claims before it, as judged by then ─┐
        receipts and audits before it ───────┴─> scores as of its start ─> credibilities ─> its committees

What was settled is remembered and stands, also where the claim itself is read no more: receipts show for a window only
who held which blocks, so later on nobody can draw the committee of an old claim again. What most anchors have signed
stands before all, whatever this node has read, seen or remembered: so newcomers have it, too, and all have the same.
Pure; seconds where there are many epochs with claims.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from dht.claim import Claim
from dht.judgement.docket import FirstSeen, open_cases
from dht.judgement.holdings import Holdings
from dht.judgement.judge import Court, judge, rule_at_once
from dht.judgement.outcomes import Outcomes, Ruling, State
from dht.judgement.proceedings import MIN_HOLDERS
from dht.judgement.signed_rulings import SIGNED_STATES, agreed
from dht.judgement.timeline import Timeline
from dht.reputation import OpenFail, ScoreRules, score
from dht.rules import Rules
from dht.standing.gathering import evidence_of, until
from dht.standing.proofs import Case, Judged, Proofs
from dht.standing.workbook import Workbook

Settled = Mapping[bytes, Ruling]
"""Rulings that stand, by the hash of their claim."""

NOTHING_SEEN: FirstSeen = MappingProxyType({})

NOTHING_SETTLED: Settled = MappingProxyType({})

NO_OUTCOMES = Outcomes((), (), (), (), ())


class Heard(NamedTuple):
    """What has become of the claims."""

    judged: Judged
    settled: Settled  # by what this node has read and seen, and for it alone
    ruled: Settled = NOTHING_SETTLED  # by most anchors: stands before that
    outcomes: Outcomes = NO_OUTCOMES


def hear(
    book: Workbook,
    proofs: Proofs,
    anchors: Collection[str],
    rules: Rules,
    score_rules: ScoreRules,
    now_s: float,
    settled: Settled,
    first_seen_s: FirstSeen = NOTHING_SEEN,
) -> Heard:
    """Judge claims.

    Args:
        book: What receipts add up to.
        proofs: All other records, nothing signed after ``now_s`` among them.
        anchors: Peer ids: whose trust it is, and who judges last.
        rules: Of the swarm.
        score_rules: Its constants.
        now_s: Unix seconds.
        settled: What this node found final before.
        first_seen_s: What this node has seen come.
    """
    oldest = rules.epoch_of(now_s) + 1 - rules.evidence_epochs
    settled, ruled = _since(oldest, settled), _since(oldest, agreed(proofs.rulings, anchors))
    stands = {**settled, **ruled}
    if not proofs.claims and not stands:
        return Heard(Judged(), settled)
    holdings = Holdings(book.spans())
    credibility: dict[int, dict[str, int]] = {}
    court = Court(rules, holdings, credibility, tuple(anchors), first_seen_s)
    for epoch in sorted({claim.epoch for claim in _in_need(proofs.claims, stands, court)}):
        start_s = rules.start_of(epoch)
        before = until(proofs, epoch - 1, start_s)
        earlier = _judged(_outcomes(before, court, start_s, _of_before(epoch, stands)))
        scores = score(evidence_of(book, before, earlier, epoch - 1), anchors, epoch - 1, score_rules)
        credibility[epoch] = {peer: standing.credibility for peer, standing in scores.standings.items()}
    outcomes = _outcomes(proofs, court, now_s, stands)
    decided = {each.claim: each for each in outcomes.rulings if each.claim not in ruled and _is_found(each, court)}
    return Heard(_judged(outcomes), {**settled, **decided}, ruled, outcomes)


def _is_found(ruling: Ruling, court: Court) -> bool:
    """Say whether a ruling is a finding of its own; who is ignored for other claims of his is so because of these."""
    if ruling.state is State.IGNORED:
        clock = Timeline.of(ruling.settled_s, court.rules)
        return not clock.is_claim_timely(court.first_seen_s.get(ruling.claim))
    return ruling.is_final and ruling.state in SIGNED_STATES


def _since(oldest: int, settled: Settled) -> Settled:
    return {claim: ruling for claim, ruling in settled.items() if ruling.epoch >= oldest}


def _in_need(claims: Iterable[Claim], settled: Settled, court: Court) -> Iterator[Claim]:
    """Yield the claims that may need a committee; who is not listened to must cost nobody a look at the scores."""
    cases = open_cases(claims, (), ())
    known = {case.hash for case in cases}
    by_accuser: dict[str, list[Ruling]] = defaultdict(list)
    for ruling in settled.values():
        if ruling.claim not in known:
            by_accuser[ruling.accuser].append(ruling)
    for case in cases:
        mine = by_accuser[case.claim.accuser]
        found = settled.get(case.hash) or rule_at_once(case, mine, court)
        if found is not None:
            mine.append(found)
        elif len(court.holders(case.claim)) >= MIN_HOLDERS:
            yield case.claim


def _of_before(epoch: int, settled: Settled) -> Settled:
    return {claim: ruling for claim, ruling in settled.items() if ruling.epoch < epoch}


def _outcomes(proofs: Proofs, court: Court, now_s: float, settled: Settled) -> Outcomes:
    cases = open_cases(proofs.claims, proofs.contests, proofs.verdicts)
    stands = {claim: ruling for claim, ruling in settled.items() if ruling.settled_s <= now_s}
    return judge(cases, court, now_s, stands)


def _judged(outcomes: Outcomes) -> Judged:
    rejected = [each for each in outcomes.rulings if each.state is State.REJECTED]
    return Judged(
        convictions=outcomes.convictions,
        rejections=outcomes.rejections,
        open_fails=outcomes.open_fails,
        refuted=frozenset(OpenFail(each.accuser, each.accused) for each in rejected),
        cases=tuple(
            Case(each.accuser, each.accused, each.epoch, _in_a_word(each), each.why) for each in outcomes.rulings
        ),
    )


def _in_a_word(ruling: Ruling) -> str:
    if ruling.state is State.UPHELD and not ruling.is_final:
        return "upheld for now"
    if ruling.state is State.PENDING or not ruling.is_final:
        return "open"
    return "undecided" if ruling.state is State.UNRESOLVED else ruling.state.value
