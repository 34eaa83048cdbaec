"""One remote session as transformers sees it: a ``Cache`` whose history lives on the servers of a route.

Called from whatever thread runs the model; network work happens in the client's loop thread. The session opens with
its first step, when the number of rows and their padding are known.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from node.client.audit_book import AuditResult
from node.client.chain import Chain
from node.client.explain import Explanation
from node.client.history import History, PlannedStep
from node.client.repair import Repaired
from node.client.route import Route
from node.client.thin_terms import ThinTerms
from node.errors import LocalError, UnavailableError, UserError
from node.model.tensors import from_payload, to_payload
from node.wire import ITEM_BYTES, MAX_BATCH, Result, Step, max_step_tokens, payload_bytes

_OVERLAPPING_TOKENS = 256
"""Positions of one step where there are several stages: one works on a piece while the next works on the one before."""
_MAX_STEP_BYTES = 2 * 2**20
"""Hidden states of a longer prefill are sent in several steps, which the stages work on at the same time."""
AUTO_CODEC = "auto"
"""Hidden states travel raw in the dtype that the client computes in."""


class Connector(Protocol):
    """Opens, uses and closes chains from a synchronous thread; ``network.Network`` is one."""

    on_repaired: Callable[[Repaired], None]
    """Called in another thread when other servers have taken the place of lost ones."""
    on_audited: Callable[[AuditResult], None]
    """Called in another thread with what came of each audit."""

    def open(
        self,
        batch: int,
        left_padding: tuple[int, ...],
        max_length: int,
        codec: str,
        thin: ThinTerms | None = None,
    ) -> Chain:
        """Plan a route and open a session along it."""

    def explain(self) -> Explanation | None:
        """Say why the last route runs where it runs; None: there was none."""

    def run(self, chain: Chain, steps: list[Step]) -> list[Result]:
        """Send steps and wait for their results."""

    def close_later(self, chain: Chain) -> None:
        """End a session without waiting for it."""

    def close(self) -> None:
        """End everything; no session can be opened afterwards."""


class _Lengths(CacheLayerMixin):
    """The one cache layer that transformers sees; it holds no keys, only the session's history."""

    is_croppable = True
    is_sliding = False

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history = history
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to allocate here."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Refuse: no layer computes attention on the client."""
        raise LocalError("A remote session takes hidden states, not keys and values.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return keys seen by a query, and their offset."""
        return self.history.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the length of the history."""
        return self.history.length

    def get_max_length(self) -> int:
        """Return the positions that the session may reach."""
        return self.history.max_length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` positions; transformers counts them downwards.

        Raises:
            ValueError: ``tokens_to_remove`` is positive, which once meant a length.
        """
        if tokens_to_remove > 0:
            raise UserError(
                f"crop({tokens_to_remove}) is not supported; pass the number of positions to forget as a negative one, "
                "or use crop of the inference_session()."
            )
        self.history.crop_to(self.history.length + tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep the rows ``beam_idx``, in that order."""
        self.history.select_rows(beam_idx.tolist())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows ``indices``: numbers, or a mask over all rows."""
        numbers = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
        self.history.select_rows(numbers.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times in place."""
        if self.history.batch is not None:
            self.history.select_rows([row for row in range(self.history.batch) for _ in range(repeats)])

    def reset(self) -> None:
        """Forget everything."""
        self.history.crop_to(0)


class RemoteCache(Cache):
    """The cache object of one remote session.

    Args:
        connector: opens, uses and closes its chains.
        max_length: positions that the session must hold.
        reserve: positions that it should hold so that more calls can continue it, if the servers have the room.
        codec: how hidden states travel, one of ``wire.CODECS`` or ``AUTO_CODEC``.
    """

    def __init__(self, connector: Connector, max_length: int, *, reserve: int = 0, codec: str = AUTO_CODEC) -> None:
        self._needed = max_length
        self.history = History(max(max_length, reserve))
        super().__init__(layers=[_Lengths(self.history)])
        self._connector = connector
        self._asked_codec = codec
        self._codec = ""
        """The codec of the open session: all its steps and results have it."""
        self._chain: Chain | None = None
        self._finalizer: Callable[[], Any] | None = None
        self._is_closed = False
        self._is_stepping = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteCache:
        """Refuse: what the cache stands for is on the servers, which do not copy sessions."""
        raise UserError(
            "A remote session cannot be copied; crop it back to the common beginning, or open one for each text with "
            "inference_session()."
        )

    @property
    def route(self) -> Route | None:
        """The route of the session; None before its first step."""
        return self._chain.route if self._chain else None

    def step(self, hidden: torch.Tensor, left_padding: tuple[int, ...]) -> torch.Tensor:
        """Run ``hidden`` through the remote blocks and append it to the history.

        Args:
            hidden: ``[batch, seq, hidden]``.
            left_padding: padding positions per row, empty for none; counts when the history is empty.

        Returns:
            ``[batch, seq, hidden]`` of the same dtype and device.

        Raises:
            UserError: the session is closed or in use by another thread, or cannot carry ``hidden``.
        """
        with self._stepping():
            return self._step(hidden, left_padding)

    @contextlib.contextmanager
    def _stepping(self) -> Iterator[None]:
        """Refuse a step while another thread is in the middle of one."""
        if not self._is_stepping.acquire(blocking=False):
            raise UserError("Another thread is using this session; open one for each with inference_session().")
        try:
            yield
        finally:
            self._is_stepping.release()

    def _step(self, hidden: torch.Tensor, left_padding: tuple[int, ...]) -> torch.Tensor:
        batch, num_tokens, hidden_size = hidden.shape
        self._begin(batch, num_tokens, left_padding, hidden.dtype)
        at_once = self._tokens_at_once(batch, hidden_size)
        results = self._run(batch, num_tokens, at_once, lambda chain, part: self._to_step(chain.session, part, hidden))
        parts = [
            from_payload(result.payload, result.shape, self._codec, dtype=hidden.dtype, device=hidden.device)
            for result in results
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _begin(self, batch: int, num_tokens: int, left_padding: tuple[int, ...], dtype: torch.dtype) -> None:
        """Open the session with its first step; later, check that the next one can be sent."""
        if self._is_closed:
            raise UserError("This session is closed; open a new one with inference_session().")
        if batch > MAX_BATCH:
            raise UserError(
                f"A session takes at most {MAX_BATCH} rows, beams included, not {batch}; use fewer at once."
            )
        self.history.check_room(num_tokens)
        if self.history.length == 0:  # Not begun, or cropped to nothing: rows and padding may be others than before.
            self._open(batch, left_padding, self._codec_for(dtype))

    def _tokens_at_once(self, batch: int, hidden_size: int) -> int:
        by_bytes = max(1, _MAX_STEP_BYTES // payload_bytes(self._codec, (batch, 1, hidden_size)))
        return min(by_bytes, max_step_tokens(batch))

    def _run(
        self, batch: int, num_tokens: int, at_once: int, to_step: Callable[[Chain, PlannedStep], Step]
    ) -> list[Result]:
        """Send ``num_tokens`` more positions in steps of at most ``at_once`` and return their results."""
        chain = self._chain
        assert chain is not None
        if len(chain.route.stages) > 1:
            at_once = min(at_once, _OVERLAPPING_TOKENS)
        planned = self.history.plan(batch, num_tokens, at_once)
        return self._connector.run(chain, [to_step(chain, part) for part in planned])

    def _codec_for(self, dtype: torch.dtype) -> str:
        if self._asked_codec != AUTO_CODEC:
            return self._asked_codec
        codec = str(dtype).removeprefix("torch.")
        if codec not in ITEM_BYTES:
            raise UserError(f"Hidden states in {codec} do not travel; load the model with dtype=torch.float32.")
        return codec

    def _open(self, batch: int, left_padding: tuple[int, ...], codec: str) -> None:
        if self._finalizer is not None:
            self._finalizer()
        try:
            self._chain = self._connect(batch, left_padding, self.history.max_length, codec)
        except UnavailableError:
            if self.history.max_length == self._needed:
                raise
            self.history.max_length = self._needed
            self._chain = self._connect(batch, left_padding, self._needed, codec)
        self._codec = codec
        self.history.restart(left_padding)
        self._finalizer = weakref.finalize(self, self._connector.close_later, self._chain)

    def _connect(self, batch: int, left_padding: tuple[int, ...], max_length: int, codec: str) -> Chain:
        return self._connector.open(batch, left_padding, max_length, codec)

    def _to_step(self, session: bytes, part: PlannedStep, hidden: torch.Tensor) -> Step:
        piece = hidden[:, part.first : part.first + part.num_tokens]
        return Step(
            session=session,
            position=part.position,
            shape=tuple(piece.shape),
            codec=self._codec,
            payload=to_payload(piece, self._codec),
            crop=part.crop,
            rows=part.rows,
        )

    def close(self) -> None:
        """End the session; doing so twice is fine."""
        self._is_closed = True
        if self._finalizer is not None:
            self._finalizer()
