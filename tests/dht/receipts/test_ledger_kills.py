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


def start(path, seed):
    command = [sys.executable, "-m", "tests.dht.receipts.signing_child", str(path), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def signed_until_killed(path, seed, wait_s):
    """Start a child, kill it ``wait_s`` after its first signature; return what it signed."""
    child = start(path, seed)
    with child:
        first = child.stdout.readline()
        time.sleep(wait_s)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
    assert child.returncode == -signal.SIGKILL
    return numbers_in(first + rest)


def numbers_in(printed):
    return [(int(seq), digest) for seq, digest in (line.split() for line in printed.decode().splitlines())]


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


def test_processes_of_one_home_write_at_once_and_all_die(tmp_path):
    path = tmp_path / "ledger.sqlite"
    children = [start(path, seed) for seed in range(3)]
    firsts = [child.stdout.readline() for child in children]
    time.sleep(1)
    for child in children:
        child.kill()
    signed = []
    for child, first in zip(children, firsts, strict=True):
        with child:
            mine = numbers_in(first + child.stdout.read())
        assert len(mine) > 10
        signed += mine
    assert len({seq for seq, _ in signed}) == len(signed)
    with Ledger.open(path) as ledger:
        assert ledger.notices == []
        num, findings = ledger.verify()
    assert findings == []
    assert len(signed) - len(children) <= num <= len(signed)
