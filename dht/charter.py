"""Know the rules of one swarm: read its founder's parameters from the DHT by the hash that its join code names.

Until they are known, nothing whose place or life depends on them is stored or believed. A swarm whose join code names
none has the default rules. This file does not know who needs the rules. It runs on the event loop.
"""

import asyncio
import time

from dht.errors import BadRecord
from dht.hardening.overlay import Overlay
from dht.hardening.storage import MAX_SUBKEYS, RecordStorage
from dht.parameters import SwarmParameters, parameters_hash
from dht.records import Envelope, Kind, key_bytes
from dht.rules import Rules
from dht.validation import RecordValidator

FIRST_WAIT_S = 1.0
"""Seconds until parameters that were not there are looked for again; doubled each time."""

LONGEST_WAIT_S = 60.0
"""Seconds between two looks at most: every member looks under the same key."""


class Charter:
    """One swarm's parameters, known or not yet; tells the validator and the storage as soon as they are."""

    def __init__(self, expected_hash: bytes, envelope: bytes, validator: RecordValidator) -> None:
        """Begin with what is known.

        Args:
            expected_hash: The sha256 of the envelope, 32 bytes; empty: the swarm has no parameters.
            envelope: The sealed parameters, or empty: they are to be read.
            validator: Is given the rules.

        Raises:
            BadRecord: The envelope is not the one with that hash, or holds no parameters.
        """
        self.hash = expected_hash
        self.parameters: SwarmParameters | None = None
        self.envelope = b""
        self._validator = validator
        self._known = asyncio.Event()
        self._due_s = 0.0  # monotonic seconds: when they may be looked for again
        self._wait_s = FIRST_WAIT_S
        validator.knows_rules = not expected_hash
        if not expected_hash:
            self._known.set()
        if envelope:
            self._adopt(envelope)

    @property
    def max_subkeys(self) -> int:
        """Most records under one key of this swarm."""
        return MAX_SUBKEYS if self.parameters is None else min(MAX_SUBKEYS, self.parameters.key_quota)

    def _adopt(self, envelope: bytes) -> None:
        if parameters_hash(envelope) != self.hash:
            raise BadRecord("these are not the parameters that the join code names")
        opened = Envelope.from_bytes(envelope)
        if opened.kind != Kind.PARAMETERS:
            raise BadRecord("these are no parameters")
        self.parameters = SwarmParameters.from_body(opened.body)
        self.envelope = envelope
        self._validator.rules = self.parameters.rules
        self._known.set()

    async def read(self, overlay: Overlay) -> None:
        """Look for the parameters unless they are known, or were looked for a moment ago.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        if self._known.is_set() or time.monotonic() < self._due_s:
            return
        key = key_bytes(Kind.PARAMETERS, (self.hash,))
        for is_regional in (False, True):  # The few nearest answer sooner, and are sooner surrounded.
            for envelope in await overlay.collect(key, is_regional=is_regional):
                if parameters_hash(envelope) == self.hash:
                    self._adopt(envelope)
                    self.limit(overlay.protocol.storage)
                    return
        self._due_s = time.monotonic() + self._wait_s
        self._wait_s = min(LONGEST_WAIT_S, 2 * self._wait_s)

    def limit(self, storage: RecordStorage) -> None:
        """Give a storage the quota that holds in this swarm, as far as it is known."""
        storage.max_subkeys = self.max_subkeys

    async def wait(self) -> Rules:
        """Wait until the rules are known."""
        await self._known.wait()
        return self._validator.rules
