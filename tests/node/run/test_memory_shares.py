"""Who starts several servers on one machine divides its memory among them, in place of promising it to each."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from node.model.devices import free_bytes, pick_device
from tests.swarm.process_tree import descendants_of, left_after

SCRIPT = Path(__file__).parents[3] / "scripts" / "bootstrap_swarm.py"
START_S = 90.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="follows processes through /proc")


def bounds_below(pid: int) -> list[int]:
    """Return the --max-memory of every server below ``pid``, bytes; fails for one without."""
    lines = [line.split() for line in descendants_of(pid).values() if " -m node serve " in line]
    return [int(line[line.index("--max-memory") + 1]) for line in lines]


@pytest.mark.parametrize(
    ("command", "num_servers", "device"),
    [(["-m", "node", "demo"], 3, "cpu"), ([str(SCRIPT), "embedded", "--servers", "2"], 2, "auto")],
)
def test_the_servers_bounds_add_up_to_what_is_free(command: list[str], num_servers: int, device: str):
    most = free_bytes(torch.device("cpu") if device == "cpu" else pick_device(device))
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline_s = time.monotonic() + START_S
        while len(bounds := bounds_below(process.pid)) < num_servers:
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    finally:
        below = descendants_of(process.pid)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert len(set(bounds)) == 1
    assert most / 2 < sum(bounds) < most * 1.5  # what is free changes a little between two looks
    assert left_after(below, 5) == []
