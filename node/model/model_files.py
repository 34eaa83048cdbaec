"""What a checkpoint needs from the place where a model's files lie, and the one progress signature of this package.

A directory (``local_files``) and a hub repository (``hub_files``) are such places. The checkpoint composes with either
and knows neither.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

# progress(what, done_bytes, total_bytes): what is going on in words, and how far it is.
Progress = Callable[[str, int, int], None]

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# What a tokenizer and generation need beside the weights; a model has some of these.
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


class ModelFiles(Protocol):
    """The files of one model, by their names."""

    @property
    def name(self) -> str:
        """Name of the model, for people."""

    def has(self, file: str) -> bool:
        """Say whether the model has the file; downloads nothing."""

    def size_bytes(self, file: str) -> int:
        """Return the size of the file; downloads nothing."""

    def digest(self, file: str, progress: Progress | None) -> bytes:
        """Return the SHA-256 (32 bytes) of the file, downloading it only where no metadata tells."""

    def read(self, file: str, begin: int, size_bytes: int) -> bytes:
        """Return a part of the file, shorter where the file ends; fetches no more than that part."""

    def paths(self, files: Sequence[str], progress: Progress | None) -> list[Path]:
        """Return where the files lie on this machine, downloading those that do not yet."""
