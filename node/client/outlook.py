"""What a client knows of the servers of one model, and the routes that follow from it.

Runs in the client's event loop: it looks the directory up, has round trips measured (``pings``) and remembers who
failed (``avoidance``). Plans are made in another thread: with hundreds of servers one takes longer than the loop may be
held up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dht.directory import Directory, read_directory
from dht.records import Announcement
from dht.standing.ranks import Ranks
from dht.swarm import Swarm
from node.client.avoidance import Avoidance
from node.client.latencies import Latencies
from node.client.offers import FASTEST, Part, Policy, newest, why_not
from node.client.pings import Pings
from node.client.plan import Question
from node.client.route import Route, route_of
from node.client.trust import Trust, trust_of
from node.errors import MissingBlocks

_NEW_S = 1.0
"""The directory as it was so long ago needs no new look."""
_RECENT_S = 10.0
"""The directory as it was so long ago is good enough to begin with; a new look is taken meanwhile."""
_LOOK_S = 0.3
"""For a look at the directory whoever has an older one waits so long: members that are gone make it slow."""
_PINGS_S = 0.2
"""For round trips the first plan waits so long; those that come later serve the next one."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a route is planned for."""

    start: int
    end: int
    needs_ends: bool
    """Whether its ends embed and score for a client without weights."""
    without: frozenset[str] = frozenset()
    """Peers that must not be in it."""
    is_new: bool = False
    """Whether it is for a new session, and worth an explanation."""


