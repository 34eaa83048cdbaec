"""How well a model predicts held-out text beside another one: documents in, perplexity and its paired error out."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional

PIECE_CHARACTERS = 1000


def read_documents(corpus: Path | None, files: Sequence[Path] = ()) -> tuple[str, list[str]]:
    """Return what the text is, and its documents: the held-out part of ``corpus``, or else pieces of ``files``."""
    if corpus is not None:
        lines = (corpus / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
        return "held-out part of embedded_corpus.py", [json.loads(line)["text"] for line in lines]
    pieces = [piece for path in files for piece in split_text(path.read_text(encoding="utf-8"))]
    return ", ".join(str(path) for path in files), pieces


def split_text(text: str) -> Iterator[str]:
    """Yield pieces of whole lines of about ``PIECE_CHARACTERS``."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece += line
    if piece.strip():
        yield piece


@dataclass
class Score:
    """What one model says about the documents; differences are from the reference's logits."""

    nats: list[float] = field(default_factory=list)
    """Per document."""
    num_tokens: int = 0
    num_agreeing: int = 0
    """Positions whose likeliest token is the reference's."""
    error_sum: float = 0.0
    """Mean absolute differences of logits, in standard deviations of their position, summed over positions."""
    error_max: float = 0.0
    max_difference: float = 0.0
    """The largest absolute difference of a logit."""

    def add(self, logits: torch.Tensor, reference: torch.Tensor, targets: torch.Tensor) -> None:
        """Count one document; logits ``[positions, vocabulary]``, targets ``[positions]``."""
        self.nats.append(functional.cross_entropy(logits, targets, reduction="sum").item())
        self.num_tokens += len(targets)
        self.num_agreeing += int((logits.argmax(-1) == reference.argmax(-1)).sum())
        difference = (logits - reference).abs()
        errors = difference / reference.std(dim=-1, keepdim=True)
        self.error_sum += errors.mean(dim=-1).sum().item()
        self.error_max = max(self.error_max, errors.max().item())
        self.max_difference = max(self.max_difference, difference.max().item())

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(sum(self.nats) / self.num_tokens)


def perplexity_change(score: Score, reference: Score) -> dict[str, float]:
    """Return the change in percent and the standard error of it, from the paired differences of documents."""
    differences = torch.tensor(score.nats, dtype=torch.float64) - torch.tensor(reference.nats, dtype=torch.float64)
    per_token = differences.sum().item() / score.num_tokens
    error = differences.std().item() * math.sqrt(len(differences)) / score.num_tokens
    return {
        "perplexity_change_percent": round(100 * math.expm1(per_token), 5),
        "perplexity_change_standard_error": round(100 * error, 5),
    }


def describe(score: Score, reference: Score) -> dict[str, float]:
    """Return the fields of one score beside the reference's."""
    return {
        "logits_error_mean": round(score.error_sum / score.num_tokens, 7),
        "logits_error_max": round(score.error_max, 6),
        "logits_difference_max": round(score.max_difference, 6),
        "top_token_agreement": round(score.num_agreeing / score.num_tokens, 5),
        "perplexity": round(score.perplexity, 4),
        **perplexity_change(score, reference),
    }
