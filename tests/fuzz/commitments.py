"""Fuzz what stages commit to: steps, vouchers and reports from neighbours that need not mean well."""

import contextlib
from dataclasses import replace

from msgpack import unpackb

from dht.codec import encode
from dht.identity import Identity
from node.check.evidence import pack, unpack_and_verify
from node.check.headers import Header
from node.commitment.chain import ChainCheck
from node.commitment.chunks import NOTHING, WINDOW, Leaf
from node.commitment.stage import MAX_LEAVES, MAX_VOUCHERS, StageCommitment
from node.errors import FalseEvidence, StageAtFault
from node.merkle import hash_leaf, is_included, root_of
from node.wire import Step, payload_bytes
from tests.fuzz.draw import Draw, mutated
from tests.node.check.session import held
from tests.node.commitment.sessions import SESSION, signature_of, verify

FIRST, SECOND, THIRD = (Identity.from_seed(bytes([80 + number]) * 32) for number in range(3))
CODEC, WIDTH, MAX_POSITIONS = "float32", 2, 400
DOMAIN = 130


HELD = held()
PACKED = unpackb(pack(HELD.evidence))
(CHUNKS,) = (at for at, field in enumerate(PACKED) if isinstance(field, list))


def _payload(step: Step, salt: bytes) -> bytes:
    return salt * payload_bytes(CODEC, step.shape)


def _step(draw: Draw, position: int, length: int) -> Step:
    tokens = draw.one_of((1, 1, 1, 5, 63, 64, 65, 130))
    shape = (1 + draw.number(1), min(tokens, MAX_POSITIONS - position), WIDTH)
    crop = position if position < length else None
    step = Step(SESSION, position, shape, CODEC, b"", crop, (0,) * shape[0] if draw.rarely() else None)
    keep, history = (draw.number(70), draw.number(2)) if draw.rarely() else (1, 0)
    step = replace(step, logits_to_keep=keep, replay=history)
    return replace(step, payload=_payload(step, bytes([draw.number(3)])))


