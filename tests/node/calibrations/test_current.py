"""What a node judges by is set once, read everywhere, and handed out without work for who asks for something else."""

import asyncio

from node.calibrations import current as module
from node.calibrations.current import Current
from node.check.calibration import encode_calibration
from tests.node.check.figures import calibration

MADE, OTHER = calibration(), calibration(mean=0.02)


async def test_who_waits_has_it_as_soon_as_it_is_there():
    current, used = Current(), []
    current.on_used.append(used.append)
    waiting = asyncio.create_task(current.wait())
    await asyncio.sleep(0)
    assert (waiting.done(), current.calibration, current.file(MADE.digest)) == (False, None, None)
    current.use(MADE)
    assert await waiting is MADE
    current.use(OTHER)
    assert await current.wait() is OTHER
    assert used == [MADE, OTHER]
    assert (current.file(MADE.digest), current.file(OTHER.digest)) == (None, encode_calibration(OTHER))


def test_questions_for_what_is_not_there_do_not_encode_it_again(monkeypatch):
    encoded = []
    monkeypatch.setattr(module, "encode_calibration", lambda each: encoded.append(each) or encode_calibration(each))
    current = Current(MADE)
    assert [current.file(bytes(32)) for _ in range(3)] == [None] * 3
    assert current.file(MADE.digest) == encode_calibration(MADE)
    assert len(encoded) == 1
    current.use(OTHER)
    assert current.file(bytes(32)) is None
    assert len(encoded) == 2
