"""Sizes and rates of the simulated swarm. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """One swarm; time goes in epochs, work in requests, and a request is one unit of credit."""

    num_nodes: int = 200  # honest and not, from the beginning
    num_ranges: int = 8  # block ranges; each node holds one
    num_epochs: int = 80
    requests: int = 30  # of each node in an epoch
    session: int = 3  # requests that follow each other go to one server
    num_anchors: int = 5  # of the honest nodes
    num_bad_anchors: int = 0  # of these, how many are with the liars
    num_newcomers: int = 10  # honest nodes that come later
    newcomers_epoch: int = 30  # when
    malicious: float = 0.3  # share of the nodes that lie
    malicious_epoch: int = 0  # when they come
    audit_rate: float = 0.02  # of the requests of honest clients
    canaries: int = 1  # sessions of each honest node besides, all of which is audited, in an epoch
    canary_requests: int = 3  # in each: as many as in any session
    anchors_verify: bool = False  # canaries are of anchors alone, through all ranges, and other audits accuse nobody
    fresh_audit_rate: float | None = None  # of requests to a server that serves since a short time; None: as of others
    fresh_epochs: int = 8  # what is a short time
    power: float = 0.98  # an audit finds a bad output
    false_positives: float = 1e-3  # an audit fails a good one
    juror_error: float = 0.01  # an honest juror is wrong
    cannot_tell: float = 0.0  # an honest juror above the first level has no weights
    away: float = 0.0  # an honest node says nothing in a trial, be it accused, accuser or juror
    num_defenders: int = 5  # anchors that have the weights, and deny for an accused that is away
    shadow_rate: float = 0.05  # of the requests of a range are given to a newcomer too
    min_established: int = 3  # with fewer, newcomers of a range serve
    new_anchors_epoch: int | None = None  # when users replace the anchors by five honest nodes; None: never


UNIT = 4096
"""Block-tokens of a request."""

LAST = 10
"""Figures are of the last so many epochs."""
