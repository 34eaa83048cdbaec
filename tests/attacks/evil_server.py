"""Our own server changed for evil: it does what a server does, but for what it signs, or gives.

Run as a module: ``python -m tests.attacks.evil_server silent serve ...``. It is the process's main program.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import struct
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch

from dht.verdict import Opinion
from node.agreement.exposure import CHECKPOINT_TOKENS, UNITS
from node.agreement.provider import ProviderAccount
from node.claims.desk import Desk
from node.claims.findings import Finding
from node.client.audit_book import Outcome
from node.commitment.stage import StageCommitment
from node.config import default_home
from node.errors import Refused, UnavailableError
from node.model.ends import Ends
from node.model.span import Span
from node.run import server
from node.run.announcing import Announcing
from node.run.serve_plan import ServePlan
from node.serve.contract import Contract
from node.serve.outlets import Outlets
from node.serve.reveals import Reveals
from node.step_log import StepLog
from node.verify.span_judge import SpanJudge

SHORT = 100
"""Positions of a session that one who detects audits takes for too short to be a person's."""


def evil_server(behaviour: str) -> tuple[str, ...]:
    """Return the program for ``Fleet.start``, or ``NodeProcess``, that does evil."""
    assert behaviour in _BEHAVIOURS
    return ("tests.attacks.evil_server", behaviour)


def _silent() -> None:
    """Never ask for a signature, and serve on."""

    async def nothing(*_: object, **__: object) -> None:
        pass

    Contract.check = nothing  # type: ignore[method-assign, assignment]
    Contract.allow = nothing  # type: ignore[method-assign, assignment]


def _stalls() -> None:
    """Never ask for a signature, and do nothing more when that would be seen by the next answer."""
    _silent()

    async def allow(self: Contract, step: object) -> None:
        del step
        while self._account.exposure >= CHECKPOINT_TOKENS * UNITS:
            await asyncio.sleep(0.1)

    Contract.allow = allow  # type: ignore[method-assign, assignment]


def _forges() -> None:
    """Put other signatures under its receipts."""
    genuine = ProviderAccount.checkpoint

    def forged(self: ProviderAccount, *arguments: Any) -> Any:
        made = genuine(self, *arguments)
        return dataclasses.replace(made, signatures=tuple(bytes(64) for _ in made.signatures))

    ProviderAccount.checkpoint = forged  # type: ignore[method-assign]


def _inflates() -> None:
    """Count twice what it does."""
    genuine = ProviderAccount.count

    def count(self: ProviderAccount, kind: Any, tokens: int, *arguments: Any, **options: Any) -> None:
        genuine(self, kind, 2 * tokens, *arguments, **options)

    ProviderAccount.count = count  # type: ignore[method-assign]


def _mishashes() -> None:
    """Commit to other outputs than it gives."""
    genuine = StageCommitment._add_leaf

    def add(self: StageCommitment, chunk: Any, out: Any, voucher: bytes) -> None:
        genuine(self, chunk, dataclasses.replace(out, digest=sha256(b"other").digest()), voucher)

    StageCommitment._add_leaf = add  # type: ignore[method-assign]


def _lies() -> None:
    """Give other outputs than it computes, and never ask for a signature."""
    _silent()
    genuine = Outlets.hand_on

    async def hand_on(self: Outlets, live: Any, order: Any, output: Any, known_positions: int = 0) -> None:
        payload, shape = output
        wrong = bytes(payload)[::-1] if shape[1] == 1 else payload
        await genuine(self, live, order, (wrong, shape), known_positions)

    Outlets.hand_on = hand_on  # type: ignore[method-assign]


def _dawdles() -> None:
    """Give other outputs than it computes, wait for no signatures, and every 3 s sign for one step."""
    _lies()
    genuine_check, genuine_count = Contract.check, Contract.count
    uncounted: list[tuple[Contract, tuple[Any, ...]]] = []
    counted_s = [0.0]

    async def allow(self: Contract, step: Any) -> None:
        pass

    def count(self: Contract, *arguments: Any) -> None:
        uncounted.append((self, arguments))

    async def check(self: Contract, *, is_last: bool = False) -> None:
        own = [entry for entry in uncounted if entry[0] is self]
        if own and time.monotonic() - counted_s[0] > 3.0:
            counted_s[0] = time.monotonic()
            uncounted.remove(own[0])
            genuine_count(self, *own[0][1])
            await genuine_check(self, is_last=True)

    Contract.allow, Contract.count, Contract.check = allow, count, check  # type: ignore[method-assign]


