"""Sessions' memory, and their steps in the engine.

Runs in the event loop; what is computed runs in the engine's thread. Whoever opened a session here ends it here. It
knows no stream: what a step gives is returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from node.engine import Engine
from node.errors import NodeError, Refused, SessionError, UnavailableError
from node.model.arena import Buffers, KeyValueArena
from node.serve.admission import Admission, Served
from node.serve.archive import Archived
from node.serve.computation import Computation, Output, SpanSteps, StepJob
from node.serve.end_work import EndWork
from node.serve.outlets import Live
from node.serve.precedence import Precedence
from node.serve.prefixes import PrefixChain, PrefixStore, scope_of
from node.serve.session import Compute, StageSession
from node.serve.slots import Slot
from node.step_log import StepLog
from node.transport import FrameStream
from node.wire import Open


class Runner:
    """Runs the steps of one server's sessions.

    Args:
        served: what is offered.
        engine: runs the steps.
        arena: memory for the caches of all sessions.
        prefixes: remembers common beginnings of sessions; None: every session computes all of its own.
        log_bytes: memory for what sessions have handed on.
        is_open: says whether a session has not ended.
        precedence: whose sessions and steps come first; None: nobody's.
    """

    def __init__(
        self,
        served: Served,
        engine: Engine,
        arena: KeyValueArena,
        prefixes: PrefixStore | None,
        log_bytes: int,
        is_open: Callable[[Live], bool],
        precedence: Precedence | None = None,
    ) -> None:
        self.admission = Admission(served, arena.num_positions, log_bytes, precedence)
        self._served = served
        self._engine = engine
        self._arena = arena
        self._prefixes = prefixes
        self._is_open = is_open
        self._groups: dict[tuple[int, int], SpanSteps] = {}

    def begin(self, opened: Open, frames: FrameStream) -> Live:
        """Give a session the memory that it asks for.

        Args:
            opened: what its client asks for.
            frames: the client's control stream.

        Raises:
            Refused: it cannot run here, or not now; nothing is held then.
        """
        served, admission, client = self._served, self.admission, frames.peer_id
        admission.check(opened)
        try:
            state = StageSession(opened, served.hidden_size, served.ends.vocab_size if served.ends else 0)
        except SessionError as error:
            raise Refused("bad_open", str(error)) from error
        admission.check_room(client)
        slot = admission.lease(client, opened.batch, opened.max_length)
        try:
            log_bytes = admission.lease_log(opened, opened.batch, 0, time.monotonic())
        except Refused:
            admission.slots.release(slot)
            raise
        computation = self._computation(opened, client, slot)
        live = Live(state, computation, frames, time.monotonic(), [slot], opened.batch, log_bytes=log_bytes)
        if opened.next:
            width = served.hidden_size
            live.log = StepLog(opened.session, opened.codec, width, opened.batch, opened.max_length, opened.steps)
        admission.enter(client)
        return live

    def _computation(self, opened: Open, client: str, slot: Slot) -> Computation:
        span = self._served.span.view(opened.start, opened.end)
        cache = span.new_cache(opened.max_length, opened.batch, self._buffers(slot, opened, opened.batch))
        ends = EndWork(self._served.ends, opened) if self._served.ends and _wants_ends(opened) else None
        return Computation(span, cache, self._chain(opened, client), ends)

    def _chain(self, opened: Open, client: str) -> PrefixChain | None:
        """Return what finds common beginnings for a session of one row, or None."""
        if self._prefixes is None or self._served.span.state is not None:
            return None
        if opened.batch > 1 or any(opened.left_padding):
            return None
        return PrefixChain(self._prefixes, scope_of(opened, "" if self._served.shares_prefixes else client))

    def _buffers(self, slot: Slot, opened: Open, rows: int) -> Buffers:
        """Return the tensors of a slot for the blocks that a session runs."""
        first = self._served.span.start
        return self._arena.place(slot.start, rows, opened.max_length)[opened.start - first : opened.end - first]

    async def compute(self, live: Live, order: Compute) -> tuple[Output, int]:
        """Run a step; return its output, and how many positions of it were not computed but known.

        Raises:
            Refused: there is no memory for as many rows as it selects.
            ComputeFailed: it could not be computed.
            UnavailableError: the session has ended meanwhile.
        """
        opened, client = live.state.opened, live.client.peer_id
        into = None
        if order.rows is not None and len(order.rows) != live.rows:
            now_s = time.monotonic()
            live.log_bytes = self.admission.lease_log(opened, len(order.rows), live.log_bytes, now_s)
            live.slots.append(self.admission.lease(client, len(order.rows), opened.max_length))
            into = self._buffers(live.slots[-1], opened, len(order.rows))
        group = self._groups.setdefault((opened.start, opened.end), SpanSteps(live.computation.span))
        live.is_computing = True
        try:
            job = StepJob(group, live.computation, order, client, into, self.admission.precedence.level_of(client))
            output: Output = await self._engine.run(job)
        except NodeError:
            self._returned(live)
            raise
        self._returned(live)
        if not self._is_open(live):
            raise UnavailableError("The session has ended.")
        live.rows = order.step.shape[0]
        while len(live.slots) > 1:
            self.admission.slots.release(live.slots.pop(0))
        return output, job.known_positions

    def _returned(self, live: Live) -> None:
        """Note that the engine has let go of a session's slots.

        A cancelled step is not noted: the engine may still be writing.
        """
        live.is_computing = False
        if not self._is_open(live):
            self._free_slots(live)

    def _free_slots(self, live: Live) -> None:
        while live.slots:
            self.admission.slots.release(live.slots.pop())

    def end(self, live: Live) -> None:
        """Take a session's memory back, what the engine is writing into as soon as it has done so."""
        live.computation.drop()
        if not live.is_computing:
            self._free_slots(live)
        live.output = None
        self._keep_log(live)
        self.admission.leave(live.client.peer_id)

    def _keep_log(self, live: Live) -> None:
        """Keep the log of a session that is signed for, so that its client may have it opened; free any other."""
        log, live.log = live.log, None
        if log is None or live.contract is None or not live.contract.is_signed_for:
            self.admission.release_log(live.log_bytes)
            return
        log.seal()
        num_bytes = min(log.num_bytes, live.log_bytes)
        archived = Archived(live.client.peer_id, log, num_bytes, time.monotonic(), live.ration)
        self.admission.keep_log(live.state.opened.session, archived, live.log_bytes)


def _wants_ends(opened: Open) -> bool:
    return bool(opened.embed or opened.top or opened.sampling)
