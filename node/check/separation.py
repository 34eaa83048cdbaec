"""What a calibration separates honest work from, and in how many chunks: every cheat, judged by its thresholds.

A server declares one way to hold weights and does something else. Its chunks are judged one by one, and pooled from the
eighth on. A table that shows only what is caught would be worth nothing: what stays unseen has its rows, too. Runs in a
thread of its own, for minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from node.check.calibrate import Progress, Subject
from node.check.calibration import Calibration, Standard
from node.check.cheats import FORGETFUL, LAZY, SPOILED, spoil
from node.check.check import WINDOW, Verdict, judge
from node.check.honest import CPU, Server, servers_of, together
from node.check.reduction import medians
from node.check.reference import DTYPES
from node.check.statistics import MIN_POOLED
from node.check.survey import Blocks, Scene, Survey, spans_of
from node.model.span import Span
from node.model.tensors import codec_of

HONEST = "honest"
SURE = 0.99
"""How surely a cheat must be found in the chunks that are named."""
MAX_CHUNKS = 64
"""More chunks are not tried."""
_DRAWS = 500


@dataclass(frozen=True, slots=True)
class Separation:
    """What becomes of one cheat that declares one way to hold weights, on spans of one length."""

    held_in: str
    """What is declared."""
    codec: str
    cheat: str
    num_blocks: int
    """Of a span."""
    num_chunks: int
    """That were judged."""
    median: float
    """Mean of the chunks' medians."""
    ratio: float
    """Mean of the medians as multiples of the honest mean; the pooled test sees this."""
    failed: float
    """Share of the chunks that fail by themselves."""
    passed: float
    """Share that pass by themselves."""
    chunks_needed: int | None
    """Checked chunks in which it is found with a probability of 0.99, pooled or not; None: not in ``MAX_CHUNKS``."""


def separate(subject: Subject, calibration: Calibration, *, seed: int, progress: Progress) -> list[Separation]:
    """Return what the calibration makes of every cheat, in the codec of the declared dtype.

    Args:
        subject: the model, with texts other than those of the calibration: thresholds fit their own texts too well.
        calibration: of the model.
        seed: of noise, drift and draws.
        progress: told of every cheat that is done.
    """
    rows: list[Separation] = []
    kinds = [*dict.fromkeys(honest.held_in for honest in calibration.honest)]
    total = sum(_num_cheats(held_in) for held_in in kinds)
    generator = torch.Generator().manual_seed(seed)
    for held_in in kinds:
        for found in _of_kind(subject, calibration, held_in, generator):
            rows += found
            progress("dishonest servers", len({(row.held_in, row.cheat) for row in rows}), total)
    return rows


def _num_cheats(held_in: str) -> int:
    return 1 if held_in not in DTYPES else 1 + len(SPOILED) + len(LAZY) + (held_in != "float32")


def _of_kind(
    subject: Subject, calibration: Calibration, held_in: str, generator: torch.Generator
) -> Iterator[list[Separation]]:
    checkpoint = subject.checkpoint
    server, survey = servers_of(held_in, [CPU])[0], subject.survey(held_in)
    codec = codec_of(server.dtype)
    spans = spans_of(checkpoint.num_blocks, every=False)
    scenes = {blocks: survey.scene(blocks, codec, subject.scales(blocks)) for blocks in spans}
    standards = {blocks: calibration.standard(held_in, codec, *blocks) for blocks in spans}

    def judged(cheat: str, errors: dict[Blocks, torch.Tensor]) -> list[Separation]:
        return [
            _row(held_in, codec, cheat, errors, standards, length, generator)
            for length in dict.fromkeys(end - start for start, end in spans)
        ]

    def honestly(span: Span) -> dict[Blocks, torch.Tensor]:
        return {blocks: scene.run(span, together) for blocks, scene in scenes.items()}

    span = server.build(checkpoint, 0, checkpoint.num_blocks)
    yield judged(HONEST, honestly(span))
    if held_in not in DTYPES:
        return
    for name, cheating in _spoiled_spans(subject, server, generator):
        yield judged(name, honestly(cheating))
    for name in LAZY:
        if name == FORGETFUL and not _has_history(survey):
            continue
        yield judged(name, {blocks: _lazy(scene, span, name, generator) for blocks, scene in scenes.items()})


