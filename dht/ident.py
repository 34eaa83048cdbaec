"""IDENT, SUCCESSION and AFFILIATION: since when an identity exists, which one takes its place, which belong together.

The proof limits how fast identities can be made. It is no defence against many of them: what an identity is worth is
decided by what was done under it. This file does no I/O and reads no clock. Pure, and slow where it finds a proof.
"""

import hashlib
from dataclasses import dataclass
from enum import IntFlag
from itertools import count
from typing import ClassVar, Self

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes, signed_bytes
from dht.records import KeyPart, Kind, Record, take_peer_id
from dht.rules import Rules
from dht.work import MAX_EPOCH

MAX_NONCE = 2**64 - 1
MAX_REGION_BYTES = 32
NUM_SHARDS = 256
"""Keys over which identities are spread, by the first byte of a hash, so that none holds too many."""


class Role(IntFlag):
    """What a node says that it does."""

    CLIENT = 1
    SERVER = 2
    VERIFIER = 4
    BOOTSTRAP = 8


def proof_bits(peer_id: str, created_epoch: int, nonce: int) -> int:
    """Count the leading zero bits of the twice hashed proof.

    Args:
        peer_id: Whose identity it is.
        created_epoch: Epoch that the identity counts from.
        nonce: What was found.
    """
    body = encode([peer_id_to_bytes(peer_id), created_epoch, nonce])
    digest = hashlib.sha256(hashlib.sha256(signed_bytes(Kind.IDENT, body)).digest()).digest()
    return _leading_zeros(digest)


def find_proof(peer_id: str, created_epoch: int, num_bits: int) -> int:
    """Find a nonce whose proof has ``num_bits`` leading zero bits; takes 2**num_bits trials in the mean.

    From 2**32 on every nonce is written in 8 bytes, so all that stands before it is hashed once.
    """
    first = 2**32
    whole = signed_bytes(Kind.IDENT, encode([peer_id_to_bytes(peer_id), created_epoch, first]))
    before = hashlib.sha256(whole[:-8])
    for nonce in count(first):
        trial = before.copy()
        trial.update(nonce.to_bytes(8, "big"))
        if _leading_zeros(hashlib.sha256(trial.digest()).digest()) >= num_bits:
            return nonce
    raise AssertionError


def _leading_zeros(digest: bytes) -> int:
    return 8 * len(digest) - int.from_bytes(digest, "big").bit_length()


def shard_of(peer_id: str) -> int:
    """Say under which of the keys an identity stands."""
    return hashlib.sha256(peer_id_to_bytes(peer_id)).digest()[0]


@dataclass(frozen=True, slots=True)
class Ident(Record):
    """IDENT. Key ``(shard,)``, subkey the peer's 38 bytes. Signed anew every epoch that the node runs in."""

    KIND: ClassVar[int] = Kind.IDENT
    MAX_BYTES: ClassVar[int] = 256
    IS_REGIONAL: ClassVar[bool] = True

    peer: str  # peer id of the node, the only author
    created_epoch: int  # epoch that the identity counts from; it stays when the record is renewed
    epoch: int  # epoch of this record; the newest replaces the others
    nonce: int  # proof of work over peer and created_epoch
    roles: Role  # what the node says that it does
    region: str  # where it says that it is, for people; may be empty

    @property
    def authors(self) -> tuple[str, ...]:
        """The node alone."""
        return (self.peer,)

    @property
    def subkey(self) -> bytes:
        """The peer's 38 bytes."""
        return peer_id_to_bytes(self.peer)

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(shard,)``."""
        return (shard_of(self.peer),)

    def expires_s(self, rules: Rules) -> float:
        """The end of the epoch's window."""
        return rules.end_of_window(self.epoch)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """The epoch has begun, and the proof is as hard as the swarm asks."""
        if not rules.has_begun(self.epoch, now_s):
            return "from the future"
        if proof_bits(self.peer, self.created_epoch, self.nonce) < rules.proof_of_work_bits:
            return "proof of work"
        return None

    def to_body(self) -> bytes:
        """Encode canonically."""
        peer = peer_id_to_bytes(self.peer)
        return encode([peer, self.created_epoch, self.epoch, self.nonce, int(self.roles), self.region])

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        ident = cls(
            peer=take_peer_id(fields, "peer"),
            created_epoch=fields.uint("created_epoch", MAX_EPOCH),
            epoch=fields.uint("epoch", MAX_EPOCH),
            nonce=fields.uint("nonce", MAX_NONCE),
            roles=Role(fields.uint("roles", 15)),
            region=fields.text("region", MAX_REGION_BYTES),
        )
        fields.end()
        if ident.created_epoch > ident.epoch:
            raise BadRecord("the identity is newer than its record")
        return ident


class _OfTwo(Record):
    """What two identities sign together. Key: the first one; subkey: the second; lives as long as evidence."""

    __slots__ = ()

    MAX_BYTES: ClassVar[int] = 320
    IS_REGIONAL: ClassVar[bool] = True
    NAMES: ClassVar[tuple[str, str]]
    """Of the two fields that hold them."""
    NOT_BOTH: ClassVar[str]
    """Why they cannot be one and the same."""

    epoch: int

    @property
    def subkey(self) -> bytes:
        """The second one's 38 bytes: who names two is seen to."""
        return peer_id_to_bytes(self.authors[1])

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """The first one's 38 bytes."""
        return (peer_id_to_bytes(self.authors[0]),)

    def expires_s(self, rules: Rules) -> float:
        """As long as evidence lives."""
        return rules.end_of_evidence(self.epoch)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """The epoch has begun."""
        return None if rules.has_begun(self.epoch, now_s) else "from the future"

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode([*map(peer_id_to_bytes, self.authors), self.epoch])

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        first, second = (take_peer_id(fields, name) for name in cls.NAMES)
        epoch = fields.uint("epoch", MAX_EPOCH)
        fields.end()
        if first == second:
            raise BadRecord(cls.NOT_BOTH)
        # Those are the fields of every kind that is made of this one.
        return cls(first, second, epoch)  # type: ignore[call-arg]


@dataclass(frozen=True, slots=True)
class Succession(_OfTwo):
    """SUCCESSION: what an old identity has earned goes to a new one, once. Key ``(old,)``, subkey the new one."""

    KIND: ClassVar[int] = Kind.SUCCESSION
    NAMES: ClassVar[tuple[str, str]] = ("old", "new")
    NOT_BOTH: ClassVar[str] = "nobody succeeds himself"

    old: str  # peer id that ends, first author
    new: str  # peer id that takes its place, second author
    epoch: int  # epoch from which on the old one is dead

    @property
    def authors(self) -> tuple[str, ...]:
        """Both: nobody inherits what it was not given, nor is given what it does not want."""
        return (self.old, self.new)


@dataclass(frozen=True, slots=True)
class Affiliation(_OfTwo):
    """AFFILIATION: two identities are one owner's, who is served by what they gave and took together.

    Key ``(owner,)``, subkey the member. It ends with its lifetime, not before.
    """

    KIND: ClassVar[int] = Kind.AFFILIATION
    NAMES: ClassVar[tuple[str, str]] = ("owner", "member")
    NOT_BOTH: ClassVar[str] = "nobody belongs to himself"

    owner: str  # peer id under whose key it stands, a server's; first author
    member: str  # peer id that belongs to it, a client's; second author
    epoch: int  # epoch in which both signed

    @property
    def authors(self) -> tuple[str, ...]:
        """Both: nobody is served by another's merit, nor bears its debts, unless both want it."""
        return (self.owner, self.member)
