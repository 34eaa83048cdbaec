"""Measure what this machine does with weights: how fast it reads them, multiplies, and what each block costs besides.

Nothing of the model is needed but its config: the matrices are constants, and what a block costs besides its
multiplications is found on a tiny llama that runs as any span does. Kernels run here: call it in ``asyncio.to_thread``
while no engine runs. Takes about two seconds, with quantised weights up to five. Does not know what the figures are for
(``node.serve.forecast`` does).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig

from node.model.packed import PackedLinear, can_pack
from node.model.quantise import Scheme
from node.model.span import Span, build_quantised_span, build_span
from node.serve.forecast import Machine
from node.serve.measure import measure

MIB = 2**20
_ROUNDS_S = 0.4
"""How long each of the measurements is repeated, s; building what they run on comes on top."""
_MAX_SET_BYTES = {"cpu": 256 * MIB, "cuda": 2048 * MIB}
"""Weights that are read in turn: more than caches hold, and few enough to be made in a moment."""
_MIN_SET_BYTES = 2 * MIB
_MIN_INPUTS, _MAX_INPUTS = 256, 8192
"""Narrower matrices would measure what a call costs; the tiny llama tells that."""
_ROWS = 256
"""Rows of the multiplication that is bound by arithmetic."""
_TINY = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=5, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """What is measured: weights as a span would hold them, where it would hold them."""

    device: torch.device
    dtype: torch.dtype
    """What the span computes in."""
    scheme: Scheme | None
    """How its weights are held in fewer bits; None: as ``dtype`` has them."""
    inputs: int
    """Width of the model."""
    set_bytes: int
    """Weights of the span: what fits into caches is read faster."""


def measure_machine(probe: Probe) -> Machine:
    """Measure one machine; of every figure a quarter of the rounds were better."""
    with torch.inference_mode():
        bytes_per_s = measure_reading(probe)
        flops_per_s = _measure_multiplying(probe)
    block_s, step_s = _measure_overhead(probe)
    return Machine(bytes_per_s, flops_per_s, block_s, step_s)


def measure_reading(probe: Probe) -> float:
    """Return the bytes of weights that multiplications of one row read in a second."""
    most = _MAX_SET_BYTES.get(probe.device.type, _MAX_SET_BYTES["cpu"])
    set_bytes = max(_MIN_SET_BYTES, min(probe.set_bytes, most))
    layers, held = _matrices(probe, set_bytes)
    row = torch.full((1, _inputs(probe)), 0.01, dtype=probe.dtype, device=probe.device)

    def read() -> torch.Tensor:
        for layer in layers:
            product = layer(row)
        return product

    return held / _time_s(read)


def _inputs(probe: Probe) -> int:
    return max(_MIN_INPUTS, min(probe.inputs, _MAX_INPUTS)) // 64 * 64


def _matrices(probe: Probe, set_bytes: int) -> tuple[list[nn.Module], int]:
    """Return linear layers that hold about ``set_bytes`` together, and how much they do hold."""
    inputs = _inputs(probe)
    per_output = _weight_bytes(probe, torch.empty((64, inputs), device="meta")) / 64
    outputs = int(max(64, min(3 * inputs, set_bytes / per_output)) // 64 * 64)
    count = max(1, round(set_bytes / (outputs * per_output)))
    return [_linear(probe, outputs, inputs) for _ in range(count)], int(count * outputs * per_output)


def _weight_bytes(probe: Probe, weight: torch.Tensor) -> int:
    if probe.scheme is not None:
        return probe.scheme.weight_bytes(weight, probe.dtype)
    return int(weight.numel()) * int(probe.dtype.itemsize)


def _linear(probe: Probe, outputs: int, inputs: int) -> nn.Module:
    """Return a linear layer as a span would hold it."""
    layer = nn.Linear(inputs, outputs, bias=False, dtype=probe.dtype, device="meta").to_empty(device=probe.device)
    layer.weight.requires_grad_(False).fill_(0.01)  # Pages that nobody wrote would all be one, in every cache.
    if probe.scheme is not None:
        return _quantised(layer, probe.scheme)
    if probe.device.type == "cpu" and probe.dtype == torch.float32 and can_pack():
        return PackedLinear(layer.weight, None)
    return layer


def _quantised(layer: nn.Module, scheme: Scheme) -> nn.Module:
    from torchao.quantization import quantize_  # Heavy, and in an optional extra.

    holder = nn.Sequential(layer)
    quantize_(holder, scheme.loader_config(_TINY).get_apply_tensor_subclass())
    return holder


def _measure_multiplying(probe: Probe) -> float:
    size = 4096 if probe.device.type == "cuda" else 1024
    left = torch.full((_ROWS, size), 0.01, dtype=probe.dtype, device=probe.device)
    right = torch.full((size, size), 0.01, dtype=probe.dtype, device=probe.device)
    return 2.0 * _ROWS * size * size / _time_s(lambda: left @ right)


def _measure_overhead(probe: Probe) -> tuple[float, float]:
    """Return what a block costs besides its weights, and a step besides its blocks, s."""
    counts = (1, _TINY.num_hidden_layers)
    spans = [_tiny_span(probe, count) for count in counts]
    times: list[list[float]] = [[], []]
    until_s = time.perf_counter() + _ROUNDS_S
    while len(times[0]) < 3 or time.perf_counter() < until_s:
        for span, taken in zip(spans, times, strict=True):
            taken.append((span.end - span.start) / measure(span, _TINY.hidden_size).blocks_per_s)
    one_s, all_s = map(undisturbed, times)
    block_s = max(0.0, (all_s - one_s) / (counts[1] - counts[0]))
    return block_s, max(0.0, one_s - block_s)


def _tiny_span(probe: Probe, count: int) -> Span:
    if probe.scheme is None:
        tensors = {name: tensor for block in range(count) for name, tensor in _tiny_block(probe, block).items()}
        return build_span(_TINY, tensors, 0, count, dtype=probe.dtype, device=probe.device)
    return build_quantised_span(
        _TINY, lambda _: _tiny_block(probe, 0), 0, count, scheme=probe.scheme, dtype=probe.dtype, device=probe.device
    )


def _tiny_block(probe: Probe, block: int) -> dict[str, torch.Tensor]:
    wide, inner, narrow = _TINY.hidden_size, _TINY.intermediate_size, _TINY.hidden_size // 2
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (wide, wide),
        "self_attn.k_proj": (narrow, wide),
        "self_attn.v_proj": (narrow, wide),
        "self_attn.o_proj": (wide, wide),
        "mlp.gate_proj": (inner, wide),
        "mlp.up_proj": (inner, wide),
        "mlp.down_proj": (wide, inner),
        "input_layernorm": (wide,),
        "post_attention_layernorm": (wide,),
    }
    return {
        f"model.layers.{block}.{name}.weight": torch.full(shape, 0.01, dtype=probe.dtype, device=probe.device)
        for name, shape in shapes.items()
    }


def _time_s(work: Callable[[], Any]) -> float:
    """Return how long ``work`` takes, s, after a first one that is not counted; waits for the device."""
    times: list[float] = []
    until_s = time.perf_counter() + _ROUNDS_S
    while len(times) < 4 or (time.perf_counter() < until_s and len(times) < 200):
        started_s = time.perf_counter()
        float(work().sum())
        times.append(time.perf_counter() - started_s)
    return undisturbed(times[1:])


def undisturbed(times_s: Sequence[float]) -> float:
    """Return the time that a quarter of ``times_s`` stay below: what others on this machine add is no figure of it."""
    return sorted(times_s)[len(times_s) // 4]
