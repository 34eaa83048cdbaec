"""Say how well a node's key is kept: where it stands, who can read it, whether a backup was exported.

It reads the key and what stands beside it, and writes nothing. Runs in a command, on its main thread.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from dht.errors import IdentityDamaged, IdentityNotWritten
from dht.identity import Identity

CLIENT_IDENTITY = "client-identity"
"""Key of the clients of this directory, beside that of its server."""
EXPORTED = "identity.exported"
"""Beside the key: when `efedllm identity export` made a backup last, a date."""

_MAX_DATE_CHARS = 64


@dataclass(frozen=True, slots=True)
class KeyCare:
    """What can be said of a key."""

    path: Path
    peer_id: str | None = None  # None: there is no key, or it cannot be read
    mode: int | None = None  # permission bits; None: there is no file
    exported: str | None = (
        None  # date of the last backup; empty: there was one, nobody knows when; None: there was none
    )
    trouble: str = ""  # why the key cannot be read
    is_of_client: bool = False  # it is that of clients: there is no server's

    @property
    def is_safe(self) -> bool:
        """Whether nothing is left to do."""
        has_backup = self.exported is not None or self.is_of_client
        return self.peer_id is not None and self.is_private and has_backup

    @property
    def is_private(self) -> bool:
        """Whether nobody but its owner can read the file."""
        return self.mode is not None and not self.mode & 0o077


def look_at_key(home: Path) -> KeyCare:
    """Look at the key of a node's directory: its server's, or that of its clients where there never was a server."""
    path, is_of_client = home / "identity", False
    if not path.exists() and (home / CLIENT_IDENTITY).exists():
        path, is_of_client = home / CLIENT_IDENTITY, True
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return KeyCare(path)
    except OSError as error:
        return KeyCare(path, trouble=f"identity {path} cannot be read ({error.strerror})")
    exported = _exported(home / EXPORTED)
    try:
        return KeyCare(path, Identity.load_or_create(path).peer_id, mode, exported, is_of_client=is_of_client)
    except (IdentityDamaged, IdentityNotWritten) as error:
        return KeyCare(path, None, mode, exported, str(error))


def _exported(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_DATE_CHARS).strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return ""
    return text if re.match(r"\d{4}-\d\d-\d\d", text) and text.isprintable() else ""


def in_sentences(care: KeyCare) -> list[str]:
    """Answer whether the key is safe, and what to do where it is not."""
    if care.trouble:
        return [f"Your key cannot be used: {care.trouble}."]
    if care.peer_id is None or care.mode is None:
        return [f"You have no key yet ({care.path}); `efedllm identity show` makes one."]
    sentences = [f"Your key is in {care.path} (mode {care.mode:04o}); you are {care.peer_id}."]
    if not care.is_private:
        sentences.append(f"Others on this machine can read it: `chmod 600 {care.path}`.")
    if care.is_of_client:
        sentences.append(
            "It is your clients' key; without it servers take you for a newcomer, and nothing else is lost."
        )
    elif care.exported is None:
        sentences.append(
            "It has no backup: with this disk all that you have earned is lost. `efedllm identity export`."
        )
    else:
        sentences.append(f"A backup was exported{f' on {care.exported}' if care.exported else ''}.")
    return sentences
