"""Remember when this node first saw what was signed about claims, where it had looked shortly before. Pure.

    look at a key      t0 ......... t1 ......... t2            less than half a unit of a trial apart
    record found                               x: first seen at t2, because at t1 it was not there

Nobody can prove when a record was signed. Who looks often enough knows at least when it was not there yet; what it
finds at its first look, or after a pause, counts by its signed time alone. A claim that says it was signed while this
node was looking, under the key of somebody of whom nobody knew then, comes now: or else whoever takes a new id for it
could date it back beyond the reach of its accused. So does one that was not there at the last look, however long ago
that was, and ought to have been. Only claims, and what is about them, are remembered.

    new record ──┬── a place of its author's, and of its class ──> kept, also for after a restart
                 └── none ──> known while it is read and the process runs

So a flood of records blinds nobody who runs, and after a restart only to what floods would have: to those of one author
beyond its places, and to those of strangers when strangers have filled theirs.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
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
"""Records that are kept."""

MAX_OF_STRANGERS = MAX_SIGHTINGS // 2
"""When so many are kept, only those of peers that are heeded are, and of whomever these accuse."""

MAX_OF_AUTHOR = 2**9
"""Records of one author and epoch that are kept, unless it is an anchor."""

Keys = Mapping[int, frozenset[tuple[str, int]]]
"""By kind: peers and epochs under which was read."""


class Sighting(NamedTuple):
    """One record, seen for the first time."""

    record: bytes  # ``record_id``, 32 bytes
    epoch: int  # that its key has
    seen_s: float | None  # unix seconds; None: nobody was looking when it came


class _Item(NamedTuple):
    """What a look finds."""

    name: bytes  # ``record_id``
    kind: int
    place: tuple[str, int]  # its author and epoch
    whose: tuple[str, ...]  # its author, and who accuses it in the claim that it is about
    t: int  # when it was signed, unix seconds

    @property
    def author(self) -> str:
        return self.place[0]

    @property
    def is_claim(self) -> bool:
        return self.kind == Claim.KIND


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
        self._passing: dict[bytes, float | None] = {}  # by record: what has no place, while it is read
        self._looked: set[tuple[int, str, int]] = set()
        self._looked_s: dict[tuple[int, str, int], float] = {}  # by kind, peer and epoch: of claims, the last look
        self._since_s = self._last_s = float("-inf")  # when the looks began that have had no pause since, and the last
        self._oldest = 0  # epoch; what is older has been forgotten
        self._new: list[Sighting] = []

    @property
    def first_seen_s(self) -> dict[bytes, float]:
        """When records were first seen that came while this node was looking, unix seconds."""
        kept = {record: each.seen_s for record, each in self._seen.items() if each.seen_s is not None}
        return kept | {record: seen_s for record, seen_s in self._passing.items() if seen_s is not None}

    @property
    def since_s(self) -> float:
        """When the looks began that have had no pause since, unix seconds."""
        return self._since_s

    def look(
        self,
        keys: Keys,
        proofs: Proofs,
        now_s: float,
        patience_s: float,
        *,
        anchors: Collection[str] = (),
        heeded: Collection[str] = (),
    ) -> None:
        """Note what was read.

        Args:
            keys: Where was read just now; what is elsewhere in ``proofs`` was read before.
            proofs: All that is known.
            now_s: When the reading began, unix seconds.
            patience_s: An earlier look that is as far back shows nothing.
            anchors: Peer ids.
            heeded: Other peers that have a voice.
        """
        if now_s - self._last_s >= patience_s:
            self._since_s = now_s
            self._looked = set()
        self._last_s = now_s
        of_author: Counter[tuple[str, int]] = Counter()
        passing, new = {}, []
        for item in _about_claims(proofs, self._oldest):
            if item.name in self._seen:
                of_author[item.place] += 1
            elif item.name in self._passing:
                passing[item.name] = self._passing[item.name]
            else:
                new.append(item)
        self._passing = passing
        for item in sorted(new, key=lambda item: (item.t, item.name)):  # Whoever floods pushes its own last ones out.
            seen_s = now_s if self._is_watched(item, patience_s) else None
            if self._has_place(item, of_author[item.place], anchors, heeded):
                of_author[item.place] += 1
                self._seen[item.name] = sighting = Sighting(item.name, item.place[1], seen_s)
                self._new.append(sighting)
            else:
                self._passing[item.name] = seen_s
        self._looked = {(kind, *key) for kind, read in keys.items() for key in read}
        self._looked_s |= {place: now_s for place in self._looked if place[0] == Kind.CLAIM}

    def take_new(self) -> list[Sighting]:
        """Return what has been noted since the last call, for the disk."""
        new, self._new = self._new, []
        return new

    def forget_before(self, epoch: int) -> None:
        """Forget what is older: claims of then are read no more."""
        self._oldest = epoch
        self._seen = {name: each for name, each in self._seen.items() if each.epoch >= epoch}
        self._looked_s = {place: seen_s for place, seen_s in self._looked_s.items() if place[2] >= epoch}

    def _has_place(self, item: _Item, num_of_author: int, anchors: Collection[str], heeded: Collection[str]) -> bool:
        """Say whether a record is kept."""
        is_heeded = any(peer in anchors or peer in heeded for peer in item.whose)
        is_few = num_of_author < MAX_OF_AUTHOR or item.author in anchors
        return is_few and len(self._seen) < (MAX_SIGHTINGS if is_heeded else MAX_OF_STRANGERS)

    def _is_watched(self, item: _Item, patience_s: float) -> bool:
        """Say whether this node would have seen a record at its last look, had it been there."""
        key = (item.kind, *item.place)
        is_new_id = item.is_claim and self._since_s <= item.t
        is_late = item.is_claim and item.t + 2 * patience_s <= self._looked_s.get(key, 0.0)
        return key in self._looked or (bool(self._looked) and is_new_id) or is_late


def _about_claims(proofs: Proofs, oldest: int) -> Iterator[_Item]:
    """Yield claims, and what is about them, of epochs from ``oldest`` on."""
    parties = {}
    for claim in proofs.claims:
        if claim.epoch >= oldest:
            name = claim.hash
            parties[name] = claim.accuser, claim.accused
            yield _Item(name, claim.KIND, (claim.accuser, claim.epoch), (claim.accuser,), claim.t)
    for contest in proofs.contests:
        if contest.claim in parties:
            yield _item(contest, contest.contester, *parties[contest.claim])
    for verdict in proofs.verdicts:
        if verdict.claim in parties:
            yield _item(verdict, verdict.member, *parties[verdict.claim])


def _item(record: Contest | Verdict, author: str, accuser: str, accused: str) -> _Item:
    whose = (author, accuser) if author == accused else (author,)
    return _Item(record_id(record), record.KIND, (author, record.epoch), whose, record.t)
