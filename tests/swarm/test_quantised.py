"""Through servers that hold weights in 8 or 4 bits, a client gets what transformers' quantised model gives."""

import json

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

from node import AutoDistributedModelForCausalLM
from tests.families import VOCABULARY
from tests.processes import NodeProcess, run_command, servers
from tests.swarm.models import LLAMA, save

SPANS = ((0, 3), (3, 4))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "quantised"
    save(directory, "llama", LLAMA, seed=7)
    return directory


def test_tokens_are_those_of_transformers_quantised_model_and_the_announcement_says_int8(directory, join, tmp_path):
    quantization = TorchAoConfig(Int8WeightOnlyConfig())
    local = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, quantization_config=quantization)
    ids = torch.randint(3, VOCABULARY, (1, 18), generator=torch.Generator().manual_seed(1))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    with servers(directory, join, SPANS, tmp_path, "--num-threads", "1", "--quantize", "int8") as processes:
        with AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join) as remote:
            with torch.no_grad():
                logits, whole = remote(ids, use_cache=False).logits, local(ids, use_cache=False).logits
            assert ((logits - whole).abs().max() / whole.abs().max()).item() < 1e-4
            assert torch.equal(remote.generate(ids, **options), local.generate(ids, **options))
        status = run_command(["status", "--join", join, "--json"], tmp_path / "client")
        assert all("weights in int8" in "".join(process.errors) for process in processes)
    models = json.loads(status.stdout)["models"]
    (served,) = (model for model in models.values() if len(model["servers"]) == len(SPANS))
    assert {server["dtype"] for server in served["servers"]} == {"int8"}


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--quantize", "int3"], 2, "invalid choice: 'int3'"),
        (["--quantize", "int4", "--dtype", "float32"], 23, "computes in bfloat16 only"),
    ],
)
def test_what_cannot_be_quantised_is_said_in_one_sentence(directory, join, tmp_path, options, code, sentence):
    process = NodeProcess(["serve", str(directory), "--join", join, "--device", "cpu", *options], tmp_path)
    try:
        assert process.wait(60) == code
        (line,) = process.errors
        assert sentence in line
    finally:
        process.stop()
