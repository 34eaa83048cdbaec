"""Which calibration a node's anchors name for a model: the same for everyone who reads the same records. Pure.

    most anchors > newest > smaller hash

Of each anchor its newest record counts. What was signed in the present epoch or in the one before is equally new:
anchors sign anew in every epoch, not all at the same moment, and who happens to be first must not decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from dht.calibration import Calibration


class Named(NamedTuple):
    """A calibration file that anchors name."""

    file: bytes
    """Its sha256, 32 bytes."""
    num_bytes: int
    """Its size, as they say; one that another anchor gives another size counts as another file."""
    anchors: tuple[str, ...]
    """Peer ids of those that name it, in order."""


def named_by(
    records: Iterable[Calibration], manifest: bytes, anchors: Collection[str], present: int
) -> tuple[Named, ...]:
    """Return what anchors name for a model, the one to be used first.

    Args:
        records: whatever was read; those of others and of other models do not count.
        manifest: identity of the model, 32 bytes.
        anchors: peer ids whose word counts.
        present: the present epoch.
    """
    newest: dict[str, Calibration] = {}
    for record in records:
        if record.signer in anchors and record.manifest == manifest:
            known = newest.get(record.signer)
            if known is None or _age(record) > _age(known):
                newest[record.signer] = record
    by_file: dict[tuple[bytes, int], list[Calibration]] = {}
    for record in newest.values():
        by_file.setdefault((record.file, record.file_bytes), []).append(record)

    def rank(file: tuple[bytes, int]) -> tuple[int, int, bytes, int]:
        signed = by_file[file]
        newness = min(present - 1, max(record.epoch for record in signed))
        return -len(signed), -newness, *file

    return tuple(
        Named(*file, tuple(sorted(each.signer for each in by_file[file]))) for file in sorted(by_file, key=rank)
    )


def _age(record: Calibration) -> tuple[int, int, int, bytes]:
    return record.epoch, record.seq, record.t, record.file
