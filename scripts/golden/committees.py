"""The integers behind a draw of a committee: logarithms, and ranks of peers."""

from __future__ import annotations

import hashlib
from typing import Any

from dht.identity import peer_id_to_bytes
from dht.judgement.committee import minus_log2, rank_of, seed_of
from golden.records import ALICE, BOB, CAROL, CLAIM, DAVE


def all_committees() -> dict[str, Any]:
    """Return the file's content; numbers beyond 53 bits are text."""
    hashes = [int.from_bytes(hashlib.sha256(b"golden draw %d" % each).digest()[:8], "big") + 1 for each in range(16)]
    numbers = [1, 2, 3, 5, 2**32 - 1, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, *hashes]
    return {
        "about": "See docs/trust.md, Who judges. The seeds are those of the claim in records.json, for levels 1 and 2.",
        "minus_log2": [[str(number), str(minus_log2(number))] for number in numbers],
        "ranks": [
            {
                "seed": seed_of(CLAIM, level).hex(),
                "level": level,
                "peer": peer.peer_id,
                "credibility": str(credibility),
                "rank": str(rank_of(seed_of(CLAIM, level), peer_id_to_bytes(peer.peer_id), credibility)),
            }
            for level in (1, 2)
            for peer in (ALICE, BOB, CAROL, DAVE)
            for credibility in (1, 2**39 + 12_345, 2**40)
        ],
    }
