"""Say which identities belong to one owner: whoever is affiliated with one that is, whichever way. Pure.

server A ── client X       A, X and B are one owner's
server B ── client X
"""

from collections.abc import Iterable

from dht.reputation.evidence import Affiliated


def owners_of(affiliations: Iterable[Affiliated]) -> dict[str, str]:
    """Return the owner of every identity that is affiliated with another, named by the first of its identities."""
    owners: dict[str, str] = {}

    def owner_of(peer: str) -> str:
        while (above := owners.setdefault(peer, peer)) != peer:
            owners[peer] = owners[above]  # The next one that asks has half the way.
            peer = above
        return peer

    for owner, member in affiliations:
        first, last = sorted((owner_of(owner), owner_of(member)))
        owners[last] = first
    return {peer: owner_of(peer) for peer in list(owners)}
