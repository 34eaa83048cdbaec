"""Put a donor's statement into plain words, or into one JSON object. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dht.receipts.reservation_table import UnsignedEnd
from dht.receipts.totals import Totals
from node.run.key_care import KeyCare, in_sentences
from node.run.receipt_forms import Names, model_name
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
    key: KeyCare
    names: Names


def as_json(statement: Statement) -> dict[str, Any]:
    """Return one object; times in unix seconds, sizes in bytes."""
    care = statement.key
    return {
        "own": list(statement.own),
        "since": statement.since_s,
        "given": _side_as_json(statement.given, statement.names),
        "taken": _side_as_json(statement.taken, statement.names),
        "unsigned": [_end_as_json(end, statement.names) for end in statement.unsigned],
        "key": {
            "path": str(care.path),
            "peer_id": care.peer_id,
            "mode": None if care.mode is None else f"{care.mode:04o}",
            "private": care.is_private,
            "exported": care.exported,
            "safe": care.is_safe,
            "trouble": care.trouble,
        },
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
        "",
        *_side_in_lines("You gave", "to", statement.given, statement.names),
        *_side_in_lines("You took", "from", statement.taken, statement.names),
        *_ends_in_lines(statement.unsigned, statement.names),
        "",
        *in_sentences(statement.key),
    ]


def _side_in_lines(verb: str, preposition: str, side: Side, names: Names) -> list[str]:
    if not side.per_peer:
        return [f"{verb} nothing.", ""]
    rows = [(f"{preposition} {peer}", total) for peer, total in side.per_peer]
    rows += [(f"with {model_name(manifest, names)}", total) for manifest, total in side.per_model]
    return [f"{verb} {amounts(side.total)}.", *(f"  {name}: {amounts(total)}" for name, total in rows), ""]


def _ends_in_lines(ends: Sequence[UnsignedEnd], names: Names) -> list[str]:
    if not ends:
        return ["Everybody has signed."]
    return ["Not signed:", *(f"  {_end_in_words(end, names)}" for end in ends)]


def _end_in_words(end: UnsignedEnd, names: Names) -> str:
    what = "that it computed for you" if end.peer_provides else "that you computed for it"
    model = model_name(end.manifest, names)
    return f"{in_words(end.t)} {end.peer}: {counted(end.amount, 'token')} {what}, with {model}"


def amounts(total: Totals) -> str:
    """Say sums in words: "1,024 block-tokens (256 tokens) in 2 sessions, 1.0 MiB in, 2.0 MiB out"."""
    parts = []
    if total.tokens or not total.relayed_kib:
        prompt = f", {total.prefill_tokens:,} of them prompt" if total.prefill_tokens else ""
        parts.append(f"{counted(total.block_tokens, 'block-token')} ({counted(total.tokens, 'token')}{prompt})")
    if total.relayed_kib:
        parts.append(f"{size(total.relayed_kib * 1024)} of weights")
    moved = f"{size(total.bytes_in)} in, {size(total.bytes_out)} out"
    return f"{' and '.join(parts)} in {counted(total.sessions, 'session')}, {moved}"


def counted(number: int, noun: str) -> str:
    """Write "1 token", "2,048 tokens"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(num_bytes: int) -> str:
    """Write a size with the unit that makes it shortest."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"
