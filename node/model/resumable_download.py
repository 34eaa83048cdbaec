"""A download that goes on where it stopped, over broken connections and over the end of the process.

Written because huggingface_hub 2 throws an unfinished file away when its process ends; the session, and with it
proxies, certificates and offline mode, is still huggingface_hub's. Knows URLs and files, nothing of models. Blocks for
as long as it takes: run it in ``asyncio.to_thread``.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status

from node.errors import UnavailableError
from node.model.digests import hash_file

_MAX_BARREN_ATTEMPTS = 5  # attempts in a row that brought no byte
_PAUSE_S = 1.0  # before another attempt
_TIMEOUT_S = 30.0  # for a connection, and for each read
_RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})


def download(
    url: str,
    headers: Mapping[str, str],
    partial: Path,
    *,
    size_bytes: int,
    sha256: bytes,
    on_bytes: Callable[[int], None],
) -> None:
    """Fetch ``url`` into the file ``partial``, which may hold a first part of it already, and check the whole.

    Args:
        url: Address of the file; redirects are followed, without the token when they lead to another host.
        headers: Headers of every request, the token among them.
        partial: The unfinished file; it stays when the download fails, and is complete when this returns.
        size_bytes: Size of the whole file.
        sha256: Digest of the whole file, 32 bytes.
        on_bytes: Called with the bytes gained (at first those that were there already; negative where a server started
            again). An exception that it raises ends the download.

    Raises:
        UnavailableError: The server does not answer, refuses, or sent another content than was asked for.
    """
    if partial.exists() and partial.stat().st_size > size_bytes:
        partial.unlink()
    resumed_bytes = _size_bytes(partial)
    on_bytes(resumed_bytes)
    _fetch_all(url, headers, partial, size_bytes, on_bytes)
    if hash_file(partial) == sha256:
        return
    partial.unlink()
    if resumed_bytes:  # perhaps it was the old part that was bad
        on_bytes(-size_bytes)
        _fetch_all(url, headers, partial, size_bytes, on_bytes)
        if hash_file(partial) == sha256:
            return
        partial.unlink()
    raise UnavailableError(f"what came from {url} is not the file that the hub describes: run the command again")


def _fetch_all(
    url: str, headers: Mapping[str, str], partial: Path, size_bytes: int, on_bytes: Callable[[int], None]
) -> None:
    """Ask again after each broken answer, until the file has its size or nothing comes any more."""
    barren = 0
    partial.touch()
    while (have := _size_bytes(partial)) < size_bytes:
        reason = "the connection ended early"
        try:
            _fetch_rest(url, headers, partial, size_bytes, on_bytes)
        except (httpx2.TransportError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in _RETRYABLE_STATUS:
                raise UnavailableError(f"the hub refuses {url}: {error.response.status_code}") from error
            reason = str(error) or type(error).__name__
        reached = _size_bytes(partial)
        if reached >= size_bytes:
            return
        barren = 0 if reached > have else barren + 1
        if barren == _MAX_BARREN_ATTEMPTS:
            raise UnavailableError(
                f"the download of {url} stopped at {reached} of {size_bytes} bytes ({reason}): "
                "run the command again, and it goes on from there"
            )
        time.sleep(_PAUSE_S)


def _fetch_rest(
    url: str, headers: Mapping[str, str], partial: Path, size_bytes: int, on_bytes: Callable[[int], None]
) -> None:
    """Append what the server sends in one answer."""
    have = _size_bytes(partial)
    wanted = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with get_session().stream("GET", url, headers=wanted, timeout=_TIMEOUT_S) as response:
        hf_raise_for_status(response)
        if have and response.status_code != httpx2.codes.PARTIAL_CONTENT:  # the server knows no ranges
            on_bytes(-have)
            have = 0
        with partial.open("ab" if have else "wb") as stream:
            for chunk in response.iter_raw():
                kept = chunk[: size_bytes - stream.tell()]  # never more than announced
                if not kept:
                    break
                stream.write(kept)
                on_bytes(len(kept))


def _size_bytes(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0
