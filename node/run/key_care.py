"""Say how well a node's key is kept: where it stands, who can read it, whether a backup was exported.

It reads the key and what stands beside it, and writes nothing. Runs in a command, on its main thread.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from dht.errors import IdentityDamaged, IdentityNotWritten
from dht.identity import Identity
from node.config import CLIENT_IDENTITY, IDENTITY
from node.run.identity import EXPORTED, Safety, safety_of

_MAX_MARKER_CHARS = 128


@dataclass(frozen=True, slots=True)
class KeyCare:
    """What can be said of a key."""

    path: Path
    peer_id: str | None = None  # None: there is no key, or it cannot be read
    mode: int | None = None  # permission bits; None: there is no file
    safety: Safety | None = None  # None: there is no file
    exported: str | None = None  # date of the last backup of this very key; None: there was none
    trouble: str = ""  # why the key cannot be read
    is_of_client: bool = False  # it is that of clients

    @property
    def is_safe(self) -> bool:
        """Whether nothing is left to do."""
        has_backup = self.exported is not None or self.is_of_client
        return self.peer_id is not None and self.is_private and has_backup

    @property
    def is_private(self) -> bool:
        """Whether nobody but its owner can read or replace the file."""
        return self.safety is not None and self.safety.is_safe


def look_at_key(home: Path) -> KeyCare:
    """Look at the key of a node's directory: its server's, or that of its clients where there never was a server."""
    return look_at_keys(home)[0]


def look_at_keys(home: Path) -> tuple[KeyCare, ...]:
    """Look at the keys of a node's directory: its server's and that of its clients, those that there are.

    Where there is none, what is said is that there is no server's.
    """
    if not (home / CLIENT_IDENTITY).exists():
        return (_look(home, IDENTITY),)
    clients = _look(home, CLIENT_IDENTITY)
    return (_look(home, IDENTITY), clients) if (home / IDENTITY).exists() else (clients,)


def _look(home: Path, name: str) -> KeyCare:
    path, is_of_client = home / name, name == CLIENT_IDENTITY
    try:
        file = path.stat()
        safety = safety_of(file, path.parent.stat(), os.getuid())
    except (FileNotFoundError, NotADirectoryError):
        return KeyCare(path, is_of_client=is_of_client)
    except OSError as error:
        return KeyCare(path, trouble=f"{path} cannot be read ({error.strerror})", is_of_client=is_of_client)
    care = KeyCare(path, mode=stat.S_IMODE(file.st_mode), safety=safety, is_of_client=is_of_client)
    try:
        peer_id = Identity.load(path).peer_id
    except (IdentityDamaged, IdentityNotWritten) as error:
        return replace(care, trouble=str(error))
    except OSError as error:
        return replace(care, trouble=f"{path} cannot be read ({error.strerror})")
    return replace(care, peer_id=peer_id, exported=None if is_of_client else _exported(home / EXPORTED, peer_id))


def _exported(path: Path, peer_id: str) -> str | None:
    """Read when a backup of this key was made; the marker may be of a key that stood here before."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_MARKER_CHARS)
    except (OSError, UnicodeDecodeError):
        return None
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d) (\w+)\n?", text, re.ASCII)
    return match[1] if match is not None and match[2] == peer_id else None


def in_sentences(care: KeyCare) -> list[str]:
    """Answer whether the key is safe, and what to do where it is not."""
    whose = "Your clients' key" if care.is_of_client else "Your key"
    if care.trouble:
        return [f"{whose} cannot be used: {care.trouble}."]
    if care.peer_id is None or care.safety is None:
        return [f"You have no key yet ({care.path}); `efedllm identity show` makes one."]
    sentences = [f"{whose} is {'safe' if care.is_safe else 'NOT safe'}. It is in {care.path}; you are {care.peer_id}."]
    if advice := care.safety.advice(care.path):
        sentences.append(advice)
    if care.is_of_client:
        sentences.append("It needs no backup: without it servers take you for a newcomer, and nothing else is lost.")
    elif care.exported is None:
        sentences.append(
            "It has no backup: with this disk all that you have earned is lost. "
            "Make one: `efedllm identity export FILE`."
        )
    else:
        sentences.append(f"A backup was exported on {care.exported}.")
    return sentences
