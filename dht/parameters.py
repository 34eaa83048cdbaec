"""Define what a swarm's founder decides, and the one string that lets a peer join.

``SwarmParameters`` is a record kind of its own, signed by the founder and addressed by the hash of its envelope.
A ``JoinCode`` carries addresses, the swarm's name, that hash and, for a private swarm, its secret.
This file does no I/O and knows nothing of libp2p beyond the shape of a multiaddr. It runs wherever it is called.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import ClassVar, Self

import base58

from dht.codec import Fields, Value, decode, encode
from dht.errors import BadAddress, BadJoinCode, BadRecord
from dht.identity import PEER_ID_BYTES, peer_id_to_bytes, peer_id_to_str
from dht.records import LivingRecord
from dht.rules import Rules

PUBLIC_NAME = "public"
"""Name of the swarm that a peer joins when it is given addresses alone."""

SECRET_BYTES = 32
"""Length of a private swarm's secret."""

CODE_VERSION = 1
"""First byte of a join code."""

MAX_CODE_CHARS = 4096
"""No join code is longer."""

MAX_ANCHORS = 64
"""Most anchors that a founder names."""

MAX_ADDRESSES = 16
"""Most bootstrap addresses in one join code."""

_MEND = "copy it again, whole, from the line that 'efedllm bootstrap' printed"
_CHECKSUM_BYTES = 4
_PEER_PART = re.compile(r"/p2p/([1-9A-HJ-NP-Za-km-z]{40,64})$")


@dataclass(frozen=True, slots=True)
class SwarmParameters(LivingRecord):
    """PARAMETERS: the rules of one swarm. Key ``(sha256 of the envelope,)``, subkey the founder's 38 bytes."""

    KIND: ClassVar[int] = 18
    MAX_BYTES: ClassVar[int] = 4096
    MAX_LIFE_S: ClassVar[int] = 10 * 366 * 86400
    IS_REGIONAL: ClassVar[bool] = True

    founder: str  # peer id of the author
    t: int  # when the swarm was founded, unix seconds
    life_s: int  # seconds until the parameters expire; the swarm ends with them
    name: str  # the swarm's name; part of the key of its handshake
    private: bool  # True: admission needs the secret
    epoch_s: int = 21600  # length of an epoch, seconds
    proof_of_work_bits: int = 0  # leading zero bits that a new identity's proof needs; 0: none asked
    key_quota: int = 4096  # most subkeys under one key
    audit_per_mille: int = 20  # share of checkpoints that are audited, thousandths
    window_epochs: int = 56  # receipts and audits live so long, epochs
    evidence_epochs: int = 360  # equivocations, claims and verdicts live so long, epochs
    flow_half_life_epochs: int = 28  # co-signed work counts half after so many epochs
    conviction_half_life_epochs: int = 120  # a conviction counts half after so many epochs
    audit_half_life_epochs: int = 56  # a rejected claim counts half against its accuser after so many epochs
    anchors: tuple[str, ...] = ()  # peer ids whose judgement seeds reputation; each node may replace them locally

    @property
    def authors(self) -> tuple[str, ...]:
        """The founder alone."""
        return (self.founder,)

    @property
    def subkey(self) -> bytes:
        """The founder's 38 bytes."""
        return peer_id_to_bytes(self.founder)

    @property
    def rules(self) -> Rules:
        """What records need of these parameters."""
        return Rules(self.epoch_s, self.window_epochs, self.evidence_epochs, self.proof_of_work_bits)

    def key_parts(self, envelope: bytes) -> tuple[bytes]:
        """Address the record by its content: no one can put other parameters under the hash of a join code."""
        return (parameters_hash(envelope),)

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode(
            [
                peer_id_to_bytes(self.founder),
                self.t,
                self.life_s,
                self.name,
                self.private,
                self.epoch_s,
                self.proof_of_work_bits,
                self.key_quota,
                self.audit_per_mille,
                self.window_epochs,
                self.evidence_epochs,
                self.flow_half_life_epochs,
                self.conviction_half_life_epochs,
                self.audit_half_life_epochs,
                [peer_id_to_bytes(anchor) for anchor in self.anchors],
            ]
        )

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        try:
            parameters = cls(
                founder=peer_id_to_str(fields.blob("founder", PEER_ID_BYTES)),
                t=fields.uint("t", 2**40),
                life_s=fields.uint("life_s", cls.MAX_LIFE_S, min_value=1),
                name=fields.text("name", 200),
                private=fields.flag("private"),
                epoch_s=fields.uint("epoch_s", 2**24, min_value=1),
                proof_of_work_bits=fields.uint("proof_of_work_bits", 64),
                key_quota=fields.uint("key_quota", 2**16, min_value=1),
                audit_per_mille=fields.uint("audit_per_mille", 1000),
                window_epochs=fields.uint("window_epochs", 2**16, min_value=1),
                evidence_epochs=fields.uint("evidence_epochs", 2**16, min_value=1),
                flow_half_life_epochs=fields.uint("flow_half_life_epochs", 2**16, min_value=1),
                conviction_half_life_epochs=fields.uint("conviction_half_life_epochs", 2**16, min_value=1),
                audit_half_life_epochs=fields.uint("audit_half_life_epochs", 2**16, min_value=1),
                anchors=_take_anchors(fields),
            )
        except ValueError:
            raise BadRecord("not the peer id of an Ed25519 key") from None
        fields.end()
        return parameters


