"""A swarm's evidence of any size, drawn at random. Pure."""

import random

from dht.reputation import Conviction, Evidence, Pass, Rejection, Work

EPOCH = 1000
"""Scores are computed as of its end."""

NUM_ANCHORS = 9


def evidence_of_swarm(num_peers: int, num_works: int, seed: int) -> tuple[Evidence, tuple[str, ...]]:
    """Draw receipts of the last 56 epochs between random pairs, five audits a peer, and some convictions and claims.

    Returns:
        The evidence and the anchors.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    peers = [f"peer {number:04}" for number in range(num_peers)]

    def pair() -> tuple[str, str]:
        one, other = rng.sample(peers, 2)
        return one, other

    def epoch() -> int:
        return EPOCH - rng.randrange(56)

    evidence = Evidence(
        works=tuple(Work(*pair(), epoch(), rng.randrange(1, 200_000)) for _ in range(num_works)),
        passes=tuple(Pass(*pair(), epoch()) for _ in range(5 * num_peers)),
        convictions=tuple(Conviction(rng.choice(peers), epoch()) for _ in range(num_peers // 10)),
        rejections=tuple(Rejection(rng.choice(peers), epoch()) for _ in range(num_peers // 20)),
    )
    return evidence, tuple(peers[:NUM_ANCHORS])
