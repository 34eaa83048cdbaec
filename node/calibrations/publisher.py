"""Name the calibrations that a node was given, by a record for each model that it signs anew in every epoch.

Whose record counts is up to readers. Runs in the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from hashlib import sha256

from dht.calibration import Calibration as CalibrationRecord
from dht.errors import PeerUnreachable
from dht.hardening.duty import take_turn
from dht.identity import Identity
from dht.records import Kind, SignedRecord, seal
from dht.rules import Rules
from dht.standing.board import anchors_of
from dht.swarm import Swarm
from node.calibrations.rows import rows_of
from node.check.calibration import Calibration, encode_calibration

DUTY = "publishing calibrations"
PARTS_OF_EPOCH = 36
MIN_PERIOD_S = 5.0
"""Between two looks whether what is published stands, at least, and until it does."""


class CalibrationPublisher:
    """One node's records; ``run`` is its duty.

    Args:
        swarm: entered.
        identity: who signs.
        calibrations: one of a model each.
        anchors_only: whether nothing is published by a node that is no anchor of the swarm.
        clock: unix time, s.
    """

    def __init__(
        self,
        swarm: Swarm,
        identity: Identity,
        calibrations: Sequence[Calibration],
        *,
        anchors_only: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._swarm = swarm
        self._identity = identity
        self._calibrations = calibrations
        self._anchors_only = anchors_only
        self._clock = clock
        self._stand = False
        """Whether all were taken when they were published last."""

    @property
    def is_anchor(self) -> bool:
        """Whether this node is an anchor of the swarm, as far as its parameters are known."""
        return self._identity.peer_id in anchors_of(self._swarm.parameters)

    async def run(self) -> None:
        """Publish until our p2pd has ended."""
        rules = await self._swarm.wait_for_rules()
        if self._anchors_only and not self.is_anchor:
            return
        period_s = max(MIN_PERIOD_S, rules.epoch_s / PARTS_OF_EPOCH)
        while True:
            if not await take_turn(self.publish(rules), DUTY):
                return
            await asyncio.sleep(period_s if self._stand else MIN_PERIOD_S)

    async def publish(self, rules: Rules) -> None:
        """Have a record of this epoch stand for each calibration.

        Raises:
            PeerUnreachable: no member keeps one of them.
            DaemonDied: our own p2pd has ended.
        """
        self._stand = False
        for calibration in self._calibrations:
            signed = await self._signed(calibration, rules)
            if not await self._swarm.store(signed):
                raise PeerUnreachable(f"no member keeps the calibration of the model {calibration.manifest.hex()[:8]}")
        self._stand = True

    async def _signed(self, calibration: Calibration, rules: Rules) -> SignedRecord:
        """Return the record that stands already, or the next one."""
        data = await asyncio.to_thread(encode_calibration, calibration)
        digest, now_s = sha256(data).digest(), self._clock()
        epoch = rules.epoch_of(now_s)
        standing = await self._standing(calibration.manifest, epoch)
        if standing is not None and standing[1].file == digest:
            return standing[0]
        record = CalibrationRecord(
            manifest=calibration.manifest,
            signer=self._identity.peer_id,
            epoch=epoch,
            seq=standing[1].seq + 1 if standing is not None else 1,
            file=digest,
            file_bytes=len(data),
            thresholds=rows_of(calibration),
            t=int(now_s),
        )
        return seal(record, self._identity, rules=rules)

    async def _standing(self, manifest: bytes, epoch: int) -> tuple[SignedRecord, CalibrationRecord] | None:
        """Return our newest record of this epoch for a model, perhaps of an earlier process."""
        found = [
            (signed, signed.record)
            for signed in await self._swarm.read(Kind.CALIBRATION, (manifest,))
            if isinstance(signed.record, CalibrationRecord)
            and (signed.record.signer, signed.record.epoch) == (self._identity.peer_id, epoch)
        ]
        return max(found, key=lambda each: each[1].seq, default=None)
