"""A causal language model whose blocks run on the servers of a swarm, with transformers' own ``generate``.

The model object holds embeddings, norm and head; its one layer sends hidden states along a route. Synchronous: it is
called from the user's thread and hands network work to the swarm's loop thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from node.client.call_checks import check_call
from node.client.network import Network
from node.client.remote_blocks import Echo, RemoteBlocks
from node.client.remote_session import AUTO_CODEC, Connector, RemoteCache
from node.config import default_home
from node.errors import DamagedCheckpoint, UserError
from node.model.checkpoint import Checkpoint
from node.model.client_model import build_client_model, probe_returns_tuple
from node.model.families import check_family
from node.wire import CODECS


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


class DistributedMixin:
    """What a client's model does beyond its family's own class."""

    _connector: Connector
    _remote: RemoteBlocks
    _active: ContextVar[InferenceSession | None]
    _max_length: int
    _codec: str
    config: Any

    def attach(self, connector: Connector, remote: RemoteBlocks, max_length: int, codec: str = AUTO_CODEC) -> None:
        """Connect the freshly built model; called once.

        Args:
            connector: opens sessions along routes; a ``Network`` in earnest.
            remote: the model's one layer.
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


def build_model(
    config: Any, tensors: dict[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
) -> tuple[Any, RemoteBlocks]:
    """Build the client's model, not yet connected, and return it with its one layer.

    Args:
        config: transformers' config of the whole model.
        tensors: everything of the checkpoint outside its blocks.
        dtype: dtype of weights and of the hidden states that travel.
        device: where embeddings and head compute.
    """
    remote = RemoteBlocks()
    model = build_client_model(config, tensors, remote, mixin=DistributedMixin, dtype=dtype, device=device)
    remote.aim(Echo(), ())
    remote.returns_tuple = probe_returns_tuple(model)
    return model, remote


def use_generation_config(model: Any, directory: Path) -> None:
    """Give ``model`` the defaults for ``generate`` that its author ships, where there are any, as transformers does.

    Args:
        model: made by ``build_model``.
        directory: where ``generation_config.json`` stands, if the checkpoint has one.

    Raises:
        DamagedCheckpoint: the file cannot be read.
    """
    if not (directory / GENERATION_CONFIG_NAME).is_file():
        return
    try:
        settings = GenerationConfig.from_pretrained(directory)
    except (OSError, ValueError, TypeError) as error:
        raise DamagedCheckpoint(
            f"{directory / GENERATION_CONFIG_NAME} cannot be read: fetch or copy the file again"
        ) from error
    settings.cache_implementation = None  # It is about a local cache.
    model.generation_config = settings


class AutoDistributedModelForCausalLM:
    """Loads the client's part of a model and connects it to a swarm that serves the rest."""

    def __new__(cls) -> Any:
        """Refuse: there is nothing to make without a model."""
        raise TypeError("Use AutoDistributedModelForCausalLM.from_pretrained(...).")

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str,
        *,
        join: str | None = None,
        initial_peers: list[str] | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        revision: str | None = None,
        max_length: int = 2048,
        step_timeout_s: float = 120.0,
        codec: str = AUTO_CODEC,
    ) -> Any:
        """Load embeddings, norm and head of a model; its blocks run on the swarm's servers.

        Args:
            path_or_hub_id: local directory, hub id, or ``embedded`` for the model that comes with this package.
            join: join code of a swarm, or multiaddrs.
            initial_peers: multiaddrs of a public swarm, instead of ``join``.
            dtype: dtype of embeddings and head, and of the hidden states that travel.
            device: where embeddings and head compute.
            revision: revision on the hub.
            max_length: positions reserved for a session that outlives its call (of the model itself, or of
                ``generate`` with ``return_dict_in_generate``); less when the model cannot reach them, more when the
                call needs more, and only what the call needs when the servers have no room.
            step_timeout_s: how long the route may stay silent in one step, s.
            codec: how hidden states travel: ``float32``, ``float16``, ``bfloat16``, ``int8`` (about one byte per
                element), or ``auto``: as they are, in ``dtype``. A coarser one saves bytes and changes results.

        Returns:
            An object of the family's own class, for example ``LlamaForCausalLM``, with ``generate``,
            ``inference_session`` and ``close``.

        Raises:
            UserError: bad input; the message says what to do.
            UnavailableError: the swarm cannot be reached.
        """
        if codec not in (AUTO_CODEC, *CODECS):
            raise UserError(f"There is no codec {codec}; use one of {', '.join((AUTO_CODEC, *CODECS))}.")
        checkpoint = Checkpoint.open(path_or_hub_id, revision=revision, home=default_home())
        check_family(checkpoint.config)
        where = torch.device(device)
        tensors = checkpoint.load_client(dtype=dtype, device=where)
        model, remote = build_model(checkpoint.config, tensors, dtype=dtype, device=where)
        use_generation_config(model, checkpoint.tokenizer_dir)
        network = Network.connect(
            manifest=checkpoint.manifest32,
            num_blocks=checkpoint.num_blocks,
            join=join,
            initial_peers=initial_peers or [],
            step_timeout_s=step_timeout_s,
        )
        model.attach(network, remote, max_length, codec)
        return model
