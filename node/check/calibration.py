"""What error is honest: the calibration of one model, by the dtype a server declares, the wire's codec and the span.

``efedllm calibrate`` makes it from honest variants. It holds, of every way to hold weights and every codec,

    means    of each span that was measured: the mean of the chunks' medians, of the variant that has most
    tails    of each span length: the 99.9th percentile of every statistic, as a multiple of that mean
    pooled   the 99.9th percentile of the mean of 8 chunks, likewise

once for hidden states, once for the logits that last stages answer with (``node.check.final_token``), and of each block
the second moments of what it adds, from which the channel scales of any span follow by one sum. A statistic passes
below 1.25 times its percentile and fails above 2 times; the largest error, 2 and 4. One file, canonical, so that its
SHA-256 names it. Pure: text in and out; who reads files is elsewhere. Runs anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from node.check.statistics import ChunkStatistics
from node.errors import BadCalibration, CannotCheck

VERSION = 2
MAX_BYTES = 2**24
"""Of a file: room for 128 blocks of 16,384 channels, and little more."""
PASS_FACTOR = 1.25
FAIL_FACTOR = 2.0
LARGEST_PASS_FACTOR = 2.0
LARGEST_FAIL_FACTOR = 4.0
"""Of the largest error of a chunk: its tail is heavy, and a percentile of some hundred chunks is not its end. On
another text one honest chunk of some thousands came to 2.1 times. A position not computed has an error of 0.3 to 1."""
POOLED_FACTOR = 1.25
"""Of the pooled percentile: a mean of 8 chunks varies less than a chunk, so it needs less room."""
LEAST_PASS = 1e-4
LEAST_FAIL = 1e-3
"""No threshold is below these. Honest float32 differs by 1e-6 on one machine, and by more than anyone has measured
between kinds of machines; nothing that saves a server work is below them."""
LEAST_MEAN = LEAST_PASS / PASS_FACTOR
"""No honest mean counts as less, for the same reason."""
SIZES = (1, 5, 17, 64)
"""Positions of a chunk that the median is calibrated for: of fewer positions it varies more. Odd ones, because of those
it needs the fewest positions above it for a median to be so large."""

_WEIGHTS = ("float32", "float16", "bfloat16", "int8", "int4")
_CODECS = ("float32", "float16", "bfloat16", "int8")
_MOMENT_BYTES = 4
_LEAST_SCALE = 1e-3
"""Of the root mean square over channels: a channel that is hardly written to must not outweigh all others."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The 99.9th percentiles of a chunk's statistics, as multiples of the span's honest mean."""

    median: tuple[float, ...]
    """For chunks of at least ``SIZES`` positions."""
    high: float
    """Of whole chunks. In short ones it is nearly the largest error, and is not asked about."""
    largest: float
    """Of whole chunks, which is above that of shorter ones."""
    num_chunks: int
    """Chunks that they were taken from, of each variant."""


@dataclass(frozen=True, slots=True)
class HonestError:
    """What error honest servers have that declare one way to hold weights, in sessions of one codec."""

    held_in: str
    """What the weights are held in, as the announcement says it."""
    codec: str
    """How hidden states travel."""
    means: tuple[tuple[int, int, float], ...]
    """Start, end and honest mean of every span that was measured."""
    tails: tuple[tuple[int, Tail], ...]
    """Number of blocks, and the tail of spans of so many, ascending."""
    pooled: float
    """99.9th percentile of the mean of 8 chunks of one variant and span, as a multiple of the span's mean."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a calibration was made from."""

    versions: tuple[tuple[str, str], ...]
    """Of python, torch and what else computes: name and version."""
    devices: tuple[str, ...]
    """Kinds of devices that honest variants ran on."""
    variants: tuple[str, ...]
    """Honest variants, in words."""
    seed: int
    text: str
    """Where the text is from, and the SHA-256 of its token ids."""
    num_positions: int
    """Tokens of the text."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The two thresholds of a statistic."""

    passes: float
    """Below this it passes."""
    fails: float
    """Above this it fails; between them nothing is said."""


