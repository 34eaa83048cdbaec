"""What binds a session at a server, against peers that try to slip past it; on a clock that jumps."""

import pytest

from dht.domains import Domain
from dht.errors import LedgerNotWritten, SeqsSpent
from dht.records import Kind
from node.agreement.checkpoint import Checkpoint as CheckpointBody
from node.agreement.checkpoint import Cosign as CosignBody
from node.agreement.offers import Offer, padding_digest, profile_digest
from node.errors import Refused
from node.wire import Accept, Checkpoint, Close, Cosign, Open, Refuse, Replay, Result, Step
from tests.fuzz.serving import CLIENT, HIDDEN, MANIFEST, NUM_BLOCKS, SERVER, STAGE, Serving, framed

SESSION = b"one session only"


@pytest.fixture
def serving():
    serving = Serving()
    try:
        yield serving
        serving.end()
    finally:
        serving.abandon()


def opening(serving, client=CLIENT, session=SESSION, lane=7, **changes):
    fields = {"start": 0, "end": NUM_BLOCKS, "batch": 1, "left_padding": (), "max_length": 200, "codec": "float32"}
    fields |= {"previous": client.peer_id, "next": "", "next_addresses": (), **changes}
    profile, now = profile_digest("float32", "float32"), int(serving.clock.time())
    most = fields["batch"] * fields["max_length"]
    padding = padding_digest(fields["left_padding"])
    offer = Offer(
        session, client.peer_id, SERVER.peer_id, MANIFEST, 0, NUM_BLOCKS, profile, padding, lane, most, now
    ).to_body()
    return Open(session, MANIFEST, offer=offer, offer_signature=client.sign(Domain.OFFER, offer), **fields)


def step(position=0, tokens=1, session=SESSION):
    return Step(session, position, (1, tokens, HIDDEN), "float32", bytes(4 * tokens * HIDDEN))


def control_of(serving, client=CLIENT, **changes):
    """Begin to open a session; it is registered, and the server looks into its ledger."""
    control = serving.open_stream(client)
    control.sends(framed(opening(serving, client, **changes)))
    serving.turn()
    assert serving.handler.num_sessions == 1
    return control


def test_steps_that_come_before_the_agreement_are_refused_and_not_run_unbound(serving):
    serving.engine.takes_s = 0.05
    control = control_of(serving)
    push = serving.open_stream(CLIENT)
    push.sends(framed(step(tokens=64)))
    serving.turn(1.0)
    assert [type(frame) for frame in push.frames()] == [Refuse]
    assert [type(frame) for frame in control.frames()] == [Accept]


def test_a_session_that_ends_while_it_is_agreed_on_leaves_no_lane_open(serving):
    control = control_of(serving)
    serving.loop.run_until_complete(serving.handler.end_all(Refused("draining", "leaving")))
    serving.turn(1.0)
    assert [type(frame) for frame in control.frames()] == [Refuse]
    again = control_of(serving, session=bytes(16))
    serving.turn(1.0)
    assert [type(frame) for frame in again.frames()] == [Accept]


def run_and_sign(serving, control, num_steps):
    """Push steps of one token and sign for them all."""
    push = serving.open_stream(CLIENT)
    signed = 0
    for position in range(num_steps):
        push.sends(framed(step(position)))
        serving.turn(0.02)
        for frame in control.frames():
            if isinstance(frame, Checkpoint):
                made = CheckpointBody.from_body(frame.body)
                answer = CosignBody(made.number, tuple(CLIENT.sign(Kind.RECEIPT, body) for body in made.receipts))
                control.sends(framed(Cosign(SESSION, answer.to_body())))
                signed += 1
            else:
                assert isinstance(frame, Accept | Result)
        serving.turn(0.02)
    return signed


def test_a_client_that_signs_is_served_on_and_the_ledger_has_what_it_signed(serving):
    control = control_of(serving)
    serving.turn(1.0)
    assert run_and_sign(serving, control, 40) == len(serving.ledger.envelopes) == 2
    control.sends(framed(Close(SESSION)))
    serving.turn(5.0)
    assert serving.ledger.unsigned_ends == 1


def test_a_client_cannot_leave_a_session_unsigned_by_the_server_s_doing(serving):
    control = control_of(serving, max_length=1200)
    serving.turn(1.0)
    push = serving.open_stream(CLIENT)
    for position in range(14):
        push.sends(framed(step(position)))
        serving.turn(0.02)
    push.sends(framed(Step(SESSION, 14, (2, 1, HIDDEN), "float32", bytes(8 * HIDDEN), rows=(0, 0))))
    serving.turn(1.0)
    refusal = control.frames()[-1]
    assert isinstance(refusal, Refuse)
    assert refusal.code in ("too_long", "full")
    assert list(serving.ledger.standing_changes) == [1], "it is as if it had not signed at all"


FAULTS = {"lane": SeqsSpent("The lane has no numbers left."), "failed": LedgerNotWritten("The disk is full.")}


@pytest.mark.parametrize("code", FAULTS)
def test_a_server_that_can_sign_no_more_ends_the_session_and_says_so(serving, code):
    control = control_of(serving)
    serving.turn(1.0)
    push = serving.open_stream(CLIENT)
    serving.ledger.fault = FAULTS[code]
    push.sends(framed(step(tokens=64)))
    serving.turn(1.0)
    refusal = control.frames()[-1]
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.retryable) == (code, True)
    assert serving.handler.num_sessions == 0


def test_a_server_whose_ledger_cannot_be_read_refuses_the_session(serving):
    control = serving.open_stream(CLIENT)
    serving.ledger.fault = FAULTS["failed"]
    control.sends(framed(opening(serving)))
    serving.turn(1.0)
    (refusal,) = control.frames()
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.retryable) == ("failed", True)
    assert serving.handler.num_sessions == 0


def test_whoever_is_to_be_handed_the_outputs_has_a_name(serving):
    control = control_of(serving, next=STAGE.peer_id)
    serving.turn(1.0)
    control.sends(framed(Replay(SESSION, 1, "", (), 0, 1)))
    serving.turn(1.0)
    refusal = control.frames()[-1]
    assert isinstance(refusal, Refuse)
    assert refusal.code == "protocol"
