#!/usr/bin/env python3
"""Measure what the ledger costs: reservations, appends, opening, and adding up.

The reference of the same run is the bare machine: `fsync`, a page written to a file of the same directory and
forced to disk, and `check`, both signatures of a receipt. An append contains the check; a reservation forces a write
once in sixteen, and the mean over all sixteen is shown. `batched` is one transaction of 64 receipts. With `--fill N`
the ledger is given N receipts in N/100 slots before it is opened, looked through and added up. Prints one JSON line.
`--directory` decides which disk is measured.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report import circumstances, spread
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.identity import Identity, forget_signatures
from dht.receipts.cosigned import check_receipt
from dht.receipts.ledger import Ledger
from dht.receipts.totals import totals_of
from dht.records import seal
from dht.rules import DEFAULT_RULES
from dht.work import Receipt, WorkKind

PROVIDER, CONSUMER = (Identity(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32), None) for n in (1, 2))
EPOCH = 80_000
BATCH = 64
SEQS_PER_SLOT = 100


def receipt(lane: int, seq: int) -> bytes:
    """Make a receipt that both have signed."""
    t = DEFAULT_RULES.start_of(EPOCH)
    amount = 64 * seq
    made = Receipt(
        PROVIDER.peer_id, CONSUMER.peer_id, EPOCH, lane, WorkKind.DECODE, seq, bytes(32), 0, 4, bytes(32), 1, amount,
        4 * amount, 2**16 * seq, 2**16 * seq, bytes(32), t, t + 100,
    )  # fmt: skip
    return seal(made, PROVIDER, CONSUMER).envelope


class Timer:
    """Mean times of a call over several rounds, on the wall clock and of the processor, microseconds."""

    def __init__(self) -> None:
        self.wall_us: list[float] = []
        self.cpu_us: list[float] = []

    def run(self, act: Callable[[], Any], calls: int = 1, shares: int = 1) -> None:
        """Time a round of ``calls``; what ``act`` does is divided by ``shares``."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(calls):
            act()
        self.cpu_us.append((time.process_time() - cpu_s) / calls / shares * 1e6)
        self.wall_us.append((time.perf_counter() - wall_s) / calls / shares * 1e6)

    def figures(self, name: str) -> dict[str, float]:
        """Return medians and spread."""
        return {**spread(f"{name}_cpu_us", self.cpu_us, 1), **spread(f"{name}_wall_us", self.wall_us, 1)}


def measure_reference(directory: Path, rounds: int) -> dict[str, float]:
    """Measure a forced page and two signatures."""
    page, data = os.urandom(4096), receipt(0, 1)
    forced, checked = Timer(), Timer()
    with (directory / "page").open("wb") as file:

        def force() -> None:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())

        for _ in range(rounds):
            forced.run(force, 8)
            checked.run(lambda: (forget_signatures(), check_receipt(data)), 50)
    return {**forced.figures("fsync"), **checked.figures("check")}


def measure_calls(directory: Path, rounds: int) -> dict[str, float]:
    """Measure reservations and appends, alone and batched."""
    own = PROVIDER.peer_id
    lanes = iter(range(10**6))
    reserve, alone, batched = Timer(), Timer(), Timer()
    with Ledger.open(directory / "calls.sqlite") as ledger:
        for _ in range(rounds):
            lane = next(lanes)
            envelopes = [receipt(lane, seq) for seq in range(1, BATCH + 1)]
            others = [(own, receipt(next(lanes), 1)) for _ in range(BATCH)]
            slot = check_receipt(envelopes[0]).slot
            waiting = iter(envelopes)
            forget_signatures()  # What repair costs: a node that signs them knows them.
            reserve.run(lambda slot=slot: ledger.reserve(own, slot), BATCH)
            alone.run(lambda waiting=waiting: ledger.append(own, next(waiting)), BATCH)
            batched.run(lambda others=others: ledger.append_all(others), shares=BATCH)
    return {**reserve.figures("reserve"), **alone.figures("append"), **batched.figures("append_batched")}


def measure_filled(directory: Path, num: int) -> dict[str, float]:
    """Measure a ledger of ``num`` receipts."""
    path, own = directory / "filled.sqlite", PROVIDER.peer_id
    numbers = [(n // SEQS_PER_SLOT, n % SEQS_PER_SLOT + 1) for n in range(num)]
    with Ledger.open(path) as ledger:
        for at in range(0, num, 1024):
            ledger.append_all([(own, receipt(*number)) for number in numbers[at : at + 1024]])
    started_s = time.perf_counter()
    with Ledger.open(path) as ledger:
        opened_s = time.perf_counter()
        ledger.newest(own)
        read_s = time.perf_counter()
        total = totals_of(ledger.changes(own))
        summed_s = time.perf_counter()
        history = ledger.history_of(own, CONSUMER.peer_id)
        history_s = time.perf_counter()
        checked, findings = ledger.verify()
        verified_s = time.perf_counter()
    assert sum(history.values()) == total.tokens
    assert (checked, findings) == (num, [])
    return {
        "receipts": num,
        "bytes_per_receipt": round(path.stat().st_size / num, 1),
        "open_ms": round((opened_s - started_s) * 1e3, 1),
        "newest_ms": round((read_s - opened_s) * 1e3, 1),
        "totals_ms": round((summed_s - read_s) * 1e3, 1),
        "history_ms": round((history_s - summed_s) * 1e3, 1),
        "verify_all_s": round(verified_s - history_s, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--fill", type=int, default=20_000, metavar="N", help="receipts of the filled ledger")
    parser.add_argument("--directory", type=Path, help="where the files stand (default: a temporary one)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        line = {
            **circumstances("ledger", 0),
            **measure_reference(directory, arguments.rounds),
            **measure_calls(directory, arguments.rounds),
            **measure_filled(directory, max(SEQS_PER_SLOT, arguments.fill)),
        }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
