"""Prove to each other that both sides know the swarm's key: messages in, messages out, no I/O.

    initiator                                             responder
    HELLO   [version, nonce_i]                      ->
                                                    <-    HELLO   [version, nonce_r]
    PROOF   [card_i, mac("initiator", ..., card_i)] ->                                  admits the initiator
                                                    <-    PROOF   [0, card_r, mac("responder", ..., card_r)]
    admits the responder                            <- or REFUSAL [code]

``mac(label, ...)`` is HMAC-SHA256 over label, version, both peer ids, both nonces and the card, under a key that HKDF
derives from the swarm's secret and name. The label makes a reflected proof fail, the nonces a replayed one, the peer
ids, which libp2p has authenticated, a forwarded one. A public swarm does the same with a secret that everyone knows,
so two public swarms of different names are as separate as private ones. The initiator proves first: an outsider that
dials learns nothing but that it is refused.

This file does not know streams, timeouts or addresses' meaning. It runs wherever it is called.
"""

import enum
import hmac
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dht.codec import Fields, Value, decode, encode
from dht.errors import BadRecord, ProtocolViolation
from dht.identity import peer_id_to_bytes

HELLO_VERSION = 1
"""Version of this exchange and of everything that members then say to each other."""

NONCE_BYTES = 32
INSTANCE_BYTES = 16
MAC_BYTES = 32

MAX_HELLO_BYTES = 4096
"""Longest message of the exchange."""

MAX_ADDRESSES = 8
MAX_ADDRESS_BYTES = 256

_PUBLIC_SECRET = b"efedllm public swarm: no secret here"


class Refusal(enum.IntEnum):
    """Why a responder does not admit an initiator."""

    WRONG_KEY = 1  # it does not know this swarm's secret, or means another swarm
    VERSION = 2  # it speaks another version
    IDENTITY_IN_USE = 3  # a live node has the same identity
    BUSY = 4  # too many exchanges at once: try again


@dataclass(frozen=True, slots=True)
class Card:
    """What a member says about itself."""

    instance: bytes  # random, 16 bytes, new with every process: tells two nodes with one identity apart
    time_ms: int  # its clock, unix milliseconds
    answers_dht: bool  # False: a client, which no one stores at
    addresses: tuple[str, ...]  # multiaddrs where it listens, without /p2p/; at most 8

    def to_value(self) -> Value:
        """Give the positional array."""
        return [self.instance, self.time_ms, self.answers_dht, list(self.addresses)]

    @classmethod
    def from_value(cls, value: object) -> Self:
        """Check a decoded array; raises ``BadRecord``."""
        fields = Fields(value)
        card = cls(
            instance=fields.blob("instance", INSTANCE_BYTES),
            time_ms=fields.uint("time_ms", 2**50),
            answers_dht=fields.flag("answers_dht"),
            addresses=fields.texts("addresses", MAX_ADDRESSES, MAX_ADDRESS_BYTES),
        )
        fields.end()
        return card


def membership_key(name: str, secret: bytes | None) -> bytes:
    """Derive the key of a swarm's exchanges; 32 bytes.

    Args:
        name: The swarm's name.
        secret: Of a private swarm; None for a public one.
    """
    info = encode(["efed/membership/1", name, secret is not None])
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret or _PUBLIC_SECRET)


class RefusedError(ProtocolViolation):
    """The other side refuses us, for the reason that ``refusal`` names."""

    def __init__(self, refusal: Refusal, detail: int = 0) -> None:
        super().__init__(f"refused: {refusal.name}")
        self.refusal = refusal
        self.detail = detail  # of VERSION: the version that the other side speaks


