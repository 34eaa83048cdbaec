#!/usr/bin/env python3
"""Measure decode steps of a span on a GPU beside eager transformers and beside the least that memory allows.

Random weights of Llama 3 8B's shape, made on the device; nothing is downloaded. Every session is one row behind a
history of random keys and values. In the same run, in turn, on the same weights and histories:

    eager    transformers' own layers with its DynamicCache, all rows in one batch
    ragged   a span's steps side by side, as servers on a CPU run them
    static   a span's steps in static shapes, captured into a CUDA graph, as servers on a GPU run them

`step_ms` is wall time from one step's inputs on the device to its outputs there. `floor_ms` is what it takes to read
every weight once and every row's keys and values once at the bandwidth that this run finds: the better one of copying
(counted twice) and adding up a large tensor. `share_of_floor` is floor over static, `speedup` eager over static, both
medians over rounds. `difference` is the largest between static and eager outputs, as a share of the
largest change that the blocks make.
Prints one JSON line. A case that does not fit into memory is named as such.

`--device cpu` needs no GPU: with `--small` to see what static shapes cost there, where nothing is captured; with
`--smoke`, a tiny shape, to see that it runs. Exit code 77: there is no GPU.
"""

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench.report import circumstances, spread
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModel, DynamicCache, LlamaConfig

from node.model.arena import whole_of
from node.model.quantise import weight_bytes
from node.model.ragged import Part
from node.model.span import Span, _make_span
from node.model.trunk import find_trunk, keep_only_layers
from node.run.libraries import silence_libraries

NO_GPU = 77
"""Exit code where there is nothing to measure on."""
KERNELS = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    dtype: torch.dtype
    spans: tuple[int, ...]
    """Blocks of each span."""
    batches: tuple[int, ...]
    """Sessions of one row each."""
    context: int
    """Positions behind which the steps stand."""
    probe_bytes: int
    """Size of the tensor that bandwidth is measured with."""


SETTINGS = {
    "Llama 3 8B": Setting(4096, 14336, 32, 8, torch.bfloat16, (8, 32), (1, 8, 32, 128), 2048, 4 * 2**30),
    "small": Setting(512, 1408, 8, 8, torch.float32, (8,), (1, 8), 512, 2**28),
    "smoke": Setting(64, 128, 4, 2, torch.float32, (2, 3), (1, 3), 300, 2**24),
}


def new_span(setting: Setting, num_blocks: int, device: torch.device) -> tuple[Span, int]:
    """Return a span of random weights that were made on ``device``, and their bytes."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=setting.hidden,
        intermediate_size=setting.intermediate,
        num_hidden_layers=num_blocks,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.key_value_heads,
        max_position_embeddings=2 * setting.context,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=0,
        eos_token_id=None,
    )
    with device:
        model = AutoModel.from_config(config, dtype=setting.dtype).eval().requires_grad_(False)
    keep_only_layers(find_trunk(model, num_blocks), 0, num_blocks)
    num_bytes = weight_bytes(model)
    span = _make_span(model, 0, num_blocks, setting.dtype, device)
    if span.static_decode is None:
        span.find_static_decode(span._config)  # noqa: SLF001 - servers on a CPU do without
    if span.static_decode is None:
        raise RuntimeError("Static decoding does not give what each session gets alone on this device.")
    return span, num_bytes


def floor_ms(num_bytes: float, bytes_per_s: float) -> float:
    """Return the time in which ``num_bytes`` can be read."""
    return 1000 * num_bytes / bytes_per_s


def bandwidth(device: torch.device, num_bytes: int) -> dict[str, float]:
    """Return the bytes per second that copying and adding up a tensor of ``num_bytes`` reach, the best of ten."""
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    works: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2, lambda: target.copy_(source)),
        "sum": (1, source.sum),
    }
    found = {}
    for name, (factor, work) in works.items():
        timed_s(device, work)
        found[name] = factor * source.nbytes / min(timed_s(device, work) for _ in range(10))
    return found


def timed_s(device: torch.device, work: Callable[[], Any]) -> float:
    """Return how long ``work`` takes until the device has done it."""
    wait_for(device)
    started_s = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started_s


def wait_for(device: torch.device) -> None:
    """Return when ``device`` has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Sessions:
    """Sessions with histories of random numbers, and the same histories once more as transformers keeps them."""

    def __init__(self, span: Span, batch: int, context: int, steps: int) -> None:
        self.span = span
        self.context = context
        capacity = context + steps
        arena = span.new_arena(batch * capacity)
        for part in (part for pair in arena.place(0, 1, 1) for part in pair):
            whole_of(part)[: batch * capacity * part.shape[1]].normal_()
        self.caches = [
            span.new_cache(capacity, buffers=arena.place(row * capacity, 1, capacity)) for row in range(batch)
        ]
        self.eager = DynamicCache()
        for layer in range(span.end - span.start):
            pairs = [cache.buffers[layer] for cache in self.caches]
            keys, values = (torch.cat([pair[which][:, :, :context] for pair in pairs]) for which in (0, 1))
            self.eager.update(keys, values, layer)
        hidden_size = span._config.hidden_size  # noqa: SLF001 - of the config that the span was made from
        self.hidden = torch.randn((batch, 1, hidden_size), dtype=span.dtype, device=span.device)
        self.rewind()

    def rewind(self) -> None:
        """Take the histories back to where they began."""
        for cache in self.caches:
            cache.length = self.context
        if (num_new := self.eager.get_seq_length() - self.context) > 0:
            self.eager.crop(-num_new)

    def parts(self) -> list[Part]:
        """Return a step of every session."""
        return [Part(hidden, cache) for hidden, cache in zip(self.hidden.split(1), self.caches, strict=True)]

    def run_eager(self) -> torch.Tensor:
        """Run a step as transformers does; return ``[batch, 1, hidden]``."""
        positions = torch.full((1, 1), self.eager.get_seq_length(), device=self.hidden.device)
        output: torch.Tensor = self.span._model(  # noqa: SLF001 - the reference
            inputs_embeds=self.hidden, position_ids=positions, past_key_values=self.eager, use_cache=True
        ).last_hidden_state
        return output

    def run_ragged(self) -> torch.Tensor:
        """Run a step side by side; return ``[batch, 1, hidden]``."""
        return torch.cat(self.span._ragged.forward(self.parts()))  # noqa: SLF001 - whatever the device's way is

    def run_static(self) -> torch.Tensor:
        """Run a step in static shapes; return ``[batch, 1, hidden]``."""
        assert self.span.static_decode is not None
        parts = self.parts()
        assert self.span.static_decode.can_decode(parts)
        return torch.cat(self.span.static_decode.forward(parts))

    def step_ms(self, run: Callable[[], torch.Tensor], steps: int) -> float:
        """Return the median time of ``steps`` steps behind the beginning."""
        times = [timed_s(self.hidden.device, run) for _ in range(steps)]
        self.rewind()
        return 1000 * statistics.median(times)


