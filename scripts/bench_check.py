#!/usr/bin/env python3
"""Measure what a check costs beside the work that it checks, in the same run; prints one JSON line.

Work is a session at one server over all blocks of the embedded model: a prompt, then tokens one by one, of one row or
of eight rows in one session. A check of a chunk is one prefill of everything up to its end and the comparison, of one
row's chunk as `node.check` does it. `ratio` is the processor time of a check of a chunk chosen at random over that of
the work on a chunk of one row; `share` is the ratio times q: the part that checking adds to the swarm's compute where
one chunk in 1 / q is checked once. `ends` is the same for a client without weights: the server embeds ids and answers
with logits, and all of it is checked. `control` is what comes on top, once, where a chunk fails: the span in its own
dtype over the same inputs in steps, loaded for it, and a second comparison. Medians over rounds, each of which measures
all.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from bench.report import circumstances, spread

from node.check.calibrate import load_ends
from node.check.calibration import Calibration
from node.check.calibration_file import shipped_calibration
from node.check.check import MAX_CHECK_BYTES, WINDOW, Piece, Work, check_span
from node.check.control import control_of
from node.check.end_check import EndWork, LoadedEnds, Part, check_ends
from node.check.reference import reference_span
from node.model.checkpoint import EMBEDDED, Checkpoint
from node.model.end_parameters import find_end_parameters
from node.model.ends import Ends
from node.model.sampling import top_logits
from node.model.span import Span
from node.model.tensors import to_payload
from node.model.tokens import ids_to_payload, logits_to_payload
from node.run.libraries import silence_libraries
from node.wire import IDS, LOGITS

CPU = torch.device("cpu")
CODEC = "float32"
TOP = 64
"""Logits of a position, as clients without weights ask for."""


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


def control(checkpoint: Checkpoint, span: Span, chunk: Work, calibration: Calibration) -> None:
    """Do what a failed check asks for besides."""
    made = control_of(checkpoint, "float32", span.start, span.end, chunk, max_bytes=MAX_CHECK_BYTES)
    check_span(span, made, calibration, "float32")


def thin_session(span: Span, ends: Ends, ids: torch.Tensor, prompt: int) -> list[torch.Tensor]:
    """Serve a client without weights: embed, run, score the last position of the prompt and every later one."""
    cache = span.new_cache(ids.shape[1], ids.shape[0])
    steps = [ids[:, :prompt], *ids[:, prompt:].split(1, dim=1)]
    first, answers = 0, []
    for step in steps:
        hidden = span.forward(ends.embed(step, first), cache)
        answers.append(ends.logits(hidden[:, -1:]))
        first += step.shape[1]
    return answers


def end_work(ids: torch.Tensor, answers: list[torch.Tensor], end: int, hidden_size: int) -> EndWork:
    """Return the last chunk of what was answered up to a position."""
    first = end - WINDOW
    inputs = Part(0, IDS, end, 1, bytes(ids_to_payload(ids[:, :end])))
    offset = ids.shape[1] - len(answers)  # Of the prompt only the last position was answered.
    outputs = tuple(
        Part(position, LOGITS, 1, TOP, bytes(logits_to_payload(*top_logits(answers[position - offset], TOP))))
        for position in range(max(first, offset), end)
    )
    return EndWork(1, hidden_size, CODEC, first, inputs, outputs, top=TOP)


def timed_ends(
    span: Span, ends: Ends, calibration: Calibration, ids: torch.Tensor, prompt: int
) -> tuple[float, list[float]]:
    """Return the seconds of a session of a client without weights, and of checks of its chunks."""
    answers: list[torch.Tensor] = []
    session_s = seconds(lambda: answers.extend(thin_session(span, ends, ids, prompt)))
    loaded, checks = LoadedEnds(ends, ends), []
    for end in range(max(WINDOW, -(-prompt // WINDOW) * WINDOW), ids.shape[1] + 1, WINDOW):
        work = end_work(ids, answers, end, calibration.hidden_size)
        checks.append(seconds(lambda work=work: check_ends(span, loaded, work, calibration, "float32")))
    return session_s, checks


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
    ends = load_ends(checkpoint, find_end_parameters(checkpoint.config), torch.float32)
    ids = torch.randint(3, checkpoint.config.vocab_size, (1, arguments.positions), generator=generator)
    names = ("ratio_1_row", "ratio_8_rows", "ratio_ends", "ratio_control", "check_ms", "chunk_1_row_ms")
    found: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(arguments.rounds + 1):
        outputs = decode(span, hidden[:1], arguments.prompt)
        work = {rows: seconds(lambda rows=rows: decode(span, hidden[:rows], arguments.prompt)) for rows in (1, 8)}
        checks, controls = [], []
        for end in range(WINDOW, num_chunks * WINDOW + 1, WINDOW):
            opened = (piece(hidden[:1, :end]), piece(outputs[:, end - WINDOW : end]))
            chunk = Work(1, checkpoint.config.hidden_size, CODEC, *opened)
            checks.append(seconds(lambda chunk=chunk: check_span(span, chunk, calibration, "float32")))
            controls.append(seconds(lambda chunk=chunk: control(checkpoint, span, chunk, calibration)))
        thin_s, end_checks = timed_ends(span, ends, calibration, ids, arguments.prompt)
        if not round_number:
            continue  # Warm-up.
        check_s = statistics.mean(checks)
        found["check_ms"].append(1000 * check_s)
        found["chunk_1_row_ms"].append(1000 * work[1] / num_chunks)
        found["ratio_1_row"].append(check_s / (work[1] / num_chunks))
        found["ratio_8_rows"].append(check_s / (work[8] / 8 / num_chunks))
        found["ratio_ends"].append(statistics.mean(end_checks) / (thin_s / num_chunks))
        found["ratio_control"].append(statistics.mean(controls) / (work[1] / num_chunks))
    line = circumstances("check", arguments.seed)
    line |= {"rounds": arguments.rounds, "prompt": arguments.prompt, "positions": arguments.positions, "q": arguments.q}
    for name, values in found.items():
        line |= spread(name, values)
    for what in ("1_row", "8_rows", "ends"):
        line[f"share_{what}"] = round(arguments.q * statistics.median(found[f"ratio_{what}"]), 5)
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
