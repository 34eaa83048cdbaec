"""What ``efedllm serve`` was asked for, and what it loads: weights, ends, the handler for them.

Cheap checks come first, so that whatever is wrong is said before anything is hashed or downloaded. Runs in threads of
the event loop's executor; it knows no socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dht.parameters import JoinCode
from node.engine import Engine
from node.errors import DoesNotFit, UnsupportedFamily
from node.model.checkpoint import Checkpoint
from node.model.ends import Ends
from node.model.families import check_family, max_positions
from node.model.span import Span, build_quantised_span, build_span
from node.run.events import Reporter
from node.run.serve_plan import ServePlan, Wanted
from node.serve.admission import Served
from node.serve.contracts import Contracts
from node.serve.handler import Handler
from node.serve.hours import Hours
from node.serve.outlets import Dialer
from node.serve.precedence import Precedence
from node.serve.prefixes import PrefixStore
from node.serve.slots import PAGE

_PREFIX_SHARE = 8
"""One part in so many of the cache's memory remembers common beginnings of sessions."""


@dataclass(frozen=True)
class ServeOptions:
    """What ``efedllm serve`` was asked for."""

    model: str
    revision: str | None
    home: Path
    join: JoinCode
    wanted: Wanted
    """Which blocks, how they are held, and in how much memory."""
    max_sessions: int
    max_bytes_per_s: int | None
    """Bound for steps and outputs; None: as fast as the network is."""
    hours: Hours | None
    """When sessions are taken; None: always."""
    drain_timeout_s: float
    """How long sessions have to go elsewhere before the server leaves them."""
    balance_every_s: float
    """How often the server looks whether other blocks need it more; 0: it stays where it is."""
    share_prefixes: bool
    keeps_receipts: bool
    """Whether work is counted and signed for."""
    num_threads: int | None
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    exit_with_stdin: bool
    anchors: tuple[str, ...] = ()
    """Peer ids whose trust counts for this server; none: those of the swarm."""
    calibration: Path | None = None
    """By which claims about the model are examined; None: by what this package has for it, or the anchors name."""


def open_checkpoint(options: ServeOptions, progress: Any) -> Checkpoint:
    """Open the model; raises a UserError for one that cannot be served."""
    checkpoint = Checkpoint.open(options.model, revision=options.revision, home=options.home, progress=progress)
    check_family(checkpoint.config)
    return checkpoint


def load_span(plan: ServePlan, start: int, end: int) -> Span:
    """Load the blocks ``[start, end)``."""
    config, dtype, device = plan.checkpoint.config, plan.weights.dtype, plan.weights.device

    def tensors(first: int, last: int) -> dict[str, torch.Tensor]:
        return plan.checkpoint.load_span(first, last, dtype=dtype, device=device)

    if plan.weights.scheme is None:
        return build_span(config, tensors(start, end), start, end, dtype=dtype, device=device)
    return build_quantised_span(
        config,
        lambda block: tensors(block, block + 1),
        start,
        end,
        scheme=plan.weights.scheme,
        dtype=dtype,
        device=device,
    )


def load_ends(plan: ServePlan, span: tuple[int, int], reporter: Reporter) -> Ends | None:
    """Load embeddings and head as far as ``span`` touches them; None: not offered."""
    if plan.ends is None:
        return None
    try:
        return plan.ends.load(span)
    except UnsupportedFamily as error:
        reporter.say(f"Clients without weights are not served here: {error}")
        return None


def make_handler(
    plan: ServePlan,
    span: Span,
    ends: Ends | None,
    manifest: bytes,
    dial: Dialer,
    engine: Engine,
    options: ServeOptions,
    contracts: Contracts | None,
    precedence: Precedence | None = None,
) -> Handler:
    """Return the handler of a loaded span, with what memory is left divided among cache, log and prefixes."""
    spared = plan.memory.end_bytes - (ends.weight_bytes if ends else 0)
    cache_bytes = plan.memory.cache_bytes + max(0, spared)
    prefix_bytes = cache_bytes // _PREFIX_SHARE
    log_bytes = plan.checkpoint.config.hidden_size * span.dtype.itemsize  # what is handed on of a position, and kept
    num_positions = (cache_bytes - prefix_bytes) // (span.cache_bytes_per_position + log_bytes)
    if num_positions < PAGE:
        raise DoesNotFit("The weights fit but leave no memory for a session; take fewer blocks, or pass --no-ends.")
    served = Served(
        span=span,
        manifest=manifest,
        hidden_size=plan.checkpoint.config.hidden_size,
        weights=plan.weights.held_in,
        num_blocks=plan.checkpoint.num_blocks,
        ends=ends,
        max_sessions=options.max_sessions,
        max_bytes_per_s=options.max_bytes_per_s,
        max_positions=max_positions(plan.checkpoint.config),
        shares_prefixes=options.share_prefixes,
    )
    arena = span.new_arena(num_positions)
    return Handler(
        served, engine, dial, arena, PrefixStore(prefix_bytes), num_positions * log_bytes, contracts, precedence
    )


def name_of(dtype: torch.dtype) -> str:
    """Return torch's name of ``dtype`` without the library's."""
    return str(dtype).removeprefix("torch.")
