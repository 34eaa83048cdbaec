#!/usr/bin/env python3
"""Start a whole private swarm on this machine, or print, per machine, the command to paste.

On one machine:  scripts/bootstrap_swarm.py MODEL [--servers 3]
    starts a bootstrap and the servers as processes of their own, prints the join code, and ends them all on Ctrl-C.
On several:      scripts/bootstrap_swarm.py MODEL --hosts 10.0.0.1,10.0.0.2,10.0.0.3
    starts nothing: prints what to run on each host, the bootstrap on the first.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
from pathlib import Path

from dht.errors import DhtError
from node.errors import NodeError
from node.model.checkpoint import Checkpoint
from node.model.devices import free_bytes, pick_device
from node.model.families import check_family
from node.run.children import Children
from node.run.exit_codes import exit_code
from node.run.interrupts import INTERRUPTED
from node.run.lifetime import run_loop, until_told_to_stop

START_TIMEOUT_S = 600.0
BOOTSTRAP_PORT = 31337
SERVER_PORT = 31338


def cut_evenly(num_blocks: int, num_servers: int) -> list[tuple[int, int]]:
    """Divide the blocks ``[0, num_blocks)`` into spans whose lengths differ by at most one."""
    cuts = [num_blocks * part // num_servers for part in range(num_servers + 1)]
    return list(itertools.pairwise(cuts))


async def start_here(model: str, spans: list[tuple[int, int]], home: Path) -> None:
    """Run the swarm until Ctrl-C."""
    share_bytes = free_bytes(pick_device("auto")) // len(spans)  # each would promise all of it
    async with Children() as children:
        bootstrap = await children.start(["bootstrap", "--private", "--exit-with-stdin"], home / "bootstrap")
        join = (await bootstrap.ready(START_TIMEOUT_S))["join"]
        servers = []
        for start, end in spans:
            bounds = ["--blocks", f"{start}:{end}", "--max-memory", str(share_bytes)]
            arguments = ["serve", model, "--join", join, *bounds, "--exit-with-stdin"]
            servers.append(await children.start(arguments, home / f"server-{start}-{end}"))
        for server in servers:
            ready = await server.ready(START_TIMEOUT_S)
            print(f"{ready['peer_id']} serves blocks {ready['blocks']} of {ready['model']}", flush=True)
        print(f"\nThe swarm is up. In another terminal:\n\n  efedllm generate {model} --join {join} --prompt 'Hello'\n")
        print("Ctrl-C ends it.", flush=True)
        ended = [asyncio.create_task(child.wait()) for child in (bootstrap, *servers)]
        told = asyncio.create_task(until_told_to_stop(exit_with_stdin=False))
        await asyncio.wait([*ended, told], return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            print("A process of the swarm has ended by itself; stopping the others.", file=sys.stderr)
        for task in (*ended, told):
            task.cancel()


def print_commands(model: str, spans: list[tuple[int, int]], hosts: list[str]) -> None:
    """Say what to run where."""
    print(f"On {hosts[0]}, first (it prints the join code):\n")
    print(f"  efedllm bootstrap --private --listen /ip4/{hosts[0]}/tcp/{BOOTSTRAP_PORT}\n")
    for host, (start, end) in zip(hosts, spans, strict=True):
        print(f"On {host}, with that code in place of CODE:\n")
        print(f"  efedllm serve {model} --blocks {start}:{end} --listen /ip4/{host}/tcp/{SERVER_PORT} --join CODE\n")
    print(f"Then, from any machine that reaches them:\n\n  efedllm generate {model} --join CODE --prompt 'Hello'")
    if len(hosts) != len(set(hosts)):
        print(
            "\nA host named twice needs EFEDLLM_HOME, port and --max-memory for each of its servers.", file=sys.stderr
        )


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="embedded", help="directory, hub id, or `embedded` (the default)")
    parser.add_argument("--servers", type=int, default=3, help="servers to start on this machine (default: 3)")
    parser.add_argument("--hosts", help="addresses of the machines, with commas between: print commands instead")
    parser.add_argument("--home", type=Path, help="where the nodes keep their state (default: a temporary directory)")
    arguments = parser.parse_args()
    hosts = arguments.hosts.split(",") if arguments.hosts else []
    num_servers = len(hosts) or arguments.servers
    try:
        checkpoint = Checkpoint.open(arguments.model)
        check_family(checkpoint.config)
        if not 1 <= num_servers <= checkpoint.num_blocks:
            parser.error(f"the model has {checkpoint.num_blocks} blocks, so 1 to {checkpoint.num_blocks} servers")
        spans = cut_evenly(checkpoint.num_blocks, num_servers)
        if hosts:
            print_commands(arguments.model, spans, hosts)
            return 0
        with tempfile.TemporaryDirectory(prefix="efedllm-swarm-") as directory:
            run_loop(lambda: start_here(arguments.model, spans, arguments.home or Path(directory)))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (NodeError, DhtError) as error:
        print(f"bootstrap_swarm: {error}", file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
