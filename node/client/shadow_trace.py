"""What one session began with, steps and results, so that its beginning can be run a second time and compared.

Pure bookkeeping over bytes; runs in the client's event loop. Where a session crops its history or selects rows, what
came before stands, and nothing more is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from node.client.recheck import Doubt, Kept
from node.client.stage_link import SessionShape
from node.commitment.chunks import cut_payload
from node.wire import Payload, Result, Step, payload_bytes

MAX_POSITIONS = 64
"""Positions that are kept of a session, at most."""
MAX_BYTES = 4 * 2**20
"""Of the inputs that are kept, and of the results."""


class ShadowTrace:
    """The beginning of one session.

    Args:
        shape: what every stage was told.
        consumed: called with the tokens (rows times positions) of every step that is answered.
        is_kept: whether its steps are kept; otherwise they are only counted.
    """

    def __init__(self, shape: SessionShape, consumed: Callable[[int], None], *, is_kept: bool) -> None:
        self.shape = shape
        self.is_ended = False
        self.length = 0
        """Positions that are kept."""
        self.seen_by: set[str] = set()
        """Peers that were given something of it a second time."""
        self._consumed = consumed
        self._steps: list[Step] = []
        self._kept: list[Kept] = []
        self._has_room = is_kept

    @property
    def is_complete(self) -> bool:
        """Whether no more will be kept of it."""
        return self.is_ended or not self._has_room

    def answered(self, step: Step, result: Result) -> None:
        """Note a step and its result; their payloads are copied."""
        rows, tokens, _ = step.shape
        self._consumed(rows * tokens)
        if self._has_room:
            self._keep(step, result)

    def _keep(self, step: Step, result: Result) -> None:
        rows, length, width = step.shape
        room = min(MAX_POSITIONS, MAX_BYTES // payload_bytes(step.codec, (rows, 1, width)))
        tokens = min(length, room - self.length)
        is_next = step.crop is None and step.rows is None and step.position == self.length
        if not is_next or tokens <= 0:
            self._has_room = False
            return
        piece = _cut(step, 0, tokens)
        self._steps.append(piece)
        given = _cut_payload(result.payload, result.codec, result.shape, 0, tokens)
        self._kept.append(Kept(len(self._kept) + 1, step.position, piece.shape, given, tokens))
        self.length += tokens
        self._has_room = self.length < room

    def end(self) -> None:
        """Note that the session has ended."""
        self.is_ended = True

    def prefix(self, length: int, peer_id: str) -> Doubt:
        """Return its first positions, as steps to be sent to a peer, and what had come of them.

        The last position is a step of its own, as where a token is generated. Where nothing comes after the signatures
        for a prompt, its last chunk is signed for by nobody, and could not be audited.

        Args:
            length: positions, at most those that are kept.
            peer_id: whose results they will be compared with.
        """
        assert 0 < length <= self.length
        steps = [_cut(step, 0, length - 1 - step.position) for step in self._steps if step.position < length - 1]
        last = next(step for step in reversed(self._steps) if step.position < length)
        steps.append(_cut(last, length - 1 - last.position, length - last.position))
        kept = tuple(
            replace(entry, tokens=min(entry.tokens, length - entry.position))
            for entry in self._kept
            if entry.position < length
        )
        return Doubt(peer_id, kept, tuple(steps), last.codec, left_padding=())


def _cut(step: Step, first: int, last: int) -> Step:
    """Return a step of those positions of another one, by their place in it, that are there."""
    rows, tokens, width = step.shape
    last = min(last, tokens)
    payload = _cut_payload(step.payload, step.codec, step.shape, first, last)
    return Step(step.session, step.position + first, (rows, last - first, width), step.codec, payload)


def _cut_payload(payload: Payload, codec: str, shape: tuple[int, ...], first: int, last: int) -> bytes:
    rows, tokens, width = shape
    if (first, last) == (0, tokens):
        return bytes(payload)
    return b"".join(cut_payload(payload, codec, (rows, tokens, width), first, last))
