"""A span: consecutive transformer blocks of a model, run through transformers' own base model.

The model is built whole on the meta device (so that every layer is configured as in the whole model), trimmed to the
span before weights are attached, and called with ``inputs_embeds``: masks, rotary embeddings and sliding windows stay
transformers' code. Runs in the compute thread; knows neither sockets nor sessions.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from node.errors import ConfigMismatch, UnsupportedFamily
from node.model.arena import Buffers, KeyValueArena, LayerShape
from node.model.cache import ShapeProbe, SpanCache
from node.model.captured import CapturedCalls, CudaCapture
from node.model.dequantise import dequantise
from node.model.families import keeps_state
from node.model.packed import pack
from node.model.quantise import Scheme
from node.model.ragged import Part, RaggedAttention, attention_name
from node.model.state_cache import StateCache, StateSize
from node.model.state_step import forward_with_state, measure_state
from node.model.static_decode import StaticDecode
from node.model.trunk import Layers, Trunk, find_trunk, keep_only_layers, slice_config

logger = logging.getLogger(__name__)

_MAX_PROBED_WINDOW = 8192
"""A longer sliding window is not reached by the probe of batching, which would take its memory."""


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
        layers: tuple[LayerShape, ...],
        state: StateSize | None = None,
    ) -> None:
        self.start = start
        self.end = end
        self.dtype = dtype
        self.device = device
        self.layers = layers
        """What every layer keeps of one position of one row."""
        self.can_batch = False
        """Whether several sessions share a forward pass; otherwise they run one after the other."""
        self.state = state
        """What a session keeps where layers hold a state; None where they keep keys and values only."""
        self.static_decode: StaticDecode | None = None
        """Runs single tokens in static shapes; None: they go the way of all others."""
        self._model = model
        self._trunk = trunk
        self._config = config
        self._ragged = RaggedAttention(model, _configs_of(model), attention_name(config))
        self._views: dict[tuple[int, int], Span] = {(start, end): self}

    @property
    def cache_bytes_per_position(self) -> int:
        """Bytes that one position of one row takes in the cache."""
        if self.state is not None:
            return self.state.charged_position_bytes
        num_elements = sum(layer.num_elements for layer in self.layers)
        return num_elements * int(self.dtype.itemsize)

    @property
    def state_positions(self) -> int:
        """Positions that each row takes in the cache besides those of its text."""
        return self.state.row_positions if self.state is not None else 0

    def new_arena(self, num_positions: int) -> KeyValueArena:
        """Return memory for ``num_positions`` positions of all sessions together."""
        return KeyValueArena(self.layers, num_positions, dtype=self.dtype, device=self.device)

    def new_cache(self, max_length: int, rows: int = 1, buffers: Buffers | None = None) -> SpanCache | StateCache:
        """Return an empty cache for one session.

        Args:
            max_length: positions that it may reach.
            rows: rows of the session.
            buffers: a slot of an arena of the span that this one is a view of; None: memory of its own.
        """
        if self.state is not None:
            return StateCache(self._config)
        if buffers is None:
            buffers = self.new_arena(rows * max_length).place(0, rows, max_length)
        return SpanCache(self.start, buffers)

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
        shapes = self.layers[first:last]
        view = Span(model, trunk, start, end, self._config, self.dtype, self.device, shapes, self.state)
        view.can_batch, view._ragged.expands_history = self.can_batch, self._ragged.expands_history
        if self.static_decode is not None:
            view.static_decode = view._new_static_decode(self.static_decode.calls)
        return view

    def _new_static_decode(self, calls: CapturedCalls | None) -> StaticDecode:
        largest = max((layer.num_elements for layer in self.layers), default=0) * int(self.dtype.itemsize)
        return StaticDecode(self._model, _configs_of(self._model), self._ragged.own, self.start, largest, calls)

    def find_static_decode(self, config: Any) -> None:
        """Try whether single tokens can be run in static shapes, captured where the device does that.

        Called once, before there are views, where it pays: a CPU, which has nothing to capture, decodes faster without.
        """
        calls = CapturedCalls(CudaCapture(self.device)) if self.device.type == "cuda" else None
        self.static_decode = self._new_static_decode(calls)
        if not _can_decode_statically(self, config):
            self.static_decode = None

    def find_batching(self, config: Any) -> None:
        """Try whether sessions can share a forward pass, and how; called once, when the span is built."""
        for self._ragged.expands_history in (False, True):
            if _can_batch(self, config):
                self.can_batch = True
                return
        self.can_batch = False

    @contextlib.contextmanager
    def looking(self, look: Callable[[], None]) -> Iterator[None]:
        """Call ``look`` before each module of the blocks computes; what it raises ends the forward pass."""
        modules = [module for layer in self._trunk.layers for module in layer.modules()]
        hooks = [module.register_forward_pre_hook(lambda *_: look()) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.inference_mode()
    def forward_many(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """Run steps of different sessions in one forward pass, or one by one where the family does not allow it.

        This alone decides which way parts take: in static shapes, side by side, or one by one.

        Returns:
            ``[rows, positions, hidden]`` for each part, equal to ``forward`` of it up to rounding.
        """
        if self.static_decode is not None and self.static_decode.can_decode(parts):
            try:
                return self.static_decode.forward(parts)
            except torch.OutOfMemoryError:
                logger.info("Memory is short for a step in static shapes; it takes the other way", exc_info=True)
            except RuntimeError:  # What a graph cannot hold; the histories are as they were.
                logger.warning("Decoding in static shapes failed; it is given up", exc_info=True)
                self.static_decode = None
        if len(parts) == 1 or not self.can_batch:
            return [self.forward(part.hidden, part.cache, part.padding) for part in parts]
        return self._ragged.forward(parts)

    @torch.inference_mode()
    def forward(
        self, hidden: torch.Tensor, cache: SpanCache | StateCache, left_padding: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run one step behind the cache's history and append it to the history.

        Args:
            hidden: ``[batch, seq, hidden]`` in the span's dtype, on its device.
            cache: the session's cache, made by ``new_cache``.
            left_padding: ``[batch]`` number of padding positions at the start of each row, or None for none.

        Returns:
            ``[batch, seq, hidden]``, what the last block of the span gives.
        """
        if isinstance(cache, StateCache):
            return forward_with_state(self._model, hidden, cache, left_padding)
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
    config: Any,
    tensors: dict[str, torch.Tensor],
    start: int,
    end: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    packs: bool = True,
) -> Span:
    """Build the blocks ``[start, end)`` of the model that ``config`` describes.

    Args:
        config: transformers' config of the whole model.
        tensors: the span's tensors in the checkpoint's own naming, the block ``start`` numbered 0.
        start: first block.
        end: one past the last block.
        dtype: dtype of weights and activations.
        device: where the span computes.
        packs: whether weights are laid out anew for speed where that is known to help (``node.model.packed``).

    Raises:
        UnsupportedFamily: the model is not a plain chain of layers, or changes what enters the first one.
        ConfigMismatch: tensors are missing, unexpected, or of another shape than the config asks for.
    """
    config = _for_serving(config)
    model = _load_blocks(config, tensors, start, end, dtype)
    return _make_span(model.to(device), start, end, dtype, device, packs=packs)


