"""A consumer signs what it has asked for, once, and says who is to blame for anything else."""

from dataclasses import replace

import pytest

from dht.records import Kind
from dht.work import Receipt, WorkKind
from node.errors import StageAtFault
from tests.node.agreement.dealings import BEGAN, NOW, OTHER, PROVIDER, RULES, Dealing

DECODE, PREFILL = WorkKind.DECODE, WorkKind.PREFILL


def changed(made, identity=PROVIDER, **changes):
    """The checkpoint with its first receipt changed, and signed as if it were right."""
    receipt = replace(Receipt.from_body(made.receipts[0]), **changes)
    body = receipt.to_body()
    return replace(
        made,
        receipts=(body, *made.receipts[1:]),
        signatures=(identity.sign(Kind.RECEIPT, body), *made.signatures[1:]),
    )


def after_two_checkpoints():
    """A dealing with one checkpoint signed, and the second one."""
    dealing = Dealing()
    dealing.step(DECODE, 64)
    dealing.settle()
    dealing.step(DECODE, 64, NOW + 10)
    return dealing, dealing.checkpoint()


WRONG = {
    "one token too many": ({"amount": 129, "work": 516}, "tokens"),
    "less than before": ({"amount": 63, "work": 252}, "tokens"),
    "one byte in too many": ({"bytes_in": 1281}, "bytes in"),
    "one byte out too many": ({"bytes_out": 2561}, "bytes out"),
    "another session": ({"sessions": 2}, "sessions"),
    "an old number": ({"seq": 1}, "goes back"),
    "another beginning": ({"t_first": int(NOW) - 1}, "goes back"),
    "another root": ({"commitment": bytes(32)}, "root"),
    "another consumer": ({"consumer": OTHER.peer_id}, "somebody else"),
    "another lane": ({"lane": 0}, "somebody else"),
    "other blocks": ({"start": 1, "work": 384}, "other blocks"),
    "another model": ({"manifest": bytes(32)}, "other blocks"),
    "another profile": ({"profile": bytes(32)}, "other blocks"),
    "an epoch to come": ({"epoch": BEGAN // 1000 + 1}, "epoch"),
    "ahead of time": ({"t_last": int(NOW) + 131}, "ahead of time"),
    "two tokens of another kind": ({"work_kind": PREFILL}, "tokens"),
    "nothing, of a kind that was never asked for": (
        {"work_kind": WorkKind.AUDIT, "amount": 0, "work": 0, "bytes_in": 0, "bytes_out": 0, "t_first": int(NOW) + 10},
        "none were sent",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_receipt_is_not_signed_and_its_provider_is_named(changes, reason):
    dealing, made = after_two_checkpoints()
    with pytest.raises(StageAtFault, match=reason) as caught:
        dealing.consumer.check(changed(made, **changes), dealing.root, NOW + 10)
    assert caught.value.peer_id == PROVIDER.peer_id
    assert len(dealing.consumer_signer.bodies) == 1


def test_the_same_receipt_unchanged_is_signed():
    dealing, made = after_two_checkpoints()
    assert dealing.consumer.check(changed(made), dealing.root, NOW + 10) is not None


def test_a_receipt_that_its_provider_has_not_signed_is_not_signed():
    dealing, made = after_two_checkpoints()
    with pytest.raises(StageAtFault, match="does not sign its own"):
        dealing.consumer.check(changed(made, OTHER), dealing.root, NOW + 10)


@pytest.mark.parametrize("skew_s", [-300, 300])
def test_a_provider_whose_clock_is_five_minutes_off_is_found(skew_s):
    dealing = Dealing()
    dealing.consumer.sent(1, DECODE, 64, 640, 1280, NOW)
    dealing.provider.count(DECODE, 64, 640, 1280, NOW + skew_s)
    dealing.steps = 1
    with pytest.raises(StageAtFault, match=r"clocks is wrong|begins before|wrong epoch"):
        dealing.consumer.check(dealing.checkpoint(), dealing.root, NOW)


@pytest.mark.parametrize(("behind_s", "is_signed"), [(119, True), (121, False)])
def test_a_receipt_behind_the_time_of_what_it_counts_is_not_signed(behind_s, is_signed):
    dealing = Dealing()
    for after_s in (0, 400):
        dealing.step(DECODE, 64, NOW + after_s)
        dealing.settle(NOW + after_s)
    dealing.step(DECODE, 64, NOW + 410)
    late = changed(dealing.checkpoint(), t_last=int(NOW) + 400 - behind_s)
    if is_signed:
        assert dealing.consumer.check(late, dealing.root, NOW + 410) is not None
    else:
        with pytest.raises(StageAtFault, match="is behind time; one of the clocks is wrong"):
            dealing.consumer.check(late, dealing.root, NOW + 410)


def test_a_repeated_checkpoint_gets_the_same_answer_and_a_changed_one_is_a_lie():
    dealing, made = after_two_checkpoints()
    answer = dealing.consumer.check(made, dealing.root, NOW + 10)
    assert dealing.consumer.check(made, dealing.root, NOW + 500) is answer
    with pytest.raises(StageAtFault, match="two different"):
        dealing.consumer.check(changed(made, bytes_in=1279), dealing.root, NOW + 10)
    assert len(dealing.consumer_signer.bodies) == 2


def test_a_checkpoint_out_of_turn_is_not_answered():
    dealing, made = after_two_checkpoints()
    assert dealing.consumer.check(replace(made, number=3), dealing.root, NOW + 10) is None
    assert dealing.consumer.check(made, dealing.root, NOW + 10) is not None


def test_a_checkpoint_without_receipts_or_with_two_for_one_slot_is_refused():
    dealing, made = after_two_checkpoints()
    double = replace(made, receipts=made.receipts * 2, signatures=made.signatures * 2)
    for wrong in (replace(made, receipts=(), signatures=()), double):
        with pytest.raises(StageAtFault, match="no receipt"):
            dealing.consumer.check(wrong, dealing.root, NOW + 10)


def test_what_a_provider_does_not_count_when_it_may_it_does_not_count_later():
    dealing = Dealing()
    dealing.step(PREFILL, 128, known=64)
    dealing.settle()
    dealing.step(PREFILL, 20)
    made = dealing.checkpoint()
    receipt = Receipt.from_body(made.receipts[0])
    assert receipt.amount == 84
    greedy = changed(made, amount=85, work=340)
    with pytest.raises(StageAtFault, match="counts 21 tokens where 20 were sent"):
        dealing.consumer.check(greedy, dealing.root, NOW)


def test_steps_that_a_checkpoint_does_not_reach_are_for_the_next_one():
    dealing = Dealing()
    dealing.step(DECODE, 64)
    made = dealing.checkpoint()
    dealing.step(DECODE, 64)
    with pytest.raises(StageAtFault, match="128 tokens where 64"):
        dealing.consumer.check(changed(made, amount=128, work=512, bytes_in=1280, bytes_out=2560), dealing.root, NOW)
    dealing = Dealing()
    dealing.step(DECODE, 64)
    made = dealing.checkpoint()
    dealing.step(DECODE, 64)
    dealing.consumer.check(made, dealing.root, NOW)
    assert not dealing.consumer.is_settled
    dealing.settle()
    assert dealing.consumer.is_settled


def test_a_history_is_counted_over_several_checkpoints_and_not_after_it_has_passed():
    dealing = Dealing()
    dealing.steps = 9
    dealing.consumer.handed_history(9, 300, 3000, 0, NOW)
    for tokens in (100, 190):
        dealing.provider.count(PREFILL, tokens, 10 * tokens, 0, NOW)
        dealing.settle()
    dealing.step(PREFILL, 20)
    made = dealing.checkpoint()
    assert Receipt.from_body(made.receipts[0]).amount == 310
    dealing.consumer.check(made, dealing.root, NOW)
    dealing.step(PREFILL, 20)
    with pytest.raises(StageAtFault, match="counts 21 tokens where 20"):
        dealing.consumer.check(changed(dealing.checkpoint(), amount=331, work=1324), dealing.root, NOW)


def test_a_provider_that_does_not_ask_for_signatures_is_left_after_five_seconds():
    def answered(count, at_s):
        dealing = Dealing()
        for _ in range(count):
            dealing.consumer.answered(1, NOW)
        return dealing.consumer.is_overdue(at_s)

    assert not answered(63, NOW + 60)
    assert not answered(64, NOW + 5)
    assert answered(64, NOW + 5.1)


def test_a_checkpoint_makes_a_stage_punctual_again():
    dealing = Dealing()
    for _ in range(66):
        dealing.step(DECODE, 1)
        dealing.consumer.answered(1, NOW)
    assert dealing.consumer.is_overdue(NOW + 60)
    dealing.settle()
    assert not dealing.consumer.is_overdue(NOW + 60)


def test_a_provider_that_counts_less_than_was_due_is_late_all_the_same():
    dealing = Dealing()
    for number in range(1, 201):
        dealing.consumer.sent(number, DECODE, 1, 10, 20, NOW)
        dealing.consumer.answered(1, NOW + number / 20)
    for slow in range(1, 4):
        dealing.provider.count(DECODE, 1, 10, 20, NOW)
        dealing.steps = slow
        dealing.settle()
    assert dealing.consumer.num_signed == 3
    assert dealing.consumer.unsigned_tokens == 197
    assert not dealing.consumer.is_overdue(NOW + 80 / 20 + 5), "the 80th token was the last one to wait for"
    assert dealing.consumer.is_overdue(NOW + 80 / 20 + 5.1)


def test_a_provider_whose_checkpoints_all_take_four_seconds_is_not_late():
    dealing, made = Dealing(), []
    for number in range(1, 1001):
        now_s = NOW + number / 20
        dealing.step(DECODE, 1, now_s)
        dealing.consumer.answered(1, now_s)
        if number % 64 == 0:
            made.append((now_s + 4, dealing.checkpoint()))
        if made and made[0][0] <= now_s:
            dealing.provider.cosigned(dealing.consumer.check(made.pop(0)[1], dealing.root, now_s))
        assert not dealing.consumer.is_overdue(now_s)
    assert dealing.consumer.num_signed == 14 * 64


def test_a_receipt_of_an_epoch_that_has_passed_is_not_signed_anew():
    dealing, later = Dealing(), BEGAN + RULES.epoch_s + 1.0
    dealing.step(DECODE, 64, later)
    dealing.settle(later)
    dealing.step(DECODE, 64, later)
    back = changed(dealing.checkpoint(), epoch=BEGAN // 1000, sessions=1, amount=64, work=256)
    with pytest.raises(StageAtFault, match="goes back to an epoch"):
        dealing.consumer.check(back, dealing.root, later)
