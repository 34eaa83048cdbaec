"""Bad input: one clear sentence on stderr, the documented exit code, nothing left running, nothing lost.

Commands that end by themselves run two at a time from the first test on, because most of their time is the import of
torch; each test then looks at one of them.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig

from dht.errors import DaemonDied
from dht.identity import Identity
from dht.parameters import JoinCode
from node import AutoDistributedModelForCausalLM
from node.cli import main
from node.run.exit_codes import exit_code
from tests.limits.commands import Outcome, environment_of, left_by, run
from tests.limits.small_swarm import NUM_BLOCKS, SmallSwarm, change_config, save_model
from tests.processes import NodeProcess, children_of, is_running, run_command, servers

_PROGRESS = ("Memory: ", "Network: ", "Loading blocks ")
"""What a server says before it finds that the weights are not those that the config asks for."""
_GARBAGE = b"\x40\x00\x00\x00\x00\x00\x00\x00" + b"{not json" * 20


@dataclass(frozen=True)
class Case:
    """A command that must fail; braces stand for places that the fixture ``places`` knows."""

    name: str
    command: str
    code: int
    says: str
    """Part of the sentence."""


LIGHT = [
    Case("no command", "", 2, "required: COMMAND"),
    Case("an unknown command", "sreve {model}", 2, "invalid choice: 'sreve'"),
    Case("an unknown option", "serve {model} --blokcs 0:1", 2, "--blokcs"),
    Case("generate without a prompt", "generate {model} --join {closed}", 2, "--prompt"),
    Case("a malformed memory bound", "serve {model} --join {closed} --max-memory lots", 2, "'lots' is not a size"),
    Case("a negative memory bound", "serve {model} --join {closed} --max-memory=-1GiB", 2, "'-1GiB' is not a size"),
    Case("zero blocks", "serve {model} --join {closed} --num-blocks 0", 2, "'0' is not a whole number from 1"),
    Case("blocks in two ways", "serve {model} --blocks 0:1 --num-blocks 1", 2, "not allowed with argument"),
    Case("an unknown dtype", "serve {model} --join {closed} --dtype int3", 2, "invalid choice: 'int3'"),
    Case("a temperature below zero", "generate {model} --prompt a --temperature=-1", 2, "'-1' is not a number from"),
    Case(
        "a temperature of next to nothing", "generate {model} --prompt a --temperature 1e-40", 2, "a number from 0.001"
    ),
    Case("a share above one", "generate {model} --prompt a --top-p 2", 2, "'2' is not a number from 0 to 1"),
    Case("a share of nothing", "generate {model} --prompt a --top-p 0", 2, "'0' is not above 0"),
    Case("a seed that is too large", "generate {model} --prompt a --seed {huge}", 2, "is not a whole number from 0 to"),
    Case("a seed that is too large, for a demo", "demo --seed {huge}", 2, "is not a whole number from 0 to"),
    Case("a seed below zero", "chat {model} --seed=-1", 2, "'-1' is not a whole number from 0 to"),
    Case("a prompt that is no text", "generate {model} --prompt {no_text}", 2, "is not UTF-8 text"),
    Case("a prompt that is no text, for a demo", "demo --prompt {no_text}", 2, "is not UTF-8 text"),
    Case("more threads than a machine has", "serve {model} --num-threads {huge}", 2, "a whole number from 1 to 1024"),
    Case("a memory bound without end", "serve {model} --max-memory {endless}", 2, "is not a size"),
    Case("greedy at a temperature", "generate {model} --prompt a --greedy --temperature .5", 23, "leave out --temp"),
    Case("hours that are none", "serve {model} --join {closed} --hours 9-17", 23, "write HH:MM-HH:MM, for example"),
    Case("a bandwidth of nothing", "serve {model} --join {closed} --max-bandwidth 0", 2, "`efedllm pause`"),
    Case("nobody to pause", "pause", 28, "set EFEDLLM_HOME"),
    Case("nobody to drain", "drain", 28, "set EFEDLLM_HOME"),
    Case("standard input twice", "generate {model} --prompt - --exit-with-stdin", 23, "leave out --exit-with-stdin"),
    Case("greedy with a share", "generate {model} --prompt a --greedy --top-p .5", 23, "--greedy samples nothing"),
    Case("a prompt of no tokens to be", "generate {model} --prompt a --max-new-tokens 0", 2, "'0' is not a whole"),
    Case("no swarm named", "serve {model} --blocks 0:1", 23, "pass --join CODE"),
    Case("an empty join code", "serve {model} --join {nothing}", 23, "pass --join CODE"),
    Case("a join code of spaces", "serve {model} --join {blank}", 6, "the join code is empty"),
    Case("a join code with a typing error", "serve {model} --join {typo}", 6, "a typing error"),
    Case("a truncated join code", "generate {model} --join {truncated_code} --prompt a", 6, "incomplete"),
    Case("a join code with other letters", "status --join 0OIl0OIl", 6, "a character that no code has"),
    Case("a join code of another kind", "status --join hello", 6, "copy it again"),
    Case("an address without a peer", "serve {model} --join /ip4/127.0.0.1/tcp/9", 7, "is no address of a peer"),
    Case("a peer without an address", "serve {model} --join /p2p/{peer}", 7, "not where it is"),
    Case("a peer id with a typing error", "status --join /ip4/127.0.0.1/tcp/9/p2p/12D3KooW", 7, "address looks like"),
]

HEAVY = [
    Case("a path where nothing is", "serve /no/such/model --join {closed}", 3, "there is no model '/no/such/model'"),
    Case("a hub that does not answer", "serve org/name --join {closed}", 24, "the hub does not answer"),
    Case("blocks outside the model", "serve {model} --join {closed} --blocks 4:9", 4, "outside the model, which has"),
    Case("truncated weights, to serve", "serve {truncated} --join {closed}", 11, "model.safetensors has"),
    Case("a config with more blocks", "serve {more_blocks} --join {closed} --blocks 0:1", 12, "asks for 8 blocks"),
    Case("a family that cannot be split", "serve {mamba} --join {closed}", 18, "mamba cannot be served in spans"),
    Case("a span that does not fit", "serve {model} --join {closed} --max-memory 300MiB", 17, "raise --max-memory"),
    Case("a taken port, to serve on", "serve {model} --join {closed} --listen {taken}", 10, "another program listens"),
    Case("a taken port, for a bootstrap", "bootstrap --private --listen {taken}", 10, "another program listens"),
    Case("a model without tokenizer", "generate {no_tokenizer} --join {closed} --prompt a", 3, "has no tokenizer"),
    Case("a prompt that is too long", "generate {model} --join {closed} --prompt {long}", 16, "the model takes 128"),
    Case("a closed port, to generate", "generate {model} --join {closed} --prompt a --max-new-tokens 8", 8, "no peer"),
    Case("a port that stays silent", "status --join {silent}", 8, "no peer of the swarm answers"),
]  # fmt: skip
"""One of each kind, each in a process of its own."""

VARIANTS = [
    Case("a file for a model", "serve {model}/config.json --join {closed}", 3, "is a file"),
    Case("a directory without a model", "generate {empty} --join {closed} --prompt a", 3, "holds no config.json"),
    Case("an empty block range", "serve {model} --join {closed} --blocks 3:3", 4, "3:3 is empty"),
    Case("a block range backwards", "serve {model} --join {closed} --blocks 3:1", 4, "3:1 is empty"),
    Case("a malformed block range", "serve {model} --join {closed} --blocks first", 4, "'first' is not a range"),
    Case("a negative block", "serve {model} --join {closed} --blocks=-1:2", 4, "'-1:2' is not a range"),
    Case("more blocks than there are", "serve {model} --join {closed} --num-blocks 99", 4, "the model has 6 blocks"),
    Case("garbage for a header", "serve {garbage} --join {closed}", 11, "header that is not JSON"),
    Case("a config that is no JSON", "serve {no_json} --join {closed}", 11, "config.json is not JSON"),
    Case("truncated weights, to generate", "generate {truncated} {asked}", 11, "model.safetensors has"),
    Case("garbage, to generate", "generate {garbage} {asked}", 11, "header that is not JSON"),
    Case("a config of other widths, to generate", "generate {wider} {asked}", 12, "the weights disagree"),
    Case("a config of other widths", "serve {wider} --join {join} --blocks 0:2", 12, "the weights disagree"),
    Case("mamba, to generate", "generate {mamba} {asked}", 18, "mamba cannot be served in spans"),
    Case("an unknown device", "serve {model} --join {closed} --device tpu", 23, "no device 'tpu'"),
    Case("a malformed address to listen on", "serve {model} --join {closed} --listen here", 7, "'here' is no multi"),
    Case("a malformed address to announce", "serve {model} --join {closed} --announce here", 7, "'here' is no multi"),
    Case("an address of another machine", "bootstrap --listen /ip4/192.0.2.1/tcp/0", 7, "address of this machine"),
    Case("too many new tokens", "generate {model} --join {closed} --prompt a --max-new-tokens 999", 16, "999 are to"),
    Case("a closed port, to serve", "serve {model} --join {closed} --blocks 0:1", 8, "no peer of the swarm answers"),
    Case("a closed port, for status", "status --join {closed}", 8, "no peer of the swarm answers"),
]  # fmt: skip
"""Further ones, through the same ``main`` in the process of the tests: a second each instead of five."""


@pytest.fixture(scope="module")
def places(join: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Models that are wrong, addresses at which nobody answers, codes that are damaged."""
    root = tmp_path_factory.mktemp("places")
    peer = Identity.ephemeral().peer_id
    code = JoinCode((f"/ip4/127.0.0.1/tcp/9/p2p/{peer}",), "private", bytes(32), bytes(range(32))).encode()
    closed = f"/ip4/127.0.0.1/tcp/{_a_closed_port()}/p2p/{peer}"
    with _a_taken_port() as taken, _a_silent_port() as silent:
        yield {
            "join": join,
            "closed": closed,
            "asked": f"--join {closed} --prompt a --max-new-tokens 8",
            **{name: str(path) for name, path in _models(root).items()},
            "nothing": "",
            "blank": "  ",
            "typo": code[:20] + ("1" if code[20] != "1" else "2") + code[21:],
            "truncated_code": code[:-7],
            "long": "word " * 200,
            "huge": "9" * 23,
            "endless": "9" * 400,
            "no_text": os.fsdecode(b"\xff\xfe"),
            "peer": peer,
            "silent": f"/ip4/127.0.0.1/tcp/{silent}/p2p/{peer}",
            "taken": f"/ip4/127.0.0.1/tcp/{taken}",
        }


