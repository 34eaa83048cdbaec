"""What a stage admits in a session, against a model that simply keeps a list of tokens per row."""

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from node.errors import Refused, SessionError
from node.serve.session import Compute, Repeat, StageSession
from node.wire import (
    CODECS,
    IDS,
    LOGITS,
    MAX_BATCH,
    MAX_SCORED_POSITIONS,
    MAX_STEP_POSITIONS,
    MAX_STEP_TOKENS,
    Open,
    Step,
)

HIDDEN_SIZE = 4
MAX_LENGTH = 24


def open_frame(batch=1, left_padding=(), max_length=MAX_LENGTH, codec="float32"):
    return Open(bytes(16), bytes(32), 0, 4, batch, left_padding, max_length, codec, "", "", ())


def step_frame(position, rows, tokens, *, crop=None, selected=None, hidden_size=HIDDEN_SIZE, codec="float32"):
    return Step(bytes(16), position, (rows, tokens, hidden_size), codec, b"", crop, selected)


class SessionMachine(RuleBasedStateMachine):
    """Drives a StageSession and, beside it, one list of tokens per row and the padding of each."""

    @initialize(batch=st.integers(1, 3), data=st.data())
    def open(self, batch, data):
        self.paddings = data.draw(st.lists(st.integers(0, 5), min_size=batch, max_size=batch))
        self.session = StageSession(open_frame(batch, tuple(self.paddings)), HIDDEN_SIZE)
        self.rows = [[] for _ in range(batch)]
        self.numbers = itertools.count()
        self.last = None

    def apply(self, order):
        """Do to the lists what the order says, as the handler does to its cache."""
        step = order.step
        if order.crop is not None:
            self.rows = [row[: order.crop] for row in self.rows]
        if order.rows is not None:
            self.rows = [list(self.rows[row]) for row in order.rows]
        new = [next(self.numbers) for _ in range(step.shape[1])]
        assert len(self.rows) == step.shape[0]
        self.rows = [row + new for row in self.rows]

    @rule(tokens=st.integers(1, 5), data=st.data())
    def step(self, tokens, data):
        length, batch = len(self.rows[0]), len(self.rows)
        crop = data.draw(st.none() | st.integers(0, length))
        selected = data.draw(st.none() | st.lists(st.integers(0, batch - 1), min_size=1, max_size=4).map(tuple))
        kept = length if crop is None else crop
        expected_rows = [row[:kept] for row in self.rows]
        expected_paddings = self.paddings
        if selected is not None:
            expected_rows = [list(expected_rows[row]) for row in selected]
            expected_paddings = [self.paddings[row] for row in selected]
        step = step_frame(kept, len(expected_rows), tokens, crop=crop, selected=selected)
        if kept + tokens > MAX_LENGTH:
            self.refuses(step)
            return
        order = self.session.receive(step)
        assert isinstance(order, Compute)
        self.apply(order)
        self.paddings = expected_paddings
        assert [row[:kept] for row in self.rows] == expected_rows
        assert order.left_padding in {tuple(self.paddings), ()}
        assert bool(order.left_padding) or not any(self.paddings)
        self.last = step

    @rule()
    def repeat_the_last_step(self):
        if self.last is not None and self.last.crop is None and self.last.rows is None:
            assert self.session.receive(self.last) == Repeat(self.last)

    @rule()
    def repeat_a_step_that_crops(self):
        if self.last is not None and self.last.crop is not None and self.last.rows is None:
            order = self.session.receive(self.last)
            assert isinstance(order, Compute)
            assert order.crop == self.last.position
            self.apply(order)

    @rule(distance=st.integers(-5, 5).filter(bool), tokens=st.integers(1, 3))
    def step_elsewhere(self, distance, tokens):
        step = step_frame(max(0, len(self.rows[0]) + distance), len(self.rows), tokens)
        is_elsewhere = step.position != len(self.rows[0])
        is_repeat = self.last is not None and (step.position, step.shape) == (self.last.position, self.last.shape)
        if is_elsewhere and not is_repeat:
            self.refuses(step)

    @rule(more=st.integers(1, 3))
    def step_with_other_rows(self, more):
        self.refuses(step_frame(len(self.rows[0]), len(self.rows) + more, 1))

    @rule(beyond=st.integers(0, 3))
    def select_a_row_that_is_not_there(self, beyond):
        self.refuses(step_frame(len(self.rows[0]), 1, 1, selected=(len(self.rows) + beyond,)))

    @rule(beyond=st.integers(1, 3))
    def crop_beyond_the_history(self, beyond):
        length = len(self.rows[0])
        self.refuses(step_frame(length + beyond, len(self.rows), 1, crop=length + beyond))

    def refuses(self, step):
        with pytest.raises(SessionError):
            self.session.receive(step)

    @invariant()
    def agrees_with_the_lists(self):
        if hasattr(self, "rows"):
            assert self.session.batch == len(self.rows)
            assert {len(row) for row in self.rows} == {self.session.length}


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=60, stateful_step_count=25)


