"""Says what came of audits: an event for each, and a sentence for people where a server has failed one."""

from __future__ import annotations

from node.client.audit_book import AuditResult, Outcome
from node.run.events import Reporter


def audited_fields(result: AuditResult) -> dict[str, object]:
    """Return the fields of the event ``audited``."""
    return {
        "peer_id": result.peer_id,
        "outcome": result.outcome.value,
        "why": result.why,
        "owner": result.owner or None,
        "session": result.session.hex(),
        "segment": result.segment,
        "chunk": result.index,
        "shadow": result.is_shadow,
    }


class AuditTeller:
    """Tells of audits; called in the client's loop thread."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def __call__(self, result: AuditResult) -> None:
        """Say it."""
        self._reporter.event("audited", audited_fields(result))
        if result.outcome is Outcome.FAIL:
            doubt = "It had no part in any answer." if result.is_shadow else "Do not trust this answer; ask again."
            self._reporter.say(
                f"The server {result.owner} has failed an audit ({result.why}) and is not used any more. {doubt}"
            )
