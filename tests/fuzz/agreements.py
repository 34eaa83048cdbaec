"""Fuzz what two sides of a session say about work: offers, checkpoints, co-signatures, from a hostile other side."""

from dataclasses import replace
from random import Random

import msgpack

from dht.codec import encode
from dht.errors import BadRecord
from dht.identity import verify
from dht.records import Envelope, Kind
from dht.work import Receipt, WorkKind
from node.agreement.checkpoint import Checkpoint, Cosign
from node.agreement.consumer import MAX_ANSWERS
from node.agreement.exposure import UNITS
from node.agreement.offers import ConsumerLanes, Offer, accept, is_accepted, read_offer
from node.agreement.provider import MAX_UNANSWERED
from node.commitment.chunks import Leaf
from node.errors import FrameError, Refused, SessionError, StageAtFault
from tests.fuzz.draw import Draw, draw_value, mutated
from tests.node.agreement.dealings import CONSUMER, NOW, OTHER, PROVIDER, RULES, Dealing, offer, signed

KINDS = (WorkKind.DECODE, WorkKind.PREFILL)
ROOT = b"r" * 32
LEAF = Leaf(0, 0, 0, bytes(32), bytes(32), bytes(32), bytes(64))
SAMPLES = (
    offer(),
    Checkpoint(1, 3, (LEAF, replace(LEAF, index=1, voucher=b"")), (b"receipt",), (bytes(64),)),
    Cosign(1, (bytes(64),)),
)


def messages(data: bytes) -> None:
    """A body is read whole, and says what was sent, or is refused."""
    draw = Draw(data)
    sample = draw.one_of(SAMPLES)
    body = sample.to_body()
    match draw.number(2):
        case 0:
            body = draw.rest()
        case 1:
            at = draw.number(len(body) - 1)
            body = body[:at] + draw.some_bytes(6) + body[at + draw.number(6) :]
        case _:
            try:
                body = encode(mutated(draw, msgpack.unpackb(body)))
            except (ValueError, TypeError):
                body = draw.rest()
    try:
        read = type(sample).from_body(body)
    except (BadRecord, FrameError):
        return
    assert read.to_body() == body
    if isinstance(read, Offer):
        assert not is_accepted(read, draw.blob(64), verify)


def offers(data: bytes) -> None:
    """An offer is taken as it was wanted and signed, or refused in a sentence."""
    draw = Draw(data)
    wanted = offer()
    made = offer(
        lane=draw.edge() % 2**32,
        t=int(NOW) + draw.number(600) - 300,
        consumer=draw.one_of((CONSUMER, CONSUMER, OTHER)),
        max_tokens=1024 + draw.rarely(),
    )
    body, signature = signed(made, draw.one_of((CONSUMER, CONSUMER, OTHER)))
    if draw.rarely():
        signature = draw.some_bytes(65)
    if draw.rarely():
        at = draw.number(len(body) - 1)
        body = body[:at] + draw.some_bytes(4) + body[at + 1 :]
    try:
        taken = read_offer(body, signature, wanted, verify, NOW)
    except Refused:
        return
    assert taken.to_body() == body
    assert taken.terms == wanted.terms
    assert is_accepted(taken, accept(body, PROVIDER.sign), verify)


def dealings(data: bytes) -> None:
    """One side deals honestly, and the other, and now and then something forged comes between them."""
    draw = Draw(data)
    dealing = Dealing(every=draw.one_of((16, 64)), cap=draw.one_of((16, 64)) * UNITS, lanes=ConsumerLanes(Random(1)))
    now_s, checkpoints = NOW, []
    for _ in range(80):
        if draw.is_used_up:
            break
        now_s += draw.one_of((0.0, 0.5, 200.0, 1200.0, -50.0)) if draw.rarely() else 0.01
        match draw.number(5):
            case 0 | 1:
                _one_step(draw, dealing, now_s)
            case 2 | 3:
                _one_checkpoint(draw, dealing, checkpoints, now_s)
            case 4:
                _forged_answer(draw, dealing)
            case _:
                _forged_checkpoint(draw, dealing, checkpoints, now_s)
        assert len(dealing.provider._unanswered) <= MAX_UNANSWERED
        assert len(dealing.consumer._answers) <= MAX_ANSWERS
        assert dealing.provider.exposure >= 0
        assert dealing.provider.is_settled in (True, False)
        dealing.consumer.is_overdue(now_s)


