"""Several sessions in one forward pass: their new tokens side by side, each attending to its own history.

The tokens of all parts stand in one row, ``[1, tokens, hidden]``: linear layers, norms and experts see them together,
which is where the time goes. Attention runs part by part, on each session's own keys and values, without padding.
transformers lets a model name its attention function; ours knows the parts. Used by the compute thread only.

    part     a (1 row, 1 token)   b (2 rows, 1 token)   c (1 row, 3 tokens)
    packed   [ a0 | b0 b1 | c0 c1 c2 ]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from node.model.named_attention import name_attention

Attention: TypeAlias = Callable[..., tuple[torch.Tensor, Any]]

_PLAIN_OPTIONS = frozenset({"dropout", "position_ids", "scaling", "sliding_window", "use_cache"})
"""Of the options that families pass to their attention, those that leave one token's to torch's kernel alone."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Part:
    """What one session contributes to a forward pass."""

    hidden: torch.Tensor
    """``[rows, positions, hidden]`` new tokens."""
    cache: Any
    """The session's cache: a ``SpanCache``, or what its family needs instead."""
    padding: torch.Tensor | None = None
    """``[rows]`` padding positions at the start of each row, or None."""


class RaggedAttention:
    """Makes the layers of one model attend part by part while a batch is bound to it.

    Between batches the model computes as transformers made it.

    Args:
        model: a base model, trimmed to a span.
        configs: every config object that its modules look at.
        own: the attention that they name between batches. Not read from them: a batch may be bound to a span whose
            configs these are too.
        expands_history: whether the family works on what its cache returns before it attends, as latent attention
            does: the histories of all parts then go through the layer together, at the price of a copy.
    """

    def __init__(self, model: Any, configs: Sequence[Any], own: str | None, *, expands_history: bool = False) -> None:
        self.own = own
        self.expands_history = expands_history
        self._model = model
        self._configs = list(configs)
        self._name = f"efedllm_ragged_{next(_numbers)}"
        self._batch: _Batch | None = None
        name_attention(self._name, self._attend)

    def forward(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """Run the new tokens of ``parts`` and append them to their histories.

        Returns:
            ``[rows, positions, hidden]`` for each part.
        """
        batch = self._batch = _Batch(parts, expands_history=self.expands_history)
        hidden = torch.cat([part.hidden.reshape(1, -1, part.hidden.shape[2]) for part in parts], dim=1)
        try:
            self._name_attention(self._name)
            output = self._model(
                inputs_embeds=hidden, position_ids=batch.positions(hidden.device), past_key_values=batch, use_cache=True
            ).last_hidden_state
        finally:
            self._name_attention(self.own)
            self._batch = None
        for part in parts:
            part.cache.advance(part.hidden.shape[1])
        return [
            output[:, first:last].reshape(part.hidden.shape)
            for part, (first, last) in zip(parts, batch.bounds, strict=True)
        ]

    def _name_attention(self, name: str | None) -> None:
        for config in self._configs:
            config._attn_implementation_internal = name  # noqa: SLF001 - the public setter walks all sub-configs

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute attention: ``[1, heads, tokens, dim]`` to ``[1, tokens, heads, dim]``, transformers' interface."""
        del attention_mask  # The batch knows what each part sees.
        assert self._batch is not None
        if self.expands_history:
            self._batch.split_histories(key, value)
        is_eager = self.own in (None, "eager")
        attention = _eager_attention(module) if is_eager else ALL_ATTENTION_FUNCTIONS[self.own]
        return self._batch.attend(attention, module, query, options, adds_mask=is_eager), None


class _Batch(Cache):
    """The cache of several sessions at once, for one forward pass."""

    def __init__(self, parts: Sequence[Part], *, expands_history: bool) -> None:
        super().__init__(layers=[])
        self._parts = parts
        self._expands_history = expands_history
        ends = list(itertools.accumulate(part.hidden.shape[0] * part.hidden.shape[1] for part in parts))
        self.bounds = list(zip([0, *ends[:-1]], ends, strict=True))
        """First token of every part, and one past its last."""
        self._sizes = [last - first for first, last in self.bounds]
        self._views: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Keys and values of every part in the layer that was written last, with their histories."""
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return ``[1, tokens]``: the position of every token in its own text, padding left out."""
        numbers: list[int] = []
        for part in self._parts:
            rows, count = part.hidden.shape[:2]
            first = part.cache.length
            for padding in [0] * rows if part.padding is None else part.padding.tolist():
                numbers.extend(max(0, position - padding) for position in range(first, first + count))
        return torch.tensor([numbers], device=device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[1, heads, tokens, dim]`` keys and values behind the histories of the parts they belong to.

        Returns:
            What was given, or, for a family that expands it, the histories of all parts side by side.
        """
        self._views = [
            part.cache.update(_in_rows(keys, part), _in_rows(values, part), layer_idx)
            for part, keys, values in zip(
                self._parts, key_states.split(self._sizes, 2), value_states.split(self._sizes, 2), strict=True
            )
        ]
        if not self._expands_history:
            return key_states, value_states
        keys, values = zip(*self._views, strict=True)
        return torch.cat([_side_by_side(part) for part in keys], 2), torch.cat(
            [_side_by_side(part) for part in values], 2
        )

    def split_histories(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take what the family has made of the histories that ``update`` returned."""
        sizes = [part.hidden.shape[0] * (part.cache.length + part.hidden.shape[1]) for part in self._parts]
        self._views = [
            (_in_rows(mine, part), _in_rows(its, part))
            for part, mine, its in zip(self._parts, keys.split(sizes, 2), values.split(sizes, 2), strict=True)
        ]

    def attend(
        self,
        attention: Attention,
        module: torch.nn.Module,
        query: torch.Tensor,
        options: dict[str, Any],
        *,
        adds_mask: bool,
    ) -> torch.Tensor:
        """Let every part's queries attend to its own keys; return ``[1, tokens, heads, dim]``.

        Args:
            attention: how the family computes attention.
            module: the layer's attention module.
            query: ``[1, heads, tokens, dim]``.
            options: what the family passes to its attention besides.
            adds_mask: whether ``attention`` adds its mask to the scores instead of asking which keys are seen.
        """
        window = options.get("sliding_window")
        is_plain = attention is sdpa_attention_forward and options.keys() <= _PLAIN_OPTIONS
        outputs = []
        for index, (part, mine) in enumerate(zip(self._parts, query.split(self._sizes, 2), strict=True)):
            rows, count = part.hidden.shape[:2]
            keys, values = self._views[index]
            mask = None
            if count == 1 and part.padding is None:
                if window is not None and keys.shape[2] > window:
                    keys, values = keys[:, :, -window:], values[:, :, -window:]
                if is_plain and rows == 1:
                    # What transformers' function comes to for one token, without the way there. The queries that
                    # share a key stand side by side, as tokens would.
                    grouped = mine.reshape(1, keys.shape[1], -1, keys.shape[3])
                    output = scaled_dot_product_attention(grouped, keys, values, scale=options.get("scaling"))
                    outputs.append(output.reshape(1, 1, -1, values.shape[3]))
                    continue
            else:
                mask = self._mask(index, window, query, adds_mask=adds_mask)
            output, _ = attention(module, _in_rows(mine, part), keys, values, mask, **options)
            outputs.append(output.reshape(1, rows * count, *output.shape[2:]))
        return torch.cat(outputs, dim=1)

    def _mask(self, index: int, window: int | None, query: torch.Tensor, *, adds_mask: bool) -> torch.Tensor:
        """Return what a part's queries see as its family's attention wants to be told."""
        seen = self._seen(index, window, query.device)
        if not adds_mask:
            return seen
        return torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, float(torch.finfo(query.dtype).min))

    def _seen(self, index: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Return which keys each query of a part sees, ``[rows or 1, 1, positions, keys]``."""
        if (index, window) not in self._masks:
            part = self._parts[index]
            total = part.cache.length + part.hidden.shape[1]
            keys = torch.arange(total, device=device)
            queries = keys[part.cache.length :].unsqueeze(1)
            seen = keys <= queries
            if window is not None:
                seen &= keys > queries - window
            seen = seen[None, None]
            if part.padding is not None:
                seen = seen & (keys >= part.padding[:, None, None, None])
            self._masks[index, window] = seen
        return self._masks[index, window]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the longest history: no single number is true of all parts."""
        del layer_idx
        return max(int(part.cache.length) for part in self._parts)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return sizes of a mask that nobody builds."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: the bounds are the sessions'."""
        del layer_idx
        return -1

    @property
    def is_sliding(self) -> list[bool]:
        """No layer drops old positions."""
        return [False]

    @property
    def is_compileable(self) -> bool:
        """No two batches have the same shape."""
        return False

    def __len__(self) -> int:
        return len(self._parts[0].cache)


def attention_name(config: Any) -> str | None:
    """Return the attention that a config names."""
    name: str | None = config._attn_implementation_internal  # noqa: SLF001 - the public getter never says None
    return name


def _in_rows(states: torch.Tensor, part: Part) -> torch.Tensor:
    """Turn a part's tokens, ``[1, heads, tokens, dim]``, into ``[rows, heads, positions, dim]``."""
    rows = part.hidden.shape[0]
    if rows == 1:
        return states
    _, heads, tokens, dim = states.shape
    return states.reshape(heads, rows, tokens // rows, dim).transpose(0, 1)


def _side_by_side(states: torch.Tensor) -> torch.Tensor:
    """Undo ``_in_rows``: ``[rows, heads, positions, dim]`` to ``[1, heads, tokens, dim]``."""
    return states.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _eager_attention(module: torch.nn.Module) -> Attention:
    """Return the function with which a family computes attention without a kernel of torch's."""
    attention: Attention = sys.modules[type(module).__module__].eager_attention_forward
    return attention