@torch.inference_mode()
def measure(span: Span, batch: int, context: int, rounds: int, steps: int) -> dict[str, Any]:
    """Time the three ways in turn, round by round, after one round that is not counted.

    Returns:
        ``difference``, and ``times``: ``step_ms`` of every round by way; ``skipped`` alone where memory is too small.
    """
    needed = 2 * batch * span.cache_bytes_per_position * (context + steps)
    if span.device.type == "cuda" and 1.2 * needed > torch.cuda.mem_get_info(span.device)[0]:
        return {"skipped": f"two copies of the histories need {needed} bytes and room to work in"}
    sessions = Sessions(span, batch, context, steps)
    ways = {"eager": sessions.run_eager, "ragged": sessions.run_ragged, "static": sessions.run_static}
    outputs = {}
    for name, run in ways.items():
        outputs[name] = run()
        sessions.rewind()
    gap = (outputs["static"] - outputs["eager"]).abs().max() / (outputs["eager"] - sessions.hidden).abs().max()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            times[name].append(sessions.step_ms(run, steps))
    return {"difference": float(gap), "times": {name: values[1:] for name, values in times.items()}}


def describe(times: dict[str, list[float]], floor: float) -> dict[str, Any]:
    """Return times by way, and what they say beside each other and beside ``floor``, ms."""
    return {
        "floor_ms": round(floor, 4),
        **{name: spread("step_ms", values, 4) for name, values in times.items()},
        "share_of_floor": spread("share", [floor / mine for mine in times["static"]]),
        "speedup": _ratio(times["eager"], times["static"]),
        "speedup_over_ragged": _ratio(times["ragged"], times["static"]),
    }


def _ratio(others: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    return spread("ratio", [other / mine for other, mine in zip(others, ours, strict=True)])


def measure_spans(setting: Setting, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every span with every number of sessions."""
    rates = bandwidth(device, setting.probe_bytes)
    best = max(rates.values())
    spans = {}
    for num_blocks in setting.spans:
        torch.manual_seed(arguments.seed)
        span, num_bytes = new_span(setting, num_blocks, device)
        cases = []
        for batch in setting.batches:
            # Every step reads one position more than the one before.
            history_bytes = int(batch * span.cache_bytes_per_position * (setting.context + (arguments.steps + 1) / 2))
            with sdpa_kernel(KERNELS[arguments.attention]) if arguments.attention else contextlib.nullcontext():
                found = measure(span, batch, setting.context, arguments.rounds, arguments.steps)
            if "times" in found:
                found.update(describe(found.pop("times"), floor_ms(num_bytes + history_bytes, best)))
            cases.append({"batch": batch, "weight_bytes": num_bytes, "history_bytes": history_bytes, **found})
            release(device)
        spans[f"{num_blocks} blocks"] = cases
        del span
        release(device)
    return {"bytes_per_s": {name: round(rate) for name, rate in rates.items()}, "spans": spans}


def release(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> int:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="where to compute (default: the first GPU)")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--small", action="store_const", dest="shape", const="small", help="a shape for CPUs")
    shape.add_argument("--smoke", action="store_const", dest="shape", const="smoke", help="a tiny shape")
    parser.set_defaults(shape="Llama 3 8B")
    parser.add_argument("--attention", choices=KERNELS, help="let torch use this kernel alone (default: its choice)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up (default: 5)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a round (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.device is None and not torch.cuda.is_available():
        print("This machine has no GPU that torch can use; --device cpu --smoke runs without one.", file=sys.stderr)
        return NO_GPU
    silence_libraries()
    device = torch.device(arguments.device or "cuda")
    setting = SETTINGS[arguments.shape]
    line = {
        **circumstances("gpu", arguments.seed),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cuda": torch.version.cuda,
        "shape": arguments.shape,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "context": setting.context,
        "attention": arguments.attention or "torch's choice",
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        **measure_spans(setting, device, arguments),
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