@pytest.mark.parametrize("batch", [0, MAX_BATCH + 1])
def test_a_session_of_no_rows_or_too_many_does_not_open(batch):
    with pytest.raises(SessionError, match="rows"):
        StageSession(open_frame(batch), HIDDEN_SIZE)


@pytest.mark.parametrize("left_padding", [(1,), (1, 2, 3)])
def test_padding_for_some_of_the_rows_does_not_open(left_padding):
    with pytest.raises(SessionError, match="every row or for none"):
        StageSession(open_frame(2, left_padding), HIDDEN_SIZE)


def test_a_row_that_is_padding_to_its_end_does_not_open():
    StageSession(open_frame(2, (0, MAX_LENGTH - 1)), HIDDEN_SIZE)
    with pytest.raises(SessionError, match="maximum length"):
        StageSession(open_frame(2, (0, MAX_LENGTH)), HIDDEN_SIZE)


def test_padding_of_zero_everywhere_is_no_padding():
    order = StageSession(open_frame(2, (0, 0)), HIDDEN_SIZE).receive(step_frame(0, 2, 3))
    assert order.left_padding == ()


def test_padding_follows_the_rows_that_a_step_selects():
    session = StageSession(open_frame(3, (0, 1, 2)), HIDDEN_SIZE)
    assert session.receive(step_frame(0, 3, 4)).left_padding == (0, 1, 2)
    assert session.receive(step_frame(4, 2, 1, selected=(2, 2))).left_padding == (2, 2)
    assert session.receive(step_frame(5, 2, 1)).left_padding == (2, 2)


def test_a_step_in_another_codec_is_refused():
    with pytest.raises(SessionError, match="codec"):
        StageSession(open_frame(), HIDDEN_SIZE).receive(step_frame(0, 1, 1, codec="float16"))


def test_an_open_with_an_unknown_codec_is_declined_politely_and_told_which_there_are():
    with pytest.raises(Refused, match=", ".join(CODECS)) as caught:
        StageSession(open_frame(codec="int4"), HIDDEN_SIZE)
    assert (caught.value.code, caught.value.retryable) == ("unsupported", False)


def test_a_step_of_another_hidden_size_is_refused():
    with pytest.raises(SessionError, match="hidden size"):
        StageSession(open_frame(), HIDDEN_SIZE).receive(step_frame(0, 1, 1, hidden_size=HIDDEN_SIZE + 1))


def test_the_session_ends_at_its_maximum_length_and_not_before():
    session = StageSession(open_frame(), HIDDEN_SIZE)
    session.receive(step_frame(0, 1, MAX_LENGTH))
    with pytest.raises(SessionError, match="was opened for"):
        session.receive(step_frame(MAX_LENGTH, 1, 1))


