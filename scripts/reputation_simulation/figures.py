"""Read the figures off a run. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

from dht.judgement.timeline import UNITS_PER_EPOCH
from dht.reputation import DEFAULT_SCORE_RULES, ONE, score
from reputation_simulation.book import Node
from reputation_simulation.settings import LAST
from reputation_simulation.swarm import Epoch, Swarm


@dataclass(frozen=True)
class Figures:
    """What a run has shown; shares lie between 0 and 1."""

    bad: float  # of the outputs that honest clients got in the last epochs
    bad_in_all: float  # the same over all epochs
    bad_by_epoch: tuple[float, ...]
    recall: float  # of the liars that are there, who is flagged
    honest_flagged: float  # of the honest nodes, who is: convicted, or silenced after rejected claims
    silenced: float  # of the liars, whose claims are not heard any more
    newcomers: float  # traffic of honest newcomers in the last epochs, over that of other honest nodes of their ranges
    inflation: float  # traffic of liars over what is theirs by number, last epochs
    duplicates: float  # requests answered twice for newcomers, over all requests
    claims: float  # in an epoch
    votes: float  # re-executions by jurors in an epoch
    anchor_appeals: float  # in an epoch
    delivered: float  # bad outputs that a liar has delivered in all


def figures_of(swarm: Swarm) -> Figures:
    """Sum up a run."""
    last, nodes = swarm.epochs[-LAST:], swarm.nodes
    flagged, silenced = _flagged(swarm), _silenced(swarm)
    honest = [node.name for node in nodes if node.is_honest]
    liars = [node.name for node in nodes if not node.is_honest and node.is_alive]
    num_liars = max(1, round(swarm.settings.malicious * swarm.settings.num_nodes))
    return Figures(
        bad=_bad(last),
        bad_in_all=_bad(swarm.epochs),
        bad_by_epoch=tuple(round(_bad([epoch]), 5) for epoch in swarm.epochs),
        recall=_share(liars, flagged | silenced),
        honest_flagged=_share(honest, flagged | silenced),
        silenced=_share(liars, silenced),
        newcomers=_newcomers(swarm, last),
        inflation=_inflation(last, nodes, liars),
        duplicates=_sum(epoch.duplicates for epoch in swarm.epochs) / _sum(epoch.served for epoch in swarm.epochs),
        claims=fmean(epoch.claims for epoch in swarm.epochs),
        votes=fmean(epoch.votes for epoch in swarm.epochs),
        anchor_appeals=fmean(epoch.anchor_appeals for epoch in swarm.epochs),
        delivered=sum(epoch.bad for epoch in swarm.epochs) / num_liars,
    )


def mean(several: Sequence[Figures]) -> Figures:
    """Average figures of runs with different seeds."""
    names = [field.name for field in fields(Figures) if field.name != "bad_by_epoch"]
    means = {name: fmean(getattr(one, name) for one in several) for name in names}
    series = tuple(fmean(values) for values in zip(*(one.bad_by_epoch for one in several), strict=True))
    return Figures(bad_by_epoch=series, **means)


def _sum(values: Iterable[int]) -> int:
    return max(1, sum(values))


def _bad(epochs: Sequence[Epoch]) -> float:
    return sum(epoch.bad for epoch in epochs) / _sum(epoch.served for epoch in epochs)


def _share(names: Sequence[str], among: set[str]) -> float:
    return sum(name in among for name in names) / len(names) if names else 0.0


def _flagged(swarm: Swarm) -> set[str]:
    """Name convicts: those who are neither trusted nor newcomers for their convictions."""
    scores = score(swarm.book.evidence(), swarm.anchors, swarm.book.epoch - 1)
    few = ONE * DEFAULT_SCORE_RULES.newcomer_convictions
    return {peer for peer in scores.peers if scores.standing(peer).convictions >= few}


def _silenced(swarm: Swarm) -> set[str]:
    epoch = swarm.book.epoch
    accusers = {one.accuser for one in swarm.book.rejections}
    return {node.name for node in swarm.nodes if node.name in accusers
            and not swarm.courts.is_heard(node, epoch, epoch * UNITS_PER_EPOCH)}  # fmt: skip


def _newcomers(swarm: Swarm, last: Sequence[Epoch]) -> float:
    """Average over newcomers what each has of the mean traffic of the others of its range."""
    honest = [node for node in swarm.nodes if node.is_honest and node.is_alive]
    ratios = []
    for newcomer in honest:
        if newcomer.joined:
            others = [node for node in honest if node.range == newcomer.range and not node.joined]
            usual = sum(epoch.traffic[node.name] for epoch in last for node in others) / max(1, len(others))
            ratios.append(sum(epoch.traffic[newcomer.name] for epoch in last) / usual if usual else 0.0)
    return fmean(ratios) if ratios else 0.0


def _inflation(last: Sequence[Epoch], nodes: Sequence[Node], liars: Sequence[str]) -> float:
    alive = sum(node.is_alive for node in nodes)
    if not liars:
        return 0.0
    theirs = sum(epoch.traffic[name] for epoch in last for name in liars)
    return theirs / _sum(epoch.served for epoch in last) / (len(liars) / alive)
