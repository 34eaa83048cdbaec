"""SHA-256 digests of local files, computed once and remembered while a file stays the same.

A file counts as the same while its path, size, modification time in nanoseconds and inode are. Knows nothing of models.
Hashing takes a second per gigabyte or so: run it in ``asyncio.to_thread``, never in the event loop.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_CHUNK_BYTES = 4 * 1024 * 1024


class DigestCache:
    """Digests of files, kept in one JSON file; with no file, they are computed each time.

    Several processes may share the file: it is replaced atomically, and an entry lost to a race costs a second hashing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def digest(self, file: Path, on_bytes: Callable[[int], None] | None = None) -> bytes:
        """Return the SHA-256 (32 bytes) of ``file``, from memory when the file has not changed.

        Args:
            file: The file to hash; symbolic links are followed.
            on_bytes: Called with the number of bytes hashed since the last call; not called when remembered.
        """
        file = file.resolve()
        state = _state(file)
        known = self._load().get(str(file))
        if known is not None and known[:-1] == state:
            return bytes.fromhex(known[-1])
        digest = hash_file(file, on_bytes)
        if _state(file) == state:  # a file that changed under the hashing is not remembered
            self._remember(str(file), [*state, digest.hex()])
        return digest

    def _load(self) -> dict[str, list[str]]:
        if self._path is None:
            return {}
        try:
            content = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}  # a damaged cache is only a slow cache
        if not isinstance(content, dict):
            return {}
        return {key: value for key, value in content.items() if _is_entry(value)}

    def _remember(self, key: str, entry: list[str]) -> None:
        if self._path is None:
            return
        content = {**self._load(), key: entry}
        with contextlib.suppress(OSError):  # so is one that cannot be written, on a full disk for example
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._path, json.dumps(content, indent=0, sort_keys=True))


def hash_file(file: Path, on_bytes: Callable[[int], None] | None = None) -> bytes:
    """Return the SHA-256 (32 bytes) of a file, reading it once."""
    whole = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            whole.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return whole.digest()


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _state(file: Path) -> list[str]:
    status = file.stat()
    return [str(status.st_size), str(status.st_mtime_ns), str(status.st_ino)]


def _is_entry(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(part, str) for part in value)
        and len(value[3]) == 64
        and all(digit in "0123456789abcdef" for digit in value[3])
    )
