"""The audits of one session, as its chain knows them: what is planned, and what the auditor has to know. No I/O.

Runs in the client's event loop.
"""

from __future__ import annotations

import os
import time

from node.client.audit_draw import SECRET_BYTES, Draw
from node.client.audit_plan import AuditPlan
from node.client.auditor import AuditedSession, AuditedStage, Auditor
from node.client.contract import SessionContract
from node.client.stage_link import SessionShape, StageLink
from node.step_log import StepLog


class SessionAudits:
    """What one session's chain tells its audits.

    Args:
        auditor: carries them out.
        contract: finds what is due.
        session: its id.
        shape: what every stage was told.
    """

    def __init__(self, auditor: Auditor, contract: SessionContract, session: bytes, shape: SessionShape) -> None:
        self._auditor = auditor
        self._contract = contract
        self._facts = AuditedSession(
            session=session,
            manifest=shape.manifest,
            codec=shape.codec,
            hidden_size=shape.hidden_size,
            left_padding=shape.left_padding,
            thin=shape.thin,
            is_whole=contract.is_whole,
        )

    def opened(self, links: list[StageLink]) -> None:
        """Note stages that are open."""
        for link in links:
            if link.deal is not None:
                self._facts.stages[link.stage.peer_id] = AuditedStage(link.stage, link.dtype, link.deal, link.agreement)

    def begun(self, log: StepLog) -> None:
        """Note where what is sent to the first stage is kept."""
        self._facts.log = log

    def lost(self, peer_id: str) -> None:
        """Note that a stage has no part in the session any more."""
        self._facts.lost.add(peer_id)

    def signed(self) -> None:
        """Have carried out what is due after a stage has been signed for."""
        if found := self._contract.take_found():
            self._auditor.begin(found, self._facts)

    def ended(self) -> None:
        """Note that the session ends."""
        if self._facts.ended_s is None:
            self._facts.ended_s = time.monotonic()


def plan_audits(auditor: Auditor | None, session: bytes, peers: list[str]) -> AuditPlan | None:
    """Draw what will be audited of a session, before it begins; None: nothing is."""
    if auditor is None or not (auditor.per_mille or auditor.wholly):
        return None
    draw = Draw(os.urandom(SECRET_BYTES), auditor.per_mille, auditor.wholly, auditor.is_watched)
    return AuditPlan(session, draw, peers)
