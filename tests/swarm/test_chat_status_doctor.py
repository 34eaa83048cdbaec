"""The commands that talk to people: what stands on stdout is the answer and nothing else, in the documented shape."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from dht.identity import peer_id_to_bytes
from node import __version__
from node.model.checkpoint import Checkpoint
from tests.families import NUM_BLOCKS
from tests.processes import run_command
from tests.swarm.models import SPANS

NEW_TOKENS = 6
SHORT = ("--greedy", "--max-new-tokens", str(NEW_TOKENS))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def answer(llama):
    """What transformers answers to a text."""
    tokenizer = AutoTokenizer.from_pretrained(llama.directory)

    def answer_to(text):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        assert len(text) == inputs["input_ids"].shape[1], "one character is one token"
        ids = llama.local.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        return tokenizer.decode(ids[0, len(text) :], skip_special_tokens=True)

    return answer_to


def run_with_input(arguments, home, text):
    """Run one ``efedllm`` command to its end with ``text`` on its standard input."""
    return subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        env={**os.environ, "EFEDLLM_HOME": str(home), "OMP_NUM_THREADS": "1"},
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_generate_writes_the_text_and_nothing_else_to_stdout(llama, answer, home):
    arguments = ["generate", str(llama.directory), "--join", llama.join, "--prompt", "A swarm is", *SHORT]
    done = run_command(arguments, home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == answer("A swarm is") + "\n"
    assert done.stderr.startswith("Route: 0:2 on ")
    assert len(done.stderr.splitlines()) == 1


def test_generate_reads_a_prompt_from_standard_input_and_tells_events(llama, answer, home):
    arguments = ["generate", str(llama.directory), "--prompt", "-", "--events", "json", *SHORT]
    done = run_with_input([*arguments, "--join", llama.join], home, "Piped into it")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events[:1]] == ["route"]
    assert [stage["blocks"] for stage in events[0]["stages"]] == [f"{start}:{end}" for start, end in SPANS]
    assert {event["event"] for event in events[1:]} == {"text"}
    assert "".join(event["text"] for event in events[1:]) == answer("Piped into it")


def test_chat_answers_each_line_in_the_light_of_the_lines_before(llama, answer, home):
    lines = ["What is a swarm?", "And a route?"]
    done = run_with_input(
        ["chat", str(llama.directory), "--join", llama.join, *SHORT], home, "".join(f"{line}\n" for line in lines)
    )
    assert done.returncode == 0, done.stderr
    first = answer(lines[0])
    second = answer(lines[0] + first + lines[1])
    assert second != answer(lines[1]), "the first line is of no account here"
    assert done.stdout == f"{first}\n{second}\n"
    assert "Traceback" not in done.stderr


def test_status_has_the_documented_shape_as_json_and_names_every_peer_in_full_for_people(llama, home):
    done = run_command(["status", "--json", "--join", llama.join], home)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    checkpoint = Checkpoint.open(str(llama.directory))
    document = json.loads(done.stdout)
    assert list(document) == ["models"]
    model = document["models"][checkpoint.short_name]
    assert set(model) == {"num_blocks", "model_type", "manifest", "servers", "missing"}
    assert model["num_blocks"] == NUM_BLOCKS
    assert model["model_type"] == "llama"
    assert model["manifest"] == checkpoint.manifest32.hex()
    assert model["missing"] == []
    assert [server["blocks"] for server in model["servers"]] == [f"{start}:{end}" for start, end in SPANS]
    for server in model["servers"]:
        assert set(server) == {
            "peer_id", "blocks", "state", "score", "standing", "dtype", "throughput", "cache_free_tokens", "version",
            "ends",
        }  # fmt: skip
        assert len(peer_id_to_bytes(server["peer_id"])) == 38
        assert (server["state"], server["score"], server["dtype"]) == ("online", None, "float32")
        assert server["standing"] == "newcomer", "nobody is trusted yet"
        assert server["throughput"] > 0
        assert server["cache_free_tokens"] > 0
        assert server["version"] == __version__

    shown = run_command(["status", "--join", llama.join], home, COLUMNS="80")
    assert shown.returncode == 0, shown.stderr
    for server in model["servers"]:
        assert server["peer_id"] in shown.stdout, "a peer id that is cut short is of no use"


def test_score_tells_where_a_server_stands_by_the_anchors_that_its_user_names(llama, home):
    generated = run_command(
        ["generate", str(llama.directory), "--join", llama.join, "--prompt", "A swarm is", *SHORT], home
    )
    server = generated.stderr.split(" on ")[1].split(",")[0]
    done = run_command(["score", server, "--join", llama.join, "--anchors", server, "--json"], home)
    assert (done.returncode, done.stderr) == (0, "")
    story = json.loads(done.stdout)
    assert (story["peer_id"], story["standing"], story["is_anchor"]) == (server, "newcomer", True)


def test_doctor_says_what_this_machine_can_give(llama, home):
    done = run_command(["doctor", str(llama.directory), "--json"], home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["network"].startswith("works")
    assert found["home_is_writable"] is True
    assert found["home"] == str(home)
    assert found["torch"] == torch.__version__
    assert found["cores"] == os.cpu_count()
    assert found["free_memory_mib"] > 0
    assert "llama" in found["families"]
    assert found["model"].startswith(f"{NUM_BLOCKS} blocks of ")
    assert "fits here" in found["model"]
    assert [row["quantize"] for row in found["fit"]] == [None, "int8", "int4"]
    assert [row["fits"] for row in found["fit"]] == [True, True, True]
    assert [row["chosen"] for row in found["fit"]] == [True, False, False]
    assert {row["num_blocks"] for row in found["fit"]} == {NUM_BLOCKS}
    sizes = [row["block_mib"] for row in found["fit"]]
    assert sizes == sorted(set(sizes), reverse=True)
    assert "forecast" not in found, "no swarm is named"


def test_identity_is_made_once_and_shown(tmp_path):
    shown = run_command(["identity", "show"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    peer_id = shown.stdout.strip()
    assert len(peer_id_to_bytes(peer_id)) == 38
    again = run_command(["identity", "show", "--json"], tmp_path)
    fields = json.loads(again.stdout)
    assert (fields["peer_id"], fields["path"], fields["safe"]) == (peer_id, str(tmp_path / "identity"), True)
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o600


def test_the_version_is_told(tmp_path):
    done = run_command(["--version"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"efedllm {__version__}\n", "")
