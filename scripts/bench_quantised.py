#!/usr/bin/env python3
"""Measure quantised spans beside float32 ones in the same run: quality, bytes of weights, time of a step.

Quality: the embedded model, all of its blocks in one span between transformers' own embedding, norm and head; every
held-out document is scored alone, from its first token to the end token that closes it. Fields are those of
`bench_codecs.py`. Speed: Llama-shaped random models on a CPU; `step_ms` is processor time of a decode step behind 64
positions, or of a prefill of 128, and `ratio` is that over the float32 span's in the same round, medians over rounds:
above 1 is slower. The float32 span has the weights' layout that servers give it. Prints one JSON line.

The text is the held-out part that `embedded_corpus.py --out DIR` writes (`--corpus DIR`), or files of the machine's
own (`--text FILE ...`), cut into pieces of whole lines.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchao
from bench.quality import Score, describe, read_documents
from bench.report import circumstances, spread
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from node.model.checkpoint import Checkpoint
from node.model.quantise import SCHEMES, weight_bytes
from node.model.span import Span, build_quantised_span, build_span
from node.run.libraries import silence_libraries

REFERENCE = "float32"
CPU = torch.device("cpu")
SHAPES = {"8 blocks x 512": (8, 512, 1408, 8), "2 blocks x 2048": (2, 2048, 5632, 16)}
"""Blocks, hidden size, intermediate size, attention heads."""
HISTORY = 64
STEPS = 8
"""Decode steps that one time is taken over."""
WORK = {"decode, 1 row": (1, 1, STEPS), "decode, 8 rows": (8, 1, STEPS), "prefill of 128": (1, 128, 1)}
"""Rows, tokens of a step, steps."""


@dataclass(frozen=True)
class Way:
    """One way to hold the weights of a span."""

    dtype: torch.dtype
    """What it computes in."""
    quantize: str | None = None

    def build(self, checkpoint: Checkpoint) -> tuple[Span, int]:
        """Return all blocks of the model as one span, and the bytes that their weights take."""
        end, config = checkpoint.num_blocks, checkpoint.config
        if self.quantize is None:
            tensors = checkpoint.load_span(0, end, dtype=self.dtype)
            num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            return build_span(config, tensors, 0, end, dtype=self.dtype, device=CPU), num_bytes
        span = build_quantised_span(
            config,
            lambda block: checkpoint.load_span(block, block + 1, dtype=self.dtype),
            0,
            end,
            scheme=SCHEMES[self.quantize],
            dtype=self.dtype,
            device=CPU,
        )
        return span, weight_bytes(span._model)  # noqa: SLF001 - what is held, not what was planned


WAYS: Mapping[str, Way] = {
    REFERENCE: Way(torch.float32),
    "bfloat16": Way(torch.bfloat16),
    "int8": Way(torch.float32, "int8"),
    "int8 in bfloat16": Way(torch.bfloat16, "int8"),
    "int4": Way(torch.bfloat16, "int4"),
}


@torch.no_grad()
def logits_of(whole: Any, span: Span, ids: torch.Tensor) -> torch.Tensor:
    """Return ``[positions, vocabulary]`` of one document (``[positions]``), its blocks computed by ``span``."""
    hidden = whole.model.embed_tokens(ids[None])
    output = span.forward(hidden.to(span.dtype), span.new_cache(len(ids))).float()
    logits: torch.Tensor = whole.lm_head(whole.model.norm(output))[0]
    return logits


def measure_quality(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score the held-out documents with every way of holding the embedded model's weights."""
    checkpoint = Checkpoint.open("embedded")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
    whole = AutoModelForCausalLM.from_pretrained(checkpoint.tokenizer_dir, dtype=torch.float32).eval()
    source, texts = read_documents(arguments.corpus, arguments.text or ())
    spans = {name: way.build(checkpoint) for name, way in WAYS.items()}
    scores = {name: Score() for name in ("local", *WAYS)}
    limit = checkpoint.config.max_position_embeddings
    for text in texts[: arguments.num_documents]:
        ids = torch.tensor([*tokenizer(text)["input_ids"][:limit], tokenizer.eos_token_id])
        logits = {name: logits_of(whole, span, ids[:-1]) for name, (span, _) in spans.items()}
        with torch.no_grad():
            logits["local"] = whole(input_ids=ids[None, :-1], use_cache=False).logits[0]
        for name, score in scores.items():
            score.add(logits[name], logits[REFERENCE], ids[1:])
    reference = scores[REFERENCE]
    return {
        "text": source,
        "num_documents": len(reference.nats),
        "num_tokens": reference.num_tokens,
        "local": describe(scores["local"], reference),
        "ways": {name: {"weight_bytes": spans[name][1], **describe(scores[name], reference)} for name in WAYS},
    }


@torch.no_grad()
def step_ms(span: Span, hidden_size: int, rows: int, tokens: int, steps: int) -> float:
    """Return the processor time of one step of ``tokens`` tokens, the mean of ``steps`` behind ``HISTORY``."""
    cache = span.new_cache(HISTORY + tokens * steps, rows=rows)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, HISTORY + tokens, hidden_size, generator=generator).to(span.dtype)
    span.forward(hidden[:, :HISTORY], cache)
    started_s = time.thread_time()
    for _ in range(steps):
        span.forward(hidden[:, HISTORY:], cache)
    return 1000 * (time.thread_time() - started_s) / steps


def measure_speed(shape: tuple[int, int, int, int], rounds: int) -> dict[str, Any]:
    """Time every way in turn, round by round, after one round that is not counted."""
    num_blocks, hidden_size, intermediate_size, num_heads = shape
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_blocks,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        bos_token_id=0,
        eos_token_id=None,
    )
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-") as directory:
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        checkpoint = Checkpoint.open(directory)
        spans = {name: way.build(checkpoint) for name, way in WAYS.items()}
    times: dict[str, dict[str, list[float]]] = {name: {work: [] for work in WORK} for name in WAYS}
    for _ in range(rounds + 1):
        for work, numbers in WORK.items():
            for name, (span, _) in spans.items():
                times[name][work].append(step_ms(span, hidden_size, *numbers))
    return {
        name: {
            "weight_bytes": spans[name][1],
            **{work: _compare(times[name][work][1:], times[REFERENCE][work][1:]) for work in WORK},
        }
        for name in WAYS
    }


def _compare(ours: list[float], reference: list[float]) -> dict[str, float]:
    return {
        **spread("step_ms", ours),
        **spread("ratio", [mine / its for mine, its in zip(ours, reference, strict=True)]),
    }


def main() -> int:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--corpus", type=Path, metavar="DIR", help="directory that embedded_corpus.py has written")
    which.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="text files")
    parser.add_argument("--num-documents", type=int, metavar="N", help="score the first N documents only")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds after one warm-up (default: 7)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    silence_libraries()
    line = {
        **circumstances("quantised", arguments.seed),
        "torchao": torchao.__version__,
        "rounds": arguments.rounds,
        "quality": measure_quality(arguments),
        "speed": {title: measure_speed(shape, arguments.rounds) for title, shape in SHAPES.items()},
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