def _take_anchors(fields: Fields) -> tuple[str, ...]:
    items = Fields(fields.items("anchors", MAX_ANCHORS))
    anchors = []
    while items.more():
        anchors.append(peer_id_to_str(items.blob("anchor", PEER_ID_BYTES)))
    return tuple(anchors)


def parameters_hash(envelope: bytes) -> bytes:
    """Hash the envelope of a swarm's parameters for its join code; 32 bytes."""
    return hashlib.sha256(envelope).digest()


def split_address(address: str) -> tuple[str, str]:
    """Split "/ip4/10.0.0.1/tcp/4000/p2p/12D3KooW..." into the transport part and the peer id.

    Raises:
        BadAddress: No multiaddr, or none that ends with the id of an Ed25519 peer.
    """
    mend = "an address looks like /ip4/192.168.1.5/tcp/31337/p2p/12D3KooW..."
    match = _PEER_PART.search(address)
    if match is None or not address.startswith("/") or not address.isprintable() or len(address) > 256:
        raise BadAddress(f"{address[:100]!r} is no address of a peer: {mend}")
    try:
        peer_id_to_bytes(match.group(1))
    except ValueError:
        raise BadAddress(f"{match.group(1)!r} is no peer id of this network: {mend}") from None
    if match.start() == 0:
        raise BadAddress(f"{address[:100]!r} names a peer but not where it is: {mend}")
    return address[: match.start()], match.group(1)


@dataclass(frozen=True, slots=True)
class JoinCode:
    """Everything that a peer needs to join a swarm."""

    addresses: tuple[str, ...]  # multiaddrs of bootstraps, each with /p2p/<peer id>
    name: str = PUBLIC_NAME  # the swarm's name
    parameters_hash: bytes = b""  # sha256 of the sealed SwarmParameters, 32 bytes; empty when not known
    secret: bytes | None = field(default=None, repr=False)  # of a private swarm, 32 bytes; None: public

    def encode(self) -> str:
        """Write as base58 of version, canonical array and checksum.

        Raises:
            BadAddress: An address does not end with a peer id.
            ValueError: The secret or the hash has another length than it must.
        """
        if len(self.secret or bytes(SECRET_BYTES)) != SECRET_BYTES or len(self.parameters_hash) not in (0, 32):
            raise ValueError(f"a secret has {SECRET_BYTES} bytes and a hash 32")
        entries: list[Value] = []
        for address in self.addresses:
            transport, peer_id = split_address(address)
            entries.append([transport, peer_id_to_bytes(peer_id)])
        payload = bytes([CODE_VERSION]) + encode([self.name, entries, self.parameters_hash, self.secret or b""])
        code: str = base58.b58encode(payload + _checksum(payload)).decode()
        return code

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a join code; white space that a line break or a mail put into it does not matter.

        Raises:
            BadJoinCode: Anything else is wrong with it; the sentence says what and how to mend it.
        """
        code = "".join(text.split())
        if not code:
            raise BadJoinCode(f"the join code is empty: {_MEND}")
        if len(code) > MAX_CODE_CHARS:
            raise BadJoinCode(f"the join code is longer than any: {_MEND}")
        try:
            data = base58.b58decode(code)
        except ValueError:
            raise BadJoinCode(f"the join code holds a character that no code has: {_MEND}") from None
        payload, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if len(payload) < 2 or _checksum(payload) != checksum:
            raise BadJoinCode(f"the join code is incomplete or has a typing error: {_MEND}")
        if payload[0] != CODE_VERSION:
            raise BadJoinCode(f"the join code has version {payload[0]}, this program reads {CODE_VERSION}: update it")
        try:
            return cls._from_payload(payload[1:])
        except (BadRecord, BadAddress, ValueError):
            raise BadJoinCode(f"the join code does not hold what it should: {_MEND}") from None

    @classmethod
    def _from_payload(cls, payload: bytes) -> Self:
        fields = Fields(decode(payload, MAX_CODE_CHARS))
        name = fields.text("name", 200)
        entries = Fields(fields.items("addresses", MAX_ADDRESSES))
        digest = fields.blob("parameters_hash", 0, 32)
        secret = fields.blob("secret", 0, SECRET_BYTES) or None
        fields.end()
        addresses = []
        while entries.more():
            entry = Fields(entries.items("address", 2))
            transport = entry.text("transport", 256)
            addresses.append(f"{transport}/p2p/{peer_id_to_str(entry.blob('peer id', PEER_ID_BYTES))}")
            entry.end()
        for address in addresses:
            split_address(address)
        return cls(tuple(addresses), name, digest, secret)


def parse_join(text: str) -> JoinCode:
    """Read what a user gives to ``--join``: a join code, or addresses of a public swarm with commas or spaces between.

    Raises:
        BadJoinCode: No code.
        BadAddress: It looks like addresses, but one of them is malformed.
    """
    if "/" not in text:
        return JoinCode.parse(text)
    addresses = tuple(part for part in re.split(r"[,\s]+", text) if part)
    for address in addresses:
        split_address(address)
    if len(addresses) > MAX_ADDRESSES:
        raise BadAddress(f"{len(addresses)} addresses are more than the {MAX_ADDRESSES} that are tried: give fewer")
    return JoinCode(addresses)


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(b"efed join code" + payload).digest()[:_CHECKSUM_BYTES]
