"""Evidence goes from whoever has made a claim to members that ask for it by its sha256, as ``node.handout`` has it.

Members who have to judge the claim have places of their own, so that strangers cannot keep them from it by reading. The
reader knows from the claim how much must come. Runs in the event loop.
"""

from __future__ import annotations

from dht.claim import Claim
from dht.swarm import Swarm
from node.errors import FalseBytes, FalseEvidence
from node.handout import fetch_bytes

EVIDENCE_PROTOCOL = "/efedllm/evidence/1"


async def fetch_evidence(swarm: Swarm, claim: Claim) -> bytes:
    """Have the evidence of a claim from its author.

    Raises:
        PeerUnreachable: it does not answer, has no time, or does not have it.
        FalseEvidence: what it sends is not what the claim names.
        DhtError: as for ``Swarm.dial``.
    """
    try:
        return await fetch_bytes(swarm, claim.accuser, EVIDENCE_PROTOCOL, claim.evidence, claim.evidence_bytes)
    except FalseBytes as error:
        raise FalseEvidence(f"Its author does not hand out what the claim names: {error}") from None
