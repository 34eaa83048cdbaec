"""What anchors have signed of claims, and what of it stands: that which more than half of them have signed alike. Pure.

    RULING of each anchor ──> of one anchor two about one claim? neither counts ──> more than half alike ──> stands

Whatever order records come in, and however often, the same stands.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from dht.judgement.outcomes import Ruling, State
from dht.ruling import Backer, Outcome, RulingRecord

_STATES = {
    Outcome.UPHELD: State.UPHELD,
    Outcome.REJECTED: State.REJECTED,
    Outcome.UNRESOLVED: State.UNRESOLVED,
    Outcome.IGNORED: State.IGNORED,
}
_OUTCOMES = {state: outcome for outcome, state in _STATES.items()}

SIGNED_STATES = frozenset(_OUTCOMES)
"""What can be signed: not what depends on how much a node has read, nor what is not final."""


def record_of(ruling: Ruling, anchor: str) -> RulingRecord:
    """Write a final ruling of one of ``SIGNED_STATES`` as ``anchor`` signs it."""
    slot, session, segment, index = ruling.chunk
    backers = {"": Backer.NOBODY, ruling.accuser: Backer.ACCUSER, ruling.accused: Backer.ACCUSED}
    return RulingRecord(
        anchor=anchor,
        epoch=ruling.epoch,
        claim=ruling.claim,
        accuser=ruling.accuser,
        number=ruling.number,
        provider=slot.provider,
        consumer=slot.consumer,
        receipt_epoch=slot.epoch,
        lane=slot.lane,
        work_kind=slot.work_kind,
        session=session,
        segment=segment,
        index=index,
        outcome=_OUTCOMES[ruling.state],
        backer=backers[ruling.backed_by],
        settled_s=ruling.settled_s,
    )


def agreed(signed: Iterable[RulingRecord], anchors: Collection[str]) -> dict[bytes, Ruling]:
    """Return the rulings that more than half of all anchors have signed alike, by the hash of the claim.

    Args:
        signed: Validated, in any order; those of others than anchors are left out.
        anchors: Peer ids of those by whose trust is judged.
    """
    judges = set(anchors)
    said: dict[tuple[bytes, str], set[Ruling]] = defaultdict(set)
    for record in signed:
        if record.anchor in judges:
            said[record.claim, record.anchor].add(_ruling_of(record))
    votes = Counter(ruling for one in said.values() if len(one) == 1 for ruling in one)
    return {
        ruling.claim: ruling._replace(why=f"{num_alike} of {len(judges)} anchors have signed so.")
        for ruling, num_alike in votes.items()
        if 2 * num_alike > len(judges)
    }


def _ruling_of(record: RulingRecord) -> Ruling:
    backers = {Backer.NOBODY: "", Backer.ACCUSER: record.accuser, Backer.ACCUSED: record.provider}
    parties, place = (record.accuser, record.provider), (record.epoch, record.number)
    ruling = Ruling(
        record.claim, *parties, *place, record.chunk, _STATES[record.outcome], why="", settled_s=record.settled_s
    )
    return ruling._replace(backed_by=backers[record.backer])
