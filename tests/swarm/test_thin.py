"""Through three server processes, clients without weights generate what transformers generates."""

import json
import logging
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from node import AutoDistributedModelForCausalLM
from node.client.thin_model import THIN_NOTICE
from node.errors import MissingBlocks, UserError
from node.model.checkpoint import Checkpoint
from tests.families import FAMILIES, VOCABULARY
from tests.processes import run_command, servers
from tests.swarm.models import SPANS, save

NEW_TOKENS = 8
TEXT = torch.randint(3, VOCABULARY, (1, 18), generator=torch.Generator().manual_seed(1))
FAMILIES_HERE = ("llama", "gpt2", "gemma2")
"""Tied embeddings; learned positions; scaled embeddings, soft caps and a sliding window."""


@pytest.fixture(scope="module")
def weightless(llama, tmp_path_factory):
    """A directory with config and tokenizer of the llama and not one weight; its directory is called ``llama``."""
    directory = tmp_path_factory.mktemp("weightless") / "llama"
    shutil.copytree(llama.directory, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    return directory


@pytest.fixture(scope="module")
def manifest(llama, tmp_path_factory):
    """The identity of the llama, as ``status`` tells it."""
    done = run_command(["status", "--json", "--join", llama.join], tmp_path_factory.mktemp("home"))
    identity = Checkpoint.open(str(llama.directory)).manifest32.hex()
    (model,) = [model for model in json.loads(done.stdout)["models"].values() if model["manifest"] == identity]
    assert [server["ends"] for server in model["servers"]] == [["embed"], [], ["head"]]
    return model["manifest"]


def connect(directory, join, **options):
    return AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join, thin=True, **options)


@pytest.fixture(scope="module", params=FAMILIES_HERE)
def served(request, join, tmp_path_factory):
    """Yield directory and local model of a family that three processes serve."""
    if request.param == "llama":
        llama = request.getfixturevalue("llama")
        yield llama.directory, llama.local
        return
    directory = tmp_path_factory.mktemp("model") / request.param
    local = save(directory, request.param, FAMILIES[request.param])
    with servers(directory, join, SPANS, tmp_path_factory.mktemp("servers"), "--num-threads", "1"):
        yield directory, local


def generate(model, ids=TEXT, **options):
    return model.generate(ids, attention_mask=torch.ones_like(ids), **{"max_new_tokens": NEW_TOKENS, **options})


def test_greedy_tokens_are_those_of_the_whole_model(served, join):
    directory, local = served
    batch = TEXT.repeat(2, 1)
    batch[1, 5] = 7
    for options in ({}, {"server_sampling": True}):
        with connect(directory, join, **options) as thin:
            assert torch.equal(generate(thin), generate(local))
            assert torch.equal(generate(thin, batch), generate(local, batch))


def test_a_directory_without_weights_is_enough_and_one_id_a_step_comes_back(llama, weightless, manifest):
    with connect(weightless, llama.join, manifest=manifest, server_sampling=True) as thin:
        with thin.inference_session(max_length=64) as session:
            assert torch.equal(generate(thin), generate(llama.local))
            chain = session.cache._chain
            before = chain.bytes_out, chain.bytes_in
            generate(thin, torch.cat([generate(llama.local), TEXT[:, :1]], dim=1), max_new_tokens=5)
        per_token = [(after - then) / 5 for after, then in zip((chain.bytes_out, chain.bytes_in), before, strict=True)]
    assert max(per_token) < 100, "hidden states of this model are 1024 bytes a token"


def test_a_long_prompt_travels_in_several_steps_and_gives_the_same(llama):
    text = torch.randint(3, VOCABULARY, (1, 3000), generator=torch.Generator().manual_seed(3))
    with connect(llama.directory, llama.join) as thin:
        assert torch.equal(generate(thin, text), generate(llama.local, text))


def test_a_seed_gives_the_same_sampled_text_again(llama):
    with connect(llama.directory, llama.join, server_sampling=True) as thin:
        texts = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            texts.append(generate(thin, do_sample=True, temperature=2.0))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_generate_and_chat_run_without_weights_and_say_what_servers_read(llama, weightless, manifest, tmp_path):
    shared = [str(weightless), "--join", llama.join, "--thin", "--manifest", manifest]
    shared += ["--greedy", "--max-new-tokens", str(NEW_TOKENS)]
    tokenizer = AutoTokenizer.from_pretrained(llama.directory)
    inputs = tokenizer("A swarm is", return_tensors="pt", return_token_type_ids=False)
    ids = llama.local.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    expected = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for extra in ([], ["--server-sampling"], ["--num-logits", "5"]):
        done = run_command(["generate", *shared, *extra, "--prompt", "A swarm is"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == expected + "\n"
        assert done.stderr.splitlines()[0] == f"efedllm: {THIN_NOTICE}"
        assert done.stderr.splitlines()[1].startswith("Route: 0:2 on ")
    done = run_command(["chat", *shared], tmp_path)
    assert done.returncode == 0, done.stderr
    assert THIN_NOTICE in done.stderr


def test_the_library_says_what_servers_read(llama, caplog):
    with caplog.at_level(logging.WARNING), connect(llama.directory, llama.join):
        pass
    assert [record.message for record in caplog.records if record.name == "efedllm"] == [THIN_NOTICE]


def test_servers_without_ends_are_passed_over_and_named_as_what_is_missing(join, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "endless"
    local = save(directory, "llama", FAMILIES["llama"], seed=5)
    with (
        servers(directory, join, ((0, 4),), tmp_path_factory.mktemp("server"), "--num-threads", "1", "--no-ends"),
        connect(directory, join) as thin,
        AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join) as whole,
    ):
        assert torch.equal(generate(whole), generate(local))
        with pytest.raises(MissingBlocks, match="--no-ends"):
            generate(thin)
        with servers(directory, join, ((0, 1), (3, 4)), tmp_path_factory.mktemp("ends"), "--num-threads", "1"):
            with thin.inference_session(max_length=40) as session:
                assert torch.equal(generate(thin), generate(local))
                stages = [(stage.start, stage.end) for stage in session.cache.route.stages]
            assert stages == [(0, 1), (1, 3), (3, 4)]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_logits": 0}, "1 to 1024"),
        ({"num_logits": 1025}, "1 to 1024"),
        ({"manifest": "abc"}, "64 hex"),
        ({"codec": "morse"}, "morse"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_a_sentence(options, named, weightless):
    with pytest.raises(UserError, match=named):
        connect(weightless, "code", **options)


def test_options_of_clients_without_weights_need_thin(llama, tmp_path):
    with pytest.raises(UserError, match="thin=True"):
        AutoDistributedModelForCausalLM.from_pretrained(str(llama.directory), join=llama.join, server_sampling=True)
    arguments = ["generate", str(llama.directory), "--join", llama.join, "--prompt", "a", "--server-sampling"]
    done = run_command(arguments, tmp_path)
    assert done.returncode == 23, done.stderr
    assert "go with --thin" in done.stderr
