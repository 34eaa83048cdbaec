"""A member of a swarm as a process of its own, for tests that need it in a network namespace: it echoes, and it calls.

    python -m tests.limits.echo_peer '{"listen": [...], "join": [...], "secret": HEX, "carry": false, "client": false}'

First line out: its id, its addresses and how long joining took. Then one line out for each line in: a JSON array of the
name of a method of ``_Peer`` and its arguments.
"""

import asyncio
import json
import sys
import time
from typing import Any

from dht.errors import DhtError
from dht.identity import Identity
from dht.membership.members import Stream
from dht.parameters import JoinCode
from dht.swarm import LOOPBACK_LISTEN, Swarm

_ECHO = "/test/echo/1"
_PIECE_BYTES = 2**16


class _Peer:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._held: Stream | None = None

    async def addresses(self) -> list[str]:
        await self._swarm._refresh_addresses()
        return self._swarm.addresses

    async def call(self, peer_id: str, addresses: list[str], num_bytes: int, hold: bool = False) -> dict[str, Any]:
        """Send so many bytes there and back; say at which address the peer was, and the seconds of both parts."""
        began_s = time.monotonic()
        try:
            stream = await self._swarm.dial(peer_id, _ECHO, addresses=addresses)
        except DhtError as error:
            return {"error": str(error)}
        dialled_s = time.monotonic()
        sending = asyncio.create_task(_send(stream, num_bytes))
        came = 0
        while came < num_bytes and (piece := await stream.reader.read(_PIECE_BYTES)):
            came += len(piece)
        await sending
        done_s = time.monotonic()
        if hold:
            self._held = stream
        else:
            await stream.close()
        seen = await self._swarm._control.seen_at(peer_id)
        return {"seen": seen, "came": came, "dial_s": dialled_s - began_s, "bytes_s": done_s - dialled_s}

    async def round_trip_s(self, peer_id: str) -> float:
        stream = await self._swarm.dial(peer_id, _ECHO)
        times_s = []
        for _ in range(100):
            began_s = time.perf_counter()
            stream.writer.write(bytes(100))
            await stream.reader.readexactly(100)
            times_s.append(time.perf_counter() - began_s)
        await stream.close()
        return sorted(times_s)[50]

    async def release(self) -> None:
        assert self._held is not None
        await self._held.close()

    async def prefer_direct(self) -> None:
        await self._swarm._circuits.prefer_direct()

    async def num_relays(self) -> int:
        return self._swarm.num_relays


async def _send(stream: Stream, num_bytes: int) -> None:
    for _ in range(0, num_bytes, _PIECE_BYTES):
        stream.writer.write(bytes(_PIECE_BYTES))
        await stream.writer.drain()


async def _echo(stream: Stream) -> None:
    while piece := await stream.reader.read(_PIECE_BYTES):
        stream.writer.write(piece)
        await stream.writer.drain()


async def _main(options: dict[str, Any]) -> None:
    secret = bytes.fromhex(options.get("secret", "")) or None
    join = JoinCode(tuple(options["join"]), secret=secret) if "join" in options else None
    began_s = time.monotonic()
    async with Swarm(
        Identity.ephemeral(),
        join=join,
        secret=secret,
        listen=options.get("listen", LOOPBACK_LISTEN),
        client_mode=options.get("client", False),
        carry=options.get("carry", False),
    ) as swarm:
        await swarm.serve(_ECHO, _echo)
        peer = _Peer(swarm)
        _say({"id": swarm.peer_id, "addresses": swarm.addresses, "join_s": time.monotonic() - began_s})
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, *arguments = json.loads(line)
            _say(await getattr(peer, name)(*arguments))


def _say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
