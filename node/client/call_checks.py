"""What a call of the model asks for beyond what the servers follow is refused here, before anything is sent.

The servers are told the padding of each row when a session opens, and count positions themselves. Knows nothing of
networks. Runs in the caller's thread, before every forward pass: a decode step should cost microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from node.client.history import History
from node.errors import UserError


def check_call(inputs: torch.Tensor, history: History, options: Mapping[str, Any], config: Any) -> tuple[int, ...]:
    """Return the padding positions at the start of each row, empty for none.

    Args:
        inputs: ids ``[batch, seq]`` or embeddings ``[batch, seq, hidden]`` of the new tokens.
        history: of the session that the call continues.
        options: keyword arguments of the call.
        config: transformers' config of the model, with its defaults for outputs.

    Raises:
        UserError: the servers would not do what the call asks for.
    """
    _check_outputs(options, config)
    num_tokens, length = inputs.shape[1], history.length
    if num_tokens == 0:
        raise UserError(
            f"The call holds no new token: the session holds {length} positions already; pass the whole text so far "
            "with something new at its end, or forget the rest with session.crop(...)."
        )
    mask = options.get("attention_mask")
    padding = _left_padding(mask)
    if mask is not None and length and padding != history.left_padding:
        raise UserError(
            "The attention_mask hides other positions than it did when this session began; keep the padding of its "
            "first call."
        )
    if mask is not None and mask.shape[1] != length + num_tokens:
        raise UserError(
            f"The attention_mask is {mask.shape[1]} positions wide; give one for the {length} positions that the "
            f"session holds and the {num_tokens} new ones, {length + num_tokens} in all."
        )
    positions = options.get("position_ids")
    if positions is not None and not _follow(
        positions, length, num_tokens, history.left_padding if length else padding
    ):
        raise UserError(
            f"The position_ids are not those of {num_tokens} tokens after the {length} positions that the session "
            "holds, counted from the first that is no padding; leave position_ids out, or pass the whole text so far."
        )
    return padding


def _check_outputs(options: Mapping[str, Any], config: Any) -> None:
    for name in ("output_hidden_states", "output_attentions"):
        asked = options.get(name)
        if asked or (asked is None and getattr(config, name, False)):
            raise UserError(f"The servers send the last hidden states only; leave {name} unset.")


def _follow(positions: torch.Tensor, length: int, num_tokens: int, padding: tuple[int, ...]) -> bool:
    """Say whether ``positions`` count on from ``length`` in every row; those of padding do not matter."""
    if num_tokens == 1 and not padding:
        return all(position == length for position in positions.flatten().tolist())
    if positions.shape[-1] != num_tokens:
        return False
    expected = torch.arange(length, length + num_tokens, device=positions.device)
    if padding:
        expected = expected - torch.tensor(padding, device=positions.device).unsqueeze(1)
    return not bool(((positions != expected) & (expected >= 0)).any())


def _left_padding(mask: torch.Tensor | None) -> tuple[int, ...]:
    """Return the padding positions at the start of each row of a 2-D mask; empty for none.

    Raises:
        UserError: the mask hides positions elsewhere.
    """
    if mask is None:
        return ()
    if mask.ndim != 2:
        raise UserError("Only a 2-D attention_mask of shape [batch, positions] can be sent to the servers.")
    if bool(mask.all()):
        return ()
    kept = mask.bool()
    padding = (~kept).sum(dim=1)
    expected = torch.arange(mask.shape[1], device=mask.device).unsqueeze(0) >= padding.unsqueeze(1)
    if not torch.equal(kept, expected) or bool((padding == mask.shape[1]).any()):
        raise UserError(
            "The attention_mask hides positions inside or after the text, or a whole row; pad on the left "
            "(tokenizer.padding_side = 'left') and leave no row empty."
        )
    return tuple(padding.tolist())
