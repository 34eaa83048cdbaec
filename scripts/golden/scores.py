"""Scores of small swarms with everything that follows: numbers of every peer, and the digest; and the tables behind.

Whoever writes another implementation checks it against these. Peers are named by letters: any text is hashed alike.
Deterministic: integers only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from typing import Any

from dht.reputation import (
    DEFAULT_SCORE_RULES,
    ONE,
    Conviction,
    Evidence,
    OpenFail,
    Pass,
    Rejection,
    ScoreRules,
    Succeeded,
    Work,
    decay,
    priority,
    score,
)

ABOUT = "Numbers are Q40: n stands for n / 2^40. Decay: what is left at ages 0, 1, 2 ... See docs/trust.md, The score."
EPOCH = 100
ANCHORS = ("A", "B", "C")
PEERS = (*ANCHORS, *(f"peer {number:02}" for number in range(8)))
TABLES = ((28, 56), (56, 360), (120, 360), (7, 15), (65536, 4))
"""Half-lives, and how many ages."""


def all_scores() -> dict[str, Any]:
    """Return the file's content."""
    return {
        "about": ABOUT,
        "decay": [
            {"half_life": half_life, "left": [decay(age, half_life) for age in range(length)]}
            for half_life, length in TABLES
        ],
        "powers": [{"weight": weight, "left": decay(weight, ONE)} for weight in (0, 1, ONE // 3, ONE, 5 * ONE // 2)],
        "priority": [_priority(*case) for case in _priorities()],
        "scores": [_vector(*case) for case in _cases()],
    }


def _priorities() -> Iterator[tuple[int, int]]:
    yield from ((provided, consumed) for provided in (0, 4096, 400_000) for consumed in (0, 24_576, 999_999))


def _priority(provided: int, consumed: int) -> dict[str, int]:
    return {"provided": provided, "consumed": consumed, "priority": priority(provided, consumed)}


def _cases() -> Iterator[tuple[str, Evidence, Collection[str], ScoreRules]]:
    """Yield name, evidence, anchors and rules."""
    usual, rules = _usual(), DEFAULT_SCORE_RULES
    bad = "peer 07"
    yield "nothing is known", Evidence(), ANCHORS, rules
    yield "nobody is an anchor", usual, (), rules
    yield "work and audits of many ages", usual, ANCHORS, rules
    ring = tuple(Work(f"sybil {i}", f"sybil {(i + 1) % 3}", EPOCH, 10**9) for i in range(3))
    yield "a ring without inflow", replace(usual, works=usual.works + ring), ANCHORS, rules
    door = (Work("peer 01", "sybil 0", EPOCH, 4096),)
    yield "a ring with inflow", replace(usual, works=usual.works + ring + door), ANCHORS, rules
    convicted = replace(usual, convictions=(Conviction(bad, 99), Conviction(bad, 99), Conviction(bad, 30)))
    yield "convictions", convicted, ANCHORS, rules
    yield "an equivocator", replace(usual, equivocators=frozenset({bad})), ANCHORS, rules
    slander = replace(
        usual,
        open_fails=(OpenFail("peer 03", bad), OpenFail("peer 03", bad), OpenFail("peer 03", "peer 04")),
        rejections=(Rejection("peer 03", 98), Rejection("peer 03", 98), Rejection("peer 03", 50)),
    )
    yield "slander", slander, ANCHORS, rules
    heirs = replace(
        convicted,
        successions=(
            Succeeded(bad, "heir", 60), Succeeded("heir", "last heir", 80), Succeeded("A", "D", 99),
            Succeeded("peer 01", "one", 90), Succeeded("peer 01", "other", 91), Succeeded("peer 02", "late", 101),
            Succeeded("peer 05", "peer 06", 95), Succeeded("peer 06", "peer 05", 96),
        ),
    )  # fmt: skip
    yield "successions: a chain, an anchor's, two heirs, one of the future, a circle", heirs, ANCHORS, rules
    other = ScoreRules.of_swarm(
        window_epochs=9, evidence_epochs=40, flow_half_life_epochs=7, conviction_half_life_epochs=11,
        audit_half_life_epochs=13,
    )  # fmt: skip
    yield "another swarm's half-lives", slander, ANCHORS, other


def _usual() -> Evidence:
    """Make work and audits of which no two are alike, with some outside the window and some for oneself."""
    works, passes = [], []
    for i, consumer in enumerate(PEERS):
        for j, provider in enumerate(PEERS):
            epoch = EPOCH - (7 * i + 11 * j) % 60 + 1
            works.append(Work(consumer, provider, epoch, (i + 1) * (3 * j + 2) * 1531))
            if (i + 2 * j) % 5 == 0:
                passes += [Pass(consumer, provider, epoch), Pass(consumer, provider, epoch - 1)] * 2
    return Evidence(works=tuple(works), passes=tuple(passes))


def _vector(name: str, evidence: Evidence, anchors: Collection[str], rules: ScoreRules) -> dict[str, Any]:
    scores = score(evidence, anchors, EPOCH, rules)
    lists = asdict(evidence) | {"equivocators": sorted(evidence.equivocators)}
    return {
        "name": name,
        "rules": {
            field: getattr(rules, field)
            for field in (
                "window_epochs", "evidence_epochs", "flow_half_life_epochs", "conviction_half_life_epochs",
                "claim_half_life_epochs",
            )
        },
        "anchors": list(anchors),
        "epoch": EPOCH,
        "evidence": {field: [entry if isinstance(entry, str) else list(entry) for entry in entries]
                     for field, entries in lists.items()},
        "typical_flow": scores.typical_flow,
        "standings": {peer: standing._asdict() for peer, standing in scores.standings.items()},
        "digest": scores.digest.hex(),
    }  # fmt: skip