def build_quantised_span(
    config: Any,
    load_block: Callable[[int], dict[str, torch.Tensor]],
    start: int,
    end: int,
    *,
    scheme: Scheme,
    dtype: torch.dtype,
    device: torch.device,
) -> Span:
    """Build the blocks ``[start, end)`` with quantised weights, holding one block at a time as it was stored.

    Args:
        config: transformers' config of the whole model.
        load_block: gives the tensors of one block in the checkpoint's own naming, the block numbered 0.
        start: first block.
        end: one past the last block.
        scheme: how weights are held.
        dtype: dtype of everything else, and of activations.
        device: where the span computes.

    Raises:
        UnsupportedFamily, ConfigMismatch: as in ``build_span``.
    """
    config = _for_serving(config)
    quantization = scheme.loader_config(config)
    models = [
        _load_blocks(config, load_block(block), block, block + 1, dtype, quantization).to(device)
        for block in range(start, end)
    ]
    return _make_span(_join_blocks(models), start, end, dtype, device)


def build_dequantised_span(
    config: Any,
    load_block: Callable[[int], dict[str, torch.Tensor]],
    start: int,
    end: int,
    *,
    scheme: Scheme,
    device: torch.device,
) -> Span:
    """Build the blocks ``[start, end)`` in float32, on the numbers that their quantised weights stand for.

    Args:
        config: transformers' config of the whole model.
        load_block: gives the tensors of one block, as for ``build_quantised_span``, on the CPU.
        start: first block.
        end: one past the last block.
        scheme: how a server would hold the weights; quantised on the CPU here, whatever ``device`` is.
        device: where the span computes.

    Raises:
        UnsupportedFamily, ConfigMismatch: as in ``build_span``.
    """
    config = _for_serving(config)
    quantization = scheme.loader_config(config)
    models = []
    for block in range(start, end):
        dtype = scheme.dtype or torch.float32
        models.append(_load_blocks(config, load_block(block), block, block + 1, dtype, quantization))
        dequantise(models[-1])
    return _make_span(_join_blocks(models).to(device), start, end, torch.float32, device)


