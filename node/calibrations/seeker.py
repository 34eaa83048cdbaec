"""Get the calibration of a model that a node's anchors name, from whoever hands it out; nobody waits for it.

    records of the anchors ──choice──> sha256, size
        asked: those anchors, then servers of the model, in drawn order
               └──bytes──> hash? size? canonical? of this model? ──> kept in the home, used from then on

What a file is not is settled by its hash: the anchors' next choice takes its place. What is only out of reach is waited
for, or nodes that read the same would judge by different numbers. Runs in the event loop; files, hashes and parsing in
threads.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from dht.calibration import Calibration as CalibrationRecord
from dht.directory import read_directory
from dht.errors import DaemonDied, DhtError
from dht.hardening.duty import take_turn
from dht.records import Kind
from dht.rules import Rules
from dht.standing.board import anchors_of
from dht.swarm import Swarm
from node.calibrations.choice import Named, named_by
from node.calibrations.current import Current
from node.calibrations.kept import KeptCalibrations
from node.check.calibration import MAX_BYTES, Calibration, decode_calibration
from node.errors import BadCalibration, FalseBytes
from node.handout import fetch_bytes

T = TypeVar("T")

logger = logging.getLogger(__name__)

CALIBRATION_PROTOCOL = "/efedllm/calibration/1"
STREAM_S = 120.0
"""For one file; the largest takes 2 s at the rate at which it is handed out."""
CALIBRATIONS = "calibrations"
"""In a node's home: those that were fetched."""

MAX_ASKED = 8
"""Peers that are asked for a file, one after the other, before it is left for later."""
FIRST_S = 1.0
"""A node that starts has other things to do for so long, s."""
MAX_PAUSE_S = 300.0
"""Between two looks of a node that has none, at most; they become rarer."""
MAX_SETTLED_S = 3600.0
"""Between two looks of one that has what its anchors name, at most; else a quarter of an epoch."""
MAX_REMEMBERED = 256
"""Files that are of no use, and peers that hand out false bytes."""
DUTY = "looking for a calibration"


