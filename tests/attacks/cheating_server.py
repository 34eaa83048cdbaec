"""Our own server changed so that it computes something else than it declares, and signs for that and opens it as it is.

Run as a module: ``python -m tests.attacks.cheating_server serve ...``. What it does stands in the file ``behaviour`` at
its home, so that one process serves for every kind: a name of ``WORK`` or of ``WEIGHTS``, or of ``WORK`` with a share
of the chunks and a seed, as in ``adds noise 0.2 7``: then it draws a lot for each chunk, and notes it in the file
``lots``. No file: it is honest.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Sequence
from typing import Any

import torch

from node.check.cheats import SPOILED, add_noise, return_input, skip_layer, spoil
from node.config import default_home
from node.model.ragged import Part
from node.model.span import Span
from node.run import server
from node.run.serve_plan import ServePlan

PROGRAM = ("tests.attacks.cheating_server",)
"""For ``Fleet.start``."""

CHUNK = 64
MEMORY = 16
"""Positions of which one that forgets knows something."""


def forgets(span: Span, hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Run every few positions as if nothing had come before them."""
    del generator
    pieces = hidden.split(MEMORY, dim=1)
    return torch.cat([span.forward(piece, span.new_cache(MEMORY, piece.shape[0])) for piece in pieces], dim=1)


WORK = {
    "returns its input": return_input,
    "forgets the prefix": forgets,
    "skips a block": skip_layer,
    "adds noise": add_noise,
}
"""What is done in place of the work on a step."""

WEIGHTS = ("nf4", "int8")
"""Coarser weights than those declared."""


class Cheat:
    """What one server does in place of its work.

    Args:
        plan: what it serves.
        start: its first block.
        end: one past the last.
    """

    def __init__(self, plan: ServePlan, start: int, end: int) -> None:
        self._home = default_home()
        self._coarse = {name: load_span(spoiled(plan, name), start, end) for name in WEIGHTS}
        self._generator = torch.Generator()
        self._chances: dict[str, random.Random] = {}
        self._lots: dict[tuple[int, int], bool] = {}
        """Whether it cheats, by session and chunk: one that comes in several steps is treated alike in all of them."""

    def behaviour(self) -> list[str]:
        """Return what it does now, with a share and a seed where it has them."""
        file = self._home / "behaviour"
        if not file.exists():
            return []
        text = file.read_text()
        return [text] if text in WORK or text in WEIGHTS else text.rsplit(" ", 2)

    def forward_many(self, span: Span, parts: Sequence[Part]) -> list[torch.Tensor]:
        """Give what it gives in place of the outputs of some steps."""
        match self.behaviour():
            case []:
                return forward_many(span, parts)
            case [name] if name in WEIGHTS:
                return forward_many(self._coarse[name].view(span.start, span.end), parts)
            case [name]:
                forward_many(span, parts)  # The session's history is as it should be, for what comes next.
                return [WORK[name](span, part.hidden, self._generator) for part in parts]
            case [name, share, seed]:
                return [self._some_chunks(span, part, WORK[name], float(share), seed) for part in parts]
        raise AssertionError

    def _some_chunks(self, span: Span, part: Part, work: Any, share: float, seed: str) -> torch.Tensor:
        first = part.cache.length
        if not first:  # Another session may have had its place in memory.
            self._lots = {key: is_false for key, is_false in self._lots.items() if key[0] != id(part.cache)}
        (right,) = forward_many(span, [part])
        output = right.clone()
        for chunk in range(first // CHUNK, -(-(first + output.shape[1]) // CHUNK)):
            if self._is_drawn((id(part.cache), chunk), share, seed):
                own = slice(max(0, chunk * CHUNK - first), (chunk + 1) * CHUNK - first)
                output[:, own] = work(span, part.hidden[:, own], self._generator)
        return output

    def _is_drawn(self, key: tuple[int, int], share: float, seed: str) -> bool:
        if key not in self._lots:
            chance = self._chances.setdefault(seed, random.Random(seed))
            self._lots[key] = chance.random() < share
            with (self._home / "lots").open("a") as file:
                file.write(f"{seed} {int(self._lots[key])}\n")
        return self._lots[key]


def spoiled(plan: ServePlan, name: str) -> ServePlan:
    """Return a plan whose weights are coarser than it says."""

    def tensors(first: int, last: int, **how: Any) -> dict[str, torch.Tensor]:
        return spoil(plan.checkpoint.load_span(first, last, **how), SPOILED[name], torch.Generator())

    class Spoiled:
        config, load_span = plan.checkpoint.config, staticmethod(tensors)

    return dataclasses.replace(plan, checkpoint=Spoiled())


load_span, forward_many = server.load_span, Span.forward_many


def main(arguments: list[str]) -> int:
    """Run the command behind it."""
    from node.cli import main as run

    cheats: list[Cheat] = []

    def load(plan: ServePlan, start: int, end: int) -> Span:
        span = load_span(plan, start, end)
        cheats[:] = [Cheat(plan, start, end)]
        return span

    def forward(self: Span, parts: Sequence[Part]) -> list[torch.Tensor]:
        return cheats[0].forward_many(self, parts) if cheats else forward_many(self, parts)

    server.load_span, Span.forward_many = load, forward  # type: ignore[method-assign]
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
