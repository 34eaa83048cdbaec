"""Put this node's newest receipts on the DHT: when work has come to rest, now and then, and when epoch or node end.

    epoch      |---------------------------------|------------------- ...
    sessions      ----      ------------------
    published         x           x     x      x   x^

A receipt holds all that the earlier ones of its slot hold, so only the newest is published, and only when it is newer
than the last time; what too few took is tried again. Both sides of a receipt may publish it: who comes second changes
nothing. Periods are counted by the monotonic clock, so that one that is set moves no publication by more than a period;
only an epoch's end is read from the wall clock.
This file does not know where receipts come from. It runs on the event loop.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from dht.errors import BadRecord
from dht.hardening.duty import take_turn
from dht.records import SignedRecord
from dht.rules import Rules
from dht.swarm import Swarm
from dht.validation import parse_envelope
from dht.work import Receipt

logger = logging.getLogger(__name__)

PARTS_OF_EPOCH = 36
"""An epoch has so many publications: one every ten minutes where it has six hours."""

MIN_PERIOD_S = 1.0
"""Two publications are never closer."""

REST_S = 3.0
"""Seconds after the last new receipt until it counts as the last for now: in a session one comes every few seconds."""

PARTS_OF_PERIOD = 20
"""Receipts that have come to rest are published at most so often in a period: every 30 s where it has ten minutes."""

LOOK_S = 1.0
"""Seconds between two looks at whether anything is new."""

LAST_S = 5.0
"""Seconds that the publication at the end of a node may take."""

PART = 64
"""Envelopes that are decoded before the event loop gets its turn: 4 ms."""

DUTY = "publishing receipts"

MIN_REPLICAS = 3
"""A receipt that fewer members hold is published again next time."""


class Source(Protocol):
    """Whatever knows this node's receipts: a ledger, or a list in memory."""

    async def newest_envelopes(self, since_epoch: int) -> Sequence[bytes]:
        """Give the newest co-signed envelope of each slot of ``since_epoch`` and later ones."""
        ...

    @property
    def num_changes(self) -> int:
        """How many receipts have come since the source was made."""
        ...


def period_s(rules: Rules) -> float:
    """Say how long receipts may be unpublished, in seconds."""
    return max(MIN_PERIOD_S, rules.epoch_s / PARTS_OF_EPOCH)


def next_publication(rules: Rules, now_s: float, delay: float) -> float:
    """Say when to publish next, unix seconds: after a period, or shortly after the epoch's end if that comes first.

    Args:
        rules: Of the swarm.
        now_s: Unix seconds.
        delay: Share of a tenth of the period by which this node comes later than others after an epoch's end, 0 to 1.
    """
    period = period_s(rules)
    end_s = rules.start_of(rules.epoch_of(now_s) + 1) + delay * period / 10
    return min(now_s + period, end_s) if end_s > now_s else now_s + period


@dataclass(frozen=True, slots=True)
class Rest:
    """When receipts last came, and how many there were: whether the work has come to rest for now."""

    num_seen: int  # receipts that had come when this was last looked at
    changed_s: float  # monotonic seconds: when the last of them was seen
    num_published: int  # receipts that had come at the last publication
    published_s: float  # monotonic seconds: when that was

    def seen(self, num_changes: int, now_s: float) -> "Rest":
        """Look again."""
        return self if num_changes == self.num_seen else replace(self, num_seen=num_changes, changed_s=now_s)

    def is_due(self, rules: Rules, now_s: float) -> bool:
        """Say whether something is new, nothing newer came for a while, and the last publication was not just now."""
        period = period_s(rules)
        rested = now_s >= self.changed_s + min(REST_S, period)
        return self.num_seen != self.num_published and rested and now_s >= self.published_s + period / PARTS_OF_PERIOD


class ReceiptPublisher:
    """An async context manager; inside it, what a source has is on the DHT."""

    def __init__(
        self, swarm: Swarm, source: Source, *, delay: float = 0.5, clock: Callable[[], float] = time.time
    ) -> None:
        """Describe the publication.

        Args:
            swarm: Where.
            source: What.
            delay: As for ``next_publication``; drawn at random, so that not all nodes publish at once.
            clock: Unix seconds; says when epochs end.
        """
        self._swarm = swarm
        self._source = source
        self._delay = delay
        self._clock = clock
        self._seqs: dict[tuple[bytes, bytes], int] = {}  # by place: newest seq that enough members hold
        self._turn = asyncio.Lock()
        self._rest = Rest(0, -math.inf, 0, -math.inf)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._publish_again())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await take_turn(asyncio.wait_for(self.publish(), LAST_S), DUTY)

    async def publish(self) -> int:
        """Publish what is newer than last time; say how many receipts members took.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        async with self._turn:
            rules, now_s = self._swarm.validator.rules, time.monotonic()
            num_changes = self._source.num_changes
            self._rest = Rest(num_changes, now_s, num_changes, now_s)
            epoch = rules.epoch_of(self._clock())
            # The epoch before this one may have been counted up to its last second.
            fresh = await self._fresh(await self._source.newest_envelopes(max(0, epoch - 1)), rules)
            num_holding = await self._swarm.store_many(fresh) if fresh else []
            for signed, num in zip(fresh, num_holding, strict=True):
                if num >= MIN_REPLICAS:
                    self._seqs[signed.key, signed.subkey] = _seq(signed)
            self._forget(fresh)
            return sum(num > 0 for num in num_holding)

    def published_seq(self, signed: SignedRecord) -> int:
        """Say which of a receipt's slot enough members took; 0: none yet."""
        return self._seqs.get((signed.key, signed.subkey), 0)

    async def _fresh(self, envelopes: Sequence[bytes], rules: Rules) -> list[SignedRecord]:
        fresh = []
        for number, envelope in enumerate(envelopes):
            if number % PART == PART - 1:
                await asyncio.sleep(0)
            try:
                _, signed = parse_envelope(envelope, rules)
            except BadRecord as error:
                logger.warning("a receipt of our own is no receipt: %s", error)
                continue
            if isinstance(signed.record, Receipt) and self.published_seq(signed) < _seq(signed):
                fresh.append(signed)
        return fresh

    def _forget(self, fresh: Sequence[SignedRecord]) -> None:
        """Forget the oldest places, which no source gives any more."""
        bound = 4 * max(len(fresh), 1024)
        while len(self._seqs) > bound:
            del self._seqs[next(iter(self._seqs))]

    async def _publish_again(self) -> None:
        while await take_turn(self._publish_when_due(), DUTY):
            pass

    async def _publish_when_due(self) -> None:
        await self._until_due()
        await self.publish()

    async def _until_due(self) -> None:
        rules, wall_s = self._swarm.validator.rules, self._clock()
        due_s = time.monotonic() + next_publication(rules, wall_s, self._delay) - wall_s
        while (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(min(LOOK_S, left_s))  # Before the first look, so that one that fails does not spin.
            now_s = time.monotonic()
            self._rest = self._rest.seen(self._source.num_changes, now_s)
            if self._rest.is_due(rules, now_s):
                return


def _seq(signed: SignedRecord) -> int:
    assert isinstance(signed.record, Receipt)
    return signed.record.seq
