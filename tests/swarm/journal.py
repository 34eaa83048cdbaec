"""Our own server and client, which also write down what they sign and serve, so that it is known after ``kill -9``.

They are processes of their own, started from one that has imported everything already: a start takes a moment.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from node.agreement.checkpoint import Checkpoint as CheckpointBody
from node.agreement.exposure import kind_of
from node.client.contract import SessionContract
from node.serve.contract import Contract
from node.wire import Checkpoint


class Journal:
    """A file to which lines are only added."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **entry: Any) -> None:
        """Add a line; it outlives this process."""
        os.write(self._file, json.dumps(entry).encode() + b"\n")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Read a journal."""
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def watch_server(journal: Journal) -> None:
    """Write down what a server counts, and what it signs before it is sent."""
    count, check = Contract.count, Contract.check

    def counted(self: Contract, step: Any, num_bytes_out: int, known_positions: int) -> None:
        count(self, step, num_bytes_out, known_positions)
        rows, tokens, _ = step.shape
        journal.write(served=rows * (tokens - known_positions), kind=int(kind_of(step)))

    async def checked(self: Contract, **options: Any) -> None:
        tell = self._tell

        async def told(frame: Any) -> None:
            if isinstance(frame, Checkpoint):
                made = CheckpointBody.from_body(frame.body)
                journal.write(signed=[body.hex() for body in made.receipts])
            await tell(frame)

        self._tell = told
        try:
            await check(self, **options)
        finally:
            self._tell = tell

    Contract.count, Contract.check = counted, checked  # type: ignore[method-assign]


def watch_client(journal: Journal) -> None:
    """Write down what a client has got, and what it signs before it is sent."""
    answered, checkpoint = SessionContract.answered, SessionContract.checkpoint

    def noted(self: SessionContract, step: Any, result: Any) -> None:
        journal.write(got=step.shape[0] * step.shape[1], kind=int(kind_of(step)))
        answered(self, step, result)

    def signed(self: SessionContract, place: int, body: bytes) -> Any:
        answer, other = checkpoint(self, place, body)
        if answer is not None:
            journal.write(signed=[receipt.hex() for receipt in CheckpointBody.from_body(body).receipts])
        return answer, other

    SessionContract.answered, SessionContract.checkpoint = noted, signed  # type: ignore[method-assign]


def run_client(model: str, join: str) -> None:
    """Generate answers, one after the other, until this process is asked to end."""
    from node import AutoDistributedModelForCausalLM

    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    chance = random.Random()
    with AutoDistributedModelForCausalLM.from_pretrained(model, join=join) as remote:
        while not over.is_set():
            ids = torch.randint(3, 100, (1, chance.randint(4, 60)))
            num = chance.randint(1, 150)
            remote.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num, do_sample=False)
            print(json.dumps({"event": "ready", "tokens": num}), flush=True)


def run(home: Path, arguments: list[str]) -> None:
    """Be a server, or a client; what it says goes to files of its home."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["EFEDLLM_HOME"] = str(home)
    for number, name in ((1, "events"), (2, "errors")):
        os.dup2(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(1)
    journal = Journal(home / "journal")
    if arguments[0] == "client":
        watch_client(journal)
        run_client(*arguments[1:])
        return
    from node.cli import main

    watch_server(journal)
    sys.exit(main(arguments))
