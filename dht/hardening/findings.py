"""Merge what many members hold under one key: the newest record of each subkey, and who contradicts whom.

Of two records with one subkey and one expiry but different bytes, the one that was seen first stays, and whoever wants
to know is told of both. This file does not know what a record means nor who was asked. It runs on the event loop.
"""

from collections.abc import Awaitable, Callable, Sequence

StoredRecord = tuple[bytes, bytes, float]
"""Subkey, envelope, expiry in unix seconds."""

Contradicted = Callable[[bytes, bytes], None]
"""Is told of two valid envelopes that claim one place and one time."""

Forestall = Callable[[Sequence[bytes]], Awaitable[None]]
"""Checks the signatures of many envelopes elsewhere, before the validator is asked about each."""

MIN_FORESTALLED = 64
"""Fewer records are not worth the way to another process."""

MAX_FORESTALLED_BYTES = 4096
"""No valid envelope is longer."""


class Findings:
    """Records of one key, as they come in."""

    def __init__(self, contradicted: Contradicted, max_records: int, forestall: Forestall | None = None) -> None:
        """Start empty.

        Args:
            contradicted: Is told of contradictions, once for every record that contradicts the one that stands.
            max_records: Most subkeys that are kept.
            forestall: Checks signatures elsewhere where many come at once; None: the validator checks them all here.
        """
        self._forestall = forestall
        self._contradicted = contradicted
        self._max_records = max_records
        self._records: dict[bytes, StoredRecord] = {}

    def knows(self, record: StoredRecord) -> bool:
        """Say whether these very bytes have been taken; they need not be checked again."""
        return self._records.get(record[0]) == record

    async def prepare(self, records: Sequence[StoredRecord]) -> None:
        """Have the signatures of unknown records checked elsewhere, if they are many."""
        if self._forestall is not None and len(records) >= MIN_FORESTALLED:
            await self._forestall([value for _, value, _ in records if len(value) <= MAX_FORESTALLED_BYTES])

    def take(self, record: StoredRecord) -> None:
        """Take in a record that the validator lets pass."""
        subkey, value, expires_s = record
        standing = self._records.get(subkey)
        if standing is None:
            if len(self._records) < self._max_records:
                self._records[subkey] = record
        elif standing[2] < expires_s:
            self._records[subkey] = record
        elif standing[2] == expires_s and standing[1] != value:
            self._contradicted(standing[1], value)

    def records(self) -> list[StoredRecord]:
        """Give the newest record of each subkey."""
        return list(self._records.values())
