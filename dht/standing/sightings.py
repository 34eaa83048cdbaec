"""Remember when this node first saw what was signed about claims, where it had looked shortly before. Pure.

    look at a key      t0 ......... t1 ......... t2            less than half a unit of a trial apart
    record found                               x: first seen at t2, because at t1 it was not there

Nobody can prove when a record was signed. Who looks often enough knows at least when it was not there yet; what it
finds at its first look, or after a pause, counts by its signed time alone. A claim that says it was signed while this
node was looking, under the key of somebody of whom nobody knew then, comes now: or else whoever takes a new id for it
could date it back beyond the reach of its accused. So does one that was not there at the last look, however long ago
that was, and ought to have been. Only claims, and what is about them, are remembered, so that nobody fills this with
anything else.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dht.claim import Claim
from dht.contest import Contest
from dht.judgement.docket import record_id
from dht.judgement.timeline import UNITS_PER_EPOCH
from dht.records import Kind
from dht.rules import Rules
from dht.standing.proofs import Proofs
from dht.verdict import Verdict

MAX_SIGHTINGS = 2**16
"""Records that are remembered; what comes when there are more counts by its signed time alone."""

Keys = Mapping[int, frozenset[tuple[str, int]]]
"""By kind: peers and epochs under which was read."""


class Sighting(NamedTuple):
    """One record, seen for the first time."""

    record: bytes  # ``record_id``, 32 bytes
    epoch: int  # that its key has
    seen_s: float | None  # unix seconds; None: nobody was looking when it came


def half_unit_s(rules: Rules) -> float:
    """Say how far two looks may be apart, seconds."""
    return max(1.0, rules.epoch_s / UNITS_PER_EPOCH) / 2


class Sightings:
    """What one node has seen.

    Args:
        remembered: Of an earlier process.
    """

    def __init__(self, remembered: Iterable[Sighting] = ()) -> None:
        self._seen = {each.record: each for each in remembered}
        self._looked: set[tuple[int, str, int]] = set()
        self._looked_s: dict[tuple[int, str, int], float] = {}  # by kind, peer and epoch: of claims, the last look
        self._since_s = self._last_s = float("-inf")  # when the looks began that have had no pause since, and the last
        self._new: list[Sighting] = []

    @property
    def first_seen_s(self) -> dict[bytes, float]:
        """When records were first seen that came while this node was looking, unix seconds."""
        return {record: each.seen_s for record, each in self._seen.items() if each.seen_s is not None}

    @property
    def since_s(self) -> float:
        """When the looks began that have had no pause since, unix seconds."""
        return self._since_s

    def look(self, keys: Keys, proofs: Proofs, now_s: float, patience_s: float) -> None:
        """Note what was read.

        Args:
            keys: Where was read just now; what is elsewhere in ``proofs`` was read before.
            proofs: All that is known.
            now_s: When the reading began, unix seconds.
            patience_s: An earlier look that is as far back shows nothing.
        """
        if now_s - self._last_s >= patience_s:
            self._since_s = now_s
            self._looked = set()
        self._last_s = now_s
        for author, record in _about_claims(proofs):
            name, place = record_id(record), (record.KIND, author, record.epoch)
            if name not in self._seen and len(self._seen) < MAX_SIGHTINGS:
                is_new_id = isinstance(record, Claim) and self._since_s <= record.t
                is_late = isinstance(record, Claim) and record.t + 2 * patience_s <= self._looked_s.get(place, 0.0)
                is_watched = place in self._looked or (bool(self._looked) and is_new_id) or is_late
                self._seen[name] = sighting = Sighting(name, record.epoch, now_s if is_watched else None)
                self._new.append(sighting)
        self._looked = {(kind, *key) for kind, read in keys.items() for key in read}
        self._looked_s |= {place: now_s for place in self._looked if place[0] == Kind.CLAIM}

    def take_new(self) -> list[Sighting]:
        """Return what has been noted since the last call, for the disk."""
        new, self._new = self._new, []
        return new

    def forget_before(self, epoch: int) -> None:
        """Forget what is older: claims of then are read no more."""
        self._seen = {name: each for name, each in self._seen.items() if each.epoch >= epoch}
        self._looked_s = {place: seen_s for place, seen_s in self._looked_s.items() if place[2] >= epoch}


def _about_claims(proofs: Proofs) -> Iterator[tuple[str, Claim | Contest | Verdict]]:
    known = {claim.hash for claim in proofs.claims}
    for claim in proofs.claims:
        yield claim.accuser, claim
    for contest in proofs.contests:
        if contest.claim in known:
            yield contest.contester, contest
    for verdict in proofs.verdicts:
        if verdict.claim in known:
            yield verdict.member, verdict
