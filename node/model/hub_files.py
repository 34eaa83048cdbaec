"""A model's files in a repository of a hub, fetched through huggingface_hub's cache only when they are needed.

Sizes and digests come from the hub's metadata and headers from a range request, so that a manifest and the sizes of all
tensors are known before any weight is downloaded. Knows nothing of what is in the files. Blocks on the network: run it
in ``asyncio.to_thread``.
"""

import functools
import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_session, hf_hub_download, hf_hub_url, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status, tqdm

from node.errors import DamagedCheckpoint, DoesNotFit, ModelNotFound, UnavailableError
from node.model.digests import DigestCache
from node.model.local_files import LocalFiles
from node.model.model_files import CONFIG_FILE, ModelFiles, Progress
from node.model.resumable_download import download

_HEAD_BYTES = 128 * 1024  # the first part of a file, fetched at once: it holds most safetensors headers
_NUM_CONNECTIONS = 4
_TIMEOUT_S = 20.0
_MAX_PLAIN_BYTES = 50_000_000_000  # larger files are left to huggingface_hub, as hubs do not serve them over plain HTTP
_NO_BAR = functools.partial(tqdm, disable=True)
_UNREACHABLE = (httpx2.TransportError, OfflineModeIsEnabled)


@dataclass(frozen=True)
class HubAccess:
    """How to reach a hub, and where to keep what comes from it."""

    endpoint: str | None = None  # address of the hub; None: huggingface_hub's, which reads HF_ENDPOINT
    token: str | None = None  # None: the one that huggingface_hub has stored
    cache_dir: Path | None = None  # None: the usual cache of huggingface_hub
    home: Path | None = None  # where listings are remembered, so that a later start needs no hub; None: nowhere


@dataclass(frozen=True)
class HubFile:
    """What the hub says about one file of a repository."""

    size_bytes: int
    sha256: bytes | None  # 32 bytes; None for small files, which a hub keeps in git


def open_repository(repo_id: str, revision: str | None, access: HubAccess, digests: DigestCache) -> ModelFiles:
    """Find a repository on the hub, or in the cache when the hub cannot be reached.

    Downloads ``config.json`` and the list of files.

    Raises:
        ModelNotFound: The hub has no such model, or hides it, or the hub is off and the model not in the cache.
        UnavailableError: The hub does not answer and the model is not in the cache.
    """
    try:
        commit, listing = _fetch_listing(repo_id, revision, access)
    except (*_UNREACHABLE, UnavailableError):
        config = _fetch_config(repo_id, revision, access, from_cache=True)
        recalled = _recall_listing(repo_id, config.parent.name, access)
        if recalled is None:
            return LocalFiles(config.parent, repo_id.rpartition("/")[2], digests)
        return HubFiles(repo_id, config.parent.name, recalled, access, digests)
    # By its revision, so that the cache knows to which commit the name led; then by the commit, if the name moved on.
    if _fetch_config(repo_id, revision, access).parent.name != commit:
        _fetch_config(repo_id, commit, access)
    _remember_listing(repo_id, commit, access, listing)
    return HubFiles(repo_id, commit, listing, access, digests)


