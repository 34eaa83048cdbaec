"""Say which of many records are signed: what worker processes run, and therefore import quickly.

This file does not know records, nor anything of the network. Pure.
"""

from collections.abc import Sequence

from dht.identity import verify

SignatureJob = tuple[int, bytes, tuple[bytes, ...], tuple[bytes, ...]]
"""Kind, body, binary peer ids of the authors, signatures."""


def are_signed(jobs: Sequence[SignatureJob]) -> list[bool]:
    """Say of each record whether it has authors and all of them signed it."""
    return [
        len(authors) == len(signatures) > 0
        and all(verify(author, kind, body, signature) for author, signature in zip(authors, signatures, strict=True))
        for kind, body, authors, signatures in jobs
    ]
