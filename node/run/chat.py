"""``efedllm chat``: a conversation through a swarm, line by line, in one remote session.

The text of the conversation is kept here, so a session that a server has closed (idle, lost) is opened anew and
nothing but a pause is seen; a conversation that outgrows its session starts anew with the line that did not fit.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from node.client.model_sessions import InferenceSession
from node.errors import UnavailableError, UserError
from node.run.audit_teller import AuditTeller
from node.run.events import Reporter
from node.run.generate import (
    GenerateOptions,
    Printer,
    RepairTeller,
    check_length,
    connect,
    encode,
    load_tokenizer,
    max_positions,
    stream_answer,
)
from node.run.lifetime import end_on_terminate_as_on_interrupt

MAX_POSITIONS = 4096
"""Positions that servers are asked to reserve for a conversation at most."""


def run_chat(options: GenerateOptions, reporter: Reporter) -> None:
    """Hold a conversation on the terminal: one line in, one answer out, until the input ends."""
    end_on_terminate_as_on_interrupt()
    config, tokenizer = load_tokenizer(options)
    limit = min(max_positions(config), MAX_POSITIONS)
    with connect(options) as model:
        model.on_repaired(RepairTeller(reporter))
        model.on_audited(AuditTeller(reporter))
        reporter.say("Type a line and press Enter; end with Ctrl-D.")
        chat = _Chat(model, tokenizer, options, reporter, limit)
        line = _read_line(reporter)
        while line is not None:
            with model.inference_session(limit) as session:
                line = chat.talk(session, line)


class _Chat:
    """The text so far, and how to go on with it."""

    def __init__(self, model: Any, tokenizer: Any, options: GenerateOptions, reporter: Reporter, limit: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._options = options
        self._reporter = reporter
        self._limit = limit
        self._messages: list[dict[str, str]] = []

    def talk(self, session: InferenceSession, line: str | None) -> str | None:
        """Answer ``line`` and those that follow; return None at the end of input, or the line to begin anew with."""
        seen = torch.empty((1, 0), dtype=torch.long)
        while line is not None:
            inputs = self._inputs_with(line)
            if inputs["input_ids"].shape[1] + self._options.max_new_tokens > self._limit and self._messages:
                self._reporter.say(f"The conversation has reached {self._limit} tokens; it starts anew with your line.")
                self._messages.clear()
                return line
            check_length(self._model.config, inputs["input_ids"].shape[1], self._options.max_new_tokens)
            session.crop(_common_prefix(seen, inputs["input_ids"]))
            pieces: list[str] = []
            try:
                seen = self._stream(inputs, pieces)
            except UnavailableError:
                if pieces or seen.shape[1] == 0:  # A session that never answered would fail again.
                    raise
                return line
            self._messages += [{"role": "user", "content": line}, {"role": "assistant", "content": "".join(pieces)}]
            line = _read_line(self._reporter)
        return None

    def _inputs_with(self, line: str) -> Any:
        """Return the conversation with ``line`` at its end as token ids."""
        messages = [*self._messages, {"role": "user", "content": line}]
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return encode(self._tokenizer, text, add_special_tokens=False)  # the template has them already
        return encode(self._tokenizer, "".join(message["content"] for message in messages))

    def _stream(self, inputs: Any, pieces: list[str]) -> torch.Tensor:
        """Stream one answer into ``pieces`` and to the reporter; return all token ids that the session was given."""

        def write(piece: str) -> None:
            pieces.append(piece)
            self._reporter.result(piece)

        ids = stream_answer(self._model, inputs, self._options, Printer(self._tokenizer, write))
        self._reporter.result("\n")
        return ids


def _common_prefix(seen: torch.Tensor, wanted: torch.Tensor) -> int:
    """Return how many positions of a session stay valid: a text tokenised anew may be cut differently at a seam.

    The last wanted token is always computed again, because its logits are asked for.
    """
    length = min(seen.shape[1], wanted.shape[1] - 1)
    differing = (seen[0, :length] != wanted[0, :length]).nonzero()
    return int(differing[0]) if differing.numel() else length


def _read_line(reporter: Reporter) -> str | None:
    if sys.stdin.isatty():
        reporter.say("> ")
    try:
        line = sys.stdin.readline()
        line.encode()
    except UnicodeError:
        raise UserError("The line on standard input is not UTF-8 text; convert it first.") from None
    return line.rstrip("\n") if line else None
