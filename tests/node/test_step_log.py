"""The log gives a new stage what the old one had, and then what is not answered, whatever was cropped and selected."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.step_log import StepLog
from node.wire import Step, decode, encode, payload_bytes

SESSION = bytes(16)
CAPACITY = 64
WIDTH = {"float32": 5, "bfloat16": 3, "int8": 70, "ids": 1}


class Receiver:
    """A stage that keeps the bytes of every position: what a log must make equal."""

    def __init__(self, codec, rows):
        self.codec, self.width = codec, WIDTH[codec]
        self.positions = [[] for _ in range(rows)]
        self.steps = 0

    def take(self, step):
        body = b"".join(encode(step))[4:]
        step = decode(body)  # as it comes over the wire
        assert isinstance(step, Step)
        if step.crop is not None:
            self.positions = [row[: step.crop] for row in self.positions]
        if step.rows is not None:
            self.positions = [list(self.positions[row]) for row in step.rows]
        assert step.position == len(self.positions[0])
        for row, numbers in zip(self.positions, bytes_of_positions(step), strict=True):
            row.extend(numbers)
        self.steps += not step.replay


def bytes_of_positions(step):
    """Return the bytes of every position of every row, in all parts of the payload."""
    rows, tokens, width = step.shape
    data = np.frombuffer(step.payload, np.uint8)
    if step.codec != "int8":
        return [[bytes(position) for position in row] for row in data.reshape(rows, tokens, -1)]
    scale_bytes = 2 * -(-width // 64)
    scales, values = np.split(data, [rows * tokens * scale_bytes])
    return [
        [bytes(scale) + bytes(value) for scale, value in zip(*pair, strict=True)]
        for pair in zip(scales.reshape(rows, tokens, -1), values.reshape(rows, tokens, -1), strict=True)
    ]


@st.composite
def conversations(draw):
    """Calls, each of one step or more; only the first step of a call changes what lies before it."""
    codec = draw(st.sampled_from(sorted(WIDTH)))
    first_rows = rows = draw(st.integers(1, 3))
    length, calls, numbers = 0, [], itertools.count()
    for _ in range(draw(st.integers(1, 7))):
        crop = draw(st.none() | st.integers(0, length))
        length = length if crop is None else crop
        selected = draw(st.none() | st.lists(st.integers(0, rows - 1), min_size=1, max_size=4).map(tuple))
        rows = rows if selected is None else len(selected)
        steps = []
        for tokens in draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)):
            if length + tokens > CAPACITY:
                break
            shape = (rows, tokens, WIDTH[codec])
            noise = np.random.default_rng(next(numbers)).bytes(payload_bytes(codec, shape))
            steps.append(Step(SESSION, length, shape, codec, noise, crop, selected))
            crop = selected = None
            length += tokens
        if not steps:
            break
        calls.append(steps)
    return codec, first_rows, calls


@given(conversations(), st.data())
def test_a_new_stage_comes_to_what_the_old_one_had(conversation, data):
    codec, rows, calls = conversation
    steps = [step for call in calls for step in call]
    sent = data.draw(st.integers(0, len(steps)), "steps that the log has seen")
    # A client sends the next call when it has all answers to the last one.
    ends = list(itertools.accumulate(len(call) for call in calls))
    settled = max((end for end in ends if end < sent), default=0)
    answered = data.draw(st.integers(settled, sent), "steps that were answered")
    log, old = StepLog(SESSION, codec, WIDTH[codec], rows, CAPACITY), Receiver(codec, rows)
    before = None
    for number, step in enumerate(steps[:sent]):
        if number == answered:
            before = [list(row) for row in old.positions]
        log.append(step)
        old.take(step)
    before = [list(row) for row in old.positions] if before is None else before
    new = Receiver(codec, len(before))
    for step in log.replay(answered, stages=1):
        new.take(step)
        assert step.replay or step.number == answered + new.steps
    assert new.steps == sent - answered
    assert new.positions == old.positions
    # And the log goes on as if nothing had happened.
    for step in steps[sent:]:
        log.append(step)
        old.take(step)
        new.take(step)
    last = Receiver(codec, len(old.positions))
    for step in log.replay(log.count, stages=1):
        last.take(step)
    assert last.positions == old.positions == new.positions


def test_a_long_history_comes_in_pieces_for_as_many_stages_as_need_it():
    log = StepLog(SESSION, "ids", 1, 2, 2000)
    log.append(Step(SESSION, 0, (2, 1000, 1), "ids", bytes(2 * 1000 * 4)))
    pieces = list(log.replay(1, stages=3))
    assert [(piece.position, piece.shape[1], piece.replay, piece.number) for piece in pieces] == [
        (0, 256, 3, 0), (256, 256, 3, 0), (512, 256, 3, 0), (768, 232, 3, 1),
    ]  # fmt: skip


def test_a_log_that_begins_with_a_history_hands_it_on():
    log = StepLog(SESSION, "ids", 1, 1, 64, count=9)
    log.append_history((1, 3, 1), b"aaaabbbbcccc")
    log.append(Step(SESSION, 3, (1, 1, 1), "ids", b"dddd"))
    assert log.count == 10
    history, again = log.replay(9, stages=1)
    assert (bytes(history.payload), history.replay, history.number) == (b"aaaabbbbcccc", 1, 9)
    assert again == replace(again, position=3, number=10, payload=b"dddd", replay=0)


@pytest.mark.parametrize("codec", sorted(WIDTH))
def test_steps_beside_the_history_do_not_hold_the_senders_memory(codec):
    log = StepLog(SESSION, codec, WIDTH[codec], 2, 64)
    size = payload_bytes(codec, (2, 1, WIDTH[codec]))
    memory = bytearray(size)
    log.append(Step(SESSION, 0, (2, 1, WIDTH[codec]), codec, memoryview(memory), rows=(1, 0)))
    memory[:] = b"x" * size
    (again,) = log.replay(0, stages=1)
    assert bytes(again.payload) == bytes(size)


def test_a_log_that_is_sealed_keeps_its_history_and_no_more():
    log = StepLog(SESSION, "float32", 5, 2, CAPACITY)
    log.append(Step(SESSION, 0, (2, 3, 5), "float32", bytes(range(120))))
    log.append(Step(SESSION, 3, (2, 1, 5), "float32", bytes(40), None, (1, 0)))
    before = log.piece(0, 3)
    log.seal()
    assert log.piece(0, 3) == before
    assert log.num_bytes == 3 * log.position_bytes == 120
    assert not list(log.replay(2, 1))[1:], "nothing is beside it"
    full = StepLog(SESSION, "float32", 5, 1, CAPACITY)
    full.append(Step(SESSION, 0, (1, 40, 5), "float32", bytes(800)))
    full.seal()
    assert full.piece(0, 40)[2] == bytes(800)
