"""What accuses a stage convinces whoever checks all of it, whatever steps the session took."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.identity import verify
from dht.records import Envelope, Kind
from node.check.evidence import pack, unpack_and_verify
from node.claims.rerun import work_of
from node.client.accusation import accusation_of
from node.client.audit_opening import Given, Opening
from node.client.audit_trail import Trail
from node.client.route import Stage
from node.commitment.chunks import NOTHING
from node.commitment.stage import StageCommitment
from node.errors import CannotCheck
from node.merkle import root_of
from node.wire import Step
from tests.node.check.session import CODEC, CONSUMER, PROVIDER, WIDTH, held, inputs, outputs

SESSION = b"evidence session"


def opening_of(lengths, number=0, crop=None):
    """Let a stage sign for steps, and open one of its chunks, as an auditor does."""
    trail, stage = Trail(), StageCommitment(SESSION, CODEC, verify)
    position = 0
    for count, tokens in enumerate(lengths):
        cropped = crop if count == len(lengths) - 1 else None
        position = position if cropped is None else cropped
        step = Step(SESSION, position, (1, tokens, WIDTH), CODEC, inputs(position, tokens), crop=cropped)
        trail.sent(step, 0)
        stage.take(step, 0)
        stage.give(step, 0, CODEC, step.shape, outputs(position, tokens))
        position += tokens
    stage.seal()
    leaves, root = stage.report()
    base = held()
    receipt = replace(base.receipt, commitment=root).to_body()
    signatures = (PROVIDER.sign(Kind.RECEIPT, receipt), CONSUMER.sign(Kind.RECEIPT, receipt))
    tiles = trail.up_to(0, leaves[number].index)
    end = tiles[-1].end
    first = leaves[number].first
    return Opening(
        manifest=bytes(32), stage=Stage(PROVIDER.peer_id, 0, 4, (), weights="float32"), previous="", dtype="float32",
        profile=base.offer.profile, codec=CODEC, session=SESSION, segment=0, index=leaves[number].index, first=first,
        end=end, left_padding=(), thin=None, inputs=Given(0, CODEC, (1, end, WIDTH), inputs(0, end)),
        outputs=(Given(first, CODEC, (1, end - first, WIDTH), outputs(first, end - first)),), leaves=tuple(leaves),
        receipt=Envelope(Kind.RECEIPT, receipt, signatures).to_bytes(), offer=base.evidence.offer,
        offer_signature=base.evidence.offer_signature, accept_signature=base.evidence.accept_signature,
        headers={tile.place: bytes(tile.headers) for tile in tiles},
    )  # fmt: skip


def claim_with(accusation):
    blob = pack(accusation.evidence)
    last = accusation.evidence.chunks[-1].leaf
    _, claim = held().claim(
        blob=blob, receipt=accusation.receipt, receipt_signature=accusation.receipt_signature, segment=last.segment,
        index=last.index,
    )  # fmt: skip
    return blob, claim


@settings(max_examples=40)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=6), st.data())
def test_whoever_checks_it_finds_what_the_stage_signed_for(lengths, data):
    number = data.draw(st.integers(0, (sum(lengths) - 1) // 64))
    accusation = accusation_of(opening_of(lengths, number), 500_000)
    read = unpack_and_verify(*claim_with(accusation))
    work = work_of(read, WIDTH)
    end = min(sum(lengths), 64 * (number + 1))
    assert b"".join(bytes(piece.payload) for piece in work.inputs) == inputs(0, end)
    assert b"".join(bytes(piece.payload) for piece in work.outputs) == outputs(64 * number, end - 64 * number)


def test_chunks_that_were_only_sent_again_are_left_closed():
    opening = opening_of([64, 64], number=1)
    again = replace(opening.leaves[0], taken=NOTHING, segment=7)
    leaves = (again, *opening.leaves)
    root = root_of([leaf.hash(SESSION) for leaf in leaves])
    receipt = replace(held().receipt, commitment=root).to_body()
    signatures = (PROVIDER.sign(Kind.RECEIPT, receipt), CONSUMER.sign(Kind.RECEIPT, receipt))
    signed = Envelope(Kind.RECEIPT, receipt, signatures).to_bytes()
    read = unpack_and_verify(*claim_with(accusation_of(replace(opening, leaves=leaves, receipt=signed), 500_000)))
    assert len(read.chunks) == 3
    assert len(read.computed) == 2


def test_a_session_that_was_cropped_cannot_be_claimed_behind_the_crop():
    opening = opening_of([64, 64, 20], number=2, crop=64)
    with pytest.raises(CannotCheck, match="cropped"):
        accusation_of(opening, 500_000)


def test_nobody_claims_ids_or_logits():
    opening = opening_of([64])
    with pytest.raises(CannotCheck, match="Ids and logits"):
        accusation_of(replace(opening, inputs=replace(opening.inputs, codec="ids")), 500_000)
