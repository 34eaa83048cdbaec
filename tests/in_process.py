"""A swarm without sockets: every hop goes through the frames, the session and the span that a server runs."""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from node.client.route import Route, Stage
from node.client.thin_terms import ThinTerms
from node.errors import LocalError
from node.model.ends import Ends
from node.model.span import Span
from node.serve.computation import Computation, Output, SpanSteps, StepJob
from node.serve.end_work import EndWork
from node.serve.session import Compute, StageSession
from node.wire import LENGTH_BYTES, Frame, Open, Result, Sendable, Step, decode, decode_length, encode


class InProcessStage(NamedTuple):
    """What a server keeps of one session."""

    state: StageSession
    computation: Computation
    group: SpanSteps


class InProcessChain:
    """One session at every stage; what ``node.client.chain.Chain`` is on a network."""

    def __init__(
        self,
        session: bytes,
        spans: Sequence[Span],
        openings: Sequence[Open],
        hidden_size: int,
        ends: Sequence[Ends | None],
    ) -> None:
        self.session = session
        self.max_length = openings[0].max_length
        self.route = Route(tuple(Stage(f"peer{n}", span.start, span.end, ()) for n, span in enumerate(spans)))
        self.stages = [
            stage_of(span, opened, hidden_size, its_ends)
            for span, opened, its_ends in zip(spans, openings, ends, strict=True)
        ]
        self.is_closed = False

    @property
    def length(self) -> int:
        """Positions in the caches of the stages, which must agree."""
        (length,) = {stage.computation.length for stage in self.stages}
        return length


class InProcessSwarm:
    """Implements ``node.client.remote_session.Connector`` over spans in this process."""

    def __init__(self, spans: Sequence[Span], hidden_size: int, ends: Sequence[Ends | None] | None = None) -> None:
        assert [span.start for span in spans[1:]] == [span.end for span in spans[:-1]]
        self.chains: list[InProcessChain] = []
        self.num_steps = 0
        self.num_tokens = 0
        self.num_crops = 0
        self.num_selections = 0
        self.results: list[Result] = []
        self._spans = spans
        self._ends = ends or [None] * len(spans)
        self._hidden_size = hidden_size
        self._numbers = itertools.count()
        self._computing = threading.Lock()
        """A server computes in one thread; spans are not made for several."""

    def open(
        self,
        batch: int,
        left_padding: tuple[int, ...],
        max_length: int,
        codec: str,
        thin: ThinTerms | None = None,
    ) -> InProcessChain:
        """Open a session at every span."""
        session = next(self._numbers).to_bytes(16, "big")
        opened = Open(session, bytes(32), 0, 1, batch, left_padding, max_length, codec, "", "", ())
        openings = [opened] * len(self._spans)
        if thin is not None:
            openings[0] = replace(openings[0], embed=True)
            openings[-1] = replace(openings[-1], top=thin.top, sampling=thin.sampling)
        received = [over_the_wire(opening) for opening in openings]
        assert all(isinstance(opening, Open) for opening in received)
        chain = InProcessChain(session, self._spans, received, self._hidden_size, self._ends)
        self.chains.append(chain)
        return chain

    def run(self, chain: InProcessChain, steps: list[Step]) -> list[Result]:
        """Pass each step through all stages."""
        if chain.is_closed:
            raise LocalError("The session is closed.")
        return [self._run_one(chain, step) for step in steps]

    def _run_one(self, chain: InProcessChain, step: Step) -> Result:
        self.num_steps += 1
        self.num_tokens += step.shape[1]
        self.num_crops += step.crop is not None
        self.num_selections += step.rows is not None
        for stage in chain.stages:
            arrived = over_the_wire(step)
            assert isinstance(arrived, Step)
            order = stage.state.receive(arrived)
            assert isinstance(order, Compute)
            with self._computing:
                payload, shape = run_alone(stage, order, chain.max_length)
            step = replace(step, shape=shape, codec=stage.state.output_codec, payload=payload)
        result = over_the_wire(Result(step.session, step.position, step.shape, step.codec, step.payload))
        assert isinstance(result, Result)
        self.results.append(result)
        return result

    def close_later(self, chain: InProcessChain) -> None:
        """End a session."""
        chain.is_closed = True

    def close(self) -> None:
        """End all sessions."""
        for chain in self.chains:
            chain.is_closed = True

    @property
    def num_open(self) -> int:
        """Sessions not closed yet."""
        return sum(not chain.is_closed for chain in self.chains)


def stage_of(span: Span, opened: Open, hidden_size: int, ends: Ends | None) -> InProcessStage:
    """Open a session at one stage."""
    works = opened.embed or opened.top or opened.sampling
    work = EndWork(ends, opened) if ends is not None and works else None
    cache = span.new_cache(opened.max_length, opened.batch)
    return InProcessStage(
        StageSession(opened, hidden_size, ends.vocab_size if ends is not None else 0),
        Computation(span, cache, ends=work),
        SpanSteps(span),
    )


def run_alone(stage: InProcessStage, order: Compute, max_length: int) -> Output:
    """Run one step as the engine does when nothing else waits."""
    span, rows = stage.computation.span, order.step.shape[0]
    into = None
    if order.rows is not None and span.layers and len(order.rows) != stage.computation.cache.buffers[0][0].shape[0]:
        into = span.new_cache(max_length, rows).buffers
    job = StepJob(stage.group, stage.computation, order, "client", into)
    job.prepare()
    (error,) = stage.group.run([(job, job.positions_left)])
    if error is not None:
        raise error
    return job.result()


def over_the_wire(frame: Sendable) -> Frame:
    """Return ``frame`` as it arrives at the other end."""
    head, payload = encode(frame)
    body = head[LENGTH_BYTES:] + bytes(payload)
    assert decode_length(head[:LENGTH_BYTES]) == len(body)
    return decode(body)