class _Side:
    """What both sides share."""

    def __init__(self, key: bytes, initiator: str, responder: str, nonce: bytes) -> None:
        if len(nonce) != NONCE_BYTES:
            raise ValueError("a nonce has 32 bytes")
        self._key = key
        self._peers: tuple[Value, ...] = (peer_id_to_bytes(initiator), peer_id_to_bytes(responder))
        self._nonce = nonce

    def hello(self) -> bytes:
        """Give our first message."""
        return encode([HELLO_VERSION, self._nonce])

    def _read_hello(self, message: bytes) -> bytes:
        fields = Fields(decode(message, MAX_HELLO_BYTES))
        version = fields.uint("version", 255)
        if version != HELLO_VERSION:
            raise RefusedError(Refusal.VERSION, version)
        nonce = fields.blob("nonce", NONCE_BYTES)
        fields.end()
        return nonce

    def _mac(self, label: str, nonce_i: bytes, nonce_r: bytes, card: Value) -> bytes:
        message = encode([label, HELLO_VERSION, *self._peers, nonce_i, nonce_r, card])
        return hmac.digest(self._key, message, "sha256")


class Initiator(_Side):
    """The side that opened the stream: ``hello``, ``prove``, ``admit``, in this order."""

    def __init__(self, key: bytes, own_peer_id: str, other_peer_id: str, nonce: bytes) -> None:
        super().__init__(key, own_peer_id, other_peer_id, nonce)
        self._other_nonce = b""

    def prove(self, hello: bytes, card: Card) -> bytes:
        """Answer the responder's hello with our proof.

        Raises:
            RefusedError: It speaks another version.
            BadRecord: It is no hello.
        """
        fields = Fields(decode(hello, MAX_HELLO_BYTES))
        if fields.uint("version", 255) == 0:
            raise _refusal_in(fields)
        self._other_nonce = self._read_hello(hello)
        return encode([card.to_value(), self._mac("initiator", self._nonce, self._other_nonce, card.to_value())])

    def admit(self, proof: bytes) -> Card:
        """Check the responder's proof and give its card.

        Raises:
            RefusedError: It refuses us.
            ProtocolViolation: It does not know the key either.
            BadRecord: It is no proof.
        """
        fields = Fields(decode(proof, MAX_HELLO_BYTES))
        if fields.uint("refusal", 1) == 1:
            raise _refusal_in(fields)
        value = fields.items("card", 16)
        mac = fields.blob("mac", MAC_BYTES)
        fields.end()
        card = Card.from_value(value)
        if not hmac.compare_digest(mac, self._mac("responder", self._nonce, self._other_nonce, card.to_value())):
            raise ProtocolViolation("the peer does not know this swarm's key")
        return card


class Responder(_Side):
    """The side that was called: ``greet``, ``admit``, ``prove``, in this order."""

    def __init__(self, key: bytes, own_peer_id: str, other_peer_id: str, nonce: bytes) -> None:
        super().__init__(key, other_peer_id, own_peer_id, nonce)
        self._other_nonce = b""

    def greet(self, hello: bytes) -> bytes:
        """Answer the initiator's hello.

        Raises:
            RefusedError: It speaks another version; send ``refuse`` with it.
            BadRecord: It is no hello.
        """
        self._other_nonce = self._read_hello(hello)
        return self.hello()

    def admit(self, proof: bytes) -> Card:
        """Check the initiator's proof and give its card.

        Raises:
            RefusedError: It does not know the key.
            BadRecord: It is no proof.
        """
        fields = Fields(decode(proof, MAX_HELLO_BYTES))
        value = fields.items("card", 16)
        mac = fields.blob("mac", MAC_BYTES)
        fields.end()
        card = Card.from_value(value)
        if not hmac.compare_digest(mac, self._mac("initiator", self._other_nonce, self._nonce, card.to_value())):
            raise RefusedError(Refusal.WRONG_KEY)
        return card

    def prove(self, card: Card) -> bytes:
        """Give our proof."""
        return encode([0, card.to_value(), self._mac("responder", self._other_nonce, self._nonce, card.to_value())])


def refuse_hello(refusal: Refusal) -> bytes:
    """Give the answer to a hello that ends the exchange; version 0 marks it."""
    return encode([0, int(refusal), HELLO_VERSION])


def refuse_proof(refusal: Refusal) -> bytes:
    """Give the answer to a proof that ends the exchange."""
    return encode([1, int(refusal), HELLO_VERSION])


def _refusal_in(fields: Fields) -> RefusedError:
    code = fields.uint("refusal", 255)
    version = fields.uint("version", 255)
    fields.end()
    try:
        return RefusedError(Refusal(code), version)
    except ValueError:
        raise BadRecord("an unknown refusal") from None
