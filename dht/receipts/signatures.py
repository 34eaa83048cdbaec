"""Say which of many records are signed: what worker processes run, and therefore import quickly.

A worker reads jobs from its standard input and writes verdicts to its standard output, until the input ends; both are
its parent's. This file does not know records, nor anything of the network. It runs in a process of its own, or in a
thread of the parent.
"""

import sys
from collections.abc import Sequence
from typing import BinaryIO

import msgpack

from dht.identity import verify

SignatureJob = tuple[int, bytes, tuple[bytes, ...], tuple[bytes, ...]]
"""Kind, body, binary peer ids of the authors, signatures."""

LENGTH_BYTES = 4


def are_signed(jobs: Sequence[SignatureJob]) -> list[bool]:
    """Say of each record whether it has authors and all of them signed it."""
    return [
        len(authors) == len(signatures) > 0
        and all(verify(author, kind, body, signature) for author, signature in zip(authors, signatures, strict=True))
        for kind, body, authors, signatures in jobs
    ]


def pack_jobs(jobs: Sequence[SignatureJob]) -> bytes:
    """Write jobs for a worker, with their length before them."""
    packed: bytes = msgpack.packb(jobs)
    return len(packed).to_bytes(LENGTH_BYTES, "big") + packed


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer jobs with a byte for each record, 1 where it is signed, until ``source`` ends."""
    while len(header := source.read(LENGTH_BYTES)) == LENGTH_BYTES:
        jobs = msgpack.unpackb(source.read(int.from_bytes(header, "big")))
        sink.write(bytes(are_signed(jobs)))
        sink.flush()


def command() -> list[str]:
    """Give the command that runs a worker with the modules that this process has."""
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
    return [sys.executable, "-c", program]


def main() -> None:
    """Run as a worker."""
    serve(sys.stdin.buffer, sys.stdout.buffer)
