"""Run a step through a span whose layers keep a state. Runs in the compute thread; knows neither sockets nor sessions.

Beside what every span does, two things are needed that transformers leaves to its callers: some families start their
scan from nothing in any step of several tokens, and a step of one token is taken for text even where it is padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from node.model.families import forgets_in_long_steps
from node.model.state_cache import StateCache, StateSize


def forward_with_state(
    model: nn.Module, hidden: torch.Tensor, cache: StateCache, left_padding: torch.Tensor | None
) -> torch.Tensor:
    """Run one step behind the cache's history and append it to the history.

    Args:
        model: a base model trimmed to a span.
        hidden: ``[batch, seq, hidden]`` in the span's dtype, on its device.
        cache: the session's cache.
        left_padding: ``[batch]`` number of padding positions at the start of each row, or None for none.

    Returns:
        ``[batch, seq, hidden]``, what the last block of the span gives.

    Raises:
        ComputeFailed: an earlier step of the session failed half way.
    """
    if cache.length == 0 or hidden.shape[1] == 1 or not forgets_in_long_steps(model.config):
        return _run(model, hidden, cache, left_padding)
    return torch.cat([_run(model, token, cache, left_padding) for token in hidden.split(1, dim=1)], dim=1)


def _run(model: nn.Module, hidden: torch.Tensor, cache: StateCache, left_padding: torch.Tensor | None) -> torch.Tensor:
    num_tokens = hidden.shape[1]
    total = cache.length + num_tokens
    positions = torch.arange(cache.length, total, device=hidden.device).unsqueeze(0)
    mask: Any = None
    if left_padding is not None:
        column = left_padding.unsqueeze(1)
        mask = (torch.arange(total, device=hidden.device).unsqueeze(0) >= column).long()
        positions = (positions - column).clamp_min(0)
        if num_tokens == 1 and not bool(mask[:, -1].all()):
            mask = _masks_of_one_token(model.config, hidden, mask, cache, positions)
    cache.begin()
    output: torch.Tensor = model(
        inputs_embeds=hidden, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    cache.advance(num_tokens)
    return output


def _masks_of_one_token(
    config: Any, hidden: torch.Tensor, mask: torch.Tensor, cache: StateCache, positions: torch.Tensor
) -> dict[str, torch.Tensor | None]:
    """Return the masks that transformers makes of ``mask``, but with the padding of a single token in them."""
    told = {
        "config": config,
        "inputs_embeds": hidden,
        "attention_mask": mask,
        "past_key_values": cache,
        "position_ids": positions,
    }
    masks = {"full_attention": create_causal_mask(**told), "linear_attention": mask[:, -1:], "conv": mask[:, -1:]}
    if getattr(config, "sliding_window", None) is not None:
        masks["sliding_attention"] = create_sliding_window_causal_mask(**told)
    return masks


@torch.inference_mode()
def measure_state(model: nn.Module, config: Any, dtype: torch.dtype, device: torch.device) -> StateSize:
    """Learn what a session keeps, by running two tokens: the second one adds keys and values only."""
    cache = StateCache(config)
    hidden = torch.zeros((1, 1, config.hidden_size), dtype=dtype, device=device)
    sizes = []
    for _ in range(2):
        forward_with_state(model, hidden, cache, None)
        sizes.append(cache.num_bytes)
    per_position = sizes[1] - sizes[0]
    return StateSize(row_bytes=sizes[0] - per_position, position_bytes=per_position)
