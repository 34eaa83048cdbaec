"""Whatever is cropped and selected: a chunk that is said to stand is found in the history byte for byte."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from node.client.audit_check import digest_of, first_wrong
from node.client.audit_trail import Trail
from node.commitment.chunks import Tap
from node.step_log import StepLog
from node.wire import Step, payload_bytes

SESSION, CAPACITY = bytes(16), 400
WIDTH = {"float32": 3, "int8": 70, "ids": 1}


class Session:
    """The bytes of one session, as a stage hands them on: hashed, kept as the history stands, and followed."""

    def __init__(self, codec, rows):
        self.codec, self.rows, self.length, self.segment = codec, rows, 0, 0
        self.tap, self.trail = Tap(codec), Trail()
        self.log = StepLog(SESSION, codec, WIDTH[codec], rows, CAPACITY)
        self.chunks, self._fill = [], itertools.count()

    def step(self, tokens, crop=None, rows=None):
        self.length = self.length if crop is None else crop
        tokens = min(tokens, CAPACITY - self.length)
        if tokens:
            self.rows = self.rows if rows is None else len(rows)
            shape = (self.rows, tokens, WIDTH[self.codec])
            size = payload_bytes(self.codec, shape)
            payload = bytes((next(self._fill) * 7 + at) % 251 for at in range(size))
            step = Step(SESSION, self.length, shape, self.codec, payload, crop, rows)
            self.chunks += self.tap.add(step, self.segment, self.codec, shape, payload)
            touched = self.trail.sent(step, self.segment)
            assert [(first, last) for _, first, last in touched] == pieces(self.length, self.length + tokens, touched)
            self.log.append(step)
            self.length += tokens


def pieces(position, end, touched):
    """The step's positions without a gap."""
    bounds = [first for _, first, _ in touched] + [end]
    assert bounds[0] == position
    return list(itertools.pairwise(bounds))


@st.composite
def sessions(draw):
    session = Session(draw(st.sampled_from(sorted(WIDTH))), draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(1, 25))):
        tokens = draw(st.sampled_from([1, 1, 1, 2, 30, 63, 64, 65, 130]))
        crop = rows = None
        match draw(st.integers(0, 11)):
            case 0:
                crop = draw(st.integers(0, session.length))
            case 1:
                crop = session.length // 64 * 64
            case 2:
                crop = 0
            case 3:
                session.segment += draw(st.integers(0, 1))
            case 4 if draw(st.booleans()):
                rows = tuple(draw(st.lists(st.integers(0, session.rows - 1), min_size=1, max_size=2)))
        session.step(tokens, crop, rows)
    return session


@given(sessions())
def test_a_chunk_that_stands_and_all_before_it_have_the_hashes_that_were_signed(session):
    signed = {(chunk.segment, chunk.index): chunk for chunk in session.chunks + session.tap.seal()}
    for place, chunk in signed.items():
        tiles = session.trail.up_to(*place)
        if tiles is None:
            continue
        assert tiles[-1].place == place
        assert [tile.first for tile in tiles] == [0, *(tile.end for tile in tiles[:-1])]
        assert tiles[-1].first == chunk.first
        if tiles[-1].end <= session.log.length:  # Steps behind a selection of rows are beside the history for a while.
            assert digest_of(tiles[-1], session.log) == chunk.digest
            assert first_wrong(tiles, [signed[tile.place].digest for tile in tiles], session.log) is None


def test_without_crops_and_selections_every_chunk_stands():
    trail, tap, position, chunks = Trail(), Tap("ids"), 0, []
    for number in range(1, 40):
        step = Step(SESSION, position, (1, number, 1), "ids", bytes(4 * number))
        chunks += tap.add(step, number // 10, "ids", step.shape, step.payload)
        trail.sent(step, number // 10)
        position += number
    for chunk in chunks + tap.seal():
        tiles = trail.up_to(chunk.segment, chunk.index)
        assert tiles is not None
        assert tiles[-1].first == chunk.first


def test_the_drawing_of_the_module_is_right():
    session = Session("ids", 1)
    session.step(140)
    assert all(session.trail.up_to(0, index) for index in range(3))
    session.step(1, crop=64)
    assert [session.trail.up_to(0, index) is not None for index in range(5)] == [True, False, False, True, False]
    session.step(1, crop=30)
    session.step(100)
    assert not any(session.trail.up_to(0, index) for index in range(9))
    session.step(1, crop=0)
    (tile,) = [session.trail.up_to(0, index) for index in range(9) if session.trail.up_to(0, index)]
    assert (tile[0].first, tile[0].end) == (0, 1)


def test_bytes_that_are_not_what_was_signed_are_found_in_their_chunk():
    session = Session("float32", 2)
    session.step(200)
    chunks = session.chunks + session.tap.seal()
    tiles = session.trail.up_to(0, 3)
    digests = [chunk.digest for chunk in chunks]
    assert first_wrong(tiles, digests, session.log) is None
    session.log._parts[0][1, 130] ^= 1
    assert first_wrong(tiles, digests, session.log) is tiles[2]
