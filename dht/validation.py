"""Decide which records may stand on the DHT: every node runs this validator, on what it stores and on what it reads.

What is not expressly allowed is refused; the cheap checks come first (TRUST 3.6). Nothing here raises on junk, because
an exception inside a store request would abort the sender's whole batch.
This file does not know how records travel, nor what they are for. It runs on the event loop; a signature that was
found good is remembered, so a record costs one verification (65 us) per node and not one per replica.
"""

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType

from hivemind.dht.crypto import DHTRecord
from hivemind.dht.validation import RecordValidatorBase

from dht.audit import Audit
from dht.calibration import Calibration
from dht.claim import Claim
from dht.codec import decode
from dht.contest import Contest
from dht.equivocation import Equivocation
from dht.errors import BadRecord
from dht.ident import Ident, Succession
from dht.identity import peer_id_to_bytes, verify
from dht.parameters import SwarmParameters
from dht.records import (
    MAX_ENVELOPE_BYTES,
    Announcement,
    Envelope,
    LivingRecord,
    ManifestRecord,
    Record,
    SignedRecord,
    dht_id,
    place,
)
from dht.rules import DEFAULT_RULES, Rules
from dht.ruling import RulingRecord
from dht.snapshot import Snapshot
from dht.verdict import Verdict
from dht.work import Receipt

REGISTRY: Mapping[int, type[Record]] = MappingProxyType(
    {
        kind.KIND: kind
        for kind in (
            Announcement,
            Audit,
            Calibration,
            Claim,
            Contest,
            Equivocation,
            Ident,
            ManifestRecord,
            Receipt,
            RulingRecord,
            Snapshot,
            Succession,
            SwarmParameters,
            Verdict,
        )
    }
)
"""Every kind of record that may stand on the DHT; any other is refused."""

MAX_SUBKEY_BYTES = 128
"""Longest subkey of any kind, with its msgpack header."""

REMEMBERED = 16384
"""Good signatures that are remembered, as 32-byte digests."""


def parse_envelope(envelope: bytes, rules: Rules = DEFAULT_RULES) -> tuple[Envelope, SignedRecord]:
    """Decode an envelope and the record inside; say where it belongs. Signatures are not checked here.

    Args:
        envelope: What was stored, or came from a peer.
        rules: Of the swarm.

    Raises:
        BadRecord: Not canonical, of an unknown kind, oversize, or a field is out of bounds.
    """
    opened = Envelope.from_bytes(envelope)
    kind = REGISTRY.get(opened.kind)
    if kind is None:
        raise BadRecord("unknown kind")
    if len(envelope) > kind.MAX_BYTES:
        raise BadRecord("oversize")
    return opened, place(kind.from_body(opened.body), envelope, rules)


def is_regional(envelope: bytes) -> bool:
    """Say whether an envelope is of a kind that stands at a whole region; of one that was validated before."""
    try:
        kind = REGISTRY.get(Envelope.from_bytes(envelope).kind)
    except BadRecord:
        return False
    return kind is not None and kind.IS_REGIONAL


class RecordValidator(RecordValidatorBase):
    """Accept registered records under their own key and subkey, with their own expiry and signatures; nothing else.

    ``refusals`` counts what was refused, by reason. ``rules`` are the swarm's; while ``knows_rules`` is False, records
    that depend on them are refused, because nobody can say where these belong and when they expire.
    """

    def __init__(self, clock: Callable[[], float] = time.time, rules: Rules = DEFAULT_RULES) -> None:
        self._clock = clock
        self._rules = rules
        self.knows_rules = True
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self.refusals: Counter[str] = Counter()

    @property
    def rules(self) -> Rules:
        """The swarm's rules; the default ones while they are not known."""
        return self._rules

    @rules.setter
    def rules(self, rules: Rules) -> None:
        self._rules = rules
        self.knows_rules = True

    def validate(self, record: DHTRecord) -> bool:
        """Say whether ``record`` may be stored or believed; counts the reason when not."""
        reason = self.why_not(record.key, record.subkey, record.value, record.expiration_time)
        if reason is not None:
            self.refusals[reason] += 1
        return reason is None

    def why_not(self, key_id: bytes, packed_subkey: bytes, value: bytes, expires_s: float) -> str | None:
        """Name the first rule that a record breaks, or None.

        Args:
            key_id: The 20-byte id under which it stands.
            packed_subkey: Its subkey in msgpack.
            value: The envelope.
            expires_s: Its expiry, unix seconds.
        """
        if len(packed_subkey) > MAX_SUBKEY_BYTES:
            return "subkey"
        try:
            subkey = decode(packed_subkey, MAX_SUBKEY_BYTES)
        except BadRecord:  # nil, which marks a plain value that would wipe the key, is no canonical value
            return "no subkey"
        if not isinstance(subkey, bytes) or not subkey:
            return "no subkey"
        if len(value) > MAX_ENVELOPE_BYTES:
            return "oversize"
        try:
            opened, placed = parse_envelope(value, self.rules)
        except BadRecord as error:
            return str(error) if str(error) in ("unknown kind", "oversize") else "malformed"
        if not self.knows_rules and not isinstance(placed.record, LivingRecord):
            return "rules not known"
        now_s = self._clock()
        objection = placed.record.objection(self.rules, now_s)
        if objection is not None:
            return objection
        if placed.expires_s <= now_s:
            return "expired"
        if expires_s != placed.expires_s:
            return "expiry"
        if key_id != dht_id(placed.key):
            return "key"
        if subkey != placed.subkey:
            return "owner"
        return None if self._signed(opened, placed.record, value) else "signature"

    def remembers(self, envelope: bytes) -> bool:
        """Say whether an envelope's signatures were found good before."""
        return hashlib.sha256(envelope).digest() in self._verified

    def remember(self, envelope: bytes) -> None:
        """Take an envelope's signatures for good from now on."""
        self._verified[hashlib.sha256(envelope).digest()] = None
        if len(self._verified) > REMEMBERED:
            self._verified.popitem(last=False)

    def _signed(self, opened: Envelope, record: Record, envelope: bytes) -> bool:
        digest = hashlib.sha256(envelope).digest()
        if digest in self._verified:
            self._verified.move_to_end(digest)
            return True
        if len(opened.signatures) != len(record.authors):
            return False
        for author, signature in zip(record.authors, opened.signatures, strict=True):
            if not verify(peer_id_to_bytes(author), opened.kind, opened.body, signature):
                return False
        if not record.is_proven():
            return False
        self.remember(envelope)
        return True

    def sign_value(self, record: DHTRecord) -> bytes:
        """Return the value as it is: records are sealed before they come here."""
        value: bytes = record.value
        return value

    def strip_value(self, record: DHTRecord) -> bytes:
        """Return the value as it is: readers want the signature too."""
        value: bytes = record.value
        return value

    def merge_with(self, other: object) -> bool:
        """Take in another validator of this class, which has nothing to add."""
        return isinstance(other, RecordValidator)
