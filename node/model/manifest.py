"""The identity of a model: one hash over its config and its weight files.

Two checkpoints with the same manifest build the same weights, whether they lie in a directory or on a hub, because only
the content of ``config.json`` and of the weight files enters. This file knows neither paths nor hubs; it is pure and
runs in any thread.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

MANIFEST_BYTES = 32
DIGEST_BYTES = 32
_DOMAIN = b"efedllm/manifest/1\n"
# Written by transformers on every save: they say who saved the config, not what it builds.
_INCIDENTAL_KEYS = frozenset({"transformers_version", "_name_or_path"})


def canonical_config(config: Mapping[str, Any]) -> bytes:
    """Encode the content of a ``config.json`` so that equal configs give equal bytes.

    Keys are sorted at every level, white space is dropped, everything outside ASCII is escaped, and the top-level keys
    that only say who saved the file (``transformers_version``, ``_name_or_path``) are left out.
    """
    kept = {key: value for key, value in config.items() if key not in _INCIDENTAL_KEYS}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def manifest(config: Mapping[str, Any], weight_digests: Iterable[bytes]) -> bytes:
    """Hash a config and the digests of its weight files into a model's identity.

    Args:
        config: The parsed ``config.json``.
        weight_digests: SHA-256 of every weight file, 32 bytes each, in any order: they are sorted here, so the names of
            the files do not matter.

    Returns:
        32 bytes: SHA-256 over the domain tag, SHA-256 of the canonical config, and the sorted digests.
    """
    digests = sorted(weight_digests)
    if not digests or any(len(digest) != DIGEST_BYTES for digest in digests):
        raise ValueError("a manifest needs the SHA-256 digest, 32 bytes, of at least one weight file")
    whole = hashlib.sha256(_DOMAIN)
    whole.update(hashlib.sha256(canonical_config(config)).digest())
    for digest in digests:
        whole.update(digest)
    return whole.digest()


def short_name(name: str, manifest32: bytes) -> str:
    """Return ``name@first8hex``, which people read; peers compare the whole manifest."""
    return f"{name}@{manifest32.hex()[:8]}"
