"""The engine: one compute thread beside the event loop that runs waiting steps together.

Two kinds of work arrive. A *job* is one session's step; before every forward pass ``batching.plan_batch`` (pure) says
which jobs take part and with how many positions, and their group runs them. A *call* is anything else that must happen
in the compute thread; calls go before jobs, in order. Errors cross back as values: an unexpected one as
``ComputeFailed``, without its inner text, which goes to the log and not to a peer. The engine knows nothing of
tensors, sessions or peers.

    loop:    run(job) ──queue──┐                                    ┌──> results of one forward, in one wake-up
    thread:                    └─> take ─> prepare ─> plan ─> group.run(shares) ─┘  and again while anything waits
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from node.batching import Limits, Rhythm, Waiting, linger_s, plan_batch
from node.errors import ComputeFailed, NodeError, Refused

T = TypeVar("T")

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 5e-4
"""How long one Python thread may hold the interpreter: short, so that the loop answers while the thread computes."""
_AVERAGE_WEIGHT = 0.2
"""Weight of the latest forward in the running average of their durations."""


class Job(Protocol):
    """One session's step. All but the plain attributes is used by the compute thread alone."""

    session: bytes
    client: str
    """Who asked for it: turns go round by client."""
    rows: int
    priority: int

    @property
    def group(self) -> Group:
        """Runs jobs of its kind together."""

    @property
    def positions_left(self) -> int:
        """Positions per row that are still to be run; 0 when the job is done."""

    def prepare(self) -> None:
        """Do what needs no forward pass; called when the job arrives and before every plan while it is long."""

    def result(self) -> Any:
        """Return what the job has come to; called once, when nothing is left."""


class Group(Protocol):
    """Runs jobs that can share a forward pass."""

    def run(self, shares: Sequence[tuple[Any, int]]) -> Sequence[Exception | None]:
        """Run so many positions of each job; return what went wrong, job by job."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one forward pass was; for statistics."""

    num_jobs: int
    num_tokens: int
    """Rows times positions."""
    seconds: float
    waits_s: tuple[float, ...]
    """How long each job that began with this pass had waited."""


@dataclass(slots=True, eq=False)
class _Pending:
    job: Job
    future: asyncio.Future[Any]
    submitted_s: float = field(default_factory=time.perf_counter)
    since: int = 0
    has_begun: bool = False


@dataclass(slots=True)
class _Call:
    work: Callable[[], Any]
    future: asyncio.Future[Any]


