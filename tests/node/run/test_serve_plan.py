"""What doctor says that a server would do is what it does."""

import pytest
import torch
from transformers import CONFIG_MAPPING

from node.errors import BadBlocks, DoesNotFit, UserError
from node.model.checkpoint import Checkpoint
from node.run.join_forecast import active_share, block_work
from node.run.serve_plan import Wanted, fit, plan_serving, weigh
from node.serve.placement import MIB, WORKING_BYTES
from tests.families import FAMILIES, build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def embedded():
    return Checkpoint.open("embedded")


def plan(checkpoint, wanted):
    said = []
    return plan_serving(wanted, checkpoint, said.append), said


def test_a_span_asked_for_is_planned_as_it_is(embedded):
    found, said = plan(embedded, Wanted(blocks="2:5", max_memory_bytes=WORKING_BYTES + 40 * MIB))
    assert (found.span, found.memory.num_blocks, found.memory.usable_bytes) == ((2, 5), 3, 40 * MIB)
    assert found.memory.end_bytes == 0
    assert said == []


def test_ends_give_way_to_blocks_and_it_is_said(embedded):
    largest = max(weigh(Wanted(), embedded, CPU).block_bytes)
    found, said = plan(embedded, Wanted(num_blocks=4, max_memory_bytes=WORKING_BYTES + 4 * largest + MIB))
    assert found.ends is None
    assert "do not fit beside the blocks" in said[0]


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_the_table_says_what_the_server_would_plan(embedded, quantize):
    wanted = Wanted(quantize=quantize, max_memory_bytes=WORKING_BYTES + 9 * MIB)
    weights, found = fit(wanted, embedded, quantize)
    planned, _ = plan(embedded, wanted)
    assert found.plan == planned.memory
    assert weights == planned.weights
    assert weights.held_in == (quantize or "float32")


def test_what_does_not_fit_is_refused_by_both(embedded):
    wanted = Wanted(num_blocks=8, max_memory_bytes=WORKING_BYTES + 5 * MIB)
    assert fit(wanted, embedded, None)[1].plan is None
    with pytest.raises(DoesNotFit):
        plan(embedded, wanted)
    assert fit(wanted, embedded, "int4")[1].plan is not None


@pytest.mark.parametrize("wanted", [Wanted(blocks="7:9"), Wanted(num_blocks=9)])
def test_blocks_outside_the_model_are_refused(embedded, wanted):
    with pytest.raises(BadBlocks):
        plan(embedded, wanted)


def test_int4_with_another_dtype_is_refused(embedded):
    with pytest.raises(UserError, match="bfloat16 only"):
        fit(Wanted(dtype="float32"), embedded, "int4")


def test_a_token_reads_all_weights_of_dense_blocks_and_multiplies_each_once(embedded):
    sizes = weigh(Wanted(), embedded, CPU).block_bytes
    work = block_work(embedded, sizes)
    assert [block.read_bytes for block in work] == list(sizes)
    assert [block.flops for block in work] == [size / 2 for size in sizes]


def test_a_token_reads_the_experts_that_it_passes(tmp_path):
    build("mixtral", FAMILIES["mixtral"]).save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(str(tmp_path))
    sizes = weigh(Wanted(), checkpoint, CPU).block_bytes
    experts = sum(size for name, size in checkpoint.tensor_bytes().items() if ".experts." in name) / len(sizes)
    assert experts > 0
    passed, all_experts = FAMILIES["mixtral"]["num_experts_per_tok"], FAMILIES["mixtral"]["num_local_experts"]
    for block, size in zip(block_work(checkpoint, sizes), sizes, strict=True):
        assert block.read_bytes == pytest.approx(size - experts * (1 - passed / all_experts), abs=1)


@pytest.mark.parametrize(
    ("family", "share"), [("llama", 1), ("mixtral", 0.5), ("qwen3_moe", 0.5), ("deepseek_v3", 0.5)]
)
def test_the_share_of_experts_stands_in_the_config(family, share):
    assert active_share(CONFIG_MAPPING[family](**FAMILIES[family])) == share
