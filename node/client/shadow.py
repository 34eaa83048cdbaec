"""Shadow traffic: the beginnings of sessions run a second time through a newcomer, are compared, and go to nobody.

    session      client ──> A 0:4 ──────────> B 4:8 ──> client      delivered; its beginning is kept
    duplicate    client ──> A 0:2 ──> N 2:6 ──> B 6:8 ──> client    compared: the same at the end?
                                      N opens every chunk           judged: do its outputs follow from its inputs?

The newcomer N has signed for its work, and the client for having had it, as in any session: that is how a newcomer
earns trust where established servers leave nothing for it. To N the duplicate is a session like others: its neighbours
are servers, steps and frames have the form of the original. What differs at the end may be anybody's doing, so it is
told and held against nobody; what N itself has computed is the judge's to say.

Runs in the client's event loop, one duplicate at a time; steps that somebody waits for go first.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from dht.errors import DhtError
from dht.records import Announcement
from node.client.audit_book import AuditBook, AuditResult, Outcome
from node.client.auditor import AskOthers, Auditor, Judge
from node.client.outlook import Outlook, Wanted
from node.client.recheck import Doubt, Rechecked, Runner, compare
from node.client.reveal_call import Dialer
from node.client.route import Route, stage_of
from node.client.shadow_budget import ShadowBudget
from node.client.shadow_trace import MAX_POSITIONS, ShadowTrace
from node.client.stage_link import SessionShape
from node.errors import NodeError, StageLost
from node.wire import Result

MIN_POSITIONS = 16
"""A shorter duplicate shows too little for what it costs."""
MAX_TRACES = 4
"""Sessions of which something is kept at the same time."""
REST_S = 600.0
"""A newcomer with which a duplicate came to nothing has so long to mend that, s."""
_LOOK_S = 1.0
"""So often it is seen whether enough is saved up."""
_GLANCE_S = 0.01
_MAX_GLANCES = 25
"""Before a step is sent though somebody waits for others."""
_RUN_S = 120.0
"""The steps of a duplicate may take so long, all together: others wait for their turn."""
_AUDITS_S = 60.0
"""Audits of a duplicate may take so long."""
_LEAVE_S = 1.0
"""A client that leaves waits so long for a duplicate to say goodbye."""


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What came of one duplicate."""

    peer_id: str
    """Of the newcomer."""
    start: int
    end: int
    num_positions: int
    outcome: Outcome
    """Pass: it came out as before, and nothing was found against the newcomer. Fail: an audit found something."""
    why: str
    """One sentence, for people."""


class Opener(Protocol):
    """Opens sessions along routes that were chosen; a stage that is lost ends them."""

    def __call__(self, route: Route, shape: SessionShape, auditor: Auditor) -> Awaitable[Runner]:
        """Open one; raises StageFailed."""


@dataclass(frozen=True, slots=True)
class ShadowParts:
    """What shadow traffic is made with."""

    outlook: Outlook
    """Knows newcomers, and routes around them."""
    open: Opener
    dial: Dialer
    """For audits."""
    judge: Judge | None
    """Judges what the newcomer has computed; None: ends are compared, and nobody says more."""
    book: AuditBook
    """Audits are entered there."""
    is_busy: Callable[[], bool]
    """Whether somebody waits for a step."""
    audited: Callable[[AuditResult], None]
    """Called with every audit of a duplicate."""
    tell: Callable[[Shadowed], None]
    """Called with what came of a duplicate."""
    ask: AskOthers | None = None
    """Asked where there is no judge, or it cannot run it again."""


