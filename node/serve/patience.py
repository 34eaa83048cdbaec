"""Whose turn it is to move, and who lets a turn pass. Pure; time is passed in.

The rule of ``node.serve.balance`` names servers that should move. Some never do: their owners chose the blocks, or they
stand still, or they lie. Who has been named for a while and is still there is passed over for a longer while. Each
server keeps its own memory of that; nothing of it is announced.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dht.records import Announcement
from node.serve.balance import MIN_GAIN, Move, plan_moves

PATIENCE_S = 90.0
"""How long a server may be named until it is passed over, s: longer than a look takes to come, or a dead one to go."""
RELUCTANT_S = 1800.0
"""How long it is passed over, s."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """When one server was named."""

    first_s: float
    last_s: float


class Patience:
    """What one server remembers of the turns of the others."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}
        self._until_s: dict[str, float] = {}

    def plan_move(
        self,
        servers: Iterable[Announcement],
        owner: str,
        num_blocks: int,
        now_s: float,
        *,
        min_gain: float = MIN_GAIN,
    ) -> Move | None:
        """Return where ``owner`` should move now; None: it should stay where it is.

        Args:
            servers: who serves the model now, ``owner`` among them.
            owner: peer id of the server that asks.
            num_blocks: blocks of the model.
            now_s: any clock that does not go back, s.
            min_gain: what the bottleneck must be multiplied by, at least.
        """
        moves = plan_moves(servers, num_blocks, reluctant=self.reluctant(now_s), min_gain=min_gain)
        self.note(moves, now_s)
        return next((move for move in moves if move.owner == owner), None)

    def reluctant(self, now_s: float) -> frozenset[str]:
        """Return who is passed over now."""
        self._until_s = {owner: until_s for owner, until_s in self._until_s.items() if until_s > now_s}
        return frozenset(self._until_s)

    def note(self, moves: Iterable[Move], now_s: float) -> None:
        """Remember who should move now."""
        self._turns = {owner: turn for owner, turn in self._turns.items() if now_s - turn.last_s <= 2 * PATIENCE_S}
        for move in moves:
            first_s = self._turns[move.owner].first_s if move.owner in self._turns else now_s
            if now_s - first_s < PATIENCE_S:
                self._turns[move.owner] = _Turn(first_s, now_s)
            else:
                del self._turns[move.owner]
                self._until_s[move.owner] = now_s + RELUCTANT_S
