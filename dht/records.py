"""Define every record that stands on the DHT: fields with meaning and unit, key, subkey, lifetime, size, authors.

A record is a frozen dataclass; sealed, it is an envelope ``[version, kind, body, [signatures]]`` in canonical form.
Key and expiry are functions of the signed body, so a peer can neither move a record to another key nor lengthen or
shorten its life. ``dht.parameters`` holds one more kind; ``dht.validation`` has the registry and the rules' order.
This file does no I/O, reads no clock and does not know the DHT's code. It runs wherever it is called.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord
from dht.identity import PEER_ID_BYTES, Identity, peer_id_to_bytes, peer_id_to_str
from dht.rules import DEFAULT_RULES, Rules

ENVELOPE_VERSION = 1
KEY_TAG = "efed1"

MAX_ENVELOPE_BYTES = 4096
"""No record of any kind is longer; each kind has its own, smaller bound."""

MAX_FUTURE_S = 120
"""Seconds that the signed time of a record may lie ahead of the reader's clock."""

MAX_TIME_S = 2**40
"""Bound of unix times in seconds; keeps expiry exact as a float."""

MAX_LIFE_S = 3600
"""Longest life of an announcement or a manifest record, in seconds."""

MAX_BLOCKS = 4096
"""Most transformer blocks of one model."""

MAX_ADDRESSES = 8
"""Most multiaddrs that one peer may claim."""

MAX_ADDRESS_BYTES = 256
"""Longest multiaddr as text, in bytes."""

MAX_NAME_BYTES = 200
"""Longest name of a model or swarm, in UTF-8 bytes."""

EMBEDS = 1
"""Bit of an announcement's ends: the server embeds token ids; it serves the first block."""

HEADS = 2
"""Bit of an announcement's ends: the server computes logits and samples; it serves the model's last block."""

MAX_NEIGHBOURS = 16
"""Most peers to which one server announces its round trips."""

MAX_ROUND_TRIP_US = 60_000_000
"""Longest round trip that can be announced, in microseconds."""

KeyPart = int | bytes | str


class Kind(IntEnum):
    """Numbers of the record kinds; also the domain type of their signatures."""

    IDENT = 1
    RECEIPT = 2
    AUDIT = 3
    EQUIVOCATION = 4
    CLAIM = 5
    VERDICT = 6
    SNAPSHOT = 7
    CONTEST = 8
    RULING = 9
    ANNOUNCE = 16
    MANIFEST = 17
    PARAMETERS = 18
    SUCCESSION = 19
    CALIBRATION = 20


class ServerState(IntEnum):
    """State of a server; new sessions go to ``ONLINE`` ones only."""

    OFFLINE = 0  # withdrawn: a tombstone that outlives the announcement it replaces
    JOINING = 1  # loading its blocks
    ONLINE = 2
    DRAINING = 3  # leaves: its sessions go elsewhere, it takes no new ones
    PAUSED = 4  # stays, finishes its sessions, takes no new ones for now


class Record(ABC):
    """What every kind of record offers to the validator and the swarm."""

    __slots__ = ()

    KIND: ClassVar[int]
    """Number of the kind."""
    MAX_BYTES: ClassVar[int]
    """Longest envelope of this kind, in bytes."""
    IS_REGIONAL: ClassVar[bool] = False
    """Whether it must outlive its author: it stands at a whole region, and its holders store it again."""

    @property
    @abstractmethod
    def authors(self) -> tuple[str, ...]:
        """Peer ids that must have signed the body, in this order; none where the body proves itself."""

    @property
    @abstractmethod
    def subkey(self) -> bytes:
        """Where the record stands under its key."""

    @abstractmethod
    def key_parts(self, envelope: bytes) -> tuple[KeyPart, ...]:
        """Parts of the key; content-addressed kinds derive them from the envelope."""

    @abstractmethod
    def expires_s(self, rules: Rules) -> float:
        """Say when the record expires, unix seconds: a function of the body and of the swarm's rules."""

    @abstractmethod
    def to_body(self) -> bytes:
        """Encode canonically."""

    @classmethod
    @abstractmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check every field's type and range; raises ``BadRecord``."""

    @abstractmethod
    def objection(self, rules: Rules, now_s: float) -> str | None:
        """Name what is wrong with the record's times under these rules, in a word or two, or None."""

    def is_proven(self) -> bool:
        """Say whether the record bears out what it asserts of others; asked last, because it costs most."""
        return True


class LivingRecord(Record):
    """A record that is signed at a time and lives for as long as it says."""

    __slots__ = ()

    t: int
    """Signed time, unix seconds."""
    life_s: int
    """Seconds from ``t`` to the expiry."""

    def expires_s(self, rules: Rules) -> float:
        """``t + life_s``."""
        return float(self.t + self.life_s)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """``t`` may run a little ahead of the reader's clock."""
        return "from the future" if self.t > now_s + MAX_FUTURE_S else None


