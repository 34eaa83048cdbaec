"""Keep what this home has signed and had signed: receipts, numbers written ahead, who did not sign.

    provider or consumer:  reserve(slot, n) -> sign a body with n -> co-signature -> append(envelope)

A number is on the disk before it is handed out, so no crash makes a peer sign two bodies with one number. Receipts
are never changed; a row whose signatures do not fit is set aside and can be had again from the DHT (``repair``), and
what newer ones stand for goes when its window has ended (``compact``). A damaged file is moved aside, a new one begun
with what can be read of it, and numbers go on far above those it held.

Every call may block for some milliseconds, and for seconds on a slow disk: from an event loop call it in a thread, or
use ``async_ledger``. Any thread may call; one is let in at a time. Several processes may have one file open.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from dht.errors import BadRecord, Contradiction, DhtError, LedgerNotWritten, SeqsSpent
from dht.receipts import continuity, lane_table, receipt_table, reservation_table, standing_table
from dht.receipts.compaction import compact
from dht.receipts.lane_table import FreeLane
from dht.receipts.ledger_file import LedgerFile
from dht.receipts.ledger_store import LedgerStore, log_notice
from dht.receipts.receipt_rows import REBUILT, Finding, Repaired, check_own, insert
from dht.receipts.reservation_table import UnsignedEnd
from dht.receipts.seq_blocks import SeqBlocks, block_from, floor_after
from dht.receipts.sound_rows import SoundRows
from dht.receipts.totals import Change
from dht.records import SignedRecord, place
from dht.rules import DEFAULT_RULES, Rules
from dht.work import Receipt, Slot, WorkKind

MAX_UNWRITTEN = 4096
"""Receipts that are kept in memory while the disk does not take them."""

FOREVER_S = 2**62
"""Later than any time."""


class Ledger:
    """The receipts of one home; a context manager that closes the file."""

    def __init__(self, store: LedgerStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._blocks = SeqBlocks()
        self._rows = SoundRows(store, clock)
        self._unwritten: list[tuple[str, Receipt, bytes]] = []

    @classmethod
    def open(
        cls,
        path: Path | None,
        *,
        own: str | None = None,
        rules: Rules = DEFAULT_RULES,
        since_s: float | None = None,
        clock: Callable[[], float] = time.time,
        tell: Callable[[str], None] = log_notice,
    ) -> Self:
        """Open a ledger, begin one where there is none, and check it.

        Args:
            path: The file; None keeps everything in memory, for clients whose id lives as long as they do.
            own: Peer id whose receipts are verified now; None: of all that are kept. Others are when they are read.
            rules: Of the swarm, as far as they are known; they say how long receipts stand on the DHT.
            since_s: Unix seconds; the newest receipts of all slots in which work ended since then are verified. None:
                those that may still stand on the DHT. Older ones are when they are read, or by ``verify``.
            clock: Unix seconds.
            tell: Takes each of ``notices`` as soon as there is one.

        Raises:
            LedgerNotWritten: The disk, the directory or its permissions do not allow it.
            LedgerDamaged: The file is damaged, and another process has it open.
        """
        ledger = cls(LedgerStore(path, clock, tell=tell), clock)
        try:
            num = ledger._store.write(reservation_table.mend_reservations, durable=True)
            if num:
                ledger._store.note(f"{num} reservations in {path} were damaged; numbers go on far above them.")
            begin_s = clock() - (rules.window_epochs + 1) * rules.epoch_s if since_s is None else since_s
            for peer in ledger.owners() if own is None else [own]:
                ledger._rows.newest(peer, max(0, int(begin_s)), FOREVER_S)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open_to_read(
        cls, path: Path, clock: Callable[[], float] = time.time, tell: Callable[[str], None] = log_notice
    ) -> Self:
        """Open a ledger to look into it: nothing is begun where there is none, nor written where that is not allowed.

        Raises:
            LedgerNotWritten: It cannot be read.
            LedgerDamaged: It is damaged, and cannot be moved aside.
        """
        try:
            is_there = path.exists()
        except OSError as error:
            raise LedgerNotWritten(f"The ledger {path} cannot be read ({error.strerror}).") from error
        if not is_there:
            if path.parent.exists() and not path.parent.is_dir():
                raise LedgerNotWritten(f"{path.parent} is a file; name a directory in EFEDLLM_HOME.")
            return cls.open(None, clock=clock)
        try:
            return cls.open(path, since_s=FOREVER_S, clock=clock, tell=tell)
        except LedgerNotWritten:
            return cls(LedgerStore(None, clock, LedgerFile.copy_of(path), tell), clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def notices(self) -> list[str]:
        """Sentences for people about what was found damaged and what became of it."""
        return self._store.notices

    @property
    def is_new(self) -> bool:
        """Whether it was begun now: a provider whose identity is older then calls ``raise_floor``."""
        return self._store.is_new

    def close(self) -> None:
        """Let go of the file; what the disk did not take is tried once more."""
        with self._store.lock:
            if self._unwritten:
                with contextlib.suppress(DhtError):
                    self._store.write(self._insert_unwritten)
            self._store.close()

    # -- numbers -----------------------------------------------------------------------------------------------------

    def reserve_in_memory(self, own: str, slot: Slot, seq: int = 1) -> int | None:
        """Do what ``reserve`` does if that needs no disk, else return None. Never blocks."""
        return self._blocks.take((own, slot), max(seq, self.first_number(own, slot)))

    def first_number(self, own: str, slot: Slot) -> int:
        """Say which is the least number that may be signed in a slot, whatever this ledger knows."""
        del own, slot
        return 1

    def reserve(self, own: str, slot: Slot, seq: int = 1) -> int:
        """Say which number may be signed next in a slot: the least from ``seq`` on that nobody was ever given.

        It is on the disk before this returns. A provider signs with what it is given. A consumer asks for the number of
        the body before it, and signs only if it is given that very one. To send something again, send the same bytes.

        Args:
            own: Peer id that will sign, an author of the slot.
            slot: Where the receipt replaces older ones.
            seq: The least number that is wanted.

        Raises:
            LedgerNotWritten: The disk does not take it: nothing may be signed.
            SeqsSpent: The lane has no numbers left in this epoch.
        """
        seq = max(seq, self.first_number(own, slot))
        with self._store.lock:
            taken = self._blocks.take((own, slot), seq)
            if taken is None:
                taken = self._blocks.take((own, slot), self._reserve_block(own, slot, seq))
            assert taken is not None
            return taken

    def needs_numbers(self, own: str, slot: Slot) -> bool:
        """Say whether ``reserve_ahead`` is of use for a slot. Never blocks."""
        return self._blocks.is_low((own, slot))

    def reserve_ahead(self, own: str, slot: Slot) -> None:
        """Write the next numbers of a slot before they are wanted, so that ``reserve_in_memory`` has them.

        Raises:
            LedgerNotWritten, SeqsSpent: as ``reserve``.
        """
        with self._store.lock:
            if self._blocks.is_low((own, slot)):
                self._reserve_block(own, slot, self.first_number(own, slot))

    def _reserve_block(self, own: str, slot: Slot, seq: int) -> int:
        least = self._blocks.least((own, slot), seq)  # also where the file has been lost meanwhile
        first, last = self._store.write(lambda db: _reserve_block(db, own, slot, least), durable=True)
        self._blocks.add((own, slot), first, last)
        return first

    def raise_floor(self) -> None:
        """Let numbers go on far above all that were used: for an identity that is older than this ledger."""

        def lift(db: sqlite3.Connection) -> None:
            reservation_table.raise_floor(db, floor_after(reservation_table.seq_floor(db), 1))

        self._store.write(lift, durable=True)

    # -- receipts ----------------------------------------------------------------------------------------------------

    def append(self, own: str, envelope: bytes) -> bool:
        """Keep a receipt that both have signed; returns False where it is kept already.

        Args:
            own: Peer id under which it is kept, one of its authors.
            envelope: The receipt with both signatures, which are checked here.

        Raises:
            BadRecord: No receipt of ``own``, or not signed by both.
            Contradiction: Another body with the same number is kept.
            LedgerNotWritten: The disk does not take it; it is kept in memory and written with the next one.
        """
        (outcome,) = self.append_all([(own, envelope)])
        if isinstance(outcome, DhtError):
            raise outcome
        return outcome

    def append_all(self, batch: Sequence[tuple[str, bytes]]) -> list[bool | DhtError]:
        """Append several in one transaction; for each what ``append`` would return or raise.

        Raises:
            LedgerNotWritten, LedgerDamaged: As above, for all of them.
        """
        outcomes: list[bool | DhtError] = []
        good: list[tuple[str, Receipt, bytes]] = []
        taken: list[int] = []
        for place_in_batch, (own, envelope) in enumerate(batch):
            outcomes.append(False)
            try:
                good.append((own, check_own(own, envelope), envelope))
                taken.append(place_in_batch)
            except BadRecord as error:
                outcomes[-1] = error
        with self._store.lock:
            start = len(self._unwritten)
            self._unwritten += good
            try:
                written = self._store.write(self._insert_unwritten)
            except DhtError:
                del self._unwritten[:-MAX_UNWRITTEN]
                raise
            self._unwritten.clear()
            for place_in_batch, outcome in zip(taken, written[start:], strict=True):
                outcomes[place_in_batch] = outcome
            return outcomes

    def _insert_unwritten(self, db: sqlite3.Connection) -> list[bool | DhtError]:
        now_s = self._clock()
        return [insert(db, *item, now_s) for item in self._unwritten]

    def repair(self, own: str, envelopes: Iterable[bytes]) -> Repaired:
        """Take receipts of ``own`` from elsewhere, such as the DHT, and keep those that are lacking."""
        given = list(envelopes)
        outcomes = self.append_all([(own, envelope) for envelope in given])
        against = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, Contradiction)]
        return Repaired(
            added=sum(outcome is True for outcome in outcomes),
            known=sum(outcome is False for outcome in outcomes),
            contradictions=tuple(given[at] for at in against),
            refused=sum(isinstance(outcome, BadRecord) for outcome in outcomes),
        )

    def newest(self, own: str, since_s: float = 0.0, rules: Rules = DEFAULT_RULES) -> list[SignedRecord]:
        """List the newest receipt of every slot in which work ended since then; signatures checked, in a fixed order.

        Args:
            own: Peer id.
            since_s: Unix seconds.
            rules: Of the swarm; they say where and until when the receipts stand.
        """
        rows = self._rows.newest(own, int(since_s), FOREVER_S)
        return [place(receipt, row.envelope, rules) for receipt, row in rows]

    def newest_of(self, own: str, slot: Slot) -> SignedRecord | None:
        """Return the newest receipt of one slot, with which its counters go on after a restart; signatures checked."""
        found = self._rows.newest_of(own, slot)
        return None if found is None else place(found[0], found[1].envelope)

    def newest_envelopes(self, own: str, since_epoch: int) -> list[bytes]:
        """List the newest envelope of every slot of that epoch and later ones: what stands on the DHT, or should."""
        return [row.envelope for _, row in self._rows.newest(own, 0, FOREVER_S, since_epoch)]

    def changes(self, own: str, since_s: float = 0.0) -> list[Change]:
        """List what has been counted since then, slot by slot: its newest receipt, and the newest before."""
        after = self._rows.newest(own, int(since_s), FOREVER_S)
        # Read last, so that an old receipt that comes in between is not counted as new.
        before = {receipt.slot: receipt for receipt, _ in self._rows.newest(own, 0, int(since_s))}
        return [Change(receipt, before.get(receipt.slot)) for receipt, _ in after]

    def history_of(self, own: str, consumer: str) -> dict[WorkKind, int]:
        """Count what a consumer has signed for with us, for the cap on what is served without signature."""
        return self._store.read(lambda db: receipt_table.total_amounts(db, own, consumer))

    def verify(self) -> tuple[int, list[Finding]]:
        """Check every row, also of older receipts; returns how many were checked, and those that were set aside now."""
        return self._rows.verify()

    def compact(self, rules: Rules) -> int:
        """Drop receipts and reservations that newer ones stand for, of epochs past the swarm's window.

        From then on a moment in such an epoch is its beginning: what was counted before it is no longer told apart.

        Returns:
            How many receipts went.
        """
        return compact(self._store, self._rows, rules, self._clock())

    def set_aside(self) -> list[Finding]:
        """List the rows that do not count because they are damaged."""
        return [Finding(row, reason) for row, reason in self._store.read(receipt_table.those_set_aside)]

    def lost(self) -> list[Finding]:
        """List those of them that nothing stands for: no receipt that was had again, and no newer one of their slot."""
        return [
            Finding(row, reason) for row, reason in self._store.read(lambda db: receipt_table.those_lost(db, REBUILT))
        ]

    def owners(self) -> list[str]:
        """List the own peer ids under which anything is kept, in a fixed order."""
        return self._store.read(receipt_table.owners)

    # -- notes -------------------------------------------------------------------------------------------------------

    def note_unsigned_end(self, own: str, end: UnsignedEnd) -> None:
        """Remember that a session ended with work that its other side did not sign."""
        self._store.write(lambda db: reservation_table.add_unsigned_end(db, own, end))

    def unsigned(self, own: str, since_s: float = 0.0) -> list[UnsignedEnd]:
        """List the sessions that ended so, oldest first."""
        return self._store.read(lambda db: reservation_table.unsigned_ends(db, own, int(since_s)))

    def num_unsigned(self, own: str, consumer: str) -> int:
        """Say how many sessions a consumer has ended without signing, less those in which it has signed since."""
        return self._store.read(lambda db: standing_table.num_unsigned(db, own, consumer))

    def standing(self, own: str, consumer: str) -> tuple[int, int]:
        """Return the same, and the unix second in which it changed last."""
        return self._store.read(lambda db: standing_table.standing(db, own, consumer))

    def change_unsigned(self, own: str, consumer: str, change: int) -> None:
        """Add to that number, which never falls below zero."""

        def write(db: sqlite3.Connection) -> None:
            num = standing_table.num_unsigned(db, own, consumer)
            if num or change > 0:
                standing_table.write_unsigned(db, own, consumer, num + change, int(self._clock()))

        if change > 0 or self.num_unsigned(own, consumer):
            self._store.write(write)

    def standings_since(self, own: str, t: int) -> dict[str, int]:
        """List the peers against whom something unsigned was noted since unix second ``t``, and when that was."""
        return self._store.read(lambda db: standing_table.since(db, own, t))

    def take_lanes(self, own: str) -> list[FreeLane]:
        """Take the lanes that a consumer may go on with; nobody else is given them until they are put back."""
        path, now_s = self._store.path, self._clock()

        def is_continued(boot: bytes, t: int) -> bool:
            return path is not None and continuity.is_continued(path, boot, t, now_s)

        return self._store.write(lambda db: lane_table.take_lanes(db, own, is_continued))

    def put_lanes(self, own: str, lanes: Sequence[FreeLane]) -> None:
        """Put lanes back in which everything is signed for, and kept here."""
        boot, t = continuity.boot_digest(), int(self._clock())
        self._store.write(lambda db: lane_table.put_lanes(db, own, lanes, boot, t))

    def note_model(self, manifest: bytes, name: str) -> None:
        """Remember what a model is called, for people."""
        if self._store.read(reservation_table.model_names).get(manifest) != name:
            self._store.write(lambda db: reservation_table.add_model_name(db, manifest, name))

    def model_names(self) -> dict[bytes, str]:
        """Return the names of the models that this home has met, by manifest."""
        return self._store.read(reservation_table.model_names)


def _reserve_block(db: sqlite3.Connection, own: str, slot: Slot, seq: int) -> tuple[int, int]:
    block = block_from(seq, reservation_table.reserved(db, own, slot))
    if block is None:
        raise SeqsSpent(f"Lane {slot.lane} of {slot.consumer} has no numbers left in this epoch; open another lane.")
    reservation_table.write_reserved(db, (own, slot), block[1])
    return block
