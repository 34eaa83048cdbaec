"""A model's checkpoint: its config, its identity, and the tensors of any span of its blocks.

Reads safetensors only, and of them only what was asked for: a server of four blocks touches the files, and downloads
the shards, in which those blocks lie. Does not know how a model is built from the tensors (``node.model.span`` does),
nor any model family by name. Hashing, downloading and loading take seconds: call them in ``asyncio.to_thread``.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from node.errors import BadBlocks, DamagedCheckpoint, ModelNotFound, UnsupportedFamily
from node.model.agreement import ExpectedTensors, check_completeness, check_shapes, expect_tensors
from node.model.block_names import BlockNames, find_block_names
from node.model.digests import DigestCache
from node.model.hub_files import HubAccess, open_repository
from node.model.local_files import LocalFiles
from node.model.manifest import manifest, short_name
from node.model.model_files import (
    COMPANION_FILES,
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHT_FILE,
    ModelFiles,
    Progress,
)
from node.model.tensor_header import TensorPlace, read_header, read_tensor

EMBEDDED = "embedded"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


class Checkpoint:
    """One model's files, opened by ``Checkpoint.open``; the weights stay where they are until they are asked for."""

    def __init__(self, files: ModelFiles, *, progress: Progress | None = None, layers: str | None = None) -> None:
        self._files = files
        self._progress = progress
        self._layers = layers
        self._headers: dict[str, dict[str, TensorPlace]] = {}
        self._config_path = files.paths([CONFIG_FILE], None)[0]
        self._config_json = _read_json_object(self._config_path)
        self.config = _read_config(self._config_path, files.name)  # transformers' config of the whole model

    @classmethod
    def open(
        cls,
        path_or_hub_id: str,
        *,
        revision: str | None = None,
        cache_dir: Path | None = None,
        token: str | None = None,
        progress: Progress | None = None,
        home: Path | None = None,
        endpoint: str | None = None,
        layers: str | None = None,
    ) -> "Checkpoint":
        """Find a model and read its config; touches no weight.

        Args:
            path_or_hub_id: A directory (which always wins), the word ``embedded`` for the model shipped with this
                package, or a hub id such as ``org/name``.
            revision: Branch, tag or commit on the hub (None: its main branch).
            cache_dir: Where the hub's files are kept (None: the usual cache of huggingface_hub).
            token: Token for the hub (None: the one that huggingface_hub has stored).
            progress: Called with what is going on in words, bytes done and bytes in all, from the thread that works.
            home: Directory where digests of files are remembered (None: not remembered).
            endpoint: Address of the hub (None: huggingface_hub's, which reads HF_ENDPOINT).
            layers: Path of the layer list in the built model, such as ``model.layers``, where the caller knows it.

        Raises:
            ModelNotFound: Nothing is there.
            UnavailableError: The hub does not answer, and its cache does not hold the model.
            UnsupportedFamily: transformers does not know the config's family.
            DamagedCheckpoint: The config cannot be read.
        """
        digests = DigestCache(home / "digests.json" if home is not None else None)
        files = _locate(path_or_hub_id, revision, HubAccess(endpoint, token, cache_dir, home), digests)
        return cls(files, progress=progress, layers=layers)

    @property
    def name(self) -> str:
        """Name of the model, for people: peers go by ``manifest32``."""
        return self._files.name

    @property
    def is_local(self) -> bool:
        """Whether the weights, as far as there are any, lie in a directory of this machine."""
        return isinstance(self._files, LocalFiles)

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks that the config asks for."""
        return int(self.config.get_text_config().num_hidden_layers)

    @cached_property
    def manifest32(self) -> bytes:
        """Identity of the model, 32 bytes: equal for equal content, in a directory and on a hub (``manifest.py``).

        The first use hashes local files (one to two seconds per gigabyte); of a hub only metadata is read.
        """
        return manifest(self._config_json, (self._files.digest(file, self._progress) for file in self._weight_files))

    @property
    def short_name(self) -> str:
        """The model's name and the first 8 digits of its manifest: ``name@first8hex``."""
        return short_name(self.name, self.manifest32)

    @property
    def tokenizer_dir(self) -> Path:
        """Directory with config, tokenizer and generation config, for transformers' ``AutoTokenizer``."""
        present = [file for file in COMPANION_FILES if self._files.has(file)]
        self._files.paths(present, None)
        return self._config_path.parent

    @cached_property
    def block_names(self) -> BlockNames:
        """How this checkpoint names the tensors of its blocks.

        Raises:
            ConfigMismatch: The weights hold more or fewer blocks than the config asks for.
        """
        num_extra = getattr(self.config.get_text_config(), "num_nextn_predict_layers", None) or 0
        return find_block_names(self._file_of, self.num_blocks, num_extra_blocks=num_extra, layers=self._layers)

    def tensor_names(self) -> list[str]:
        """Return the names of all tensors, as the checkpoint has them; reads the index, or else one header."""
        return sorted(self._file_of)

    def tensor_bytes(self, dtype: torch.dtype | None = None) -> dict[str, int]:
        """Return the size of every tensor, when loaded with ``dtype`` (None: as stored); reads all headers."""
        return {name: place.size_bytes_as(dtype) for name, place in self._places(self._file_of)}

    def span_bytes(self, start: int, end: int, dtype: torch.dtype | None = None) -> int:
        """Return the bytes that the weights of blocks ``[start, end)`` take in memory; reads headers only."""
        return sum(place.size_bytes_as(dtype) for _, place in self._places(self._span_names(start, end)))

    def client_bytes(self, dtype: torch.dtype | None = None, *, parameters: Collection[str] | None = None) -> int:
        """Return the bytes that what ``load_client`` gives takes in memory; reads headers only."""
        return sum(place.size_bytes_as(dtype) for _, place in self._places(self._client_names(parameters)))

    def load_span(
        self, start: int, end: int, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, torch.Tensor]:
        """Load the tensors of blocks ``[start, end)``, renumbered so that block ``start`` is layer 0.

        Names are otherwise the checkpoint's own: transformers' loader applies its conversions to them afterwards.

        Args:
            start: First block.
            end: The block after the last one.
            dtype: Wanted dtype of 16, 32 and 64 bit floats (None: as stored); other tensors keep theirs.
            device: Where the tensors shall live.

        Raises:
            BadBlocks: The span is empty or reaches outside the model.
            DamagedCheckpoint: A file is missing or damaged; ``ConfigMismatch``: it disagrees with the config.
        """
        names = self._span_names(start, end)
        self._check_agreement(names, range(start, end))
        loaded = self._load(names, dtype, device)
        return {self.block_names.renumber(name, start): tensor for name, tensor in loaded.items()}

    def load_client(
        self,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        parameters: Collection[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Load everything that is not in a block: embeddings, final norm, head; arguments as in ``load_span``.

        Args:
            dtype: As in ``load_span``.
            device: As in ``load_span``.
            parameters: Names, in the built model, of the parameters that are wanted (None: all). A tensor whose name
                there cannot be told from the checkpoint's is loaded as well.

        Raises:
            DamagedCheckpoint: As in ``load_span``.
        """
        self._check_agreement(self._client_names(), None)
        return self._load(self._client_names(parameters), dtype, device)

    def _check_span(self, start: int, end: int) -> None:
        if not 0 <= start < end <= self.num_blocks:
            raise BadBlocks(
                f"blocks {start}:{end} are not in {self.name}, which has {self.num_blocks}: "
                f"name a range START:END within 0:{self.num_blocks} that is not empty"
            )

    def _span_names(self, start: int, end: int) -> list[str]:
        self._check_span(start, end)
        wanted = range(start, end)
        return [name for name in self._file_of if self.block_names.block_of(name) in wanted]

    def _client_names(self, parameters: Collection[str] | None = None) -> list[str]:
        names = [name for name in self._file_of if self.block_names.block_of(name) is None]
        expected = self._expected
        if parameters is None or expected is None:
            return names
        unwanted = expected.parameters.difference(parameters)
        return [name for name in names if expected.name_of(name) not in unwanted]

    def _check_agreement(self, names: Iterable[str], blocks: range | None) -> None:
        """Refuse weights that the config does not ask for; ``blocks`` None: everything outside the blocks."""
        if self._expected is None:
            return
        check_shapes(self._expected, {name: place.shape for name, place in self._places(names)})
        in_model = find_block_names(self._expected.shapes, self.num_blocks, layers=self._layers)
        part = range(-1, 0) if blocks is None else blocks
        wanted = [
            name
            for name in self._expected.shapes
            if (-1 if (block := in_model.block_of(name)) is None else block) in part
        ]
        check_completeness(self._expected, names, wanted)

    @cached_property
    def _expected(self) -> ExpectedTensors | None:
        return expect_tensors(self.config)

    @cached_property
    def _file_of(self) -> dict[str, str]:
        """The weight file of every tensor name."""
        if self._files.has(WEIGHT_FILE):
            return dict.fromkeys(self._header(WEIGHT_FILE), WEIGHT_FILE)
        if not self._files.has(INDEX_FILE):
            raise ModelNotFound(
                f"{self.name} has no {WEIGHT_FILE} and no {INDEX_FILE}: only safetensors are read, "
                "so convert the model with transformers' save_pretrained first"
            )
        index = _read_json_object(self._files.paths([INDEX_FILE], None)[0])
        return _check_weight_map(index.get("weight_map"))

    @property
    def _weight_files(self) -> list[str]:
        if self._files.has(WEIGHT_FILE):
            return [WEIGHT_FILE]
        return sorted(set(self._file_of.values()))

    def _header(self, file: str) -> dict[str, TensorPlace]:
        if file not in self._headers:
            self._headers[file] = read_header(
                file, self._files.size_bytes(file), lambda begin, size_bytes: self._files.read(file, begin, size_bytes)
            )
        return self._headers[file]

    def _places(self, names: Iterable[str]) -> Iterator[tuple[str, TensorPlace]]:
        for name in names:
            file = self._file_of[name]
            place = self._header(file).get(name)
            if place is None:
                raise DamagedCheckpoint(
                    f"{INDEX_FILE} says that {name!r} is in {file}, which does not hold it: fetch the whole model again"
                )
            yield name, place

    def _load(
        self, names: Iterable[str], dtype: torch.dtype | None, device: torch.device | str
    ) -> dict[str, torch.Tensor]:
        wanted: dict[str, list[tuple[str, TensorPlace]]] = {}
        for name, place in self._places(names):
            wanted.setdefault(self._file_of[name], []).append((name, place))
        files = sorted(wanted)
        advance = self._reading(sum(place.size_bytes for places in wanted.values() for _, place in places))
        loaded: dict[str, torch.Tensor] = {}
        for file, path in zip(files, self._files.paths(files, self._progress), strict=True):
            with path.open("rb", buffering=0) as stream:
                for name, place in sorted(wanted[file], key=lambda item: item[1].begin):
                    loaded[name] = read_tensor(stream, place, dtype=dtype, device=device)
                    advance(place.size_bytes)
        return loaded

    def _reading(self, total_bytes: int) -> Callable[[int], None]:
        done_bytes = 0

        def advance(count: int) -> None:
            nonlocal done_bytes
            done_bytes += count
            if self._progress is not None:
                self._progress(f"reading {self.name}", done_bytes, total_bytes)

        return advance


def _locate(path_or_hub_id: str, revision: str | None, access: HubAccess, digests: DigestCache) -> ModelFiles:
    path = Path(path_or_hub_id)
    if path_or_hub_id and path.is_dir():
        return _open_directory(path, path.resolve().name, digests)
    if path.is_file():
        raise ModelNotFound(f"{path} is a file: give the directory that holds it and {CONFIG_FILE}")
    if path_or_hub_id == EMBEDDED:
        return _open_directory(Path(str(resources.files("node") / EMBEDDED)), EMBEDDED, digests)
    if _HUB_ID.fullmatch(path_or_hub_id):
        return open_repository(path_or_hub_id, revision, access, digests)
    raise ModelNotFound(
        f"there is no model {path_or_hub_id!r}: give a directory that holds {CONFIG_FILE}, a hub id such as org/name, "
        f"or the word {EMBEDDED}"
    )


def _open_directory(directory: Path, name: str, digests: DigestCache) -> LocalFiles:
    files = LocalFiles(directory, name, digests)
    if not files.has(CONFIG_FILE):
        raise ModelNotFound(
            f"{directory} holds no {CONFIG_FILE}: give the directory of a model in transformers' layout"
        )
    return files


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path} is not JSON: fetch or copy the file again") from error
    if not isinstance(content, dict):
        raise DamagedCheckpoint(f"{path} is not a JSON object: fetch or copy the file again")
    return content


def _read_config(path: Path, name: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedFamily(
            f"transformers cannot build {name} from its {CONFIG_FILE} without code of the model's own, which is never "
            f"run: choose a model of a family that transformers holds ({error})"
        ) from error
    except StrictDataclassError as error:
        reason = str(error).strip().rpartition("\n")[2].strip()
        raise DamagedCheckpoint(
            f"{CONFIG_FILE} of {name} contradicts itself or transformers ({reason}): fetch or copy the file again"
        ) from error
    if not isinstance(getattr(config.get_text_config(), "num_hidden_layers", None), int):
        raise UnsupportedFamily(
            f"the family {config.model_type!r} of {name} does not say how many blocks it has: "
            "choose a decoder-only model"
        )
    return config


def _check_weight_map(weight_map: Any) -> dict[str, str]:
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise DamagedCheckpoint(f"{INDEX_FILE} has no weight_map: fetch or copy the file again")
    for file in weight_map.values():
        # A name of a file beside the index, and nothing that leads elsewhere.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise DamagedCheckpoint(
                f"{INDEX_FILE} names the weight file {file!r}, which is no safetensors file beside it"
            )
    return dict(weight_map)