class Engine:
    """Runs calls and jobs in a thread of its own."""

    def __init__(
        self,
        max_waiting: int = 512,
        limits: Limits | None = None,
        observe: Callable[[BatchReport], None] | None = None,
    ) -> None:
        # The bound is checked in the loop's thread alone, so the faster queue without one will do.
        self._queue: queue.SimpleQueue[_Pending | _Call | None] = queue.SimpleQueue()
        self._max_waiting = max_waiting
        self._limits = limits or Limits()
        self._observe = observe
        self._num_waiting = 0
        """Calls and jobs whose futures are not settled; only the loop touches it."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.cpu_s = 0.0
        """Processor time that the compute thread has taken."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_leaving = False
        # From here on: the compute thread's own.
        self._jobs: list[_Pending] = []
        self._has_seen_end = False
        """Whether the end mark has been taken: nothing comes after it."""
        self._tick = 0
        self._served: dict[str, int] = {}
        """Number of the forward in which each client that waits had its last share."""
        self._rhythms: dict[bytes, Rhythm] = {}
        """When each session takes its short steps, until it pauses."""
        self._chunked: set[int] = set()
        """Groups with steps waiting whose last forward had a part of a long step, by their ``id``."""
        self._forward_s = 0.0
        """What a forward of short steps takes, averaged over the last few."""

    async def __aenter__(self) -> Self:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_leaving = True
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Calls and jobs that have been submitted and have not ended, the one that runs included."""
        return self._num_waiting

    async def submit(self, work: Callable[[], T]) -> T:
        """Call ``work`` in the compute thread and return its value, or raise what it raised.

        Raises:
            Refused: too much is waiting, or the engine has been left; retryable.
        """
        future: asyncio.Future[T] = self._future()
        self._queue.put(_Call(work, future))
        return await future

    async def run(self, job: Job) -> Any:
        """Run ``job``, together with others where that is possible, and return its result, or raise what it raised.

        Raises:
            Refused: too much is waiting, or the engine has been left; retryable.
        """
        future = self._future()
        self._queue.put(_Pending(job, future))
        return await future

    def _future(self) -> asyncio.Future[Any]:
        assert self._loop is not None
        if self._is_leaving:  # Behind the end mark of the queue nothing is worked on any more.
            raise Refused("draining", "This server is leaving; choose another.", retryable=True)
        if self._num_waiting >= self._max_waiting:
            message = "This server has too much work waiting; try again."
            raise Refused("busy", message, retryable=True, retry_after_s=1.0)
        self._num_waiting += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        future.add_done_callback(self._forget)
        return future

    def _forget(self, _: asyncio.Future[Any]) -> None:
        self._num_waiting -= 1

    # The compute thread.

    def _run(self) -> None:
        while self._take():
            try:
                self._linger()
                outcomes = self._prepare()
                if self._jobs:
                    outcomes += self._run_batch()
            except Exception as error:  # noqa: BLE001 - our own bug; whoever waits must hear of it, and others be served
                outcomes = [_ended(pending, error) for pending in self._jobs]
                self._jobs = []
            self.cpu_s = time.thread_time()
            self._deliver(outcomes)

    def _take(self) -> bool:
        """Take what has been submitted, waiting only when there is nothing else to do; say whether there are jobs."""
        while not self._has_seen_end and (not self._jobs or not self._queue.empty()):
            self._accept(self._queue.get())
        return bool(self._jobs)

    def _accept(self, item: _Pending | _Call | None) -> None:
        """Take one thing that was submitted, or the end mark; calls are done at once."""
        if item is None:
            self._has_seen_end = True
        elif isinstance(item, _Pending):
            item.since = self._tick
            self._jobs.append(item)
            if self._is_short(item):
                rhythm = self._rhythms.get(item.job.session)
                self._rhythms[item.job.session] = (
                    rhythm.next(item.submitted_s) if rhythm else Rhythm(item.submitted_s, 0.0)
                )
        elif not item.future.cancelled():
            self._deliver([(item.future, *_outcome(item.work))])

    def _linger(self) -> None:
        """Wait a little for short steps that are due, so that they share the next forward."""
        if len(self._rhythms) < 2:
            return
        while not self._has_seen_end and all(self._is_short(pending) for pending in self._jobs):
            now_s = time.perf_counter()
            num_waiting = len({pending.job.session for pending in self._jobs})
            wait_s = linger_s(num_waiting, len(self._rhythms), self._forward_s, self._limits)
            left_s = min(pending.submitted_s for pending in self._jobs) + wait_s - now_s
            if left_s <= 0 or not self._is_anyone_due(now_s, left_s):
                return
            try:
                self._accept(self._queue.get(timeout=left_s))
            except queue.Empty:
                return

    def _is_anyone_due(self, now_s: float, within_s: float) -> bool:
        waiting = {pending.job.session for pending in self._jobs}
        return any(
            rhythm.is_due(now_s, within_s) for session, rhythm in self._rhythms.items() if session not in waiting
        )

    def _is_short(self, pending: _Pending) -> bool:
        return self._limits.is_short(pending.job.rows, pending.job.positions_left)

    def _prepare(self) -> list[_Outcome]:
        """Let new and long jobs do what needs no forward; drop those that nobody waits for; return what has ended."""
        outcomes: list[_Outcome] = []
        kept = []
        for pending in self._jobs:
            if pending.future.cancelled():
                continue
            if not pending.has_begun or not self._is_short(pending):
                _, error = _outcome(pending.job.prepare)
                if error is not None or not pending.job.positions_left:
                    outcomes.append(_ended(pending, error))
                    continue
            kept.append(pending)
        self._jobs = kept
        return outcomes

    def _run_batch(self) -> list[_Outcome]:
        """Run one forward pass; return the jobs that it ends."""
        started_s = time.perf_counter()
        for session in [session for session, rhythm in self._rhythms.items() if rhythm.is_over(started_s)]:
            del self._rhythms[session]
        waiting = [
            Waiting(
                id(p.job.group),
                p.job.client,
                p.job.rows,
                p.job.positions_left,
                p.since,
                p.job.priority,
                self._served.get(p.job.client, 0),
            )
            for p in self._jobs
        ]
        shares = plan_batch(waiting, self._limits, is_decoding=self._is_decoding(started_s), chunked=self._chunked)
        chosen = [self._jobs[share.index] for share in shares]
        pairs = [(pending.job, share.positions) for pending, share in zip(chosen, shares, strict=True)]
        errors = _run_group(chosen[0].job.group, pairs)
        self._tick += 1
        clients = {pending.job.client for pending in self._jobs}
        self._served = {client: tick for client, tick in self._served.items() if client in clients}
        self._served.update((pending.job.client, self._tick) for pending in chosen)
        ended_s = time.perf_counter()
        self._chunked &= {id(pending.job.group) for pending in self._jobs}
        if any(
            not self._limits.is_short(waiting[share.index].rows, waiting[share.index].positions) for share in shares
        ):
            self._chunked.add(id(chosen[0].job.group))
        else:
            self._chunked.discard(id(chosen[0].job.group))
            self._forward_s += (ended_s - started_s - self._forward_s) * _AVERAGE_WEIGHT
        waits_s = tuple(started_s - pending.submitted_s for pending in chosen if not pending.has_begun)
        outcomes = []
        for pending, error in zip(chosen, errors, strict=True):
            pending.has_begun, pending.since = True, self._tick
            if error is not None or not pending.job.positions_left:
                self._jobs.remove(pending)
                outcomes.append(_ended(pending, error))
        self._report(pairs, ended_s - started_s, waits_s)
        return outcomes

    def _is_decoding(self, now_s: float) -> bool:
        """Say whether a session may take a short step at any moment that does not wait with a long one."""
        waiting = {pending.job.session for pending in self._jobs if not self._is_short(pending)}
        return any(not rhythm.is_over(now_s) for session, rhythm in self._rhythms.items() if session not in waiting)

    def _report(self, pairs: Sequence[tuple[Job, int]], seconds: float, waits_s: tuple[float, ...]) -> None:
        if self._observe is not None:
            num_tokens = sum(job.rows * positions for job, positions in pairs)
            self._observe(BatchReport(len(pairs), num_tokens, seconds, waits_s))

    def _deliver(self, outcomes: list[_Outcome]) -> None:
        def settle() -> None:
            for future, value, error in outcomes:
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(value)

        assert self._loop is not None
        if outcomes and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)


_Outcome = tuple[asyncio.Future[Any], Any, Exception | None]


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Call ``work``; return its value and no error, or no value and the error that may cross."""
    try:
        return work(), None
    except Exception as caught:  # noqa: BLE001 - the border of the compute thread: every failure is a value
        return None, _crossing(caught)


def _crossing(error: Exception) -> NodeError:
    if isinstance(error, NodeError):
        return error
    logger.error("Work in the compute thread failed", exc_info=error)
    return ComputeFailed(f"The computation failed: {type(error).__name__}.")


def _ended(pending: _Pending, error: Exception | None) -> _Outcome:
    if error is not None:
        return pending.future, None, _crossing(error)
    return pending.future, *_outcome(pending.job.result)


def _run_group(group: Group, pairs: Sequence[tuple[Job, int]]) -> Sequence[Exception | None]:
    try:
        return group.run(pairs)
    except Exception as caught:  # noqa: BLE001 - the border of the compute thread: every failure is a value
        return [caught] * len(pairs)
