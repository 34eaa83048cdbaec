"""Say in words that a donor understands where a peer stands and why, or in one JSON object. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dht.reputation import ONE, Contribution, Explanation, ScoreRules, Weight, affiliates, decay
from dht.standing.board import Standings
from dht.standing.precedence import NEW_LEVEL, level_of
from dht.standing.proofs import Case
from dht.standing.ranks import Rank, rank_of
from node.run.receipt_forms import counted

_MOST = 10
"""Peers, or claims, that are listed of a kind."""

_USUAL_SCORE = 4 * ONE // 5
"""Score of a peer that has the typical flow and no conviction, Q40."""

_NOTHING = Contribution(0, 0)


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of one peer."""

    peer: str
    rank: Rank
    has_flow: bool  # whether anybody in the swarm is trusted yet
    is_anchor: bool
    epoch: int  # the present one
    epoch_s: int  # length of an epoch, seconds
    explanation: Explanation
    typical_flow: int  # Q40
    provided: int  # what it did for others in the window, block-tokens, by receipts
    consumed: int  # what it took
    affiliates: tuple[str, ...]  # other peers of its owner: all of them together are served by what all gave and took
    consumers: tuple[tuple[str, int], ...]  # whom it worked for, and how much, block-tokens; most first
    num_passes: int  # audits that found nothing wrong, one of each auditor and epoch
    auditors: tuple[str, ...]  # of these
    cases: tuple[Case, ...]  # claims against it, the newest first
    own_cases: tuple[Case, ...]  # claims of its own, the newest first
    contradictions: tuple[int, ...]  # epochs in which it signed two receipts that contradict each other
    level: int  # under load it is served before those of lower ones, 0 to 7
    rules: ScoreRules


def story_of(peer: str, standings: Standings, epoch_s: int, explanation: Explanation) -> Story:
    """Gather what is known of a peer.

    Args:
        peer: Peer id.
        standings: Of the swarm.
        epoch_s: Length of an epoch, seconds.
        explanation: ``dht.reputation.why`` of it.
    """
    evidence, scores = standings.evidence, standings.scores
    worked: dict[str, int] = {}
    for work in evidence.works:
        if work.provider == peer:
            worked[work.consumer] = worked.get(work.consumer, 0) + work.work
    passes = [each for each in evidence.passes if each.provider == peer]
    cases = sorted(standings.judged.cases, key=lambda case: (-case.epoch, case))
    return Story(
        peer=peer,
        rank=rank_of(scores, peer),
        has_flow=scores.has_flow,
        is_anchor=peer in scores.anchors,
        epoch=scores.epoch,
        epoch_s=epoch_s,
        explanation=explanation,
        typical_flow=scores.typical_flow,
        provided=sum(worked.values()),
        consumed=sum(work.work for work in evidence.works if work.consumer == peer),
        affiliates=affiliates(peer, evidence, scores.epoch),
        consumers=tuple(sorted(worked.items(), key=lambda item: (-item[1], item[0]))),
        num_passes=len(passes),
        auditors=tuple(sorted({each.auditor for each in passes})),
        cases=tuple(case for case in cases if case.accused == peer),
        own_cases=tuple(case for case in cases if case.accuser == peer),
        contradictions=tuple(sorted({one.slot.epoch for one in standings.proofs.equivocations if one.accused == peer})),
        level=level_of(standings.contributions.get(peer, _NOTHING), scores.rules),
        rules=scores.rules,
    )


def as_json(story: Story) -> dict[str, Any]:
    """Return one object; shares from 0 to 1, work in block-tokens, times in epochs and seconds."""
    standing, explanation = story.explanation.standing, story.explanation
    return {
        "peer_id": story.peer,
        "standing": str(story.rank),
        "score": _share(standing.score) if story.has_flow else None,
        "flow": _share(standing.flow),
        "typical_flow": _share(story.typical_flow),
        "missing_flow": _share(explanation.missing_flow),
        "is_anchor": story.is_anchor,
        "epoch": story.epoch,
        "epoch_s": story.epoch_s,
        "provided": story.provided,
        "consumed": story.consumed,
        "level": story.level,
        "affiliates": list(story.affiliates),
        "consumers": [{"peer_id": peer, "work": work} for peer, work in story.consumers],
        "inflows": [{"peer_id": each.peer, "flow": _share(each.flow)} for each in explanation.inflows],
        "passed_audits": story.num_passes,
        "auditors": list(story.auditors),
        "convictions": _as_json(explanation.convictions),
        "rejected_claims": _as_json(explanation.rejections),
        "doubted_by": list(explanation.doubted_by),
        "doubts": list(explanation.doubts),
        "claims_against": [case._asdict() for case in story.cases],
        "claims_made": [case._asdict() for case in story.own_cases],
        "contradictions": list(story.contradictions),
        "successor": explanation.heir,
        "works_again_in_s": _until_again_s(story),
    }


