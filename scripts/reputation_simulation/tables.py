"""Write figures as tables in markdown. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reputation_simulation.demands import MAX_BAD, MAX_HONEST_FLAGGED, MIN_NEWCOMERS
from reputation_simulation.figures import Figures

EPOCHS = ((0, 1), (4, 5), (18, 21), (38, 41), (70, 79))
"""First and last epochs of the columns of a course."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_rule(figures: Mapping[str, Mapping[str, Figures]]) -> str:
    """Share of bad outputs, by rule and attack."""
    attacks = list(next(iter(figures.values())))
    rows = [[rule, *(f"{found[attack].bad:.2%}" for attack in attacks)] for rule, found in figures.items()]
    return table(["rule", *attacks], rows)


def newcomers_and_inflation(figures: Mapping[str, Mapping[str, Figures]]) -> str:
    """Traffic of honest newcomers and of a ring that signs for itself, by rule."""
    rows = []
    for rule, found in figures.items():
        inflation = f"{found['collude'].inflation:.2f}" if "collude" in found else ""
        rows.append([rule, inflation, *(f"{one.newcomers:.2f}" for one in found.values())])
    attacks = [f"newcomers, {attack}" for attack in next(iter(figures.values()))]
    return table(["rule", "inflation, collude", *attacks], rows)


def in_detail(figures: Mapping[str, Figures]) -> str:
    """Everything about one rule, by case."""
    head = ["case", "bad, last 10 epochs", "bad, all epochs", "bad outputs of a liar", "recall", "honest flagged",
            "newcomers", "inflation", "duplicates", "claims", "re-executions", "anchor appeals"]  # fmt: skip
    return table(head, [[case, *_details(found)] for case, found in figures.items()])


def _details(found: Figures) -> list[str]:
    return [
        f"{found.bad:.3%}", f"{found.bad_in_all:.2%}", f"{found.delivered:.0f}", f"{found.recall:.2f}",
        f"{found.honest_flagged:.2%}", f"{found.newcomers:.2f}", f"{found.inflation:.2f}", f"{found.duplicates:.1%}",
        f"{found.claims:.1f}", f"{found.votes:.0f}", f"{found.anchor_appeals:.2f}",
    ]  # fmt: skip


def seeds(found: Mapping[str, Sequence[Figures]]) -> str:
    """In how many seeds each case holds the demands, and the worst that was seen."""
    head = ["case", "bad outputs held", "honest held", "newcomers held", "most bad", "most flagged", "fewest newcomers"]
    rows = []
    for case, runs in found.items():
        bad, flagged = [one.bad for one in runs], [one.honest_flagged for one in runs]
        newcomers = [one.newcomers for one in runs]
        held = (
            sum(share <= MAX_BAD for share in bad), sum(share <= MAX_HONEST_FLAGGED for share in flagged),
            sum(share >= MIN_NEWCOMERS for share in newcomers),
        )  # fmt: skip
        worst = (f"{max(bad):.3%}", f"{max(flagged):.2%}", f"{min(newcomers):.2f}")
        rows.append([case, *(f"{number} of {len(runs)}" for number in held), *worst])
    return table(head, rows)


def course(figures: Mapping[str, Figures]) -> str:
    """Share of bad outputs over time, by case."""
    rows = [
        [case, *(f"{_mean(found.bad_by_epoch[first : last + 1]):.2%}" for first, last in EPOCHS)]
        for case, found in figures.items()
    ]
    return table(["case", *(f"epochs {first} - {last}" for first, last in EPOCHS)], rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
