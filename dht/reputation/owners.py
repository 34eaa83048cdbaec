"""Say which identities belong to one owner: an identity, and those that it and they have both signed to be its. Pure.

server A ── client X, server B     A, X and B are one owner's
C ── client Y, D ── client Y       Y named two: it belongs to neither
A ── server B ── client Z          B is A's, so it has nobody of its own: A has not agreed to Z
"""

from collections.abc import Iterable

from dht.reputation.evidence import Affiliated


def owners_of(affiliations: Iterable[Affiliated]) -> dict[str, str]:
    """Return the owner of every identity that belongs to one, and of the owners themselves."""
    named: dict[str, set[str]] = {}
    for owner, member in affiliations:
        if owner != member:
            named.setdefault(member, set()).add(owner)
    owners = {}
    for member, its in named.items():
        owner = next(iter(its))
        if len(its) == 1 and owner not in named:
            owners[member] = owners[owner] = owner
    return owners
