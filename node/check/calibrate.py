"""Make the calibration of a model: run every honest variant over texts, and keep what their errors come to.

Of each way to hold weights, the first server of each dtype goes every way in its own codec, and one way in the other
codecs, where the wire's rounding is what differs; other kernels go one way. ``full`` takes every way in every codec and
every span. Texts are token ids; where they are from is the caller's. Runs in a thread of its own, for minutes; progress
is told in steps of no fixed length.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import transformers

from node.check.calibration import Calibration, Circumstances, HonestError
from node.check.honest import CPU, WAYS, Server, can_quantise, devices_here, servers_of
from node.check.reduction import reduce_samples
from node.check.reference import DTYPES, HELD_IN, reference_span
from node.check.survey import Blocks, Scene, Survey, second_moments, spans_of, walk
from node.model.checkpoint import Checkpoint
from node.model.end_parameters import EndParameters, find_end_parameters
from node.model.ends import Ends, build_ends
from node.model.span import Span
from node.model.tensors import codec_of
from node.wire import CODECS

SELDOM_WAYS = ("8 rows",)
"""Ways in which a server goes beside its first kernel or its own codec, unless everything is measured."""

Progress = Callable[[str, int, int], None]
"""Told what is going on in words, steps done, and steps in all."""


@dataclass(frozen=True)
class Texts:
    """What is run through the model."""

    ids: torch.Tensor
    """``[texts, positions]``; positions a multiple of 64."""
    source: str
    """Where they are from, in words."""

    @property
    def description(self) -> str:
        """Where they are from, and the SHA-256 of the ids as 32-bit integers."""
        digest = hashlib.sha256(self.ids.to(torch.int32).contiguous().numpy().tobytes()).hexdigest()
        return f"{self.source}; sha256 of {self.ids.shape[0]} x {self.ids.shape[1]} ids {digest}"


@dataclass(frozen=True)
class Subject:
    """The model that is calibrated, loaded as far as every part of it needs."""

    checkpoint: Checkpoint
    ends: EndParameters
    entering: Sequence[torch.Tensor]
    """``[texts, positions, hidden]`` float32 before each block, and behind the last one."""
    moments: torch.Tensor
    """``[blocks, hidden]`` float32."""

    def scales(self, blocks: Blocks) -> torch.Tensor:
        """Return the channel scales of a span, as the calibration will give them."""
        checkpoint = self.checkpoint
        bare = Calibration(
            bytes(32), checkpoint.num_blocks, self.moments.shape[1], _bytes(self.moments), (), (),
            Circumstances((), (), (), 0, "", 1),
        )  # fmt: skip
        return bare.scales(*blocks)

    def survey(self, held_in: str) -> Survey:
        """Load the reference of weights in ``held_in``."""
        reference = reference_span(self.checkpoint, held_in, 0, self.checkpoint.num_blocks, torch.device("cpu"))
        return Survey(reference, self.entering)


def load_subject(checkpoint: Checkpoint, texts: Texts) -> Subject:
    """Run the texts through the model in float32."""
    ends = find_end_parameters(checkpoint.config)
    reference = reference_span(checkpoint, "float32", 0, checkpoint.num_blocks, torch.device("cpu"))
    embedded = load_ends(checkpoint, ends, torch.float32).embed(texts.ids, 0)
    entering = walk(reference, embedded)
    return Subject(checkpoint, ends, entering, second_moments(entering))


def load_ends(
    checkpoint: Checkpoint, parameters: EndParameters, dtype: torch.dtype, device: torch.device = CPU
) -> Ends:
    """Load embedding and head in ``dtype``."""
    return build_ends(
        checkpoint.config,
        checkpoint.load_client(dtype=dtype, device=device, parameters=parameters.of(embeds=True, heads=True)),
        parameters,
        embeds=True,
        heads=True,
        dtype=dtype,
        device=device,
    )


def ways_of(server: Server, codec: str, *, is_first: bool, full: bool) -> list[str]:
    """Return the names of the ways that a server goes in sessions of ``codec``."""
    if full or (is_first and codec == codec_of(server.dtype)):
        return [*WAYS]
    return [*SELDOM_WAYS] if is_first or codec == codec_of(server.dtype) else []


@dataclass(frozen=True)
class _Run:
    held_in: str
    server: Server
    codec: str
    ways: tuple[str, ...]


def _runs(held_in: str, *, full: bool) -> Iterator[_Run]:
    seen: set[torch.dtype] = set()
    for server in servers_of(held_in, devices_here()):
        is_first = server.dtype not in seen
        seen.add(server.dtype)
        for codec in CODECS:
            ways = ways_of(server, codec, is_first=is_first, full=full)
            if ways:
                yield _Run(held_in, server, codec, tuple(ways))


def calibrate(
    subject: Subject, texts: Texts, *, seed: int, full: bool, kinds: Sequence[str], progress: Progress
) -> Calibration:
    """Return the calibration of a model.

    Args:
        subject: the model, with the texts in it.
        texts: the same texts.
        seed: of what is drawn.
        full: every way, codec and span; takes several times as long.
        kinds: ways to hold weights that are measured.
        progress: told of every span that is done.
    """
    checkpoint, spans = subject.checkpoint, spans_of(subject.checkpoint.num_blocks, every=full)
    runs = {held_in: [*_runs(held_in, full=full)] for held_in in kinds}
    total, done = len(spans) * sum(len(its) for its in runs.values()), 0
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    exact = load_ends(checkpoint, subject.ends, torch.float32)
    honest: list[HonestError] = []
    answers: list[HonestError] = []
    for held_in, its_runs in runs.items():
        survey = subject.survey(held_in)
        servers = {run.server: _load(subject, run.server) for run in its_runs}
        for codec in CODECS:
            samples: dict[Blocks, dict[str, torch.Tensor]] = {}
            answered: dict[Blocks, dict[str, torch.Tensor]] = {}
            for blocks in spans:
                of_span = [run for run in its_runs if run.codec == codec]
                scene = survey.scene(blocks, codec, subject.scales(blocks))
                head = exact if blocks[1] == checkpoint.num_blocks else None
                samples[blocks], its_answers = _errors(scene, of_span, servers, head)
                if head is not None:
                    answered[blocks] = its_answers
                done += len(of_span)
                progress(f"honest servers, weights in {held_in}", done, total)
            honest.append(reduce_samples(held_in, codec, samples, generators[0]))
            answers.append(reduce_samples(held_in, codec, answered, generators[1]))
    variants = {f"{run.server.name}: {way}" for its_runs in runs.values() for run in its_runs for way in run.ways}
    made_from = Circumstances(
        (
            ("python", platform.python_version()),
            ("torch", torch.__version__),
            ("transformers", transformers.__version__),
        ),
        tuple(_device_name(device) for device in devices_here()),
        tuple(sorted(variants)),
        seed,
        texts.description,
        texts.ids.numel(),
    )
    return Calibration(
        checkpoint.manifest32,
        checkpoint.num_blocks,
        subject.moments.shape[1],
        _bytes(subject.moments),
        tuple(honest),
        tuple(answers),
        made_from,
    )


def kinds_here() -> list[str]:
    """Return the ways to hold weights that can be measured on this machine."""
    return [held_in for held_in in HELD_IN if held_in in DTYPES or can_quantise()]


def _errors(
    scene: Scene, runs: Sequence[_Run], servers: dict[Server, tuple[Span, Ends]], head: Ends | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return every variant's errors ``[chunks, 64]``: of hidden states, and of answers where there is a head."""
    errors, answers = {}, {}
    for run in runs:
        span, ends = servers[run.server]
        for way in run.ways:
            outputs, name = scene.outputs(span, WAYS[way]), f"{run.server.name}: {way}"
            errors[name] = scene.errors(outputs)
            if head is not None:
                answers[name] = scene.answer_errors(outputs, ends, head)
    return errors, answers


def _load(subject: Subject, server: Server) -> tuple[Span, Ends]:
    """Load all blocks and the ends as a server does; with quantised weights the ends are as it computes."""
    checkpoint = subject.checkpoint
    ends = load_ends(checkpoint, subject.ends, server.dtype, server.device)
    return server.build(checkpoint, 0, checkpoint.num_blocks), ends


def _bytes(moments: torch.Tensor) -> bytes:
    numbers: bytes = moments.float().contiguous().numpy().tobytes()
    return numbers


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
