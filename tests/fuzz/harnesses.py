"""Everything that can be fuzzed, by name: each takes any bytes, and raises only where something is wrong."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tests.fuzz import agreements, answers, commitments, frames, peers, records

HARNESSES: Mapping[str, Callable[[bytes], None]] = MappingProxyType(
    {
        "codec": records.codec,
        "bodies": records.bodies,
        "envelopes": records.envelopes,
        "anything_validated": records.anything_validated,
        "exported": records.exported,
        "join_codes": records.join_codes,
        "dictionaries": answers.dictionaries,
        "calls": answers.calls,
        "frames": frames.frames,
        "streams": frames.streams,
        "sessions": frames.sessions,
        "messages": agreements.messages,
        "offers": agreements.offers,
        "dealings": agreements.dealings,
        "stages": commitments.stages,
        "reports": commitments.reports,
        "proofs": commitments.proofs,
        "evidence": commitments.evidence,
        "headers": commitments.headers,
        "served": peers.served,
    }
)
