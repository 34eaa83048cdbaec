#!/usr/bin/env python3
"""Measure what a check costs beside the work that it checks, in the same run; prints one JSON line.

Work is a session at one server over all blocks of the embedded model: a prompt, then tokens one by one, of one row or
of eight rows in one session. A check of a chunk is one prefill of everything up to its end and the comparison, of one
row's chunk as `node.check` does it. `ratio` is the processor time of a check of a chunk chosen at random over that of
the work on a chunk of one row; `share` is the ratio times q: the part that checking adds to the swarm's compute where
one chunk in 1 / q is checked once. Medians over rounds, each of which measures both.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from bench.report import circumstances, spread

from node.check.calibration_file import shipped_calibration
from node.check.check import WINDOW, Piece, Work, check_span
from node.check.reference import reference_span
from node.model.checkpoint import EMBEDDED, Checkpoint
from node.model.span import Span
from node.model.tensors import to_payload
from node.run.libraries import silence_libraries

CPU = torch.device("cpu")
CODEC = "float32"


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time that `work` takes."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def decode(span: Span, hidden: torch.Tensor, prompt: int) -> torch.Tensor:
    """Serve a session: the prompt in one step, the rest token by token."""
    cache = span.new_cache(hidden.shape[1], hidden.shape[0])
    outputs = [span.forward(hidden[:, :prompt], cache)]
    outputs += [span.forward(token, cache) for token in hidden[:, prompt:].split(1, dim=1)]
    return torch.cat(outputs, dim=1)


def piece(hidden: torch.Tensor) -> tuple[Piece, ...]:
    """Return hidden states as they are opened."""
    return (Piece(bytes(to_payload(hidden, CODEC)), hidden.shape[1]),)


def main() -> int:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128, help="positions of the prompt")
    parser.add_argument("--positions", type=int, default=512, help="positions of the session, prompt included")
    parser.add_argument("--q", type=float, default=0.02, help="share of chunks that are checked")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    silence_libraries()
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(EMBEDDED)
    calibration = shipped_calibration(checkpoint.manifest32)
    assert calibration is not None
    span = reference_span(checkpoint, "float32", 0, checkpoint.num_blocks, CPU)
    generator = torch.Generator().manual_seed(arguments.seed)
    num_chunks = arguments.positions // WINDOW
    shape = (8, arguments.positions, checkpoint.config.hidden_size)
    hidden = torch.randn(shape, generator=generator)
    found: dict[str, list[float]] = {"ratio_1_row": [], "ratio_8_rows": [], "check_ms": [], "chunk_1_row_ms": []}
    for round_number in range(arguments.rounds + 1):
        outputs = decode(span, hidden[:1], arguments.prompt)
        work = {rows: seconds(lambda rows=rows: decode(span, hidden[:rows], arguments.prompt)) for rows in (1, 8)}
        checks = []
        for end in range(WINDOW, num_chunks * WINDOW + 1, WINDOW):
            opened = (piece(hidden[:1, :end]), piece(outputs[:, end - WINDOW : end]))
            chunk = Work(1, checkpoint.config.hidden_size, CODEC, *opened)
            checks.append(seconds(lambda chunk=chunk: check_span(span, chunk, calibration, "float32")))
        if not round_number:
            continue  # Warm-up.
        check_s = statistics.mean(checks)
        found["check_ms"].append(1000 * check_s)
        found["chunk_1_row_ms"].append(1000 * work[1] / num_chunks)
        found["ratio_1_row"].append(check_s / (work[1] / num_chunks))
        found["ratio_8_rows"].append(check_s / (work[8] / 8 / num_chunks))
    line = circumstances("check", arguments.seed)
    line |= {"rounds": arguments.rounds, "prompt": arguments.prompt, "positions": arguments.positions, "q": arguments.q}
    for name, values in found.items():
        line |= spread(name, values)
    for rows in ("1_row", "8_rows"):
        line[f"share_{rows}"] = round(arguments.q * statistics.median(found[f"ratio_{rows}"]), 5)
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
