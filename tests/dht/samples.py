"""Records and handlers that the tests of dht share."""

import hashlib
import time

from dht.identity import Identity
from dht.records import Announcement, ServerState
from dht.swarm import Stream

SECRET = b"s" * 32
MANIFEST = hashlib.sha256(b"a model").digest()


def announcement(owner: Identity, *, start: int = 0, end: int = 4, t: int | None = None) -> Announcement:
    return Announcement(
        manifest=MANIFEST,
        shard=0,
        owner=owner.peer_id,
        t=int(time.time()) if t is None else t,
        life_s=60,
        state=ServerState.ONLINE,
        start=start,
        end=end,
        dtype="float32",
        throughput_milli=1,
        max_length=1,
        cache_free_tokens=1,
        addresses=(),
        version="0.1.0",
    )


async def echo(stream: Stream) -> None:
    while data := await stream.reader.read(2**16):
        stream.writer.write(data)
        await stream.writer.drain()
