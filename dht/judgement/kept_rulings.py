"""Write final rulings down and read them again, for a node that must not forget them. Pure.

What stays is what follows from a ruling and why, in words; who sat and how each voted does not.
"""

from dht.claim import MAX_CLAIMS, ClaimedChunk
from dht.codec import Fields, Value, decode, encode
from dht.identity import PEER_ID_BYTES, peer_id_to_bytes, peer_id_to_str
from dht.judgement.outcomes import Ruling, State
from dht.records import MAX_TIME_S, take_peer_id
from dht.work import MAX_EPOCH, MAX_LANE, Slot, WorkKind

MAX_BYTES = 1024
_MAX_WORDS_BYTES = 512
_MAX_NUMBER = 2**32 - 1
_STATES = tuple(State)


def pack_ruling(ruling: Ruling) -> bytes:
    """Write a ruling as one canonical array."""
    slot, session, segment, number = ruling.chunk
    accuser, accused, provider, consumer = map(
        peer_id_to_bytes, (ruling.accuser, ruling.accused, slot.provider, slot.consumer)
    )
    backer = peer_id_to_bytes(ruling.backed_by) if ruling.backed_by else b""
    counted: list[Value] = [provider, consumer, slot.epoch, slot.lane, int(slot.work_kind), session, segment, number]
    outcome: list[Value] = [_STATES.index(ruling.state), ruling.why, ruling.settled_s, backer]
    return encode([ruling.claim, accuser, accused, ruling.epoch, ruling.number, *counted, *outcome])


def unpack_ruling(packed: bytes) -> Ruling:
    """Read a ruling; raises ``BadRecord``."""
    fields = Fields(decode(packed, MAX_BYTES))
    claim, accuser, accused = fields.blob("claim", 32), take_peer_id(fields, "accuser"), take_peer_id(fields, "accused")
    epoch, number = fields.uint("epoch", MAX_EPOCH), fields.uint("number", MAX_CLAIMS)
    slot = Slot(
        provider=take_peer_id(fields, "provider"),
        consumer=take_peer_id(fields, "consumer"),
        epoch=fields.uint("epoch of the receipt", MAX_EPOCH),
        lane=fields.uint("lane", MAX_LANE),
        work_kind=WorkKind(fields.uint("work_kind", max(WorkKind), min_value=1)),
    )
    session = fields.blob("session", 16)
    chunk = ClaimedChunk(slot, session, fields.uint("segment", _MAX_NUMBER), fields.uint("index", _MAX_NUMBER))
    state = _STATES[fields.uint("state", len(_STATES) - 1)]
    why, settled_s = fields.text("why", _MAX_WORDS_BYTES), fields.uint("settled_s", MAX_TIME_S)
    backer = fields.blob("backed_by", 0, PEER_ID_BYTES)
    fields.end()
    ruling = Ruling(claim, accuser, accused, epoch, number, chunk, state, why, settled_s)
    return ruling._replace(backed_by=peer_id_to_str(backer) if backer else "")
