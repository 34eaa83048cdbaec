"""The model and the prompts that the benchmarks measure with: random weights at a fixed shape, from a seed.

Knows no swarm. Runs in the caller's thread.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

NUM_LAYERS = 8
HIDDEN_SIZE = 512
FIRST_TOKEN = 3
"""Prompts use no id below this one, because those mean something to a tokenizer."""


class SavedModel(NamedTuple):
    """A model as transformers runs it, and where its files are."""

    local: Any
    directory: Path
    scratch: Path
    """A directory for whatever the benchmark's processes write."""


@contextlib.contextmanager
def saved_model(*, vocab_size: int, seed: int, max_positions: int = 2048) -> Iterator[SavedModel]:
    """Make the model (8 layers, hidden 512, float32) with random weights and save it for as long as the context lasts.

    Args:
        vocab_size: rows of embeddings and head.
        seed: of the weights.
        max_positions: the longest text that the model takes.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=1408,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=max_positions,
        eos_token_id=None,
    )
    local = AutoModelForCausalLM.from_config(config).eval()
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-") as directory:
        scratch = Path(directory)
        local.save_pretrained(scratch / "model")
        yield SavedModel(local, scratch / "model", scratch)


def random_prompt(num_tokens: int, *, vocab_size: int, seed: int, batch: int = 1) -> torch.Tensor:
    """Draw token ids ``[batch, num_tokens]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_TOKEN, vocab_size, (batch, num_tokens), generator=generator)
