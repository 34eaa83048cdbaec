"""A causal language model whose blocks run on the servers of a swarm, with transformers' own ``generate``.

The model object holds embeddings, norm and head; its one layer sends hidden states along a route. Synchronous: it is
called from the user's thread and hands network work to the swarm's loop thread.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from node.client.audit_draw import PER_MILLE
from node.client.auditor import Judge
from node.client.model_sessions import DistributedMixin
from node.client.network import Network
from node.client.offers import Objective, Policy, check_peer_id
from node.client.remote_blocks import Echo, RemoteBlocks
from node.client.remote_session import AUTO_CODEC
from node.client.shadow_budget import MAX_PER_MILLE
from node.client.thin_model import DEFAULT_TOP, THIN_NOTICE, ThinModel
from node.config import default_anchors, default_home
from node.errors import DamagedCheckpoint, UserError
from node.model.checkpoint import Checkpoint
from node.model.client_model import build_client_model, probe_returns_tuple
from node.model.families import check_family
from node.wire import CODECS, MAX_TOP

logger = logging.getLogger("efedllm")
"""Says what concerns the user, under the name that the user knows."""


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
        thin: bool = False,
        num_logits: int = DEFAULT_TOP,
        server_sampling: bool = False,
        manifest: str | None = None,
        policy: str = Objective.FASTEST,
        only_peers: Iterable[str] | None = None,
        receipts: bool = True,
        anchors: Iterable[str] | None = None,
        audit_rate: float | None = None,
        judge: Judge | None = None,
        ask_anchors: bool = False,
        shadow_rate: float | None = None,
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
            thin: hold no weights: the first server embeds and the last one computes logits, so that the first one reads
                the token ids of the prompt and the last one every generated token.
            num_logits: with ``thin``, how many of the largest logits of a position the last server sends; whatever is
                sampled is among them.
            server_sampling: with ``thin``, whether the last server chooses the tokens: one id per row and step travels.
            manifest: with ``thin``, the model's identity in hex as ``efedllm status --json`` says it, for a directory
                that has config and tokenizer and no weights to tell it from.
            policy: which route to take: ``fastest``, the shortest time for one token, or ``widest``, the one whose
                slowest stage lets the most tokens per second pass, for many sessions at once.
            only_peers: peer ids of the servers that may be used; None: all.
            receipts: whether to sign for what servers do; most demand it. What is signed is public: who used whom, for
                how much and when. The client's identity and its ledger are kept in ``EFEDLLM_HOME``.
            anchors: peer ids whose trust decides which servers are used; None: those of ``EFEDLLM_ANCHORS``, or of the
                swarm's founder.
            audit_rate: share (0 to 1) of what each server signs for that it has to open again to this client; None: as
                the swarm has it, and with a judge 0.2 of servers that are young in their trust; 0: nothing.
            judge: says whether what a server gave follows from what it was given; None: what is opened is compared with
                what was signed, and not run again. One of ``judge_for_client`` looks for a calibration that it was not
                given among those that the anchors name.
            ask_anchors: where ``judge`` is None or cannot tell, have the anchors whose trust counts for this client
                judge what is opened, as far as they run ``efedllm verify`` for the model, for receipts. They see the
                text of what they judge, as far as hidden states (with ``thin``, ids) tell it.
            shadow_rate: share (0 to 0.05) of what this client consumes that is run a second time through newcomers, so
                that they can earn trust where they get no work otherwise: beginnings of its sessions, in the
                background, compared and delivered to nobody. None: 0.05, 0: nothing; without ``receipts``, and with
                ``thin``, nothing either.

        Returns:
            An object of the family's own class, for example ``LlamaForCausalLM``, with ``generate``,
            ``inference_session`` and ``close``; with ``thin`` a ``ThinModel`` with the same.

        Raises:
            UserError: bad input; the message says what to do.
            UnavailableError: the swarm cannot be reached.
        """
        if codec not in (AUTO_CODEC, *CODECS):
            raise UserError(f"There is no codec {codec}; use one of {', '.join((AUTO_CODEC, *CODECS))}.")
        if audit_rate is not None and not 0 <= audit_rate <= 1:
            raise UserError(f"A share of {audit_rate} cannot be audited; give audit_rate from 0 to 1.")
        if ask_anchors and not receipts:
            raise UserError("Anchors judge for receipts; leave out receipts=False, or ask_anchors.")
        shadow_per_mille = _shadow_per_mille(shadow_rate)
        _check_thin(thin, num_logits, server_sampling, manifest)
        routes, trusted = Policy.of(policy, only_peers), _anchors(anchors)
        checkpoint = Checkpoint.open(path_or_hub_id, revision=revision, home=default_home())
        check_family(checkpoint.config)
        where = torch.device(device)
        if thin:
            model: Any = ThinModel(checkpoint.config, num_logits, server_sampling=server_sampling, device=where)
        else:
            tensors = checkpoint.load_client(dtype=dtype, device=where)
            model, remote = build_model(checkpoint.config, tensors, dtype=dtype, device=where)
        use_generation_config(model, checkpoint.tokenizer_dir)
        network = Network.connect(
            manifest=checkpoint.manifest32 if manifest is None else bytes.fromhex(manifest),
            num_blocks=checkpoint.num_blocks,
            join=join,
            initial_peers=initial_peers or [],
            step_timeout_s=step_timeout_s,
            policy=routes,
            hidden_size=checkpoint.config.get_text_config().hidden_size,
            home=default_home(),
            signs=receipts,
            name=checkpoint.name,
            anchors=trusted,
            audit_per_mille=None if audit_rate is None else round(PER_MILLE * audit_rate),
            judge=judge,
            asks_anchors=ask_anchors,
            shadow_per_mille=shadow_per_mille,
        )
        if thin:
            _tell(model, server_sampling)
            model.connect(network, max_length, codec)
        else:
            model.attach(network, remote, max_length, codec)
        return model


def _anchors(given: Iterable[str] | None) -> tuple[str, ...]:
    listed = (default_anchors() or "").split(",") if given is None else given
    anchors = tuple(dict.fromkeys(each.strip() for each in listed if each.strip()))
    for anchor in anchors:
        check_peer_id(anchor)
    return anchors


def _shadow_per_mille(rate: float | None) -> int:
    most = MAX_PER_MILLE / PER_MILLE
    if rate is None:
        return MAX_PER_MILLE
    if not 0 <= rate <= most:
        raise UserError(
            f"Newcomers are not given a share of {rate}; give shadow_rate (--shadow-rate) from 0 to {most}."
        )
    return int(PER_MILLE * rate)


def _tell(model: ThinModel, server_sampling: bool) -> None:
    logger.warning(THIN_NOTICE)
    left_out = model.leave_out_defaults() if server_sampling else []
    if left_out:
        logger.warning("Where the server samples, the model's own defaults are left out for %s.", ", ".join(left_out))


def _check_thin(thin: bool, num_logits: int, server_sampling: bool, manifest: str | None) -> None:
    if not thin and (server_sampling or num_logits != DEFAULT_TOP or manifest is not None):
        raise UserError("num_logits, server_sampling and manifest are for clients without weights; pass thin=True.")
    if not 1 <= num_logits <= MAX_TOP:
        raise UserError(f"A server sends 1 to {MAX_TOP} logits of a position, not {num_logits}; change num_logits.")
    if manifest is not None and not re.fullmatch("[0-9a-f]{64}", manifest):
        raise UserError("The manifest is not 64 hex digits; copy it from `efedllm status --json`.")
