"""The sessions of a client's model: which one a call belongs to, and when it ends, around transformers' ``generate``.

Synchronous: called from the user's thread. What a forward pass sends is decided by the model's remote part.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

from node.client.audit_book import AuditResult
from node.client.call_checks import check_call
from node.client.explain import Explanation
from node.client.remote_session import AUTO_CODEC, Connector, RemoteCache
from node.client.repair import Repaired
from node.errors import UserError


class InferenceSession:
    """A remote session that outlives single calls of ``generate`` or of the model.

    Inside ``with model.inference_session(max_length=...)`` every call of the model continues this session. Pass the
    whole text so far, as for transformers' ``past_key_values``: what the session has already seen is not sent again.
    """

    def __init__(self, cache: RemoteCache) -> None:
        self.cache = cache

    @property
    def length(self) -> int:
        """Positions that the servers hold for this session."""
        return self.cache.history.length

    @property
    def max_length(self) -> int:
        """Positions that the session may reach."""
        return self.cache.history.max_length

    def crop(self, length: int) -> None:
        """Forget every position from ``length`` on; the servers are told with the next step."""
        self.cache.history.crop_to(length)

    @property
    def route(self) -> str:
        """Who serves which blocks, for people; empty before the first step."""
        return str(self.cache.route or "")

    def close(self) -> None:
        """End the session at every server."""
        self.cache.close()


class Aimed(Protocol):
    """Sends a forward pass where it was last aimed; ``remote_blocks.RemoteBlocks`` is one."""

    def aim(self, runner: RemoteCache, left_padding: tuple[int, ...]) -> None:
        """Say where the next forward pass of this thread goes, and only that one."""


class DistributedMixin:
    """What a client's model does beyond its family's own class."""

    _connector: Connector
    _remote: Aimed
    _active: ContextVar[InferenceSession | None]
    _max_length: int
    _codec: str
    config: Any

    def attach(self, connector: Connector, remote: Aimed, max_length: int, codec: str = AUTO_CODEC) -> None:
        """Connect the freshly built model; called once.

        Args:
            connector: opens sessions along routes; a ``Network`` in earnest.
            remote: what sends a forward pass along the route: the model's one layer, or all of a model without weights.
            max_length: positions reserved, at most, for a session that a call returns so that others can go on.
            codec: how hidden states travel, one of ``wire.CODECS``, or ``auto``: in the dtype that they have.
        """
        self._connector, self._remote, self._max_length, self._codec = connector, remote, max_length, codec
        self._active = ContextVar("active", default=None)  # A session is of the thread or task that opened it.
        self._opened = threading.local()
        self.register_forward_pre_hook(_aim_at_session, with_kwargs=True)  # type: ignore[attr-defined]

    def room_to_go_on(self) -> int:
        """Return the positions to reserve for a session that its caller may continue."""
        return min(getattr(self.config, "max_position_embeddings", None) or self._max_length, self._max_length)

    def new_cache(self, max_length: int, reserve: int = 0) -> RemoteCache:
        """Return the cache of a new session of ``max_length`` positions; ``reserve`` as for ``RemoteCache``."""
        return RemoteCache(self._connector, max_length, reserve=reserve, codec=self._codec)

    @contextlib.contextmanager
    def inference_session(self, max_length: int) -> Iterator[InferenceSession]:
        """Open a session of at most ``max_length`` positions that every call inside the ``with`` continues.

        Only calls of the same thread or task do; others have sessions of their own meanwhile.
        """
        if max_length < 1:
            raise UserError(f"A session of {max_length} positions holds nothing; give max_length of at least 1.")
        session = InferenceSession(self.new_cache(max_length))
        outer = self._active.get()
        self._active.set(session)
        try:
            yield session
        finally:
            self._active.set(outer)
            session.close()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does; sessions opened for the call are closed with it, unless it returns them."""
        opened: list[RemoteCache] = []
        self._opened.caches = opened
        try:
            output = super().generate(*args, **kwargs)  # type: ignore[misc]
        except BaseException:
            _close_all(opened)
            raise
        finally:
            self._opened.caches = None
        kept = getattr(output, "past_key_values", None)
        _close_all([cache for cache in opened if cache is not kept])
        return output

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Give ``generate`` a remote session where it would make a local cache."""
        del generation_mode, batch_size
        if generation_config.cache_implementation is not None:
            raise UserError("The cache lives on the servers; leave cache_implementation unset.")
        generation_config.prefill_chunk_size = None  # A session sends a long text in pieces of its own.
        given = model_kwargs.get("past_key_values")
        active = self._active.get()
        if given is None and active is not None:
            given = model_kwargs["past_key_values"] = active.cache
        if given is not None:
            _checked_cache(given)
            return
        if generation_config.use_cache is False:
            return
        # The last token is never sent back; assisted decoding sends its candidates beyond the maximum length.
        drafts = generation_config.num_assistant_tokens or 0
        drafts = max(drafts, generation_config.prompt_lookup_num_tokens or 0)
        needed = max_cache_length + 1 + drafts
        reserve = self.room_to_go_on() if generation_config.return_dict_in_generate else 0
        cache = self.new_cache(needed, reserve)
        opened = getattr(self._opened, "caches", None)
        if opened is not None:
            opened.append(cache)
        model_kwargs["past_key_values"] = cache

    def on_repaired(self, tell: Callable[[Repaired], None]) -> None:
        """Call ``tell`` from now on, in another thread, when other servers have taken the place of lost ones."""
        self._connector.on_repaired = tell

    def on_audited(self, tell: Callable[[AuditResult], None]) -> None:
        """Call ``tell`` from now on, in another thread, with what came of each audit."""
        self._connector.on_audited = tell

    def explain_route(self) -> Explanation | None:
        """Say of every server why the route of the session opened last takes it, or does not.

        Returns:
            None before the first session. Where a session found no route, why each server was of no use for it.
        """
        return self._connector.explain()

    def close(self) -> None:
        """Leave the swarm; the model is of no use afterwards."""
        self._connector.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _aim_at_session(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tell the remote layer which session this forward pass belongs to; runs before every call of the model."""
    inputs = args[0] if args else kwargs.get("input_ids")
    inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
    if inputs is None:
        return args, kwargs  # The family's own class has the words for this.
    cache = kwargs.get("past_key_values")
    if cache is None:
        active = model._active.get()  # noqa: SLF001 - the model's own hook
        asked = kwargs.get("use_cache")
        keep = model.config.use_cache if asked is None else asked
        if active is not None:
            cache = active.cache
        else:
            reserve = model.room_to_go_on() if keep else 0
            cache = model.new_cache(inputs.shape[1], reserve)
        if keep or active is not None:  # Some families return what they are given, and generate would continue it.
            kwargs["past_key_values"] = cache
    padding = check_call(inputs, _checked_cache(cache).history, kwargs, model.config)
    model._remote.aim(cache, padding)  # noqa: SLF001
    return args, kwargs


def _checked_cache(cache: Any) -> RemoteCache:
    if not isinstance(cache, RemoteCache):
        raise UserError(
            f"past_key_values is a {type(cache).__name__}; the blocks run remotely, so leave it out or pass the cache "
            "of an inference_session()."
        )
    return cache


def _close_all(caches: list[RemoteCache]) -> None:
    for cache in caches:
        cache.close()
