"""Say in words how the receipts of a swarm were read: what became of snapshots, and what was left to read. Pure."""

from __future__ import annotations

from dht.receipts.newcomer import Beginning, Verdict
from node.run.receipt_forms import counted


def verdict_in_words(verdict: Verdict) -> str:
    """Say whose snapshot it is, how it compares with the DHT, and whether it is used."""
    record = verdict.record
    held = f"{counted(record.num_receipts, 'receipt')} of epochs {record.first_epoch} to {record.epoch}"
    whose = f"The snapshot of {record.publisher} ({held})"
    if verdict.check is None:
        what = "is false" if verdict.is_false else "cannot be had"
        return f"{whose} {what} and is not used: {verdict.trouble}."
    check = verdict.check.both
    compared = f"of {check.num_slots:,} receipts that the DHT holds at {check.num_keys} keys drawn at random"
    if verdict.is_used:
        lacking = f"it lacks {check.num_missing}" if check.num_missing else "it lacks none"
        return f"{whose} is used: {compared} {lacking}."
    if not verdict.is_false:
        return (
            f"{whose} is not used: the DHT holds too little at {check.num_keys} keys drawn at random to say whether it "
            "is whole."
        )
    return (
        f"{whose} is false and is not used: {compared} it lacks {check.num_missing:,}. Its publisher leaves them out, "
        "or they were dated back and published late."
    )


def plan_in_words(beginning: Beginning) -> str:
    """Say what is read from the DHT itself."""
    peers, epochs = len(beginning.providers), len(beginning.rest)
    return (
        f"Reading from the DHT what {counted(peers, 'peer')} did in {counted(epochs, 'epoch')} "
        f"({counted(peers * epochs, 'key')}); every signature is checked."
    )


def contradiction_in_words(peer_id: str) -> str:
    """Say that a peer has been caught."""
    return f"{peer_id} has signed receipts that contradict each other; the proof was published."


def nothing_found(period_s: float) -> str:
    """Say why nothing may be there.

    Args:
        period_s: After how many seconds a receipt is published at the latest.
    """
    return (
        "No receipts: nothing that was asked for stands on the DHT of this swarm. Servers publish some seconds after "
        f"an answer has ended, and at least every {max(1, round(period_s)):,} s while they work."
    )
