"""Put an identity into a text that only its passphrase opens, and take it out again: for a backup, or another machine.

The text is JSON and says how it was made: scrypt makes a key of the passphrase, ChaCha20-Poly1305 seals the 32-byte
seed with it, and the header cannot be changed without notice. A checksum tells a damaged text from a wrong passphrase.
This file does no I/O and draws no random numbers. Opening and sealing take half a second and 128 MiB. Pure.
"""

import json
import unicodedata
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from dht.codec import encode
from dht.errors import IdentityDamaged, WrongPassphrase
from dht.identity import Identity, peer_id_to_bytes

FORMAT = "efedllm identity"
VERSION = 1
KEY_DERIVATION = "scrypt"
CIPHER = "chacha20-poly1305"

SALT_BYTES = 16
NONCE_BYTES = 12

MIN_PASSPHRASE_CHARS = 8
"""Characters of a passphrase at least; who finds the text may try as many as he likes."""

MAX_TEXT_CHARS = 4096
"""No such text is longer."""

MAX_MEMORY_BYTES = 2**30
"""Memory that opening one may take, whatever the text asks for."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one trial of a passphrase costs: scrypt's numbers. It needs 128 n r bytes of memory."""

    n: int = 2**17  # rounds, a power of two
    r: int = 8  # block size
    p: int = 1  # how often all of it is done

    def is_bearable(self) -> bool:
        """Say whether these are numbers of scrypt, and no more than a machine can bear."""
        numbers = 2 <= self.n <= 2**24 and self.n & (self.n - 1) == 0 and 1 <= self.r <= 64 and 1 <= self.p <= 16
        return numbers and 128 * self.n * self.r <= MAX_MEMORY_BYTES


DEFAULT_COST = Cost()


@dataclass(frozen=True, slots=True)
class _Sealed:
    peer_id: str
    cost: Cost
    salt: bytes
    nonce: bytes
    secret: bytes  # sealed seed and its tag, 48 bytes

    def header(self) -> bytes:
        """What is signed along by the seal: everything that says how it was made."""
        peer, cost = peer_id_to_bytes(self.peer_id), self.cost
        return encode([FORMAT, VERSION, peer, KEY_DERIVATION, cost.n, cost.r, cost.p, self.salt, CIPHER, self.nonce])

    def checksum(self) -> str:
        return sha256(self.header() + self.secret).hexdigest()

    def to_text(self) -> str:
        fields = {
            "format": FORMAT,
            "version": VERSION,
            "peer_id": self.peer_id,
            "key_derivation": KEY_DERIVATION,
            "n": self.cost.n,
            "r": self.cost.r,
            "p": self.cost.p,
            "salt": self.salt.hex(),
            "cipher": CIPHER,
            "nonce": self.nonce.hex(),
            "sealed_seed": self.secret.hex(),
            "checksum": self.checksum(),
        }
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Self:
        try:
            fields = json.loads(text[: MAX_TEXT_CHARS + 1])
            version = fields["version"]
            if fields["format"] == FORMAT and isinstance(version, int) and version > VERSION:
                raise IdentityDamaged(f"the exported identity has version {version}, not {VERSION}: update efedllm")
            taken = cls._from_fields(fields)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise IdentityDamaged(_DAMAGED) from None
        return taken

    @classmethod
    def _from_fields(cls, fields: Any) -> Self:
        taken = cls(
            peer_id=fields["peer_id"],
            cost=Cost(fields["n"], fields["r"], fields["p"]),
            salt=bytes.fromhex(fields["salt"]),
            nonce=bytes.fromhex(fields["nonce"]),
            secret=bytes.fromhex(fields["sealed_seed"]),
        )
        sizes = (len(taken.salt), len(taken.nonce), len(taken.secret))
        if sizes != (SALT_BYTES, NONCE_BYTES, 48) or json.loads(taken.to_text()) != fields:
            raise ValueError("not what was written")
        if not taken.cost.is_bearable():
            raise ValueError("more than a machine can bear")
        return taken


_DAMAGED = "the exported identity is damaged, or no exported identity: copy it again, whole"


def seal_identity(identity: Identity, passphrase: str, *, salt: bytes, nonce: bytes, cost: Cost = DEFAULT_COST) -> str:
    """Write an identity as a text that its passphrase opens.

    Args:
        identity: Whose secret it is.
        passphrase: Any text of at least ``MIN_PASSPHRASE_CHARS`` characters.
        salt: 16 random bytes, new for every text.
        nonce: 12 random bytes.
        cost: What a trial shall cost.

    Raises:
        ValueError: The passphrase is too short, or salt or nonce have another length.
    """
    if len(passphrase) < MIN_PASSPHRASE_CHARS:
        raise ValueError(f"the passphrase is too short: take at least {MIN_PASSPHRASE_CHARS} characters")
    if (len(salt), len(nonce)) != (SALT_BYTES, NONCE_BYTES):
        raise ValueError(f"salt and nonce have {SALT_BYTES} and {NONCE_BYTES} bytes")
    blank = _Sealed(identity.peer_id, cost, salt, nonce, b"")
    secret = _cipher(passphrase, blank).encrypt(nonce, identity.seed(), blank.header())
    return _Sealed(identity.peer_id, cost, salt, nonce, secret).to_text()


def open_identity(text: str, passphrase: str) -> Identity:
    """Take an identity out of a text; it stands in no file yet.

    Raises:
        IdentityDamaged: The text is not what ``seal_identity`` wrote, or a later version's.
        WrongPassphrase: It is whole, but the passphrase is another.
    """
    sealed = _Sealed.from_text(text)
    try:
        seed = _cipher(passphrase, sealed).decrypt(sealed.nonce, sealed.secret, sealed.header())
    except InvalidTag:
        raise WrongPassphrase("the passphrase does not open this identity: try again with the right one") from None
    identity = Identity.from_seed(seed)
    if identity.peer_id != sealed.peer_id:
        raise IdentityDamaged(_DAMAGED)
    return identity


def exported_peer_id(text: str) -> str:
    """Say whose identity a text holds, without the passphrase.

    Raises:
        IdentityDamaged: The text is not what ``seal_identity`` wrote.
    """
    return _Sealed.from_text(text).peer_id


def _cipher(passphrase: str, sealed: _Sealed) -> ChaCha20Poly1305:
    """Make the key; one passphrase typed on two systems may come in two Unicode forms, which are made one here."""
    written = unicodedata.normalize("NFC", passphrase).encode()
    cost = sealed.cost
    return ChaCha20Poly1305(Scrypt(salt=sealed.salt, length=32, n=cost.n, r=cost.r, p=cost.p).derive(written))
