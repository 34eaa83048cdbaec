"""``efedllm score``: where a peer stands in a swarm, and with ``--why`` the records behind it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from dht.identity import Identity, peer_id_to_bytes
from dht.parameters import JoinCode
from dht.reputation import why
from dht.swarm import Swarm
from node.errors import UserError
from node.run.score_words import as_json, as_lines, story_of
from node.run.standings import board_of

_RULES_S = 15.0
"""Seconds that the swarm's rules are waited for: without them nobody can say which epochs there are."""


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What is asked for."""

    peer: str
    join: JoinCode
    home: Path  # state directory of the node whose findings count here
    anchors: tuple[str, ...] = ()  # peer ids; none: those of the swarm
    tells_why: bool = False
    as_json: bool = False


async def run_score(options: ScoreOptions) -> None:
    """Print where a peer stands.

    Raises:
        UserError: It is no peer id.
        PeerUnreachable: No member has the swarm's rules.
    """
    try:
        peer_id_to_bytes(options.peer)
    except ValueError:
        raise UserError(f"{options.peer[:80]!r} is no peer id; copy one from `efedllm status --json`.") from None
    async with Swarm(Identity.ephemeral(), join=options.join, client_mode=True) as swarm:
        rules = await swarm.wait_for_rules(_RULES_S)
        board = board_of(swarm, options.join, options.anchors, options.home)
        standings = await board.refresh()
    if not standings.scores.anchors:
        sys.stderr.write(
            "This swarm has no anchors, so nobody can be trusted more than others; name some: --anchors.\n"
        )
    explanation = why(standings.scores, standings.evidence, options.peer)
    story = story_of(options.peer, standings, rules.epoch_s, explanation)
    if options.as_json:
        sys.stdout.write(json.dumps(as_json(story)) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in as_lines(story, tells_why=options.tells_why)))
