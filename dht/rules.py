"""Hold what a swarm's founder decided about time and admission, where records need it: epochs, windows, proof of work.

``dht.parameters`` signs and carries these numbers. Epochs are counted from 1970, so every node names them alike. Pure.
"""

from dataclasses import dataclass

MAX_SKEW_S = 120
"""Seconds by which the signed times of honest peers may differ from each other's clocks."""

SEQUENCES_PER_S = 1024
"""Sequence numbers that lengthen the life of a cumulative record by one second; exact in a float for 3,000 years."""


@dataclass(frozen=True, slots=True)
class Rules:
    """One swarm's time: the same at every node, from seconds in a test to hours."""

    epoch_s: int = 21600  # length of an epoch, seconds
    window_epochs: int = 56  # receipts, audits, identities, snapshots, calibrations outlive their epoch by so many
    evidence_epochs: int = 360  # proofs of misconduct and successions outlive theirs by so many
    proof_of_work_bits: int = 0  # leading zero bits that an identity's proof needs; 0: none asked

    def epoch_of(self, t: float) -> int:
        """Name the epoch that holds unix second ``t``."""
        return max(0, int(t // self.epoch_s))

    def start_of(self, epoch: int) -> int:
        """Give the unix second at which an epoch begins."""
        return epoch * self.epoch_s

    def end_of_window(self, epoch: int, seq: int = 0) -> float:
        """Say when what belongs to ``epoch`` expires, unix seconds; of two, the one with the higher ``seq`` later.

        The DHT keeps the value with the later expiry, so the newest of a cumulative record replaces the others.
        """
        return (epoch + 1 + self.window_epochs) * self.epoch_s + seq / SEQUENCES_PER_S

    def end_of_evidence(self, epoch: int) -> float:
        """Say when evidence of what was done in ``epoch`` expires, unix seconds."""
        return float((epoch + 1 + self.evidence_epochs) * self.epoch_s)

    def has_begun(self, epoch: int, now_s: float) -> bool:
        """Say whether an epoch has begun for a peer whose clock may be ahead of ours."""
        return self.start_of(epoch) <= now_s + MAX_SKEW_S

    def is_within(self, epoch: int, t: int) -> bool:
        """Say whether ``t`` lies in an epoch, or so near to it that clocks may differ about it."""
        return self.start_of(epoch) - MAX_SKEW_S <= t <= self.start_of(epoch + 1) + MAX_SKEW_S


DEFAULT_RULES = Rules()
