"""Captured calls are captured once, run again without their makers, and the one not used for longest goes first."""

import pytest
import torch

from node.model.captured import Captured, CapturedCalls, CudaCapture


class Recorder:
    """Captures as a graph does: the result stands where it stood, and every replay writes it anew."""

    def __init__(self):
        self.num_captures = 0

    def __call__(self, work):
        self.num_captures += 1
        output = work().clone()
        return Captured(lambda: output.copy_(work()), output)


def test_a_call_is_captured_once_and_reads_what_its_inputs_hold_when_it_runs():
    recorder, source = Recorder(), torch.tensor([1.0])
    calls = CapturedCalls(recorder)
    assert calls.run("double", lambda: source * 2).item() == 2
    source.fill_(4)
    assert calls.run("double", lambda: pytest.fail("the call has been captured already")).item() == 8
    assert calls.run("half", lambda: source / 2).item() == 2
    assert recorder.num_captures == 2


def test_the_call_not_used_for_longest_makes_room():
    recorder = Recorder()
    calls = CapturedCalls(recorder, max_calls=2)
    for key in ("a", "b", "a", "c", "a"):
        calls.run(key, lambda: torch.zeros(1))
    assert recorder.num_captures == 3, "a stayed while c took the place of b"
    calls.run("b", lambda: torch.zeros(1))
    assert recorder.num_captures == 4


def test_calls_that_were_forgotten_are_captured_anew():
    recorder = Recorder()
    calls = CapturedCalls(recorder)
    calls.run("a", lambda: torch.zeros(1))
    calls.clear()
    assert calls.run("a", lambda: torch.ones(1)).item() == 1
    assert recorder.num_captures == 2


def test_a_call_that_cannot_be_captured_is_not_kept():
    def refuse(_):
        raise RuntimeError("out of memory")

    calls = CapturedCalls(refuse)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            calls.run("a", lambda: torch.zeros(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_a_graph_gives_what_the_call_gives_whatever_ran_between():
    device = torch.device("cuda")
    source, weight = torch.randn(4, 64, device=device), torch.randn(64, 64, device=device)
    calls = CapturedCalls(CudaCapture(device))
    for _ in range(3):
        source.normal_()
        for rows in (4, 1, 2):
            output = calls.run(rows, lambda rows=rows: (source[:rows] @ weight).relu() @ weight)
            torch.testing.assert_close(output, (source[:rows] @ weight).relu() @ weight)
