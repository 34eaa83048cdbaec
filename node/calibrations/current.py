"""The calibration by which a node judges one model now; it may come while the node runs, and be replaced.

It is set in the event loop, and read anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import sha256

from node.check.calibration import Calibration, encode_calibration


class Current:
    """One model's.

    Args:
        calibration: what the node has from its start; None: nothing yet.
    """

    def __init__(self, calibration: Calibration | None = None) -> None:
        self._calibration = calibration
        self._is_there = asyncio.Event()
        self._file: tuple[Calibration, bytes, bytes] | None = None
        self.on_used: list[Callable[[Calibration], None]] = []
        """Each is called in the event loop when another calibration is used than before."""
        if calibration is not None:
            self._is_there.set()

    @property
    def calibration(self) -> Calibration | None:
        """What is judged by; None: nobody can say yet what is honest."""
        return self._calibration

    def use(self, calibration: Calibration) -> None:
        """Judge by another one from now on."""
        self._calibration = calibration
        self._is_there.set()
        for tell in self.on_used:
            tell(calibration)

    async def wait(self) -> Calibration:
        """Return it as soon as there is one."""
        await self._is_there.wait()
        assert self._calibration is not None
        return self._calibration

    def file(self, name: bytes) -> bytes | None:
        """Return the file by its sha256; None: what is used now has another one."""
        calibration = self._calibration
        if calibration is None:
            return None
        known = self._file
        if known is None or known[0] is not calibration:  # Once: whoever asks for anything else must cost nothing.
            data = encode_calibration(calibration)
            known = self._file = calibration, sha256(data).digest(), data
        return known[2] if known[1] == name else None
