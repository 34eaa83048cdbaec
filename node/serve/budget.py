"""How much cache memory a server has promised to its sessions. Pure bookkeeping in bytes; no tensors, no clock."""

from __future__ import annotations


class CacheBudget:
    """Promises of cache memory, bounded by ``total_bytes``."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._promised: dict[bytes, int] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes not promised to any session."""
        return self.total_bytes - sum(self._promised.values())

    def can_promise(self, session: bytes, num_bytes: int) -> bool:
        """Say whether ``session`` may have ``num_bytes`` in all."""
        return num_bytes <= self.free_bytes + self._promised.get(session, 0)

    def promise(self, session: bytes, num_bytes: int) -> None:
        """Set what ``session`` may use; the caller has asked ``can_promise``."""
        assert self.can_promise(session, num_bytes)
        self._promised[session] = num_bytes

    def release(self, session: bytes) -> None:
        """Take back what ``session`` was promised."""
        self._promised.pop(session, None)
