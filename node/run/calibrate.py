"""``efedllm calibrate``: what error is honest of a model, as a file, and what that separates from.

All blocks of the model are loaded in float32 and once more as each server holds them. Texts come from a file of the
user's, or are drawn from the model itself. The file is written whole or not at all.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from node.check.calibrate import Subject, Texts, calibrate, kinds_here, load_ends, load_subject
from node.check.calibration import Calibration, decode_calibration, encode_calibration
from node.check.reference import reference_span
from node.check.separation import HONEST, MAX_CHUNKS, Separation, separate
from node.errors import DoesNotFit, UserError
from node.model.checkpoint import Checkpoint
from node.model.devices import free_bytes
from node.model.end_parameters import find_end_parameters
from node.model.families import check_family, max_positions
from node.model.sampling import Sampling, choose
from node.run.events import Reporter
from node.run.libraries import silence_libraries

CHUNK = 64
_TEXT_CHUNKS = 4
"""Chunks of a text: histories of up to 256 positions."""
_TABLE_SHARE = 4
"""One chunk in so many is kept out of the calibration, for the table."""
_COPIES = 2.5
"""Times that the weights are in memory at once: the reference, a server, and what is loaded meanwhile."""


@dataclass(frozen=True)
class CalibrateOptions:
    """What ``efedllm calibrate`` was asked for."""

    model: str
    revision: str | None
    home: Path
    out: Path
    num_chunks: int
    """Of 64 positions of text."""
    text: Path | None
    """A file of text; None: texts are drawn from the model."""
    seed: int
    full: bool
    as_json: bool
    num_threads: int | None


def run_calibrate(options: CalibrateOptions, reporter: Reporter) -> None:
    """Make the calibration, write it, and print the table.

    Raises:
        UserError: there is no such model, its family cannot be split, or the text is too short.
        DoesNotFit: its weights do not fit into memory in float32 beside a server's.
    """
    silence_libraries()
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    with reporter.progress(counts=True) as bar:
        checkpoint = Checkpoint.open(options.model, revision=options.revision, home=options.home, progress=bar.update)
        check_family(checkpoint.config)
        _check_memory(checkpoint)
        whole = _texts(checkpoint, options)
        num_kept = max(1, len(whole.ids) // _TABLE_SHARE)
        fitted, kept = Texts(whole.ids[num_kept:], whole.source), Texts(whole.ids[:num_kept], whole.source)
        subject = load_subject(checkpoint, fitted)
        calibration = calibrate(
            subject, fitted, seed=options.seed, full=options.full, kinds=kinds_here(), progress=bar.update
        )
        data = encode_calibration(calibration)
        assert decode_calibration(data, manifest=checkpoint.manifest32) == calibration
        _write(options.out, data)
        other = Subject(checkpoint, subject.ends, load_subject(checkpoint, kept).entering, subject.moments)
        rows = separate(other, calibration, seed=options.seed, progress=bar.update)
    _tell(options, reporter, calibration, len(data), rows)


def _check_memory(checkpoint: Checkpoint) -> None:
    needed = int(_COPIES * checkpoint.span_bytes(0, checkpoint.num_blocks, torch.float32))
    free = free_bytes(torch.device("cpu"))
    if needed > free:
        raise DoesNotFit(
            f"A calibration of {checkpoint.name} takes about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are "
            "free; make it on a larger machine: the file serves everyone."
        )


def _texts(checkpoint: Checkpoint, options: CalibrateOptions) -> Texts:
    most = max_positions(checkpoint.config) or CHUNK * _TEXT_CHUNKS
    positions = min(CHUNK * _TEXT_CHUNKS, most // CHUNK * CHUNK)
    if not positions:
        raise UserError(f"{checkpoint.name} takes {most} positions; a chunk of a calibration has {CHUNK}.")
    num_texts = max(2, -(-options.num_chunks * CHUNK // positions))
    if options.text is None:
        return Texts(
            _draw(checkpoint, num_texts, positions, options.seed), f"drawn from the model, seed {options.seed}"
        )
    return Texts(_read(checkpoint, options.text, num_texts, positions), f"file {options.text.name}")


def _read(checkpoint: Checkpoint, path: Path, num_texts: int, positions: int) -> torch.Tensor:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; convert it first.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a file of text.") from None
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir, local_files_only=True)
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    whole = len(ids) // positions
    if whole < num_texts:
        raise UserError(
            f"{path} has {len(ids):,} tokens, and {num_texts * positions:,} are asked for: "
            f"pass --chunks {whole * positions // CHUNK} or a longer text."
        )
    # Spread over the whole text: its parts may differ.
    chosen = torch.linspace(0, whole - 1, num_texts).long()
    return ids[: whole * positions].reshape(whole, positions)[chosen]


def _draw(checkpoint: Checkpoint, num_texts: int, positions: int, seed: int) -> torch.Tensor:
    """Let the model write texts of its own, as likely as it finds them."""
    span = reference_span(checkpoint, "float32", 0, checkpoint.num_blocks, torch.device("cpu"))
    ends = load_ends(checkpoint, find_end_parameters(checkpoint.config), torch.float32)
    sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed)
    first = getattr(checkpoint.config.get_text_config(), "bos_token_id", None) or 0
    column = torch.full((num_texts, 1), int(first))
    cache, columns = span.new_cache(positions, num_texts), [column]
    for position in range(1, positions):
        hidden = span.forward(ends.embed(column, position - 1), cache)
        column = choose(ends.logits(hidden)[:, 0], sampling, position).unsqueeze(1)
        columns.append(column)
    return torch.cat(columns, dim=1)


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(data)
    draft.replace(path)


def _tell(
    options: CalibrateOptions, reporter: Reporter, calibration: Calibration, num_bytes: int, rows: list[Separation]
) -> None:
    reporter.event("calibrated", {"file": str(options.out), "sha256": calibration.digest.hex(), "bytes": num_bytes})
    for row in rows if reporter.events_json else ():
        reporter.event("separation", asdict(row))
    reporter.say(
        f"Wrote {options.out}: {num_bytes:,} bytes, sha256 {calibration.digest.hex()[:16]}, of "
        f"{len(calibration.made_from.variants)} honest variants over {calibration.made_from.num_positions:,} tokens."
    )
    if options.as_json:
        _print_json(options, calibration, rows)
    elif not reporter.events_json:
        sys.stdout.write("\n".join(table(rows)) + "\n")


def _print_json(options: CalibrateOptions, calibration: Calibration, rows: list[Separation]) -> None:
    found: dict[str, Any] = {
        "file": str(options.out),
        "sha256": calibration.digest.hex(),
        "variants": list(calibration.made_from.variants),
        "separation": [asdict(row) for row in rows],
    }
    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")


def table(rows: list[Separation]) -> list[str]:
    """Return the lines of the table: one for each cheat, declared weights and length of a span."""
    head = ("declared", "what is done", "blocks", "error", "x honest", "fails", "passes", "found in")
    lines = ["{:9} {:26} {:>6} {:>9} {:>8} {:>6} {:>6}  {}".format(*head)]
    for row in rows:
        if row.chunks_needed is None:
            found = "" if row.cheat == HONEST else f"not in {MAX_CHUNKS} chunks"
        else:
            found = "1 chunk" if row.chunks_needed == 1 else f"{row.chunks_needed} chunks"
        lines.append(
            f"{row.held_in:9} {row.cheat:26} {row.num_blocks:6} {row.median:9.2e} {row.ratio:8.2f} {row.failed:6.0%} "
            f"{row.passed:6.0%}  {found}"
        )
    return lines
