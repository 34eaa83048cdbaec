"""``scripts/bootstrap_swarm.py``: a swarm on one machine until Ctrl-C, or commands to paste on several."""

import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from node.cli import _parser
from node.model.checkpoint import EMBEDDED, Checkpoint
from tests.processes import run_command
from tests.swarm.process_tree import descendants_of, left_after, left_in

SCRIPT = Path(__file__).parent.parent / "scripts" / "bootstrap_swarm.py"
START_TIMEOUT_S = 150.0


class RunningScript:
    """The script as a process; its lines can be waited for."""

    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def lines_until(self, wanted):
        """Return what it writes up to the line that holds ``wanted``."""
        lines = []
        while not lines or wanted not in lines[-1]:
            line = self._lines.get(timeout=START_TIMEOUT_S)
            assert line is not None, f"it ended: {lines} {self.process.stderr.read()}"
            lines.append(line)
        return lines

    def end(self):
        """Tell it to end, if it has not; it takes its children with it."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        self._reader.join(10)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def start():
    started = []

    def start_script(*arguments, **environment):
        started.append(RunningScript(*arguments, **environment))
        return started[-1]

    yield start_script
    for script in started:
        script.end()


@pytest.mark.skipif(sys.platform != "linux", reason="follows processes through /proc")
def test_it_runs_a_swarm_that_generates_and_ctrl_c_ends_all_of_it(start, tmp_path, tmp_path_factory):
    temporary = tmp_path_factory.mktemp("t")
    script = start("embedded", "--servers", "2", TMPDIR=str(temporary))
    said = "".join(script.lines_until("Ctrl-C ends it."))
    num_blocks = Checkpoint.open(EMBEDDED).num_blocks
    served = re.findall(r"serves blocks (\d+):(\d+) of embedded@[0-9a-f]{8}", said)
    assert [(int(start), int(end)) for start, end in served] == [(0, num_blocks // 2), (num_blocks // 2, num_blocks)]
    command = re.search(r"^  efedllm (.*)$", said, re.MULTILINE)
    assert command is not None
    done = run_command([*shlex.split(command[1]), "--greedy", "--max-new-tokens", "6"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

    tree = descendants_of(script.process.pid)
    assert len(tree) == 6, f"not two processes a node: {tree}"
    script.process.send_signal(signal.SIGINT)
    assert script.process.wait(30) == 0
    assert left_after(tree, 0) == []
    assert script.process.stderr.read() == ""
    assert left_in(temporary) == []


def test_for_several_machines_it_prints_commands_that_efedllm_understands():
    hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "embedded", "--hosts", ",".join(hosts)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    commands = re.findall(r"^  efedllm (.*)$", done.stdout, re.MULTILINE)
    parsed = [_parser().parse_args(shlex.split(command)) for command in commands]
    assert [arguments.command for arguments in parsed] == ["bootstrap", "serve", "serve", "serve", "generate"]
    assert parsed[0].private
    serving = parsed[1:4]
    for host, arguments in zip(hosts, serving, strict=True):
        (address,) = arguments.listen
        assert re.fullmatch(rf"/ip4/{re.escape(host)}/tcp/\d+", address)
        assert arguments.model == "embedded"
    spans = [tuple(map(int, arguments.blocks.split(":"))) for arguments in serving]
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == Checkpoint.open(EMBEDDED).num_blocks


@pytest.mark.parametrize("arguments", [["--servers", "99"], ["no-such-model-here"]])
def test_what_cannot_be_started_is_said_in_one_sentence(arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (2, 3)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(("bootstrap_swarm: ", "bootstrap_swarm.py: error: "))
