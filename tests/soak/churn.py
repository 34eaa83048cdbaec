"""Clients that come and go as they please: each opens sessions, steps, and ends them in every way there is, at random.

Runs in one event loop. A member is a real node of the swarm; many clients share one, as threads of one program would.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from typing import Self

from dht.directory import read_directory
from dht.identity import Identity
from dht.parameters import parse_join
from dht.swarm import Swarm
from node.client.chain import Chain, SessionShape, StageFailed, open_chain
from node.client.latencies import Latencies
from node.client.offers import FASTEST
from node.client.route import Route, plan_route
from node.errors import Refused
from node.wire import Step
from tests.processes import children_of
from tests.soak.sequences import Sequence

MAX_LENGTHS = (64, 128, 256, 512)
MAX_PREFILL = 160
ENDINGS = ("close", "cancel", "abandon")
STEP_TIMEOUT_S = 60.0


class Member:
    """A node through which clients reach the servers."""

    def __init__(self, join: str) -> None:
        self.is_gone = False
        """Whether the test has taken it away: what its clients see then is the test's own doing."""
        self.swarm = Swarm(Identity.ephemeral(), join=parse_join(join), client_mode=True)
        self._daemons: set[int] = set()

    async def __aenter__(self) -> Self:
        before = set(children_of(os.getpid()))
        await self.swarm.__aenter__()
        self._daemons = set(children_of(os.getpid())) - before
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_gone = True
        await self.swarm.__aexit__(None, None, None)

    def vanish(self) -> None:
        """End without a word, as a machine that loses its power: every stream of its clients is cut."""
        self.is_gone = True
        for pid in self._daemons:
            os.kill(pid, signal.SIGKILL)


@dataclass
class Tally:
    """What all clients have seen."""

    events: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """What should not have happened; empty when all is well."""


@dataclass(frozen=True)
class Served:
    """What the clients know of the swarm."""

    manifest: bytes
    route: Route
    sequences: Several[Sequence]


async def read_route(member: Member, manifest: bytes, num_blocks: int) -> Route:
    """Plan the route that all sessions take."""
    directory = await read_directory(member.swarm, manifest, time.time())
    return plan_route(directory, Latencies.of(directory.servers, {}), {}, FASTEST, num_blocks=num_blocks)


class Client:
    """One client and its random habits."""

    def __init__(self, served: Served, members: Several[Member], tally: Tally, chance: random.Random) -> None:
        self._served = served
        self._members = members
        self._tally = tally
        self._chance = chance

    async def live(self, until_s: float) -> None:
        """Use sessions, one after the other, until ``until_s`` of the monotonic clock."""
        while time.monotonic() < until_s:
            member = self._chance.choice(self._members)
            if not member.is_gone:
                await self._use(member)
            await asyncio.sleep(self._chance.uniform(0, 0.2))

    async def _use(self, member: Member) -> None:
        """Open a session, use it, end it; note what should not have happened."""
        try:
            await self._use_session(member)
        except StageFailed as failure:
            if is_full(failure):
                self._tally.events["refused"] += 1
                await asyncio.sleep(self._chance.uniform(0.1, 1.0))
            else:
                self._note(member, failure)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test wants to tell it
            self._note(member, error)

    def _note(self, member: Member, error: Exception) -> None:
        if not member.is_gone:
            self._tally.failures.append(repr(error))

    async def _use_session(self, member: Member) -> None:
        rows, max_length = self._chance.choice((1, 1, 1, 2)), self._chance.choice(MAX_LENGTHS)
        shape = SessionShape(self._served.manifest, rows, (), max_length, "float32")
        chain = await open_chain(member.swarm, self._served.route, shape, step_timeout_s=STEP_TIMEOUT_S)
        self._tally.events["opened"] += 1
        user = SessionUser(chain, rows, max_length, self._chance, self._chance.choice(self._served.sequences))
        ending = self._chance.choice(ENDINGS)
        try:
            await user.talk()
            if ending != "close":
                await user.leave_in_the_middle()
        finally:
            self._tally.events["steps"] += user.num_steps
            self._tally.events[ending] += 1
            await (hang_up(chain) if ending == "abandon" else chain.close())


def is_full(failure: StageFailed) -> bool:
    """Say whether a stage has no room and says when to ask again."""
    reason = failure.reason
    return isinstance(reason, Refused) and reason.code == "full" and reason.retryable and reason.retry_after_s > 0


class SessionUser:
    """Sends steps of one sequence into one session and checks every answer."""

    def __init__(self, chain: Chain, rows: int, max_length: int, chance: random.Random, sequence: Sequence) -> None:
        self.num_steps = 0
        self._chain = chain
        self._rows = rows
        self._max_length = max_length
        self._chance = chance
        self._sequence = sequence
        self._position = 0

    async def talk(self) -> None:
        """Prefill, decode, go back now and then, pause now and then."""
        await self._run(self._next_steps(self._chance.randint(1, min(MAX_PREFILL, self._max_length))))
        for _ in range(self._chance.randint(0, 40)):
            crop = None
            if self._chance.random() < 0.05:
                crop = self._position = self._chance.randint(0, self._position)
            if self._position == self._max_length:
                return
            await self._run([self._step(1, crop)])
            await asyncio.sleep(0 if self._chance.random() < 0.5 else self._chance.uniform(0, 0.1))
        if self._chance.random() < 0.1:
            await asyncio.sleep(self._chance.uniform(1, 5))

    async def leave_in_the_middle(self) -> None:
        """Send a step and stop waiting for its answer at some moment."""
        if self._position == self._max_length:
            return
        steps = self._next_steps(self._chance.randint(1, self._max_length - self._position))
        running = asyncio.create_task(self._run(steps))
        await asyncio.wait([running], timeout=self._chance.choice((0, 0.002, 0.01, 0.03)))
        running.cancel()
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome

    def _next_steps(self, num_tokens: int) -> list[Step]:
        """Cut the next tokens into one step or two; two are on the way at once."""
        first = self._chance.randint(1, num_tokens)
        return [self._step(count) for count in (first, num_tokens - first) if count]

    def _step(self, num_tokens: int, crop: int | None = None) -> Step:
        position, self._position = self._position, self._position + num_tokens
        shape = (self._rows, num_tokens, self._sequence.hidden.shape[1])
        payload = self._sequence.payload(position, self._rows, num_tokens)
        return Step(self._chain.session, position, shape, "float32", payload, crop)

    async def _run(self, steps: list[Step]) -> None:
        for result in await self._chain.run(steps):
            self.num_steps += 1
            if not self._sequence.agrees(result.payload, result.position, result.shape):
                raise AssertionError(f"wrong numbers at {result.position} of {result.shape}")


async def hang_up(chain: Chain) -> None:
    """Cut a session's streams without saying that it ends."""
    await asyncio.gather(*(link.cut() for link in chain._links))
    await chain._drop_push()
