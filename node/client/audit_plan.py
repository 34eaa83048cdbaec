"""What of one session is to be audited, and when it can be: after the stage's signature, while nothing of it is gone.

A pure state machine beside the client's check of commitments (``commitment.chain``), which has compared all leaves with
each other before they come here. Stages whose neighbour was replaced, and new ones, are left out: what went in has gone
with the old one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from node.client.audit_book import AuditResult, Outcome
from node.client.audit_draw import Draw
from node.client.audit_opening import Given
from node.client.audit_trail import Tile, Trail
from node.commitment.chunks import Leaf, cut_payload
from node.wire import Payload, Step

MAX_KEPT_BYTES = 16 * 2**20
"""Outputs of the last stage that are kept until it has signed for them; beyond that the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class DueAudit:
    """One chunk of one stage that may be asked for now."""

    place: int
    """Of the stage in the route."""
    peer_id: str
    previous: str
    """Peer of the stage before; empty: the client."""
    leaf: Leaf
    """Of the chunk."""
    tiles: tuple[Tile, ...]
    """The chunks of the history up to it; it is the last one."""
    taken: tuple[bytes, ...]
    """For each, what the stage has signed to have been given: sha256."""
    leaves: tuple[Leaf, ...]
    """All that the stage has committed to."""
    receipt: bytes
    """Envelope, signed by both, with their root."""
    outputs: tuple[Given, ...] | None
    """What came out, where it came to the client; None: the stage is to be asked."""


Found: TypeAlias = DueAudit | AuditResult


@dataclass(slots=True)
class _Witness:
    """What one stage has signed for."""

    peer_id: str
    is_auditable: bool = True
    leaves: list[Leaf] = field(default_factory=list)
    by_place: dict[tuple[int, int], Leaf] = field(default_factory=dict)


class AuditPlan:
    """The audits of one session.

    Args:
        session: its id.
        draw: what is audited.
        peers: of its stages, in order.
    """

    def __init__(self, session: bytes, draw: Draw, peers: Sequence[str]) -> None:
        self._session = session
        self._draw = draw
        self._witnesses = [_Witness(peer) for peer in peers]
        self._trail = Trail()
        self._expected: deque[list[tuple[Tile, int, int]]] = deque()
        """For each step without an answer, what of it is to be kept."""
        self._kept: dict[tuple[int, int], list[Given]] = {}
        """What came out of the last stage for chunks that are drawn there."""
        self._kept_bytes = 0
        self._too_much: set[tuple[int, int]] = set()
        """Chunks of which something was forgotten again."""
        self._known: tuple[Tile | None, bool] = (None, False)
        """The last chunk that was looked up, and whether the last stage's is drawn."""

    def sent(self, step: Step, segment: int) -> None:
        """Note a new step."""
        self._expected.append([part for part in self._trail.sent(step, segment) if self._is_kept(part[0])])

    def _is_kept(self, tile: Tile) -> bool:
        """Say whether what comes out for a chunk is to be kept: while decoding, the same one many times."""
        if self._known[0] is not tile:
            last = self._witnesses[-1]
            self._known = (tile, last.is_auditable and self._draw.is_drawn(last.peer_id, *tile.place))
        return self._known[1]

    def answered(self, step: Step, codec: str, shape: tuple[int, ...], payload: Payload) -> None:
        """Note the result of the oldest step that has none."""
        end, width = step.position + step.shape[1], shape[2]
        answered = end - shape[1]
        for tile, first, last in self._expected.popleft():
            if (begin := max(first, answered)) < last:
                data = b"".join(cut_payload(payload, codec, shape, begin - answered, last - answered))
                self._keep(tile.place, Given(begin, codec, (shape[0], last - begin, width), data))

    def _keep(self, place: tuple[int, int], given: Given) -> None:
        if place in self._too_much:
            return
        self._kept.setdefault(place, []).append(given)
        self._kept_bytes += len(given.payload)
        while self._kept_bytes > MAX_KEPT_BYTES:
            self._too_much.add(oldest := next(iter(self._kept)))
            self._take(oldest)

    def _take(self, place: tuple[int, int]) -> tuple[Given, ...]:
        given = tuple(self._kept.pop(place, ()))
        self._kept_bytes -= sum(len(part.payload) for part in given)
        return given

    def replaced(self, first: int, last: int, peers: Sequence[str]) -> None:
        """Note that new stages have taken the place of those from ``first`` to ``last``."""
        self._witnesses[first : last + 1] = [_Witness(peer, is_auditable=False) for peer in peers]
        behind = first + len(peers)
        if behind < len(self._witnesses):
            self._witnesses[behind].is_auditable = False

    def signed(self, place: int, leaves: Sequence[Leaf], receipt: bytes) -> list[Found]:
        """Note what a stage has committed to under a receipt that both have signed; return what may be asked for."""
        witness = self._witnesses[place]
        witness.leaves += leaves
        new = [leaf for leaf in leaves if not leaf.is_resent]
        witness.by_place.update({(leaf.segment, leaf.index): leaf for leaf in new})
        drawn = [leaf for leaf in new if self._draw.is_drawn(witness.peer_id, leaf.segment, leaf.index)]
        return [self._found(place, leaf, receipt) for leaf in drawn]

    def _found(self, place: int, leaf: Leaf, receipt: bytes) -> Found:
        witness, is_last = self._witnesses[place], place + 1 == len(self._witnesses)
        outputs = self._take((leaf.segment, leaf.index)) if is_last else None
        if not witness.is_auditable:
            return self._not_auditable(witness, leaf, "the stage, or the one before it, took the place of a lost one")
        tiles = self._trail.up_to(leaf.segment, leaf.index)
        if tiles is None:
            return self._not_auditable(witness, leaf, "its history was cropped, or its rows have changed")
        before = [witness.by_place[tile.place] for tile in tiles if tile.place in witness.by_place]
        if len(before) < len(tiles):
            return self._not_auditable(witness, leaf, "what lies before it is not signed for")
        if is_last and not outputs:
            return self._not_auditable(witness, leaf, "nothing came out for it, or more than is kept")
        return DueAudit(
            place=place,
            peer_id=witness.peer_id,
            previous=self._witnesses[place - 1].peer_id if place else "",
            leaf=leaf,
            tiles=tiles,
            taken=tuple(each.taken for each in before),
            leaves=tuple(witness.leaves),
            receipt=receipt,
            outputs=outputs,
        )

    def _not_auditable(self, witness: _Witness, leaf: Leaf, why: str) -> AuditResult:
        place = (leaf.segment, leaf.index)
        return AuditResult(witness.peer_id, self._session, *place, Outcome.NOT_AUDITABLE, why)

    def is_whole(self, due: DueAudit) -> bool:
        """Say whether nothing of what a chunk needs has been cropped since."""
        tiles = self._trail.up_to(due.leaf.segment, due.leaf.index)
        return tiles is not None and len(tiles) == len(due.tiles) and all(map(_is, tiles, due.tiles))


def _is(one: Tile, other: Tile) -> bool:
    return one is other
