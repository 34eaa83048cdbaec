"""The pooled test of every server: what single chunks do not show shows in the mean of many. Pure; of one thread.

All chunks that were judged go in, also those that pass: leaving out good ones would convict anyone.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from node.check.check import Verdict, judge_pool

MAX_CHUNKS = 64
"""Newest chunks of one kind that are pooled: separation is measured for no more."""
MAX_POOLS = 4096
"""Kinds that are kept; of more, those that were not seen for longest are forgotten."""


@dataclass(slots=True)
class _Pool:
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_CHUNKS))
    limit: float = 0.0


class RatioPools:
    """Ratios of chunks, by server and by what it has declared."""

    def __init__(self) -> None:
        self._pools: OrderedDict[Hashable, _Pool] = OrderedDict()

    def add(self, kind: Hashable, ratio: float, limit: float) -> str:
        """Take a chunk; return why its server fails, empty if it does not.

        Args:
            kind: whose it is, and what else decides which error is honest.
            ratio: its median, as a multiple of the honest mean; what is no number is passed over.
            limit: of its standard; the largest counts.
        """
        if not math.isfinite(ratio):
            return ""
        pool = self._pools.setdefault(kind, _Pool())
        self._pools.move_to_end(kind)
        if len(self._pools) > MAX_POOLS:
            self._pools.popitem(last=False)
        pool.ratios.append(ratio)
        pool.limit = max(pool.limit, limit)
        if judge_pool(tuple(pool.ratios), pool.limit) is not Verdict.FAIL:
            return ""
        mean = math.fsum(pool.ratios) / len(pool.ratios)
        return f"over {len(pool.ratios)} chunks errors are {mean:.2f} times what is honest, {pool.limit:.2f} at most"
