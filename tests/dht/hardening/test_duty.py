"""A turn that fails is not the last one, whatever it fails of."""

import asyncio
import logging

import pytest

from dht.errors import DaemonDied, PeerUnreachable
from dht.hardening.duty import take_turn


async def failing(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [PeerUnreachable("gone"), TimeoutError(), OSError("pipe")])
async def test_what_peers_and_disks_do_is_said_in_one_line(error, caplog):
    assert await take_turn(failing(error), "keeping records")
    (line,) = caplog.records
    assert line.message.startswith("keeping records has failed and is tried again later: ")
    assert (line.levelno, line.exc_info) == (logging.WARNING, None)


async def test_what_nobody_foresaw_is_logged_with_its_place_and_is_not_the_end(caplog):
    assert await take_turn(failing(KeyError("x")), "keeping records")
    (line,) = caplog.records
    assert line.levelno == logging.ERROR
    assert line.exc_info is not None


async def test_only_the_end_of_p2pd_ends_a_duty_and_nobody_swallows_a_cancellation():
    assert not await take_turn(failing(DaemonDied("p2pd")), "keeping records")
    with pytest.raises(asyncio.CancelledError):
        await take_turn(failing(asyncio.CancelledError()), "keeping records")