def _as_json(weights: Iterable[Weight]) -> list[dict[str, Any]]:
    return [{"epoch": each.epoch, "left": _share(each.left)} for each in weights]


def _share(number: int) -> float:
    return round(number / ONE, 6)


def as_lines(story: Story, *, tells_why: bool) -> list[str]:
    """Say where the peer stands, and if asked for, why."""
    lines = [f"{story.peer}: {_headline(story)}", *_consequence(story)]
    if tells_why:
        lines += [
            "",
            *_work(story),
            *_as_consumer(story),
            *_trust(story),
            *_audits(story),
            *_claims(story),
            *_own_claims(story),
        ]
    return lines


# ------------------------------------------------------------------------------------------------ where it stands


def _headline(story: Story) -> str:
    score = f", score {story.explanation.standing.score / ONE:.2f} of 1" if story.has_flow else ""
    anchor = ", an anchor" if story.is_anchor else ""
    return {
        Rank.NEWCOMER: f"a newcomer{anchor}.",
        Rank.ESTABLISHED: f"established{anchor}{score}.",
        Rank.CONVICTED: f"convicted of false work{anchor}{score}.",
        Rank.EQUIVOCATOR: f"caught with a lie{anchor}.",
        Rank.ENDED: "ended.",
    }[story.rank]


def _consequence(story: Story) -> list[str]:
    match story.rank:
        case Rank.NEWCOMER if not story.has_flow:
            return ["Nobody in this swarm is trusted yet, so everybody is a newcomer, and everybody gets work."]
        case Rank.NEWCOMER:
            return [
                "It gets work where fewer than three established servers hold its blocks; elsewhere they are asked."
            ]
        case Rank.ESTABLISHED:
            return ["It gets work like all established servers: who is fastest is asked first."]
        case Rank.CONVICTED:
            return [_no_work(story)]
        case Rank.EQUIVOCATOR:
            epochs = ", ".join(str(epoch) for epoch in story.contradictions)
            return [
                f"It signed two receipts that contradict each other (epoch {epochs}): the proof is on the DHT.",
                "Nobody can make such a proof up. It gets no work, and its own receipts give nobody trust.",
            ]
        case _:
            heir = story.explanation.heir
            return [f"What it has earned went to {heir}." if heir else "It named no heir that can take its place."]


def _no_work(story: Story) -> str:
    again_s = _until_again_s(story)
    if again_s is None:
        return "It gets no work, and the trust that it was given is passed on to nobody."
    return (
        "It gets no work, and little of the trust that it was given is passed on. If nothing else is found, it may get "
        f"work again in {_span(again_s)}."
    )


def _until_again_s(story: Story) -> int | None:
    """Say in how many seconds a convict with the usual trust passes the gate again; None: it is none, or never."""
    if story.rank is not Rank.CONVICTED:
        return None
    rules, convictions = story.rules, story.explanation.convictions
    for ahead in range(1, rules.evidence_epochs + 1):
        ages = [story.epoch + ahead - each.epoch for each in convictions]
        left = sum(decay(age, rules.conviction_half_life_epochs) for age in ages if age < rules.evidence_epochs)
        score = _USUAL_SCORE * decay(rules.conviction_exponent * left, ONE) // ONE
        if score * rules.gate.denominator >= ONE * rules.gate.numerator:
            return ahead * story.epoch_s
    return None


# --------------------------------------------------------------------------------------------- what is behind it


def _work(story: Story) -> list[str]:
    window = _span(story.rules.window_epochs * story.epoch_s)
    provided, consumed = story.provided, story.consumed
    if not provided and not consumed:
        return [f"In the last {window} nobody has signed for work that it did, or took."]
    gave = f"it did {counted(provided, 'block-token')} for {counted(len(story.consumers), 'peer')}"
    lines = [f"In the last {window} {gave} and took {counted(consumed, 'block-token')}, by what both sides signed."]
    lines += [f"  for {peer}: {counted(work, 'block-token')}" for peer, work in story.consumers[:_MOST]]
    return lines + _rest(len(story.consumers), "peers")


