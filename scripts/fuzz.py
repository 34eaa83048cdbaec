"""Fuzz one entry point for a while, guided by what is covered; keep the inputs that reach something new.

    python scripts/fuzz.py served --seconds 180 --corpus /tmp/corpus
    python scripts/fuzz.py served --keep /tmp/corpus   # add the few that reach something new to tests/fuzz/corpus

Needs atheris (``pip install -e .[fuzz]``, on Linux with x86-64). The entry points are in tests/fuzz/harnesses.py, the
inputs in tests/fuzz/corpus, where an ordinary test runs them again. Prints libFuzzer's words; an input that does what
it must not ends the run with a trace and an error, and is then in a file beside the corpus, named after its harness.
"""

import argparse
import hashlib
import importlib
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
OURS = (f"{ROOT}/dht/", f"{ROOT}/node/")
MAX_INPUT_BYTES = 512
NUM_SEEDS = 32


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="entry point: a key of tests.fuzz.harnesses.HARNESSES")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder with a folder for each entry point")
    parser.add_argument("--keep", type=Path, help="folder as --corpus, from which inputs are taken")
    return parser.parse_args()


def harness_of(name: str) -> Callable[[bytes], None]:
    """Import an entry point; what it raises of its own accord is not to be read in a log."""
    logging.disable(logging.CRITICAL)
    found: Callable[[bytes], None] = importlib.import_module("tests.fuzz.harnesses").HARNESSES[name]
    return found


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Run libFuzzer, which does not return."""
    atheris = importlib.import_module("atheris")
    for foreign in ("hivemind", "transformers", "hypothesis"):  # What is not ours is not instrumented.
        importlib.import_module(foreign)
    with atheris.instrument_imports(include=["dht", "node"]):
        harness = harness_of(name)
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        chance = random.Random(name)  # noqa: S311 - inputs that repeat
        for number in range(NUM_SEEDS):
            (corpus / f"seed{number}").write_bytes(chance.randbytes(chance.choice((8, 40, 150, MAX_INPUT_BYTES))))
    bounds = [f"-max_len={MAX_INPUT_BYTES}", "-len_control=0", "-rss_limit_mb=4096", "-timeout=20"]
    words = [f"-max_total_time={seconds}", "-print_final_stats=1"]

    def noting(data: bytes) -> None:
        try:
            harness(data)
        except BaseException:
            (corpus.parent / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
            raise

    atheris.Setup([sys.argv[0], *bounds, *words, str(corpus)], noting)
    atheris.Fuzz()


def lines_of(harness: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """Run an input; return which of our lines followed which."""
    seen: set[tuple[str, int, int]] = set()

    def begin(frame: FrameType, event: str, _: Any) -> Any:
        del event
        path = frame.f_code.co_filename
        if not path.startswith(OURS):
            return None
        before = 0

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal before
            if event == "line":
                seen.add((path, before, frame.f_lineno))
                before = frame.f_lineno
            return line

        return line

    sys.settrace(begin)
    try:
        harness(data)
    finally:
        sys.settrace(None)
    return seen


def keep(name: str, found: Path, corpus: Path) -> None:
    """Take over the inputs that reach what none before them does, the short ones first."""
    harness = harness_of(name)
    corpus.mkdir(parents=True, exist_ok=True)
    known = [path.read_bytes() for path in sorted(corpus.iterdir())]
    reached: set[tuple[str, int, int]] = set()
    harness(b"")  # What is done once only is not to be any input's.
    for data in known:
        reached |= lines_of(harness, data)
    num_added = 0
    for data in sorted({path.read_bytes() for path in found.iterdir()}, key=lambda each: (len(each), each)):
        new = lines_of(harness, data) - reached
        if new:
            reached |= new
            num_added += 1
            (corpus / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    print(f"{name}: {len(known)} inputs, {num_added} added, {len(reached)} pairs of lines reached")


def main() -> None:
    """Do what the command line says."""
    sys.path.insert(0, str(ROOT))
    chosen = options()
    if chosen.keep is not None:
        keep(chosen.name, chosen.keep / chosen.name, chosen.corpus / chosen.name)
    else:
        fuzz(chosen.name, chosen.seconds, chosen.corpus / chosen.name)


if __name__ == "__main__":
    main()