def key_bytes(kind: int, parts: tuple[KeyPart, ...]) -> bytes:
    """Build the preimage of a DHT key; its SHA-1 is the 20-byte id under which peers store."""
    return encode([KEY_TAG, int(kind), *parts])


def dht_id(key: bytes) -> bytes:
    """Hash a key preimage, or a binary peer id, to its 20-byte place in the DHT."""
    return hashlib.sha1(key, usedforsecurity=False).digest()


def take_peer_id(fields: Fields, name: str) -> str:
    """Take a 38-byte peer id and write it in base58."""
    try:
        return peer_id_to_str(fields.blob(name, PEER_ID_BYTES))
    except ValueError:
        raise BadRecord(f"{name} is not the peer id of an Ed25519 key") from None


@dataclass(frozen=True, slots=True)
class Announcement(LivingRecord):
    """ANNOUNCE: one server's offer for one model. Key ``(manifest, shard)``, subkey the owner's 38 bytes."""

    KIND: ClassVar[int] = Kind.ANNOUNCE
    MAX_BYTES: ClassVar[int] = 3840
    MAX_LIFE_S: ClassVar[int] = MAX_LIFE_S

    manifest: bytes  # identity of the model, 32 bytes
    shard: int  # which part of the model's servers this key lists, 0 to 255; 0 until there are hundreds
    owner: str  # peer id of the server, the only author
    t: int  # when it was signed, unix seconds; rises by at least 1 with every announcement
    life_s: int  # seconds until it expires, three refreshes
    state: ServerState  # what the server does now
    start: int  # first block served
    end: int  # one past the last block served
    dtype: str  # what the weights are held in: the compute dtype by torch's name ("float32"), or "int8", "int4"
    throughput_milli: int  # measured rate of decoding one row, thousandths of a block-token per second
    max_length: int  # tokens that one session may hold
    cache_free_tokens: int  # tokens that the cache can still take, over all sessions
    addresses: tuple[str, ...]  # multiaddrs where the server listens, with /p2p/<owner> at the end; at most 8
    version: str  # software version of the server ("0.1.0")
    ends: int = 0  # what the server does beyond its blocks for clients without weights: EMBEDS, HEADS, their sum, 0
    prefill_milli: int = 0  # measured rate of a long prompt, thousandths of a block-token per second; 0: not known
    queue_us: int = 0  # median wait of a step before it is computed, over the last minute, microseconds
    neighbours: tuple[tuple[str, int], ...] = ()  # peers that serve what follows, and the round trip to each in us

    @property
    def authors(self) -> tuple[str, ...]:
        """The server alone."""
        return (self.owner,)

    @property
    def subkey(self) -> bytes:
        """The owner's 38 bytes."""
        return peer_id_to_bytes(self.owner)

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(manifest, shard)``."""
        return (self.manifest, self.shard)

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode(
            [
                self.manifest,
                self.shard,
                peer_id_to_bytes(self.owner),
                self.t,
                self.life_s,
                int(self.state),
                self.start,
                self.end,
                self.dtype,
                self.throughput_milli,
                self.max_length,
                self.cache_free_tokens,
                list(self.addresses),
                self.version,
                self.ends,
                self.prefill_milli,
                self.queue_us,
                [[peer_id_to_bytes(peer), round_trip_us] for peer, round_trip_us in self.neighbours],
            ]
        )

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        record = cls(
            manifest=fields.blob("manifest", 32),
            shard=fields.uint("shard", 255),
            owner=take_peer_id(fields, "owner"),
            t=fields.uint("t", MAX_TIME_S),
            life_s=fields.uint("life_s", cls.MAX_LIFE_S, min_value=1),
            state=ServerState(fields.uint("state", max(ServerState))),
            start=fields.uint("start", MAX_BLOCKS),
            end=fields.uint("end", MAX_BLOCKS),
            dtype=fields.text("dtype", 32),
            throughput_milli=fields.uint("throughput_milli", 2**48),
            max_length=fields.uint("max_length", 2**40),
            cache_free_tokens=fields.uint("cache_free_tokens", 2**40),
            addresses=fields.texts("addresses", MAX_ADDRESSES, MAX_ADDRESS_BYTES),
            version=fields.text("version", 32),
            ends=fields.uint("ends", EMBEDS | HEADS),
            prefill_milli=fields.uint("prefill_milli", 2**48),
            queue_us=fields.uint("queue_us", MAX_ROUND_TRIP_US),
            neighbours=_take_neighbours(fields),
        )
        fields.end()
        if record.start >= record.end:
            raise BadRecord("the span is empty")
        if record.ends & EMBEDS and record.start > 0:
            raise BadRecord("token ids are embedded before the first block, which the span lacks")
        return record


def _take_neighbours(fields: Fields) -> tuple[tuple[str, int], ...]:
    rows = Fields(fields.items("neighbours", MAX_NEIGHBOURS))
    taken: list[tuple[str, int]] = []
    while rows.more():
        row = Fields(rows.items("neighbour", 2))
        taken.append((take_peer_id(row, "neighbour"), row.uint("round_trip_us", MAX_ROUND_TRIP_US)))
        row.end()
    if len({peer for peer, _ in taken}) < len(taken):
        raise BadRecord("a neighbour stands twice")
    return tuple(taken)


@dataclass(frozen=True, slots=True)
class ManifestRecord(LivingRecord):
    """MANIFEST: a model that a peer serves. One key for the whole swarm, subkey owner || manifest."""

    KIND: ClassVar[int] = Kind.MANIFEST
    MAX_BYTES: ClassVar[int] = 1024
    MAX_LIFE_S: ClassVar[int] = MAX_LIFE_S

    manifest: bytes  # identity of the model, 32 bytes
    owner: str  # peer id of the publisher, the only author
    t: int  # when it was signed, unix seconds
    life_s: int  # seconds until it expires
    name: str  # name for people ("gpt2"); many may publish the same name, the manifest decides
    model_type: str  # transformers' model_type ("llama")
    num_blocks: int  # transformer blocks of the whole model
    hidden_size: int  # width of the hidden states
    vocab_size: int  # tokens of the vocabulary

    @property
    def authors(self) -> tuple[str, ...]:
        """The publisher alone."""
        return (self.owner,)

    @property
    def subkey(self) -> bytes:
        """The owner's 38 bytes, then the manifest's 32."""
        return peer_id_to_bytes(self.owner) + self.manifest

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``MODELS_KEY``: one look-up lists all models of the swarm."""
        return MODELS_KEY

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode(
            [
                self.manifest,
                peer_id_to_bytes(self.owner),
                self.t,
                self.life_s,
                self.name,
                self.model_type,
                self.num_blocks,
                self.hidden_size,
                self.vocab_size,
            ]
        )

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        record = cls(
            manifest=fields.blob("manifest", 32),
            owner=take_peer_id(fields, "owner"),
            t=fields.uint("t", MAX_TIME_S),
            life_s=fields.uint("life_s", cls.MAX_LIFE_S, min_value=1),
            name=fields.text("name", MAX_NAME_BYTES),
            model_type=fields.text("model_type", 64),
            num_blocks=fields.uint("num_blocks", MAX_BLOCKS, min_value=1),
            hidden_size=fields.uint("hidden_size", 2**24, min_value=1),
            vocab_size=fields.uint("vocab_size", 2**32, min_value=1),
        )
        fields.end()
        return record