@pytest.mark.parametrize(("rows", "most"), [(1, MAX_STEP_TOKENS), (8, MAX_STEP_POSITIONS // 8)])
def test_a_step_of_too_many_tokens_is_refused_however_long_the_session_is(rows, most):
    session = StageSession(open_frame(rows, max_length=10**6), HIDDEN_SIZE)
    with pytest.raises(SessionError, match=f"at most {most} tokens"):
        session.receive(step_frame(0, rows, most + 1))
    assert isinstance(session.receive(step_frame(0, rows, most)), Compute)


@pytest.mark.parametrize(("rows", "max_length"), [(1, 1), (3, MAX_LENGTH), (64, 10**6)])
def test_the_longest_step_has_the_positions_that_the_session_was_opened_for_within_the_bound(rows, max_length):
    session = StageSession(open_frame(rows, max_length=max_length), HIDDEN_SIZE)
    num_positions = min(rows * max_length, MAX_STEP_POSITIONS)
    assert session.max_step_bytes == num_positions * HIDDEN_SIZE * 4
    session = StageSession(open_frame(rows, max_length=max_length, codec="int8"), HIDDEN_SIZE)
    assert session.max_step_bytes == num_positions * (HIDDEN_SIZE + 2)


def test_a_step_that_selects_other_rows_than_it_carries_is_refused():
    session = StageSession(open_frame(2), HIDDEN_SIZE)
    session.receive(step_frame(0, 2, 1))
    with pytest.raises(SessionError, match="selects 1 rows and carries 2"):
        session.receive(step_frame(1, 2, 1, selected=(0,)))


def test_selecting_all_rows_in_order_and_cropping_nothing_ask_for_no_work():
    session = StageSession(open_frame(2), HIDDEN_SIZE)
    session.receive(step_frame(0, 2, 3))
    order = session.receive(step_frame(3, 2, 1, crop=3, selected=(0, 1)))
    assert (order.crop, order.rows) == (None, None)


def test_a_step_is_repeated_any_number_of_times_and_the_session_goes_on():
    session = StageSession(open_frame(), HIDDEN_SIZE)
    first = step_frame(0, 1, 3)
    assert isinstance(session.receive(first), Compute)
    assert session.receive(first) == Repeat(first)
    assert session.receive(first) == Repeat(first)
    assert isinstance(session.receive(step_frame(3, 1, 1)), Compute)


def test_an_older_step_than_the_last_is_not_repeated():
    session = StageSession(open_frame(), HIDDEN_SIZE)
    first = step_frame(0, 1, 3)
    session.receive(first)
    session.receive(step_frame(3, 1, 1))
    with pytest.raises(SessionError, match="stands at position 4"):
        session.receive(first)


def test_a_step_of_another_length_at_the_last_position_is_not_a_repetition():
    session = StageSession(open_frame(), HIDDEN_SIZE)
    session.receive(step_frame(0, 1, 3))
    with pytest.raises(SessionError, match="stands at position 3"):
        session.receive(step_frame(0, 1, 2))


@given(
    st.lists(
        st.builds(
            step_frame,
            st.integers(0, MAX_LENGTH + 2),
            st.integers(1, 3),
            st.integers(1, 5),
            crop=st.none() | st.integers(0, MAX_LENGTH),
            selected=st.none() | st.lists(st.integers(0, 3), max_size=3).map(tuple),
        ),
        max_size=12,
    )
)
def test_whatever_a_peer_asks_the_session_stays_within_its_bounds(steps):
    session = StageSession(open_frame(2, (0, 3)), HIDDEN_SIZE)
    for step in steps:
        before = (session.length, session.batch)
        try:
            order = session.receive(step)
        except SessionError:
            assert (session.length, session.batch) == before
            continue
        assert 0 < session.length <= MAX_LENGTH
        assert session.batch == step.shape[0]
        if isinstance(order, Compute):
            assert len(order.left_padding) in {0, session.batch}
            assert order.rows is None or max(order.rows) < before[1]


# --------------------------------------------------------------------------------------- clients without weights

VOCABULARY = 100
GREEDY = (0.0, 0, 1.0, 0)


def end_session(batch=1, max_length=MAX_LENGTH, **changes):
    fields = {"previous": "", "next": "", "next_addresses": (), "start": 0, "end": 4, **changes}
    opened = Open(bytes(16), bytes(32), batch=batch, left_padding=(), max_length=max_length, codec="int8", **fields)
    return StageSession(opened, HIDDEN_SIZE, VOCABULARY)


def ids_frame(position, *rows, **changes):
    payload = b"".join(struct.pack(f"<{len(row)}I", *row) for row in rows)
    return Step(bytes(16), position, (len(rows), len(rows[0]), 1), IDS, payload, **changes)


def test_a_session_of_ids_takes_ids_of_the_vocabulary_and_nothing_else():
    session = end_session(embed=True, batch=2)
    assert isinstance(session.receive(ids_frame(0, (0, 1), (2, VOCABULARY - 1))), Compute)
    for step in (
        ids_frame(2, (0,), (VOCABULARY,)),
        ids_frame(2, (2**32 - 1,), (0,)),
        step_frame(2, 2, 1, codec="int8"),
        step_frame(2, 2, 1, hidden_size=2, codec=IDS),
    ):
        with pytest.raises(SessionError):
            session.receive(step)
    assert session.length == 2
    assert isinstance(session.receive(ids_frame(2, (5,), (6,))), Compute)


def test_a_session_of_hidden_states_takes_no_ids():
    with pytest.raises(SessionError, match="codec"):
        StageSession(open_frame(), HIDDEN_SIZE, VOCABULARY).receive(ids_frame(0, (1, 2)))


def test_where_no_ids_are_embedded_every_id_is_beyond_the_vocabulary():
    session = StageSession(end_session(embed=True).opened, HIDDEN_SIZE)
    with pytest.raises(SessionError, match="vocabulary"):
        session.receive(ids_frame(0, (0,)))


def test_a_step_of_ids_takes_four_bytes_a_position():
    assert end_session(embed=True, batch=2).max_step_bytes == 2 * MAX_LENGTH * 4


def test_outputs_travel_as_the_session_was_opened_for():
    assert end_session().output_codec == "int8"
    assert end_session(embed=True).output_codec == "int8"
    assert end_session(top=5).output_codec == LOGITS
    assert end_session(sampling=GREEDY).output_codec == IDS


@pytest.mark.parametrize(
    "changes",
    [
        {"embed": True, "start": 1},
        {"top": 5, "next": "somebody"},
        {"sampling": GREEDY, "next": "somebody"},
        {"sampling": GREEDY, "top": 5},
        {"sampling": (1.0, 0, 0.0, 0)},
    ],
)
def test_ends_that_contradict_the_rest_of_the_opening_are_refused(changes):
    with pytest.raises(SessionError):
        end_session(**changes)


@pytest.mark.parametrize("keep", [0, 4, MAX_STEP_TOKENS])
def test_logits_are_for_positions_of_the_step_and_no_others(keep):
    session = end_session(embed=True, top=5)
    with pytest.raises(SessionError, match="1 to 3 positions"):
        session.receive(ids_frame(0, (1, 2, 3), logits_to_keep=keep))
    assert isinstance(session.receive(ids_frame(0, (1, 2, 3), logits_to_keep=3)), Compute)


def test_logits_are_for_so_many_positions_over_all_rows_and_no_more():
    rows = [(1, 2, 3)] * (MAX_SCORED_POSITIONS // 2)
    session = end_session(embed=True, top=5, batch=len(rows))
    with pytest.raises(SessionError, match=str(MAX_SCORED_POSITIONS)):
        session.receive(ids_frame(0, *rows, logits_to_keep=3))
    assert isinstance(session.receive(ids_frame(0, *rows, logits_to_keep=2)), Compute)


def test_a_repeated_step_that_asks_for_other_positions_is_no_repetition():
    session = end_session(embed=True, top=5)
    session.receive(ids_frame(0, (1, 2, 3)))
    assert isinstance(session.receive(ids_frame(0, (1, 2, 3))), Repeat)
    with pytest.raises(SessionError, match="stands at position 3"):
        session.receive(ids_frame(0, (1, 2, 3), logits_to_keep=2))