def stages(data: bytes) -> None:
    """A stage commits to what was signed for, whatever comes in whatever order, and keeps little."""
    draw = Draw(data)
    previous = FIRST.peer_id if draw.flag() else ""
    stage = StageCommitment(SESSION, CODEC, verify, previous, draw.number(1), draw.number(4) if draw.rarely() else None)
    length, segment, waiting, given, committed = 0, 0, None, 0, 0
    for _ in range(100):
        if draw.is_used_up:
            break
        match draw.number(9):
            case 0 | 1 | 2 | 3 if waiting is None:
                position = draw.number(length) if draw.rarely() else length
                if position >= MAX_POSITIONS:
                    continue
                step = _step(draw, position, length)
                segment += draw.rarely()
                at = draw.one_of((segment, max(0, segment - 1)))
                _vouch_for(draw, stage, step, at)
                try:
                    stage.take(step, at)
                except StageAtFault:
                    continue
                waiting, length = (step, at), position + step.shape[1]
            case 4 | 5 | 6 if waiting is not None:
                step, at = waiting
                given += len(stage.give(step, at, CODEC, step.shape, _payload(step, b"o")))
                waiting = None
            case 7:
                leaves, root = stage.report()
                assert len(leaves) <= MAX_LEAVES
                assert len(root) == 32
                committed += len(leaves)
            case 8:
                with contextlib.suppress(StageAtFault):
                    stage.vouch(draw.number(3), draw.number(6), draw.blob(64))
            case 9 if draw.rarely():
                stage.adopt(draw.one_of((SECOND.peer_id, "")), segment, draw.number(3))
                segment += 2
            case 9 if draw.rarely() and waiting is None:
                stage.relink(segment + 1)
                for index in range(draw.number(3)):
                    step = replace(_step(draw, index, index), replay=1)
                    stage.resend(step)
            case _ if draw.rarely():
                stage.seal()
        assert len(stage._vouchers) <= MAX_VOUCHERS
        assert len(stage._taken) <= (130 // WINDOW + 2) * 2
        assert len(stage._sealed) <= 1
    for _ in range(stage.num_unreported // MAX_LEAVES + 1):
        stage.report()
    assert stage.num_unreported == 0


def _vouch_for(draw: Draw, stage: StageCommitment, step: Step, segment: int) -> None:
    """Sign for the chunks that a step closes, as the stage before does; not always, and not always for these bytes."""
    tap = stage._in.copy()
    for chunk in tap.add(step, segment, step.codec, step.shape, step.payload):
        if not draw.rarely():
            who = draw.one_of((FIRST, SECOND)) if stage._previous == SECOND.peer_id else FIRST
            body = chunk.voucher_body(SESSION)
            with contextlib.suppress(StageAtFault):
                stage.vouch(chunk.segment, chunk.index, signature_of(who.peer_id_bytes, DOMAIN, body))


def reports(data: bytes) -> None:
    """A client takes reports of stages that lie: it names one, or goes on; what it keeps is bounded by what it sent."""
    draw = Draw(data)
    peers = [FIRST.peer_id, SECOND.peer_id]
    chain = ChainCheck(SESSION, CODEC, peers, verify)
    length, asked = 0, []
    for _ in range(100):
        if draw.is_used_up:
            break
        try:
            match draw.number(7):
                case 0 | 1 if length < MAX_POSITIONS:
                    step = replace(_step(draw, length, length), replay=0)
                    chain.sent(step, chain.segment)
                    asked.append((step, chain.segment))
                    length += step.shape[1]
                case 2 if asked:
                    step, segment = asked.pop(0)
                    chain.answered(step, segment, CODEC, step.shape, _payload(step, bytes([draw.number(1)])))
                case 3 | 4 | 5:
                    leaves = tuple(_leaf(draw, chain) for _ in range(draw.number(4)))
                    root = chain.check(draw.number(1), leaves, draw.one_of((chain.num_sent, draw.number(99))))
                    assert len(root) == 32
                case 6 if draw.rarely():
                    first = draw.number(1)
                    begins = chain.replaced(first, first, [THIRD.peer_id])
                    assert begins == chain.segment - 1
                    if first == 0 and length:
                        chain.resent(replace(_step(draw, 0, 0), replay=1))
                case 7 if draw.rarely():
                    chain.seal()
        except StageAtFault:
            return
        kept = sum(len(edge.given) + len(edge.taken) for edge in chain._edges)
        assert kept <= 4 * (chain.segment + 2) * (length + 1)


def _leaf(draw: Draw, chain: ChainCheck) -> Leaf:
    """A leaf that may be the next one, of a chunk that a neighbour has reported as it may be."""
    known = [chunk for edge in chain._edges for chunk, _ in (*edge.given.values(), *edge.taken.values())]
    if known and not draw.rarely():
        chunk = draw.one_of(known)
        voucher = signature_of(draw.one_of((FIRST, SECOND)).peer_id_bytes, DOMAIN, chunk.voucher_body(SESSION))
        given = chunk.digest if draw.flag() else draw.blob(32)
        return Leaf(chunk.segment, chunk.index, chunk.first, chunk.header, chunk.digest, given, voucher)
    taken = NOTHING if draw.rarely() else draw.blob(32)
    numbers = (draw.edge() % 2**32 if draw.rarely() else draw.number(2) for _ in range(3))
    return Leaf(*numbers, draw.blob(32), taken, draw.blob(32), draw.blob(64) if draw.flag() else b"")


ROOT = root_of([hash_leaf(bytes([number]) * 32) for number in range(5)])


def proofs(data: bytes) -> None:
    """No path leads from a leaf that is not in a tree to its root."""
    draw = Draw(data)
    path = [draw.blob(32) for _ in range(draw.number(8))]
    assert not is_included(hash_leaf(draw.some_bytes(9)), draw.edge(), draw.edge(), path, ROOT)


def evidence(data: bytes) -> None:
    """Evidence that is not the accuser's own, byte for byte, is refused, whatever its claim says of it."""
    draw = Draw(data)
    fields = list(PACKED)
    if draw.flag():
        chunks = list(fields[CHUNKS])
        number = draw.number(len(chunks) - 1)
        chunks[number] = mutated(draw, chunks[number])
        fields[CHUNKS] = mutated(draw, chunks) if draw.rarely() else chunks
    with contextlib.suppress(ValueError, TypeError):
        blob = encode(mutated(draw, fields) if draw.flag() else fields)
        blob, claim = HELD.claim(blob=blob if not draw.rarely() else draw.rest() or blob)
        try:
            read = unpack_and_verify(blob, claim)
        except FalseEvidence:
            return
        assert read == HELD.evidence


def headers(data: bytes) -> None:
    """A header is refused, or is the one way to write what was read."""
    for codec in (b"", b"float32\0"):
        try:
            assert Header.from_bytes(codec + data).to_bytes() == codec + data
        except FalseEvidence:
            continue