MODELS_KEY: tuple[KeyPart, ...] = (0,)
"""Key parts of the one key under which every manifest record stands; the number is the shard."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A record as it travels: body and signatures, not yet checked against one another."""

    kind: int  # number of the kind, also the domain type of the signatures
    body: bytes  # canonical body of the record
    signatures: tuple[bytes, ...]  # 64 bytes each, in the order of the record's authors

    def to_bytes(self) -> bytes:
        """Encode canonically."""
        return encode([ENVELOPE_VERSION, self.kind, self.body, list(self.signatures)])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; raises ``BadRecord``."""
        fields = Fields(decode(data, MAX_ENVELOPE_BYTES))
        fields.uint("version", ENVELOPE_VERSION, min_value=ENVELOPE_VERSION)
        kind = fields.uint("kind", 255)
        body = fields.some_bytes("body", MAX_ENVELOPE_BYTES)
        signatures = Fields(fields.items("signatures", 8))
        fields.end()
        taken = []
        while signatures.more():
            taken.append(signatures.blob("signature", 64))
        return cls(kind, body, tuple(taken))


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A sealed record with the place where it belongs."""

    record: Record
    envelope: bytes  # what is stored, byte for byte the same at every replica
    key: bytes  # preimage of the DHT key
    subkey: bytes  # place under the key
    expires_s: float  # unix seconds; what the body and the swarm's rules say


def seal(record: Record, *authors: Identity, rules: Rules = DEFAULT_RULES) -> SignedRecord:
    """Sign a record with the identities of its authors, in their order.

    Args:
        record: What is signed.
        authors: Who signs.
        rules: Of the swarm; records that carry their own life do not need them.

    Raises:
        ValueError: The identities are not the record's authors, or a field is out of bounds.
    """
    if tuple(author.peer_id for author in authors) != record.authors:
        raise ValueError("a record is signed by its authors and no one else")
    body = record.to_body()
    try:
        type(record).from_body(body)
    except BadRecord as error:
        raise ValueError(f"the record breaks its own rules: {error}") from None
    signatures = tuple(author.sign(record.KIND, body) for author in authors)
    return place(record, Envelope(record.KIND, body, signatures).to_bytes(), rules)


def place(record: Record, envelope: bytes, rules: Rules = DEFAULT_RULES) -> SignedRecord:
    """Say where an envelope that holds ``record`` belongs on the DHT, and until when."""
    key = key_bytes(record.KIND, record.key_parts(envelope))
    return SignedRecord(record, envelope, key, record.subkey, record.expires_s(rules))
