"""The logs of sessions that have ended, for their clients to have them opened: who may, until when, who makes room.

    close ── 10 s: held, as if the session were open ── 120 s: kept while nobody needs the memory ── gone

The memory is part of what sessions were promised (``admission``): the log that has been kept longest goes first. No log
goes in its first seconds, so that a client which asks at once knows that a server that opens nothing does not want to.
Pure bookkeeping; times are of the monotonic clock. Runs in the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from node.errors import Refused
from node.step_log import StepLog
from node.wire import LOG_HELD_S, LOG_KEPT_S, MAX_REVEALED_SHARE, MAX_REVEALS


@dataclass(slots=True)
class Ration:
    """What has been opened of one session, and how much more may be."""

    num_reveals: int = 0
    num_bytes: int = 0

    def take(self, num_bytes: int, held_bytes: int) -> None:
        """Count a reveal of so many bytes, of a log that holds ``held_bytes``.

        Raises:
            Refused: it would be more than a session may have opened.
        """
        if self.num_reveals >= MAX_REVEALS or self.num_bytes + num_bytes > MAX_REVEALED_SHARE * held_bytes:
            raise Refused("spent", "Enough of this session has been opened; its bounds are in docs/protocol.md.")
        self.num_reveals += 1
        self.num_bytes += num_bytes


@dataclass(frozen=True, slots=True)
class Archived:
    """The log of one session."""

    client: str
    """Peer id of the only one who may have it opened."""
    log: StepLog
    num_bytes: int
    """Memory that it takes."""
    ended_s: float
    ration: Ration = field(default_factory=Ration)


class Archive:
    """The logs of sessions that have ended, in the order of their ends."""

    def __init__(self) -> None:
        self._logs: dict[bytes, Archived] = {}

    @property
    def num_bytes(self) -> int:
        """Memory that all of them take."""
        return sum(archived.num_bytes for archived in self._logs.values())

    def put(self, session: bytes, archived: Archived) -> int:
        """Keep a log; return the bytes that were let go of: an older one of the same id."""
        freed = self._drop(session)
        self._logs[session] = archived
        return freed

    def find(self, session: bytes, client: str, now_s: float) -> Archived | None:
        """Return a log that this client may have opened; None: there is none."""
        archived = self._logs.get(session)
        if archived is None or archived.client != client or now_s - archived.ended_s > LOG_KEPT_S:
            return None
        return archived

    def expire(self, now_s: float) -> int:
        """Let go of what has been kept long enough; return how many bytes."""
        return self._drop_first(LOG_KEPT_S, None, now_s)

    def make_room(self, num_bytes: int, now_s: float) -> int:
        """Let go of the oldest logs until ``num_bytes`` are free, if there are so many; return how many are."""
        return self._drop_first(LOG_HELD_S, num_bytes, now_s)

    def held_s(self, now_s: float) -> float:
        """Return how long some log is held for certain."""
        return max((archived.ended_s + LOG_HELD_S - now_s for archived in self._logs.values()), default=0.0)

    def _drop_first(self, age_s: float, num_bytes: int | None, now_s: float) -> int:
        freed = 0
        for session, archived in list(self._logs.items()):
            if now_s - archived.ended_s < age_s or (num_bytes is not None and freed >= num_bytes):
                break
            freed += self._drop(session)
        return freed

    def _drop(self, session: bytes) -> int:
        archived = self._logs.pop(session, None)
        return archived.num_bytes if archived is not None else 0
