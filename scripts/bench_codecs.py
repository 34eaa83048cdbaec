#!/usr/bin/env python3
"""Measure what each activation codec costs in bytes and in quality, beside float32 in the same run.

The embedded model, cut over three spans in this process; all four hops (client, three stages, client) go through the
frames and codecs that servers use. Every held-out document is scored alone, from its first token to the end token
that closes it; then its beginning is continued greedily. `logits_error` is the difference of logits from float32's
over the standard deviation of the position's logits; `top_token_agreement` the share of positions whose likeliest
token is float32's; `perplexity_change_percent` has the standard error of the paired difference over documents beside
it. Frames are those of a decode step and of 64 tokens at hidden size 512. `write_us` and `read_us` are the processor
time from a float32 tensor to a payload and back, median over rounds. Prints one JSON line; the exit code is 1 when
int8 misses its bounds.

The text is the held-out part that `embedded_corpus.py --out DIR` writes (`--corpus DIR`), or files of the machine's
own (`--text FILE ...`), cut into pieces of whole lines.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench.quality import Score, describe, read_documents
from bench.report import circumstances
from transformers import AutoModelForCausalLM, AutoTokenizer

from node.client.distributed_model import build_model
from node.client.route import Route, Stage
from node.model.cache import SpanCache
from node.model.checkpoint import Checkpoint
from node.model.span import Span, build_span
from node.model.tensors import from_payload, to_payload
from node.run.libraries import silence_libraries
from node.wire import CODECS, LENGTH_BYTES, Result, Step, decode, encode, payload_bytes

REFERENCE = "float32"
CUTS = (0, 3, 6, 8)
FRAME_HIDDEN_SIZE = 512
FRAME_TOKENS = (1, 64)
TIMED_TOKENS = (1, 512)
TIMED_ROUNDS, TIMED_CALLS = 9, 100
MAX_BYTES_PER_ELEMENT = 1.04
MAX_PERPLEXITY_CHANGE_PERCENT = 0.1
CPU = torch.device("cpu")


@dataclass
class LocalChain:
    """One session: a cache per span."""

    session: bytes
    route: Route
    caches: list[SpanCache]


class LocalSpans:
    """Implements ``node.client.remote_session.Connector`` over spans in this process, for sessions of one row."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans
        self._route = Route(tuple(Stage(f"span{n}", span.start, span.end, ()) for n, span in enumerate(spans)))
        self._numbers = itertools.count()
        self.bytes_sent = 0
        """Payloads and frames of all hops."""
        self.elements_sent = 0

    def open(self, batch: int, left_padding: tuple[int, ...], max_length: int, codec: str) -> LocalChain:
        """Open a session at every span."""
        assert batch == 1
        assert not left_padding
        session = next(self._numbers).to_bytes(16, "big")
        return LocalChain(session, self._route, [span.new_cache(max_length) for span in self._spans])

    def run(self, chain: LocalChain, steps: list[Step]) -> list[Result]:
        """Pass each step through all spans."""
        return [self._run_one(chain, step) for step in steps]

    def _run_one(self, chain: LocalChain, step: Step) -> Result:
        for span, cache in zip(self._spans, chain.caches, strict=True):
            arrived = self._carry(step)
            hidden = from_payload(arrived.payload, arrived.shape, arrived.codec, dtype=span.dtype, device=span.device)
            payload = to_payload(span.forward(hidden, cache), arrived.codec)
            step = Step(step.session, step.position, step.shape, step.codec, payload)
        result = self._carry(Result(step.session, step.position, step.shape, step.codec, step.payload))
        assert isinstance(result, Result)
        return result

    def _carry(self, frame: Step | Result) -> Step | Result:
        head, payload = encode(frame)
        self.bytes_sent += len(head) + len(payload)
        self.elements_sent += math.prod(frame.shape)
        arrived = decode(bytearray(b"".join((head[LENGTH_BYTES:], payload))))
        assert isinstance(arrived, Step | Result)
        return arrived

    def close_later(self, chain: LocalChain) -> None:
        """Give the caches back."""
        chain.caches.clear()

    def close(self) -> None:
        """Nothing is held."""


def build_models(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, LocalSpans]]:
    """Return a client's model and what carries its hidden states, for each codec; all of them share the spans."""
    spans = [
        build_span(
            checkpoint.config, checkpoint.load_span(*cut, dtype=torch.float32), *cut, dtype=torch.float32, device=CPU
        )
        for cut in itertools.pairwise(CUTS)
    ]
    models, connectors = {}, {}
    for codec in CODECS:
        tensors = checkpoint.load_client(dtype=torch.float32)
        models[codec], remote = build_model(checkpoint.config, tensors, dtype=torch.float32, device=CPU)
        connectors[codec] = LocalSpans(spans)
        models[codec].attach(connectors[codec], remote, checkpoint.config.max_position_embeddings, codec)
    return models, connectors


@torch.no_grad()
def score_all(models: dict[str, Any], documents: Sequence[torch.Tensor]) -> dict[str, Score]:
    """Score every document, ``[tokens]`` with begin and end, under every model."""
    scores = {name: Score() for name in models}
    for ids in documents:
        logits = {name: model(input_ids=ids[None, :-1], use_cache=False).logits[0] for name, model in models.items()}
        for name, score in scores.items():
            score.add(logits[name], logits[REFERENCE], ids[1:])
    return scores


