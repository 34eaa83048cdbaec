"""Processor time read from ``/proc`` is what the process itself is told."""

import os
import subprocess
import sys
import time

import pytest
from bench.cpu_time import cpu_seconds, daemon_of, machine_seconds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
TICK_S = 0.011
"""A reading is whole hundredths of a second."""


def work(seconds):
    until_s = time.process_time() + seconds
    while time.process_time() < until_s:
        pass


def test_a_process_is_charged_with_what_it_computed():
    before_s, own_before_s = cpu_seconds([os.getpid()]), time.process_time()
    work(0.2)
    charged_s, own_s = cpu_seconds([os.getpid()]) - before_s, time.process_time() - own_before_s
    assert charged_s == pytest.approx(own_s, abs=2 * TICK_S)


def test_several_processes_are_charged_together():
    pid = os.getpid()
    assert cpu_seconds([pid, pid]) == pytest.approx(2 * cpu_seconds([pid]), abs=4 * TICK_S)


def test_the_machine_was_busy_at_least_as_long_as_we_were():
    busy_s, whole_s = machine_seconds()
    work(0.2)
    busier_s, wholly_s = machine_seconds()
    assert busier_s - busy_s >= 0.2 - 2 * TICK_S
    assert wholly_s - whole_s >= busier_s - busy_s - 2 * TICK_S


def test_a_node_without_p2pd_is_named():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with pytest.raises(ProcessLookupError, match=str(process.pid)):
            daemon_of(process.pid)
        process.stdin.close()
