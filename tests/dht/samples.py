"""Records and handlers that the tests of dht share."""

import hashlib
import time
from dataclasses import replace
from typing import Any

from dht.identity import Identity
from dht.records import Announcement, ServerState
from dht.rules import DEFAULT_RULES
from dht.swarm import Stream
from dht.work import Receipt, WorkKind

SECRET = b"s" * 32
EPOCH = 80_000
EPOCH_BEGAN = DEFAULT_RULES.start_of(EPOCH)
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


def receipt(provider: Identity, consumer: Identity, **changes: Any) -> Receipt:
    """A receipt of 64 tokens through four blocks, a minute after an epoch of six hours began."""
    made = Receipt(
        provider=provider.peer_id,
        consumer=consumer.peer_id,
        epoch=EPOCH,
        lane=7,
        work_kind=WorkKind.DECODE,
        seq=1,
        manifest=MANIFEST,
        start=0,
        end=4,
        profile=hashlib.sha256(b"float32").digest(),
        sessions=1,
        amount=64,
        work=256,
        bytes_in=64 * 1024,
        bytes_out=64 * 1024,
        commitment=hashlib.sha256(b"chunks").digest(),
        t_first=EPOCH_BEGAN + 60,
        t_last=EPOCH_BEGAN + 62,
    )
    return replace(made, **changes)
