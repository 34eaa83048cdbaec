"""Compare what was opened with what was signed for, byte for byte, before anything is made of it. Pure; any thread."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from node.client.audit_trail import Tile
from node.step_log import StepLog


def digest_of(tile: Tile, log: StepLog, offset: int = 0) -> bytes:
    """Return the hash of a chunk's bytes, as ``commitment.chunks`` has it.

    Args:
        tile: the chunk.
        log: holds it.
        offset: position that the log begins with.
    """
    data = sha256()
    for position, tokens in tile.pieces() if log.has_parts else [(tile.first, tile.end - tile.first)]:
        data.update(log.piece(position - offset, tokens)[2])
    return data.digest()


def first_wrong(tiles: Sequence[Tile], digests: Sequence[bytes], log: StepLog) -> Tile | None:
    """Return the first chunk whose bytes have another hash than they should; None: all are right."""
    for tile, digest in zip(tiles, digests, strict=True):
        if digest_of(tile, log) != digest:
            return tile
    return None
