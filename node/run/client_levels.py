"""What a server's scores say of its clients: whose requests come first.

Runs in the event loop. It does not know what is done with a level.
"""

from __future__ import annotations

from dht.reputation import Contribution
from dht.standing.board import ScoreBoard
from dht.standing.precedence import NEW_LEVEL, level_of

_NOTHING = Contribution(0, 0)
_MAX_KEPT = 2**14
"""Clients whose levels are kept, so that a crowd of names takes no memory."""


class ClientLevels:
    """Levels of clients by a board that is kept fresh elsewhere; each is computed once for a state of the board.

    Args:
        board: the scores.
    """

    def __init__(self, board: ScoreBoard) -> None:
        self.board = board
        self._of: object = None
        """The standings that the levels below follow from."""
        self._levels: dict[str, int] = {}

    def level_of(self, client: str) -> int:
        """Give a client's level; that of whoever is new while nothing is known."""
        standings = self.board.standings
        if standings is None:
            return NEW_LEVEL
        if self._of is not standings:
            self._of, self._levels = standings, {}
        level = self._levels.get(client)
        if level is None:
            level = level_of(standings.contributions.get(client, _NOTHING), standings.scores.rules)
            if len(self._levels) < _MAX_KEPT:
                self._levels[client] = level
        return level