def _join_blocks(models: Sequence[nn.Module]) -> nn.Module:
    """Return the first of ``models``, of one block each, with the blocks of all."""
    trunk = find_trunk(models[0], 1)
    setattr(trunk.holder, trunk.name, Layers([find_trunk(model, 1).layers[0] for model in models]))
    return models[0]


def _for_serving(config: Any) -> Any:
    config = copy.deepcopy(config)
    config.use_cache = True
    return config


def _load_blocks(
    config: Any,
    tensors: dict[str, torch.Tensor],
    start: int,
    end: int,
    dtype: torch.dtype,
    quantization: Any | None = None,
) -> nn.Module:
    """Build the base model trimmed to the blocks ``[start, end)`` and let transformers load their tensors."""
    config = copy.deepcopy(config)  # The loader writes into it how it has quantised.
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
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype,
        quantization_config=quantization,
        output_loading_info=True,
    )
    check_loaded(info, f"blocks {start}:{end}")
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def _make_span(
    model: nn.Module, start: int, end: int, dtype: torch.dtype, device: torch.device, *, packs: bool = True
) -> Span:
    """Check what the loaded ``model`` computes, and learn what it keeps of a position."""
    trunk = find_trunk(model, end - start)
    # The loader has written into it how attention is computed, which masks depend on. A copy, because views are made of
    # it while a batch may have put its own name for attention into the layers' config.
    config = copy.deepcopy(model.config)
    _set_config(model, slice_config(config, start, end))
    _probe_identity(model, trunk, config)
    if packs:
        pack(model)
    if keeps_state(config):
        state = measure_state(model, config, dtype, device)
        return Span(model, trunk, start, end, config, dtype, device, (), state)
    shapes = _probe_shapes(model, config, dtype, device)
    span = Span(model, trunk, start, end, config, dtype, device, shapes)
    span.find_batching(config)
    if device.type == "cuda":
        span.find_static_decode(config)
    return span


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
        positions = torch.arange(3, device=hidden.device).unsqueeze(0)
        output = model(inputs_embeds=hidden, position_ids=positions, use_cache=False)
    finally:
        setattr(trunk.holder, trunk.name, layers)
    if not torch.equal(output.last_hidden_state, hidden):
        raise UnsupportedFamily(
            f"The family {config.model_type} changes hidden states outside its layers, so it cannot be split into "
            "spans; choose a model of a family that `efedllm doctor` lists."
        )


