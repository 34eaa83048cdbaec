"""Put a donor's statement into plain words, or into one JSON object. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dht.receipts.receipt_rows import Finding
from dht.receipts.reservation_table import UnsignedEnd
from dht.receipts.totals import Totals
from node.run.damage_words import aside_in_words, lost_in_words
from node.run.key_care import KeyCare, in_sentences
from node.run.receipt_forms import Names, amounts, amounts_alone, counted, model_name, size
from node.run.since import in_words


@dataclass(frozen=True, slots=True)
class Side:
    """What was given, or what was taken."""

    total: Totals
    per_peer: tuple[tuple[str, Totals], ...]  # by peer id, most work first
    per_model: tuple[tuple[bytes, Totals], ...]  # by manifest, most work first


@dataclass(frozen=True, slots=True)
class Statement:
    """What a donor asks: what did I give, what did I take, who has not signed, is my key safe."""

    own: tuple[str, ...]  # peer ids whose receipts are counted
    since_s: int  # unix seconds; 0: from the beginning
    given: Side
    taken: Side
    unsigned: tuple[UnsignedEnd, ...]  # oldest first
    keys: tuple[KeyCare, ...]  # its server's and that of its clients, those that there are
    names: Names
    lost: tuple[Finding, ...] = ()  # rows of the ledger that are damaged, and that nothing stands for
    aside: tuple[Path, ...] = ()  # damaged ledgers that are kept beside the present one


def as_json(statement: Statement) -> dict[str, Any]:
    """Return one object; times in unix seconds, sizes in bytes."""
    return {
        "own": list(statement.own),
        "since": statement.since_s,
        "given": _side_as_json(statement.given, statement.names),
        "taken": _side_as_json(statement.taken, statement.names),
        "unsigned": [_end_as_json(end, statement.names) for end in statement.unsigned],
        "keys": [_key_as_json(care) for care in statement.keys],
        "set_aside": [{"row": finding.row, "reason": finding.reason} for finding in statement.lost],
        "damaged_ledgers": [str(path) for path in statement.aside],
    }


def _key_as_json(care: KeyCare) -> dict[str, Any]:
    return {
        "of": "clients" if care.is_of_client else "server",
        "path": str(care.path),
        "peer_id": care.peer_id,
        "mode": None if care.mode is None else f"{care.mode:04o}",
        "private": care.is_private,
        "exported": care.exported,
        "safe": care.is_safe,
        "advice": "" if care.safety is None else care.safety.advice(care.path),
        "trouble": care.trouble,
    }


def _side_as_json(side: Side, names: Names) -> dict[str, Any]:
    per_model = [
        {"model": model_name(manifest, names), "manifest": manifest.hex(), **asdict(total)}
        for manifest, total in side.per_model
    ]
    per_peer = [{"peer_id": peer, **asdict(total)} for peer, total in side.per_peer]
    return {**asdict(side.total), "peers": per_peer, "models": per_model}


def _end_as_json(end: UnsignedEnd, names: Names) -> dict[str, Any]:
    return {
        "peer_id": end.peer,
        "peer_role": "provider" if end.peer_provides else "consumer",
        "tokens": end.amount,
        "t": end.t,
        "model": model_name(end.manifest, names),
    }


def as_lines(statement: Statement) -> list[str]:
    """Answer in sentences, with a line for each peer and model."""
    since = f"since {in_words(statement.since_s, '%Y-%m-%d %H:%M')} UTC" if statement.since_s else "from the beginning"
    return [
        f"Statement of this node, {since}: what both sides have signed for.",
        "A block-token is one token through one block.",
        "",
        *_given_in_lines(statement.given, statement.names),
        "",
        *_taken_in_lines(statement.taken, statement.names),
        "",
        *_ends_in_lines(statement),
        "",
        *_damage_in_lines(statement),
        *(sentence for care in statement.keys for sentence in in_sentences(care)),
    ]


def _damage_in_lines(statement: Statement) -> list[str]:
    lines = [*lost_in_words(statement.lost), *aside_in_words(statement.aside)]
    return [*lines, ""] if lines else []


def _given_in_lines(side: Side, names: Names) -> list[str]:
    if not side.per_peer:
        return ["You gave nothing."]
    moved = f"{size(side.total.bytes_in)} came in, {size(side.total.bytes_out)} went out"
    return [
        f"You gave {amounts(side.total)}; {moved}.",
        *(f"  to {peer}: {amounts(total)}" for peer, total in side.per_peer),
        *(f"  with {model_name(manifest, names)}: {amounts(total)}" for manifest, total in side.per_model),
    ]


def _taken_in_lines(side: Side, names: Names) -> list[str]:
    """Tokens are said of single peers only: one token of an answer goes through several of them."""
    if not side.per_peer:
        return ["You took nothing."]
    return [
        f"You took {amounts_alone(side.total)} from {counted(len(side.per_peer), 'peer')}.",
        *(f"  from {peer}: {amounts(total)}" for peer, total in side.per_peer),
        *(f"  with {model_name(manifest, names)}: {amounts_alone(total)}" for manifest, total in side.per_model),
    ]


def _ends_in_lines(statement: Statement) -> list[str]:
    if not statement.unsigned:
        has_dealt = statement.given.per_peer or statement.taken.per_peer
        return ["Everybody has signed." if has_dealt else "Nobody has had anything to sign."]
    groups: dict[tuple[str, bool], list[UnsignedEnd]] = {}
    for end in statement.unsigned:
        groups.setdefault((end.peer, end.peer_provides), []).append(end)
    most_first = sorted(groups.values(), key=lambda ends: (-sum(end.amount for end in ends), ends[0].peer))
    return ["Not signed:", *(f"  {_ends_in_words(ends, statement.names)}" for ends in most_first)]


def _ends_in_words(ends: Sequence[UnsignedEnd], names: Names) -> str:
    """Say of one peer, in one role, how much it has not signed for."""
    what = "that it computed for you" if ends[0].peer_provides else "that you computed for it"
    models = ", ".join(dict.fromkeys(model_name(end.manifest, names) for end in ends))
    tokens = counted(sum(end.amount for end in ends), "token")
    sessions = counted(len(ends), "session")
    return f"{ends[0].peer}: {tokens} {what} in {sessions}, the last at {in_words(ends[-1].t)} UTC, with {models}"
