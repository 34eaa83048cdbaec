"""A span: consecutive transformer blocks of a model, run through transformers' own base model.

The model is built whole on the meta device (so that every layer is configured as in the whole model), trimmed to the
span before weights are attached, and called with ``inputs_embeds``: masks, rotary embeddings and sliding windows stay
transformers' code. Runs in the compute thread; knows neither sockets nor sessions.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from node.errors import ConfigMismatch, UnsupportedFamily
from node.model.cache import SpanCache
from node.model.packed import pack_linears
from node.model.trunk import Layers, Trunk, find_trunk, keep_only_layers, slice_config


class Span:
    """The blocks ``[start, end)`` of a model, ready to compute."""

    def __init__(
        self,
        model: nn.Module,
        trunk: Trunk,
        start: int,
        end: int,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.start = start
        self.end = end
        self.dtype = dtype
        self.device = device
        self._model = model
        self._trunk = trunk
        self._config = config
        self._views: dict[tuple[int, int], Span] = {(start, end): self}

    def new_cache(self, max_length: int) -> SpanCache:
        """Return an empty cache for one session of at most ``max_length`` positions."""
        return SpanCache(self.start, self.end - self.start, max_length)

    def view(self, start: int, end: int) -> Span:
        """Return the blocks ``[start, end)`` of this span, sharing its weights."""
        if (start, end) not in self._views:
            self._views[start, end] = self._make_view(start, end)
        return self._views[start, end]

    def _make_view(self, start: int, end: int) -> Span:
        assert self.start <= start < end <= self.end
        model = _copy_module_tree(self._model, self._trunk.path)
        parent, _, name = self._trunk.path.rpartition(".")
        holder = model.get_submodule(parent)
        trunk = Trunk(holder, self._trunk.path, name)
        first, last = start - self.start, end - self.start
        setattr(holder, name, Layers(list(trunk.layers)[first:last]))
        _set_config(model, slice_config(self._config, start, end))
        return Span(model, trunk, start, end, self._config, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, hidden: torch.Tensor, cache: SpanCache, left_padding: torch.Tensor | None = None) -> torch.Tensor:
        """Run one step behind the cache's history and append it to the history.

        Args:
            hidden: ``[batch, seq, hidden]`` in the span's dtype, on its device.
            cache: the session's cache, made by ``new_cache``.
            left_padding: ``[batch]`` number of padding positions at the start of each row, or None for none.

        Returns:
            ``[batch, seq, hidden]``, what the last block of the span gives.
        """
        num_tokens = hidden.shape[1]
        total = cache.length + num_tokens
        positions = torch.arange(cache.length, total, device=hidden.device).unsqueeze(0)
        mask = None
        if left_padding is not None:
            column = left_padding.unsqueeze(1)
            mask = (torch.arange(total, device=hidden.device).unsqueeze(0) >= column).long()
            positions = (positions - column).clamp_min(0)
        output = self._model(
            inputs_embeds=hidden,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        cache.advance(num_tokens)
        return output


def build_span(
    config: Any, tensors: dict[str, torch.Tensor], start: int, end: int, *, dtype: torch.dtype, device: torch.device
) -> Span:
    """Build the blocks ``[start, end)`` of the model that ``config`` describes.

    Args:
        config: transformers' config of the whole model.
        tensors: the span's tensors in the checkpoint's own naming, the block ``start`` numbered 0.
        start: first block.
        end: one past the last block.
        dtype: dtype of weights and activations.
        device: where the span computes.

    Raises:
        UnsupportedFamily: the model is not a plain chain of layers, or changes what enters the first one.
        ConfigMismatch: tensors are missing, unexpected, or of another shape than the config asks for.
    """
    config = copy.deepcopy(config)
    config.use_cache = True
    base_class = type(on_meta(AutoModel, config))
    num_blocks = config.num_hidden_layers

    class TrimmedModel(base_class):  # type: ignore[misc, valid-type]
        """The base model without what the span does not hold."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            keep_only_layers(find_trunk(self, num_blocks), start, end)

    # transformers finds its checkpoint conversions (fused experts) by class name, for classes of its own modules only.
    TrimmedModel.__name__, TrimmedModel.__module__ = base_class.__name__, base_class.__module__
    model, info = TrimmedModel.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )
    check_loaded(info, f"blocks {start}:{end}")
    model.eval().requires_grad_(False).to(device)
    trunk = find_trunk(model, end - start)
    _set_config(model, slice_config(config, start, end))
    _probe_identity(model, trunk, config)
    pack_linears(model)
    return Span(model, trunk, start, end, config, dtype, device)


def on_meta(auto_class: Any, config: Any) -> nn.Module:
    """Build the model of ``config`` without weights, to learn its class and structure."""
    with torch.device("meta"):
        model: nn.Module = auto_class.from_config(config)
    return model


def _set_config(model: nn.Module, config: Any) -> None:
    """Give ``config`` to the modules around the layers; the layers keep the whole model's."""
    model.config = config
    for child in model.children():
        if hasattr(child, "config") and not isinstance(child, nn.ModuleList):
            child.config = config


def check_loaded(info: dict[str, Any], what: str) -> None:
    """Raise ``ConfigMismatch`` unless transformers' loader found exactly the tensors that it asked for."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    for problem, names in (("lacks", missing), ("does not expect", unexpected), ("has another shape for", mismatched)):
        if names:
            raise ConfigMismatch(
                f"Config and weights disagree for {what}: the checkpoint {problem} {names[0]} "
                f"({len(names)} tensors in all); download or convert the model again."
            )


def _copy_module_tree(model: nn.Module, path: str) -> nn.Module:
    """Copy ``model`` and the modules on the way to ``path``, sharing everything else."""
    copied = copy.copy(model)
    copied._modules = dict(model._modules)  # noqa: SLF001 - a shallow module copy has no public spelling
    head, _, rest = path.partition(".")
    if rest:
        setattr(copied, head, _copy_module_tree(model.get_submodule(head), rest))
    return copied


@torch.inference_mode()
def _probe_identity(model: nn.Module, trunk: Trunk, config: Any) -> None:
    """Check that the trunk without its layers hands its input through unchanged."""
    layers = trunk.layers
    setattr(trunk.holder, trunk.name, nn.ModuleList())
    parameter = next(layers.parameters())
    hidden = torch.linspace(-1, 1, 2 * 3 * config.hidden_size, device=parameter.device, dtype=parameter.dtype)
    hidden = hidden.reshape(2, 3, config.hidden_size)
    try:
        output = model(inputs_embeds=hidden, position_ids=torch.arange(3, device=hidden.device).unsqueeze(0))
    finally:
        setattr(trunk.holder, trunk.name, layers)
    if not torch.equal(output.last_hidden_state, hidden):
        raise UnsupportedFamily(
            f"The family {config.model_type} changes hidden states outside its layers, so it cannot be split into "
            "spans; choose a model of a family that `efedllm doctor` lists."
        )
