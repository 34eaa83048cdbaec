"""What a route may take of each server, and what that costs: announcements in, bounded numbers or a reason out.

Pure. Everything in an announcement is a server's own word; here it is bounded, so that no word makes a server free, and
none stops the planning.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from dht.identity import peer_id_to_bytes
from dht.records import EMBEDS, HEADS, MAX_ROUND_TRIP_US, Announcement, ServerState
from node.errors import UserError

STAGE_OVERHEAD_US = 2_000
"""What a stage adds to a token beside blocks, queue and round trips: streams and hand-overs, as on loopback, us."""
MIN_BLOCK_US = 20
"""No server is believed to run a block for one token faster: launching its kernels takes about as long, us."""
MAX_BLOCK_US = 1_000_000
"""Assumed of a server that announces no rate, or a lower one, us."""
MAX_OFFERS = 256
"""Servers that a plan chooses among; of more, those that cost least per block and those that cover what others lack."""


class Objective(StrEnum):
    """What a route shall be best at."""

    FASTEST = "fastest"
    """The shortest time for one token."""
    WIDEST = "widest"
    """The most tokens per second through its narrowest stage; among those that reach it, the fastest."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a client wants of its routes."""

    objective: Objective = Objective.FASTEST
    only: frozenset[str] | None = None
    """Peers that may be used; None: all."""

    @classmethod
    def of(cls, objective: str, only: Iterable[str] | None) -> Policy:
        """Make a policy of what a user asked for.

        Args:
            objective: by name.
            only: peer ids; None: everybody may be used.

        Raises:
            UserError: there is no such objective, or one of the ids is none.
        """
        if objective not in list(Objective):
            raise UserError(f"There is no policy {objective}; use one of {', '.join(Objective)}.")
        if only is None:
            return cls(Objective(objective))
        peers = frozenset(only)
        for peer in sorted(peers):
            check_peer_id(peer)
        return cls(Objective(objective), peers)


def check_peer_id(text: str) -> None:
    """Refuse what is no peer id.

    Raises:
        UserError: with the mend.
    """
    try:
        peer_id_to_bytes(text)
    except ValueError:
        raise UserError(f"{text[:80]} is no peer id; copy one from `efedllm status --json`.") from None


FASTEST = Policy()
"""What a client wants that was told nothing else."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a route may take of one server, and its price."""

    server: Announcement
    start: int
    """First block that it may be used for."""
    end: int
    """One past the last one; not above ``start`` where it may be used for none."""
    block_us: int
    """Time of one token in one block, its score counted in, us."""

    @property
    def queue_us(self) -> int:
        """How long a step waits before it is computed, us."""
        return max(0, min(self.server.queue_us, MAX_ROUND_TRIP_US))


@dataclass(frozen=True, slots=True)
class Part:
    """The blocks that a route shall cover."""

    num_blocks: int
    """Blocks of the model."""
    start: int
    end: int
    needs_ends: bool
    """Whether its first stage must embed token ids and its last one compute logits."""


def block_us(server: Announcement, score: float = 1.0) -> int:
    """Return the time of one token in one block of ``server``, a whole number of us within bounds.

    Args:
        server: announces thousandths of a block-token per second.
        score: in (0, 1]; a peer of score s costs 1 / s of its time.
    """
    if server.throughput_milli <= 0:
        return MAX_BLOCK_US
    honest_us = max(MIN_BLOCK_US, -(-(10**9) // server.throughput_milli))
    return min(MAX_BLOCK_US, int(honest_us / min(1.0, max(score, MIN_BLOCK_US / MAX_BLOCK_US))))


def newest(servers: Iterable[Announcement]) -> list[Announcement]:
    """Return one announcement of each peer, the newest, by peer id."""
    found: dict[str, Announcement] = {}
    for server in servers:
        known = found.get(server.owner)
        if known is None or (server.t, repr(server)) > (known.t, repr(known)):
            found[server.owner] = server
    return [found[owner] for owner in sorted(found)]


def why_not(
    server: Announcement, policy: Policy, scores: Mapping[str, float], left_out: Mapping[str, str]
) -> str | None:
    """Say why a route may not use ``server`` at all; None: it may."""
    if server.state is not ServerState.ONLINE:
        return f"not online ({server.state.name.lower()})"
    if policy.only is not None and server.owner not in policy.only:
        return "not among the peers that were allowed"
    if server.owner in left_out:
        return left_out[server.owner]
    if not scores.get(server.owner, 1.0) > 0:  # Not a number is no score either.
        return "its score excludes it"
    return None


def offer_of(server: Announcement, part: Part, score: float, within: tuple[int, int] | None = None) -> Offer:
    """Return what a route over ``part`` may take of ``server``.

    Args:
        server: what it announces.
        part: what is to be covered.
        score: in (0, 1].
        within: blocks of which alone it may be used; None: all that it announces.
    """
    start, end = server.start, min(server.end, part.num_blocks)
    if part.needs_ends and start == 0 and not server.ends & EMBEDS:
        start = 1
    if part.needs_ends and end == part.num_blocks and not server.ends & HEADS:
        end -= 1
    if within is not None:
        start, end = max(start, within[0]), min(end, within[1])
    return Offer(server, max(start, part.start), min(end, part.end), block_us(server, score))


def cover(offers: Iterable[Offer], start: int, end: int) -> list[Offer] | None:
    """Cover blocks with the fewest offers, each used as far as it goes; None: some blocks are in none.

    No server comes twice: what it does not reach from its first turn it does not reach later.
    """
    listed, chosen, at = list(offers), list[Offer](), start
    while at < end:
        best = max((offer for offer in listed if offer.start <= at < offer.end), key=_reach, default=None)
        if best is None:
            return None
        chosen.append(best)
        at = best.end
    return chosen


def _reach(offer: Offer) -> tuple[int, int, list[int]]:
    return offer.end, -offer.block_us, [-ord(letter) for letter in offer.server.owner]


def bounded_number(offers: list[Offer], part: Part) -> list[Offer]:
    """Return ``MAX_OFFERS`` of ``offers`` or what covers the part, if that is more; in their order."""
    if len(offers) <= MAX_OFFERS:
        return offers
    needed = cover(offers, part.start, part.end) or []
    wanted = dict.fromkeys(offer.server.owner for offer in [*needed, *sorted(offers, key=_price)])
    kept = set(itertools.islice(wanted, max(MAX_OFFERS, len(needed))))
    return [offer for offer in offers if offer.server.owner in kept]


def _price(offer: Offer) -> tuple[int, str]:
    """Time per block if the server is used for all of its blocks, us, and its id."""
    fixed_us = STAGE_OVERHEAD_US + offer.queue_us
    return offer.block_us + fixed_us // max(1, offer.end - offer.start), offer.server.owner
