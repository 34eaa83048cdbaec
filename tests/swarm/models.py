"""Models for the swarms of these tests: random weights on disk, with a tokenizer of one character a token."""

import copy
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from tests.families import NUM_BLOCKS, VOCABULARY, build

SPANS = ((0, 2), (2, 3), (3, 4))
"""Blocks of the three servers that a model is spread over."""

LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""Grouped attention, tied embeddings, and wide enough that a prompt of 3,000 tokens travels in several steps."""

_SPECIAL = ("<pad>", "<begin>", "<end>")
_LETTERS = [*string.printable[:95], *map(chr, range(0xC0, 0xC0 + VOCABULARY - 95 - len(_SPECIAL)))]


def save(directory: Path, family: str, values: dict[str, Any], *, seed: int = 0) -> Any:
    """Write a random model with its tokenizer into ``directory`` and return the model itself."""
    local = build(family, values, seed)
    local.save_pretrained(directory)
    character_tokenizer().save_pretrained(directory)
    return local


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which every id is one printable character, so that text shows which tokens came."""
    tokens = [*_SPECIAL, *_LETTERS]
    assert len(set(tokens)) == VOCABULARY
    tokenizer = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<begin>", eos_token="<end>", padding_side="left"
    )


def noisy_copy(model: Any) -> Any:
    """Return a copy of ``model`` with some noise: as an assistant it drafts well, and not always."""
    assistant = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    assistant.generation_config.num_assistant_tokens = 3
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant
