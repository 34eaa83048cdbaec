"""The swarm that the tests of this folder share, and the models that they write."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.families import FAMILIES, build
from tests.processes import NodeProcess

NUM_BLOCKS = 6
MAX_SESSIONS = 8
"""Sessions that each server of the shared swarm takes: few, so that one not freed is missed."""
MAX_SESSIONS_OF_ONE = MAX_SESSIONS - 1
"""Sessions that one client may hold: an eighth is kept for clients that have none."""
_EMBEDDED = Path(__file__).parents[2] / "node" / "embedded"


def save_model(directory: Path, seed: int = 0, **values: Any) -> Any:
    """Write a small random llama that can use the embedded model's tokenizer; return it."""
    model = build(
        "llama", {**FAMILIES["llama"], "vocab_size": 4096, "num_hidden_layers": NUM_BLOCKS, **values}, seed=seed
    )
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_EMBEDDED / name, directory / name)
    return model


def change_config(directory: Path, **values: Any) -> None:
    """Change some values of a saved model's config."""
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@dataclass(frozen=True)
class SmallSwarm:
    """A private swarm in which two servers hold all blocks of one model."""

    join: str
    model: Path
    local: Any
    """transformers' own model."""
    remote: Any
    """A client's."""
    servers: list[NodeProcess]
    """Of blocks 0:3 and 3:6."""
    peers: list[str]
    """Their peer ids."""

    def still_serves(self) -> None:
        """Generate through the swarm as an honest client and compare with transformers."""
        ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
        settings = {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(self.remote.generate(ids, **settings), self.local.generate(ids, **settings))
