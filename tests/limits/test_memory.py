"""No server holds more than its span: what it keeps in memory grows with its blocks, byte for byte."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.limits.commands import resident_bytes
from tests.processes import servers

NUM_BLOCKS = 4


@pytest.fixture
def large_blocks(tmp_path: Path) -> Iterator[Path]:
    """A llama with blocks of about 100 MB in float32, a shard for each; removed at once afterwards."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=2048, intermediate_size=1344, num_hidden_layers=NUM_BLOCKS, num_attention_heads=16
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    directory = tmp_path / "large"
    model.save_pretrained(directory, max_shard_size="105MB")
    del model
    yield directory
    for file in directory.iterdir():
        file.unlink()


def _block_bytes() -> int:
    attention, mlp, norms = 4 * 2048 * 2048, 3 * 2048 * 1344, 2 * 2048
    return 4 * (attention + mlp + norms)


def test_memory_grows_with_the_span_within_15_percent(large_blocks: Path, join: str, tmp_path: Path):
    assert 95e6 < _block_bytes() < 105e6
    with servers(large_blocks, join, [(0, 1), (1, 4)], tmp_path, "--num-threads", "1") as (one, three):
        grown_bytes = resident_bytes(three.pid) - resident_bytes(one.pid)
    assert grown_bytes == pytest.approx(2 * _block_bytes(), rel=0.15)