@dataclass(frozen=True)
class Standard:
    """What chunks of one span are held against."""

    scales: torch.Tensor
    """``[hidden]`` of each channel, float64."""
    mean: float
    """Honest mean of the chunks' medians."""
    tail: Tail
    pooled_limit: float
    """A mean of at least 8 chunks' medians, as a multiple of the honest mean, fails above this."""

    def limits(self, num_positions: int) -> tuple[Limit, Limit, Limit]:
        """Return the thresholds of median, upper quantile and largest error in a chunk of so many positions."""
        which = max(index for index, size in enumerate(SIZES) if size <= max(num_positions, SIZES[0]))
        median, high = _limit(self.mean * self.tail.median[which]), _limit(self.mean * self.tail.high)
        largest = _limit(self.mean * self.tail.largest, LARGEST_PASS_FACTOR, LARGEST_FAIL_FACTOR)
        return median, high if num_positions >= SIZES[-1] else largest, largest

    def ratio(self, statistics: ChunkStatistics) -> float:
        """Return a chunk's median as a multiple of the honest mean, for the pooled test."""
        return statistics.median / self.mean


@dataclass(frozen=True)
class Calibration:
    """The calibration of one model."""

    manifest: bytes
    """Of the model, 32 bytes."""
    num_blocks: int
    hidden_size: int
    moments: bytes
    """Mean square of what each block adds to each channel: ``[blocks, hidden]`` little-endian float32, row-major."""
    honest: tuple[HonestError, ...]
    """Of hidden states."""
    answers: tuple[HonestError, ...]
    """Of the logits that a last stage answers with, which runs a span up to the last block and the head."""
    made_from: Circumstances

    @property
    def digest(self) -> bytes:
        """Its identity: SHA-256 of the file, 32 bytes."""
        return hashlib.sha256(encode_calibration(self)).digest()

    def scales(self, start: int, end: int) -> torch.Tensor:
        """Return the channel scales of a span, ``[hidden]`` float64: roots of its blocks' second moments, summed.

        That is what the span would add to a channel if its blocks did so independently of each other. The true root
        mean square is up to twice as large (docs/trust.md), which moves no verdict: the thresholds were found with
        these same scales.
        """
        moments = torch.frombuffer(bytearray(self.moments), dtype=torch.float32).reshape(self.num_blocks, -1)
        scales = moments[start:end].double().sum(dim=0).sqrt()
        typical = scales.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        return scales.clamp_min(_LEAST_SCALE * float(typical))

    def standard(self, held_in: str, codec: str, start: int, end: int) -> Standard:
        """Return what the hidden states of the blocks ``[start, end)`` are held against.

        A span that was not measured is given the largest mean of those of the next length below and above it.

        Raises:
            CannotCheck: nothing was measured of such weights or such a codec, or the model has no such blocks.
        """
        return self._standard(self.honest, held_in, codec, start, end)

    def answer_standard(self, held_in: str, codec: str, start: int) -> Standard:
        """Return what the answers of a last stage are held against, which runs the blocks from ``start`` on.

        Raises:
            CannotCheck: as ``standard``.
        """
        return self._standard(self.answers, held_in, codec, start, self.num_blocks)

    def _standard(self, errors: Sequence[HonestError], held_in: str, codec: str, start: int, end: int) -> Standard:
        if not 0 <= start < end <= self.num_blocks:
            raise CannotCheck(f"The calibration is of blocks 0:{self.num_blocks}, not {start}:{end}.")
        for honest in errors:
            if (honest.held_in, honest.codec) == (held_in, codec):
                return Standard(
                    self.scales(start, end),
                    _mean_of(honest, start, end),
                    _tail_of(honest, end - start),
                    max(honest.pooled, 1.0) * POOLED_FACTOR,
                )
        raise CannotCheck(f"The calibration says nothing of weights in {held_in} with the codec {codec}.")


def _limit(percentile: float, passes: float = PASS_FACTOR, fails: float = FAIL_FACTOR) -> Limit:
    return Limit(max(LEAST_PASS, passes * percentile), max(LEAST_FAIL, fails * percentile))


