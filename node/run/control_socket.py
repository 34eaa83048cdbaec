"""How a donor speaks to the server that runs: one line of JSON each way over a Unix socket in the state directory.

Only the user who runs the server can open it. Runs in the event loop; what the words mean is decided by ``server``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from node.errors import NotRunning

_MAX_PATH_BYTES = 100
"""A Unix socket's path is not longer on any system; deeper state directories get a socket elsewhere."""
_MAX_LINE_BYTES = 4096
_ANSWER_S = 10.0
_MAX_KEPT = 16
DRAIN = "drain"
"""After this word the connection stays open until the server's process has ended."""

Obey = Callable[[str], Awaitable[dict[str, Any]]]
"""Does what one word asks and returns the answer."""


def socket_path(home: Path) -> Path:
    """Return where the server with the state directory ``home`` listens."""
    beside = home / "control.sock"
    if len(os.fsencode(beside)) <= _MAX_PATH_BYTES:
        return beside
    short = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"efedllm-{os.getuid()}-{short}.sock"


@contextlib.asynccontextmanager
async def listening(home: Path, obey: Obey) -> AsyncIterator[None]:
    """Answer words inside the ``with``; the state directory is locked by whoever calls this, so nobody else listens."""
    path = socket_path(home)
    path.unlink(missing_ok=True)
    kept: list[asyncio.StreamWriter] = []
    """Of those who wait for our end: the system closes them when the process has ended, and not before."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                word = (await reader.readline()).decode(errors="replace").strip()
                writer.write(json.dumps(await obey(word)).encode() + b"\n")
                await writer.drain()
                if word == DRAIN and len(kept) < _MAX_KEPT:
                    kept.append(writer)
                    return
        writer.close()

    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(serve, path, limit=_MAX_LINE_BYTES)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


async def ask(home: Path, word: str, *, until_gone: bool = False) -> dict[str, Any]:
    """Say ``word`` to the server with the state directory ``home`` and return its answer.

    Args:
        home: the server's state directory.
        word: what it shall do.
        until_gone: whether to wait until it has left, too.

    Raises:
        NotRunning: no server listens there.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path(home), limit=_MAX_LINE_BYTES)
    except OSError:
        raise NotRunning(
            f"No server that is ready runs with the state directory {home}; set EFEDLLM_HOME to that of the server you "
            "mean, or wait until it says that it serves."
        ) from None
    try:
        writer.write(word.encode() + b"\n")
        async with asyncio.timeout(_ANSWER_S):
            answer: dict[str, Any] = json.loads(await reader.readline())
        if until_gone:
            with contextlib.suppress(OSError):
                await reader.read()
    except (OSError, ValueError, TimeoutError):
        raise NotRunning(f"The server with the state directory {home} does not answer; it may be ending.") from None
    else:
        return answer
    finally:
        writer.close()
