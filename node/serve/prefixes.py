"""What sessions with a common beginning share: keys, values and outputs of whole chunks, found by a chain of hashes.

A chunk's key is the hash of its hidden states and of the key before it, so equal keys mean equal text from the first
position on. The first key of a chain hashes the session's scope: model, blocks, codec, adapter and, unless the owner
shares among clients, the client; sessions of different scopes never meet. Chunks are copies: a session that ends takes
nothing from others, and the store forgets the chunks used least recently when its memory is full.
Used by the compute thread only.

    scope ─> hash(chunk 0) ─> hash(chunk 1) ─> ...        reuse: copy into the cache, hand the kept output on
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch

from node.model.arena import Buffers
from node.model.cache import SpanCache
from node.serve.session import Compute
from node.wire import Open

CHUNK = 64
"""Positions of one chunk."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a span computes of ``CHUNK`` positions of one row."""

    output: torch.Tensor
    """``[1, CHUNK, hidden]`` what the last block gives."""
    layers: Buffers
    """``[1, heads, CHUNK, dim]`` keys and values of every layer."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(self.output.nbytes) + sum(int(part.nbytes) for pair in self.layers for part in pair)


def scope_of(opened: Open, owner: str) -> bytes:
    """Return the hash of all that must be equal for two sessions to share.

    Args:
        opened: how the session was opened.
        owner: peer id of its client; empty: clients share with each other.
    """
    parts = (opened.manifest, opened.start, opened.end, opened.codec, opened.embed, opened.adapter, owner)
    return hashlib.sha256(repr(parts).encode()).digest()


class PrefixStore:
    """Chunks by their keys, in at most ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_hits = 0
        """Chunks that were not computed again."""
        self._chunks: OrderedDict[bytes, Chunk] = OrderedDict()

    def find(self, key: bytes) -> Chunk | None:
        """Return the chunk of ``key``, if it is kept."""
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._chunks.move_to_end(key)
            self.num_hits += 1
        return chunk

    def keep(self, key: bytes, chunk: Chunk) -> None:
        """Keep ``chunk``, forgetting what was used least recently."""
        if key in self._chunks or chunk.num_bytes > self.max_bytes:
            return
        self._chunks[key] = chunk
        self.num_bytes += chunk.num_bytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._chunks.popitem(last=False)
            self.num_bytes -= oldest.num_bytes


class PrefixChain:
    """The keys of one session's history, as far as it consists of whole chunks.

    Args:
        store: shared by the sessions of a server.
        scope: hash of all that must be equal for two sessions to share.
    """

    def __init__(self, store: PrefixStore, scope: bytes) -> None:
        self._store = store
        self._keys = [scope]
        self._next: tuple[int, bytes] | None = None
        """Position and key of the chunk that was looked for last, so that it is hashed once."""
        self._piece: tuple[torch.Tensor, torch.Tensor] | None = None
        """What has gone in and come out since the last whole chunk, while one step is run in pieces."""

    def begin(self, order: Compute) -> None:
        """Follow what changes in the history before a step."""
        self._next = self._piece = None
        if order.crop is not None:
            del self._keys[order.crop // CHUNK + 1 :]
        if order.rows is not None:
            self._keys.clear()  # The history is not one text any more.

    def reuse(self, hidden: torch.Tensor, cache: SpanCache) -> list[torch.Tensor]:
        """Append to the history what is known of ``hidden`` (``[1, positions, hidden]``, the step from here on).

        Returns:
            The outputs of the chunks taken, ``[1, CHUNK, hidden]`` each.
        """
        outputs: list[torch.Tensor] = []
        done = 0
        while hidden.shape[1] - done >= CHUNK and self._is_at(cache.length):
            key = self._key(hidden[:, done : done + CHUNK], cache.length)
            chunk = self._store.find(key)
            if chunk is None:
                break
            first = cache.length
            for mine, kept in zip(cache.buffers, chunk.layers, strict=True):
                for target, source in zip(mine, kept, strict=True):
                    target[:, :, first : first + CHUNK] = source
            cache.advance(CHUNK)
            self._keys.append(key)
            outputs.append(chunk.output)
            done += CHUNK
        return outputs

    def keep(self, hidden: torch.Tensor, output: torch.Tensor, cache: SpanCache, *, is_last: bool) -> None:
        """Keep the whole chunks of what has just been computed and appended to the history.

        Args:
            hidden: ``[1, positions, hidden]`` what went in.
            output: of the same shape, what came out.
            cache: the session's, with these positions at its end.
            is_last: whether they end their step; otherwise what is no whole chunk yet waits for the next ones.
        """
        if self._piece is not None:
            hidden, output = (torch.cat(both, dim=1) for both in zip(self._piece, (hidden, output), strict=True))
            self._piece = None
        start = cache.length - hidden.shape[1]
        if not self._is_at(start):
            return
        num_whole = hidden.shape[1] // CHUNK * CHUNK
        for done in range(0, num_whole, CHUNK):
            key = self._key(hidden[:, done : done + CHUNK], start + done)
            here = slice(start + done, start + done + CHUNK)
            layers = [(keys[:, :, here].clone(), values[:, :, here].clone()) for keys, values in cache.buffers]
            self._store.keep(key, Chunk(output[:, done : done + CHUNK].clone(), layers))
            self._keys.append(key)
        if num_whole < hidden.shape[1] and not is_last:
            self._piece = (hidden[:, num_whole:], output[:, num_whole:])

    def _is_at(self, position: int) -> bool:
        return bool(self._keys) and position == CHUNK * (len(self._keys) - 1)

    def _key(self, hidden: torch.Tensor, position: int) -> bytes:
        if self._next is None or self._next[0] != position:
            digest = hashlib.sha256(self._keys[-1])
            digest.update(hidden.cpu().contiguous().view(torch.uint8).numpy())
            self._next = (position, digest.digest())
        return self._next[1]
