"""What happens to a swarm in a soak, and when: a pure function of a seed, so that a run can be repeated.

A harm takes a server; the mend that goes with it gives it back. At most one server of each span is harmed at a time,
except that now and then a whole span is, for one beat: then clients wait.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

HARMS = {
    "kill": "restart",
    "kill_daemon": "restart",
    "drain": "restart",
    "freeze": "thaw",
    "slow": "heal",
    "drop": "heal",
    "delay": "heal",
    "corrupt": "heal",
    "partition": "heal",
}
"""Each way to harm a server, and what mends it."""
_BOTH = 0.1
"""How likely the second server of a span is harmed, too, when the first one is."""


@dataclass(frozen=True)
class Event:
    """One thing that is done to one server."""

    beat: int
    """When: events come at regular beats."""
    act: str
    server: int
    """Number of the server, from 0."""

    def __str__(self) -> str:
        return f"{self.beat}: {self.act} {self.server}"


def plan_events(seed: int, num_beats: int, num_spans: int) -> list[Event]:
    """Draw one event for each beat; servers ``span`` and ``num_spans + span`` hold the same blocks."""
    return list(_draw(random.Random(seed), num_beats, num_spans))


def _draw(chance: random.Random, num_beats: int, num_spans: int) -> Iterator[Event]:
    harmed: dict[int, str] = {}
    for beat in range(num_beats):
        waiting = [server for server in harmed if (server + num_spans) % (2 * num_spans) in harmed]
        can_harm = [
            server
            for server in range(2 * num_spans)
            if server not in harmed
            and ((server + num_spans) % (2 * num_spans) not in harmed or chance.random() < _BOTH)
        ]
        if waiting or not can_harm or (harmed and chance.random() < 0.5):
            server = chance.choice(waiting or sorted(harmed))
            yield Event(beat, HARMS[harmed.pop(server)], server)
        else:
            server, act = chance.choice(can_harm), chance.choice(sorted(HARMS))
            harmed[server] = act
            yield Event(beat, act, server)
