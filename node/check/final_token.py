"""How far the answers of a last stage are from those due: likeliest logits, or the likeliest token.

A client without weights sees no logits but those that it is sent, and with server sampling none at all. What is due
comes from the stage's span and head, run again. The error of a position is in units of how far its logits scatter:

    values   |logit sent - logit due| / standard deviation of all logits due, the largest of those sent
    missing  a token left out that should have been among them: by how much, likewise, halved (both logits may be off)
    greedy   the largest logit due, less that of the token that was sent: likewise, halved

So an honest server's greedy error is at most the error of its logits, and one calibration serves for both. Pure.
"""

from __future__ import annotations

import math

import torch


def logit_errors(due: torch.Tensor, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the error of each position, ``[positions]``.

    Args:
        due: ``[positions, vocabulary]`` float32.
        ids: ``[positions, k]`` token ids that were sent as the likeliest, from 0.
        logits: ``[positions, k]`` theirs.

    Returns:
        Infinite for what is no number, an id sent twice, or one that there is not; NaN where what is due is no number.
    """
    known, is_known = _known(due, ids)
    wrong = (logits.to(due) - due.gather(1, known)).abs().amax(dim=1)
    others = due.scatter(1, known, -math.inf)
    missing = others.amax(dim=1) - due.gather(1, known).amin(dim=1)
    ordered = ids.sort(dim=1).values
    is_repeated = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
    is_lost = is_repeated | ~torch.isfinite(logits.to(due)).all(dim=1) | ~is_known
    return _in_spreads(torch.maximum(wrong, missing / 2), is_lost, due)


def greedy_errors(due: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the error of each position's token ``[positions]``; as ``logit_errors``."""
    known, is_known = _known(due, ids.unsqueeze(1))
    return _in_spreads((due.amax(dim=1) - due.gather(1, known).squeeze(1)) / 2, ~is_known, due)


def _known(due: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``ids`` ``[positions, k]`` within the vocabulary, and for each position whether they were."""
    known = ids.clamp(0, due.shape[1] - 1)
    return known, (known == ids).all(dim=1)


def _in_spreads(distances: torch.Tensor, is_lost: torch.Tensor, due: torch.Tensor) -> torch.Tensor:
    errors = (distances / due.std(dim=1)).masked_fill(is_lost, math.inf)
    return errors.masked_fill(~torch.isfinite(due).all(dim=1), math.nan)
