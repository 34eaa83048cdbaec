"""``efedllm bootstrap``: the first peer of a swarm. It is founded once and keeps identity, address and secret."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dht.identity import Identity
from dht.parameters import SECRET_BYTES, JoinCode, SwarmParameters, parameters_hash
from dht.records import Envelope, SignedRecord, place, seal
from dht.swarm import Swarm
from node.errors import UserError
from node.run.events import Reporter
from node.run.lifetime import until_told_to_stop

_LIFE_S = 10 * 365 * 86400
_REPUBLISH_S = 600.0
_STATE_FILE = "bootstrap.json"


@dataclass(frozen=True)
class BootstrapOptions:
    """What ``efedllm bootstrap`` was asked for."""

    home: Path
    name: str
    private: bool
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    join: JoinCode | None
    """Another bootstrap of the same swarm, or None to found one."""
    exit_with_stdin: bool


@dataclass(frozen=True)
class Founding:
    """What makes a swarm itself; kept in ``bootstrap.json`` beside the identity."""

    name: str
    secret: bytes | None
    parameters: bytes
    """Envelope of the signed ``SwarmParameters``; empty at a bootstrap that joined an existing swarm."""
    parameters_hash: bytes
    listen: tuple[str, ...]
    """Where it listened last, so that a restart listens there again."""

    def to_json(self) -> dict[str, Any]:
        """Return what the state file holds."""
        return {
            "name": self.name,
            "secret": self.secret.hex() if self.secret else None,
            "parameters": self.parameters.hex(),
            "parameters_hash": self.parameters_hash.hex(),
            "listen": list(self.listen),
        }

    @classmethod
    def from_json(cls, data: Any) -> Founding:
        """Read what ``to_json`` wrote; raises KeyError, TypeError or ValueError for anything else."""
        secret = data["secret"]
        return cls(
            name=str(data["name"]),
            secret=bytes.fromhex(secret) if secret else None,
            parameters=bytes.fromhex(data["parameters"]),
            parameters_hash=bytes.fromhex(data["parameters_hash"]),
            listen=tuple(map(str, data["listen"])),
        )


async def run_bootstrap(options: BootstrapOptions, reporter: Reporter) -> None:
    """Serve a swarm's bootstrap until told to stop.

    Raises:
        DaemonDied: its p2pd has ended by itself.
    """
    identity = Identity.load_or_create(options.home / "identity")
    state_path = options.home / _STATE_FILE
    founding = _load_or_found(state_path, identity, options)
    listen = options.listen or founding.listen or ("/ip4/127.0.0.1/tcp/0",)
    others = options.join.addresses if options.join else ()
    peers = JoinCode(others, founding.name, founding.parameters_hash, founding.secret)
    async with Swarm(identity, join=peers, listen=listen, announce=options.announce, carry=True) as swarm:
        founding = replace(founding, listen=_with_ports(listen, swarm.addresses))
        _save(state_path, founding)
        addresses = tuple(swarm.addresses)
        code = JoinCode((*addresses, *others), founding.name, founding.parameters_hash, founding.secret).encode()
        publishing = asyncio.create_task(_publish_parameters(swarm, founding.parameters))
        told = asyncio.create_task(until_told_to_stop(exit_with_stdin=options.exit_with_stdin))
        closed = asyncio.create_task(swarm.wait_closed())
        try:
            await asyncio.sleep(0)  # It listens for signals before anyone hears that we are ready.
            _announce_start(reporter, swarm, code, private=founding.secret is not None)
            await asyncio.wait([told, closed], return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                closed.result()
            reporter.say(f"Stopping ({await told}).")
        finally:
            for task in (publishing, told, closed):
                task.cancel()
            await asyncio.gather(publishing, told, closed, return_exceptions=True)


def _load_or_found(path: Path, identity: Identity, options: BootstrapOptions) -> Founding:
    if path.exists():
        try:
            founding = Founding.from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The state of the bootstrap in {path} cannot be read; restore it, or move it away to found another."
            ) from error
        if options.private and founding.secret is None:
            raise UserError(
                f"The swarm founded in {path.parent} is public; use another EFEDLLM_HOME for a private one."
            )
        return founding
    if options.join is not None:
        return Founding(options.join.name, options.join.secret, b"", options.join.parameters_hash, ())
    parameters = SwarmParameters(
        founder=identity.peer_id, t=int(time.time()), life_s=_LIFE_S, name=options.name, private=options.private
    )
    envelope = seal(parameters, identity).envelope
    secret = secrets.token_bytes(SECRET_BYTES) if options.private else None
    return Founding(options.name, secret, envelope, parameters_hash(envelope), ())


async def _publish_parameters(swarm: Swarm, envelope: bytes) -> None:
    """Keep the swarm's parameters on the DHT for as long as this bootstrap runs."""
    while envelope:
        await swarm.store(_as_record(envelope))
        await asyncio.sleep(_REPUBLISH_S)


def _as_record(envelope: bytes) -> SignedRecord:
    return place(SwarmParameters.from_body(Envelope.from_bytes(envelope).body), envelope)


def _with_ports(listen: Sequence[str], addresses: Sequence[str]) -> tuple[str, ...]:
    """Replace port 0 by the port that the system gave us, so that a restart is found at the same address."""
    ports = [match[1] for address in addresses if (match := re.search(r"/tcp/(\d+)", address))]
    return tuple(re.sub(r"/tcp/0$", f"/tcp/{ports[0]}", each) if ports else each for each in listen)


def _save(path: Path, founding: Founding) -> None:
    """Write the state so that it is there whole or not at all, readable by its owner only: it holds the secret."""
    draft = path.with_suffix(".draft")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(founding.to_json(), file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _announce_start(reporter: Reporter, swarm: Swarm, code: str, *, private: bool) -> None:
    reporter.say(f"Bootstrap {swarm.peer_id} of a {'private' if private else 'public'} swarm listens on")
    for address in swarm.addresses:
        reporter.say(f"  {address}")
    if all("/ip4/127." in address for address in swarm.addresses):
        reporter.say("Only this machine can reach it; open it to others with --listen /ip4/0.0.0.0/tcp/31337")
    reporter.say(f"Join code: {code}")
    reporter.event("ready", {"role": "bootstrap", "join": code, "initial_peers": swarm.addresses})
