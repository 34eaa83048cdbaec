"""What an honest server of the declared kind makes of the same inputs: a control, before a chunk is called false.

Inputs may be anybody's making. Blocks add to what comes in, and norm it before they look at it: of hidden states that
are a hundred times larger than a text's, the increments are as small as ever, and what bfloat16 rounds away of the
sum is larger than they are. So an honest server fails there, too, and only the inputs are to blame. Whoever is to be
called false is compared with what the same weights give in the dtype that they are declared in, in steps.

    fails ── control passes ──> it fails            ── control does not ──> nobody can tell

Loads and computes like a check. Runs in the compute thread, or in ``asyncio.to_thread``.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from node.check.check import Piece, Work, bytes_needed, check_sizes, read_pieces
from node.check.honest import servers_of
from node.check.patience import look
from node.errors import CannotCheck
from node.model.checkpoint import Checkpoint
from node.model.tensors import to_payload

NOBODY_COULD = "of these inputs an honest server makes as little"

STEP = 48
"""Positions of a step: servers do not compute all at once, and in float32 nothing else differs on one machine."""


def control_of(checkpoint: Checkpoint, held_in: str, start: int, end: int, work: Work, *, max_bytes: int) -> Work:
    """Return ``work`` with the outputs that an honest server would have given.

    Args:
        checkpoint: of the model.
        held_in: what the server declares that its weights are held in.
        start: first block.
        end: one past the last.
        work: what went in.
        max_bytes: memory to take beside the weights, at most.

    Raises:
        BadOpening: sizes, rows or positions of ``work`` do not fit together.
        CannotCheck: such a server cannot be built here, or it takes more memory than allowed.
        CancelledError: as ``node.check.patience.look``.
    """
    check_sizes(work)
    servers = servers_of(held_in, [torch.device("cpu")])
    if not servers:
        raise CannotCheck(f"Weights in {held_in} cannot be held here.")
    span = servers[-1].build(checkpoint, start, end)  # The last rounds most: eager attention, or bfloat16.
    if bytes_needed(span, work.rows, work.end, work.hidden_size) > max_bytes:
        raise CannotCheck(f"A control of {work.end} positions takes more memory than the {max_bytes:,} bytes allowed.")
    inputs = read_pieces(work.inputs, work, span.device).to(span.dtype)
    padding = torch.tensor(work.left_padding, device=span.device) if any(work.left_padding) else None
    cache = span.new_cache(work.end, work.rows)
    with span.looking(look):
        steps = [span.forward(step, cache, padding) for step in inputs.split(STEP, dim=1)]
    given = torch.cat(steps, dim=1)[:, work.first :]
    return replace(work, outputs=(Piece(to_payload(given, work.codec), given.shape[1]),))
