"""What is opened of a session: the bytes that were handed on, to its client, in pieces, and so fast."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import Refused
from node.serve.archive import Archived
from node.serve.reveals import BYTES_PER_S, MAX_AT_ONCE, Reveals
from node.step_log import StepLog
from node.transport import FrameStream
from node.wire import MAX_OPENING_BYTES, Reveal, Step, payload_bytes
from tests.fuzz.serving import JumpingLoop, MemoryStream

SESSION, CLIENT, OTHER = bytes(range(16)), "client", "other"


def log_of(codec="float32", width=8, rows=1, tokens=300):
    log = StepLog(SESSION, codec, width, rows, 2**12)
    size = payload_bytes(codec, (rows, tokens, width))
    log.append(Step(SESSION, 0, (rows, tokens, width), codec, (bytes(range(251)) * (size // 251 + 1))[:size]))
    return log


class Served:
    """One log behind ``Reveals``, on a clock that jumps."""

    def __init__(self, log):
        self.loop = JumpingLoop()
        self.paid = 0
        self.kept = Archived(CLIENT, log, log.num_bytes, 0.0)
        self.reveals = Reveals(self._find, self._pay, 30.0)

    def _find(self, session, peer):
        return self.kept if session == SESSION and peer in (CLIENT, *map(str, range(20))) else None

    async def _pay(self, num_bytes):
        self.paid += num_bytes

    def stream(self, peer=CLIENT):
        return MemoryStream(peer, self.loop)

    def answer(self, first, end, *, session=SESSION, peer=CLIENT):
        stream = self.stream(peer)
        try:
            self.loop.run_until_complete(self.reveals.answer(FrameStream(stream), Reveal(session, first, end)))
            return stream.frames()
        finally:
            assert not self.reveals._serving


@pytest.fixture
def served():
    made = Served(log_of())
    yield made
    made.loop.close()


@given(
    st.sampled_from(["float32", "bfloat16", "int8"]),
    st.integers(1, 3),
    st.integers(1, 300),
    st.integers(1, 130),
    st.data(),
)
def test_an_opening_holds_what_was_handed_on_piece_by_piece(codec, rows, tokens, width, data):
    served = Served(log := log_of(codec, width, rows, tokens))
    first = data.draw(st.integers(0, tokens - 1))
    end = data.draw(st.integers(first + 1, tokens))
    frames = served.answer(first, end)
    position = first
    for frame in frames:
        assert (frame.session, frame.position, frame.codec) == (SESSION, position, codec)
        assert (frame.shape, frame.payload) == (
            (rows, frame.shape[1], width), log.piece(position, frame.shape[1])[2],
        )  # fmt: skip
        assert len(frame.payload) <= max(MAX_OPENING_BYTES, log.position_bytes)
        position += frame.shape[1]
    assert position == end
    assert served.paid == sum(len(frame.payload) for frame in frames)
    served.loop.close()


@pytest.mark.parametrize("changes", [{"peer": OTHER}, {"session": bytes(16)}])
def test_nobody_else_learns_even_whether_there_is_such_a_session(served, changes):
    with pytest.raises(Refused, match="That is not here to be opened") as refused:
        served.answer(0, 64, **changes)
    with pytest.raises(Refused) as gone:
        served.answer(0, 301)
    assert (str(refused.value), refused.value.code) == (str(gone.value), gone.value.code) == (str(gone.value), "gone")


@pytest.mark.parametrize(("first", "end"), [(0, 0), (5, 5), (6, 5), (0, 301), (300, 301), (2**24, 2**24)])
def test_positions_that_are_not_there_are_gone(served, first, end):
    with pytest.raises(Refused, match="That is not here"):
        served.answer(first, end)


def test_what_is_cropped_while_it_is_opened_is_gone_and_not_made_up():
    served = Served(log_of(width=2048))

    async def crop():
        await asyncio.sleep(0.02)
        served.kept.log.append(Step(SESSION, 10, (1, 1, 2048), "float32", bytes(8192), crop=10))

    cropping = served.loop.create_task(crop())
    with pytest.raises(Refused, match="That is not here"):
        served.answer(0, 300)
    served.loop.run_until_complete(cropping)
    served.loop.close()


def test_a_flood_of_reveals_takes_no_more_than_so_many_bytes_in_all_and_in_a_second():
    served = Served(log := log_of(width=2048))
    size, began_s = 300 * log.position_bytes, served.loop.time()
    sent = sum(len(frame.payload) for _ in range(16) for frame in served.answer(0, 300))
    assert sent == 16 * size
    with pytest.raises(Refused, match="Enough of this session has been opened"):
        served.answer(0, 1)
    assert served.loop.time() - began_s >= sent / BYTES_PER_S
    served.loop.close()


def test_a_client_has_one_log_opened_at_a_time_and_so_many_clients_have_one(served):
    async def flood():
        slow = [served.stream(str(number)) for number in range(MAX_AT_ONCE)]
        for stream in slow:
            stream.writer.transport.is_stuck = True
        asked = [
            asyncio.create_task(served.reveals.answer(FrameStream(stream), Reveal(SESSION, 0, 64))) for stream in slow
        ]
        await asyncio.sleep(0.1)
        for peer in ("0", "19"):  # One that is being served, and one more.
            with pytest.raises(Refused, match="ask again in a second") as refused:
                await served.reveals.answer(FrameStream(served.stream(peer)), Reveal(SESSION, 0, 64))
            assert (refused.value.code, refused.value.retryable) == ("busy", True)
        for stream in slow:
            stream.writer.transport.is_stuck = False
        await asyncio.gather(*asked)
        await served.reveals.answer(FrameStream(served.stream("0")), Reveal(SESSION, 0, 64))

    served.loop.run_until_complete(flood())
    assert served.kept.ration.num_reveals == MAX_AT_ONCE + 1, "what is refused does not count"