def _mean_of(honest: HonestError, start: int, end: int) -> float:
    for first, last, mean in honest.means:
        if (first, last) == (start, end):
            return mean
    near = _neighbours([length for length, _ in honest.tails], end - start)
    return max(mean for first, last, mean in honest.means if last - first in near)


def _tail_of(honest: HonestError, num_blocks: int) -> Tail:
    near = _neighbours([length for length, _ in honest.tails], num_blocks)
    first, *others = (tail for length, tail in honest.tails if length in near)
    for other in others:
        first = Tail(
            tuple(map(max, first.median, other.median)),
            max(first.high, other.high),
            max(first.largest, other.largest),
            min(first.num_chunks, other.num_chunks),
        )
    return first


def _neighbours(lengths: Sequence[int], wanted: int) -> set[int]:
    """Return the calibrated lengths next to ``wanted``: itself, or one below and one above where they exist."""
    below = [length for length in lengths if length <= wanted]
    above = [length for length in lengths if length >= wanted]
    return {*below[-1:], *above[:1]}


def encode_calibration(calibration: Calibration) -> bytes:
    """Return the file: one line of JSON, keys in order, nothing that could be written in two ways."""
    made = calibration.made_from
    content = {
        "version": VERSION,
        "manifest": calibration.manifest.hex(),
        "num_blocks": calibration.num_blocks,
        "hidden_size": calibration.hidden_size,
        "moments": base64.b64encode(calibration.moments).decode("ascii"),
        "honest": [_as_fields(honest) for honest in calibration.honest],
        "answers": [_as_fields(honest) for honest in calibration.answers],
        "made_from": {
            "versions": made.versions,
            "devices": made.devices,
            "variants": made.variants,
            "seed": made.seed,
            "text": made.text,
            "num_positions": made.num_positions,
        },
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _as_fields(honest: HonestError) -> dict[str, Any]:
    return {
        "held_in": honest.held_in,
        "codec": honest.codec,
        "means": honest.means,
        "tails": [[length, tail.num_chunks, tail.median, tail.high, tail.largest] for length, tail in honest.tails],
        "pooled": honest.pooled,
    }


def decode_calibration(data: bytes, *, manifest: bytes | None = None) -> Calibration:
    """Read a calibration; the bytes may be anybody's.

    Args:
        data: the file.
        manifest: of the model that it must be of; None: of any.

    Raises:
        BadCalibration: it is too long, not what ``encode_calibration`` writes, or of another model.
    """
    if len(data) > MAX_BYTES:
        raise BadCalibration(f"The calibration has {len(data):,} bytes, of {MAX_BYTES:,} at most; make it anew.")
    try:
        calibration = _read(json.loads(data))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        reason = str(error) if isinstance(error, _Unfit) else "it is not what `efedllm calibrate` writes"
        raise BadCalibration(f"The calibration cannot be read ({reason}); make it with `efedllm calibrate`.") from None
    if encode_calibration(calibration) != data:
        raise BadCalibration("The calibration is not in its one canonical form; make it with `efedllm calibrate`.")
    if manifest is not None and calibration.manifest != manifest:
        raise BadCalibration(
            f"The calibration is of the model {calibration.manifest.hex()[:8]}, not of {manifest.hex()[:8]}; "
            "make one of this model with `efedllm calibrate`."
        )
    return calibration


class _Unfit(ValueError):
    """A value is not what its field asks for; the message is half a sentence."""


def _read(content: Any) -> Calibration:
    fields = _fields(
        content, "version manifest num_blocks hidden_size moments honest answers made_from", "the calibration"
    )
    if fields["version"] != VERSION:
        raise _Unfit(f"version {VERSION} is known")
    num_blocks, hidden_size = _count(fields["num_blocks"], 4096), _count(fields["hidden_size"], 2**17)
    manifest = bytes.fromhex(_text(fields["manifest"], 64))
    moments = base64.b64decode(_text(fields["moments"], MAX_BYTES), validate=True)
    if len(manifest) != 32 or len(moments) != num_blocks * hidden_size * _MOMENT_BYTES:
        raise _Unfit("the model's identity or the channels' moments have another size than they must")
    numbers = torch.frombuffer(bytearray(moments), dtype=torch.float32)
    if not bool((torch.isfinite(numbers) & (numbers >= 0)).all()):
        raise _Unfit("a channel's moment is no number from 0")
    honest, answers = (_read_kinds(fields[name], num_blocks, least) for name, least in (("honest", 1), ("answers", 0)))
    if any(end != num_blocks for one in answers for _, end, _ in one.means):
        raise _Unfit("answers are of a span that does not end with the last block")
    return Calibration(
        manifest, num_blocks, hidden_size, moments, honest, answers, _read_circumstances(fields["made_from"])
    )


def _read_kinds(entries: Any, num_blocks: int, least: int) -> tuple[HonestError, ...]:
    read = tuple(_read_honest(entry, num_blocks) for entry in _list(entries, least, len(_WEIGHTS) * len(_CODECS)))
    kinds = [(one.held_in, one.codec) for one in read]
    if len({*kinds}) != len(kinds):
        raise _Unfit("one kind of weights and codec stands twice")
    return read


def _read_honest(entry: Any, num_blocks: int) -> HonestError:
    fields = _fields(entry, "held_in codec means tails pooled", "an entry of honest")
    means = tuple(_read_mean(mean, num_blocks) for mean in _list(fields["means"], 1, 2**16))
    tails = tuple(_read_tail(tail, num_blocks) for tail in _list(fields["tails"], 1, num_blocks))
    lengths = [length for length, _ in tails]
    if lengths != sorted({*lengths}) or {*lengths} != {end - start for start, end, _ in means}:
        raise _Unfit("the spans that were measured and the tails do not fit together")
    held_in, codec = _one_of(fields["held_in"], _WEIGHTS), _one_of(fields["codec"], _CODECS)
    return HonestError(held_in, codec, means, tails, _positive(fields["pooled"]))


def _read_mean(mean: Any, num_blocks: int) -> tuple[int, int, float]:
    start, end, error = _list(mean, 3, 3)
    if type(start) is not int or not 0 <= start < _count(end, num_blocks):
        raise _Unfit("a span is none of this model")
    return start, end, _positive(error)


def _read_tail(entry: Any, num_blocks: int) -> tuple[int, Tail]:
    length, num_chunks, median, high, largest = _list(entry, 5, 5)
    sizes = len(SIZES)
    medians = tuple(map(_positive, _list(median, sizes, sizes)))
    tail = Tail(medians, _positive(high), _positive(largest), _count(num_chunks, 2**31))
    return _count(length, num_blocks), tail


def _read_circumstances(entry: Any) -> Circumstances:
    fields = _fields(entry, "versions devices variants seed text num_positions", "made_from")
    versions = tuple(
        (_text(name, 64), _text(version, 64))
        for name, version in (_list(pair, 2, 2) for pair in _list(fields["versions"], 0, 32))
    )
    if type(fields["seed"]) is not int:
        raise _Unfit("the seed is no integer")
    return Circumstances(
        versions,
        tuple(_text(device, 256) for device in _list(fields["devices"], 0, 64)),
        tuple(_text(variant, 256) for variant in _list(fields["variants"], 0, 256)),
        fields["seed"],
        _text(fields["text"], 1024),
        _count(fields["num_positions"], 2**40),
    )


def _fields(value: Any, names: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or value.keys() != {*names.split()}:
        raise _Unfit(f"{what} has other fields than it must")
    return value


def _list(value: Any, least: int, most: int) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise _Unfit("a list is missing, or has another length than it must")
    return value


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise _Unfit("a text is missing or too long")
    return value


def _one_of(value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise _Unfit(f"{str(value)[:16]!r} is none of {', '.join(known)}")
    return str(value)


def _count(value: Any, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise _Unfit("a count is no integer, or out of its bounds")
    return value


def _positive(value: Any) -> float:
    if type(value) is not float or not (math.isfinite(value) and value > 0):
        raise _Unfit("an error is no number above 0")
    return value
