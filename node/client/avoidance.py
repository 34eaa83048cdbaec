"""Which servers are left out of routes because they failed, for how long, and why. Pure: the time is passed in.

Who refuses is asked again when it says, or after a while, longer each time. Who cannot be reached may be dead while its
announcement still stands, so it stays out until it announces itself anew, and for a while after that. Who did not sign
for its work stays out for epochs, and whoever plans may fall back on it where there is no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dht.records import Announcement
from node.errors import Refused

AVOID_S = 30.0
"""How long a server that failed is left out of routes the first time, s; twice as long with every further time."""
MAX_AVOID_S = 900.0
DISTRUST_S = 24 * 3600.0
"""How long a server that an audit has found at fault is not used, whoever else there is, s."""
_MAX_WORDS = 120
"""Letters of a failure that are kept: a refusal's message is a peer's own."""


@dataclass(frozen=True, slots=True)
class _Failure:
    at_s: float
    """When it failed last."""
    until_s: float
    count: int
    """How often it was left out."""
    heard_t: int | None
    """Signed time of the announcement that it did not live up to, unix s; None: it stays out for the time alone."""
    words: str


class Avoidance:
    """What is remembered of servers that failed; all times are of the monotonic clock."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}
        self._distrusted: dict[str, tuple[float, str]] = {}
        """When an audit found a server at fault last, and how."""

    def distrust(self, peer_id: str, reason: str, now_s: float) -> None:
        """Note that an audit has found a server at fault."""
        self._distrusted[peer_id] = now_s, " ".join(reason.split())[:_MAX_WORDS]

    def distrusted(self, now_s: float) -> dict[str, str]:
        """Return the peers that an audit has found at fault not long ago, and how: they are not used at all."""
        self._distrusted = {peer: at for peer, at in self._distrusted.items() if now_s - at[0] < DISTRUST_S}
        return {
            peer: f"failed an audit {now_s - at_s:.0f} s ago: {words}"
            for peer, (at_s, words) in self._distrusted.items()
        }

    def forget(self) -> None:
        """Forget who failed, but not whom an audit has found at fault."""
        self._failures = {}

    def note(self, peer_id: str, reason: Exception, heard_t: int | None, now_s: float) -> None:
        """Note that a server failed; while it is left out already, that does not grow longer.

        Args:
            peer_id: the server.
            reason: what happened.
            heard_t: signed time of the announcement that it was used by, unix s; None: unknown.
            now_s: the time.
        """
        known = self._failures.get(peer_id)
        if known is not None and known.until_s > now_s:
            self._failures[peer_id] = replace(known, at_s=now_s)
            return
        count = known.count + 1 if known is not None else 1
        words = " ".join(str(reason).split())[:_MAX_WORDS]
        if isinstance(reason, Refused):
            self._failures[peer_id] = _Failure(now_s, now_s + _refusal_s(reason, count), count, None, words)
        else:
            self._failures[peer_id] = _Failure(now_s, now_s + _avoid_s(count), count, heard_t, words)

    def shun(self, peer_id: str, words: str, for_s: float, now_s: float) -> None:
        """Leave a server out for long, unless there is no other: it has not signed for its work as it should."""
        self._failures[peer_id] = _Failure(now_s, now_s + for_s, 1, None, words)

    def left_out(self, servers: Iterable[Announcement], now_s: float) -> dict[str, str]:
        """Return the peers that are left out now, and why, whoever failed last first; forget what was long ago."""
        times = {server.owner: server.t for server in servers}
        self._failures = {
            peer: failure for peer, failure in self._failures.items() if failure.until_s + MAX_AVOID_S > now_s
        }
        return {
            peer: f"failed {now_s - failure.at_s:.0f} s ago: {failure.words}"
            for peer, failure in sorted(self._failures.items(), key=lambda entry: -entry[1].at_s)
            if failure.until_s > now_s or _is_unheard(failure, times.get(peer))
        }


def _is_unheard(failure: _Failure, t: int | None) -> bool:
    """Say whether a server's word ``t`` is no newer than what it did not live up to."""
    return failure.heard_t is not None and t is not None and t <= failure.heard_t


def _refusal_s(reason: Refused, count: int) -> float:
    return min(reason.retry_after_s, AVOID_S) if reason.retry_after_s else _avoid_s(count)


def _avoid_s(count: int) -> float:
    return min(AVOID_S * 2.0 ** (count - 1), MAX_AVOID_S)
