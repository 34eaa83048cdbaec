"""Whoever signs one thing and does another is found, and nobody else is named for it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.identity import Identity
from node.commitment.chunks import NOTHING, Leaf
from node.errors import SessionError, StageAtFault
from node.merkle import CompactRange
from node.wire import payload_bytes
from tests.node.commitment.sessions import SESSION, Session, Stage, noise, signature_of

IDENTITIES = [Identity.ephemeral() for _ in range(6)]
OUTSIDER = Identity.ephemeral()


def found(evil_class, place, calls, *, num_stages=3, rows=2, reports_backwards=False):
    """Run a session with one adversary; return who is named, and by what.

    A stage names the one before it to the client; the client names a stage by what it reports.
    """
    session = Session(
        IDENTITIES, num_stages, "float32", "", rows, lambda number: evil_class if number == place else Stage
    )
    try:
        for tokens in calls:
            session.call(tokens)
            session.settle()
            places = range(num_stages)
            for number in reversed(places) if reports_backwards else places:
                session.stages[number].report()
                session.deliver(number)
        session.end()
    except StageAtFault as fault:
        return session.peers.index(fault.peer_id), fault.reason
    return None, "" if session.check.is_complete else "something is missing at the end"


LONG = [[130], *[[1]] * 150]


class SendsOther(Stage):
    """Signs and commits to one hash and sends other bytes."""

    def push(self, step, segment):
        other = noise(len(step.payload), "other", step.position)
        super().push(replace(step, payload=other), segment)


class AnswersOther(Stage):
    """The last stage commits to one hash and answers with other bytes."""

    def hand_on(self, step, segment, codec, shape, payload):
        self.commitment.give(step, segment, codec, shape, noise(payload_bytes(codec, shape), "other"))
        self.next(("result", codec, shape, payload))
        self.handed_on += 1


class Liar(Stage):
    """Reports something else than it has done, and signs the root over that."""

    def __init__(self, *args):
        super().__init__(*args)
        self.tree = CompactRange()

    def report(self):
        leaves = self.lie(self.commitment.report()[0])
        for leaf in leaves:
            self.tree.append(leaf.hash(SESSION))
        self.reports.append((leaves, self.tree.root(), self.handed_on))


class CommitsOther(Liar):
    """Signs towards the next stage what it sends, and commits to another hash."""

    def lie(self, leaves):
        return tuple(replace(leaf, given=bytes(32)) for leaf in leaves)


class TookOther(Liar):
    """Says that it was sent something else; the signature that it shows is for what it was sent."""

    def lie(self, leaves):
        return tuple(replace(leaf, taken=bytes(32)) for leaf in leaves)


class ForgesVouchers(TookOther):
    """Signs in the place of the stage before."""

    def lie(self, leaves):
        own = self.identity.peer_id_bytes
        return tuple(
            replace(leaf, voucher=signature_of(own, 130, leaf.chunk_in.voucher_body(SESSION)))
            for leaf in super().lie(leaves)
        )


class VouchesForNothing(Stage):
    def vouch(self, chunk):
        pass


class VouchesOld(Stage):
    """Sends its first voucher again and again."""

    first = None

    def vouch(self, chunk):
        self.first = self.first or chunk
        signature = signature_of(self.identity.peer_id_bytes, 130, self.first.voucher_body(SESSION))
        self.next(("voucher", chunk.segment, chunk.index, signature))


class VouchesForAnotherSession(Stage):
    def vouch(self, chunk):
        body = chunk.voucher_body(b"another session.")
        self.next(("voucher", chunk.segment, chunk.index, signature_of(self.identity.peer_id_bytes, 130, body)))


class VouchesForAnotherSegment(Stage):
    def vouch(self, chunk):
        body = replace(chunk, segment=chunk.segment + 1).voucher_body(SESSION)
        self.next(("voucher", chunk.segment, chunk.index, signature_of(self.identity.peer_id_bytes, 130, body)))


class VouchesInAnotherDomain(Stage):
    def vouch(self, chunk):
        signature = signature_of(self.identity.peer_id_bytes, 129, chunk.voucher_body(SESSION))
        self.next(("voucher", chunk.segment, chunk.index, signature))


class OthersVouch(Stage):
    def vouch(self, chunk):
        signature = signature_of(OUTSIDER.peer_id_bytes, 130, chunk.voucher_body(SESSION))
        self.next(("voucher", chunk.segment, chunk.index, signature))


class ReordersRows(Stage):
    """Hands on the rows of what it computed in another order."""

    def push(self, step, segment):
        half = len(step.payload) // 2
        super().push(replace(step, payload=step.payload[half:] + step.payload[:half]), segment)


class ChangesCrops(Stage):
    """Asks the next stage for another row selection than it was asked for, and signs for it."""

    def hand_on(self, step, segment, codec, shape, payload):
        changed = replace(step, rows=(1, 0)) if step.position == 140 else step
        super().hand_on(changed, segment, codec, shape, payload)


class ChangesHeadersBehindItsCommitment(Stage):
    def push(self, step, segment):
        super().push(replace(step, rows=(1, 0)) if step.position == 140 else step, segment)


class LeavesAChunkOut(Liar):
    has_left_out = False

    def lie(self, leaves):
        left_out, self.has_left_out = leaves and not self.has_left_out, self.has_left_out or bool(leaves)
        return leaves[1:] if left_out else leaves


class CommitsToNothing(Liar):
    def lie(self, leaves):
        return ()


class CommitsTwice(Liar):
    def lie(self, leaves):
        return leaves * 2


class CommitsToMore(Liar):
    """Commits to chunks that never were, for which nobody has signed."""

    index = 0

    def lie(self, leaves):
        self.index = leaves[-1].index + 1 if leaves else self.index
        more = Leaf(0, self.index, 64 * self.index, b"h" * 32, b"i" * 32, b"o" * 32)
        self.index += 1
        return (*leaves, more)


class SaysToHaveSentAgain(Liar):
    def lie(self, leaves):
        return (*leaves, Leaf(0, 0, 0, b"h" * 32, NOTHING, b"o" * 32))


class CountsTooManySteps(Stage):
    def report(self):
        super().report()
        leaves, root, steps = self.reports.pop()
        self.reports.append((leaves, root, steps + 1))


class HoldsSegmentsBack(Stage):
    """Commits to a new segment and does not tell the next stage of it."""

    def push(self, step, segment):
        super().push(step, 0)


BY_THE_NEXT_STAGE = [
    SendsOther, VouchesForNothing, VouchesOld, VouchesForAnotherSession, VouchesForAnotherSegment,
    VouchesInAnotherDomain, OthersVouch, ReordersRows, ChangesHeadersBehindItsCommitment,
]  # fmt: skip
BY_THE_CLIENT = [
    CommitsOther, TookOther, LeavesAChunkOut, CommitsToNothing, CommitsTwice, CommitsToMore, SaysToHaveSentAgain,
    CountsTooManySteps,
]  # fmt: skip


def test_with_honest_stages_nobody_is_named():
    for backwards in (False, True):
        assert found(Stage, 1, LONG, reports_backwards=backwards) == (None, "")


@pytest.mark.parametrize("evil", BY_THE_NEXT_STAGE)
@pytest.mark.parametrize("place", [0, 1])
def test_a_stage_that_sends_what_it_has_not_signed_for_is_named_by_the_next(evil, place):
    named, reason = found(evil, place, LONG)
    assert named == place
    assert reason.startswith("has not signed for chunk")


@pytest.mark.parametrize("evil", BY_THE_CLIENT)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("reports_backwards", [False, True])
def test_a_stage_that_commits_to_something_else_than_happened_is_named_by_the_client(evil, place, reports_backwards):
    named, reason = found(evil, place, LONG, reports_backwards=reports_backwards)
    assert named == place, reason


@pytest.mark.parametrize("place", [1, 2])
def test_a_stage_cannot_sign_in_the_place_of_the_one_before(place):
    named, reason = found(ForgesVouchers, place, LONG)
    assert (named, "nobody has signed for" in reason) == (place, True)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("reports_backwards", [False, True])
def test_a_stage_that_signs_for_a_changed_header_is_named_and_not_the_one_that_believed_it(place, reports_backwards):
    named, _ = found(ChangesCrops, place, [[130], *[[1]] * 150], reports_backwards=reports_backwards)
    assert named == place


def test_a_last_stage_that_answers_other_bytes_than_it_commits_to_is_named():
    assert found(AnswersOther, 2, LONG) == (2, "gave other bytes for chunk 0 than it commits to")


class DropsAStep(Stage):
    def push(self, step, segment):
        if step.position != 140:
            super().push(step, segment)


class RepeatsAStep(Stage):
    """Sends one step twice; the second time with other bytes."""

    def push(self, step, segment):
        super().push(step, segment)
        if step.position == 140:
            super().push(replace(step, payload=noise(len(step.payload), "twice")), segment)


def test_a_step_that_a_stage_drops_does_not_fit_at_the_next():
    session = Session(IDENTITIES, 3, rows=2, stage_class=lambda number: DropsAStep if number == 0 else Stage)
    session.call([130, *[1] * 50])
    with pytest.raises(SessionError, match="stands at position 140, the step at 141"):
        session.settle()


def test_a_step_that_a_stage_repeats_changes_nothing():
    assert found(RepeatsAStep, 0, LONG) == (None, "")


def test_a_stage_that_refuses_unsigned_input_stands_where_it_stood():
    session = Session(IDENTITIES, 2)
    session.call([64])
    first, second = session.stages
    while first.inbox:
        first.work()
    voucher, step = second.inbox
    second.inbox.clear()
    order = second.state.receive(step[1])
    with pytest.raises(StageAtFault) as caught:
        second.commitment.take(order.step, step[2])
    assert caught.value.peer_id == first.peer_id
    second.commitment.vouch(*voucher[1:])
    second.commitment.take(order.step, step[2])
    shape = (1, 64, session.width)
    second.hand_on(order.step, 0, "float32", shape, noise(payload_bytes("float32", shape), 1))
    session.end()
    assert session.check.is_complete


@settings(max_examples=40, deadline=None)
@given(
    evil=st.sampled_from([*BY_THE_NEXT_STAGE, *BY_THE_CLIENT, ChangesCrops]), place=st.integers(0, 2),
    stages=st.integers(3, 5), calls=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), max_size=12),
    backwards=st.booleans(),
)  # fmt: skip
def test_nobody_but_the_adversary_is_ever_named(evil, place, stages, calls, backwards):
    named, reason = found(evil, place, [[64], *calls], num_stages=stages, reports_backwards=backwards)
    assert named in (None, place), reason


@settings(max_examples=60, deadline=None)
@given(
    evil=st.sampled_from([*BY_THE_NEXT_STAGE, *BY_THE_CLIENT, *[HoldsSegmentsBack] * 5]), place=st.integers(0, 2),
    data=st.data(),
    calls=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=2, max_size=10),
)  # fmt: skip
def test_nobody_but_the_adversary_is_named_while_others_are_replaced(evil, place, data, calls):
    session = Session(IDENTITIES, 3, stage_class=lambda number: evil if number == place else Stage)
    named, peer_id, when = "", session.peers[place], data.draw(st.integers(0, len(calls) - 1))
    try:
        for number, tokens in enumerate(calls):
            session.call(tokens)
            if number in (when, 2 * when):
                session.replace(*[data.draw(st.sampled_from(sorted({0, 1, 2} - {place})))] * 2, 1)
            session.settle()
            session.report_all()
        session.end()
    except StageAtFault as fault:
        named = fault.peer_id
    assert named in ("", peer_id)


def test_a_stage_that_sends_other_bytes_again_than_it_signs_for_is_named_by_the_new_one():
    session = Session(IDENTITIES, 3, stage_class=lambda number: SendsOther if number == 0 else Stage)
    session.call([10])
    session.settle()  # No chunk is complete, so nobody has noticed.
    session.replace(1, 1, 1)
    session.call([64])
    with pytest.raises(StageAtFault, match="has not signed for chunk 0") as caught:
        session.settle()
    assert caught.value.peer_id == session.peers[0]


def test_vouchers_of_a_segment_that_has_passed_are_worth_nothing():
    session = Session(IDENTITIES, 3, stage_class=lambda number: VouchesForAnotherSegment if number == 0 else Stage)
    session.call([64])
    session.replace(2, 2, 1)
    with pytest.raises(StageAtFault, match="has not signed for chunk 0"):
        session.settle()


def decode(session, count):
    for _ in range(count):
        session.call([1])
        session.settle()
        session.report_all()


@pytest.mark.parametrize("replaced", [0, 1, 2])
def test_a_stage_that_holds_a_segment_back_is_named_whoever_was_replaced(replaced):
    evil = 1 if replaced != 1 else 0
    session = Session(IDENTITIES, 3, stage_class=lambda number: HoldsSegmentsBack if number == evil else Stage)
    session.call([30])
    session.settle()
    session.replace(replaced, replaced, 1)
    with pytest.raises(StageAtFault) as caught:
        decode(session, 200)
    assert caught.value.peer_id == session.peers[evil]


def test_a_report_that_shows_the_fault_of_the_stage_before_is_taken_itself():
    """Or the honest stage would wait for its signatures, and be left as one that does not ask for them."""
    session = Session(IDENTITIES, 2, stage_class=lambda number: CommitsOther if number == 0 else Stage)
    session.call([130])
    session.settle()
    session.stages[0].report()
    session.deliver(0)
    session.stages[1].report()
    leaves, root, steps = session.stages[1].reports.popleft()
    with pytest.raises(StageAtFault, match="has signed for other bytes") as shown:
        session.check.check(1, leaves, steps)
    assert shown.value.peer_id == session.peers[0]
    assert session.check.root_of(1) == root
    session.call([64])
    session.settle()
    session.stages[1].report()
    session.deliver(1)
