"""Times in which many clients decode together: what they got, and what it took of the processor.

Runs in the benchmark's main thread; the clients are processes of their own.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.clients import Client, gather_at_gate, wait_for_first
from bench.cpu_time import cpu_seconds, daemon_of, machine_seconds
from bench.jobs import Decode, Decoded
from bench.serving import Serving


@dataclass(frozen=True)
class Reading:
    """Clocks at one moment, s."""

    now_s: float
    cpu_s: dict[str, float]
    """Processor time by kind of process."""
    machine_s: float
    """Processor time of everything on this machine."""


@dataclass(frozen=True)
class Window:
    """One time in which all clients decoded, from one reading of the clocks to the next."""

    before: Reading
    after: Reading
    num_tokens: list[int]
    """New tokens by client."""
    whole_s: float
    """From asking the clients until the last one had its last token."""
    whole_tokens: int
    equal: bool
    """Whether every client's tokens were the expected ones."""

    @property
    def elapsed_s(self) -> float:
        """Length of the window."""
        return self.after.now_s - self.before.now_s


def read_clocks(pids: dict[str, list[int]]) -> Reading:
    """Read the wall clock and the processor time of each kind of process."""
    cpu_s = {kind: cpu_seconds(of_kind) for kind, of_kind in pids.items()}
    return Reading(time.monotonic(), cpu_s, machine_seconds()[0])


def pids_by_kind(clients: Sequence[Client], swarm: Serving) -> dict[str, list[int]]:
    """List the processes that have to do with the work of ``clients``."""
    servers = [server.pid for server in swarm.servers]
    return {
        "clients": [client.pid for client in clients],
        "client_p2pd": [daemon_of(client.pid) for client in clients],
        "servers": servers,
        "server_p2pd": [daemon_of(pid) for pid in servers],
    }


def decode_together(
    clients: Sequence[Client], swarm: Serving, expected: Sequence[Decoded], jobs: list[Decode]
) -> Window:
    """Let every client generate once and count while all of them decode."""
    pids = pids_by_kind(clients, swarm)
    asked_s = time.monotonic()
    for client, job in zip(clients, jobs, strict=False):
        client.ask(job)
    gather_at_gate(clients)
    before = read_clocks(pids)
    for client in clients:
        client.proceed()
    wait_for_first(clients)
    after = read_clocks(pids)
    outcomes: list[Decoded] = [client.answer() for client in clients]
    return Window(
        before,
        after,
        [sum(before.now_s < at_s <= after.now_s for at_s in outcome.times_s) for outcome in outcomes],
        max(outcome.times_s[-1] for outcome in outcomes) - asked_s,
        sum(len(outcome.tokens) for outcome in outcomes),
        all(outcome.tokens == known.tokens for outcome, known in zip(outcomes, expected, strict=False)),
    )


def tokens_per_s(windows: Sequence[Window]) -> float:
    """Return the rate of all clients while all of them decoded."""
    return sum(sum(window.num_tokens) for window in windows) / sum(window.elapsed_s for window in windows)


def cpu_ms_per_token(windows: Sequence[Window]) -> dict[str, float]:
    """Return the processor time that a token took, by kind of process, ms."""
    num_tokens = sum(sum(window.num_tokens) for window in windows)
    kinds = windows[0].before.cpu_s
    spent_s = {kind: sum(window.after.cpu_s[kind] - window.before.cpu_s[kind] for window in windows) for kind in kinds}
    return {kind: round(1000 * seconds / num_tokens, 2) for kind, seconds in spent_s.items()}


def decode_alone(local: Any, job: Decode) -> Decoded:
    """Let transformers generate what a client is expected to."""
    return job.run(local, _OpenGate())


class _OpenGate:
    """Stands where a client's pipe does when nobody has to be waited for."""

    def send(self, message: str) -> None:
        """Tell nobody."""

    def recv(self) -> None:
        """Go on at once."""
