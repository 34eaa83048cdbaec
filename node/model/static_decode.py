"""Decoding in static shapes: one new token of each of many rows, whatever their histories, in tensors of few shapes.

What a GPU waits for in decoding is the Python that launches its kernels. Here the number of rows and the length of the
histories are rounded up, everything that differs from step to step is read from tensors that stay where they are, and
so the whole pass over a span can be captured once and launched at once (``captured``). Each layer writes its new keys
and values into the arena by index, gathers every row's history into one tensor, and attends with the family's own
attention, on a GPU one fused kernel of torch's. Used by the compute thread only; correct on any device.

    row    length    [ history in the arena, in order      | own token | the arena's zeros ... ]  up to the bucket
    0      5           k0 k1 k2 k3 k4                        k5          0  0  0  0  0
    1      2           k0 k1                                 k2          0  0  0  0  0  0  0  0
    fill   0                                                 x           0  0  0  0  0  0  0  0  0  0

The arena's memory may hold anything from sessions that have ended, and zero weight times NaN is NaN: beyond a row's
own token its index is that of a position of zeros. Rows that fill up the bucket compute on whatever stands there, and
write where nobody else reads.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from node.model.arena import RESERVED, start_of, whole_of
from node.model.cache import SpanCache
from node.model.captured import CapturedCalls
from node.model.named_attention import name_attention
from node.model.ragged import Part

MAX_ROWS = 128
"""More rows are not decoded together."""
SHORTEST = 256
"""Positions of the shortest bucket."""
MAX_GATHERED_BYTES = 2 * 2**30
"""What one layer's gathered keys and values may take: less where memory has been short once. Beyond it, another way."""
_STEPS_PER_DOUBLING = 4
"""Buckets of length between a power of two and the next: a history is rounded up by a quarter at most."""

_numbers = itertools.count()


def row_bucket(num_rows: int) -> int:
    """Return ``num_rows`` rounded up to a power of two."""
    return 1 << (num_rows - 1).bit_length()


