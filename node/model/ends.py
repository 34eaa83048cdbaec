"""The ends of a model on a server: token ids to what enters the first block, the last block's output to logits.

For clients that hold no weights. Both ends are transformers' own causal model around a stand-in for its blocks, so
embeddings, positions, norms, scalings and soft caps come with the class; an end that is not wanted is left out, with
its weights. Every position is computed as a text of its own, which makes rows of any number of sessions one call; a
probe at load time checks that the family treats positions alike. Runs in the compute thread; knows no session and no
frame.

    ids [rows, tokens] ── embed ──> hidden ── blocks, here or elsewhere ──> hidden ── logits ──> [rows, tokens, vocab]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from node.errors import SessionError, UnsupportedFamily
from node.model.client_model import build_client_model
from node.model.end_parameters import EndParameters
from node.model.tap import Tap
from node.model.trunk import NoPositions


class Ends:
    """What stands before the first block and after the last one; made by ``build_ends``."""

    def __init__(self, model: Any, tap: Tap, *, embeds: bool, heads: bool) -> None:
        self.embeds = embeds
        """Whether the entry is here."""
        self.heads = heads
        """Whether the exit is here."""
        self.vocab_size: int = model.config.vocab_size
        """Token ids are below this."""
        self.max_positions: int | None = model.config.max_position_embeddings if _position_tables(model) else None
        """Positions that the model has embeddings for; None: it needs none."""
        self.weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
        self._model = model
        self._tap = tap
        self._device = model.device
        self._dtype = model.dtype

    @torch.inference_mode()
    def embed(self, ids: torch.Tensor, position: int, left_padding: Sequence[int] = ()) -> torch.Tensor:
        """Return what enters the first block for ``ids`` behind a history of ``position`` positions.

        Args:
            ids: ``[rows, tokens]`` token ids, integers on any device.
            position: position of the first token, padding included.
            left_padding: padding positions at the start of each row's history; empty for none.

        Returns:
            ``[rows, tokens, hidden]`` in the model's dtype, on its device.

        Raises:
            SessionError: an id is not in the vocabulary, or a position has no embedding. Checked here because a look-up
                beyond a table ends a GPU's process.
        """
        rows, tokens = ids.shape
        self._check_ids(ids)
        if self.max_positions is not None and position + tokens - min(left_padding, default=0) > self.max_positions:
            raise SessionError(
                f"The step reaches position {position + tokens}; the model has embeddings for {self.max_positions}."
            )
        positions = torch.arange(position, position + tokens).expand(rows, tokens)
        if left_padding:
            positions = (positions - torch.tensor(left_padding).unsqueeze(1)).clamp_min(0)
        return self._enter(ids.reshape(-1, 1), positions.reshape(-1, 1)).reshape(rows, tokens, -1)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits after ``hidden`` (``[rows, tokens, hidden]``): ``[rows, tokens, vocabulary]`` in float32.

        They are large: give only the positions that are asked for, a few dozen at once.
        """
        rows, tokens, hidden_size = hidden.shape
        flat = hidden.to(device=self._device, dtype=self._dtype).reshape(-1, 1, hidden_size)
        return self._leave(flat).float().reshape(rows, tokens, -1)

    def _check_ids(self, ids: torch.Tensor) -> None:
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise SessionError(f"A token id is not in the vocabulary, which has the ids 0 to {self.vocab_size - 1}.")

    def _enter(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return what enters the first block; ``ids`` and ``positions`` are ``[batch, seq]``."""
        assert self.embeds
        self._model.base_model(
            input_ids=ids.to(device=self._device, dtype=torch.long),
            position_ids=positions.to(self._device),
            past_key_values=DynamicCache(),
            use_cache=False,
        )
        hidden, self._tap.seen = self._tap.seen, None
        assert hidden is not None
        return hidden

    def _leave(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits after ``hidden`` (``[batch, seq, hidden]``)."""
        assert self.heads
        self._tap.reply = hidden
        try:
            # What is embedded here only reaches the tap, which goes on with the reply.
            logits: torch.Tensor = self._model(
                inputs_embeds=hidden, past_key_values=DynamicCache(), use_cache=False
            ).logits
        finally:
            self._tap.seen = self._tap.reply = None
        return logits

    @torch.inference_mode()
    def probe(self) -> None:
        """Check that a text gives what its positions give one by one.

        Raises:
            UnsupportedFamily: it does not, or a position has no embedding that the config says it has.
        """
        texts, hidden_size = (2, 3), self._model.config.hidden_size
        agree = True
        if self.embeds:
            ids = torch.arange(6).reshape(texts) % self.vocab_size
            at_once = self._enter(ids, torch.arange(3).expand(texts))
            agree = torch.equal(self.embed(ids, 0), at_once) and all(
                table.num_embeddings >= (self.max_positions or 0) for table in _position_tables(self._model)
            )
        if self.heads:
            hidden = torch.linspace(-1, 1, 6 * hidden_size, device=self._device, dtype=self._dtype)
            hidden = hidden.reshape(*texts, hidden_size)
            at_once = self._leave(hidden).float()
            # A product rounds by its number of rows, so the two agree to a part of the largest logit.
            room = (1e-5 if self._dtype == torch.float32 else 2e-2) * at_once.abs().max()
            agree = agree and bool((self.logits(hidden) - at_once).abs().max() <= room)
        if not agree:
            raise UnsupportedFamily(
                f"The family {self._model.config.model_type} treats a token by its neighbours outside its blocks, so a "
                "server cannot embed or score for clients; serve it with --no-ends."
            )


def build_ends(
    config: Any,
    tensors: dict[str, torch.Tensor],
    parameters: EndParameters,
    *,
    embeds: bool,
    heads: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Ends:
    """Build the wanted ends of the model that ``config`` describes.

    Args:
        config: transformers' config of the whole model.
        tensors: what the checkpoint holds for them, in its own naming; more than that does not matter.
        parameters: of the model, from ``find_end_parameters``.
        embeds: whether the entry is wanted.
        heads: whether the exit is wanted; at least one of both is.
        dtype: dtype of weights and of what ``embed`` returns.
        device: where they compute.

    Raises:
        UnsupportedFamily: the family's ends do not treat positions alike.
        ConfigMismatch: tensors are missing, or of another shape than the config asks for.
    """
    assert embeds or heads
    wanted = parameters.of(embeds=embeds, heads=heads)
    tap = Tap()

    class PartialModel:
        """Leaves out the modules of the end that is not wanted, before weights are attached."""

        _keys_to_ignore_on_load_unexpected: Any

        def __init__(self, config: Any) -> None:
            super().__init__(config)  # type: ignore[call-arg]
            unwanted = _leave_out(self, wanted)
            self._keys_to_ignore_on_load_unexpected = {*(self._keys_to_ignore_on_load_unexpected or ()), *unwanted}

    model = build_client_model(config, tensors, tap, mixin=PartialModel, dtype=dtype, device=device)
    model.config.pad_token_id = None  # transformers would look for it in every call, to warn of a missing mask.
    tap.learn_output_of(model)
    ends = Ends(model, tap, embeds=embeds, heads=heads)
    ends.probe()
    return ends


def _leave_out(model: nn.Module, wanted: frozenset[str]) -> set[str]:
    """Empty the modules with parameters none of which is wanted; return patterns of those parameters' names.

    Those of the blocks, which go as a whole, are left alone.
    """
    patterns: set[str] = set()
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for path, module in list(model.named_modules()):
        names = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
        if not names or wanted.intersection(names) or any(path.startswith(f"{outer}.") for outer in lists):
            continue
        parent, _, name = path.rpartition(".")
        empty = NoPositions() if isinstance(module, nn.Embedding) else nn.Identity()
        setattr(model.get_submodule(parent), name, empty)
        patterns.update(f"^{re.escape(name)}$" for name in names)
    return patterns


def _position_tables(model: Any) -> list[nn.Embedding]:
    """Return the embeddings of positions: those that are not of token ids."""
    tokens = model.get_input_embeddings()
    return [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not tokens]