def _as_consumer(story: Story) -> list[str]:
    place = "like whoever is new" if story.level == NEW_LEVEL else "after" if story.level < NEW_LEVEL else "before"
    others = "" if story.level == NEW_LEVEL else " whoever is new"
    lines = [f"Where more is asked for than servers can do, its own requests are served {place}{others}."]
    if story.affiliates:
        with_whom = counted(len(story.affiliates), "peer")
        lines.append(f"For that counts what it and {with_whom} of its owner gave to others, and took from others:")
        lines += [f"  {peer}" for peer in story.affiliates[:_MOST]] + _rest(len(story.affiliates), "peers")
    return lines


def _trust(story: Story) -> list[str]:
    explanation, standing = story.explanation, story.explanation.standing
    if not story.has_flow:
        return ["Trust begins with the anchors: those who work for them, or whose work they check, are trusted first."]
    share = standing.flow / story.typical_flow
    lines = [f"The trust that reaches it from the anchors is {share:.0%} of what is typical in this swarm."]
    if explanation.num_inflows:
        lines.append(f"It comes from {counted(explanation.num_inflows, 'peer')}:")
        lines += [f"  {each.peer}: {each.flow / story.typical_flow:.1%}" for each in explanation.inflows]
        lines += _rest(explanation.num_inflows, "peers", len(explanation.inflows))
    if story.rank is Rank.NEWCOMER and explanation.missing_flow:
        needed = explanation.graduation_flow / story.typical_flow
        lines.append(
            f"From {needed:.0%} on it is established. What helps: work for peers that are trusted themselves, and "
            "audits that find nothing wrong. Both come by themselves as long as the server runs and does its work."
        )
    return lines


def _audits(story: Story) -> list[str]:
    if not story.num_passes:
        return ["No audit of its work is known."]
    times = "once" if story.num_passes == 1 else f"{story.num_passes:,} times"
    return [f"Its work was done again {times} by {counted(len(story.auditors), 'auditor')} and found right."]


def _claims(story: Story) -> list[str]:
    convictions, doubted_by = story.explanation.convictions, story.explanation.doubted_by
    lines = [_conviction(story, each) for each in convictions[:_MOST]] + _rest(len(convictions), "convictions")
    lines += [f"  {_case(story, case, case.accuser, 'by')}" for case in story.cases[:_MOST]]
    lines += _rest(len(story.cases), "claims")
    rejected = [case for case in story.cases if case.state == "rejected"]
    if rejected:
        lines.append(
            f"{_claims_were(len(rejected))} found false. That costs it nothing: not its score, nor any work; it costs "
            "whoever accused."
        )
    if doubted_by:
        lines.append(
            f"{counted(len(doubted_by), 'peer')} found fault with its work, and that is not decided: until then their "
            "own trust in it does not count, and nothing else changes."
        )
        lines += [f"  {peer}" for peer in doubted_by[:_MOST]] + _rest(len(doubted_by), "peers")
    if not (lines or story.contradictions):
        return ["Nothing is held against it."]
    return lines


def _conviction(story: Story, conviction: Weight) -> str:
    half_life = _span(story.rules.conviction_half_life_epochs * story.epoch_s)
    counts = f"that counts {conviction.left / ONE:.0%} now, and half as much every {half_life}"
    return f"It was convicted of false work {_ago(story, conviction.epoch)}: {counts}."


def _own_claims(story: Story) -> list[str]:
    rejections = story.explanation.rejections
    if not story.own_cases and not rejections:
        return []
    lines = [f"It accused others {'once' if len(story.own_cases) == 1 else f'{len(story.own_cases)} times'}:"]
    lines += [f"  {_case(story, case, case.accused, 'against')}" for case in story.own_cases[:_MOST]]
    lines += _rest(len(story.own_cases), "claims")
    if rejections:
        lines.append(
            f"{_claims_were(len(rejections))} found false: its voice counts less where others are judged, and its work "
            "counts as before."
        )
    return lines if story.own_cases else lines[1:]


def _claims_were(number: int) -> str:
    return "One claim was" if number == 1 else f"{number} claims were"


def _case(story: Story, case: Case, peer: str, word: str) -> str:
    why = f" {case.why}" if case.why else ""
    return f"A claim {word} {peer}, {_ago(story, case.epoch)}: {case.state}.{why}"


def _rest(number: int, what: str, shown: int = _MOST) -> list[str]:
    return [f"  and {number - shown:,} more {what}"] if number > shown else []


def _ago(story: Story, epoch: int) -> str:
    epochs = max(0, story.epoch - epoch)
    return f"in this epoch ({epoch})" if not epochs else f"{_span(epochs * story.epoch_s)} ago (epoch {epoch})"


def _span(seconds: int) -> str:
    """Write a span of time in the largest unit of which there are two."""
    for unit, length_s in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length_s:
            return counted(round(seconds / length_s), unit)
    return counted(seconds, "second")
