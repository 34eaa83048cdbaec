"""``efedllm claims``: the claims of a swarm, open and settled, and what every node concludes from them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dht.identity import Identity
from dht.judgement.outcomes import Ruling, State
from dht.parameters import JoinCode
from dht.swarm import Swarm
from node.run.standings import board_of

_RULES_S = 15.0
"""Seconds that the swarm's rules are waited for: without them nobody can say which epochs there are."""


async def run_claims(join: JoinCode, anchors: Sequence[str], home: Path, *, as_json: bool) -> None:
    """Print the claims that stand.

    Args:
        join: the swarm.
        anchors: peer ids whose trust counts for this user; none: those of the swarm.
        home: the state directory of the node whose findings count here.
        as_json: whether to print one JSON object.

    Raises:
        PeerUnreachable: no member has the swarm's rules.
    """
    async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as swarm:
        await swarm.wait_for_rules(_RULES_S)
        outcomes = (await board_of(swarm, join, anchors, home).refresh()).outcomes
    if as_json:
        sys.stdout.write(json.dumps({"claims": [as_object(ruling) for ruling in outcomes.rulings]}) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in as_lines(outcomes.rulings, time.time())))


def as_object(ruling: Ruling) -> dict[str, Any]:
    """Return a ruling as ``--json`` prints it."""
    return {
        "claim": ruling.claim.hex(),
        "accuser": ruling.accuser,
        "accused": ruling.accused,
        "epoch": ruling.epoch,
        "session": ruling.chunk.session.hex(),
        "segment": ruling.chunk.segment,
        "index": ruling.chunk.number,
        "state": ruling.state.value,
        "why": ruling.why,
        "is_final": ruling.is_final,
        "level": ruling.level,
        "settled_s": ruling.settled_s,
        "committees": [list(members) for members in ruling.committees],
    }


def as_lines(rulings: Sequence[Ruling], now_s: float) -> list[str]:
    """Return rulings as people read them, those that are open first.

    Args:
        rulings: by the time of their claims.
        now_s: unix seconds.
    """
    if not rulings:
        return ["Nobody has claimed anything."]
    lines = []
    for title, is_final in (("Open", False), ("Settled", True)):
        these = [ruling for ruling in rulings if ruling.is_final is is_final]
        lines += [f"{title}: {len(these)}"]
        for ruling in these:
            lines += [
                f"  {ruling.state.value:<10} {ruling.accuser} accuses {ruling.accused}",
                f"{' ' * 13}epoch {ruling.epoch}, claim {ruling.claim.hex()[:16]}. {ruling.why}{_until(ruling, now_s)}",
            ]
    return lines


def _until(ruling: Ruling, now_s: float) -> str:
    if ruling.is_final or ruling.state is not State.PENDING:
        return ""
    return f" It is settled in {max(1, round((ruling.settled_s - now_s) / 60))} min at the latest."