class HubFiles:
    """The files of one commit of a repository."""

    def __init__(
        self, repo_id: str, commit: str, listing: Mapping[str, HubFile], access: HubAccess, digests: DigestCache
    ) -> None:
        self.name = repo_id.rpartition("/")[2]
        self._repo_id = repo_id
        self._commit = commit
        self._listing = listing
        self._access = access
        self._digests = digests
        self._heads: dict[str, bytes] = {}
        cache_dir = access.cache_dir if access.cache_dir is not None else Path(constants.HF_HUB_CACHE)
        self._storage = cache_dir / f"models--{repo_id.replace('/', '--')}"

    def has(self, file: str) -> bool:
        """Say whether the repository lists the file."""
        return file in self._listing

    def size_bytes(self, file: str) -> int:
        """Return the size that the hub gives for the file."""
        return self._listed(file).size_bytes

    def digest(self, file: str, progress: Progress | None) -> bytes:
        """Return the file's SHA-256 from the hub's metadata; a file that the hub keeps in git is fetched and hashed."""
        return self._listed(file).sha256 or self._digests.digest(self.paths([file], progress)[0])

    def read(self, file: str, begin: int, size_bytes: int) -> bytes:
        """Return a part of the file: from the cache where it lies there, else over a range request."""
        local = self._local(file)
        if local.is_file():
            with local.open("rb") as stream:
                stream.seek(begin)
                return stream.read(size_bytes)
        if file not in self._heads:
            self._heads[file] = self._read_range(file, 0, min(_HEAD_BYTES, self.size_bytes(file)))
        if begin + size_bytes <= len(self._heads[file]):
            return self._heads[file][begin : begin + size_bytes]
        return self._read_range(file, begin, size_bytes)

    def paths(self, files: Sequence[str], progress: Progress | None) -> list[Path]:
        """Return where the files lie in the cache, downloading those that do not, several at a time.

        ``progress`` is called for all of them together, one call at a time, from the threads that download. An
        exception that it raises ends the downloads; what has come stays, and the next call goes on from there.

        Raises:
            UnavailableError: The hub does not answer, or broke off.
            DoesNotFit: The disk has not the room.
            DamagedCheckpoint: A file in the cache has another size than the hub says.
        """
        missing = [file for file in files if not self._local(file).is_file()]
        if missing:
            self._check_switched_on(missing[0])
            self._fetch(missing, progress)
        for file in files:
            here, there = self._local(file).stat().st_size, self.size_bytes(file)
            if here != there:
                raise DamagedCheckpoint(
                    f"{self._local(file)} has {here} bytes where the hub has {there}: "
                    "delete the file, and it is fetched again"
                )
        return [self._local(file) for file in files]

    def _local(self, file: str) -> Path:
        return self._storage / "snapshots" / self._commit / file

    def _listed(self, file: str) -> HubFile:
        entry = self._listing.get(file)
        if entry is None:
            raise DamagedCheckpoint(f"{file} is missing from {self._repo_id} on the hub: choose another revision")
        return entry

    def _check_switched_on(self, file: str) -> None:
        if is_offline_mode():
            raise UnavailableError(
                f"{file} of {self._repo_id} is not in the cache and the hub is switched off: "
                "start once without HF_HUB_OFFLINE"
            )

    def _read_range(self, file: str, begin: int, size_bytes: int) -> bytes:
        self._check_switched_on(file)
        headers = self._headers() | {"Range": f"bytes={begin}-{begin + size_bytes - 1}", "Accept-Encoding": "identity"}
        wanted_bytes = size_bytes
        part = bytearray()
        try:
            with get_session().stream("GET", self._url(file), headers=headers, timeout=_TIMEOUT_S) as response:
                hf_raise_for_status(response)
                if response.status_code != httpx2.codes.PARTIAL_CONTENT:  # the whole file comes: read up to our part
                    wanted_bytes += begin
                for chunk in response.iter_raw():
                    part += chunk
                    if len(part) >= wanted_bytes:
                        break
        except (*_UNREACHABLE, HfHubHTTPError) as error:
            raise UnavailableError(
                f"the hub does not give {file} of {self._repo_id} ({error}): try again later"
            ) from error
        return bytes(part[wanted_bytes - size_bytes : wanted_bytes])

    def _fetch(self, files: Sequence[str], progress: Progress | None) -> None:
        total_bytes = sum(self.size_bytes(file) for file in files)
        lock, stop = threading.Lock(), threading.Event()
        done_bytes = 0

        def advance(count: int) -> None:
            nonlocal done_bytes
            if stop.is_set():
                raise UnavailableError(f"the download of {self._repo_id} was stopped: run the command again")
            with lock:
                done_bytes += count
                if progress is not None:
                    progress(f"downloading {self.name}", done_bytes, total_bytes)

        self._check_room(files)
        with ThreadPoolExecutor(_NUM_CONNECTIONS, thread_name_prefix="download") as pool:
            futures = [pool.submit(self._fetch_one, file, advance) for file in files]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:  # after a failure the other downloads end at their next byte
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _check_room(self, files: Sequence[str]) -> None:
        self._storage.mkdir(parents=True, exist_ok=True)
        needed_bytes = 0
        for file in files:
            partial = self._partial(file)
            here = partial.stat().st_size if partial is not None and partial.exists() else 0
            needed_bytes += max(0, self.size_bytes(file) - here)
        free_bytes = shutil.disk_usage(self._storage).free
        if needed_bytes > free_bytes:
            raise DoesNotFit(
                f"{self._repo_id} needs {needed_bytes / 1e9:.1f} GB more and {free_bytes / 1e9:.1f} GB are free: "
                f"make room under {self._storage}, or name another cache directory"
            )

    def _partial(self, file: str) -> Path | None:
        """Return the unfinished file of a download of ours, or None for a file that huggingface_hub downloads."""
        listed = self._listed(file)
        if listed.sha256 is None or listed.size_bytes > _MAX_PLAIN_BYTES:
            return None
        return self._storage / "blobs" / f"{listed.sha256.hex()}.partial"

    def _fetch_one(self, file: str, advance: Callable[[int], None]) -> None:
        listed, partial = self._listed(file), self._partial(file)
        if partial is not None and listed.sha256 is not None:
            # A finished blob under its digest is all that huggingface_hub looks for before it links a snapshot to it.
            blob = partial.with_name(listed.sha256.hex())
            partial.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(f"{partial}.lock"):
                if not blob.is_file():
                    download(
                        self._url(file),
                        self._headers(),
                        partial,
                        size_bytes=listed.size_bytes,
                        sha256=listed.sha256,
                        on_bytes=advance,
                    )
                    partial.replace(blob)
                else:
                    advance(listed.size_bytes)
        try:
            hf_hub_download(
                self._repo_id,
                file,
                revision=self._commit,
                cache_dir=self._access.cache_dir,
                token=self._access.token,
                endpoint=self._access.endpoint,
                tqdm_class=_NO_BAR,
            )
        except (*_UNREACHABLE, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise UnavailableError(f"the hub does not give {file} of {self._repo_id}: run the command again") from error
        if partial is None:
            advance(listed.size_bytes)

    def _url(self, file: str) -> str:
        return str(hf_hub_url(self._repo_id, file, revision=self._commit, endpoint=self._access.endpoint))

    def _headers(self) -> dict[str, str]:
        return dict(build_hf_headers(token=self._access.token))


def _fetch_config(repo_id: str, revision: str | None, access: HubAccess, *, from_cache: bool = False) -> Path:
    try:
        path = hf_hub_download(
            repo_id,
            CONFIG_FILE,
            revision=revision,
            cache_dir=access.cache_dir,
            token=access.token,
            endpoint=access.endpoint,
            tqdm_class=_NO_BAR,
            local_files_only=from_cache,
        )
    except LocalEntryNotFoundError as error:
        if is_offline_mode():
            raise ModelNotFound(
                f"{repo_id} is not in the cache and the hub is switched off: start once without HF_HUB_OFFLINE"
            ) from error
        raise UnavailableError(
            f"the hub does not answer and {repo_id} is not in the cache: check the connection, then try again"
        ) from error
    except EntryNotFoundError as error:
        raise ModelNotFound(
            f"{repo_id} has no {CONFIG_FILE} on the hub: choose a model in transformers' layout"
        ) from error
    except (*_UNREACHABLE, HfHubHTTPError) as error:
        raise UnavailableError(f"the hub does not give {CONFIG_FILE} of {repo_id}: try again later") from error
    return Path(path)


def _fetch_listing(repo_id: str, revision: str | None, access: HubAccess) -> tuple[str, dict[str, HubFile]]:
    """Return the commit to which the revision leads, and what the hub says of its files."""
    api = HfApi(endpoint=access.endpoint, token=access.token)
    try:
        info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    except GatedRepoError as error:
        raise ModelNotFound(
            f"the hub gives {repo_id} only to those who accepted its terms: "
            "accept them on its page and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"neither this directory nor the hub has a model {repo_id!r}: check the name, or log in if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{repo_id} has no revision {revision!r} on the hub: name a branch, tag or commit"
        ) from error
    except HFValidationError as error:
        raise ModelNotFound(
            f"{repo_id!r} is neither a directory nor a hub id such as org/name: check the name"
        ) from error
    except HfHubHTTPError as error:
        raise UnavailableError(f"the hub refuses {repo_id} ({error.response.status_code}): try again later") from error
    return info.sha, {
        entry.rfilename: HubFile(entry.size or 0, bytes.fromhex(entry.lfs.sha256) if entry.lfs is not None else None)
        for entry in info.siblings or ()
    }


def _listing_path(repo_id: str, commit: str, access: HubAccess) -> Path | None:
    if access.home is None:
        return None
    return access.home / "hub" / repo_id.replace("/", "--") / f"{commit}.json"


def _recall_listing(repo_id: str, commit: str, access: HubAccess) -> dict[str, HubFile] | None:
    """Return the remembered list of files; a commit never changes, so what was said about it holds."""
    path = _listing_path(repo_id, commit, access)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        return {
            file: HubFile(int(size_bytes), bytes.fromhex(sha256) if sha256 is not None else None)
            for file, (size_bytes, sha256) in content.items()
        }
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None  # never remembered, or damaged: ask the hub


def _remember_listing(repo_id: str, commit: str, access: HubAccess, listing: Mapping[str, HubFile]) -> None:
    path = _listing_path(repo_id, commit, access)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: [file.size_bytes, file.sha256.hex() if file.sha256 else None] for name, file in listing.items()}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(content, sort_keys=True), "utf-8")
    temporary.replace(path)
