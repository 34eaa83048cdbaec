"""What one stage commits to in one session, and what it vouches for towards the next stage. A pure state machine.

    voucher ─> step ─> take() ──────────> compute ──> give() ─> vouchers, then the output, to the next stage
                        input is signed for?           leaf (in, out)

A stage commits only to input that the one before has signed for, so whoever sends other bytes than it signed is found
by the stage that gets them, and one that commits to other bytes than it got has no signature for them. The client
computes both ends itself and vouches for nothing: it is the one that checks.

When the stage behind is replaced, what it was sent is sent again: ``relink`` and ``resend`` hash that in a segment of
its own, until a step of a later segment comes. When the stage before is replaced, the chunk that it left open cannot be
vouched for by anybody: ``adopt``. Runs in the event loop; signatures are made by the caller, and checked by a function
that is passed in.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from dht.domains import Domain
from dht.identity import peer_id_to_bytes
from node.commitment.chunks import NOTHING, Chunk, Leaf, Tap
from node.errors import StageAtFault
from node.merkle import CompactRange
from node.wire import Payload, Step

Verify: TypeAlias = Callable[[bytes, int, bytes, bytes], bool]
"""``dht.identity.verify``."""

MAX_VOUCHERS = 256
"""Vouchers kept for chunks that are not complete; a step has 65 chunks at most."""
MAX_LEAVES = 200
"""Leaves of one report; more wait for the next one."""


class StageCommitment:
    """The chunks of one session at one stage.

    Args:
        session: its id.
        codec: in which its hidden states travel.
        verify: checks signatures.
        previous: peer that vouches for what comes; empty: the client, which does not.
        segment: in which the stage begins.
        steps_left: of a stage that takes another one's place: steps, without history, that had been sent and not
            answered before; those after them are in a later segment.
    """

    def __init__(
        self,
        session: bytes,
        codec: str,
        verify: Verify,
        previous: str = "",
        segment: int = 0,
        steps_left: int | None = None,
    ) -> None:
        self._session = session
        self._codec = codec
        self._verify = verify
        self._previous = previous
        self._previous_id = peer_id_to_bytes(previous) if previous else b""
        self._in = Tap(codec, segment)
        self._out = Tap(codec, segment)
        self._again: Tap | None = None
        """What goes to a new next stage, until it is what comes out."""
        self._passing, self._steps_left = segment, steps_left
        """The last segment from before a repair, and how many steps may still come in it; None: any number."""
        self._unvouched_until = 0
        """Chunks of segments before this one need no voucher."""
        self._vouchers: dict[tuple[int, int], bytes] = {}
        self._taken: deque[tuple[Chunk, bytes]] = deque()
        """Chunks that went in, with their vouchers, and have not come out."""
        self._is_inside = False
        """Whether a step has gone in and not come out."""
        self._sealed: list[tuple[Chunk, Chunk]] = []
        """The last chunk, in and out, while its voucher has not come."""
        self._leaves: deque[Leaf] = deque()
        self._tree = CompactRange()

    def vouch(self, segment: int, index: int, signature: bytes) -> None:
        """Keep the voucher of the stage before for a chunk; it comes before the step that completes the chunk.

        Raises:
            StageAtFault: it is for the session's last chunk, which is sealed, and for something else than was sent.
        """
        self._vouchers[segment, index] = signature
        if len(self._vouchers) > MAX_VOUCHERS:
            del self._vouchers[next(iter(self._vouchers))]
        if self._sealed:
            self._commit_sealed()

    def take(self, step: Step, segment: int) -> None:
        """Take a step that is going to be computed.

        Raises:
            StageAtFault: the stage before has not signed for what it sent, or holds a segment back; nothing has
                changed here.
        """
        is_counted = self._steps_left is not None and bool(self._previous_id)
        is_passing = is_counted and segment <= self._passing and not step.replay
        if is_passing and not self._steps_left:
            raise StageAtFault(self._previous, "does not hand on that a segment has begun")
        if not self._in.put(step, segment, step.payload):
            self._take_in(step, segment)
        if is_passing and self._steps_left is not None:
            self._steps_left -= 1
        self._is_inside = True

    def _take_in(self, step: Step, segment: int) -> None:
        before = self._in.copy() if self._previous_id else self._in
        closed = self._in.add(step, segment, step.codec, step.shape, step.payload)
        try:
            vouched = [(chunk, self._voucher(chunk)) for chunk in closed]
        except StageAtFault:
            self._in = before
            raise
        for chunk in closed:
            self._vouchers.pop((chunk.segment, chunk.index), None)
        self._taken.extend(vouched)

    def give(self, step: Step, segment: int, codec: str, shape: tuple[int, ...], payload: Payload) -> list[Chunk]:
        """Take the output of the step that was taken last; return the chunks to vouch for before it is handed on."""
        self._is_inside = False
        if self._again is None and self._out.put(step, segment, payload):
            return []
        ended = self._end_again() if self._again is not None and segment > self._again.segment else None
        closed = self._out.add(step, segment, codec, shape, payload)
        self._commit(closed)
        if ended is not None:  # The next stage knows nothing of what was before.
            closed = [*ended, *(chunk for chunk in closed if chunk.segment == segment)]
        elif self._again is not None:
            closed = self._commit_resent(self._again.add(step, segment, codec, shape, payload))
        return closed if step.replay != 1 else []  # The last stage that needs the history hands it to nobody.

    def _end_again(self) -> list[Chunk]:
        assert self._again is not None
        ended = self._commit_resent(self._again.seal())
        self._again = None
        return ended

    def adopt(self, previous: str, segment: int, steps_left: int) -> None:
        """Note that steps come from another stage; what it vouches for begins after the segment that it began in.

        Until then chunks hold what the old stage sent and what the new one did, so that neither can sign for them.

        Args:
            previous: the other stage.
            segment: in which it began.
            steps_left: steps that had been sent by then and are not taken here; those after them are in a later one.
        """
        self._previous = previous
        self._previous_id = peer_id_to_bytes(previous) if previous else b""
        self._unvouched_until = segment + 1
        self._passing, self._steps_left = segment, steps_left
        self._vouchers.clear()

    def relink(self, segment: int) -> None:
        """Begin to send everything again, in a segment of its own, to a new next stage."""
        self._again = Tap(self._codec, segment)

    def resend(self, step: Step) -> list[Chunk]:
        """Take a step that is sent again; return the chunks to vouch for before it is."""
        assert self._again is not None
        return self._commit_resent(self._again.add(step, 0, step.codec, step.shape, step.payload))

    def seal(self) -> list[Chunk]:
        """End the session's last chunk; return what to vouch for. Its leaf waits for the voucher of the stage before.

        Where a step has gone in and not come out, or the voucher is for something else, the chunk is not committed to.
        """
        if self._is_inside:
            return []
        given = self._out.seal()
        self._sealed = list(zip(self._in.seal(), given, strict=True))
        with contextlib.suppress(StageAtFault):  # The client, who ends the session, is not to pay for it.
            self._commit_sealed()
        if self._again is None:
            return given
        return self._commit_resent(self._again.seal())

    def report(self) -> tuple[tuple[Leaf, ...], bytes]:
        """Return the leaves since the last report, as many as it may hold, and the root over all that were reported."""
        leaves = tuple(self._leaves.popleft() for _ in range(min(MAX_LEAVES, len(self._leaves))))
        for leaf in leaves:
            self._tree.append(leaf.hash(self._session))
        return leaves, self._tree.root()

    @property
    def awaits_voucher(self) -> bool:
        """Whether the session's last chunk waits for the stage before to sign for it."""
        return bool(self._sealed)

    @property
    def num_unreported(self) -> int:
        """Leaves that wait for a report."""
        return len(self._leaves)

    def _commit(self, closed: list[Chunk]) -> None:
        for out in closed:
            chunk, voucher = self._taken.popleft()
            self._add_leaf(chunk, out, voucher)

    def _add_leaf(self, chunk: Chunk, out: Chunk, voucher: bytes) -> None:
        leaf = Leaf(chunk.segment, chunk.index, chunk.first, chunk.header, chunk.digest, out.digest, voucher)
        self._leaves.append(leaf)

    def _commit_resent(self, closed: list[Chunk]) -> list[Chunk]:
        for out in closed:
            self._leaves.append(Leaf(out.segment, out.index, out.first, out.header, NOTHING, out.digest))
        return closed

    def _commit_sealed(self) -> None:
        for chunk, out in self._sealed:
            if self._is_free(chunk) or (chunk.segment, chunk.index) in self._vouchers:
                self._sealed = []
                voucher = self._voucher(chunk)
                self._add_leaf(chunk, out, voucher)

    def _is_free(self, chunk: Chunk) -> bool:
        return not self._previous_id or chunk.segment < self._unvouched_until

    def _voucher(self, chunk: Chunk) -> bytes:
        """Return the voucher for a chunk that went in.

        Raises:
            StageAtFault: there is none, or it is for something else.
        """
        if self._is_free(chunk):
            return b""
        voucher = self._vouchers.get((chunk.segment, chunk.index), b"")
        if not self._verify(self._previous_id, Domain.CHUNK, chunk.voucher_body(self._session), voucher):
            raise StageAtFault(self._previous, f"has not signed for chunk {chunk.index} as it sent it")
        return voucher
