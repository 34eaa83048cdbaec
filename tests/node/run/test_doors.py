import pytest

from dht.records import ServerState
from node.run.doors import Doors
from node.serve.hours import Hours


class Clock:
    """A clock that stands where it is put."""

    def __init__(self, minute=0):
        self.minute = minute

    def __call__(self):
        return self.minute


@pytest.fixture
def states():
    return []


@pytest.fixture
def clock():
    return Clock(600)


@pytest.fixture
def doors(states, clock):
    async def enter(state):
        states.append(state.name)

    return Doors(Hours.parse("08:00-12:00"), enter, clock)


async def test_doors_open_inside_the_hours_and_close_at_their_end(doors, states, clock):
    await doors.open()
    assert (states, doors.why) == (["ONLINE"], "")
    clock.minute = 720
    await doors.open()
    assert states == ["ONLINE", "PAUSED"]
    assert doors.why == "it serves at 08:00-12:00"


async def test_a_pause_outlasts_the_hours_until_it_is_resumed(doors, states, clock):
    await doors.open()
    await doors.pause()
    clock.minute = 720
    await doors.resume()
    assert doors.state is ServerState.PAUSED
    clock.minute = 480
    await doors.open()
    assert states == ["ONLINE", "PAUSED", "ONLINE"]


async def test_nothing_opens_doors_that_are_closed_for_good(doors, states):
    await doors.open()
    await doors.leave()
    await doors.resume()
    await doors.leave()
    assert states == ["ONLINE", "DRAINING"]
    assert doors.why == "it leaves"


async def test_without_hours_doors_are_always_open(states):
    async def enter(state):
        states.append(state.name)

    await Doors(None, enter, Clock(3)).open()
    assert states == ["ONLINE"]


async def test_while_blocks_are_loaded_wishes_wait(doors, states):
    await doors.pause()
    assert states == []
    await doors.open()
    doors.shut()
    await doors.resume()
    assert states == ["PAUSED"]
    await doors.open()
    assert states == ["PAUSED", "ONLINE"]
