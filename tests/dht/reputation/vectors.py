"""The golden vectors of scores against this interpreter's: ``python -m tests.dht.reputation.vectors``.

It needs the standard library and msgpack, whose pure Python will do, so that any interpreter can run it.
"""

import json
import platform
import sys
from pathlib import Path

from dht.reputation import (
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

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "scores.json").read_text())
ENTRIES = {
    "works": Work, "passes": Pass, "convictions": Conviction, "rejections": Rejection, "open_fails": OpenFail,
    "successions": Succeeded,
}  # fmt: skip


def evidence_of(lists):
    entries = {name: tuple(kind(*entry) for entry in lists[name]) for name, kind in ENTRIES.items()}
    return Evidence(**entries, equivocators=frozenset(lists["equivocators"]))


def score_of(vector):
    """Return what a vector's evidence gives, in the vector's form."""
    scores = score(evidence_of(vector["evidence"]), vector["anchors"], vector["epoch"], ScoreRules(**vector["rules"]))
    return {
        "standings": {peer: standing._asdict() for peer, standing in scores.standings.items()},
        "typical_flow": scores.typical_flow,
        "digest": scores.digest.hex(),
    }


def different_decays():
    """Name the ages and weights of which something else is left."""
    ages = [
        (table["half_life"], age)
        for table in VECTORS["decay"]
        for age, left in enumerate(table["left"])
        if decay(age, table["half_life"]) != left
    ]
    return ages + [vector["weight"] for vector in VECTORS["powers"] if decay(vector["weight"], ONE) != vector["left"]]


def different_priorities():
    """Return the histories that give another priority."""
    return [
        vector
        for vector in VECTORS["priority"]
        if priority(vector["provided"], vector["consumed"]) != vector["priority"]
    ]


def main():
    """Say what differs; exit with 1 where something does."""
    different = [vector["name"] for vector in VECTORS["scores"] if vector != {**vector, **score_of(vector)}]
    different += map(str, [*different_decays(), *different_priorities()])
    print(platform.python_implementation(), platform.python_version(), sys.platform, platform.architecture()[0])
    print(f"{len(VECTORS['scores'])} scores and their digests, decays, priorities; different: {different}")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
