"""Find and reshape the trunk of a transformers model: the list of its decoder layers and what stands around it.

Knows module trees only: no weights, no sockets, no thread of its own. Nothing here names a model family; the
structure is read off the built modules, and whoever reshapes a trunk must probe the result (see ``span``, ``remote``).
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from node.errors import UnsupportedFamily

# Attributes of a trunk that scale what enters the first layer in families that do so in ``forward``; a server gets
# hidden states that the client has already scaled.
_ENTRY_SCALES = ("embedding_multiplier", "scale_emb")

# Linear maps of a layer that multiplies with their weight itself instead of calling them.
_READ_LINEARS = ("dt_proj",)

_PER_LAYER = ("types", "layers", "kinds", "block_type")
"""How the names of a config's lists with one entry per layer end."""


@dataclass(frozen=True)
class Trunk:
    """Where a model keeps its decoder layers."""

    holder: nn.Module
    """The module whose child is the layer list, for example ``LlamaModel`` or ``OPTDecoder``."""
    path: str
    """Dotted path of the layer list from the model's root, for example ``model.layers``."""
    name: str
    """Attribute of ``holder`` that is the layer list, for example ``layers`` or ``h``."""

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        layers = self.holder.get_submodule(self.name)
        assert isinstance(layers, nn.ModuleList)
        return layers


def find_trunk(model: nn.Module, num_blocks: int) -> Trunk:
    """Locate the one ``ModuleList`` of ``num_blocks`` entries nearest to the root.

    Raises:
        UnsupportedFamily: there is none, or more than one at the same depth.
    """
    found = [
        (path.count("."), path)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks
    ]
    depths = [depth for depth, _ in found]
    if not found or depths.count(min(depths)) != 1:
        raise UnsupportedFamily(
            f"{type(model).__name__} does not keep its {num_blocks} layers in one list, so it cannot be split into "
            "spans; choose a model of a family that `efedllm doctor` lists."
        )
    path = min(found)[1]
    parent, _, name = path.rpartition(".")
    return Trunk(model.get_submodule(parent), path, name)


class Layers(nn.ModuleList):
    """A layer list whose whole slice is itself: families slice theirs on every forward, which builds a new list."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self
        return super().__getitem__(index)


class NoPositions(nn.Module):
    """Stand in for learned position embeddings on a server: the client has added them already."""

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """Return a scalar zero, which adds nothing to any hidden states."""
        return torch.zeros(())


class ReadLinear(nn.Linear):
    """A linear layer whose weight is read by the module around it, so that it must not be laid out otherwise."""


def keep_only_layers(trunk: Trunk, start: int, end: int) -> None:
    """Make everything around the layers the identity and keep the layers ``[start, end)``.

    Rotary embeddings (no parameters) stay: every layer needs them. Embeddings become ``NoPositions`` (never called
    with ``inputs_embeds``, or positional), norms and modules with parameters (projections) become ``nn.Identity``.
    """
    holder = trunk.holder
    for name, child in list(holder.named_children()):
        if name == trunk.name:
            continue
        if isinstance(child, nn.Embedding):
            setattr(holder, name, NoPositions())
        elif "Norm" in type(child).__name__ or any(True for _ in child.parameters()):
            setattr(holder, name, nn.Identity())
    for scale in _ENTRY_SCALES:
        if hasattr(holder, scale):
            setattr(holder, scale, 1.0)
    kept = Layers(list(trunk.layers)[start:end])
    for path, child in kept.named_modules():
        if path.endswith(_READ_LINEARS) and type(child) is nn.Linear:
            child.__class__ = ReadLinear
    setattr(holder, trunk.name, kept)


def slice_config(config: Any, start: int, end: int) -> Any:
    """Copy ``config`` so that the forward pass of a trimmed trunk sees the layers ``[start, end)`` and no others."""
    sliced = copy.deepcopy(config)
    properties = [name for name, member in inspect.getmembers_static(type(config)) if isinstance(member, property)]
    parts = {
        name: value[start:end]
        for name in [*vars(config), *properties]
        if name.endswith(_PER_LAYER)
        and isinstance(value := getattr(config, name), list)
        and len(value) == config.num_hidden_layers
    }
    for name in parts.keys() & vars(sliced).keys():
        object.__setattr__(sliced, name, parts[name])
    # Some families compute such a list from the number of layers; a class of its own holds the part instead.
    computed = {name: part for name, part in parts.items() if name in properties}
    if computed:
        sliced.__class__ = type(type(config).__name__, (type(config),), computed)
    object.__setattr__(sliced, "num_hidden_layers", end - start)
    return sliced
