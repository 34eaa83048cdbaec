"""Keep calibrations that were fetched in a node's home, for the next start: one for each model and set of anchors.

    calibrations/<model and anchors, 32 hex digits>-<sha256, 64 hex digits>.json

The anchors are in the name because they have chosen: who trusts others asks anew. Nothing is believed of what is on the
disk: it is checked as if it had come from a peer. Reads and writes files: ``asyncio.to_thread``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path

from dht.codec import encode
from dht.identity import peer_id_to_bytes
from node.check.calibration import MAX_BYTES, Calibration, decode_calibration
from node.errors import BadCalibration

logger = logging.getLogger(__name__)

MAX_KEPT = 32
"""Models and sets of anchors, the newest ones."""

_NAME = re.compile(r"[0-9a-f]{32}-([0-9a-f]{64})\.json")


class KeptCalibrations:
    """A folder of calibrations.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, data: bytes, manifest: bytes, anchors: Collection[str]) -> None:
        """Keep a calibration that was checked, in place of the one before.

        Args:
            data: the file.
            manifest: of its model.
            anchors: whose word it was chosen by.

        Raises:
            OSError: the disk does not take it.
        """
        place, name = _place(manifest, anchors), sha256(data).hexdigest()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{place}-{name}.json"
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")  # A client and a server may keep it at once.
        draft.write_bytes(data)
        draft.replace(path)
        for older in self._folder.glob(f"{place}-*.json"):
            if older != path:
                older.unlink(missing_ok=True)
        files = [each for each in self._folder.glob("*.json") if _NAME.fullmatch(each.name) and each != path]
        for each in sorted(files, key=_age)[: max(0, len(files) + 1 - MAX_KEPT)]:
            each.unlink(missing_ok=True)

    def load(self, manifest: bytes, anchors: Collection[str]) -> Calibration | None:
        """Return what is kept for a model; None: nothing, or nothing that can be used, which is then thrown away."""
        for path in sorted(self._folder.glob(f"{_place(manifest, anchors)}-*.json")):
            match = _NAME.fullmatch(path.name)
            try:
                with path.open("rb") as file:
                    data = file.read(MAX_BYTES + 1)
                if match is not None and sha256(data).hexdigest() == match[1]:
                    return decode_calibration(data, manifest=manifest)
                reason = "The disk has changed it."
            except (BadCalibration, OSError) as error:
                reason = str(error)
            logger.warning("the calibration kept in %s cannot be used (%s) and is fetched anew", path, reason)
            path.unlink(missing_ok=True)
        return None


def _place(manifest: bytes, anchors: Collection[str]) -> str:
    return sha256(encode([manifest, [peer_id_to_bytes(peer) for peer in sorted(anchors)]])).hexdigest()[:32]


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # Another process has thrown it away.
        return 0.0
