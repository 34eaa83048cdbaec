"""``efedllm identity``: show this node's identity and say whether its key is safe; export and import it.

What an exported identity looks like is decided in ``dht.identity_export``. Runs in the main thread; no network.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import getpass
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dht.beginnings import BEGINNINGS_FILE, read_beginnings
from dht.errors import IdentityDamaged, IdentityNotWritten
from dht.identity import Identity
from dht.identity_export import (
    MAX_TEXT_CHARS,
    MIN_PASSPHRASE_CHARS,
    NONCE_BYTES,
    SALT_BYTES,
    exported_peer_id,
    open_identity,
    seal_identity,
)
from node.config import CLIENT_IDENTITY, IDENTITY, LEDGER
from node.errors import UserError
from node.run.interrupts import raise_on_interrupt
from node.run.new_file import write_new

EXPORTED = "identity.exported"
"""Beside the key: when `efedllm identity export` made a backup last, and whose; a date and a peer id."""

_MAX_PASSPHRASE_BYTES = 1024

_THERE = "{} is there already; name a file that is not."


@dataclass(frozen=True)
class Safety:
    """Who beside its owner may get at a key file."""

    readable_by_others: bool
    """Other users of this machine can read the key."""
    replaceable_by_others: bool
    """Other users of this machine can change the file, or put another in its place."""
    is_ours: bool
    """The file belongs to the user that asks."""

    @property
    def is_safe(self) -> bool:
        """Return whether only its owner can read or replace the key."""
        return self.is_ours and not self.readable_by_others and not self.replaceable_by_others

    def advice(self, path: Path) -> str:
        """Return what is wrong first of all, and the mend; empty: nothing."""
        if not self.is_ours:
            return f"Another user owns {path} and can read your key: make a new identity in a directory of your own."
        if self.readable_by_others:
            return (
                f"Other users of this machine can read your key: run `chmod 600 {path}`, and make a new identity if "
                "one of them may have done so already."
            )
        if self.replaceable_by_others:
            return f"Other users of this machine can replace your key: run `chmod go-w {path} {path.parent}`."
        return ""


def safety_of(file: os.stat_result, directory: os.stat_result, user: int) -> Safety:
    """Judge a key file by its permissions and its directory's.

    Args:
        file: Of the key file.
        directory: Of the directory that it stands in.
        user: Number of the user that asks.
    """
    others_write = stat.S_IWGRP | stat.S_IWOTH
    open_directory = bool(directory.st_mode & others_write) and not directory.st_mode & stat.S_ISVTX
    return Safety(
        readable_by_others=bool(file.st_mode & (stat.S_IRGRP | stat.S_IROTH)),
        replaceable_by_others=bool(file.st_mode & others_write) or open_directory,
        is_ours=file.st_uid == user,
    )


def show(home: Path, *, as_json: bool) -> None:
    """Print the peer id, and on stderr where and how safely its key is kept; make an identity if there is none."""
    path = home / IDENTITY
    identity = Identity.load_or_create(path)
    file = path.stat()
    safety = safety_of(file, path.parent.stat(), os.getuid())
    written = datetime.datetime.fromtimestamp(int(file.st_mtime), datetime.UTC)
    advice = safety.advice(path)
    enrolled = read_beginnings(home / BEGINNINGS_FILE, identity.peer_id)
    client_peer_id = _standing(home / CLIENT_IDENTITY)
    if as_json:
        fields = {
            "peer_id": identity.peer_id,
            "client_peer_id": client_peer_id or None,
            "path": str(path),
            "created": written.isoformat(),
            "enrolled": {swarm: asdict(each) for swarm, each in enrolled.items()},
            "safe": safety.is_safe,
            "readable_by_others": safety.readable_by_others,
            "advice": advice,
        }
        sys.stdout.write(json.dumps(fields) + "\n")
        return
    sys.stdout.write(f"{identity.peer_id}\n")
    sys.stderr.write(f"kept in {path} since {written:%Y-%m-%d %H:%M} UTC\n")
    for swarm, beginning in enrolled.items():
        since = datetime.datetime.fromtimestamp(beginning.since_s, datetime.UTC)
        sys.stderr.write(f"enrolled in swarm {swarm[:8] or '(without rules)'} since {since:%Y-%m-%d %H:%M} UTC\n")
    if client_peer_id:
        sys.stderr.write(f"Clients of this directory are {client_peer_id}, by a key of their own.\n")
    sys.stderr.write(f"{advice or 'Of the users of this machine only you and its administrator can read your key.'}\n")


def export(home: Path, target: Path, passphrase_file: Path | None) -> None:
    """Write the identity, sealed with a passphrase, to a new file.

    Raises:
        UserError: There is no identity, the passphrase is too short, or the file cannot be written.
    """
    path = home / IDENTITY
    try:
        identity = Identity.load(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no identity in {home}; `efedllm identity show` makes one.") from None
    if os.path.lexists(target):
        raise UserError(_THERE.format(target))
    passphrase = _passphrase(passphrase_file, twice=True)
    if len(passphrase) < MIN_PASSPHRASE_CHARS:
        raise UserError(f"The passphrase is too short; take at least {MIN_PASSPHRASE_CHARS} characters.")
    salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
    with _in_memory():
        sealed = seal_identity(identity, passphrase, salt=salt, nonce=nonce)
    _write(target, sealed)
    _note_backup(home, identity.peer_id)
    sys.stderr.write(f"{identity.peer_id} is in {target}; whoever has the file and the passphrase is this node.\n")


def import_(home: Path, source: Path, passphrase_file: Path | None, *, replace: bool) -> None:
    """Make the identity in a sealed file this node's own.

    Args:
        home: The node's state directory.
        source: What ``export`` wrote.
        passphrase_file: Holds the passphrase; None: it is asked for.
        replace: True: take the place of another identity, which is kept beside it.

    Raises:
        UserError: The file cannot be read, or another identity stands here and ``replace`` is False.
        IdentityDamaged: The file holds no exported identity.
        IdentityInUse: A node runs with the identity that would be replaced.
        WrongPassphrase: The passphrase is another.
    """
    path = home / IDENTITY
    text = _text_of(_bytes_in(source, MAX_TEXT_CHARS + 1), source)
    standing = _standing(path)
    if standing not in (None, exported_peer_id(text)) and not replace:
        what = standing or "A damaged identity"
        raise UserError(f"{what} stands in {path}; pass --replace to put it aside and use the imported one.")
    passphrase = _passphrase(passphrase_file, twice=False)
    with _in_memory():
        imported = Identity.from_seed(open_identity(text, passphrase).seed(), path)
    if standing == imported.peer_id:
        sys.stderr.write(f"{imported.peer_id} is this node's identity already.\n")
        return
    if standing is None:
        _write_first(imported, path)
    else:
        replace_identity(imported, path, standing)
    _note_backup(home, imported.peer_id)
    sys.stdout.write(f"{imported.peer_id}\n")
    sys.stderr.write(
        f"kept in {path}. Run it on one machine only: stop the node that it comes from before you serve here. Bring "
        f"{LEDGER} along if you want to see here what it has earned before.\n"
    )


def _note_backup(home: Path, peer_id: str) -> None:
    """Remember that there is a file from which this key can be had again."""
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    with contextlib.suppress(OSError):  # The copy is made; only `statement` will not know of it.
        (home / EXPORTED).write_text(f"{today} {peer_id}\n", encoding="utf-8")


def _standing(path: Path) -> str | None:
    """Return whose identity stands at ``path``: empty when it cannot be read, None when there is none."""
    try:
        return Identity.load(path).peer_id
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IdentityDamaged:
        return ""


def _write_first(imported: Identity, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        imported.write_new()
    except OSError as error:
        why = f"identity {path} cannot be written ({error.strerror}): mend that, or use another EFEDLLM_HOME"
        raise IdentityNotWritten(why) from error
    if (standing := _standing(path)) != imported.peer_id:
        raise UserError(f"{standing} has been made in {path} meanwhile; stop what runs there, and pass --replace.")


def replace_identity(imported: Identity, path: Path, standing: str) -> None:
    """Put an identity in the place of the one that stands at ``path``, which is kept beside it; say so.

    Args:
        imported: Of that path.
        path: Of the key file.
        standing: Peer id of the one that stands there; empty: it cannot be read.

    Raises:
        IdentityInUse: A node runs with that one.
        IdentityNotWritten: The directory could not be written.
    """
    kept = path.with_name(f"{path.name}.{standing[-8:] or 'damaged'}.{secrets.token_hex(2)}")
    with imported.lock():  # of the file that stands there
        imported.write_over(kept)
    sys.stderr.write(f"The identity that stood here is kept in {kept}.\n")


def _passphrase(file: Path | None, *, twice: bool) -> str:
    raise_on_interrupt()  # A terminal that shows nothing, and files that are begun, must be put right first.
    if file is not None:
        return _passphrase_in(file)
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError("There is no terminal to ask for the passphrase; pass --passphrase-file FILE.")
    passphrase = _asked("Passphrase: ")
    if twice and _asked("The same again: ") != passphrase:
        raise UserError("The two passphrases differ; start again.")
    return passphrase


def _passphrase_in(file: Path) -> str:
    # One that was cut, or of which a part cannot be typed, would open nothing where it is asked for.
    line = _bytes_in(file, _MAX_PASSPHRASE_BYTES + 3).removesuffix(b"\n").removesuffix(b"\r")
    if len(line) > _MAX_PASSPHRASE_BYTES:
        raise UserError(f"{file} holds more than {_MAX_PASSPHRASE_BYTES} bytes; a passphrase is one short line.")
    passphrase = _text_of(line, file)
    if "\n" in passphrase or "\r" in passphrase:
        raise UserError(f"{file} holds more than one line; write the passphrase alone.")
    return passphrase


@contextlib.contextmanager
def _in_memory() -> Iterator[None]:
    """Say in a sentence that a trial of a passphrase has no room."""
    try:
        yield
    except MemoryError:
        raise UserError("There is too little free memory to make a key of the passphrase; close something.") from None


def _asked(prompt: str) -> str:
    try:
        passphrase = getpass.getpass(prompt)
        passphrase.encode()
    except EOFError:
        raise UserError("No passphrase was given; start again.") from None
    except UnicodeEncodeError:
        raise UserError("The passphrase is not UTF-8 text; take another, or set the terminal to UTF-8.") from None
    return passphrase


def _bytes_in(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name another file.") from None


def _text_of(read: bytes, path: Path) -> str:
    try:
        return read.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; name another file.") from None


def _write(path: Path, text: str) -> None:
    try:
        write_new(path, text)
    except FileExistsError:
        raise UserError(_THERE.format(path)) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file.") from None
