"""Calls captured into CUDA graphs: the kernels of a call, launched again at once without the Python that chose them.

A captured call reads its arguments from tensors that stay where they are and leaves its result in one that the next
call, of whatever key, may overwrite. It must not ask the device for a value. Used by the compute thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeAlias

import torch

MAX_CALLS = 64
"""Graphs that are kept; each holds little memory of its own, since all of them work in the same."""
_WARM_UPS = 2
"""Runs before a capture: libraries allocate and choose kernels in the first ones."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One captured call."""

    replay: Callable[[], None]
    output: torch.Tensor
    """Where every replay leaves its result."""


Capture: TypeAlias = Callable[[Callable[[], torch.Tensor]], Captured]


class CapturedCalls:
    """Captured calls by key; the one not used for longest goes first.

    Args:
        capture: captures a call.
        max_calls: how many are kept.
    """

    def __init__(self, capture: Capture, max_calls: int = MAX_CALLS) -> None:
        self._capture = capture
        self._max_calls = max_calls
        self._calls: OrderedDict[Hashable, Captured] = OrderedDict()

    def run(self, key: Hashable, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Run the call that ``key`` names; it is captured from ``work`` when it comes for the first time.

        Returns:
            Its result, valid until the next run.
        """
        if key not in self._calls:
            while len(self._calls) >= self._max_calls:
                self._calls.popitem(last=False)
            self._calls[key] = self._capture(work)
        self._calls.move_to_end(key)
        call = self._calls[key]
        call.replay()
        return call.output

    def clear(self) -> None:
        """Forget all calls."""
        self._calls.clear()


class CudaCapture:
    """Captures calls on one device into graphs that share their working memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], torch.Tensor]) -> Captured:
        """Capture ``work``, having run it a few times.

        Raises:
            RuntimeError: it does what a graph cannot hold, or memory is short.
        """
        # torch leaves its own stream current when the end of a capture fails; the outer context brings ours back.
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile: only what this one does counts.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = work()

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return Captured(replay, output)