def _one_step(draw: Draw, dealing: Dealing, now_s: float) -> None:
    kind, tokens = draw.one_of(KINDS), 1 + draw.number(70)
    if not (dealing.provider.has_room(kind, tokens) or dealing.provider.can_run(kind, tokens, now_s)):
        return
    dealing.steps += 1
    dealing.consumer.sent(dealing.steps, kind, tokens, 8 * tokens, 8 * tokens, now_s)
    known = draw.number(tokens) if draw.rarely() else 0
    dealing.provider.count(kind, tokens, 8 * tokens, 8 * tokens, now_s, known_tokens=known)
    dealing.consumer.answered(tokens, now_s)
    if draw.rarely():
        dealing.consumer.handed_history(draw.number(dealing.steps), tokens, 8 * tokens, 0, now_s)


def _one_checkpoint(draw: Draw, dealing: Dealing, checkpoints: list[Checkpoint], now_s: float) -> None:
    if dealing.provider.is_due(now_s, is_last=draw.rarely()):
        checkpoints.append(dealing.provider.checkpoint((), ROOT, dealing.steps))
        del checkpoints[:-5]
    if not checkpoints:
        return
    made = checkpoints[-1] if not draw.rarely() else draw.one_of(checkpoints)
    try:
        answer = dealing.consumer.check(made, ROOT, now_s)
    except StageAtFault:
        return
    if answer is not None and not draw.rarely():
        for envelope in dealing.provider.cosigned(answer):
            assert verify(CONSUMER.peer_id_bytes, Kind.RECEIPT, envelope.body, envelope.signatures[1])


def _forged_answer(draw: Draw, dealing: Dealing) -> None:
    """A client that signs something else, or not at all, completes nothing."""
    bodies = [body for made in dealing.provider.unanswered() for body in made.receipts]
    signatures = [bytes(64) for _ in range(draw.number(9))]
    for index in range(len(signatures) if bodies else 0):
        who, domain = draw.one_of((CONSUMER, OTHER)), draw.one_of((Kind.RECEIPT, 128))
        signatures[index] = who.sign(domain, draw.one_of(bodies))
    before = dealing.provider.exposure
    try:
        envelopes = dealing.provider.cosigned(Cosign(1 + draw.number(40), tuple(signatures)))
    except SessionError:
        assert dealing.provider.exposure == before
        return
    for envelope in envelopes:
        _check_both(envelope)


def _check_both(envelope: Envelope) -> None:
    authors = (PROVIDER.peer_id_bytes, CONSUMER.peer_id_bytes)
    assert all(
        verify(author, Kind.RECEIPT, envelope.body, by) for author, by in zip(authors, envelope.signatures, strict=True)
    )


def _forged_checkpoint(draw: Draw, dealing: Dealing, checkpoints: list[Checkpoint], now_s: float) -> None:
    """A stage asks for signatures under what was not; what the client signs is in its own account."""
    base = draw.one_of(checkpoints) if checkpoints else None
    bodies = list(base.receipts) if base is not None else []
    for index, body in enumerate(bodies):
        bodies[index] = _forged_receipt(draw, body)
    if draw.rarely():
        bodies = [draw.some_bytes(300) for _ in range(draw.number(3))]
    made = Checkpoint(
        number=(base.number if base is not None else 1) + draw.number(2),
        steps=draw.number(dealing.steps + 1),
        leaves=(),
        receipts=tuple(bodies),
        signatures=tuple((PROVIDER if not draw.rarely() else OTHER).sign(Kind.RECEIPT, body) for body in bodies),
    )
    before = set(dealing.consumer_signer.bodies)
    try:
        answer = dealing.consumer.check(made, ROOT if not draw.rarely() else bytes(32), now_s)
    except StageAtFault:
        assert set(dealing.consumer_signer.bodies) == before
        return
    for body in set(dealing.consumer_signer.bodies) - before:
        assert answer is not None
        receipt = Receipt.from_body(body)
        assert receipt.consumer == CONSUMER.peer_id
        assert receipt.objection(RULES, now_s) is None


def _forged_receipt(draw: Draw, body: bytes) -> bytes:
    """Change a receipt's fields; work follows the amount, so that more than that is looked at."""
    fields = msgpack.unpackb(body)
    for _ in range(draw.number(3)):
        index = draw.number(len(fields) - 1)
        value = fields[index]
        fields[index] = value + draw.number(4) - 2 if isinstance(value, int) else draw_value(draw)
    try:
        if draw.flag():
            fields[12] = fields[11] * (fields[8] - fields[7])
        return encode(fields)
    except (ValueError, TypeError, IndexError):
        return body
