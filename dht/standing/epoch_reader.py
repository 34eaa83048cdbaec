"""Read records of one kind that stand under a peer and an epoch; epochs that have settled are read once for each peer.

Of each key so many are kept: an author has its own keys, so who signs more harms nobody but itself. This file does not
know what the records mean. It runs on the event loop.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, TypeVar

from dht.audit import Audit
from dht.claim import Claim
from dht.contest import Contest
from dht.identity import peer_id_to_bytes
from dht.receipts.checking import SignatureChecker
from dht.records import Record
from dht.ruling import RulingRecord
from dht.swarm import Swarm
from dht.verdict import Verdict

MAX_OF_KEY = 4096
"""As many as whoever stores records has places for under one key."""

R = TypeVar("R", Audit, Claim, Contest, Verdict, RulingRecord)


class EpochReader(Generic[R]):
    """What has been read of one kind."""

    def __init__(self, swarm: Swarm, kind: type[R], num_unsettled: int, max_of_key: int = MAX_OF_KEY) -> None:
        """Begin with nothing.

        Args:
            swarm: Where.
            kind: Whose keys are a peer and an epoch; what is said of epochs here is said of terms where it is RULING.
            num_unsettled: Newest epochs that are read again, because records of them may still come.
            max_of_key: Records of one peer and epoch that are kept: the first that are read.
        """
        self._swarm = swarm
        self._kind: type[R] = kind
        self._num_unsettled = num_unsettled
        self._max_of_key = max_of_key
        self._read: dict[int, set[str]] = {}  # by epoch: peers that have been read since it settled
        self._found: dict[int, dict[str, set[R]]] = {}  # by epoch and author
        self.asked: frozenset[tuple[str, int]] = frozenset()
        """Peers and epochs under which the last call has read."""

    def begin_again(self) -> None:
        """Read everything once more: what is already known stays so."""
        self._read = {}

    async def read(
        self,
        peers: Collection[str],
        epochs: Iterable[int],
        present: int,
        oldest: int,
        checker: SignatureChecker,
        is_wanted: Callable[[R], bool] = lambda _: True,
    ) -> tuple[R, ...]:
        """Read what has not been read yet, and return all that is known.

        Args:
            peers: Peer ids of those who may have such records.
            epochs: Those that are read.
            present: The present epoch.
            oldest: What is of an epoch before is forgotten.
            checker: Checks signatures.
            is_wanted: What is not is passed over.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        wanted = set(epochs)
        self._found = {epoch: found for epoch, found in self._found.items() if epoch >= oldest}
        self._read = {epoch: read for epoch, read in self._read.items() if epoch >= oldest}
        missing = {epoch: set(peers) - self._read.get(epoch, set()) for epoch in wanted}

        async def forestall(envelopes: Sequence[bytes]) -> None:
            await checker.forestall(self._swarm.validator, envelopes)

        self.asked = frozenset((peer, epoch) for epoch, unread in missing.items() for peer in unread)
        keys = [(peer_id_to_bytes(peer), epoch) for peer, epoch in self.asked]
        async for found in self._swarm.read_many(self._kind.KIND, keys, forestall=forestall):
            for signed in found:
                if isinstance(signed.record, self._kind) and is_wanted(signed.record):
                    self._keep(signed.record)
        for epoch, unread in missing.items():
            if epoch <= present - self._num_unsettled:
                self._read.setdefault(epoch, set()).update(unread)
        return tuple(record for of_epoch in self._found.values() for of_key in of_epoch.values() for record in of_key)

    def _keep(self, record: R) -> None:
        of_key = self._found.setdefault(_epoch_of(record), {}).setdefault(record.authors[0], set())
        if len(of_key) < self._max_of_key:  # What is there stays: or else whoever dates others back takes it away.
            of_key.add(record)


def _epoch_of(record: Record) -> int:
    _, epoch = record.key_parts(b"")
    assert isinstance(epoch, int)
    return epoch
