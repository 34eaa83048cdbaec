"""Keep the one Ed25519 key of a node: it is the libp2p peer id, and it signs every record.

The file is a libp2p ``PrivateKey`` protobuf, so that p2pd loads the same one. A signature is checked from the peer id
alone, by the ``cryptography`` package and nothing else, because Ed25519 libraries disagree on edge cases.
This file does not know what is signed, nor anything of the network. It runs at start-up, on the caller's thread.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dht.errors import IdentityDamaged, IdentityInUse, IdentityNotWritten

PEER_ID_BYTES = 38
"""Length of a binary peer id: 6 bytes of prefix and the 32-byte public key."""

_PEER_ID_PREFIX = bytes.fromhex("002408011220")  # identity multihash, 36 bytes | PublicKey{Ed25519, 32 bytes}
_KEY_FILE_PREFIX = bytes.fromhex("08011240")  # PrivateKey{key_type: Ed25519, data: 64 bytes}
_DOMAIN = b"efed/trust/1"

_REMEMBERED_SIGNATURES = 2**12
_REMEMBERED_IDS = 2**14
"""Peer ids whose other form is remembered: every record is read and written with them, and base58 costs 10 us."""


@functools.lru_cache(_REMEMBERED_IDS)
def peer_id_to_str(peer_id: bytes) -> str:
    """Write a binary peer id in base58 ("12D3KooW...").

    Raises:
        ValueError: Not 38 bytes of an inlined Ed25519 key.
    """
    if len(peer_id) != PEER_ID_BYTES or not peer_id.startswith(_PEER_ID_PREFIX):
        raise ValueError("not the peer id of an Ed25519 key")
    text: str = base58.b58encode(peer_id).decode()
    return text


@functools.lru_cache(_REMEMBERED_IDS)
def peer_id_to_bytes(peer_id: str) -> bytes:
    """Read a base58 peer id.

    Raises:
        ValueError: Not base58, or not the peer id of an Ed25519 key.
    """
    if len(peer_id) > 64 or not peer_id.isascii():
        raise ValueError("not the peer id of an Ed25519 key")
    data: bytes = base58.b58decode(peer_id)
    if peer_id_to_str(data) != peer_id:
        raise ValueError("not the peer id of an Ed25519 key")
    return data


def signed_bytes(domain_type: int, body: bytes) -> bytes:
    """Frame a body for signing (libp2p RFC 0002), so that no signature counts in two contexts.

    Args:
        domain_type: What kind of body this is, 0 to 255.
        body: The bytes to be signed.
    """
    parts = (_DOMAIN, bytes([domain_type]), body)
    return b"".join(_varint(len(part)) + part for part in parts)


@functools.lru_cache(maxsize=1024)
def _public_key(peer_id: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(peer_id[len(_PEER_ID_PREFIX) :])


class _KnownSignatures:
    """Hashes of signatures that were made or found good here, the last so many; used from any thread.

    A receipt's two signatures are checked as they come, and again as it is kept, published and republished.
    """

    def __init__(self) -> None:
        self._hashes: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def __contains__(self, signed: bytes) -> bool:
        return signed in self._hashes

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._hashes.clear()

    def add(self, signed: bytes) -> None:
        """Remember one more, instead of the oldest."""
        with self._lock:
            self._hashes[signed] = None
            if len(self._hashes) > _REMEMBERED_SIGNATURES:
                del self._hashes[next(iter(self._hashes))]


_known = _KnownSignatures()


def forget_signatures() -> None:
    """Check every signature anew from now on, as a process does that has just begun: for measurements."""
    _known.clear()


def _hash_signed(peer_id: bytes, signature: bytes, message: bytes) -> bytes:
    return hashlib.sha256(b"".join((peer_id, signature, message))).digest()  # The first two have one length.


def verify(peer_id: bytes, domain_type: int, body: bytes, signature: bytes) -> bool:
    """Say whether the owner of the 38-byte ``peer_id`` signed ``body`` as ``domain_type``; junk is just not signed."""
    if len(peer_id) != PEER_ID_BYTES or not peer_id.startswith(_PEER_ID_PREFIX) or len(signature) != 64:
        return False
    message = signed_bytes(domain_type, body)
    signed = _hash_signed(peer_id, signature, message)
    if signed in _known:
        return True
    try:
        _public_key(peer_id).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    _known.add(signed)
    return True


class Identity:
    """One Ed25519 key, kept in a file or, when ``path`` is None, only in memory."""

    def __init__(self, key: Ed25519PrivateKey, path: Path | None) -> None:
        self._key = key
        self._public = key.public_key().public_bytes_raw()
        self.path = path
        self.peer_id_bytes = _PEER_ID_PREFIX + self._public
        self.peer_id = peer_id_to_str(self.peer_id_bytes)

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Load the key from ``path``, or make one and write it there with mode 0600.

        The file appears whole or not at all, also on a full disk. When two processes create it at once, one wins
        and both load the winner's.

        Raises:
            IdentityDamaged: The file holds something else.
            IdentityNotWritten: The directory or the file could not be written.
        """
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return cls.load(path)
        fresh = cls(Ed25519PrivateKey.generate(), path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_new()
        except OSError as error:
            raise IdentityNotWritten(_why_not_written(path, error)) from error
        return cls.load(path)

    @classmethod
    def ephemeral(cls) -> Self:
        """Make a key that lives as long as this object: for clients, which earn nothing under their id."""
        return cls(Ed25519PrivateKey.generate(), None)

    @classmethod
    def from_seed(cls, seed: bytes, path: Path | None = None) -> Self:
        """Make the identity of a secret seed of 32 bytes; nothing is written.

        Raises:
            ValueError: The seed has another length.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(seed), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load the key from ``path``.

        Raises:
            FileNotFoundError: There is no such file.
            NotADirectoryError: Nor can there be one.
            IdentityDamaged: The file holds something else.
        """
        mend = "restore it from a backup, or move it away to get a new identity"
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            raise IdentityDamaged(f"identity {path} cannot be read ({error.strerror}): {mend}") from error
        seed = data[len(_KEY_FILE_PREFIX) : -32]
        if len(data) != len(_KEY_FILE_PREFIX) + 64 or not data.startswith(_KEY_FILE_PREFIX):
            raise IdentityDamaged(f"identity {path} holds no Ed25519 key: {mend}")
        identity = cls(Ed25519PrivateKey.from_private_bytes(seed), path)
        if identity._file_bytes() != data:
            raise IdentityDamaged(f"identity {path} holds a public key that is not its secret key's: {mend}")
        return identity

    def _file_bytes(self) -> bytes:
        return _KEY_FILE_PREFIX + self._key.private_bytes_raw() + self._public

    def seed(self) -> bytes:
        """Give the secret itself, 32 bytes: for an encrypted copy, and for nothing else."""
        return self._key.private_bytes_raw()

    def write_new(self) -> None:
        """Write to a sibling, force it to disk, then link it into place unless a file is already there."""
        if self.path is None:
            return
        with self._draft(self.path) as draft, contextlib.suppress(FileExistsError):
            os.link(draft, self.path)

    def write_over(self, kept: Path) -> None:
        """Take the place of the file that stands at our path, which stays as ``kept``; one of them is always whole.

        Raises:
            FileExistsError: Something stands at ``kept``; nothing has changed.
            IdentityNotWritten: The directory could not be written.
        """
        assert self.path is not None
        try:
            with self._draft(self.path) as draft:
                os.link(self.path, kept)
                draft.replace(self.path)
        except FileExistsError:
            raise
        except OSError as error:
            raise IdentityNotWritten(_why_not_written(self.path, error)) from error

    @contextlib.contextmanager
    def _draft(self, path: Path) -> Iterator[Path]:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(self._file_bytes())
                file.flush()
                os.fsync(file.fileno())
            yield draft
        finally:
            draft.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def sign(self, domain_type: int, body: bytes) -> bytes:
        """Sign ``body`` as ``domain_type``; 64 bytes."""
        message = signed_bytes(domain_type, body)
        signature = self._key.sign(message)
        _known.add(_hash_signed(self.peer_id_bytes, signature, message))
        return signature

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the identity for one running node; the lock goes with the process, however it ends.

        Raises:
            IdentityInUse: Another swarm, of this process or another, runs with the file.
        """
        if self.path is None:
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise IdentityInUse(
                    f"another node runs with the identity {self.path}: stop it, or give this one its own identity"
                ) from None
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def key_file(self) -> Iterator[Path]:
        """Give the path of a file that p2pd can load; of an ephemeral identity it exists only inside the context."""
        if self.path is not None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="efedllm-key-") as directory:
            held = type(self)(self._key, Path(directory) / "identity")
            try:
                held.write_new()
            except OSError as error:
                raise IdentityNotWritten(_why_not_written(Path(directory), error)) from error
            yield Path(directory) / "identity"


def _why_not_written(path: Path, error: OSError) -> str:
    mend = {
        errno.ENOSPC: "free some space on that disk",
        errno.EDQUOT: "free some of your disk quota",
        errno.EACCES: "make its directory writable or choose another",
        errno.EPERM: "make its directory writable or choose another",
        errno.EROFS: "choose a directory on a writable disk",
    }.get(error.errno or 0, "choose another directory")
    return f"identity {path} cannot be written ({error.strerror}): {mend}"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
