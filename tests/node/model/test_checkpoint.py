import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen3MoeConfig,
)

from node.errors import BadBlocks, ConfigMismatch, DamagedCheckpoint, ModelNotFound, UnsupportedFamily
from node.model.agreement import expect_tensors
from node.model.checkpoint import Checkpoint

ROOT = Path(__file__).parents[3]
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
MOE = {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=64),
    "mixtral": MixtralConfig(**SIZES, **MOE, num_local_experts=4),  # as many experts as blocks
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **MOE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    "bloom": BloomConfig(vocab_size=64, hidden_size=32, n_layer=4, n_head=4),
    "gemma2": Gemma2Config(**SIZES, **MOE),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
    "gpt_neox": GPTNeoXConfig(**SIZES, intermediate_size=48),
    "falcon": FalconConfig(**SIZES),
    "phi": PhiConfig(**SIZES, intermediate_size=48),
    "deepseek_v3": DeepseekV3Config(
        **SIZES,
        intermediate_size=48,
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that saves a family's small random model once, whole and in shards."""
    root = tmp_path_factory.mktemp("families")
    models = {}

    def save(family):
        if family not in models:
            torch.manual_seed(0)
            models[family] = AutoModelForCausalLM.from_config(FAMILIES[family])
            models[family].save_pretrained(root / family / "whole")
            models[family].save_pretrained(root / family / "sharded", max_shard_size="30KB")
        return models[family], root / family

    return save


@pytest.fixture
def llama(saved, tmp_path):
    """A copy of the sharded llama that a test may damage."""
    return Path(shutil.copytree(saved("llama")[1] / "sharded", tmp_path / "llama"))


@pytest.fixture
def whole(saved, tmp_path):
    """A copy of the unsharded llama that a test may damage."""
    return Path(shutil.copytree(saved("llama")[1] / "whole", tmp_path / "whole"))


def all_tensors(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def load_parts(checkpoint, bounds):
    """Load the client and the spans, and give the spans' names their numbers back."""
    whole = checkpoint.load_client()
    for start, end in bounds:
        for name, tensor in checkpoint.load_span(start, end).items():
            original = checkpoint.block_names.renumber(name, -start)
            assert original not in whole
            whole[original] = tensor
    return whole


@pytest.mark.parametrize("form", ["whole", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_spans_and_client_together_are_the_whole_checkpoint(family, form, saved):
    directory = saved(family)[1] / form
    checkpoint = Checkpoint.open(str(directory))
    parts = load_parts(checkpoint, [(0, 1), (1, 3), (3, 4)])
    expected = all_tensors(directory)
    assert parts.keys() == expected.keys() == set(checkpoint.tensor_names())
    assert all(torch.equal(parts[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loader_builds_the_same_model_from_the_parts(family, saved):
    model, directory = saved(family)
    checkpoint = Checkpoint.open(str(directory / "sharded"))
    tensors = load_parts(checkpoint, [(0, 2), (2, 4)])
    rebuilt = type(model).from_pretrained(None, config=checkpoint.config, state_dict=tensors)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in rebuilt.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_span_starts_at_layer_zero_and_holds_no_other_block(family, saved):
    checkpoint = Checkpoint.open(str(saved(family)[1] / "sharded"))
    span = checkpoint.load_span(1, 3)
    assert {checkpoint.block_names.block_of(name) for name in span} == {0, 1}
    assert {checkpoint.block_names.block_of(name) for name in checkpoint.load_client()} == {None}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_sizes_told_from_headers_are_the_sizes_in_memory(family, dtype, saved):
    checkpoint = Checkpoint.open(str(saved(family)[1] / "sharded"))
    span, client = checkpoint.load_span(1, 3, dtype=dtype), checkpoint.load_client(dtype=dtype)
    assert checkpoint.span_bytes(1, 3, dtype) == sum(tensor.nbytes for tensor in span.values())
    assert checkpoint.client_bytes(dtype) == sum(tensor.nbytes for tensor in client.values())
    assert {tensor.dtype for tensor in span.values()} == {dtype or torch.float32}
    assert sum(checkpoint.tensor_bytes(dtype).values()) == checkpoint.span_bytes(0, 4, dtype) + checkpoint.client_bytes(
        dtype
    )


def test_a_checkpoint_saved_from_the_base_model_is_read_the_same(saved, tmp_path):
    model = saved("gpt2")[0]
    model.transformer.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(str(tmp_path))
    assert checkpoint.block_names.layers == "h"
    assert torch.equal(checkpoint.load_span(2, 3)["h.0.attn.c_attn.weight"], model.transformer.h[2].attn.c_attn.weight)
    assert "wte.weight" in checkpoint.load_client()


def test_only_the_files_of_the_span_are_touched(llama):
    checkpoint = Checkpoint.open(str(llama))
    needed = {checkpoint._file_of[name] for name in checkpoint.tensor_names() if ".layers.2." in name}
    for file in llama.glob("*.safetensors"):
        if file.name not in needed:
            file.unlink()
    assert len(checkpoint.load_span(2, 3)) == 9


def test_opening_reads_no_weight(llama):
    for file in llama.glob("*.safetensors*"):
        file.unlink()
    checkpoint = Checkpoint.open(str(llama))
    assert (checkpoint.num_blocks, checkpoint.name, checkpoint.config.model_type) == (4, "llama", "llama")


def test_the_manifest_follows_the_weights_and_not_their_place(llama, saved, tmp_path):
    original = Checkpoint.open(str(saved("llama")[1] / "sharded"), home=tmp_path)
    copy = Checkpoint.open(str(llama), home=tmp_path)
    assert copy.manifest32 == original.manifest32
    assert copy.short_name == f"llama@{original.manifest32.hex()[:8]}"
    file = sorted(llama.glob("*.safetensors"))[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Checkpoint.open(str(llama), home=tmp_path).manifest32 != original.manifest32


def test_progress_counts_the_bytes_of_the_span(llama):
    reports = []
    checkpoint = Checkpoint.open(str(llama), progress=lambda *report: reports.append(report))
    checkpoint.load_span(0, 2)
    assert reports[-1] == ("reading llama", checkpoint.span_bytes(0, 2), checkpoint.span_bytes(0, 2))


@pytest.mark.parametrize(("start", "end"), [(0, 5), (2, 2), (3, 1), (-1, 2), (4, 5)])
def test_a_range_outside_the_model_is_refused(start, end, llama):
    checkpoint = Checkpoint.open(str(llama))
    for ask in (checkpoint.load_span, checkpoint.span_bytes):
        with pytest.raises(BadBlocks, match=rf"blocks {start}:{end} are not in llama, which has 4"):
            ask(start, end)


def test_a_local_directory_wins_over_a_hub_id(llama, monkeypatch):
    (llama.parent / "org").mkdir()
    llama.rename(llama.parent / "org" / "llama")
    monkeypatch.chdir(llama.parent)
    assert Checkpoint.open("org/llama", endpoint="http://127.0.0.1:1").num_blocks == 4


@pytest.mark.parametrize("wrong", ["no-such-model", "./no/such", "/no/such/model", "", "a/b/c", "org/..name?"])
def test_a_model_that_is_nowhere_is_refused_in_one_sentence(wrong, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match="give a directory that holds") as caught:
        Checkpoint.open(wrong)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_place_of_a_directory_is_refused(whole):
    with pytest.raises(ModelNotFound, match="is a file: give the directory"):
        Checkpoint.open(str(whole / "model.safetensors"))


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        Checkpoint.open(str(tmp_path))


def test_pickled_weights_are_refused_with_the_mend(whole):
    (whole / "model.safetensors").rename(whole / "pytorch_model.bin")
    checkpoint = Checkpoint.open(str(whole))
    for ask in (checkpoint.tensor_names, checkpoint.load_client, lambda: checkpoint.manifest32):
        with pytest.raises(ModelNotFound, match="only safetensors are read, so convert"):
            ask()


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\x00"])
def test_a_config_that_is_no_json_object_is_refused(content, whole):
    (whole / "config.json").write_text(content)
    with pytest.raises(DamagedCheckpoint, match=r"config\.json is not .*fetch or copy the file again"):
        Checkpoint.open(str(whole))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "no_such_family"},
        {"model_type": None},
        {"auto_map": {"AutoConfig": "configuration_evil.Evil"}, "model_type": "evil"},
    ],
)
def test_a_family_that_transformers_does_not_hold_is_refused_without_running_its_code(change, whole):
    (whole / "configuration_evil.py").write_text("raise SystemExit('the code of the model ran')\n")
    config = json.loads((whole / "config.json").read_text()) | change
    (whole / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UnsupportedFamily, match="transformers cannot build whole"):
        Checkpoint.open(str(whole))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-7])


def garble(file):
    content = bytearray(file.read_bytes())
    content[8:24] = b"\xff" * 16
    file.write_bytes(content)


def lie_about_the_header(file):
    file.write_bytes(struct.pack("<Q", 2**40) + file.read_bytes()[8:])


def point_outside(file):
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    last = max((entry for name, entry in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"])
    last["shape"] = [last["shape"][0] + 64, *last["shape"][1:]]
    row_bytes = 4 * int(torch.Size(last["shape"][1:]).numel())
    last["data_offsets"][1] += 64 * row_bytes
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize(
    "damage", [truncate, garble, lie_about_the_header, point_outside, lambda file: file.write_bytes(b"")]
)
@pytest.mark.parametrize("form", ["whole", "llama"])
def test_a_damaged_weight_file_is_named_with_the_mend(damage, form, request):
    directory = request.getfixturevalue(form)
    for file in directory.glob("*.safetensors"):
        damage(file)
    checkpoint = Checkpoint.open(str(directory))
    for ask in (checkpoint.load_client, lambda: checkpoint.load_span(1, 2), lambda: checkpoint.span_bytes(0, 1)):
        with pytest.raises(
            DamagedCheckpoint, match=r"model.*\.safetensors .*: delete the file and fetch or copy it again$"
        ):
            ask()


def test_a_missing_shard_is_named_with_the_mend(llama):
    checkpoint = Checkpoint.open(str(llama))
    file = llama / checkpoint._file_of["model.layers.2.mlp.up_proj.weight"]
    file.unlink()
    with pytest.raises(
        DamagedCheckpoint, match=rf"{file.name} is missing from .*: fetch or copy the whole model again"
    ):
        checkpoint.load_span(2, 3)
    with pytest.raises(DamagedCheckpoint, match=file.name):
        _ = checkpoint.manifest32


def edit_index(directory, edit):
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


def test_an_index_that_names_an_absent_tensor_is_refused(llama):
    def move(weight_map):
        weight_map["model.layers.1.mlp.up_proj.weight"] = weight_map["model.norm.weight"]

    edit_index(llama, move)
    with pytest.raises(
        DamagedCheckpoint, match=r"says that 'model.layers.1.mlp.up_proj.weight' is in .*does not hold it"
    ):
        Checkpoint.open(str(llama)).load_span(1, 2)


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "weights.bin", 7, None, ".."]
)
def test_an_index_that_points_elsewhere_is_refused(file, llama):
    (llama.parent / "secret.safetensors").write_bytes(b"not for us")
    edit_index(llama, lambda weight_map: weight_map.update({"model.norm.weight": file}))
    with pytest.raises(DamagedCheckpoint, match="no safetensors file beside it"):
        Checkpoint.open(str(llama)).tensor_names()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_weight_map_is_refused(content, llama):
    (llama / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DamagedCheckpoint, match=r"index\.json (is not|has no weight_map)"):
        Checkpoint.open(str(llama)).tensor_names()


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("num_blocks", "what"), [(6, "asks for 6 blocks and block 4 is missing"), (3, "asks for 3 blocks and 4 are")]
)
def test_another_number_of_blocks_than_the_config_says_is_refused(num_blocks, what, llama):
    edit_config(llama, num_hidden_layers=num_blocks)
    checkpoint = Checkpoint.open(str(llama))
    for ask in (checkpoint.load_client, lambda: checkpoint.load_span(0, 1), lambda: checkpoint.span_bytes(0, 1)):
        with pytest.raises(ConfigMismatch, match=what):
            ask()


def test_shapes_that_the_config_does_not_build_are_refused(llama):
    edit_config(llama, intermediate_size=40)
    checkpoint = Checkpoint.open(str(llama))
    with pytest.raises(
        DamagedCheckpoint, match=r"disagree: .*mlp.* has the shape \[.*48.*\] where the config asks for \[.*40"
    ):
        checkpoint.load_span(0, 1)
    assert len(checkpoint.load_client()) == 3  # the client's part agrees


def test_an_embedding_of_another_vocabulary_is_refused(llama):
    edit_config(llama, vocab_size=65)
    checkpoint = Checkpoint.open(str(llama))
    with pytest.raises(ConfigMismatch, match=r"config\.json and the weights disagree"):
        checkpoint.load_client()


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_tensor_that_no_file_holds_is_refused(name, whole):
    tensors = load_file(whole / "model.safetensors")
    del tensors[name]
    save_file(tensors, whole / "model.safetensors")
    checkpoint = Checkpoint.open(str(whole))
    with pytest.raises(ConfigMismatch, match=rf"disagree: {name} is in no weight file"):
        checkpoint.load_client() if name == "lm_head.weight" else checkpoint.load_span(1, 2)


def test_a_tied_head_need_not_be_stored(saved):
    checkpoint = Checkpoint.open(str(saved("gemma2")[1] / "whole"))
    assert checkpoint.config.tie_word_embeddings
    assert "lm_head.weight" not in checkpoint.load_client()


def test_a_family_without_a_causal_model_is_refused(whole):
    (whole / "config.json").write_text(json.dumps({"model_type": "vit", "num_hidden_layers": 4}))
    with pytest.raises(UnsupportedFamily, match="no causal language model of the family 'vit'"):
        Checkpoint.open(str(whole)).load_client()


def test_quantised_checkpoints_are_not_compared_with_plain_shapes():
    config = LlamaConfig(**SIZES)
    assert expect_tensors(config) is not None
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert expect_tensors(config) is None


MEASURE_MEMORY = """
import json, sys
from node.model.checkpoint import Checkpoint

def memory_bytes(field):
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024

checkpoint = Checkpoint.open(sys.argv[1])
client = checkpoint.load_client()  # whatever is set up once is set up now
before, before_peak = memory_bytes("VmRSS"), memory_bytes("VmHWM")
span = checkpoint.load_span(2, 4)
print(json.dumps({
    "grown": memory_bytes("VmRSS") - before,
    "peak": memory_bytes("VmHWM") - max(before, before_peak),
    "span": checkpoint.span_bytes(2, 4),
    "tensor": max(tensor.nbytes for tensor in span.values()),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_resident_memory_grows_with_the_span_and_no_further(tmp_path):
    config = LlamaConfig(**SIZES | {"hidden_size": 1024}, intermediate_size=3072, num_key_value_heads=4)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    save_file(
        {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()},
        tmp_path / "model.safetensors",
    )
    config.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    assert measured["span"] > 50_000_000
    assert 0.95 * measured["span"] < measured["grown"] < 1.15 * measured["span"]
    assert measured["peak"] < 1.15 * measured["span"] + measured["tensor"]


@pytest.mark.skipif(not (ROOT / "node" / "embedded" / "config.json").exists(), reason="no embedded model in this tree")
def test_the_embedded_model_opens_by_its_word_from_any_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint.open("embedded")
    tensors = load_parts(checkpoint, [(0, checkpoint.num_blocks)])
    assert tensors.keys() == set(checkpoint.tensor_names())
    assert (checkpoint.name, checkpoint.tokenizer_dir) == ("embedded", ROOT / "node" / "embedded")
