"""Kill -9 at random points: no number is signed twice, and at most one receipt is lost each time."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from dht.receipts.ledger import Ledger
from tests.dht.receipts.signing_child import PROVIDER

ROOT = Path(__file__).parents[3]
NUM_KILLS = 50


def signed_until_killed(path, seed, wait_s):
    """Start a child, kill it ``wait_s`` after its first signature; return what it signed."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.dht.receipts.signing_child", str(path), str(seed)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with child:
        first = child.stdout.readline()
        time.sleep(wait_s)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
    assert child.returncode == -signal.SIGKILL
    lines = [line.split() for line in (first + rest).decode().splitlines()]
    return [(int(seq), digest) for seq, digest in lines]


def test_fifty_kills_make_nobody_a_liar(tmp_path):
    path = tmp_path / "ledger.sqlite"
    chance = random.Random(5)
    signed = {}
    for turn in range(NUM_KILLS):
        for seq, digest in signed_until_killed(path, turn, chance.uniform(0, 0.06)):
            assert seq not in signed
            signed[seq] = digest
        with Ledger.open(path) as ledger:
            assert ledger.notices == []
            num, findings = ledger.verify()
            assert findings == []
            assert len(signed) - (turn + 1) <= num <= len(signed)
            (newest,) = ledger.newest(PROVIDER.peer_id)
            assert signed[newest.record.seq] == hashlib.sha256(newest.record.to_body()).hexdigest()
    print(f"\n{len(signed)} receipts signed, {len(signed) - num} lost in {NUM_KILLS} kills")
    assert len(signed) > 10 * NUM_KILLS
