"""How much a provider works for a consumer before it has signatures for it, and what counts as what. Pure.

Exposure is what has been served and is signed for by one side only. It is counted in sixteenths of a token, because a
token of a long prompt costs about a sixteenth of one that is generated alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from dht.work import WorkKind
from node.wire import Step

PREFILL_ABOVE = 16
"""Steps of more positions per row than this are prefill."""
UNITS = 16
"""Exposure of one decoded token."""
CHECKPOINT_TOKENS = 64
"""A checkpoint is due when so many tokens have gone through since the last one."""
NEWCOMER_TOKENS = 16
"""The same for a consumer without history."""
HISTORY_TOKENS = 256
"""Tokens that a consumer must have signed for to have a history."""
SIGNED_SHARE = 4
"""All sessions of a consumer together may be ahead of its signatures by one token for so many that are signed for."""
PATIENT_ENDS = 8
"""Sessions that may have ended with something unsigned before a new one has to wait: the cap is less than a token."""
MAX_WAIT_S = 30
"""The longest such wait: who is killed again and again is no thief."""
COSIGN_TIMEOUT_S = 5.0
"""A step waits so long for the signatures for what was before it."""
CHECKPOINT_TIMEOUT_S = 5.0
"""A checkpoint that is due may take as long: it comes by another way than the results, which may be a longer one."""


def kind_of(step: Step) -> WorkKind:
    """Return what a step counts as; a history that is handed over is prefill, however short its pieces."""
    return WorkKind.PREFILL if step.replay or step.shape[1] > PREFILL_ABOVE else WorkKind.DECODE


def exposure_of(kind: WorkKind, tokens: int) -> int:
    """Return the exposure of ``tokens`` (rows times positions), in sixteenths of a token."""
    return tokens if kind is WorkKind.PREFILL else tokens * UNITS


def tokens_between_checkpoints(signed_tokens: int) -> int:
    """Return after how many tokens a checkpoint is due for a consumer that has signed for ``signed_tokens`` so far."""
    return CHECKPOINT_TOKENS if signed_tokens >= HISTORY_TOKENS else NEWCOMER_TOKENS


@dataclass(frozen=True, slots=True)
class Standing:
    """What a provider has seen of a consumer's signatures."""

    unsigned_ends: int = 0
    """Sessions that ended with something unsigned, less those since that did not."""

    def cap(self, signed_tokens: int) -> int:
        """Return the most exposure for this consumer, in sixteenths of a token; one step is always possible."""
        return tokens_between_checkpoints(signed_tokens) * UNITS >> min(self.unsigned_ends, 16)

    def cap_of_all(self, signed_tokens: int) -> int:
        """Return the most exposure of all sessions of this consumer together, in sixteenths of a token."""
        cap = self.cap(signed_tokens)
        return cap if self.unsigned_ends else max(cap, signed_tokens * UNITS // SIGNED_SHARE)

    def wait_s(self, age_s: float) -> float:
        """Return how long a new session has to wait, s, when the last one ended unsigned ``age_s`` ago."""
        excess = self.unsigned_ends - PATIENT_ENDS
        return max(0.0, min(MAX_WAIT_S, 2**excess) - max(0.0, age_s)) if excess > 0 else 0.0

    def change(self, *, is_settled: bool, signed_tokens: int, cap: int) -> int:
        """Return what a session adds to ``unsigned_ends``: an unsigned end 1, one that is settled takes 1 away.

        One that is settled and was for less than the cap changes nothing: it would mend for nothing what it costs.

        Args:
            is_settled: whether all that the session has counted is signed for.
            signed_tokens: tokens that the consumer has signed for in it.
            cap: that was in force, in sixteenths of a token.
        """
        if not is_settled:
            return 1
        return -1 if self.unsigned_ends and signed_tokens * UNITS >= max(cap, UNITS) else 0
