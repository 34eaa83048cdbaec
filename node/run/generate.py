"""``efedllm generate``: text from a swarm, streamed as it comes. ``chat`` uses the same pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.generation.streamers import TextStreamer

from node.client.distributed_model import AutoDistributedModelForCausalLM
from node.client.model_sessions import InferenceSession
from node.client.offers import Objective
from node.client.repair import Repaired
from node.client.thin_model import DEFAULT_TOP
from node.config import default_home
from node.errors import ModelNotFound, PromptTooLong, UnavailableError
from node.model.checkpoint import Checkpoint
from node.model.families import check_family
from node.run.audit_teller import AuditTeller
from node.run.events import Reporter
from node.run.explanation import tell_explanation
from node.run.libraries import silence_libraries
from node.run.lifetime import end_on_terminate_as_on_interrupt, end_with_stdin
from node.verify.client_judge import ClientJudge, judge_for_client


@dataclass(frozen=True)
class ThinOptions:
    """How a client without weights shall work."""

    server_sampling: bool
    num_logits: int | None
    """None: as the library does."""
    manifest: str | None
    """The model's identity in hex; None: told from its files."""


@dataclass(frozen=True)
class GenerateOptions:
    """What ``efedllm generate`` or ``chat`` was asked for."""

    model: str
    revision: str | None
    join: str
    prompt: str
    """Empty for chat."""
    max_new_tokens: int
    do_sample: bool | None
    """None: as the model's generation config says."""
    temperature: float | None
    top_p: float | None
    seed: int | None
    dtype: torch.dtype
    codec: str = "auto"
    """How hidden states travel; auto: in ``dtype``."""
    thin: ThinOptions | None = None
    """None: embeddings and head are loaded."""
    policy: str = Objective.FASTEST
    """What the route shall be best at."""
    only_peers: tuple[str, ...] | None = None
    """Servers that may be used; None: all."""
    explain: bool = False
    """Whether to say why the route runs where it runs."""
    exit_with_stdin: bool = False
    anchors: tuple[str, ...] = ()
    """Peer ids whose trust counts; none: those of the swarm."""
    audit_rate: float | None = None
    """Share of what servers sign for that is audited; None: as the swarm has it."""
    shadow_rate: float | None = None
    """Share of what is consumed that newcomers run a second time; None: as much as there may be."""
    calibration: Path | None = None
    """By which audits are judged; None: by what this package has for the model, or the anchors name, if anything."""
    ask_anchors: bool = False
    """Whether anchors judge what this machine cannot."""


class Printer(TextStreamer):
    """Hands finalized text on as it is generated; the prompt is not repeated."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write ``text``; a final newline is the caller's affair."""
        del stream_end
        self._write(text)


def run_generate(options: GenerateOptions, reporter: Reporter) -> None:
    """Write the continuation of the prompt to stdout, and nothing else."""
    end_on_terminate_as_on_interrupt()
    if options.exit_with_stdin:
        end_with_stdin()
    config, tokenizer = load_tokenizer(options)
    inputs = encode(tokenizer, options.prompt)
    check_length(config, inputs["input_ids"].shape[1], options.max_new_tokens)
    with connect(options) as model:
        model.on_repaired(RepairTeller(reporter))
        model.on_audited(AuditTeller(reporter))
        with model.inference_session(inputs["input_ids"].shape[1] + options.max_new_tokens + 1) as session:
            told = _RouteTeller(session, reporter, model if options.explain else None)

            def write(text: str) -> None:
                told.tell()
                reporter.result(text)

            try:
                stream_answer(model, inputs, options, Printer(tokenizer, write))
            except UnavailableError:
                told.give_up()
                raise
        if not reporter.events_json:
            reporter.result("\n")


class _RouteTeller:
    """Says once who serves which blocks, when the session knows, and why, where ``explained`` is the model."""

    def __init__(self, session: InferenceSession, reporter: Reporter, explained: Any) -> None:
        self._session = session
        self._reporter = reporter
        self._explained = explained
        self._told = False

    def tell(self) -> None:
        route = self._session.cache.route
        if self._told or route is None:
            return
        self._told = True
        self._tell_why()
        stages = [{"peer_id": stage.peer_id, "blocks": f"{stage.start}:{stage.end}"} for stage in route.stages]
        self._reporter.event("route", {"stages": stages})
        self._reporter.say(f"Route: {route}")

    def give_up(self) -> None:
        """Say why there is no route."""
        if not self._told:
            self._tell_why()

    def _tell_why(self) -> None:
        explanation = self._explained.explain_route() if self._explained is not None else None
        if explanation is not None:
            tell_explanation(self._reporter, explanation)