def _configs_of(model: nn.Module) -> list[Any]:
    """Return every config object that a module of ``model`` looks at, the model's own first."""
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return list(found.values())


@torch.inference_mode()
def _probe_shapes(model: nn.Module, config: Any, dtype: torch.dtype, device: torch.device) -> tuple[LayerShape, ...]:
    """Learn what each layer keeps of one position, by running one token."""
    probe = ShapeProbe()
    hidden = torch.zeros((1, 1, config.hidden_size), dtype=dtype, device=device)
    position = torch.zeros((1, 1), dtype=torch.long, device=device)
    model(inputs_embeds=hidden, position_ids=position, past_key_values=probe, use_cache=True)
    return probe.shapes


@torch.inference_mode()
def _can_batch(span: Span, config: Any) -> bool:
    """Say whether two sessions in one forward pass get what each gets alone, sliding windows and all."""
    window = getattr(config, "sliding_window", None) or 0
    lengths = (min(window, _MAX_PROBED_WINDOW) + 5, 3, 6)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device=span.device, dtype=span.dtype)

    parts, twins = [], []
    for length, rows, count in zip(lengths, (1, 1, 2), (1, 1, 4), strict=True):
        caches = [span.new_cache(length + count, rows) for _ in range(2)]
        _remember_the_same(caches, length, random)
        hidden = random(rows, count, config.hidden_size)
        padding = torch.tensor([0, 2], device=span.device) if count > 1 else None
        parts.append(Part(hidden, caches[0], padding))
        twins.append(Part(hidden, caches[1], padding))
    alone = [span.forward(part.hidden, part.cache, part.padding) for part in twins]
    span.can_batch = True
    with contextlib.suppress(Exception):  # Whatever a family does with what we hand it, it only means no.
        return _agree(span.forward_many(parts), alone)
    return False


@torch.inference_mode()
def _can_decode_statically(span: Span, config: Any) -> bool:
    """Say whether single tokens of two sessions in static shapes get what each gets alone, sliding windows and all."""
    if span.state is not None or span.static_decode is None:
        return False
    window = getattr(config, "sliding_window", None) or 0
    lengths = (min(window, _MAX_PROBED_WINDOW) + 5, 3)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device=span.device, dtype=span.dtype)

    arena, start = span.new_arena(2 * (sum(lengths) + 2)), 0
    parts, alone = [], []
    for length in lengths:
        mine = span.new_cache(length + 1, 2, arena.place(start, 2, length + 1))
        its = span.new_cache(length + 1, 2)
        start += 2 * (length + 1)
        _remember_the_same([mine, its], length, random)
        parts.append(Part(random(2, 1, config.hidden_size), mine))
        alone.append(span.forward(parts[-1].hidden, its))
    with contextlib.suppress(Exception):  # Whatever a family or a device does with it, it only means no.
        return span.static_decode.can_decode(parts) and _agree(span.static_decode.forward(parts), alone)
    return False


def _remember_the_same(caches: Sequence[SpanCache], length: int, random: Callable[..., torch.Tensor]) -> None:
    """Give new caches the same history of ``length`` positions."""
    first, *others = caches
    for index, pair in enumerate(first.buffers):
        for which, one in enumerate(pair):
            one.copy_(random(*one.shape))
            for other in others:
                other.buffers[index][which].copy_(one)
    for cache in caches:
        cache.advance(length)


def _agree(together: Sequence[torch.Tensor], alone: Sequence[torch.Tensor]) -> bool:
    """Say whether every part got what it got alone, up to rounding."""
    scale = max(float(part.abs().max()) for part in alone)
    tolerance = scale * (1e-4 if alone[0].dtype == torch.float32 else 5e-2)
    return all(torch.allclose(one, other, atol=tolerance, rtol=0) for one, other in zip(together, alone, strict=True))
