"""A provider works so far ahead of the signatures that it can lose no more than its cap, and never signs twice."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.identity import verify
from dht.records import Kind
from dht.work import Receipt, WorkKind
from node.agreement.checkpoint import Checkpoint, Cosign
from node.agreement.exposure import UNITS, Standing, exposure_of, kind_of, tokens_between_checkpoints
from node.commitment.chunks import Leaf
from node.errors import FrameError, LocalError, SessionError
from node.wire import Step
from tests.node.agreement.dealings import BEGAN, CONSUMER, NOW, OTHER, PROVIDER, RULES, Dealing

DECODE, PREFILL = WorkKind.DECODE, WorkKind.PREFILL


def step(tokens, replay=0):
    return Step(bytes(16), 0, (1, tokens, 1), "float32", bytes(4 * tokens), replay=replay)


def test_short_steps_are_decoding_and_long_ones_and_histories_are_prefill():
    assert [kind_of(step(tokens)) for tokens in (1, 16, 17, 4096)] == [DECODE, DECODE, PREFILL, PREFILL]
    assert kind_of(step(1, replay=1)) is PREFILL


def test_a_consumer_with_history_may_be_served_64_tokens_ahead_and_a_newcomer_16():
    assert [tokens_between_checkpoints(signed) for signed in (0, 255, 256)] == [16, 16, 64]
    assert [Standing().cap(signed) / UNITS for signed in (0, 256)] == [16, 64]


def test_an_unsigned_end_halves_the_cap_down_to_one_step_and_a_settled_session_doubles_it():
    standing, caps = Standing(), []
    for is_settled in [False] * 8 + [True] * 9:
        change = standing.change(is_settled=is_settled, signed_tokens=64, cap=standing.cap(256))
        standing = Standing(standing.unsigned_ends + change)
        caps.append(standing.cap(256) / UNITS)
    assert caps == [32, 16, 8, 4, 2, 1, 0.5, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 64]


def test_a_session_in_which_less_than_the_cap_was_signed_for_mends_nothing():
    standing = Standing(2)
    changes = [standing.change(is_settled=True, signed_tokens=tokens, cap=standing.cap(256)) for tokens in (0, 15, 16)]
    assert changes == [0, 0, -1]
    assert Standing(9).change(is_settled=True, signed_tokens=0, cap=Standing(9).cap(256)) == 0
    assert Standing().change(is_settled=True, signed_tokens=99, cap=64 * UNITS) == 0, "it is as good as it can be"


def served_to_a_non_signer(cap, every, kind, tokens):
    """Serve until the provider has lost patience; return tokens."""
    dealing, served = Dealing(cap=cap, every=every), 0
    for tick in range(1000):
        now_s = NOW + tick / 2
        if dealing.provider.has_room(kind, tokens) or dealing.provider.can_run(kind, tokens, now_s):
            dealing.step(kind, tokens, now_s)
            served += tokens
        if dealing.provider.is_due(now_s):
            dealing.checkpoint()
        if dealing.provider.has_waited_too_long(now_s):
            break
    assert not dealing.provider.is_settled
    return served


@pytest.mark.parametrize(("cap", "every", "most"), [(64, 64, 64), (16, 16, 16), (8, 16, 8), (0, 16, 0)])
@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_a_client_that_never_signs_gets_its_cap_of_tokens_or_one_step(cap, every, most, rows):
    assert served_to_a_non_signer(cap * UNITS, every, DECODE, rows) <= max(most, rows)
    assert served_to_a_non_signer(cap * UNITS, every, PREFILL, 17 * rows) <= max(16 * most, 17 * rows)


@given(
    st.sampled_from([(64, 64), (16, 16), (8, 16), (0, 16)]),
    st.lists(
        st.tuples(st.sampled_from([DECODE, DECODE, DECODE, PREFILL]), st.integers(1, 40) | st.just(1), st.booleans()),
        max_size=80,
    ),
    st.sampled_from([0.0, 0.5, 40.0]),
)
def test_blocks_change_neither_what_may_be_run_nor_what_is_counted_nor_when(rule, steps, pause_s):
    cap, every = rule
    with_blocks, without = (Dealing(cap=cap * UNITS, every=every) for _ in range(2))
    now_s = NOW
    for kind, tokens, is_last in steps:
        now_s += pause_s
        may = with_blocks.provider.has_room(kind, tokens) or with_blocks.provider.can_run(kind, tokens, now_s)
        assert may == without.provider.can_run(kind, tokens, now_s)
        without.provider._close_block()
        for dealing in (with_blocks, without):
            if may:
                dealing.step(kind, tokens, now_s)
        is_due = with_blocks.provider.is_due(now_s, is_last=is_last)
        assert is_due == without.provider.is_due(now_s, is_last=is_last)
        assert with_blocks.provider.unsigned_tokens == without.provider.unsigned_tokens
        assert without.provider.exposure <= with_blocks.provider.exposure <= max(cap * UNITS, without.provider.exposure)
        if is_due:
            first, second = (dealing.checkpoint() for dealing in (with_blocks, without))
            assert first.receipts == second.receipts
        for dealing in (with_blocks, without) if is_last else ():
            for made in dealing.provider.unanswered():
                dealing.provider.cosigned(dealing.consumer.check(made, dealing.root, now_s))


@given(st.lists(st.tuples(st.sampled_from([DECODE, PREFILL]), st.integers(1, 300)), min_size=1, max_size=60))
def test_a_client_that_signs_what_it_is_asked_for_is_never_stuck(steps):
    dealing = Dealing(cap=16 * UNITS, every=16)
    for kind, tokens in steps:
        while not (dealing.provider.has_room(kind, tokens) or dealing.provider.can_run(kind, tokens, NOW)):
            assert dealing.provider.is_due(NOW)
            dealing.settle()
        dealing.step(kind, tokens)
        assert dealing.provider.exposure <= max(16 * UNITS, exposure_of(kind, tokens))
        if dealing.provider.is_due(NOW):
            dealing.settle()
    if not dealing.provider.is_settled:
        assert dealing.provider.is_due(NOW, is_last=True)
        dealing.settle()
    assert dealing.provider.is_settled
    assert dealing.consumer.is_settled
    assert dealing.provider.signed_tokens == sum(exposure_of(kind, tokens) for kind, tokens in steps) // UNITS


def test_a_checkpoint_is_due_after_64_tokens_and_at_the_end():
    dealing = Dealing()
    for _ in range(63):
        dealing.step(DECODE, 1)
        assert not dealing.provider.is_due(NOW)
        assert dealing.provider.is_due(NOW, is_last=True)
    dealing.step(DECODE, 1)
    assert dealing.provider.is_due(NOW)
    dealing.checkpoint()
    assert not dealing.provider.is_due(NOW, is_last=True)
    with pytest.raises(LocalError):
        dealing.checkpoint()


def test_receipts_say_what_was_done_and_both_signatures_stand_under_them():
    dealing = Dealing()
    dealing.step(PREFILL, 60, NOW)
    dealing.step(DECODE, 4, NOW + 2, known=0)
    envelopes = dealing.settle(NOW + 3)
    receipts = {receipt.work_kind: receipt for receipt in (Receipt.from_body(each.body) for each in envelopes)}
    assert {kind: receipt.amount for kind, receipt in receipts.items()} == {PREFILL: 60, DECODE: 4}
    first = receipts[PREFILL]
    assert (first.work, first.bytes_in, first.bytes_out, first.sessions, first.seq) == (240, 600, 1200, 1, 1)
    assert (first.t_first, receipts[DECODE].t_last, first.commitment) == (int(NOW), int(NOW) + 2, dealing.root)
    for envelope in envelopes:
        for identity, signature in zip((PROVIDER, CONSUMER), envelope.signatures, strict=True):
            assert verify(identity.peer_id_bytes, Kind.RECEIPT, envelope.body, signature)


def test_what_is_known_of_a_prefix_counts_nothing_but_brings_the_checkpoint_on():
    dealing = Dealing()
    dealing.step(PREFILL, 128, known=128)
    assert dealing.provider.exposure == 0
    assert dealing.provider.is_due(NOW)
    (envelope,) = dealing.settle()
    assert Receipt.from_body(envelope.body).amount == 0


def test_counters_go_on_in_the_next_session_of_a_lane_and_start_anew_in_an_epoch():
    first = Dealing()
    first.step(DECODE, 64)
    first.settle()
    first.book.close(first.lane, is_settled=True)
    second = Dealing(book=first.book, lanes=first.lanes, lane=first.consumer_lane)
    second.step(DECODE, 64)
    (envelope,) = second.settle()
    receipt = Receipt.from_body(envelope.body)
    assert (receipt.amount, receipt.sessions, receipt.seq) == (128, 2, 2)
    later = BEGAN + RULES.epoch_s + 5
    second.step(DECODE, 3, BEGAN + RULES.epoch_s - 1)
    assert not second.provider.is_due(BEGAN + RULES.epoch_s - 1)
    assert second.provider.is_due(later)
    second.step(DECODE, 2, later)
    old, new = (Receipt.from_body(each.body) for each in second.settle(later))
    assert (old.epoch + 1, old.amount, old.seq) == (new.epoch, 131, 3)
    assert (new.amount, new.sessions, new.seq) == (2, 1, 1)
    assert len(second.lane.tallies) == 1


def test_a_clock_that_is_set_back_does_not_take_an_epoch_back():
    dealing = Dealing(now_s=BEGAN + RULES.epoch_s + 1.0)
    dealing.step(DECODE, 1, BEGAN + RULES.epoch_s + 1.0)
    dealing.settle(BEGAN + RULES.epoch_s + 1.0)
    dealing.step(DECODE, 1, BEGAN + RULES.epoch_s - 1.0)
    (envelope,) = dealing.settle(BEGAN + RULES.epoch_s - 1.0)
    assert (Receipt.from_body(envelope.body).epoch, Receipt.from_body(envelope.body).seq) == (BEGAN // 1000 + 1, 2)


def test_a_repeated_answer_changes_nothing_and_a_wrong_one_ends_the_session():
    dealing = Dealing()
    dealing.step(DECODE, 64)
    made = dealing.checkpoint()
    assert dealing.provider.unanswered() == (made,)
    answer = dealing.consumer.check(made, dealing.root, NOW)
    forged = Cosign(1, tuple(OTHER.sign(Kind.RECEIPT, body) for body in made.receipts))
    for wrong in (Cosign(2, answer.signatures), Cosign(1, ()), forged, Cosign(1, made.signatures)):
        with pytest.raises(SessionError):
            dealing.provider.cosigned(wrong)
    assert dealing.provider.exposure == 64 * UNITS
    assert len(dealing.provider.cosigned(answer)) == 1
    assert dealing.provider.cosigned(answer) == ()
    assert dealing.provider.is_settled


def test_more_than_anyone_can_do_in_a_second_is_signed_with_a_time_that_allows_it():
    dealing = Dealing()
    dealing.step(PREFILL, 120_000)
    (envelope,) = dealing.settle()
    assert Receipt.from_body(envelope.body).t_last == int(NOW) + 2


LEAVES = st.builds(
    Leaf, *[st.integers(0, 2**24)] * 3, *[st.binary(min_size=32, max_size=32)] * 3, st.sampled_from([b"", b"v" * 64])
)


@given(st.integers(1, 9), st.integers(0, 2**32), st.lists(LEAVES, max_size=5), st.integers(0, 4))
def test_checkpoints_and_answers_are_read_as_they_were_written(number, steps, leaves, receipts):
    made = Checkpoint(number, steps, tuple(leaves), (b"body",) * receipts, (b"s" * 64,) * receipts)
    assert Checkpoint.from_body(made.to_body()) == made
    answer = Cosign(number, made.signatures)
    assert Cosign.from_body(answer.to_body()) == answer


def test_the_longest_checkpoint_fits_into_a_frames_header():
    leaf = Leaf(2**32 - 1, 2**32 - 1, 2**24, b"h" * 32, b"i" * 32, b"o" * 32, b"v" * 64)
    longest = Checkpoint(2**53, 2**32, (leaf,) * 200, (b"r" * 420,) * 8, (b"s" * 64,) * 8)
    assert Checkpoint.from_body(longest.to_body()) == longest
    assert len(longest.to_body()) <= Checkpoint.MAX_BYTES
    with pytest.raises(FrameError):
        Checkpoint.from_body(replace(longest, leaves=(leaf,) * 201).to_body())


@given(st.binary(max_size=200))
def test_no_bytes_make_the_readers_do_anything_but_refuse(junk):
    for kind in (Checkpoint, Cosign):
        with pytest.raises(FrameError):
            kind.from_body(junk)
