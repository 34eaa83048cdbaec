"""Make of records the evidence that scores are computed from, as of the end of an epoch. Pure.

    newest receipts      work, by pair and epoch
    AUDIT                pass; fail: an open fail, unless the claim about it was rejected
    claims, as judged    conviction, rejection, open fail
    EQUIVOCATION         equivocator
    SUCCESSION           succession

What is dated later than the epoch is left out, so that nodes that read at different times find the same.
"""

from collections.abc import Iterable

from dht.audit import Audit, Finding
from dht.reputation import Evidence, OpenFail, Pass, Succeeded
from dht.standing.proofs import Judged, Proofs
from dht.standing.workbook import Workbook


def evidence_of(book: Workbook, proofs: Proofs, judged: Judged, epoch: int) -> Evidence:
    """Put everything together.

    Args:
        book: What receipts add up to.
        proofs: All else that stands on the DHT.
        judged: What has become of the claims among these.
        epoch: The last one that counts.
    """
    audits = _newest(audit for audit in proofs.audits if audit.epoch <= epoch)
    failed = {OpenFail(audit.auditor, audit.provider) for audit in audits if audit.finding is Finding.FAIL}
    return Evidence(
        works=book.works(epoch),
        passes=tuple(
            {Pass(each.auditor, each.provider, each.epoch) for each in audits if each.finding is Finding.PASS}
        ),
        convictions=judged.convictions,
        rejections=judged.rejections,
        open_fails=tuple((failed - judged.refuted) | set(judged.open_fails)),
        equivocators=frozenset(proof.accused for proof in proofs.equivocations if proof.slot.epoch <= epoch),
        successions=tuple(
            {Succeeded(each.old, each.new, each.epoch) for each in proofs.successions if each.epoch <= epoch}
        ),
    )


def _newest(audits: Iterable[Audit]) -> list[Audit]:
    """Keep of an auditor's audits of one session the one of the most chunks; of equals the one that found fault."""
    kept: dict[tuple[str, int, bytes], Audit] = {}
    for audit in audits:
        place = (audit.auditor, audit.epoch, audit.subkey)
        standing = kept.get(place)
        if standing is None or _rank(standing) < _rank(audit):
            kept[place] = audit
    return list(kept.values())


def _rank(audit: Audit) -> tuple[int, int]:
    return audit.num_chunks, int(audit.finding)


def until(proofs: Proofs, epoch: int, end_s: float) -> Proofs:
    """Leave out what was signed after an epoch.

    Args:
        proofs: All that is known.
        epoch: The last one that counts.
        end_s: When it ends, unix seconds.
    """
    return Proofs(
        equivocations=tuple(each for each in proofs.equivocations if each.slot.epoch <= epoch),
        successions=tuple(each for each in proofs.successions if each.epoch <= epoch),
        audits=tuple(each for each in proofs.audits if each.epoch <= epoch),
        claims=tuple(each for each in proofs.claims if each.epoch <= epoch and each.t < end_s),
        contests=tuple(each for each in proofs.contests if each.t < end_s),
        verdicts=tuple(each for each in proofs.verdicts if each.t < end_s),
        rulings=tuple(each for each in proofs.rulings if each.settled_s < end_s),
    )