class RepairTeller:
    """Says that other servers have taken the place of lost ones."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def __call__(self, repaired: Repaired) -> None:
        """Say it."""
        fields = {
            "lost": list(repaired.lost),
            "replaced_by": list(repaired.replaced_by),
            "replayed_tokens": repaired.replayed_tokens,
            "ms": round(1000 * repaired.seconds),
            "same_drift_class": repaired.same_drift_class,
            "reason": "leaving" if repaired.were_leaving else "lost",
        }
        self._reporter.event("route_repaired", fields)
        differing = "" if repaired.same_drift_class else " It computes differently, so bytes may differ."
        old, new = ", ".join(repaired.lost), ", ".join(repaired.replaced_by)
        gone = f"{old} leaves" if repaired.were_leaving else f"Lost {old}"
        self._reporter.say(f"{gone}; {new} took over within {fields['ms']} ms.{differing}")


def load_tokenizer(options: GenerateOptions) -> tuple[Any, Any]:
    """Return the model's config and its tokenizer."""
    silence_libraries()
    checkpoint = Checkpoint.open(options.model, revision=options.revision)
    check_family(checkpoint.config)
    try:
        return checkpoint.config, AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"The model {options.model} has no tokenizer that can be loaded; use the client library with token ids, or "
            "add tokenizer.json to the model."
        ) from error


def connect(options: GenerateOptions) -> Any:
    """Return the client's model, connected to the swarm."""
    thin = options.thin
    return AutoDistributedModelForCausalLM.from_pretrained(
        options.model,
        revision=options.revision,
        join=options.join,
        dtype=options.dtype,
        codec=options.codec,
        thin=thin is not None,
        num_logits=(thin.num_logits if thin else None) or DEFAULT_TOP,
        server_sampling=thin is not None and thin.server_sampling,
        manifest=thin.manifest if thin else None,
        policy=options.policy,
        only_peers=options.only_peers,
        anchors=options.anchors,
        audit_rate=options.audit_rate,
        shadow_rate=options.shadow_rate,
        judge=_judge(options),
        ask_anchors=options.ask_anchors,
    )


def _judge(options: GenerateOptions) -> ClientJudge | None:
    """Return who judges what audits open; None: nobody can."""
    if options.thin is not None or options.audit_rate == 0:
        return None
    return judge_for_client(options.model, options.revision, options.calibration, default_home())


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> Any:
    """Return ``input_ids`` and ``attention_mask`` of ``text``, ``[1, positions]`` each, never empty."""
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False, add_special_tokens=add_special_tokens)
    if inputs["input_ids"].shape[1] == 0:
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        inputs["input_ids"] = torch.tensor([[begin or 0]])
        inputs["attention_mask"] = torch.ones((1, 1), dtype=torch.long)
    return inputs


def max_positions(config: Any) -> int:
    """Return how many positions the model takes."""
    return int(getattr(config, "max_position_embeddings", 0) or 2048)


def check_length(config: Any, num_prompt: int, max_new_tokens: int) -> None:
    """Pass if prompt and new tokens fit into the model; raises ``PromptTooLong``."""
    limit = max_positions(config)
    if num_prompt + max_new_tokens > limit:
        raise PromptTooLong(
            f"The prompt has {num_prompt} tokens and {max_new_tokens} are to be generated, but the model takes {limit} "
            "in all; shorten the prompt or lower --max-new-tokens."
        )


def stream_answer(model: Any, inputs: Any, options: GenerateOptions, streamer: TextStreamer) -> torch.Tensor:
    """Generate from ``inputs`` and return prompt and new tokens, ``[1, positions]``."""
    if options.seed is not None:
        torch.manual_seed(options.seed)
    asked = {"do_sample": options.do_sample, "temperature": options.temperature, "top_p": options.top_p}
    settings = {name: value for name, value in asked.items() if value is not None}
    ids: torch.Tensor = model.generate(**inputs, max_new_tokens=options.max_new_tokens, streamer=streamer, **settings)
    return ids
