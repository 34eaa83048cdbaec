"""What was judged, as AUDIT records: one for each session of a receipt's slot, and the newest replaces the others.

    result with an opening and errors ──enter──> one entry a slot and session ──take──> records that are new

Who does not open what it signed for, or opens something else, stands in no AUDIT: nobody has run that again. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256

from dht.audit import Audit, Finding
from dht.records import Envelope
from dht.work import Receipt, Slot
from node.client.audit_book import AuditResult, Outcome

_FINDINGS = {Outcome.PASS: Finding.PASS, Outcome.FAIL: Finding.FAIL}


@dataclass(slots=True)
class _Entry:
    audit: Audit
    is_new: bool = True
    """Whether it says more than when it was last taken."""


class AuditTally:
    """The audits of one auditor.

    Args:
        auditor: peer id of who signs them.
    """

    def __init__(self, auditor: str) -> None:
        self._auditor = auditor
        self._entries: dict[tuple[Slot, bytes], _Entry] = {}

    @property
    def has_news(self) -> bool:
        """Whether there is something to publish."""
        return any(entry.is_new for entry in self._entries.values())

    def enter(self, result: AuditResult, epoch: int) -> None:
        """Count what was judged in an epoch; what says neither pass nor fail, or was not run again, is passed over."""
        if result.outcome not in _FINDINGS or result.measured is None or result.opening is None:
            return
        audit = self._audit_of(result, epoch)
        place = (audit.slot, audit.session)
        known = self._entries.get(place)
        if known is not None and known.audit.epoch == epoch:
            worst = max(known.audit, audit, key=_badness)
            audit = replace(worst, num_chunks=known.audit.num_chunks + 1)
        self._entries[place] = _Entry(audit)

    def _audit_of(self, result: AuditResult, epoch: int) -> Audit:
        opening, measured = result.opening, result.measured
        assert opening is not None and measured is not None  # noqa: PT018 - both were asked for
        body = Envelope.from_bytes(opening.receipt).body
        receipt = Receipt.from_body(body)
        return Audit(
            auditor=self._auditor,
            epoch=epoch,
            provider=receipt.provider,
            consumer=receipt.consumer,
            receipt_epoch=receipt.epoch,
            lane=receipt.lane,
            work_kind=receipt.work_kind,
            receipt=sha256(body).digest(),
            manifest=receipt.manifest,
            start=receipt.start,
            end=receipt.end,
            profile=receipt.profile,
            session=result.session,
            segment=result.segment,
            index=result.index,
            num_chunks=1,
            finding=_FINDINGS[result.outcome],
            median_ppm=measured.median_ppm,
            upper_ppm=measured.upper_ppm,
            max_ppm=measured.max_ppm,
            calibration=measured.calibration,
            t=0,
        )

    def take(self, epoch: int, t: int) -> list[Audit]:
        """Return what is new, to be signed at ``t``, unix seconds, in ``epoch``; forget what belongs to older ones."""
        self._entries = {place: entry for place, entry in self._entries.items() if entry.is_new or _is_of(entry, epoch)}
        taken = []
        for entry in self._entries.values():
            if entry.is_new:
                entry.audit, entry.is_new = replace(entry.audit, epoch=epoch, t=t), False
                taken.append(entry.audit)
        return taken

    def give_back(self, audits: list[Audit]) -> None:
        """Note that nobody has stored some of what was taken."""
        for audit in audits:
            entry = self._entries.get((audit.slot, audit.session))
            if entry is not None:
                entry.is_new = True


def _is_of(entry: _Entry, epoch: int) -> bool:
    return entry.audit.epoch >= epoch


def _badness(audit: Audit) -> tuple[int, int, int]:
    return int(audit.finding), audit.median_ppm, audit.max_ppm
