"""`efedllm doctor MODEL --join CODE` beside a real swarm with a hole: what it promises, refuses and reads."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig

from dht.identity import Identity
from node import AutoDistributedModelForCausalLM
from tests.hub_server import serve_hub
from tests.processes import NodeProcess, bootstrap, run_command, servers
from tests.swarm.models import LLAMA, save

NUM_BLOCKS = 6
HOLE = "2:4"
FACTOR = 3.0
"""How far a forecast may be from what is then measured, either way."""
TRIES = 3
"""A machine that others use stalls; a forecast that is wrong by itself is wrong every time."""
HEADER_BYTES = 128 * 2**10
"""At most so much is read of a weight file, to learn which tensors it holds."""
BOUNDS = ("--num-threads", "1", "--max-memory", "700MiB", "--device", "cpu")

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class HoledSwarm:
    """A model of six blocks, of which 0:2 and 4:6 are served."""

    join: str
    model: Path
    home: Path

    def doctor(self, *extra, **environment):
        return run_command(
            ["doctor", str(self.model), "--join", self.join, *BOUNDS, *extra], self.home, timeout_s=200, **environment
        )

    def forecast(self, *extra):
        done = self.doctor("--json", *extra)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["forecast"]


@pytest.fixture(scope="module")
def holed(tmp_path_factory) -> Iterator[HoledSwarm]:
    root = tmp_path_factory.mktemp("holed")
    local = save(root / "model", "llama", {**LLAMA, "num_hidden_layers": NUM_BLOCKS})
    local.save_pretrained(root / "model", max_shard_size="3MB")
    (root / "model" / "model.safetensors").unlink(missing_ok=True)
    with (
        bootstrap(root / "bootstrap") as (_, join),
        servers(root / "model", join, [(0, 2), (4, 6)], root / "servers", *BOUNDS),
    ):
        yield HoledSwarm(join, root / "model", root / "home")


def test_it_takes_the_hole_and_says_what_every_part_of_a_token_costs(holed):
    found = holed.forecast("--num-blocks", "2")
    assert found["blocks"] == HOLE
    swarm = found["swarm"]
    assert (swarm["servers"], swarm["missing"]) == (2, [[2, 4]])
    assert (swarm["missing_with_you"], swarm["more_machines"]) == ([], 0)
    assert (swarm["weakest"]["blocks"], swarm["weakest"]["tokens_per_s"]) == (HOLE, 0)
    assert swarm["weakest_with_you"]["tokens_per_s"] > 0
    assert found["today"] is None
    stages = found["stages"]
    assert [stage["blocks"] for stage in stages] == ["0:2", HOLE, "4:6"]
    assert [stage["peer_id"] is None for stage in stages] == [False, True, False]
    assert all(0 < stage["round_trip_ms"] < 1000 for stage in stages if stage["peer_id"])
    with_you = found["with_you"]
    terms = {(term["factor"], term["peer_id"]): term["ms"] for term in with_you["terms_ms"]}
    assert len(terms) == 6, "memory, compute, two servers, round trips, the client"
    assert with_you["tokens_per_s"] == pytest.approx(1000 / sum(terms.values()), rel=0.1)
    assert terms[with_you["limit"], with_you["limit_peer"]] == max(terms.values())
    assert with_you["tokens_per_s_without_limit"] > with_you["tokens_per_s"]


def test_people_read_what_would_help_and_nothing_is_said_more_precisely_than_about(holed):
    done = holed.doctor("--blocks", HOLE)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=0)[0].split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    told = {name.strip(): sentence.strip() for name, sentence in lines.items()}
    assert f"no server for blocks {HOLE}" in told["swarm"]
    assert re.search(r"about [\d.]+ tokens/s", told["would take"])
    assert re.search(r"about [\d.]+ tokens/s .*the limit is (compute|memory|round|another|the client)", done.stdout)
    assert told["helps most"]


def test_a_swarm_that_still_lacks_blocks_is_refused_with_their_number(holed):
    done = holed.doctor("--num-blocks", "1", "--json")
    assert done.returncode == 5
    assert done.stderr.startswith(
        "efedllm: With this machine the blocks 3:4 would still have no server: 1 more machine"
    )
    found = json.loads(done.stdout)
    assert found["forecast"]["swarm"]["missing_with_you"] == [[3, 4]]
    assert found["forecast"]["swarm"]["more_machines"] == 1
    assert found["forecast"]["with_you"] is None
    assert found["refusal"] in done.stderr


def test_what_does_not_fit_is_refused_with_needed_free_and_missing_and_with_what_would_fit(holed):
    # Six blocks take 13.5 MiB in float32 and 3.5 MiB in int8, beside 512 MiB to work in.
    done = holed.doctor("--num-blocks", "6", "--max-memory", "520MiB", "--json")
    assert done.returncode == 17
    numbers = re.search(r"take ([\d.]+) MiB, ([\d.]+) MiB are free, ([\d.]+) MiB are missing", done.stderr)
    assert numbers, done.stderr
    needed, free, missing = map(float, numbers.groups())
    assert (needed, free) == (pytest.approx(512 + 6 * 2.25, rel=0.01), 520)
    assert missing == pytest.approx(needed - free, abs=0.1)
    assert "--quantize int8 would hold 6 blocks" in done.stderr
    rows = {row["quantize"]: row for row in json.loads(done.stdout)["fit"]}
    assert {name: row["fits"] for name, row in rows.items()} == {None: False, "int8": True, "int4": True}
    assert rows[None]["chosen"]
    assert rows[None]["missing_mib"] == missing
    assert rows["int8"]["cache_mib"] > 0


def test_a_swarm_that_does_not_answer_a_family_that_cannot_be_split_and_a_missing_model_have_codes_of_their_own(
    holed, tmp_path
):
    nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.ephemeral().peer_id}"
    alone = run_command(["doctor", str(holed.model), "--join", nobody, *BOUNDS], tmp_path)
    assert alone.returncode == 8
    assert len(alone.stderr.splitlines()) == 1
    MambaConfig(num_hidden_layers=2).save_pretrained(tmp_path / "mamba")
    split = run_command(["doctor", str(tmp_path / "mamba"), "--join", holed.join], tmp_path)
    assert split.returncode == 18
    assert "mamba cannot be served in spans" in split.stderr
    none = run_command(["doctor", "--blocks", "0:2"], tmp_path)
    assert none.returncode == 23
    assert none.stderr == "efedllm: --blocks need a MODEL; write `efedllm doctor MODEL --blocks ...`.\n"


def test_of_a_hub_no_weights_are_fetched_beyond_headers(holed, tmp_path):
    weights = {path.name: path.stat().st_size for path in holed.model.glob("*.safetensors")}
    assert len(weights) > 3
    assert min(weights.values()) > 4 * HEADER_BYTES
    with serve_hub({"org/small": holed.model}) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
        arguments = ["doctor", "org/small", "--join", holed.join, *BOUNDS, "--blocks", HOLE, "--json"]
        done = run_command(arguments, tmp_path / "home", timeout_s=200, **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["forecast"]["stages"], "it is the model that the swarm serves"
    sent = {file: hub.sent_bytes.get(file, 0) for file in weights}
    assert 0 < max(sent.values()) <= HEADER_BYTES
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    assert {file for file in hub.sent_bytes if file not in weights} <= {"config.json", "model.safetensors.index.json"}


def test_a_forecast_is_near_what_is_then_measured(holed, tmp_path):
    """Of the span as the server measures it, and of a generation as a client sees it."""
    told = []
    for number in range(TRIES):
        found = holed.forecast("--blocks", HOLE)
        expected = found["span"]["tokens_per_s"], found["with_you"]["tokens_per_s"]
        measured = _measure(holed, tmp_path / str(number))
        told.append((expected, measured))
        if all(1 / FACTOR < pair[0] / pair[1] < FACTOR for pair in zip(expected, measured, strict=True)):
            return
    raise AssertionError(f"expected and measured tokens/s, of the span and of a generation: {told}")


def _measure(holed, home):
    """Serve the hole; return tokens/s of the span as announced, and of a generation through it."""
    command = ["serve", str(holed.model), "--join", holed.join, "--blocks", HOLE, *BOUNDS]
    process = NodeProcess(command, home)
    try:
        process.ready()
        listed = json.loads(run_command(["status", "--join", holed.join, "--json"], holed.home).stdout)
        (model,) = listed["models"].values()
        (throughput,) = (server["throughput"] for server in model["servers"] if server["blocks"] == HOLE)
        return throughput / 2, _generate(holed)
    finally:
        process.stop()


def _generate(holed, num_tokens=48):
    with AutoDistributedModelForCausalLM.from_pretrained(str(holed.model), join=holed.join) as remote:
        exact = {"do_sample": False, "attention_mask": None}
        with remote.inference_session(max_length=128):
            ids = remote.generate(torch.tensor([[3, 4, 5, 6]]), max_new_tokens=8, min_new_tokens=8, **exact)
            started_s = time.perf_counter()
            remote.generate(ids, max_new_tokens=num_tokens, min_new_tokens=num_tokens, **exact)
            return num_tokens / (time.perf_counter() - started_s)
