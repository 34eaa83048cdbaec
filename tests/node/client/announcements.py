"""Announcements for the tests of routing, all routes there are over a few of them, and what these cost."""

import itertools
from collections.abc import Iterator, Sequence

from dht.directory import Directory
from dht.records import Announcement, ServerState
from node.client.latencies import Latencies
from node.client.offers import STAGE_OVERHEAD_US, Part, Policy, offer_of
from node.client.plan import Question
from node.client.route import Route

MANIFEST = bytes(32)
NUM_BLOCKS = 8
EVERYONE = Policy()


def server(
    owner: str, start: int, end: int, *, throughput: int = 1_000_000, state: ServerState = ServerState.ONLINE,
    ends: int = 0, queue_us: int = 0, neighbours: Sequence[tuple[str, int]] = (), t: int = 1,
) -> Announcement:  # fmt: skip
    """Return an announcement; ``throughput`` in thousandths of a block-token per second: 1 ms a block."""
    return Announcement(
        manifest=MANIFEST,
        shard=0,
        owner=owner,
        t=t,
        life_s=60,
        state=state,
        start=start,
        end=end,
        dtype="float32",
        throughput_milli=throughput,
        max_length=1024,
        cache_free_tokens=1024,
        addresses=(f"/ip4/127.0.0.1/tcp/1/p2p/{owner}",),
        version="0.1.0",
        ends=ends,
        queue_us=queue_us,
        neighbours=tuple(neighbours),
    )


def question(servers: Sequence[Announcement], latencies: Latencies | None = None, **other: object) -> Question:
    """Ask for a route over a model of ``NUM_BLOCKS`` blocks; ``other`` are fields of ``Question``."""
    fields: dict[str, object] = {
        "directory": Directory(MANIFEST, tuple(servers)),
        "latencies": Latencies.of(servers, {}) if latencies is None else latencies,
        "scores": {},
        "policy": EVERYONE,
        "part": Part(NUM_BLOCKS, 0, NUM_BLOCKS, needs_ends=False),
    }
    return Question(**(fields | other))  # type: ignore[arg-type]


Turn = tuple[str, int, int]


def all_routes(asked: Question) -> Iterator[list[Turn]]:
    """Yield every chain of turns that covers the part with no server twice."""
    offers = {
        entry.owner: offer_of(entry, asked.part, asked.scores.get(entry.owner, 1.0))
        for entry in asked.directory.servers
    }

    def onward(turns: list[Turn], at: int) -> Iterator[list[Turn]]:
        if at == asked.part.end:
            yield turns
        for owner, offer in offers.items():
            if offer.start <= at and owner not in {turn[0] for turn in turns}:
                for end in range(at + 1, offer.end + 1):
                    yield from onward([*turns, (owner, at, end)], end)

    yield from onward([], asked.part.start)


def cost_us(asked: Question, turns: Sequence[Turn]) -> int:
    """Return the time of one token through ``turns``, by the latency law, us."""
    known = {entry.owner: entry for entry in asked.directory.servers}
    total = 0
    for owner, start, end in turns:
        offer = offer_of(known[owner], asked.part, asked.scores.get(owner, 1.0))
        total += STAGE_OVERHEAD_US + offer.queue_us + (end - start) * offer.block_us
    stops = [asked.before, *(turn[0] for turn in turns), asked.after]
    return total + sum((asked.latencies.round_trip_us(one, other) + 1) // 2 for one, other in itertools.pairwise(stops))


def slowest_us(asked: Question, turns: Sequence[Turn]) -> int:
    """Return how long the slowest of ``turns`` computes for a token, us."""
    known = {entry.owner: entry for entry in asked.directory.servers}
    return max((end - start) * offer_of(known[owner], asked.part, 1.0).block_us for owner, start, end in turns)


def turns_of(route: Route) -> list[Turn]:
    """Return the stages of ``route`` as turns."""
    return [(stage.peer_id, stage.start, stage.end) for stage in route.stages]
