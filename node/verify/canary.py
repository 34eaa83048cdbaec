"""One canary: a session like any client's, under an identity that nobody sees again, all of which is audited.

It goes through the same code as ``generate``: the servers see a stranger that joins, signs, samples and leaves. In some
guises it goes without weights, so that the embeddings and heads of servers are looked at, too. What they open is kept,
and judged when the session has ended, so that nothing of a verdict shows while it runs. Synchronous: the session's
thread calls it; ``stop`` is called from another one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from dht.errors import DhtError
from node.client.audit_book import AuditResult, Outcome, Verdict
from node.client.audit_draw import PER_MILLE
from node.client.audit_opening import Opening
from node.client.distributed_model import build_model, use_generation_config
from node.client.network import Network
from node.client.offers import Policy
from node.client.thin_model import ThinModel
from node.errors import NodeError
from node.model.checkpoint import Checkpoint
from node.verify.canary_plan import Guise
from node.verify.canary_text import Script

_MAX_LENGTH = 2048
_STEP_TIMEOUT_S = 60.0
_AUDITS_S = 60.0
"""Reveals of a session may take so long: stages hold what they have handed on for less."""
_LOOK_S = 0.5
_KEPT = Verdict(Outcome.INCONCLUSIVE, "it is not judged yet")
_CPU = torch.device("cpu")


class CanaryModel:
    """The client's part of a model, loaded once.

    Args:
        checkpoint: the model.
        join: join code of the swarm.
    """

    def __init__(self, checkpoint: Checkpoint, join: str) -> None:
        self.checkpoint = checkpoint
        self.join = join
        self._tensors = checkpoint.load_client(dtype=torch.float32, device=_CPU)

    @contextlib.contextmanager
    def connected(self, canary: Canary, peers: Iterable[str]) -> Any:
        """Connect as a client that is nobody's, and that audits everything."""
        checkpoint, remote = self.checkpoint, None
        if canary.guise is Guise.WITH_ENDS:
            model, remote = build_model(checkpoint.config, self._tensors, dtype=torch.float32, device=_CPU)
        else:
            model = ThinModel(checkpoint.config, server_sampling=canary.guise is Guise.ASKS_TOKENS)
        use_generation_config(model, checkpoint.tokenizer_dir)
        network = Network.connect(
            manifest=checkpoint.manifest32,
            num_blocks=checkpoint.num_blocks,
            join=self.join,
            initial_peers=[],
            step_timeout_s=_STEP_TIMEOUT_S,
            policy=Policy(only=frozenset(peers)),
            hidden_size=checkpoint.config.get_text_config().hidden_size,
            signs=True,
            audit_per_mille=PER_MILLE,
            judge=canary.take_opening,
        )
        network.on_audited = canary.take_result
        try:
            if remote is not None:
                model.attach(network, remote, max_length=_MAX_LENGTH)
            else:
                if canary.guise is Guise.ASKS_TOKENS:
                    model.leave_out_defaults()
                model.connect(network, max_length=_MAX_LENGTH)
            yield model, network
        finally:
            network.close()


@dataclass(frozen=True, slots=True)
class Findings:
    """What a canary brings home."""

    results: tuple[AuditResult, ...]
    """Those that have an opening are yet to be judged."""
    text: tuple[int, ...]
    """Token ids; empty where the session broke."""
    why_not: str
    """Why it broke; empty: it did not."""


class Canary:
    """One session; ``run`` it once.

    Args:
        guise: as which kind of client it goes.
    """

    def __init__(self, guise: Guise = Guise.WITH_ENDS) -> None:
        self.guise = guise
        self._results: list[AuditResult] = []
        self._stopped = threading.Event()

    def take_opening(self, opening: Opening) -> Verdict:
        """Keep what was opened; the result that follows holds it."""
        del opening
        return _KEPT

    def take_result(self, result: AuditResult) -> None:
        """Keep what came of an audit; called in the session's loop thread."""
        self._results.append(result)

    def run(self, model: CanaryModel, peers: Iterable[str], script: Script) -> Findings:
        """Run the session through ``peers``, and wait until everything that it was given is opened."""
        text: tuple[int, ...] = ()
        why_not = ""
        try:
            with model.connected(self, peers) as (remote, network):
                try:
                    text = self._generate(remote, script)
                except (NodeError, DhtError) as error:
                    why_not = str(error)
                self._settle(network)
        except (NodeError, DhtError, OSError) as error:
            why_not = why_not or str(error)
        return Findings(tuple(self._results), text, why_not)

    def _generate(self, remote: Any, script: Script) -> tuple[int, ...]:
        ids = torch.tensor([script.prompt])
        # As ``generate`` opens its session: by the positions that are reserved it would be told from one.
        with remote.inference_session(len(script.prompt) + script.num_new + 1):
            written = remote.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=script.num_new,
                # What a server draws by a seed cannot be checked; what it says is likeliest can.
                do_sample=self.guise is not Guise.ASKS_TOKENS,
                stopping_criteria=StoppingCriteriaList([_Stopped(self._stopped)]),
            )
        return tuple(written[0].tolist())

    def _settle(self, network: Network) -> None:
        for _ in range(round(_AUDITS_S / _LOOK_S)):
            if self._stopped.is_set() or network.settle(_LOOK_S):
                return

    def stop(self) -> None:
        """Let the session end with its next token; what was opened by then counts."""
        self._stopped.set()


class _Stopped(StoppingCriteria):
    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        del scores, kwargs
        return torch.full((input_ids.shape[0],), self._stopped.is_set(), device=input_ids.device)
