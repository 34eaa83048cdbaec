"""Who gets a session at a server, and how much of its memory. Does no I/O; runs in the event loop.

It keeps the books of what is promised: sessions, positions of the cache, bytes of logs. What is done with them it does
not know. Everything refused is refused with what the client may do instead.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from node.errors import Refused
from node.model.ends import Ends
from node.model.span import Span
from node.serve.archive import Archive, Archived
from node.serve.precedence import Precedence
from node.serve.slots import Slot, Slots
from node.wire import Open, payload_parts

_RETRY_AFTER_FULL_S = 5.0
_RESERVED_SHARE = 8
"""One part in so many, of sessions and of the cache, is kept for clients that have no session yet."""


@dataclass(frozen=True)
class Served:
    """What a server offers; fixed while it serves these blocks."""

    span: Span
    manifest: bytes
    """sha256 identity of the model."""
    hidden_size: int
    weights: str = ""
    """What the weights are held in, as it is announced."""
    num_blocks: int = 0
    """Of the whole model; 0 where no ends are offered."""
    ends: Ends | None = None
    """Embedding and head, for clients that hold no weights; None: they are not served."""
    max_sessions: int = 256
    max_positions: int | None = None
    """Positions that a session may have, whatever the cache could hold; None: any number."""
    idle_timeout_s: float = 600.0
    """A session without a step for so long is closed."""
    send_timeout_s: float = 30.0
    """A client that does not read for so long loses its session; a next stage is reported to the client as lost."""
    max_bytes_per_s: float | None = None
    """Bound for steps and outputs, in and out together; None: as fast as the network is."""
    shares_prefixes: bool = False
    """Whether sessions of different clients share what is computed of equal beginnings. How fast an answer comes then
    tells one client what others have asked."""


class Admission:
    """The books of one span.

    Args:
        served: what is offered.
        num_positions: of the cache.
        log_bytes: memory for what sessions have handed on.
        precedence: whose sessions come first; None: nobody's.
    """

    def __init__(
        self, served: Served, num_positions: int, log_bytes: int, precedence: Precedence | None = None
    ) -> None:
        self.slots = Slots(num_positions)
        self.closed: Refused | None = None
        """Why new sessions are not taken at all now; None: they are."""
        self.precedence = precedence or Precedence()
        self._served = served
        self.archive = Archive()
        """Logs of sessions that have ended: their memory is not free, but may become so."""
        self._log_bytes_free = self._log_bytes = log_bytes
        self._clients: Counter[str] = Counter()
        """Sessions of each client."""

    @property
    def num_sessions(self) -> int:
        """Sessions that were let in and have not left."""
        return self._clients.total()

    def check(self, opened: Open) -> None:
        """Refuse a session that this server could not run however empty it were."""
        served = self._served
        if self.closed is not None:
            raise self.closed
        if opened.manifest != served.manifest:
            raise Refused("wrong_model", "This server holds another model; look the directory up again.")
        if not served.span.start <= opened.start < opened.end <= served.span.end:
            held = f"{served.span.start}:{served.span.end}"
            raise Refused("wrong_blocks", f"This server holds the blocks {held}; look the directory up again.")
        if served.max_positions is not None and opened.max_length > served.max_positions:
            message = f"Sessions of this model have at most {served.max_positions} positions here: ask for less."
            raise Refused("too_long", message)
        if opened.adapter:
            raise Refused("unsupported", "This version serves no adapters yet; open the session without one.")
        self._check_ends(opened)

    def _check_ends(self, opened: Open) -> None:
        served, ends = self._served, self._served.ends
        if opened.embed and not (ends and ends.embeds and opened.start == 0):
            raise Refused("no_ends", "This server embeds no token ids; look the directory up again.", retryable=True)
        scores = opened.top or opened.sampling
        if scores and not (ends and ends.heads and opened.end == served.num_blocks):
            raise Refused("no_ends", "This server computes no logits; look the directory up again.", retryable=True)

    def check_room(self, client: str) -> None:
        """Refuse a client's next session where all are taken that it may have."""
        total = self._served.max_sessions
        self.precedence.ask(client)
        reserved = -(-total // _RESERVED_SHARE) if total > 1 and self._clients[client] else 0
        reserved += int(total * self.precedence.kept_from(client))
        if self.num_sessions >= total - reserved:
            raise full(f"{self.num_sessions} of this server's {total} sessions are taken")

    def enter(self, client: str) -> None:
        """Count a session of ``client``."""
        self._clients[client] += 1

    def leave(self, client: str) -> None:
        """Count a session of ``client`` no more."""
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    def lease(self, client: str, rows: int, max_length: int) -> Slot:
        """Lease a slot for ``rows`` rows of ``max_length`` positions, or refuse."""
        span = self._served.span
        wanted, per_position = rows * (max_length + span.state_positions), span.cache_bytes_per_position
        if wanted > self.slots.total:
            message = (
                f"{rows} rows of {max_length} positions need {wanted * per_position >> 20} MiB of cache here; "
                f"this server has {self.slots.total * per_position >> 20} MiB: ask for less."
            )
            raise Refused("too_long", message)
        reserved = self.slots.total // _RESERVED_SHARE if self._clients[client] else 0
        reserved += int(self.slots.total * self.precedence.kept_from(client))
        if not self.slots.can_lease(wanted) or wanted > self.slots.free - reserved:
            raise full(f"The cache of this server is taken: {self.slots.free * per_position >> 20} MiB are free")
        return self.slots.lease(wanted)

    def lease_log(self, opened: Open, rows: int, before_bytes: int, now_s: float) -> int:
        """Promise memory to the log of a session of ``rows`` rows instead of ``before_bytes``; return how much."""
        if not opened.next:
            return 0
        wanted = rows * opened.max_length * sum(payload_parts(opened.codec, self._served.hidden_size))
        if wanted > self._log_bytes:
            message = (
                f"{rows} rows of {opened.max_length} positions need {wanted >> 20} MiB to be handed to another stage; "
                f"this server has {self._log_bytes >> 20} MiB: ask for less."
            )
            raise Refused("too_long", message)
        missing = wanted - before_bytes - self._log_bytes_free
        if missing > 0:
            self._log_bytes_free += self.archive.make_room(missing, now_s)
        if wanted - before_bytes > self._log_bytes_free:
            raise full("The memory of this server for what sessions hand on is taken")
        self._log_bytes_free -= wanted - before_bytes
        return wanted

    def release_log(self, num_bytes: int) -> None:
        """Take back what was promised to a log."""
        self._log_bytes_free += num_bytes

    def keep_log(self, session: bytes, archived: Archived, promised_bytes: int) -> None:
        """Keep the log of a session that has ended; what it was promised and has not used is free."""
        self._log_bytes_free += promised_bytes - archived.num_bytes + self.archive.put(session, archived)

    def expire(self, now_s: float) -> None:
        """Let go of logs that have been kept long enough."""
        self._log_bytes_free += self.archive.expire(now_s)


def full(reason: str) -> Refused:
    """Return the refusal of somebody for whom there may be room later."""
    message = f"{reason}; try again later, or elsewhere."
    return Refused("full", message, retryable=True, retry_after_s=_RETRY_AFTER_FULL_S)
