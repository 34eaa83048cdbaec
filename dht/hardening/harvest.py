"""Read what members hold under many keys in few calls: digests of all, and each dictionary that differs once.

    every member that should hold some of the keys ──> digests, 64 keys a call
    for each key one of those that hold the same   ──> its records, several keys a call
    again, until nobody claims to hold what has not been read

Members that hold the same need not all be read, but a digest counts as read only when a member has given valid records
that have it: who claims a digest and gives something else is passed by, and the next one who claims it is asked. Who
wastes much time so is not asked again for as long as the reading lasts; who is slow is asked last.
This file does not know who should hold a key, nor what records mean. It runs on the event loop.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from dht.hardening.findings import Findings
from dht.hardening.protocol import MAX_KEYS_PER_CALL, AdmittedProtocol
from dht.hardening.storage import digest_of
from dht.hardening.turns import in_turns

MAX_PEERS = 8
"""Members that are asked at once."""

KEYS_PER_READ = 16
"""Keys whose records one call asks for; what does not fit into its answer is asked for alone."""

READ_S = 30.0
"""Seconds that one member may take each time; what it has not given by then others may."""

WASTED_S = 30.0
"""Seconds of one whole reading that one member may waste, with calls that bear out nothing that it claimed."""

SLOW_S = 1.0
"""Seconds of a call after which a member counts as slow, until it answers sooner."""

Claims = dict[DHTID, dict[PeerID, bytes]]
"""For each key what members say of it: digests that have not been read."""


@dataclass(slots=True)
class Conduct:
    """How members have answered in one whole reading, which may take many harvests."""

    slow: set[PeerID] = field(default_factory=set)
    wasted_s: dict[PeerID, float] = field(default_factory=dict)  # seconds

    def note(self, peer: PeerID, took_s: float, num_asked: int, num_true: int) -> None:
        """Take in a call: how many keys were asked for, and for how many of them it bore out what was claimed."""
        (self.slow.add if took_s > SLOW_S else self.slow.discard)(peer)
        if num_asked:
            wasted_s = took_s * (num_asked - num_true) / num_asked
            self.wasted_s[peer] = self.wasted_s.get(peer, 0.0) + wasted_s

    def is_left(self, peer: PeerID) -> bool:
        """Say whether a member is asked for nothing more."""
        return self.wasted_s.get(peer, 0.0) >= WASTED_S


async def harvest(
    protocol: AdmittedProtocol,
    holders: Mapping[DHTID, Sequence[PeerID]],
    findings: Mapping[DHTID, Findings],
    conduct: Conduct,
) -> None:
    """Take in what members hold under many keys.

    Args:
        protocol: Asks them.
        holders: For each key the members that should hold its records.
        findings: For each key, what takes them in; what stands there is not read again.
        conduct: Of the members in this reading; noted here.
    """
    claims = await _claims(protocol, holders, conduct)
    for key, claimed in claims.items():
        settle(claimed, digest_of(findings[key].records()))

    async def read(peer: PeerID) -> None:
        try:
            async with asyncio.timeout(READ_S):
                await _read(protocol, peer, plan[peer], claims, findings, conduct)
        except TimeoutError:
            for claimed in claims.values():
                claimed.pop(peer, None)

    while plan := share_out(claims, conduct.slow):
        await in_turns(read, plan, MAX_PEERS)


def share_out(claims: Claims, slow: Set[PeerID] = frozenset()) -> dict[PeerID, list[DHTID]]:
    """Choose whom to ask next for each key of which something has not been read: whoever has least to do.

    Who is slow comes last: what it claims may have been read from another by then.
    """
    plan: dict[PeerID, list[DHTID]] = {}
    for key, claimed in claims.items():
        if claimed:
            peer = min(claimed, key=lambda each: (each in slow, len(plan.get(each, ()))))
            plan.setdefault(peer, []).append(key)
    return plan


def settle(claimed: dict[PeerID, bytes], digest: bytes) -> None:
    """Take a digest for read, whoever claims it."""
    for peer in [peer for peer, each in claimed.items() if each == digest]:
        del claimed[peer]


async def _claims(protocol: AdmittedProtocol, holders: Mapping[DHTID, Sequence[PeerID]], conduct: Conduct) -> Claims:
    claims: Claims = {key: {} for key in holders}
    by_peer: dict[PeerID, list[DHTID]] = {}
    for key, peers in holders.items():
        for peer in peers:
            if peer != protocol.p2p.peer_id and not conduct.is_left(peer):
                by_peer.setdefault(peer, []).append(key)

    async def ask(peer: PeerID) -> None:
        for start in range(0, len(by_peer[peer]), MAX_KEYS_PER_CALL):
            answer = await protocol.call_held(peer, by_peer[peer][start : start + MAX_KEYS_PER_CALL])
            if answer is None:
                return
            for key, (digest, _) in answer.items():
                if digest:
                    claims[key][peer] = digest

    await in_turns(ask, by_peer, MAX_PEERS)
    return claims


async def _read(
    protocol: AdmittedProtocol,
    peer: PeerID,
    keys: Sequence[DHTID],
    claims: Claims,
    findings: Mapping[DHTID, Findings],
    conduct: Conduct,
) -> None:
    """Read from one member; whatever comes of it, it is not asked for these keys again."""
    claimed = {key: claims[key].pop(peer) for key in keys}
    parts = [keys[start : start + KEYS_PER_READ] for start in range(0, len(keys), KEYS_PER_READ)]
    while parts and not conduct.is_left(peer):
        part = parts.pop()
        began_s, num_asked, num_true = time.monotonic(), len(part), 0
        try:
            answer = await protocol.call_find(peer, part, {key: findings[key] for key in part})
            if answer is None:
                return
            has_given = any(records for records, _ in answer.values())  # else it was not too long for the others
            for key, (records, _) in answer.items():
                if not records and has_given:
                    parts.append([key])
                    num_asked -= 1
                elif digest_of(records) == claimed[key]:
                    settle(claims[key], claimed[key])
                    num_true += 1
        finally:
            conduct.note(peer, time.monotonic() - began_s, num_asked, num_true)
