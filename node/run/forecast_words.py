"""A forecast as JSON and as lines for people; docs/commands.md lists the fields. Pure.

Figures are rounded to two digits, because they are worth no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from node.run.join_forecast import JoinForecast, StageForecast
from node.run.serve_plan import Weights
from node.serve.forecast import Factor, Fit, Machine, Rate, Term, Weakest
from node.serve.placement import MIB

_MENDS = {
    Factor.COMPUTE: "a faster processor, or fewer and larger machines: part of it is paid for every block and step",
    Factor.MEMORY: "weights of fewer bytes (--dtype bfloat16; --quantize int4 on a CPU), or another server for some of "
    "these blocks",
    Factor.ROUND_TRIP: "servers nearer to each other, or fewer stages: more blocks on each machine",
    Factor.SERVER: "a faster server for that stage's blocks",
    Factor.CLIENT: "a client without weights (--thin), whose head the last server computes",
}


@dataclass(frozen=True)
class FitRow:
    """One way to hold the weights, and whether that fits."""

    quantize: str | None
    """None: as ``--dtype`` has them."""
    chosen: bool
    """Whether it is the way that was asked for."""
    weights: Weights | None
    """None: the weights cannot be held so."""
    fit: Fit | None
    note: str
    """Why not, or what else is in the way; empty where nothing is."""


# -------------------------------------------------------------------------------------------------------------- JSON


def fit_as_json(row: FitRow) -> dict[str, Any]:
    """Return one row of ``fit``."""
    document: dict[str, Any] = {"quantize": row.quantize, "chosen": row.chosen, "fits": False, "note": row.note}
    if row.weights is None or row.fit is None:
        return document
    fit, plan = row.fit, row.fit.plan
    return document | {
        "fits": plan is not None,
        "weights": row.weights.held_in,
        "computes_in": str(row.weights.dtype).removeprefix("torch."),
        "num_blocks": fit.num_blocks,
        "block_mib": _mib(max(row.weights.block_bytes)),
        "needed_mib": _mib(fit.needed_bytes),
        "free_mib": _mib(fit.free_bytes),
        "missing_mib": _mib(fit.missing_bytes),
        "cache_mib": _mib(plan.cache_bytes) if plan else None,
    }


def forecast_as_json(forecast: JoinForecast) -> dict[str, Any]:
    """Return ``forecast``."""
    machine = forecast.machine
    return {
        "blocks": _range(forecast.span),
        "read_mib": _mib(forecast.read_bytes),
        "machine": {
            "memory_bytes_per_s": _rough(machine.bytes_per_s),
            "flops_per_s": _rough(machine.flops_per_s),
            "block_overhead_ms": _ms(machine.block_overhead_s),
            "step_overhead_ms": _ms(machine.step_overhead_s),
        },
        "span": _rate_as_json(forecast.own),
        "swarm": {
            "servers": forecast.num_servers,
            "joining": forecast.num_joining,
            "missing": [list(gap) for gap in forecast.missing],
            "missing_with_you": [list(gap) for gap in forecast.still_missing],
            "more_machines": forecast.more_machines,
            "weakest": _weakest_as_json(forecast.weakest),
            "weakest_with_you": _weakest_as_json(forecast.weakest_with),
        },
        "today": _rate_as_json(forecast.today) if forecast.today else None,
        "with_you": _rate_as_json(forecast.generation) if forecast.generation else None,
        "stages": [_stage_as_json(stage) for stage in forecast.stages],
    }


def _rate_as_json(rate: Rate) -> dict[str, Any]:
    return {
        "tokens_per_s": _rough(rate.tokens_per_s),
        "limit": rate.limit.factor.value,
        "limit_peer": rate.limit.who or None,
        "tokens_per_s_without_limit": _rough(rate.tokens_per_s_without_limit),
        "terms_ms": [
            {"factor": term.factor.value, "peer_id": term.who or None, "ms": _ms(term.seconds)} for term in rate.terms
        ],
    }


def _weakest_as_json(weak: Weakest) -> dict[str, Any]:
    return {"blocks": _range((weak.start, weak.end)), "tokens_per_s": _rough(weak.tokens_per_s)}


def _stage_as_json(stage: StageForecast) -> dict[str, Any]:
    return {
        "peer_id": stage.peer_id,
        "blocks": _range((stage.start, stage.end)),
        "ms": _ms(stage.seconds),
        "round_trip_ms": _ms(stage.round_trip_s) if stage.round_trip_s is not None else None,
    }


# ------------------------------------------------------------------------------------------------------------- people


def fit_in_words(row: FitRow) -> str:
    """Return one row for people."""
    chosen = " (chosen)" if row.chosen else ""
    note = f"; {row.note}" if row.note else ""
    if row.weights is None or row.fit is None:
        return f"{row.quantize}{chosen}: {row.note}"
    if row.fit.plan is not None:
        return f"{row.weights.held_in}{chosen}: {row.fit.plan}{note}"
    return f"{row.weights.held_in}{chosen}: does not fit: {shortage(row.fit)}{note}"


def shortage(fit: Fit) -> str:
    """Return in words what is too little."""
    return (
        f"{_blocks(fit.num_blocks)} with working memory and room for sessions take {fit.needed_bytes / MIB:.1f} MiB, "
        f"{fit.free_bytes / MIB:.1f} MiB are free, {fit.missing_bytes / MIB:.1f} MiB are missing"
    )


def does_not_fit(rows: Sequence[FitRow]) -> str:
    """Return the sentence that refuses what was chosen, with what would fit instead."""
    fit = next(row.fit for row in rows if row.chosen)
    assert fit is not None
    others = [
        f"--quantize {row.quantize} would hold {_blocks(row.fit.num_blocks)}"
        for row in rows
        if row.quantize and not row.chosen and row.fit is not None and row.fit.plan is not None
    ]
    mend = f"{' and '.join(others)}; or" if others else ""
    mend = f"{mend} take fewer blocks, a smaller --dtype, or raise --max-memory".strip()
    return f"This does not fit here: {shortage(fit)}: {mend}."


def forecast_in_words(forecast: JoinForecast, num_blocks: int) -> list[tuple[str, str]]:
    """Return names and sentences."""
    lines = [
        ("this machine", _machine_in_words(forecast.machine)),
        ("would take", _span_in_words(forecast, num_blocks)),
        ("swarm", _swarm_in_words(forecast)),
    ]
    if forecast.generation is None:
        return lines
    return [*lines, ("with this machine", _generation_in_words(forecast)), ("helps most", _mend(forecast))]


def _machine_in_words(machine: Machine) -> str:
    return (
        f"reads about {_said(machine.bytes_per_s / 1e9)} GB of weights a second, multiplies at about "
        f"{_said(machine.flops_per_s / 1e9)} GFLOP/s; besides, about {_said(1000 * machine.block_overhead_s)} ms for "
        f"every block and {_said(1000 * machine.step_overhead_s)} ms for every step"
    )


def _span_in_words(forecast: JoinForecast, num_blocks: int) -> str:
    own = forecast.own
    return (
        f"blocks {_range(forecast.span)} of {num_blocks}, {forecast.read_bytes / MIB:.0f} MiB to read or download; "
        f"about {_said(own.tokens_per_s)} tokens/s through them; the limit there is {own.limit.factor.value}"
    )


def _swarm_in_words(forecast: JoinForecast) -> str:
    servers = "1 server is" if forecast.num_servers == 1 else f"{forecast.num_servers} servers are"
    loading = f", {forecast.num_joining} still loading" if forecast.num_joining else ""
    if forecast.missing:
        state = f"no server for blocks {ranges(forecast.missing)}, so nobody can generate"
    else:
        weak = forecast.weakest
        state = (
            f"every block has one; weakest are blocks {_range((weak.start, weak.end))}, for about "
            f"{_said(weak.tokens_per_s)} tokens/s of all sessions"
        )
    return f"{servers} online{loading}; {state}"


def _generation_in_words(forecast: JoinForecast) -> str:
    assert forecast.generation is not None
    rate, weak = forecast.generation, forecast.weakest_with
    terms = ", ".join(f"{_named(term)} {_said(1000 * term.seconds)} ms" for term in rate.terms)
    unmeasured = forecast.num_unmeasured
    guessed = f"; {unmeasured} round trips are guessed, because those servers gave none" if unmeasured else ""
    return (
        f"about {_said(rate.tokens_per_s)} tokens/s for one session asked from here and led through it"
        f"{_today_in_words(forecast)}; the limit is {_named(rate.limit)} ({terms}){guessed}; the weakest blocks, "
        f"{_range((weak.start, weak.end))}, then take about {_said(weak.tokens_per_s)} tokens/s of all sessions"
    )


def _today_in_words(forecast: JoinForecast) -> str:
    assert forecast.generation is not None
    if forecast.today is None:
        return ""
    today = f"without it about {_said(forecast.today.tokens_per_s)}"
    if forecast.today.tokens_per_s <= forecast.generation.tokens_per_s:
        return f" ({today})"
    return f" ({today}: it would carry sessions that others cannot, and stand in for them, not make one faster)"


def _mend(forecast: JoinForecast) -> str:
    assert forecast.generation is not None
    rate = forecast.generation
    least = f"without any {rate.limit.factor.value}" if not rate.limit.who else "if that server took no time"
    return f"{_MENDS[rate.limit.factor]} ({least} at most about {_said(rate.tokens_per_s_without_limit)} tokens/s)"


def blocks_still_missing(forecast: JoinForecast) -> str:
    """Return the sentence that refuses a swarm which this machine alone does not complete."""
    more = forecast.more_machines
    machines = "1 more machine" if more == 1 else f"{more} more machines"
    return (
        f"With this machine the blocks {ranges(forecast.still_missing)} would still have no server: {machines} of "
        f"{_blocks(forecast.span[1] - forecast.span[0])} would close the gap; until then nobody can generate."
    )


def ranges(gaps: Sequence[tuple[int, int]]) -> str:
    """Return ranges of blocks as people write them."""
    return ", ".join(_range(gap) for gap in gaps)


def _blocks(count: int) -> str:
    return "1 block" if count == 1 else f"{count} blocks"


def _range(blocks: tuple[int, int]) -> str:
    return f"{blocks[0]}:{blocks[1]}"


def _named(term: Term) -> str:
    return f"{term.factor.value} {term.who}" if term.who else term.factor.value


def _said(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


def _mib(num_bytes: int) -> float:
    return round(num_bytes / MIB, 1)


def _ms(seconds: float) -> float | None:
    return _rough(1000 * seconds)


def _rough(value: float) -> float | None:
    """Return two digits of a figure; None for one that is no number, which JSON does not know."""
    if not math.isfinite(value):
        return None
    return float(f"{value:.2g}")
