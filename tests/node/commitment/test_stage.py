"""A stage commits to what it was sent and signed for, and to nothing else, until its session ends."""

import statistics
import time

import pytest

from dht.identity import Identity, verify
from node.commitment.chunks import NOTHING
from node.commitment.stage import MAX_LEAVES, MAX_VOUCHERS, StageCommitment
from node.errors import StageAtFault
from node.merkle import root_of
from node.wire import Step, payload_bytes

SESSION = b"s" * 16
BEFORE = Identity.ephemeral()


def step_of(position, tokens, rows=1, width=2, **fields):
    shape = (rows, tokens, width)
    return Step(SESSION, position, shape, "float32", bytes(payload_bytes("float32", shape)), **fields)


def first_stage(segment=0):
    return StageCommitment(SESSION, "float32", verify, "", segment)


def run(stage, step, segment=0):
    stage.take(step, segment)
    return stage.give(step, segment, step.codec, step.shape, step.payload)


def vouchers(chunks, identity=BEFORE):
    return [(chunk.segment, chunk.index, identity.sign(130, chunk.voucher_body(SESSION))) for chunk in chunks]


def test_leaves_come_once_in_order_and_the_root_covers_them_all():
    stage = first_stage()
    run(stage, step_of(0, 200))
    first, root = stage.report()
    assert root == root_of([leaf.hash(SESSION) for leaf in first])
    run(stage, step_of(200, 100))
    second, root = stage.report()
    assert [leaf.index for leaf in first + second] == [0, 1, 2, 3]
    assert root == root_of([leaf.hash(SESSION) for leaf in first + second])
    assert stage.report() == ((), root)


def test_a_report_is_bounded_and_the_rest_comes_in_the_next():
    stage = first_stage()
    run(stage, step_of(0, 64 * (MAX_LEAVES + 3)))
    assert [len(stage.report()[0]) for _ in range(3)] == [MAX_LEAVES, 3, 0]


def test_a_session_ends_well_for_its_client_where_the_stage_before_has_signed_for_another_last_chunk():
    stage = StageCommitment(SESSION, "float32", verify, BEFORE.peer_id)
    run(stage, step_of(0, 5))
    stage.vouch(0, 0, bytes(64))
    assert len(stage.seal()) == 1
    assert not stage.awaits_voucher
    assert stage.report()[0] == ()


def test_the_last_chunk_waits_for_its_voucher_when_a_session_ends():
    before, stage = first_stage(), StageCommitment(SESSION, "float32", verify, BEFORE.peer_id)
    for each in (before, stage):
        run(each, step_of(0, 5))
    assert stage.seal() != []
    assert stage.num_unreported == 0
    (voucher,) = vouchers(before.seal())
    stage.vouch(*voucher)
    (leaf,), _ = stage.report()
    assert leaf.voucher == voucher[2]


def test_a_wrong_voucher_for_the_last_chunk_is_found_when_it_comes():
    stage = StageCommitment(SESSION, "float32", verify, BEFORE.peer_id)
    run(stage, step_of(0, 5))
    stage.seal()
    with pytest.raises(StageAtFault):
        stage.vouch(0, 0, b"x" * 64)
    assert stage.num_unreported == 0


def test_a_session_that_ends_in_the_middle_of_a_step_does_not_commit_to_it():
    stage = first_stage()
    run(stage, step_of(0, 5))
    stage.take(step_of(5, 1), 0)
    assert stage.seal() == []
    assert stage.report()[0] == ()


def test_vouchers_for_nothing_are_forgotten():
    stage = StageCommitment(SESSION, "float32", verify, BEFORE.peer_id)
    for index in range(10_000):
        stage.vouch(5, index, b"x" * 64)
    assert len(stage._vouchers) == MAX_VOUCHERS


def test_what_a_lost_stage_left_open_needs_no_voucher_until_the_segment_of_the_new_one_has_passed():
    stage = StageCommitment(SESSION, "float32", verify, BEFORE.peer_id)
    run(stage, step_of(0, 10))
    stage.adopt(BEFORE.peer_id, 1, 1)
    run(stage, step_of(10, 60))
    (leaf,), _ = stage.report()
    assert (leaf.voucher, leaf.segment) == (b"", 0)
    run(stage, step_of(70, 1), 2)
    with pytest.raises(StageAtFault):
        run(stage, step_of(71, 64), 2)


def test_a_stage_that_holds_a_segment_back_after_a_repair_is_named():
    adopting = StageCommitment(SESSION, "float32", verify, BEFORE.peer_id)
    adopting.adopt(BEFORE.peer_id, 1, 1)
    replacing = StageCommitment(SESSION, "float32", verify, BEFORE.peer_id, 1, 1)
    for stage in (adopting, replacing):
        for segment in (0, 0):
            run(stage, step_of(0, 3, replay=1), segment)  # History is not counted.
        run(stage, step_of(6, 1))
        with pytest.raises(StageAtFault, match="does not hand on that a segment has begun"):
            run(stage, step_of(7, 1))


def test_what_is_sent_again_is_committed_to_without_input_and_vouched_for_in_a_segment_of_its_own():
    stage = first_stage()
    run(stage, step_of(0, 70))
    stage.relink(1)
    history = [chunk for first in (0, 64) for chunk in stage.resend(step_of(first, min(64, 70 - first), replay=1))]
    again = run(stage, step_of(70, 58))
    both = run(stage, step_of(128, 64), 2)
    assert [(chunk.segment, chunk.index) for chunk in history + again + both] == [(1, 0), (1, 1), (2, 0)]
    leaves, _ = stage.report()
    assert [(leaf.segment, leaf.index, leaf.is_resent) for leaf in leaves] == [
        (0, 0, False), (1, 0, True), (0, 1, False), (1, 1, True), (2, 0, False),
    ]  # fmt: skip
    assert all((leaf.taken == NOTHING) == leaf.is_resent for leaf in leaves)


def test_the_last_of_the_new_stages_vouches_to_nobody_for_the_history():
    stage = first_stage(1)
    assert run(stage, step_of(0, 64, replay=1)) == []
    assert run(first_stage(1), step_of(0, 64, replay=2)) != []


@pytest.mark.parametrize(("rows", "width"), [(1, 512), (1, 2048), (8, 512)])
def test_a_decoded_token_costs_a_stage_some_tens_of_microseconds(rows, width):
    """With the real signatures: one made and one checked for 64 positions. Printed with ``-s``."""
    before, stage = first_stage(), StageCommitment(SESSION, "float32", verify, BEFORE.peer_id)
    steps = [step_of(position, 1, rows, width) for position in range(64 * 9)]
    signed = [vouchers(run(before, step)) for step in steps]
    costs_us = []
    for first in range(0, len(steps), 64):
        began = time.perf_counter()
        for step, vouched in zip(steps[first : first + 64], signed[first : first + 64], strict=True):
            for voucher in vouched:
                stage.vouch(*voucher)
            vouchers(run(stage, step))
        stage.report()
        costs_us.append((time.perf_counter() - began) / 64 * 1e6)
    median, payload = statistics.median(costs_us), len(steps[0].payload)
    print(f"rows {rows}, {payload} bytes in and out: {median:.1f} us per step")
    assert median < 1000, "many times what it takes on a busy machine"
