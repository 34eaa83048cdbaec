#!/usr/bin/env python3
"""Measure how long the scores of a whole swarm take, on one core.

`small` is a swarm of 200 with 28,000 receipts in the window, `large` one of 1,000 with 140,000; audits, convictions and
claims besides. `reference` is what any program must do in the same run: look at each receipt of the same evidence once
and add it to the sum of its pair. Prints one JSON line.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.evidence import EPOCH, evidence_of_swarm
from bench.report import circumstances, spread

from dht.reputation import Evidence, score

SIZES = {"small": (200, 28_000), "large": (1000, 140_000)}
"""Peers, and receipts in the window."""


def sums(evidence: Evidence) -> dict[tuple[str, str], int]:
    """Add up by pair: the reference."""
    found: dict[tuple[str, str], int] = {}
    for consumer, provider, _, work in evidence.works:
        found[consumer, provider] = found.get((consumer, provider), 0) + work
    return found


def timed_s(act: Callable[[], Any]) -> float:
    """Time one call, in seconds of the processor."""
    began_s = time.process_time()
    act()
    return time.process_time() - began_s


def measure(num_peers: int, num_works: int, rounds: int, seed: int) -> dict[str, Any]:
    """Measure one size; one round warms up."""
    evidence, anchors = evidence_of_swarm(num_peers, num_works, seed)
    times = [
        (timed_s(lambda: score(evidence, anchors, EPOCH)), timed_s(lambda: sums(evidence))) for _ in range(rounds + 1)
    ][1:]
    return {
        "peers": num_peers,
        "receipts": num_works,
        **spread("score_s", [own_s for own_s, _ in times]),
        **spread("reference_s", [reference_s for _, reference_s in times]),
        **spread("ratio", [own_s / reference_s for own_s, reference_s in times], 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    figures = {size: measure(*SIZES[size], arguments.rounds, arguments.seed) for size in arguments.sizes}
    sys.stdout.write(json.dumps(circumstances("reputation", arguments.seed) | figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
