"""Receipts outlive the nodes that publish and hold them: a fresh reader finds them, epochs and many deaths later."""

import dataclasses
import json
import statistics
import sys
import time

import pytest

from tests.soak.town import Outcome, Plan, live_in_town

SMALL = Plan(num_nodes=16, num_pairs=24, num_epochs=3, epoch_s=6, num_killed=3)
WHOLE = Plan(num_nodes=60, num_pairs=200, num_epochs=8, epoch_s=60, num_killed=12)

MAX_NODE_BYTES = 2**22
"""More than the records of a whole run take at any node."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


def told(plan: Plan, outcome: Outcome, took_s: float) -> str:
    """Sum an outcome up in one line."""
    return json.dumps(
        {
            "bench": "receipts_swarm",
            **dataclasses.asdict(plan),
            "took_s": round(took_s),
            "expected": outcome.num_expected,
            "of_living": outcome.num_of_living,
            "recovered": round(outcome.recovered, 5),
            "killed": outcome.num_killed,
            "sent_again": outcome.num_sent_again,
            "read_s": outcome.read_s,
            "records_per_node": statistics.median(outcome.records_per_node),
            "records_per_node_max": max(outcome.records_per_node),
            "bytes_per_node_max": max(outcome.bytes_per_node),
            "p2pd_mib": round(statistics.median(outcome.p2pd_bytes) / 2**20, 1),
            "own_mib_per_node": round(outcome.own_bytes / 2**20 / plan.num_nodes, 1),
        }
    )


async def lives(plan: Plan) -> None:
    began = time.monotonic()
    outcome = await live_in_town(plan)
    print(told(plan, outcome, time.monotonic() - began))
    assert outcome.num_killed == plan.num_killed * plan.num_epochs
    assert outcome.num_expected > 0.7 * plan.num_pairs * plan.num_epochs
    assert outcome.num_of_living > 0
    assert outcome.recovered >= 0.999, outcome.lost[:10]
    assert outcome.num_sent_again > 0
    assert max(outcome.bytes_per_node) < MAX_NODE_BYTES


@pytest.mark.timeout(170)
async def test_a_small_swarm_keeps_its_receipts_while_a_fifth_of_it_dies_in_each_epoch():
    await lives(SMALL)


@pytest.mark.full
@pytest.mark.timeout(3600)
async def test_sixty_nodes_keep_the_receipts_of_two_hundred_pairs_through_eight_epochs():
    await lives(WHOLE)