class CalibrationSeeker:
    """One node's search for one model's calibration; ``run`` is its duty.

    Args:
        swarm: entered.
        manifest: identity of the model, 32 bytes.
        current: gets what is found.
        home: the node's state directory.
        anchors: whose word counts for this node; none: those of the swarm.
        tell: told once, in a sentence, of each way in which it fails.
        clock: unix time, s.
        chance: draws whom to ask, and when.
    """

    def __init__(
        self,
        swarm: Swarm,
        manifest: bytes,
        current: Current,
        home: Path,
        *,
        anchors: Sequence[str] = (),
        tell: Callable[[str], None] = logger.warning,
        clock: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ) -> None:
        self._swarm = swarm
        self._manifest = manifest
        self._current = current
        self._kept = KeptCalibrations(home / CALIBRATIONS)
        self._anchors = tuple(anchors)
        self._tell = tell
        self._clock = clock
        self._chance = chance or random.SystemRandom()
        self._used = b""
        """sha256 of what is used; empty: nothing that was looked for."""
        self._unfit: OrderedDict[bytes, None] = OrderedDict()
        """sha256 of files that no one can use."""
        self._false: OrderedDict[tuple[str, bytes, int], None] = OrderedDict()
        """Who has handed out something else, and for which file and size: it is not asked for that again."""
        self.failures: Counter[str] = Counter()
        """How often it came to nothing, by why."""

    @property
    def anchors(self) -> tuple[str, ...]:
        """Whose word counts."""
        return self._anchors or anchors_of(self._swarm.parameters)

    async def run(self) -> None:
        """Use what is kept, and look for what the anchors name until our p2pd has ended."""
        rules = await self._swarm.wait_for_rules()
        if not await take_turn(self.use_kept(), DUTY):
            return
        pause_s, settled_s = FIRST_S, min(MAX_SETTLED_S, rules.epoch_s / 4)
        while True:
            await asyncio.sleep(pause_s * self._chance.uniform(0.75, 1.25))
            is_settled = False

            async def turn() -> None:
                nonlocal is_settled
                is_settled = await self.look(rules)

            if not await take_turn(turn(), DUTY, logging.INFO):
                return
            pause_s = settled_s if is_settled else min(MAX_PAUSE_S, 2 * pause_s)

    async def use_kept(self) -> None:
        """Use what an earlier process of this node has found, if it can be used."""
        calibration = await asyncio.to_thread(self._kept.load, self._manifest, self.anchors)
        if calibration is not None:
            await self._use(calibration)

    async def look(self, rules: Rules) -> bool:
        """Read what the anchors name, and get it; say whether what they name is used now.

        Raises:
            DaemonDied: our own p2pd has ended.
        """
        records = await self._swarm.fetch(Kind.CALIBRATION, (self._manifest,))
        known = [record for record in records if isinstance(record, CalibrationRecord)]
        for named in named_by(known, self._manifest, self.anchors, rules.epoch_of(self._clock())):
            if named.file == self._used:
                return True
            if named.file in self._unfit or not self._has_size(named):
                continue
            data = await self._fetch(named)
            if data is None:
                self._fail("nobody hands it out", f"Nobody hands out the calibration {_short(named.file)} now.")
                return False
            calibration = await self._read(named, data)
            if calibration is not None:
                await self._keep(data)
                await self._use(calibration)
                return True
        return False

    def _has_size(self, named: Named) -> bool:
        if named.num_bytes <= MAX_BYTES:
            return True
        # Only this anchor's word is of no use: another one may name the same file with its true size.
        self._reject(named, "too large", f"it has {named.num_bytes:,} bytes, of {MAX_BYTES:,} at most")
        return False

    async def _fetch(self, named: Named) -> bytes | None:
        """Ask for a file; None: nobody has handed it out."""
        for peer in await self._holders(named):
            try:
                return await fetch_bytes(
                    self._swarm, peer, CALIBRATION_PROTOCOL, named.file, named.num_bytes, stream_s=STREAM_S
                )
            except DaemonDied:
                raise
            except FalseBytes as error:
                _remember(self._false, (peer, named.file, named.num_bytes))
                self._fail("false bytes", f"{peer} was asked for the calibration {_short(named.file)}. {error}")
            except DhtError as error:
                self.failures["not answered"] += 1
                logger.debug("%s does not hand out a calibration: %s", peer, error)
        return None

    async def _holders(self, named: Named) -> list[str]:
        """Name whom to ask: the anchors that name it have it, servers of the model may."""
        anchors = self._chance.sample(named.anchors, len(named.anchors))
        directory = await read_directory(self._swarm, self._manifest, self._clock())
        others = sorted({server.owner for server in directory.servers} - {*anchors})
        # Half of those who are asked are servers, so that anchors that are away hold nobody up.
        anchors = anchors[: max(MAX_ASKED // 2, MAX_ASKED - len(others))]
        asked = [*anchors, *self._chance.sample(others, len(others))]
        false = {peer for peer, *what in self._false if what == [named.file, named.num_bytes]}
        return [peer for peer in asked if peer != self._swarm.peer_id and peer not in false][:MAX_ASKED]

    async def _read(self, named: Named, data: bytes) -> Calibration | None:
        try:
            return await asyncio.to_thread(decode_calibration, data, manifest=self._manifest)
        except BadCalibration as error:
            _remember(self._unfit, named.file)
            self._reject(named, "unfit", str(error).rstrip("."))
            return None

    async def _keep(self, data: bytes) -> None:
        try:
            await asyncio.to_thread(self._kept.keep, data, self._manifest, self.anchors)
        except OSError as error:
            self._fail("not kept", f"The calibration of this model is not kept for the next start ({error}).")

    async def _use(self, calibration: Calibration) -> None:
        self._used = await asyncio.to_thread(lambda: calibration.digest)
        self._current.use(calibration)

    def _reject(self, named: Named, kind: str, why: str) -> None:
        whose = ", ".join(named.anchors)
        self._fail(kind, f"The calibration {_short(named.file)} that {whose} names cannot be used ({why}).")

    def _fail(self, kind: str, sentence: str) -> None:
        """Count a failure; tell the first of its kind."""
        self.failures[kind] += 1
        if self.failures[kind] == 1:
            self._tell(sentence)


def _remember(known: OrderedDict[T, None], what: T) -> None:
    known[what] = None
    while len(known) > MAX_REMEMBERED:
        known.popitem(last=False)


def _short(file: bytes) -> str:
    return file.hex()[:16]