def length_bucket(length: int) -> int:
    """Return ``length`` rounded up to one of four steps between powers of two, at least ``SHORTEST``."""
    step = max(SHORTEST, 1 << (length - 1).bit_length()) // (2 * _STEPS_PER_DOUBLING)
    return max(SHORTEST, -(-length // step) * step)


class StaticDecode:
    """Decodes single tokens of sessions whose caches are slots of one arena.

    Between steps the model computes as transformers made it.

    Args:
        model: a base model, trimmed to a span.
        configs: every config object that its modules look at.
        own: the attention that they name between steps.
        first_layer: number of the span's first layer in the whole model.
        position_bytes: bytes of one position of one row in the layer that keeps most.
        calls: captures and replays steps, of other parts of the span too; None: each is run anew.
    """

    def __init__(
        self,
        model: Any,
        configs: Sequence[Any],
        own: str | None,
        first_layer: int,
        position_bytes: int,
        calls: CapturedCalls | None = None,
    ) -> None:
        self._model = model
        self._configs = list(configs)
        self._own = own
        self._first_layer = first_layer
        self.calls = calls
        self._position_bytes = position_bytes
        self._max_gathered_bytes = MAX_GATHERED_BYTES
        self._name = f"efedllm_static_{next(_numbers)}"
        self._arena: list[tuple[torch.Tensor, torch.Tensor]] = []
        """``[vectors, dim]`` keys and values of every layer, of all sessions."""
        self._spare = 0
        """The arena's position that anybody may write."""
        self._hidden = torch.empty(0)
        """``[MAX_ROWS, 1, hidden]``: what enters."""
        self._places = torch.empty(0)
        """``[MAX_ROWS, 3]``: first position of the row in the arena, its capacity, its length before the step."""
        self._histories: _Histories | None = None
        name_attention(self._name, self._attend)

    def can_decode(self, parts: Sequence[Part]) -> bool:
        """Say whether ``parts`` are single tokens without padding that fit together into a static shape."""
        if not all(_is_single_token(part) for part in parts):
            return False
        arenas = {_arena_of(part) for part in parts}
        num_rows = sum(part.hidden.shape[0] for part in parts)
        if len(arenas) > 1 or num_rows > MAX_ROWS:
            return False
        return self._gathered_bytes(parts) <= self._max_gathered_bytes

    def _gathered_bytes(self, parts: Sequence[Part]) -> int:
        rows = row_bucket(sum(part.hidden.shape[0] for part in parts))
        return rows * _longest_bucket(parts) * self._position_bytes

    def forward(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """Run one token of each row of ``parts`` and append it to the histories; the caller has asked ``can_decode``.

        Returns:
            ``[rows, 1, hidden]`` for each part.

        Raises:
            torch.OutOfMemoryError: the histories are as they were, and steps as large as this one are not taken again.
        """
        num_rows = [part.hidden.shape[0] for part in parts]
        try:
            output = self._decode(parts, row_bucket(sum(num_rows)), _longest_bucket(parts))
        except torch.OutOfMemoryError:
            self._max_gathered_bytes = min(self._max_gathered_bytes, self._gathered_bytes(parts) - 1)
            raise
        for part in parts:
            part.cache.advance(1)
        return list(output[: sum(num_rows)].split(num_rows))

    def _decode(self, parts: Sequence[Part], rows: int, length: int) -> torch.Tensor:
        self._settle_in(parts[0])
        self._write_inputs(parts, rows)

        def work() -> torch.Tensor:
            return self._run(rows, length)

        if self.calls is None:
            return work()
        return self.calls.run((self._first_layer, len(self._arena), rows, length), work).clone()

    def _settle_in(self, part: Part) -> None:
        """Make the tensors that stay where they are, unless they are there for the arena of ``part``."""
        if self._arena and self._arena[0][0].data_ptr() == _arena_of(part):
            return
        if self._arena and self.calls is not None:
            self.calls.clear()
        self._arena = [(whole_of(keys), whole_of(values)) for keys, values in part.cache.buffers]
        self._spare = self._arena[0][0].shape[0] // part.cache.buffers[0][0].shape[1] - 1
        self._hidden = part.hidden.new_zeros((MAX_ROWS, 1, part.hidden.shape[2]))
        self._places = torch.zeros((MAX_ROWS, 3), dtype=torch.long, device=part.hidden.device)

    def _write_inputs(self, parts: Sequence[Part], bucket: int) -> None:
        places = [place for part in parts for place in _places_of(part.cache)]
        torch.cat([part.hidden for part in parts], out=self._hidden[: len(places)])
        places += [(self._spare, 1, 0)] * (bucket - len(places))
        sent = torch.tensor(places)
        if self._places.is_cuda:
            sent = sent.pin_memory()  # torch keeps it until the copy has been made.
        self._places[:bucket].copy_(sent, non_blocking=True)

    def _run(self, rows: int, length: int) -> torch.Tensor:
        """Return ``[rows, 1, hidden]`` from what stands in the static tensors."""
        places = self._places[:rows]
        histories = self._histories = _Histories(self._arena, places, length, self._first_layer)
        try:
            with self._attending():
                output: torch.Tensor = self._model(
                    inputs_embeds=self._hidden[:rows],
                    position_ids=places[:, 2:],
                    past_key_values=histories,
                    use_cache=True,
                ).last_hidden_state
        finally:
            self._histories = None
        return output

    @contextlib.contextmanager
    def _attending(self) -> Iterator[None]:
        self._name_attention(self._name)
        try:
            yield
        finally:
            self._name_attention(self._own)

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
    ) -> tuple[torch.Tensor, Any]:
        """Attend as the family does, behind a mask of our own; transformers' interface."""
        del attention_mask  # None: transformers builds no masks for an attention that it does not know.
        assert self._histories is not None
        mask = self._histories.mask(options.get("sliding_window"), query.dtype)
        return self._own_attention(module)(module, query, key, value, mask, **options)

    def _own_attention(self, module: torch.nn.Module) -> Callable[..., tuple[torch.Tensor, Any]]:
        if self._own in (None, "eager"):
            eager: Callable[..., tuple[torch.Tensor, Any]] = sys.modules[
                type(module).__module__
            ].eager_attention_forward
            return eager
        named: Callable[..., tuple[torch.Tensor, Any]] = ALL_ATTENTION_FUNCTIONS[self._own]
        return named


class _Histories(Cache):
    """The histories of all rows in one shape, for one pass over the layers."""

    def __init__(
        self,
        arena: Sequence[tuple[torch.Tensor, torch.Tensor]],
        places: torch.Tensor,
        length: int,
        first_layer: int,
    ) -> None:
        super().__init__(layers=[])
        self._arena = arena
        self._starts, self._capacities, self._lengths = places.unsqueeze(2).unbind(1)
        self._length = length
        self._first_layer = first_layer
        self._positions = torch.arange(length, device=places.device)
        self._indices: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[int | None, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[rows, heads, 1, dim]`` keys and values behind the histories; return both, ``[.., length, dim]``."""
        keys, values = self._arena[layer_idx - self._first_layer]
        return self._append(keys, key_states), self._append(values, value_states)

    def _append(self, whole: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        rows, heads, _, dim = states.shape
        written, read = self._vectors(heads, whole.shape[0])
        whole.index_copy_(0, written, states.reshape(-1, dim))
        return whole.index_select(0, read).view(rows, heads, self._length, dim)

    def _vectors(self, heads: int, num_vectors: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors of the arena to write, ``[rows * heads]``, and to read, ``[rows * heads * length]``."""
        if heads not in self._indices:
            first = self._starts * heads + torch.arange(heads, device=self._starts.device) * self._capacities
            read = first.unsqueeze(2) + self._positions
            beyond = self._positions > self._lengths
            read = read.masked_fill_(beyond.unsqueeze(1), num_vectors - RESERVED * heads)
            self._indices[heads] = ((first + self._lengths).flatten(), read.flatten())
        return self._indices[heads]

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return ``[rows, 1, 1, length]``, to be added to scores: which keys each row sees."""
        if window not in self._masks:
            unseen = self._positions > self._lengths
            if window is not None:
                unseen |= self._positions <= self._lengths - window
            mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
            self._masks[window] = mask.masked_fill_(unseen, torch.finfo(dtype).min)[:, None, None]
        return self._masks[window]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions that all rows have room for: no single number is true of their histories."""
        del layer_idx
        return self._length - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return sizes of a mask that nobody builds."""
        del query_length, layer_idx
        return self._length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: the bounds are the sessions'."""
        del layer_idx
        return -1

    @property
    def is_sliding(self) -> list[bool]:
        """No layer drops old positions."""
        return [False] * len(self._arena)

    @property
    def is_compileable(self) -> bool:
        """What is captured is the whole call, by us."""
        return False

    def __len__(self) -> int:
        return len(self._arena)


def _is_single_token(part: Part) -> bool:
    cache = part.cache
    if not isinstance(cache, SpanCache) or part.padding is not None or part.hidden.shape[1] != 1:
        return False
    rows, _, capacity, _ = cache.buffers[0][0].shape
    # Beyond its capacity another session's memory begins.
    return bool(part.hidden.shape[0] == rows and cache.length < capacity)


def _longest_bucket(parts: Sequence[Part]) -> int:
    return length_bucket(1 + max(int(part.cache.length) for part in parts))


def _arena_of(part: Part) -> int:
    """Return where in memory the arena of a part begins."""
    return int(part.cache.buffers[0][0].untyped_storage().data_ptr())


def _places_of(cache: SpanCache) -> list[tuple[int, int, int]]:
    rows, _, capacity, _ = cache.buffers[0][0].shape
    start = start_of(cache.buffers[0][0])
    return [(start + row * capacity, capacity, cache.length) for row in range(rows)]