def _models(root: Path) -> dict[str, Path]:
    save_model(root / "model")
    (root / "empty").mkdir()
    for name in ("truncated", "garbage", "no_json", "more_blocks", "wider", "no_tokenizer"):
        shutil.copytree(root / "model", root / name)
    weights = root / "truncated" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    (root / "garbage" / "model.safetensors").write_bytes(_GARBAGE)
    (root / "no_json" / "config.json").write_text('{"model_type": "llama",')
    change_config(root / "more_blocks", num_hidden_layers=NUM_BLOCKS + 2)
    change_config(root / "wider", hidden_size=64, head_dim=16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (root / "no_tokenizer" / name).unlink()
    MambaConfig(hidden_size=32, num_hidden_layers=2).save_pretrained(root / "mamba")
    return {path.name: path for path in root.iterdir()}


def _a_closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def _a_taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@contextlib.contextmanager
def _a_silent_port() -> Iterator[int]:
    """Accept every connection and never say a word."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(server.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in accepted:
        connection.close()


def _arguments(case: Case, places: dict[str, str]) -> list[str]:
    """Fill in the braces; only ``{asked}`` holds several arguments."""
    command = case.command.replace("{asked}", places["asked"])
    return [part.format_map(places) for part in command.split()]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, places: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """Run the commands of all collected tests of this file, two at a time."""
    collected = (getattr(item, "callspec", None) for item in request.session.items)
    given = (spec.params.get("case") for spec in collected if spec is not None)
    cases = [case for case in given if isinstance(case, Case)]

    def run_case(case: Case) -> Outcome:
        return run(_arguments(case, places), tmp_path_factory.mktemp("home"))

    with ThreadPoolExecutor(2) as pool:
        futures = {case.name: pool.submit(run_case, case) for case in cases}
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("case", [*LIGHT, *HEAVY], ids=lambda case: case.name)
def test_it_is_said_in_one_sentence_with_its_exit_code(case: Case, outcomes: dict[str, Future[Outcome]]):
    outcome = outcomes[case.name].result()
    assert outcome.code == case.code, outcome.err
    assert outcome.sentence.startswith("efedllm: ")
    assert case.says in outcome.sentence
    assert "Traceback" not in outcome.sentence
    assert outcome.out == ""
    assert outcome.left == []


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda case: case.name)
def test_a_variant_is_said_in_one_sentence_with_its_exit_code(
    variant: Case,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path))
    before = children_of(os.getpid())
    assert main(_arguments(variant, places)) == variant.code
    sentence = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(_PROGRESS)]
    assert len(sentence) == 1
    assert sentence[0].startswith("efedllm: ")
    assert variant.says in sentence[0]
    assert children_of(os.getpid()) == before


@pytest.mark.parametrize("light", LIGHT, ids=lambda case: case.name)
def test_it_is_said_before_torch_or_hivemind_is_imported(light: Case, places: dict[str, str], tmp_path: Path):
    program = "import sys\nfrom node.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n    print(*sys.modules)"
    outcome = subprocess.run(
        [sys.executable, "-c", program, *_arguments(light, places)],
        env=environment_of(tmp_path, {}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    imported = set(outcome.stdout.split())
    assert "node.cli" in imported
    assert not imported & {"torch", "hivemind", "transformers"}


def test_a_hub_id_with_the_hub_switched_off(places: dict[str, str], tmp_path: Path):
    outcome = run(["serve", "org/name", "--join", places["closed"]], tmp_path, HF_HUB_OFFLINE="1")
    assert outcome.code == 3
    assert "org/name is not in the cache" in outcome.sentence
    assert outcome.left == []


def test_standard_input_that_is_no_text(places: dict[str, str], tmp_path: Path):
    outcome = subprocess.run(
        [sys.executable, "-m", "node", "generate", places["model"], "--join", places["closed"], "--prompt", "-"],
        env=environment_of(tmp_path, {}), input=b"\xff\xfe", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert outcome.returncode == 23
    assert outcome.stderr == b"efedllm: The prompt on standard input is not UTF-8 text; convert it first.\n"


# ---------------------------------------------------------------------------------------------------- identity


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of one page and fill it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)], capture_output=True, check=False
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("only who may mount can make a full disk")
    try:
        (disk / "filler").write_bytes(bytes(4096))
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_while_the_identity_is_written(full_disk: Path):
    outcome = run(["bootstrap", "--private"], full_disk)
    assert outcome.code == 14
    assert "cannot be written (No space left on device): free some space" in outcome.sentence
    assert [path.name for path in full_disk.iterdir()] == ["filler"]
    assert outcome.left == []


def test_a_full_disk_while_a_bootstrap_writes_its_state(full_disk: Path):
    (full_disk / "filler").unlink()
    assert run(["identity", "show"], full_disk).code == 0
    identity = (full_disk / "identity").read_bytes()
    outcome = run(["bootstrap", "--private"], full_disk)
    assert outcome.code == 26
    assert "The disk is full" in outcome.sentence
    assert (full_disk / "identity").read_bytes() == identity
    assert outcome.left == []


def test_no_byte_may_be_written(tmp_path: Path):
    outcome = run(["identity", "show"], tmp_path, prefix=["sh", "-c", 'ulimit -f 0; exec "$@"', "sh"])
    assert outcome.code == 14
    assert "cannot be written" in outcome.sentence
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_a_file(tmp_path: Path):
    home = tmp_path / "home"
    home.write_text("mine")
    outcome = run(["identity", "show"], home)
    assert outcome.code == 14
    assert "choose another directory" in outcome.sentence
    assert home.read_text() == "mine"


def test_a_damaged_identity_is_not_replaced(tmp_path: Path):
    (tmp_path / "identity").write_bytes(b"half a key")
    outcome = run(["bootstrap"], tmp_path)
    assert outcome.code == 15
    assert "restore it from a backup" in outcome.sentence
    assert (tmp_path / "identity").read_bytes() == b"half a key"


# ----------------------------------------------------------------------------------------------- inside a swarm


@pytest.fixture(scope="module")
def gappy(small: SmallSwarm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, NodeProcess]]:
    """A second model in the swarm, of which one server holds the middle span of three."""
    directory = tmp_path_factory.mktemp("model") / "gappy"
    save_model(directory, seed=1)
    with servers(directory, small.join, [(2, 4)], tmp_path_factory.mktemp("gappy")) as (server,):
        yield directory, server


def test_blocks_that_no_one_serves_are_named(small: SmallSwarm, gappy: tuple[Path, NodeProcess], tmp_path: Path):
    command = ["generate", str(gappy[0]), "--join", small.join, "--prompt", "a", "--max-new-tokens", "4"]
    outcome = run(command, tmp_path)
    assert outcome.code == 5
    assert "No server holds the blocks 0:2, 4:6 of 6" in outcome.sentence
    assert outcome.out == ""
    assert outcome.left == []
    small.still_serves()


def test_a_second_node_with_the_same_identity(small: SmallSwarm, gappy: tuple[Path, NodeProcess]):
    directory, server = gappy
    outcome = run(["serve", str(directory), "--join", small.join, "--blocks", "0:2"], server.home)
    assert outcome.code == 13
    assert "another node runs with the identity" in outcome.sentence
    assert server.returncode is None
    listed = json.loads(run_command(["status", "--join", small.join, "--json"], server.home).stdout)["models"]
    assert [entry["blocks"] for name in listed if "gappy" in name for entry in listed[name]["servers"]] == ["2:4"]


def test_a_line_of_a_chat_that_is_no_text(small: SmallSwarm, tmp_path: Path):
    outcome = subprocess.run(
        [sys.executable, "-m", "node", "chat", str(small.model), "--join", small.join],
        env=environment_of(tmp_path, {}), input=b"\xff\xfe\n", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert outcome.returncode == 23
    assert outcome.stdout == b""
    assert outcome.stderr.endswith(b"\nefedllm: The line on standard input is not UTF-8 text; convert it first.\n")


def test_a_client_whose_own_p2pd_has_died_says_so(small: SmallSwarm):
    before = set(children_of(os.getpid()))
    with AutoDistributedModelForCausalLM.from_pretrained(str(small.model), join=small.join) as model:
        (p2pd,) = set(children_of(os.getpid())) - before
        os.kill(p2pd, signal.SIGKILL)
        with pytest.raises(DaemonDied) as raised:
            model.generate(torch.tensor([[3, 1, 4]]), max_new_tokens=2, do_sample=False)
    assert exit_code(raised.value) == 22
    small.still_serves()


def test_a_bootstrap_whose_own_p2pd_has_died_ends(tmp_path: Path):
    process = NodeProcess(["bootstrap", "--private"], tmp_path)
    try:
        process.ready()
        (p2pd,) = children_of(process.pid)
        os.kill(p2pd, signal.SIGKILL)
        assert process.wait() == 22
        assert "the p2pd process of this node has ended" in process.errors[-1]
    finally:
        process.stop()


@pytest.mark.parametrize("moment_s", [0.3, 1.0, 2.5, 4.5])
def test_ctrl_c_while_a_server_starts_leaves_nothing(small: SmallSwarm, tmp_path: Path, moment_s: float):
    process = subprocess.Popen(
        [sys.executable, "-m", "node", "serve", str(small.model), "--join", small.join, "--blocks", "0:1"],
        env=environment_of(tmp_path, {}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        time.sleep(moment_s)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    # 0: it was serving already and stopped in good order. -SIGINT, which shells show as 130 too: Python ends that way
    # when the interrupt fell into an import.
    assert process.returncode in (0, 130, -signal.SIGINT), err
    assert "Traceback" not in err
    assert out == ""
    assert left_by(process.pid, tmp_path) == []
    assert all(is_running(server.pid) for server in small.servers)
