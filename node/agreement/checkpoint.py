"""Checkpoints, which a stage sends to its client, and the client's answer: their bodies, byte by byte. Pure.

A checkpoint is not signed as a whole: the receipts in it are, and the root in them covers the leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from dht.codec import Fields, Value, decode, encode
from dht.errors import BadRecord
from dht.work import MAX_COUNT, Receipt
from node.commitment.chunks import Leaf
from node.commitment.stage import MAX_LEAVES
from node.errors import FrameError
from node.wire import MAX_LENGTH

MAX_RECEIPTS = 8
"""Receipts of one checkpoint: kinds of work times epochs, and some room."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a stage has done since its last one."""

    MAX_BYTES: ClassVar[int] = 60 * 2**10

    number: int
    """Of the session's checkpoints at this stage, from 1."""
    steps: int
    """Number of the last step that it counts."""
    leaves: tuple[Leaf, ...]
    """Since the last one."""
    receipts: tuple[bytes, ...]
    """Bodies of the receipts that have changed."""
    signatures: tuple[bytes, ...]
    """Of the provider, one for each."""

    def to_body(self) -> bytes:
        """Encode canonically."""
        leaves: list[Value] = [
            [leaf.segment, leaf.index, leaf.first, leaf.header, leaf.taken, leaf.given, leaf.voucher]
            for leaf in self.leaves
        ]
        receipts: list[Value] = [list(pair) for pair in zip(self.receipts, self.signatures, strict=True)]
        return encode([self.number, self.steps, leaves, receipts])

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check.

        Raises:
            FrameError: it is malformed.
        """
        try:
            fields = Fields(decode(body, cls.MAX_BYTES))
            number, steps = fields.uint("number", MAX_COUNT, min_value=1), fields.uint("steps", 2**32)
            leaves = tuple(_read_leaf(item) for item in fields.items("leaves", MAX_LEAVES))
            pairs = [_read_receipt(item) for item in fields.items("receipts", MAX_RECEIPTS)]
            fields.end()
        except BadRecord as error:
            raise FrameError(f"A checkpoint is malformed: {error}.") from error
        return cls(number, steps, leaves, tuple(body for body, _ in pairs), tuple(signed for _, signed in pairs))


@dataclass(frozen=True, slots=True)
class Cosign:
    """A client's answer to a checkpoint."""

    MAX_BYTES: ClassVar[int] = 1024

    number: int
    """Of the checkpoint."""
    signatures: tuple[bytes, ...]
    """Of the consumer, one for each of its receipts."""

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode([self.number, list(self.signatures)])

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``FrameError`` as ``Checkpoint`` does."""
        try:
            fields = Fields(decode(body, cls.MAX_BYTES))
            number = fields.uint("number", MAX_COUNT, min_value=1)
            signatures = Fields(fields.items("signatures", MAX_RECEIPTS))
            fields.end()
            taken = []
            while signatures.more():
                taken.append(signatures.blob("signature", 64))
        except BadRecord as error:
            raise FrameError(f"A co-signature is malformed: {error}.") from error
        return cls(number, tuple(taken))


def _read_leaf(item: object) -> Leaf:
    fields = Fields(item)
    leaf = Leaf(
        segment=fields.uint("segment", 2**32 - 1),
        index=fields.uint("index", 2**32 - 1),
        first=fields.uint("first", MAX_LENGTH),
        header=fields.blob("header", 32),
        taken=fields.blob("taken", 32),
        given=fields.blob("given", 32),
        voucher=fields.blob("voucher", 0, 64),
    )
    fields.end()
    return leaf


def _read_receipt(item: object) -> tuple[bytes, bytes]:
    fields = Fields(item)
    pair = fields.some_bytes("receipt", Receipt.MAX_BYTES), fields.blob("signature", 64)
    fields.end()
    return pair
