#!/usr/bin/env python3
"""Simulate a swarm in which some nodes lie, under our rule of trust and under others.

No sockets and no clock: time goes in epochs, and scores are those of dht/reputation. Honest clients send requests,
audit a few, and accuse who fails; claims are judged; liars vote, vouch and appeal for each other. What is counted is
what honest clients get. The defaults print everything that docs/trust.md shows, as markdown. `--quick` runs less, and
is what a change is tested with. The exit code is 1, with a sentence for each, when a demand is missed. The model is in
scripts/reputation_simulation; docs/trust.md says what it leaves out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reputation_simulation import tables
from reputation_simulation.attacks import ATTACKS
from reputation_simulation.curves import draw
from reputation_simulation.demands import missed, missed_under_load
from reputation_simulation.figures import Figures, figures_of, mean
from reputation_simulation.overload import RENAMING, RIDERS, Queues
from reputation_simulation.rules import RULES
from reputation_simulation.settings import Settings
from reputation_simulation.swarm import Swarm

QUICK = Settings(num_nodes=100, num_ranges=4, num_newcomers=6, newcomers_epoch=10)
QUICK_ATTACKS = ("always", "partial", "stealth", "sybil", "slander", "whitewash", "collude", "mixed")

SECTIONS = ("aft", "rules", "trials", "anchors", "fractions", "floods")
"""What is simulated: ours, other rules, other conditions of trials, bad anchors, other shares of liars, floods of
identities."""

AWAY: dict[str, Any] = {"away": 0.1}
VERIFIERS: dict[str, Any] = {"anchors_verify": True, "canaries": 24}
"""As many sessions as ``efedllm verify`` makes."""
TRIALS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("one in ten away, nobody denies for it", "slander", AWAY | {"num_defenders": 0}),
    ("one in ten away, one anchor has the weights", "slander", AWAY | {"num_defenders": 1}),
    ("half of the jurors above level 1 cannot tell", "mixed", {"cannot_tell": 0.5}),
    ("canaries of one request", "stealth", {"canary_requests": 1}),
    ("the same, 20% audited for 8 epochs", "stealth", {"canary_requests": 1, "fresh_audit_rate": 0.2}),
    ("anchors alone accuse", "always", VERIFIERS),
    ("anchors alone accuse", "stealth", VERIFIERS),
    ("anchors alone accuse", "mixed", VERIFIERS),
    ("anchors alone accuse, no false positives", "always", VERIFIERS | {"false_positives": 0.0}),
)
"""Case, attack, and what is changed."""

FRACTIONS = (0.1, 0.2, 0.3, 0.4)
MAIN = 0.3
"""Share of liars for which demands are made."""


@dataclass(frozen=True)
class Run:
    """One run of the simulation."""

    section: str
    case: str
    attack: str
    rule: str
    settings: Settings
    seed: int


def simulate(run: Run) -> Figures:
    """Run it."""
    swarm = Swarm(run.settings, run.attack, RULES[run.rule](), run.seed)
    swarm.run()
    return figures_of(swarm)


def planned(settings: Settings, rules: Iterable[str], attacks: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """List the runs of the full simulation: ours first."""

    def runs(section: str, case: str, attack: str, rule: str, changed: Settings) -> list[Run]:
        return [Run(section, case, attack, rule, changed, seed) for seed in seeds]

    ours = [run for attack in attacks for run in runs("aft", attack, attack, "aft", settings)]
    others = [
        run
        for rule in rules
        if rule != "aft"
        for attack in attacks
        for run in runs(rule, attack, attack, rule, settings)
    ]
    trials = [
        run
        for case, attack, changes in TRIALS
        for run in runs("trials", f"{attack}, {case}", attack, "aft", replace(settings, **changes))
    ]
    more = [
        run
        for share in FRACTIONS
        if share != settings.malicious
        for attack in ("always", "stealth", "slander", "mixed")
        for run in runs("fractions", f"{attack}, {share:.0%}", attack, "aft", replace(settings, malicious=share))
    ]
    anchors = [
        run
        for num in (1, 2, 3)
        for attack in ("slander", "mixed")
        for run in runs("anchors", f"{attack}, {num} of 5", attack, "aft", replace(settings, num_bad_anchors=num))
    ]
    mended = replace(settings, num_bad_anchors=3, new_anchors_epoch=60)
    anchors += runs("anchors", "slander, 3 of 5, replaced at epoch 60", "slander", "aft", mended)
    floods = [
        run
        for share in (0.5, 2 / 3)
        for epoch in (0, 20)
        for run in runs(
            "floods", f"sybil, {share:.0%}, from epoch {epoch}", "sybil", "aft",
            replace(settings, malicious=share, malicious_epoch=epoch),
        )
    ]  # fmt: skip
    floods += [
        run
        for share in (0.5, 2 / 3)
        for run in runs(
            "floods", f"sleeper, {share:.0%}, defect at epoch 40", "sleeper", "aft", replace(settings, malicious=share)
        )
    ]
    return ours + others + trials + anchors + more + floods


def run_all(runs: Sequence[Run], jobs: int) -> dict[str, dict[str, list[Figures]]]:
    """Run them: by section and case the figures of every seed."""
    began_s = time.monotonic()
    if jobs == 1:
        return _collect(runs, map(simulate, runs), began_s)
    with ProcessPoolExecutor(jobs) as pool:
        return _collect(runs, pool.map(simulate, runs), began_s)


def _collect(runs: Sequence[Run], done: Iterable[Figures], began_s: float) -> dict[str, dict[str, list[Figures]]]:
    found: dict[str, dict[str, list[Figures]]] = {}
    for number, (run, figures) in enumerate(zip(runs, done, strict=True), 1):
        found.setdefault(run.section, {}).setdefault(run.case, []).append(figures)
        took_s = time.monotonic() - began_s
        print(f"{number}/{len(runs)} {took_s:.0f} s: {run.section}, {run.case}, seed {run.seed}: "
              f"{figures.bad:.3%} bad, {figures.honest_flagged:.2%} honest flagged", file=sys.stderr)  # fmt: skip
    return found


def over_seeds(found: Mapping[str, Mapping[str, Sequence[Figures]]]) -> dict[str, dict[str, Figures]]:
    """Average over seeds."""
    return {section: {case: mean(all_) for case, all_ in cases.items()} for section, cases in found.items()}


def under_load(num_epochs: int, seed: int) -> dict[str, dict[str, float]]:
    """Compare the ratio rule with the order of arrival: shares of demand by group of consumers."""
    cases = {
        "order of arrival": (False, RIDERS),
        "ratio rule": (True, RIDERS),
        "ratio rule, free riders with new names": (True, RENAMING),
    }
    return {name: Queues(*case, seed).run(num_epochs, counted=num_epochs // 2) for name, case in cases.items()}


def print_rules(rules: Mapping[str, Mapping[str, Figures]]) -> None:
    """Print what compares rules as markdown."""
    print("### Bad outputs, last 10 epochs\n\n" + tables.by_rule(rules) + "\n")
    print("### Traffic of newcomers and of a ring\n\n" + tables.newcomers_and_inflation(rules) + "\n")
    if all("mixed" in one for one in rules.values()):
        print("### Over time, mixed\n\n" + tables.course({name: one["mixed"] for name, one in rules.items()}) + "\n")


def print_tables(found: Mapping[str, Mapping[str, Figures]], load: Mapping[str, Mapping[str, float]]) -> None:
    """Print everything as markdown."""
    rules = {name: found[name] for name in RULES if name in found}
    if rules:
        print_rules(rules)
    for section in ("aft", "trials", "fractions", "anchors", "floods"):
        if section in found:
            print(f"### {section}\n\n" + tables.in_detail(found[section]) + "\n")
    for section in ("aft", "trials", "floods", "anchors"):
        if section in found:
            print(f"### {section} over time\n\n" + tables.course(found[section]) + "\n")
    groups = next(iter(load.values()))
    rows = [[name, *(f"{share:.2f}" for share in shares.values())] for name, shares in load.items()]
    print("### Served of what was asked, under load\n\n" + tables.table(["order", *groups], rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and say what is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer nodes, epochs and attacks: under two minutes")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="default: 0, with --quick 0 and 1: one node of 76 is 1.3%%"
    )
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, help="default: all, with --quick some")
    parser.add_argument("--epochs", type=int, help="default: 80")
    parser.add_argument("--nodes", type=int, help="default: 200, with --quick 100")
    parser.add_argument("--malicious", type=float, default=MAIN, help="share of liars (default: 0.3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="folder to write curves to, as SVG")
    arguments = parser.parse_args(argv)
    settings = QUICK if arguments.quick else Settings()
    settings = replace(
        settings, malicious=arguments.malicious, num_epochs=arguments.epochs or settings.num_epochs,
        num_nodes=arguments.nodes or settings.num_nodes,
    )  # fmt: skip
    attacks = arguments.attacks or (QUICK_ATTACKS if arguments.quick else tuple(ATTACKS))
    seeds = arguments.seeds or ([0, 1] if arguments.quick else [0])
    runs = planned(settings, arguments.rules, attacks, seeds)
    sections = {"aft"} if arguments.quick else set(arguments.sections)
    runs = [run for run in runs if (run.section if run.section in SECTIONS else "rules") in sections]
    by_seed = run_all(runs, arguments.jobs)
    found = over_seeds(by_seed)
    load = under_load(4 if arguments.quick else 60, seeds[0])
    print_tables(found, load)
    if len(seeds) > 1:
        print("\n### Seeds\n\n" + tables.seeds(by_seed.get("aft", {}) | by_seed.get("trials", {})))
    if arguments.json:
        content = {section: {case: asdict(one) for case, one in cases.items()} for section, cases in found.items()}
        arguments.json.write_text(json.dumps({"figures": content, "load": load}, indent=1) + "\n")
    if arguments.plots:
        draw(arguments.plots, found)
    faults = list(missed(found.get("aft", {})))
    for name, shares in load.items():
        faults += missed_under_load(shares) if name.startswith("ratio") else ()
    for fault in faults:
        print(f"missed: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
