"""Keep evidence on disk, for as long as its claim lives: bounded in number and bytes, what would end first goes first.

    <unix second until which it is kept>-<sha256 in hex>.evidence

Evidence holds what a user has written, so only the owner can read the files. It does not know what is in them.
Waits for the disk: ``asyncio.to_thread``, one call at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from dht.claim import MAX_EVIDENCE_BYTES

MAX_SHELF_BYTES = 2**30
"""Of all evidence together."""
MAX_PIECES = 256

_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})\.evidence")


class _Piece(NamedTuple):
    until_s: int
    name: bytes
    path: Path
    size: int


class Shelf:
    """A folder of evidence.

    Args:
        folder: made where it is missing.
        max_bytes: of all together.
        max_pieces: at once.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_SHELF_BYTES, max_pieces: int = MAX_PIECES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_pieces = max_pieces

    def put(self, blob: bytes, until_s: float) -> bytes:
        """Keep evidence; return its sha256, 32 bytes.

        Args:
            blob: as it is handed out.
            until_s: unix second from which on nobody asks for it.

        Raises:
            ValueError: it is larger than evidence may be, or than the shelf.
            OSError: the disk does not take it.
        """
        if len(blob) > min(self._max_bytes, MAX_EVIDENCE_BYTES):
            raise ValueError(f"{len(blob)} bytes of evidence are more than are kept")
        name = sha256(blob).digest()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._folder / f"{name.hex()}.draft"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        for piece in self._pieces():
            if piece.name == name:
                piece.path.unlink(missing_ok=True)
        draft.replace(self._folder / f"{int(until_s):012d}-{name.hex()}.evidence")
        self._make_room(name)
        return name

    def get(self, name: bytes) -> bytes | None:
        """Return evidence by its sha256; None: it is not here, or the disk has changed it."""
        for piece in self._pieces():
            if piece.name == name:
                blob = piece.path.read_bytes()
                return blob if sha256(blob).digest() == name else None
        return None

    def tidy(self, now_s: float) -> None:
        """Throw away what nobody asks for any more, and what a crash has left half written."""
        for piece in self._pieces():
            if piece.until_s <= now_s:
                piece.path.unlink(missing_ok=True)
        for draft in self._folder.glob("*.draft"):
            draft.unlink(missing_ok=True)

    def _make_room(self, newest: bytes) -> None:
        pieces = sorted(self._pieces())
        number, size = len(pieces), sum(piece.size for piece in pieces)
        for piece in pieces:
            if number <= self._max_pieces and size <= self._max_bytes:
                return
            if piece.name != newest:
                piece.path.unlink(missing_ok=True)
                number, size = number - 1, size - piece.size

    def _pieces(self) -> Iterator[_Piece]:
        for path in list(self._folder.glob("*.evidence")):
            if match := _NAME.fullmatch(path.name):
                yield _Piece(int(match[1]), bytes.fromhex(match[2]), path, path.stat().st_size)
