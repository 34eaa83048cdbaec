import asyncio
import stat

import pytest

from node.errors import NotRunning
from node.run.control_socket import ask, listening, socket_path


async def obey(word):
    return {"heard": word}


@pytest.fixture(params=["short", "x" * 120], ids=["short", "longer than a socket's path may be"])
def home(request, tmp_path):
    home = tmp_path / request.param
    home.mkdir()
    return home


async def test_a_word_gets_its_answer_and_only_its_user_can_speak(home):
    async with listening(home, obey):
        assert await ask(home, "pause") == {"heard": "pause"}
        assert stat.S_IMODE(socket_path(home).stat().st_mode) == 0o600
    assert not socket_path(home).exists()


async def test_nobody_there_is_said_with_the_mend(home):
    with pytest.raises(NotRunning, match="set EFEDLLM_HOME"):
        await ask(home, "pause")


async def test_a_socket_that_a_killed_server_left_is_replaced(home):
    server = await asyncio.start_unix_server(lambda *_: None, socket_path(home))
    server.close()
    assert socket_path(home).exists()
    with pytest.raises(NotRunning):
        await ask(home, "pause")
    async with listening(home, obey):
        assert await ask(home, "resume") == {"heard": "resume"}


async def test_who_says_nothing_or_junk_does_not_disturb_others(home):
    async with listening(home, obey):
        silent = await asyncio.open_unix_connection(socket_path(home))
        loud = await asyncio.open_unix_connection(socket_path(home))
        loud[1].write(b"\xff" * 100_000)
        assert await ask(home, "pause") == {"heard": "pause"}
        for _, writer in (silent, loud):
            writer.close()
        await asyncio.sleep(0.1)  # The server sees it.