def generate_all(
    models: dict[str, Any], documents: Sequence[torch.Tensor], prompt_tokens: int, new_tokens: int
) -> dict[str, dict[str, float]]:
    """Continue the documents' beginnings greedily; return how the continuations agree with the reference's."""
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    texts: dict[str, list[torch.Tensor]] = {
        name: [model.generate(ids[None, :prompt_tokens], **options)[0, prompt_tokens:] for ids in documents]
        for name, model in models.items()
    }
    agreements = {}
    for name, ours in texts.items():
        equal = [mine == theirs for mine, theirs in zip(ours, texts[REFERENCE], strict=True)]
        before_first_difference = sum(int(same.int().cumprod(0).sum()) for same in equal)
        agreements[name] = {
            "texts": len(equal),
            "equal_texts": sum(bool(same.all()) for same in equal),
            "tokens_before_first_difference": round(before_first_difference / len(equal), 2),
            "new_tokens": new_tokens,
        }
    return agreements


def frame_bytes(codec: str) -> dict[str, float]:
    """Return bytes per element of payloads and of whole frames, at ``FRAME_HIDDEN_SIZE``, one row."""
    sizes = {}
    for tokens in FRAME_TOKENS:
        shape = (1, tokens, FRAME_HIDDEN_SIZE)
        payload = to_payload(torch.zeros(shape), codec)
        assert len(payload) == payload_bytes(codec, shape)
        head, _ = encode(Step(bytes(16), 1000, shape, codec, payload))
        sizes[f"payload_bytes_per_element_{tokens}"] = len(payload) / math.prod(shape)
        sizes[f"frame_bytes_per_element_{tokens}"] = round((len(head) + len(payload)) / math.prod(shape), 5)
    return sizes


def microseconds(call: Callable[[], object]) -> float:
    """Return the processor time of ``call``, the median of rounds of many calls after one that is not counted."""
    rounds = []
    for _ in range(TIMED_ROUNDS + 1):
        started_s = time.thread_time()
        for _ in range(TIMED_CALLS):
            call()
        rounds.append(1e6 * (time.thread_time() - started_s) / TIMED_CALLS)
    return round(statistics.median(rounds[1:]), 1)


def durations(codec: str) -> dict[str, float]:
    """Return what writing and reading hidden states of ``FRAME_HIDDEN_SIZE`` takes, one row, microseconds."""
    times = {}
    for tokens in TIMED_TOKENS:
        hidden = torch.randn(1, tokens, FRAME_HIDDEN_SIZE)
        payload = bytearray(to_payload(hidden, codec))
        read = partial(from_payload, payload, tuple(hidden.shape), codec, dtype=torch.float32, device=CPU)
        times[f"write_us_{tokens}"] = microseconds(partial(to_payload, hidden, codec))
        times[f"read_us_{tokens}"] = microseconds(read)
    return times


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build the models, read the text, score and generate."""
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    silence_libraries()
    checkpoint = Checkpoint.open("embedded")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
    limit = checkpoint.config.max_position_embeddings
    source, texts = read_documents(arguments.corpus, arguments.text or ())
    documents = [
        torch.tensor([*tokenizer(text)["input_ids"][:limit], tokenizer.eos_token_id])
        for text in texts[: arguments.num_documents]
    ]
    models, connectors = build_models(checkpoint)
    local = AutoModelForCausalLM.from_pretrained(checkpoint.tokenizer_dir, dtype=torch.float32).eval()
    scores = score_all({"local": local, **models}, documents)
    long_enough = [ids for ids in documents if len(ids) > arguments.prompt_tokens][: arguments.num_texts]
    agreements = generate_all(models, long_enough, arguments.prompt_tokens, arguments.new_tokens)
    return {
        **circumstances("codecs", arguments.seed),
        "text": source,
        "num_documents": len(documents),
        "num_tokens": scores[REFERENCE].num_tokens,
        "hidden_size": checkpoint.config.hidden_size,
        "spans": [f"{start}:{end}" for start, end in itertools.pairwise(CUTS)],
        "local": describe(scores["local"], scores[REFERENCE]),
        "codecs": {
            codec: {
                **frame_bytes(codec),
                **durations(codec),
                "sent_bytes_per_element": round(connectors[codec].bytes_sent / connectors[codec].elements_sent, 5),
                **describe(scores[codec], scores[REFERENCE]),
                "greedy": agreements[codec],
            }
            for codec in CODECS
        },
    }


def meets_bounds(line: dict[str, Any]) -> bool:
    """Whether int8 is as small and as good as it has to be."""
    measured = line["codecs"]["int8"]
    return bool(
        max(measured[f"payload_bytes_per_element_{tokens}"] for tokens in FRAME_TOKENS) <= MAX_BYTES_PER_ELEMENT
        and measured["perplexity_change_percent"] <= MAX_PERPLEXITY_CHANGE_PERCENT
    )


def main() -> int:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--corpus", type=Path, metavar="DIR", help="directory that embedded_corpus.py has written")
    which.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="text files")
    parser.add_argument("--num-documents", type=int, metavar="N", help="score the first N documents only")
    parser.add_argument("--num-texts", type=int, default=40, metavar="N", help="documents to continue (default: 40)")
    parser.add_argument("--prompt-tokens", type=int, default=16, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    line = measure(parser.parse_args())
    print(json.dumps(line))
    return 0 if meets_bounds(line) else 1


if __name__ == "__main__":
    sys.exit(main())
