"""The client's and the server's view of a session's history agree, whatever transformers asks of the cache."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from node.client.history import History, PlannedStep
from node.errors import LocalError, PromptTooLong
from node.serve.session import Compute, StageSession
from node.wire import Open, Step

MAX_LENGTH = 32


class BothSidesMachine(RuleBasedStateMachine):
    """A History whose steps go to a StageSession; the rows of tokens that each believes in are kept beside them."""

    @initialize(batch=st.integers(1, 3), data=st.data())
    def open(self, batch, data):
        paddings = data.draw(st.lists(st.integers(0, 4), min_size=batch, max_size=batch))
        opened = Open(bytes(16), bytes(32), 0, 4, batch, tuple(paddings), MAX_LENGTH, "float32", "", "", ())
        self.history, self.session = History(MAX_LENGTH), StageSession(opened, hidden_size=4)
        self.history.restart(tuple(paddings))
        self.numbers = itertools.count()
        self.asked, self.served = [[] for _ in range(batch)], [[] for _ in range(batch)]
        self.asked_padding, self.served_padding = list(paddings), list(paddings)

    @rule(num_tokens=st.integers(1, 9), at_once=st.integers(1, 5))
    def append(self, num_tokens, at_once):
        self.append_now(num_tokens, at_once)

    def append_now(self, num_tokens, at_once=MAX_LENGTH):
        new = [next(self.numbers) for _ in range(num_tokens)]
        if len(self.asked[0]) + num_tokens > MAX_LENGTH:
            with pytest.raises(PromptTooLong):
                self.history.plan(len(self.asked), num_tokens, at_once)
            return
        steps = self.history.plan(len(self.asked), num_tokens, at_once)
        self.asked = [row + new for row in self.asked]
        assert [token for step in steps for token in range(step.first, step.first + step.num_tokens)] == list(
            range(num_tokens)
        )
        for step in steps:
            assert step.num_tokens <= at_once
            self.serve(step, new[step.first : step.first + step.num_tokens])
        assert self.served == self.asked
        assert self.served_padding == self.asked_padding

    def serve(self, planned, tokens):
        shape = (len(self.asked), planned.num_tokens, 4)
        order = self.session.receive(
            Step(bytes(16), planned.position, shape, "float32", b"", planned.crop, planned.rows)
        )
        assert isinstance(order, Compute), "a new step must never be taken for a repetition"
        if order.crop is not None:
            self.served = [row[: order.crop] for row in self.served]
        if order.rows is not None:
            self.served = [list(self.served[row]) for row in order.rows]
        self.served_padding = list(order.left_padding) or [0] * len(self.served)
        self.served = [row + list(tokens) for row in self.served]

    @rule(data=st.data())
    def crop(self, data):
        length = data.draw(st.integers(0, self.history.length + 2))
        self.history.crop_to(length)
        self.asked = [row[:length] for row in self.asked]

    @rule(num_tokens=st.integers(1, 3))
    def take_back_and_try_again(self, num_tokens):
        if self.history.length + num_tokens <= MAX_LENGTH:
            for _ in range(2):
                length = self.history.length
                self.append_now(num_tokens)
                self.history.crop_to(length)
                self.asked = [row[:length] for row in self.asked]

    @rule(data=st.data())
    def select_rows(self, data):
        if self.history.batch is None:
            self.history.select_rows([0, 0, 0])
            return
        rows = data.draw(st.lists(st.integers(0, len(self.asked) - 1), min_size=1, max_size=4))
        self.history.select_rows(rows)
        self.asked = [list(self.asked[row]) for row in rows]
        self.asked_padding = [self.asked_padding[row] for row in rows]

    @rule(data=st.data())
    def select_a_row_that_is_not_there(self, data):
        if self.history.batch is not None:
            row = data.draw(st.sampled_from([-1, self.history.batch, self.history.batch + 2]))
            with pytest.raises(LocalError, match=f"no row {row}"):
                self.history.select_rows([0, row])

    @rule()
    def plan_with_other_rows(self):
        if self.history.batch is not None:
            with pytest.raises(LocalError, match="rows"):
                self.history.plan(self.history.batch + 1, 1, 1)

    @invariant()
    def agrees_with_the_rows(self):
        if hasattr(self, "asked"):
            assert {len(row) for row in self.asked} == {self.history.length}
            assert self.history.batch in {None, len(self.asked)}
            assert self.history.left_padding == tuple(self.asked_padding)


TestBothSidesMachine = BothSidesMachine.TestCase
TestBothSidesMachine.settings = settings(max_examples=60, stateful_step_count=25)


def test_crops_and_row_selections_ride_on_the_next_step_as_drawn():
    history = History(max_length=16)
    assert history.plan(1, 8, 99) == [PlannedStep(0, 0, 8, None, None)]
    history.crop_to(5)
    history.select_rows([0, 0])
    assert history.length == 5
    assert history.plan(2, 2, 99) == [PlannedStep(5, 0, 2, 5, (0, 0))]
    assert history.plan(2, 1, 99) == [PlannedStep(7, 0, 1, None, None)]


def test_a_long_prefill_is_cut_and_only_its_first_step_carries_the_changes():
    history = History(max_length=16)
    history.plan(2, 4, 99)
    history.crop_to(2)
    history.crop_to(1)
    history.select_rows([1, 0])
    history.select_rows([1, 1])
    assert history.plan(2, 5, 2) == [
        PlannedStep(1, 0, 2, 1, (0, 0)),
        PlannedStep(3, 2, 2, None, None),
        PlannedStep(5, 4, 1, None, None),
    ]


def test_a_step_that_does_not_fit_changes_nothing():
    history = History(max_length=4)
    history.plan(1, 3, 99)
    history.crop_to(2)
    with pytest.raises(PromptTooLong, match="max_length"):
        history.plan(1, 3, 99)
    assert history.plan(1, 2, 99) == [PlannedStep(2, 0, 2, 2, None)]


def test_a_history_is_not_cropped_to_less_than_nothing():
    history = History(max_length=4)
    history.plan(1, 3, 99)
    with pytest.raises(LocalError, match="cannot be cropped"):
        history.crop_to(-1)


def test_a_history_that_restarts_remembers_nothing():
    history = History(max_length=4)
    history.restart((1, 0))
    history.plan(2, 3, 99)
    history.select_rows([0, 0, 0])
    history.crop_to(1)
    history.restart((2,))
    assert (history.length, history.batch, history.left_padding) == (0, None, (2,))
    assert history.plan(1, 4, 99) == [PlannedStep(0, 0, 4, None, None)]