def _noises(is_on: Callable[[], bool] = lambda: True) -> None:
    """Add a tenth of their size to the hidden states that it computes, sign for that and open it: float32 alone."""
    genuine = Outlets.hand_on

    async def hand_on(self: Outlets, live: Any, order: Any, output: Any, known_positions: int = 0) -> None:
        if not is_on():
            await genuine(self, live, order, output, known_positions)
            return
        payload, shape = output
        hidden = struct.unpack(f"<{len(payload) // 4}f", payload)
        noisy = struct.pack(f"<{len(hidden)}f", *(value * random.gauss(1.0, 0.1) for value in hidden))
        await genuine(self, live, order, (noisy, shape), known_positions)

    Outlets.hand_on = hand_on  # type: ignore[method-assign]


def _audited() -> None:
    """Do what stands in the file ``behaviour`` at home, so that one process serves for every kind of evil.

    ``withholds``: open nothing. ``hangs up``: not even answer. ``reopens``: open other bytes than it signed for.
    ``garbles``: compute something else than it should, and sign for it and open it as it is.
    """
    home = default_home()

    def behaves(name: str) -> bool:
        file = home / "behaviour"
        return file.exists() and file.read_text() == name

    genuine_answer, genuine_piece, genuine_hand_on = Reveals.answer, StepLog.piece, Outlets.hand_on

    async def answer(self: Reveals, frames: Any, asked: Any) -> None:
        if behaves("withholds"):
            raise Refused("gone", "It is not here.")
        if behaves("hangs up"):
            raise UnavailableError("Nobody is here.")
        await genuine_answer(self, frames, asked)

    def piece(self: StepLog, position: int, tokens: int) -> Any:
        shape, codec, payload = genuine_piece(self, position, tokens)
        return shape, codec, payload[::-1] if behaves("reopens") else payload

    async def hand_on(self: Outlets, live: Any, order: Any, output: Any, known_positions: int = 0) -> None:
        payload, shape = output
        if behaves("garbles"):
            payload = struct.pack(f"<{len(payload) // 4}f", *struct.unpack(f"<{len(payload) // 4}f", payload)[::-1])
        await genuine_hand_on(self, live, order, (payload, shape), known_positions)

    Reveals.answer, StepLog.piece, Outlets.hand_on = answer, piece, hand_on  # type: ignore[method-assign]


def _skips() -> None:
    """Leave out the block in the middle of its span."""
    genuine = server.load_span

    def load_span(plan: ServePlan, start: int, end: int) -> Span:
        def without_one(first: int, last: int, **how: Any) -> dict[str, torch.Tensor]:
            tensors = plan.checkpoint.load_span(first, last, **how)
            for name, tensor in tensors.items():
                if f".{(end - start) // 2}." in name and ("o_proj" in name or "down_proj" in name):
                    tensor.zero_()  # So nothing is added to what went in.
            return tensors

        class Spoiled:
            config, load_span = plan.checkpoint.config, staticmethod(without_one)

        return genuine(dataclasses.replace(plan, checkpoint=Spoiled()), start, end)

    server.load_span = load_span


def _flickers() -> None:
    """Noise for ten seconds, honest work for the next ten."""
    _noises(lambda: int(time.time()) % 20 < 10)


def _liar(how: Callable[[], None]) -> Callable[[], None]:
    """Do false work, attract as much of it as can be, and lie in every trial: deny, appeal, vote for the accused."""

    def behave() -> None:
        how()
        genuine_objects, genuine_found, genuine_rate = Desk._objects, Desk._found, Announcing._rate

        def objects(self: Desk, duty: Any, claim: Any, *others: Any) -> bool:
            return claim.accused == self._identity.peer_id or genuine_objects(self, duty, claim, *others)

        async def found(self: Desk, claim: Any) -> Finding:
            await genuine_found(self, claim)
            return Finding(Opinion.REFUTED, 0, "It is all right.")

        def rate(self: Announcing, cost: Any) -> float:
            return 4 * genuine_rate(self, cost)

        Desk._objects, Desk._found, Announcing._rate = objects, found, rate  # type: ignore[method-assign]

    return behave