class ShadowTraffic:
    """The duplicates of one client. Ended by ``close``.

    Args:
        parts: what they are made with.
        budget: bounds them.
        num_blocks: blocks of the model.
        chance: chooses newcomers, and how much each is given; nobody else can know.
    """

    def __init__(
        self, parts: ShadowParts, budget: ShadowBudget, num_blocks: int,
        chance: random.Random = random.SystemRandom(),  # noqa: B008 - it has no state
    ) -> None:  # fmt: skip
        self.budget = budget
        self._parts = parts
        self._num_blocks = num_blocks
        self._chance = chance
        self._traces: list[ShadowTrace] = []
        self._wanted = self._draw_length()
        self._rest_until_s: dict[str, float] = {}
        self._working: asyncio.Task[None] | None = None
        self._is_closed = False

    def opened(self, shape: SessionShape) -> ShadowTrace | None:
        """Return what is to be told of a session that was just opened; None: nothing, there is no use for it."""
        is_wanted = self.budget.is_open and not self._is_closed and self._parts.outlook.has_probation
        if not is_wanted or shape.thin is not None:
            return None
        trace = ShadowTrace(shape, self._consumed, is_kept=not any(shape.left_padding) and self._make_room())
        if not trace.is_complete:
            self._traces.append(trace)
            if self._working is None or self._working.done():
                self._working = asyncio.create_task(self._work())
        return trace

    def _consumed(self, tokens: int) -> None:
        self.budget.consume(tokens * self._num_blocks)

    def _make_room(self) -> bool:
        """Forget the oldest session that has ended, if too many are kept; say whether there is room for one more."""
        if len(self._traces) < MAX_TRACES:
            return True
        ended = next((trace for trace in self._traces if trace.is_ended), None)
        if ended is not None:
            self._traces.remove(ended)
        return ended is not None

    def _draw_length(self) -> int:
        return self._chance.randint(MIN_POSITIONS, MAX_POSITIONS)

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            chosen = self._choose()
            if chosen is not None:
                self._wanted = self._draw_length()
                self._parts.tell(await self._duplicate(*chosen))
            elif all(trace.is_ended for trace in self._traces):
                return

    def _choose(self) -> tuple[ShadowTrace, int, Announcement] | None:
        """Choose whose beginning, how much of it, and to whom; None: there is nothing to do now."""
        lengths = {trace: length for trace in self._traces if (length := self._length_of(trace))}
        if not lengths:
            return None
        now_s = time.monotonic()
        self._rest_until_s = {peer: until_s for peer, until_s in self._rest_until_s.items() if until_s > now_s}
        possible = [
            (trace, length, newcomer)
            for newcomer in self._parts.outlook.on_probation()
            if newcomer.owner not in self._rest_until_s
            for trace, length in lengths.items()
            if newcomer.owner not in trace.seen_by
        ]
        return self._chance.choice(possible) if possible else None

    def _length_of(self, trace: ShadowTrace) -> int:
        """Return how many positions of a session are to be run a second time now."""
        length = min(self._wanted, trace.length)
        is_due = length >= MIN_POSITIONS and (length == self._wanted or trace.is_complete)
        return length if is_due and self.budget.can_spend(self._cost(trace, length)) else 0

    def _cost(self, trace: ShadowTrace, length: int) -> int:
        """Return the block-tokens of a duplicate: all of its stages work for it."""
        return trace.shape.batch * length * self._num_blocks

    async def _duplicate(self, trace: ShadowTrace, length: int, newcomer: Announcement) -> Shadowed:
        """Run the beginning of a session again through a newcomer."""
        peer, cost = newcomer.owner, self._cost(trace, length)
        self.budget.spend(cost)  # Before anything is waited for: nobody else spends it meanwhile.
        trace.seen_by.add(peer)
        made, results = trace.prefix(length, peer), list[AuditResult]()

        def audited(result: AuditResult) -> None:
            results.append(result)
            self._parts.audited(replace(result, is_shadow=True))

        parts = self._parts
        auditor = Auditor(parts.dial, audited, 0, parts.judge, ask=parts.ask, wholly=frozenset({peer}), book=parts.book)
        compared, why_not = None, ""
        try:
            try:
                route = await self._route_through(newcomer)
                shape = replace(trace.shape, max_length=length + 1)
                chain = await parts.open(route, shape, auditor)
            except BaseException:
                self.budget.give_back(cost)
                raise
            compared = await self._run(made, chain)
            await self._drained(auditor)
        except (NodeError, DhtError) as error:
            why_not = str(error)
        finally:
            await auditor.close(0.0)
        shadowed = _shadowed(newcomer, length, compared, results, why_not)
        if shadowed.outcome is not Outcome.PASS:
            self._rest_until_s[peer] = time.monotonic() + REST_S
        return shadowed

    async def _route_through(self, newcomer: Announcement) -> Route:
        """Plan a route of which a newcomer runs all the blocks that it announces."""
        start, end = newcomer.start, newcomer.end
        without = frozenset({newcomer.owner})
        before = await self._parts.outlook.plan(Wanted(0, start, needs_ends=False, without=without))
        without |= {stage.peer_id for stage in before.stages}
        behind = await self._parts.outlook.plan(Wanted(end, self._num_blocks, needs_ends=False, without=without))
        return Route((*before.stages, stage_of(newcomer, start, end), *behind.stages))

    async def _run(self, made: Doubt, chain: Runner) -> Rechecked:
        results: list[Result] = []
        try:
            async with asyncio.timeout(_RUN_S):
                for step in made.steps:
                    await self._give_way()
                    results += await chain.run([replace(step, session=chain.session)])
        except TimeoutError:
            raise StageLost(f"Its steps took more than {_RUN_S:.0f} s.") from None
        finally:
            await chain.close()
        return await asyncio.to_thread(compare, made, results)

    async def _give_way(self) -> None:
        """Wait while somebody waits for another step, for a while."""
        for _ in range(_MAX_GLANCES):
            if not self._parts.is_busy():
                return
            await asyncio.sleep(_GLANCE_S)

    async def _drained(self, auditor: Auditor) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AUDITS_S):
                await auditor.drained()

    async def close(self) -> None:
        """End a duplicate that is under way; it may say goodbye, and no more."""
        self._is_closed = True
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait({self._working}, timeout=_LEAVE_S)


def _shadowed(
    newcomer: Announcement, length: int, compared: Rechecked | None, results: list[AuditResult], why_not: str
) -> Shadowed:
    """Make of all that was found what is told."""
    fail = next((result for result in results if result.outcome is Outcome.FAIL), None)
    if fail is not None and fail.owner == newcomer.owner:
        outcome, why = Outcome.FAIL, fail.why
    elif compared is None:
        outcome, why = Outcome.INCONCLUSIVE, f"it came to nothing: {why_not}"
    elif compared.num_different:
        outcome = Outcome.INCONCLUSIVE
        why = (
            f"{compared.num_different} of {compared.num_positions} positions come out differently, by up to "
            f"{min(compared.largest, 9.99):.0%}; by whose doing is not known"
        )
    else:
        outcome, why = Outcome.PASS, "it comes out the same"
    return Shadowed(newcomer.owner, newcomer.start, newcomer.end, length, outcome, why)
