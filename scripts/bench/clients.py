"""Clients of a benchmark, each a process of its own, started once and asked over a pipe.

Python's fork server imports torch and transformers once, while it has one thread, and forks every client from there;
a client opens its place in the swarm after that. The handles live in the caller's thread.
"""

import contextlib
import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from bench.jobs import AT_THE_GATE, PROCEED, Job
from node import AutoDistributedModelForCausalLM
from node.config import HOME_VARIABLE
from node.run.libraries import silence_libraries

ANSWER_TIMEOUT_S = 300.0
_AT_ONCE = 4
"""Clients that start at the same time: more of them would wait for cores until their peers give up on them."""
_PRELOADED = ["node.client.distributed_model", "transformers.models.llama.modeling_llama"]
_READY = "ready"
_END_TIMEOUT_S = 20.0


class Client:
    """One client process, as the benchmark sees it."""

    def __init__(
        self, model_dir: Path, join: str, home: Path, *, receipts: bool = True, audit_rate: float = 0.0
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, str(model_dir), join, str(home), receipts, audit_rate)
        self._process = context.Process(target=_obey, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, job: Job) -> None:
        """Hand over a job."""
        self.pipe.send(job)

    def proceed(self) -> None:
        """Let the client pass the gate, or stop a generation that stops early."""
        self.pipe.send(PROCEED)

    def answer(self) -> Any:
        """Wait for what the client says next: that it is ready or at the gate, or a job's outcome.

        Raises:
            TimeoutError: it says nothing for five minutes.
            EOFError: it has ended.
        """
        if not self.pipe.poll(ANSWER_TIMEOUT_S):
            raise TimeoutError(f"client {self.pid} has said nothing for {ANSWER_TIMEOUT_S:.0f} s")
        return self.pipe.recv()

    def end(self) -> None:
        """Tell the client to leave, and see to it."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self._process.join(_END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.pipe.close()


@contextlib.contextmanager
def started_clients(
    num_clients: int, model_dir: Path, join: str, homes: Path, *, receipts: bool = True, audit_rate: float = 0.0
) -> Iterator[list[Client]]:
    """Start clients of one model, each with a home of its own below ``homes``; all end with the context."""
    clients: list[Client] = []
    try:
        for number in range(num_clients):
            if number >= _AT_ONCE:
                clients[number - _AT_ONCE].answer()
            home = homes / f"client{number}"
            clients.append(Client(model_dir, join, home, receipts=receipts, audit_rate=audit_rate))
        for client in clients[-_AT_ONCE:]:
            client.answer()
        yield clients
    finally:
        for client in clients:
            client.end()


def gather_at_gate(clients: Sequence[Client]) -> None:
    """Wait until every one of ``clients`` waits for the others."""
    for client in clients:
        said = client.answer()
        assert said == AT_THE_GATE, said


def wait_for_first(clients: Sequence[Client]) -> None:
    """Wait until one of ``clients`` has something to say."""
    if not wait([client.pipe for client in clients], ANSWER_TIMEOUT_S):
        raise TimeoutError(f"no client has said anything for {ANSWER_TIMEOUT_S:.0f} s")


def _obey(pipe: Connection, model_dir: str, join: str, home: str, receipts: bool, audit_rate: float) -> None:
    """Be a client: do the jobs that come through ``pipe`` until it brings None or ends."""
    os.environ[HOME_VARIABLE] = home
    silence_libraries()
    torch.set_num_threads(1)
    options = {"receipts": receipts, "audit_rate": audit_rate}  # By default none: audits would be in other figures.
    with AutoDistributedModelForCausalLM.from_pretrained(model_dir, join=join, **options) as model:
        gc.collect()  # Once in its life a process does so for a quarter of a second: not while it is measured.
        pipe.send(_READY)
        with contextlib.suppress(EOFError):
            while (job := pipe.recv()) is not None:
                pipe.send(job.run(model, pipe))
