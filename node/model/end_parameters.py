"""Which parameters outside the blocks the two ends of a model use, told from its structure without any weight.

The model is built on the meta device and called once with a stand-in for its blocks: what is used before the stand-in
belongs to the entry (embeddings and what they pass through), what is used after it to the exit (final norm, head). No
family is named. ``asyncio.to_thread`` or any other thread: it takes as long as building the model without weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from node.model.span import on_meta
from node.model.tap import Tap
from node.model.trunk import Layers, find_trunk


@dataclass(frozen=True)
class EndParameters:
    """Names of parameters in the built model; a shared one (tied embeddings) stands there with all its names."""

    entry: frozenset[str]
    """Used on the way from token ids to the first block."""
    exit: frozenset[str]
    """Used on the way from the last block to the logits."""

    def of(self, *, embeds: bool, heads: bool) -> frozenset[str]:
        """Return the parameters of the ends that are wanted: the entry, the exit, or both."""
        return (self.entry if embeds else frozenset()) | (self.exit if heads else frozenset())


@torch.inference_mode()
def find_end_parameters(config: Any) -> EndParameters:
    """Run the model of ``config`` on the meta device and note what it uses on either side of its blocks.

    A family that cannot be run without values (it looks into its own masks, for example) is said to use every parameter
    at both ends: more is loaded than it needs, and nothing is missing.
    """
    config = copy.deepcopy(config)
    config.pad_token_id = None  # transformers would look for it among the ids.
    model = on_meta(AutoModelForCausalLM, config).eval()
    trunk, tap = find_trunk(model, config.num_hidden_layers), Tap()
    setattr(trunk.holder, trunk.name, Layers([tap]))
    before: set[int] = set()
    after: set[int] = set()

    def note(module: nn.Module, *_: Any) -> None:
        used = before if tap.seen is None else after
        used.update(id(parameter) for parameter in module.parameters(recurse=False))

    zero = torch.zeros((1, 1), dtype=torch.long, device="meta")
    named = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    try:
        tap.learn_output_of(model)
        for module in model.modules():
            module.register_forward_pre_hook(note)
        # An empty cache keeps transformers from searching the positions for packed texts, which takes values.
        model(input_ids=zero, position_ids=zero, past_key_values=DynamicCache(), use_cache=False)
    except (RuntimeError, NotImplementedError):  # torch's words for an operation that meta tensors cannot do
        return EndParameters(frozenset(named), frozenset(named))
    unseen = set(named.values()) - before - after  # used by no module of its own: either end may need it
    return EndParameters(
        entry=frozenset(name for name, parameter in named.items() if parameter in before | unseen),
        exit=frozenset(name for name, parameter in named.items() if parameter in after | unseen),
    )