class Outlook:
    """A client's view of the servers of one model. Ended by ``close``.

    Args:
        swarm: where.
        manifest: identity of the model, 32 bytes.
        num_blocks: blocks of the model.
        policy: what routes shall be best at, and who may be used.
        chance: chooses whom to ask for round trips first.
    """

    def __init__(
        self, swarm: Swarm, manifest: bytes, num_blocks: int, policy: Policy = FASTEST,
        chance: random.Random = random.SystemRandom(),  # noqa: B008 - it has no state
    ) -> None:  # fmt: skip
        self.ranks: Ranks | None = None
        """Where everyone stands; None while that is not known: then everybody is used."""
        self.last_question: Question | None = None
        """What the route of a new session was last planned from."""
        self.has_probation = False
        """Whether newcomers were of no use for the route that was planned last."""
        self._swarm = swarm
        self._manifest = manifest
        self._num_blocks = num_blocks
        self._policy = policy
        self._avoidance = Avoidance()
        self._pings = Pings(swarm.ping, self.failed, chance)
        self._has_waited = False
        """Whether a plan has waited for round trips."""
        self._known: Directory | None = None
        """The directory as it was last seen."""
        self._known_s = 0.0
        """When that was, by the monotonic clock."""
        self._looking: asyncio.Task[Directory] | None = None

    def know(self, ranks: Ranks) -> None:
        """Plan by ``ranks`` from now on."""
        self.ranks = ranks

    def is_watched(self, peer_id: str) -> bool:
        """Say whether a server is audited more often than others: it is young in its trust, or was convicted."""
        return self.ranks is not None and self.ranks.has_flow and self.ranks.of(peer_id).is_watched

    async def look(self) -> Directory:
        """Look up who serves the model now, and ask those who are new for their round trips."""
        known = await read_directory(self._swarm, self._manifest, time.time())
        self._known, self._known_s = known, time.monotonic()
        trust = self._trust(known)
        failed = {**self._left_out(known), **trust.barred}
        usable = [server for server in known.servers if why_not(server, self._policy, trust.scores, failed) is None]
        self._pings.begin(server.owner for server in usable)
        return known

    async def plan(self, wanted: Wanted) -> Route:
        """Plan a route from the swarm as it was just now, or as it is now.

        Those that failed are left out, unless there is no other; then whoever failed longest ago comes first, so that
        of several each is tried.

        Raises:
            MissingBlocks: some blocks have no server that can be used.
        """
        with contextlib.suppress(MissingBlocks):
            directory = await self._recent()
            return await self._route(directory, wanted, self._left_out(directory))
        directory = await self.look()
        failed = list(self._left_out(directory).items())
        for count in range(len(failed), 0, -1):
            with contextlib.suppress(MissingBlocks):
                return await self._route(directory, wanted, dict(failed[:count]))
        return await self._route(directory, wanted, {})

    def on_probation(self) -> list[Announcement]:
        """Return the newcomers that can be reached as far as is known, and that routes do not use."""
        known = self._known
        trust = self._trust(known) if known is not None else Trust()
        if known is None or not trust.on_probation:
            return []
        left_out = {**self._left_out(known), **self._avoidance.distrusted(time.monotonic())}
        return [
            server
            for server in newest(known.servers)
            if server.owner in trust.on_probation
            and 0 <= server.start < server.end <= self._num_blocks
            and why_not(server, self._policy, {}, left_out) is None
        ]

    def _trust(self, directory: Directory) -> Trust:
        return trust_of(newest(directory.servers), self.ranks, self._num_blocks)

    def _left_out(self, directory: Directory) -> dict[str, str]:
        return self._avoidance.left_out(directory.servers, time.monotonic())

    def failed(self, peer_id: str, reason: Exception) -> None:
        """Leave a peer out: for a while, and until it announces itself anew if it cannot be reached."""
        servers = self._known.servers if self._known is not None else ()
        heard_t = max((server.t for server in servers if server.owner == peer_id), default=None)
        self._avoidance.note(peer_id, reason, heard_t, time.monotonic())

    def shun(self, peer_id: str, for_s: float) -> None:
        """Leave a peer out for so long where there is another: it has not signed for its work as it should."""
        self._avoidance.shun(peer_id, "it did not sign for its work as it should", for_s, time.monotonic())

    def distrust(self, peer_id: str, reason: str) -> None:
        """Leave a peer out that an audit has found at fault, also where there is no other."""
        self._avoidance.distrust(peer_id, reason, time.monotonic())

    def forget(self) -> None:
        """Forget who failed, and take a new look before the next plan."""
        self._avoidance.forget()
        self._known = None

    async def close(self) -> None:
        """End what is under way."""
        await self._pings.close()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _recent(self) -> Directory:
        """Return the directory, seen just now if that does not take long."""
        if self._known is not None and time.monotonic() - self._known_s < _NEW_S:
            return self._known
        looking = self._looking
        if looking is None or looking.done():
            looking = self._looking = asyncio.create_task(self.look())
            looking.add_done_callback(_forget_outcome)  # The last look may serve instead.
        if self._known is None:
            return await asyncio.shield(looking)
        if time.monotonic() - self._known_s > _RECENT_S:
            await asyncio.wait({looking}, timeout=_LOOK_S)
        return self._known

    async def _route(self, directory: Directory, wanted: Wanted, failed: Mapping[str, str]) -> Route:
        if not self._has_waited:
            self._has_waited = True
            await self._pings.wait(_PINGS_S)
        trust = self._trust(directory)
        self.has_probation = bool(trust.on_probation)
        if not trust.has_newcomers:
            return await self._route_by(trust, directory, wanted, failed)
        try:
            return await self._route_by(trust, directory, wanted, failed)
        except MissingBlocks:  # Established servers are announced, and cannot be used now.
            return await self._route_by(trust.relaxed(), directory, wanted, failed)

    async def _route_by(self, trust: Trust, directory: Directory, wanted: Wanted, failed: Mapping[str, str]) -> Route:
        distrusted = self._avoidance.distrusted(time.monotonic())
        without = dict.fromkeys(wanted.without, "it failed in this session, or serves it already")
        left_out = {**failed, **distrusted, **without, **trust.barred}
        latencies = Latencies.of(directory.servers, self._pings.known_us(time.monotonic()))
        part = Part(self._num_blocks, wanted.start, wanted.end, wanted.needs_ends)
        question = Question(directory, latencies, trust.scores, self._policy, part, left_out, spans=trust.spans)
        if wanted.is_new:
            self.last_question = question
        return await asyncio.to_thread(route_of, question)


def _forget_outcome(looking: asyncio.Task[Directory]) -> None:
    if not looking.cancelled():
        looking.exception()
