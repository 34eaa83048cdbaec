"""One remote session of a client without weights: token ids out, logits or sampled ids back.

Called from whatever thread runs the model. What a server sends is checked before it is used as an index.
"""

from __future__ import annotations

from typing import Any

import torch

from node.client.chain import Chain
from node.client.history import PlannedStep
from node.client.remote_session import AUTO_CODEC, Connector, RemoteCache
from node.client.thin_terms import ThinTerms
from node.errors import LocalError, SessionError, UserError
from node.model.tokens import ids_from_payload, ids_to_payload, logits_from_payload
from node.wire import IDS, MAX_SCORED_POSITIONS, Result, Sampling, Step


class ThinCache(RemoteCache):
    """The cache object of one remote session that takes token ids.

    Args:
        connector: opens, uses and closes its chains.
        max_length: positions that the session must hold.
        config: transformers' config of the model.
        top: how many of the largest logits of a position the last server sends.
        reserve: as for ``RemoteCache``.
        codec: how hidden states travel between the servers; ``AUTO_CODEC``: in float32.
    """

    def __init__(
        self,
        connector: Connector,
        max_length: int,
        config: Any,
        top: int,
        *,
        reserve: int = 0,
        codec: str = AUTO_CODEC,
    ) -> None:
        super().__init__(connector, max_length, reserve=reserve, codec=codec)
        self._terms = ThinTerms(top)
        self._vocab_size: int = config.vocab_size
        self._hidden_size: int = config.hidden_size

    def sample_there(self, sampling: Sampling) -> None:
        """Let the last server sample; a session that has begun goes on with the seed that it has.

        Raises:
            UserError: the session has begun with other settings.
        """
        begun = self._terms.sampling if self.history.length else None
        if begun is None:
            self._terms = ThinTerms(0, sampling)
        elif begun[:3] != sampling[:3]:
            raise UserError("A server samples a session in one way; open a new inference_session() for another.")

    def step(self, hidden: torch.Tensor, left_padding: tuple[int, ...]) -> torch.Tensor:
        """Refuse: this session takes token ids."""
        raise LocalError("A session without weights takes token ids, not hidden states.")

    def score(self, ids: torch.Tensor, left_padding: tuple[int, ...], keep: int) -> torch.Tensor:
        """Append ``ids`` to the history and return the logits of its last positions.

        Args:
            ids: ``[batch, seq]`` token ids.
            left_padding: padding positions per row, empty for none; counts when the history is empty.
            keep: for how many of the last positions.

        Returns:
            ``[batch, keep, vocabulary]`` in float32 on the device of ``ids``, minus infinity where nothing was sent.

        Raises:
            UserError: the session is closed or in use by another thread, or an id is not in the vocabulary.
            SessionError: the last server named a token that does not exist.
        """
        if not 0 <= int(ids.min()) <= int(ids.max()) < self._vocab_size:
            raise UserError(f"The text has an id that is not in the vocabulary, which has 0 to {self._vocab_size - 1}.")
        with self._stepping():
            return self._score(ids, left_padding, keep).to(ids.device)

    def _score(self, ids: torch.Tensor, left_padding: tuple[int, ...], keep: int) -> torch.Tensor:
        batch, num_tokens = ids.shape
        self._begin(batch, num_tokens, left_padding, torch.float32)
        at_once = self._tokens_at_once(batch, self._hidden_size)
        if keep > 1:
            at_once = min(at_once, max(1, MAX_SCORED_POSITIONS // batch))
        kept: list[int] = []
        """How many positions of each step are wanted."""

        def to_step(chain: Chain, part: PlannedStep) -> Step:
            kept.append(max(0, part.first + part.num_tokens - max(part.first, num_tokens - keep)))
            return _to_step(chain.session, part, ids, max(1, kept[-1]))

        results = self._run(batch, num_tokens, at_once, to_step)
        parts = [self._logits(result) for result, wanted in zip(results, kept, strict=True) if wanted]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _connect(self, batch: int, left_padding: tuple[int, ...], max_length: int, codec: str) -> Chain:
        return self._connector.open(batch, left_padding, max_length, codec, self._terms)

    def _logits(self, result: Result) -> torch.Tensor:
        """Return the logits in ``result``, spread over the vocabulary."""
        if result.codec == IDS:
            ids = ids_from_payload(result.payload, result.shape)
            values = torch.zeros(ids.shape)
        else:
            ids, values = logits_from_payload(result.payload, result.shape)
        if int(ids.max()) >= self._vocab_size:
            raise SessionError("The last stage named a token that the vocabulary does not have.")
        rows, positions, _ = result.shape
        whole = torch.full((rows, positions, self._vocab_size), -torch.inf)
        return whole.scatter_(-1, ids, values)


def _to_step(session: bytes, part: PlannedStep, ids: torch.Tensor, keep: int) -> Step:
    piece = ids[:, part.first : part.first + part.num_tokens]
    return Step(
        session=session,
        position=part.position,
        shape=(*piece.shape, 1),
        codec=IDS,
        payload=ids_to_payload(piece),
        crop=part.crop,
        rows=part.rows,
        logits_to_keep=keep,
    )
