"""A model's files in a local directory.

Knows nothing of what is in them. Hashing reads whole files: call ``digest`` in ``asyncio.to_thread``.
"""

from collections.abc import Sequence
from pathlib import Path

from node.errors import DamagedCheckpoint
from node.model.digests import DigestCache
from node.model.model_files import Progress


class LocalFiles:
    """The files of one model in one directory."""

    def __init__(self, directory: Path, name: str, digests: DigestCache) -> None:
        self.name = name
        self._directory = directory
        self._digests = digests

    def has(self, file: str) -> bool:
        """Say whether the directory holds the file."""
        return (self._directory / file).is_file()

    def size_bytes(self, file: str) -> int:
        """Return the size of the file."""
        return self._existing(file).stat().st_size

    def digest(self, file: str, progress: Progress | None) -> bytes:
        """Return the SHA-256 of the file, from memory when it has not changed since it was last hashed."""
        path = self._existing(file)
        total_bytes = path.stat().st_size
        done_bytes = 0

        def advance(count: int) -> None:
            nonlocal done_bytes
            done_bytes += count
            if progress is not None:
                progress(f"hashing {file}", done_bytes, total_bytes)

        return self._digests.digest(path, advance)

    def read(self, file: str, begin: int, size_bytes: int) -> bytes:
        """Return a part of the file."""
        with self._existing(file).open("rb") as stream:
            stream.seek(begin)
            return stream.read(size_bytes)

    def paths(self, files: Sequence[str], progress: Progress | None) -> list[Path]:
        """Return the paths of the files; ``progress`` is not used, for nothing is downloaded."""
        return [self._existing(file) for file in files]

    def _existing(self, file: str) -> Path:
        path = self._directory / file
        if not path.is_file():
            raise DamagedCheckpoint(f"{file} is missing from {self._directory}: fetch or copy the whole model again")
        return path
