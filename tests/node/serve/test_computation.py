"""Steps of several sessions run together give what each gives alone, whatever happens to the others."""

import itertools

import pytest
import torch

from node.errors import UnavailableError
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from node.model.tensors import from_payload, to_payload
from node.serve.computation import Computation, SpanSteps, StepJob
from node.serve.prefixes import PrefixChain, PrefixStore
from node.serve.session import Compute
from node.wire import Step
from tests.families import FAMILIES, build

HIDDEN, BLOCKS, MAX_LENGTH = 32, (1, 3), 100
_numbers = itertools.count()


@pytest.fixture(scope="module", params=["llama", "bloom"])
def span(request, tmp_path_factory):
    """A span that can be batched, and one that cannot."""
    directory = tmp_path_factory.mktemp("model")
    build(request.param, FAMILIES[request.param]).save_pretrained(directory)
    checkpoint = Checkpoint.open(str(directory))
    tensors = checkpoint.load_span(*BLOCKS, dtype=torch.float32)
    span = build_span(checkpoint.config, tensors, *BLOCKS, dtype=torch.float32, device=torch.device("cpu"))
    assert span.can_batch == (request.param == "llama")
    return span


@pytest.fixture
def group(span):
    return SpanSteps(span)


def text(tokens, rows=1):
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(next(_numbers)))


class Session:
    """A session and the text it has been given, with the output that its own forward of it would be."""

    def __init__(self, span, rows=1, prefixes=None):
        self.computation = Computation(span, span.new_cache(MAX_LENGTH, rows), prefixes)
        self.span, self.text = span, text(0, rows)

    def job(self, group, hidden, crop=None, rows=None, into=None):
        if crop is not None:
            self.text = self.text[:, :crop]
        if rows is not None:
            self.text = self.text[list(rows)]
        position = self.text.shape[1]
        self.text = torch.cat([self.text, hidden], dim=1)
        step = Step(bytes(16), position, tuple(hidden.shape), "float32", to_payload(hidden, "float32"), crop, rows)
        job = StepJob(group, self.computation, Compute(step, crop, rows, ()), "client", into)
        job.prepare()
        return job

    def has_given(self, job):
        """Say whether the job's output is that of the whole text in one forward."""
        payload, shape = job.result()
        output = from_payload(payload, shape, "float32", dtype=torch.float32, device=torch.device("cpu"))
        rows, total = self.text.shape[:2]
        expected = self.span.forward(self.text, self.span.new_cache(total, rows))[:, -shape[1] :]
        assert self.computation.length == total
        return torch.allclose(output, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def run(group, *jobs):
    return group.run([(job, job.positions_left) for job in jobs])


def test_steps_together_give_what_each_gives_alone(span, group):
    sessions = [Session(span, rows) for rows in (1, 3, 1, 2)]
    for lengths in ((5, 1, 12, 3), (1, 1, 1, 1), (1, 4, 1, 7)):
        jobs = [
            session.job(group, text(length, len(session.text)))
            for session, length in zip(sessions, lengths, strict=True)
        ]
        assert run(group, *jobs) == [None] * 4
        assert all(session.has_given(job) for session, job in zip(sessions, jobs, strict=True))


def test_a_step_in_pieces_among_others_gives_what_it_gives_whole(span, group):
    long, short = Session(span), Session(span)
    job = long.job(group, text(20))
    for positions in (7, 1, 12):
        other = short.job(group, text(1))
        assert group.run([(other, 1), (job, positions)]) == [None, None]
        assert short.has_given(other)
    assert job.positions_left == 0
    assert long.has_given(job)


def test_crops_and_rows_take_effect_before_the_step(span, group):
    one, other = Session(span), Session(span, 3)
    assert run(group, one.job(group, text(9)), other.job(group, text(9, 3))) == [None, None]
    into = span.new_cache(MAX_LENGTH, 2).buffers
    jobs = [one.job(group, text(2), crop=4), other.job(group, text(2, 2), crop=6, rows=(2, 0), into=into)]
    assert run(group, *jobs) == [None, None]
    assert one.has_given(jobs[0])
    assert other.has_given(jobs[1])
    assert other.computation.cache.buffers[0][0].data_ptr() == into[0][0].data_ptr()


def test_a_session_that_has_ended_fails_alone(span, group):
    sessions = [Session(span) for _ in range(3)]
    assert run(group, *(session.job(group, text(4)) for session in sessions)) == [None] * 3
    jobs = [session.job(group, text(1)) for session in sessions]
    sessions[1].computation.drop()
    errors = run(group, *jobs)
    assert [type(error) for error in errors] == [type(None), UnavailableError, type(None)]
    assert sessions[0].has_given(jobs[0])
    assert sessions[2].has_given(jobs[2])
    with pytest.raises(UnavailableError):
        sessions[1].job(group, text(1))


@pytest.mark.parametrize("ended", range(3))
def test_a_session_that_ends_within_a_forward_leaves_the_others_right(span, group, ended, monkeypatch):
    store = PrefixStore(2**20)
    sessions = [Session(span, prefixes=PrefixChain(store, bytes([number]))) for number in range(3)]
    assert run(group, *(session.job(group, text(4)) for session in sessions)) == [None] * 3
    jobs = [session.job(group, text(2)) for session in sessions]
    forward_many = span.forward_many

    def interrupted(parts):
        outputs = forward_many(parts)
        sessions[ended].computation.drop()  # as the event loop does, at any time
        return outputs

    with monkeypatch.context() as patched:
        patched.setattr(span, "forward_many", interrupted)
        errors = run(group, *jobs)
    for number in {0, 1, 2} - {ended}:
        assert errors[number] is None
        assert sessions[number].has_given(jobs[number])
        job = sessions[number].job(group, text(3))
        assert run(group, job) == [None]
        assert sessions[number].has_given(job)


def test_when_a_forward_of_several_fails_each_is_run_alone(span, group, monkeypatch):
    sessions = [Session(span) for _ in range(3)]
    assert run(group, *(session.job(group, text(4)) for session in sessions)) == [None] * 3
    forward_many, sizes = span.forward_many, []
    failing = sessions[1].computation

    def forward(parts):
        sizes.append(len(parts))
        if len(parts) > 1 or parts[0].cache is failing.cache:
            raise RuntimeError("out of memory")
        return forward_many(parts)

    jobs = [session.job(group, text(1)) for session in sessions]
    with monkeypatch.context() as patched:
        patched.setattr(span, "forward_many", forward)
        errors = run(group, *jobs)
    assert sizes == ([3, 1, 1, 1] if span.can_batch else [1, 1, 1])
    assert [type(error) for error in errors] == [type(None), RuntimeError, type(None)]
    assert failing.length == 4
    assert sessions[0].has_given(jobs[0])
    assert sessions[2].has_given(jobs[2])
