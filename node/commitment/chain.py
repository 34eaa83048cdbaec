"""The client's check of a session's commitments: every stage's input is the output of the stage before. Pure.

The client hashes what it sends and what it gets. Of the stages it sees leaves, as they report them. Between two
neighbours lies an edge, on which what the one gave and the other took must be equal, chunk by chunk:

    client ──edge 0──> stage 0 ──edge 1──> stage 1 ──edge 2──> client
           sent        in, out             in, out             got

When they are not, it is clear who did it. A stage shows its neighbour's signature (a voucher) for what it took, so it
is the neighbour that gave one thing and signed another; without the signature it is the stage itself. At both ends the
client knows what went. Headers are compared as bytes are, so a stage that hands on another crop or row selection than
it got is found in the same way; only at the last edge differing headers prove nothing, because another stage may have
changed them, and an edge before shows who. Leaving a chunk out is found by the number of steps that a stage says it
has handed on. Who has signed for a chunk must commit to it at once; who was given it, as another says, has 64 steps, in
which its chunk ends whatever it was really given.

A repair puts new edges in the place of old ones. The new stages begin in a segment of their own, with the history; the
next new step begins another one, at every stage. What a surviving neighbour reports of segments before its new
edge is compared with nothing, because whom it came from is gone. State is bounded by what is on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dht.domains import Domain
from dht.identity import peer_id_to_bytes
from node.commitment.chunks import WINDOW, Chunk, Leaf, Tap
from node.commitment.stage import MAX_LEAVES, Verify
from node.errors import StageAtFault
from node.merkle import CompactRange
from node.wire import Payload, Step


@dataclass(slots=True)
class _Edge:
    """What one side has reported of an edge and the other one has not; both in order."""

    since: int = 0
    """Segments before this one are not compared here."""
    began: int = 0
    """Steps that had been sent when the edge came to be."""
    given: dict[tuple[int, int], tuple[Chunk, int]] = field(default_factory=dict)
    """By segment and index: chunks that only the side that gave them has reported, and the number of steps after which
    the other side must have."""
    taken: dict[tuple[int, int], tuple[Chunk, int]] = field(default_factory=dict)
    """The same of the side that took them."""

    def give(self, chunk: Chunk, steps: int, grace: int) -> Chunk | None:
        """Note what was given by the end of step ``steps``; return what the other side took, if that is known."""
        return self._match(chunk, self.taken, self.given, steps + grace)

    def take(self, chunk: Chunk, steps: int, grace: int) -> Chunk | None:
        """Note what was taken; return what the other side gave, if that is known."""
        return self._match(chunk, self.given, self.taken, steps + grace)

    def _match(
        self,
        chunk: Chunk,
        others: dict[tuple[int, int], tuple[Chunk, int]],
        mine: dict[tuple[int, int], tuple[Chunk, int]],
        due: int,
    ) -> Chunk | None:
        if chunk.segment < self.since:
            return None
        place = (chunk.segment, chunk.index)
        if place in others:
            return others.pop(place)[0]
        mine[place] = (chunk, max(due, self.began + 1))
        return None


@dataclass(slots=True)
class _Reporter:
    peer_id: str
    id_bytes: bytes
    tree: CompactRange = field(default_factory=CompactRange)
    next: tuple[int, int] = (0, 0)
    """Segment and index of its next leaf of what it has computed, unless a segment begins."""
    resent: dict[int, int] = field(default_factory=dict)
    """For the segments in which it was to send again what lost stages had: how many chunks it has reported."""

    def append(self, leaf: Leaf, session: bytes, segment: int, num_positions: int) -> None:
        """Take the next leaf of what was computed, up to a segment and in so many positions."""
        is_next = (leaf.segment, leaf.index) == self.next or (leaf.index == 0 and leaf.segment > self.next[0])
        if not is_next or leaf.segment > segment or leaf.index >= num_positions:
            raise StageAtFault(self.peer_id, f"commits to chunk {leaf.index} out of turn")
        self.next = (leaf.segment, leaf.index + 1)
        self.tree.append(leaf.hash(session))


@dataclass(frozen=True, slots=True)
class RetiredStage:
    """A stage whose place another has taken while it still has something to be signed for.

    Its neighbours have new edges, so what it commits to is compared with nothing; who runs it again may.
    """

    session: bytes
    segment: int
    """The last one that it has a part in."""
    num_positions: int
    reporter: _Reporter

    def check(self, leaves: Sequence[Leaf]) -> bytes:
        """Return the root over all that the stage has reported.

        Raises:
            StageAtFault: it does not report in order.
        """
        for leaf in leaves[:MAX_LEAVES]:
            if leaf.is_resent:
                self.reporter.tree.append(leaf.hash(self.session))
            else:
                self.reporter.append(leaf, self.session, self.segment, self.num_positions)
        return self.reporter.tree.root()


class ChainCheck:
    """What a client knows of the commitments of one session.

    Args:
        session: its id.
        codec: in which its hidden states travel.
        peers: of its stages, in order.
        verify: checks signatures.
    """

    def __init__(self, session: bytes, codec: str, peers: Sequence[str], verify: Verify) -> None:
        self.segment = 0
        """The segment of the next new step."""
        self._session = session
        self._codec = codec
        self._verify = verify
        self._stages = [_Reporter(peer, peer_id_to_bytes(peer)) for peer in peers]
        self._edges = [_Edge() for _ in range(len(peers) + 1)]
        self._sent, self._got = Tap(codec), Tap(codec)
        self._again: Tap | None = None
        """What the client itself sends again, to a new first stage."""
        self.num_sent = 0
        """Steps so far, as ``open`` and ``adopt`` tell them to stages whose neighbours are replaced."""
        self._num_answered = self._num_positions = 0
        self._is_sealed = False
        """Whether the session is over: a report from before its end then lacks what has come after it."""

    @property
    def is_complete(self) -> bool:
        """Whether everything that one side of an edge has reported is known from the other side, too."""
        return not any(edge.given or edge.taken for edge in self._edges)

    def sent(self, step: Step, segment: int, payload: Payload | None = None) -> None:
        """Note a new step, in the order of their numbers; ``payload`` is what it was where that may have changed."""
        payload = step.payload if payload is None else payload
        self.num_sent += 1
        self._num_positions += step.shape[1]
        if self._again is not None and segment > self._again.segment:
            self._give(self._again.seal())
            self._again = None
        closed = self._sent.add(step, segment, step.codec, step.shape, payload)
        if self._again is not None:
            closed = self._again.add(step, segment, step.codec, step.shape, payload)
        self._give(closed)

    def resent(self, step: Step) -> None:
        """Note a step that the client sends again, to a new first stage: history, or a step not answered."""
        assert self._again is not None
        self._give(self._again.add(step, 0, step.codec, step.shape, step.payload))

    def answered(self, step: Step, segment: int, codec: str, shape: tuple[int, ...], payload: Payload) -> None:
        """Note the result of the oldest step that has none.

        Args:
            step: what was sent.
            segment: in which it was sent.
            codec: of the result, as its ``shape`` and ``payload``.
            shape: rows, positions answered for, width.
            payload: its bytes.

        Raises:
            StageAtFault: the last stage has given something else than it committed to.
        """
        self._num_answered += 1
        for chunk in self._got.add(step, segment, codec, shape, payload):
            self._get(chunk)

    def seal(self) -> None:
        """Note that all stages end their last chunk, in a session that is at rest.

        Raises:
            StageAtFault: as in ``answered``.
        """
        self._is_sealed = True
        self._give(self._sent.seal() if self._again is None else self._again.seal())
        for chunk in self._got.seal():
            self._get(chunk)

    def retired(self, stage: int) -> RetiredStage:
        """Return what a stage that is about to be replaced has reported so far."""
        return RetiredStage(self._session, self.segment, self._num_positions, self._stages[stage])

    def replaced(self, first: int, last: int, peers: Sequence[str]) -> int:
        """Note that new stages take the place of ``first`` to ``last``, before they are given anything.

        Returns:
            The segment in which they begin: for their ``open``, and for ``replay`` and ``adopt`` beside them.
        """
        begins = self.segment + 1
        self.segment = begins + 1
        self._stages[first : last + 1] = [_Reporter(peer, peer_id_to_bytes(peer), next=(begins, 0)) for peer in peers]
        edges = [_Edge(begins, self.num_sent) for _ in peers]
        self._edges[first : last + 2] = [*edges, _Edge(begins + 1, self.num_sent)]
        if first == 0:
            self._again = Tap(self._codec, begins)
        else:
            self._stages[first - 1].resent[begins] = 0
        return begins

    def check(self, stage: int, leaves: Sequence[Leaf], steps: int) -> bytes:
        """Check what a stage reports; return the root over all that it has reported, which it must have signed.

        Args:
            stage: its number in the route.
            leaves: since its last report, in its order.
            steps: number of the last step that it has handed on.

        Raises:
            StageAtFault: a stage, this one or the one before, has not kept to the protocol. Where it is the one before,
                the report itself is sound, and taken: see ``root_of``.
        """
        reporter = self._stages[stage]
        other: StageAtFault | None = None
        if len(leaves) > MAX_LEAVES or steps > self.num_sent:
            raise StageAtFault(reporter.peer_id, "reports more than there is")
        for leaf in leaves:
            if leaf.is_resent:
                self._check_resent(stage, leaf, steps)
            else:
                reporter.append(leaf, self._session, self.segment, self._num_positions)
                other = self._check_taken(stage, leaf, steps) or other
                self._check_given(stage, leaf, steps)
        if len(leaves) < MAX_LEAVES and not self._is_sealed:
            self._check_omissions(stage, steps)
        if other is not None:
            raise other
        return reporter.tree.root()

    def root_of(self, stage: int) -> bytes:
        """Return the root over all that a stage has reported."""
        return self._stages[stage].tree.root()

    def _check_taken(self, stage: int, leaf: Leaf, steps: int) -> StageAtFault | None:
        """Check a stage's input: signed for by the stage before, and what that one commits to; return its fault."""
        reporter, edge, chunk = self._stages[stage], self._edges[stage], leaf.chunk_in
        if stage == 0:
            if leaf.segment >= edge.since and edge.take(chunk, steps, 0) != chunk:
                raise StageAtFault(reporter.peer_id, f"commits to other bytes of chunk {leaf.index} than it was sent")
            return None
        before = self._stages[stage - 1]
        if leaf.segment >= edge.since:
            body = chunk.voucher_body(self._session)
            if not self._verify(before.id_bytes, Domain.CHUNK, body, leaf.voucher):
                raise StageAtFault(reporter.peer_id, f"commits to a chunk {leaf.index} that nobody has signed for")
        given = edge.take(chunk, steps, 0)
        if given in (None, chunk):
            return None
        return StageAtFault(before.peer_id, f"has signed for other bytes of chunk {leaf.index} than it commits to")

    def _check_given(self, stage: int, leaf: Leaf, steps: int) -> None:
        reporter, edge, chunk = self._stages[stage], self._edges[stage + 1], leaf.chunk_out
        taken = edge.give(chunk, steps, WINDOW)
        if stage + 1 == len(self._stages):
            self._compare_last(chunk, taken)
        elif taken not in (None, chunk):
            raise StageAtFault(reporter.peer_id, f"commits to other bytes of chunk {leaf.index} than it has signed for")

    def _check_resent(self, stage: int, leaf: Leaf, steps: int) -> None:
        reporter, edge = self._stages[stage], self._edges[stage + 1]
        if reporter.resent.get(leaf.segment) != leaf.index or leaf.index >= self._num_positions:
            raise StageAtFault(reporter.peer_id, "commits to having sent again what nobody asked for")
        reporter.resent[leaf.segment] += 1
        reporter.tree.append(leaf.hash(self._session))
        taken = edge.give(leaf.chunk_out, steps, WINDOW)
        if taken not in (None, leaf.chunk_out):
            raise StageAtFault(reporter.peer_id, f"commits to other bytes of chunk {leaf.index} than it has signed for")

    def _check_omissions(self, stage: int, steps: int) -> None:
        """Check that a stage has committed to what its neighbours show to have gone by the end of step ``steps``."""
        for entries in (self._edges[stage].given, self._edges[stage + 1].taken):
            if any(due <= steps for _, due in entries.values()):
                raise StageAtFault(self._stages[stage].peer_id, f"leaves out a chunk of the first {steps} steps")

    def _give(self, chunks: Sequence[Chunk]) -> None:
        """Note what the client has sent; the first stage cannot have reported it before."""
        for chunk in chunks:
            self._edges[0].give(chunk, self.num_sent, 0)

    def _get(self, chunk: Chunk) -> None:
        given = self._edges[-1].take(chunk, self._num_answered, WINDOW)
        self._compare_last(given, chunk)

    def _compare_last(self, given: Chunk | None, taken: Chunk | None) -> None:
        """Compare what the last stage commits to with what came; where it was given other headers, say nothing."""
        if given is None or taken is None or given.header != taken.header:
            return
        if given != taken:
            raise StageAtFault(self._stages[-1].peer_id, f"gave other bytes for chunk {given.index} than it commits to")