def _has_history(survey: Survey) -> bool:
    return bool(survey.entering[0].shape[1] > WINDOW)


def _spoiled_spans(subject: Subject, server: Server, generator: torch.Generator) -> Iterator[tuple[str, Span]]:
    checkpoint, end = subject.checkpoint, subject.checkpoint.num_blocks
    tensors = checkpoint.load_span(0, end, dtype=server.dtype)
    for name, how in SPOILED.items():
        yield name, server.build_with(checkpoint.config, spoil(tensors, how, generator), 0, end)
    if server.dtype != torch.float32:
        wide = {key: tensor.float() for key, tensor in spoil(tensors, SPOILED["int8"], generator).items()}
        exact = Server("float32", torch.float32, server.device)
        yield "int8, computed in float32", exact.build_with(checkpoint.config, wide, 0, end)


def _lazy(scene: Scene, span: Span, name: str, generator: torch.Generator) -> torch.Tensor:
    view = span.view(*scene.blocks)
    return scene.errors(LAZY[name](view, scene.given.to(view.dtype), generator))


def _row(
    held_in: str,
    codec: str,
    cheat: str,
    errors: dict[Blocks, torch.Tensor],
    standards: dict[Blocks, Standard],
    num_blocks: int,
    generator: torch.Generator,
) -> Separation:
    its = {blocks: errors[blocks] for blocks in errors if blocks[1] - blocks[0] == num_blocks}
    results = {blocks: [judge([row], standards[blocks]) for row in rows.tolist()] for blocks, rows in its.items()}
    verdicts = [result.verdict for of_span in results.values() for result in of_span]
    ratios = [result.ratio for of_span in results.values() for result in of_span]
    fails = [[result.verdict is Verdict.FAIL for result in of_span] for of_span in results.values()]
    pools = [[result.ratio for result in of_span] for of_span in results.values()]
    limits = [standards[blocks].pooled_limit for blocks in its]
    return Separation(
        held_in,
        codec,
        cheat,
        num_blocks,
        len(verdicts),
        float(torch.cat([medians(rows) for rows in its.values()]).double().mean()),
        sum(ratios) / len(ratios),
        verdicts.count(Verdict.FAIL) / len(verdicts),
        verdicts.count(Verdict.PASS) / len(verdicts),
        chunks_needed(fails, pools, limits, generator),
    )


def chunks_needed(
    fails: Sequence[Sequence[bool]],
    ratios: Sequence[Sequence[float]],
    limits: Sequence[float],
    generator: torch.Generator,
) -> int | None:
    """Return how many chunks of one span it takes to find a server with a probability of 0.99; from recorded ones.

    Args:
        fails: of each span, whether each chunk fails by itself.
        ratios: of each span, each chunk's ratio for the pooled test.
        limits: of each span, the pooled test's.
        generator: draws chunks, with replacement.
    """
    found = torch.zeros(MAX_CHUNKS, dtype=torch.float64)
    for its_fails, its_ratios, limit in zip(fails, ratios, limits, strict=True):
        drawn = torch.randint(len(its_fails), (_DRAWS, MAX_CHUNKS), generator=generator)
        alone = torch.tensor(its_fails)[drawn].cummax(dim=1).values
        means = torch.tensor(its_ratios, dtype=torch.float64)[drawn].cumsum(dim=1) / torch.arange(1, MAX_CHUNKS + 1)
        means[:, : MIN_POOLED - 1] = 0
        found += (alone | (means > limit).cummax(dim=1).values).double().mean(dim=0) / len(fails)
    enough = (found >= SURE - 1e-9).nonzero()
    return int(enough[0]) + 1 if len(enough) else None
