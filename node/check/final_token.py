"""The check of a head: logits, or the likeliest token, against what the last block's output gives.

A client without weights sees no logits but those that it is sent, and with server sampling none at all. So the last
stage may be asked for the hidden states behind its last block, which it has committed to like all others; from them the
head is computed again in float32. The error of a position is in units of how far its logits scatter:

    values   |logit sent - logit due| / standard deviation of all logits due, the largest of those sent
    missing  a token left out that should have been among them: by how much, likewise, halved (both logits may be off)
    greedy   the largest logit due, less that of the token that was sent: likewise, halved

Tokens that are drawn by a seed are not checked here. Pure, but for the head itself. Runs in the compute thread.
"""

from __future__ import annotations

import math

import torch

from node.check.calibration import FAIL_FACTOR, LEAST_FAIL, LEAST_PASS, PASS_FACTOR, Calibration, Limit
from node.check.check import Verdict
from node.errors import BadOpening, CannotCheck
from node.model.ends import Ends


def head_limit(calibration: Calibration, held_in: str, codec: str) -> Limit:
    """Return the thresholds of a chunk's largest logit error.

    Raises:
        CannotCheck: nothing was measured of such a head behind such a codec.
    """
    for known, its_codec, error in calibration.head:
        if (known, its_codec) == (held_in, codec):
            return Limit(max(LEAST_PASS, PASS_FACTOR * error), max(LEAST_FAIL, FAIL_FACTOR * error))
    raise CannotCheck(f"The calibration says nothing of a head in {held_in} behind the codec {codec}.")


def check_logits(
    ends: Ends, hidden: torch.Tensor, ids: torch.Tensor, logits: torch.Tensor, limit: Limit
) -> tuple[Verdict, float]:
    """Check the largest logits of some positions; return the verdict and the largest error.

    Args:
        ends: with the head, in float32 on the declared weights.
        hidden: ``[positions, hidden]`` what the last block gave, revealed and matched with what was committed to.
        ids: ``[positions, k]`` token ids that were sent as the likeliest.
        logits: ``[positions, k]`` theirs.
        limit: from ``head_limit``.

    Raises:
        BadOpening: ids are not in the vocabulary, or shapes do not fit together.
    """
    if ids.dim() != 2 or ids.shape != logits.shape or ids.shape[0] != hidden.shape[0] or not ids.numel():
        raise BadOpening("Logits and hidden states are not of the same positions.")
    due = _due(ends, hidden, ids)
    return _judge(logit_errors(due, ids, logits), due, limit)


def check_greedy(ends: Ends, hidden: torch.Tensor, ids: torch.Tensor, limit: Limit) -> tuple[Verdict, float]:
    """Check tokens ``[positions]`` that were sent as the likeliest; as ``check_logits``."""
    if ids.dim() != 1 or ids.shape[0] != hidden.shape[0] or not ids.numel():
        raise BadOpening("Tokens and hidden states are not of the same positions.")
    due = _due(ends, hidden, ids)
    return _judge(greedy_errors(due, ids), due, limit)


def logit_errors(due: torch.Tensor, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the error of each position, ``[positions]``; infinite for what is no number, or an id sent twice.

    Args:
        due: ``[positions, vocabulary]`` float32.
        ids: ``[positions, k]``, in the vocabulary.
        logits: ``[positions, k]``.
    """
    spread = due.std(dim=1)
    wrong = (logits.to(due) - due.gather(1, ids)).abs().amax(dim=1)
    others = due.scatter(1, ids, -math.inf)
    missing = others.amax(dim=1) - due.gather(1, ids).amin(dim=1)
    errors = torch.maximum(wrong, missing / 2) / spread
    ordered = ids.sort(dim=1).values
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
    lost = ~torch.isfinite(logits.to(due)).all(dim=1)
    return torch.where(repeated | lost, torch.full_like(errors, math.inf), errors)


def greedy_errors(due: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the error of each position's token, ``[positions]``; arguments as in ``logit_errors``."""
    return (due.amax(dim=1) - due.gather(1, ids.unsqueeze(1)).squeeze(1)) / 2 / due.std(dim=1)


def _due(ends: Ends, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    if int(ids.min()) < 0 or int(ids.max()) >= ends.vocab_size:
        raise BadOpening(f"A token id is not in the vocabulary, which has the ids 0 to {ends.vocab_size - 1}.")
    return ends.logits(hidden.unsqueeze(0)).squeeze(0)


def _judge(errors: torch.Tensor, due: torch.Tensor, limit: Limit) -> tuple[Verdict, float]:
    if not bool(torch.isfinite(due).all()):
        return Verdict.INCONCLUSIVE, math.nan
    largest = float(errors.max())
    if largest > limit.fails:
        return Verdict.FAIL, largest
    return (Verdict.PASS if largest < limit.passes else Verdict.INCONCLUSIVE), largest
