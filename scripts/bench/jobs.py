"""What a client process of a benchmark can be asked to do, and what it answers. Runs in the client's main thread.

A job is sent whole through a pipe, and so is its outcome. Times are of the system's monotonic clock, which all
processes of a machine share, so that their notes can be laid side by side.
"""

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

AT_THE_GATE = "at the gate"
"""What a client says when it waits for the others."""
PROCEED = "proceed"
"""What a client is told then, and what tells it later to stop before it has all its tokens."""


class Job(Protocol):
    """Work for one client."""

    def run(self, model: Any, pipe: Connection) -> Any:
        """Do it with the client's model and return its outcome."""


@dataclass(frozen=True)
class Decoded:
    """What one generation gave."""

    tokens: list[int]
    """New tokens."""
    times_s: list[float]
    """When each of them came; the first one ends the prefill."""


@dataclass(frozen=True)
class Decode:
    """Generate greedily; after the first token wait at the gate until every client is there."""

    prompt: list[int]
    num_tokens: int
    """New tokens, at most."""
    stops_early: bool = False
    """Whether a further message ends the generation."""

    def run(self, model: Any, pipe: Connection) -> Decoded:
        """Generate."""
        watch = _GateWatch(pipe)
        ids = torch.tensor([self.prompt])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.num_tokens,
            min_new_tokens=self.num_tokens,
            do_sample=False,
            streamer=watch,
            stopping_criteria=StoppingCriteriaList([_Told(pipe)] if self.stops_early else []),
        )
        return Decoded(output[0, len(self.prompt) :].tolist(), watch.times_s[1:])


@dataclass(frozen=True)
class Prefilled:
    """What one prefill gave."""

    started_s: float
    ended_s: float
    token: int
    """The likeliest next token."""

    @property
    def elapsed_s(self) -> float:
        """How long it took."""
        return self.ended_s - self.started_s


@dataclass(frozen=True)
class Prefill:
    """Read one prompt, in a session that ends with it."""

    prompt: list[int]

    def run(self, model: Any, pipe: Connection) -> Prefilled:
        """Run the client's model once over the whole prompt."""
        del pipe
        with model.inference_session(max_length=len(self.prompt)):
            return self.run_on(model)

    def run_on(self, model: Any) -> Prefilled:
        """Run any causal model of transformers once over the whole prompt."""
        ids = torch.tensor([self.prompt])
        started_s = time.monotonic()
        with torch.no_grad():
            logits = model(input_ids=ids, logits_to_keep=1).logits
        ended_s = time.monotonic()
        return Prefilled(started_s, ended_s, int(logits[0, -1].argmax()))


class _GateWatch(BaseStreamer):
    """Notes when each token comes, and waits at the gate after the first."""

    def __init__(self, pipe: Connection) -> None:
        self.times_s: list[float] = []
        self._pipe = pipe

    def put(self, value: torch.Tensor) -> None:
        """Take the time; the first call is the prompt itself."""
        self.times_s.append(time.monotonic())
        if len(self.times_s) == 2:
            self._pipe.send(AT_THE_GATE)
            self._pipe.recv()

    def end(self) -> None:
        """Nothing more to note."""


class _Told(StoppingCriteria):
    """Ends a generation when a message waits in the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._is_told = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return for each row whether it is done."""
        if not self._is_told and self._pipe.poll():
            self._pipe.recv()
            self._is_told = True
        return torch.full((input_ids.shape[0],), self._is_told)
