"""Take a snapshot of who serves what.

Reading never raises on what peers stored: the swarm gives checked records only. The snapshot itself is a pure value.
This file does not know routes or sessions. It runs on the event loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dht.records import MODELS_KEY, Announcement, Kind, ManifestRecord, ServerState
from dht.swarm import Swarm


@dataclass(frozen=True, slots=True)
class Directory:
    """Who serves one model at one moment."""

    manifest: bytes  # identity of the model, 32 bytes
    servers: tuple[Announcement, ...]  # by first block, then owner; neither withdrawn nor expired

    def missing(self, num_blocks: int) -> list[tuple[int, int]]:
        """List the half-open ranges of blocks that no online server covers.

        Args:
            num_blocks: Blocks of the whole model.
        """
        spans = sorted((server.start, server.end) for server in self.servers if server.state is ServerState.ONLINE)
        gaps, covered = [], 0
        for start, end in spans:
            if start > covered:
                gaps.append((covered, min(start, num_blocks)))
            covered = max(covered, end)
            if covered >= num_blocks:
                return gaps
        return [*gaps, (covered, num_blocks)]


async def read_models(swarm: Swarm) -> list[ManifestRecord]:
    """List the models of a swarm, each once: the newest record of each manifest, by name.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    newest: dict[bytes, ManifestRecord] = {}
    for record in await swarm.fetch(Kind.MANIFEST, MODELS_KEY):
        if isinstance(record, ManifestRecord):
            known = newest.get(record.manifest)
            if known is None or (record.t, record.owner) > (known.t, known.owner):
                newest[record.manifest] = record
    return sorted(newest.values(), key=lambda record: (record.name, record.manifest))


async def read_directory(swarm: Swarm, manifest: bytes, now_s: float, *, num_shards: int = 1) -> Directory:
    """Read who serves a model.

    Args:
        swarm: Where.
        manifest: Identity of the model, 32 bytes.
        now_s: Unix seconds; what has expired by then is left out.
        num_shards: Keys over which the model's servers are spread.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    found = [record for shard in range(num_shards) for record in await swarm.fetch(Kind.ANNOUNCE, (manifest, shard))]
    return Directory(manifest, serving(found, now_s))


def serving(records: Sequence[object], now_s: float) -> tuple[Announcement, ...]:
    """Leave out what has been withdrawn or has expired; sort the rest."""
    alive = [
        record
        for record in records
        if isinstance(record, Announcement)
        and record.state is not ServerState.OFFLINE
        and record.t + record.life_s > now_s
    ]
    return tuple(sorted(alive, key=lambda record: (record.start, record.end, record.owner)))