def _mute(how: Callable[[], None]) -> Callable[[], None]:
    """Do false work, and take no part in any trial, as one that takes another identity when it is found out."""

    def behave() -> None:
        how()

        async def attend(*_: object) -> None:
            pass

        Desk.attend = attend  # type: ignore[method-assign, assignment]

    return behave


def _slanders() -> None:
    """As a verifier: find everything false that is right, and claim it with the evidence of the right work."""
    genuine = SpanJudge.__call__

    def judge(self: SpanJudge, opening: Any) -> Any:
        found = genuine(self, opening)
        if found.outcome is not Outcome.PASS:
            return dataclasses.replace(found, outcome=Outcome.INCONCLUSIVE)
        return dataclasses.replace(found, outcome=Outcome.FAIL, why="it is made up", shows_itself=True)

    SpanJudge.__call__ = judge  # type: ignore[method-assign]


def _detects() -> None:
    """Add noise, but not in sessions that may be audits: short ones, and odd ones. Note what each session looks like.

    Odd are several rows, padding, coarse codecs, and clients without weights.
    """
    notes, seen = default_home() / "seen.jsonl", set[bytes]()

    def suspects(live: Any) -> bool:
        opened = live.state.opened
        is_odd = opened.batch > 1 or opened.left_padding or opened.codec != "float32" or opened.embed
        return bool(is_odd or opened.max_length < SHORT)

    genuine_hand_on = Outlets.hand_on

    async def hand_on(self: Outlets, live: Any, order: Any, output: Any, known_positions: int = 0) -> None:
        opened, step = live.state.opened, order.step
        if opened.session not in seen:
            seen.add(opened.session)
            looks = {
                name: getattr(opened, name)
                for name in ("start", "end", "batch", "left_padding", "max_length", "codec", "adapter", "embed", "top")
            } | {
                "pushes": bool(opened.previous), "is_signed": bool(opened.offer), "first": list(step.shape),
                "keeps": step.logits_to_keep,
            }  # fmt: skip
            with notes.open("a") as file:
                file.write(json.dumps({"cheats": not suspects(live), "looks": looks}) + "\n")
        payload, shape = output
        if not suspects(live):
            hidden = struct.unpack(f"<{len(payload) // 4}f", payload)
            payload = struct.pack(f"<{len(hidden)}f", *(value * random.gauss(1.0, 0.1) for value in hidden))
        await genuine_hand_on(self, live, order, (payload, shape), known_positions)

    Outlets.hand_on = hand_on  # type: ignore[method-assign]


def _ends() -> None:
    """Compute the blocks as they are, and do at the ends what stands in the file ``behaviour`` at home.

    ``second best``: the two likeliest tokens change places. ``noisy``: a twentieth of their spread is added to logits.
    ``other words``: other ids are embedded than those that came.
    """
    home = default_home()

    def behaves(name: str) -> bool:
        file = home / "behaviour"
        return file.exists() and file.read_text() == name

    genuine_logits, genuine_embed = Ends.logits, Ends.embed

    def logits(self: Ends, hidden: Any) -> Any:
        due = genuine_logits(self, hidden)
        if behaves("second best"):
            values, ids = due.topk(2, dim=-1)
            due = due.scatter(-1, ids, values.flip(-1))
        if behaves("noisy"):
            due = due + 0.05 * due.std(dim=-1, keepdim=True) * torch.randn_like(due)
        return due

    def embed(self: Ends, ids: Any, *arguments: Any) -> Any:
        return genuine_embed(self, (ids + 1) % self.vocab_size if behaves("other words") else ids, *arguments)

    Ends.logits, Ends.embed = logits, embed  # type: ignore[method-assign]


_BEHAVIOURS: dict[str, Callable[[], None]] = {
    "silent": _silent,
    "stalls": _stalls,
    "forges": _forges,
    "inflates": _inflates,
    "mishashes": _mishashes,
    "lies": _lies,
    "dawdles": _dawdles,
    "audited": _audited,
    "noises": _noises,
    "slanders": _slanders,
    "skipping liar": _liar(_skips),
    "noisy liar": _liar(_noises),
    "flickering liar": _liar(_flickers),
    "skipping mute": _mute(_skips),
    "noisy mute": _mute(_noises),
    "flickering mute": _mute(_flickers),
    "ends": _ends,
    "detects": _detects,
}


def main(arguments: list[str]) -> int:
    """Take the behaviour off the front and run the command behind it."""
    from node.cli import main as run

    _BEHAVIOURS[arguments[0]]()
    return run(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
