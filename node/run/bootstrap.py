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

from dht.errors import BadRecord
from dht.identity import Identity
from dht.parameters import MAX_ANCHORS, SECRET_BYTES, JoinCode, SwarmParameters, parameters_hash
from dht.records import Envelope, seal
from dht.rules import Rules
from dht.swarm import Swarm
from node.check.calibration_file import read_calibration
from node.errors import UserError
from node.run.bootstrap_duties import bootstrap_duties
from node.run.calibrations import calibrations_of_bootstrap, one_of_each
from node.run.events import Reporter
from node.run.lifetime import until_told_to_stop

_LIFE_S = 10 * 365 * 86400
_PUBLIC_PROOF_OF_WORK_BITS = 22
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
    epoch_s: int | None
    """Seconds of an epoch in the swarm that is founded; None: six hours."""
    proof_of_work_bits: int | None
    """Bits that an identity's proof needs there; None: none in a private swarm, 22 in a public one."""
    exit_with_stdin: bool
    anchors: tuple[str, ...] = ()
    """Peer ids whose trust counts in the swarm that is founded, beside the founder's own."""
    calibrations: tuple[Path, ...] = ()
    """Files that it names to the swarm as an anchor, and hands out."""


@dataclass(frozen=True)
class Founding:
    """What makes a swarm itself; kept in ``bootstrap.json`` beside the identity."""

    name: str
    secret: bytes | None
    parameters: bytes
    """Envelope of the signed ``SwarmParameters``; empty at a bootstrap that has joined and not read them yet."""
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
        """Read what ``to_json`` wrote; raises KeyError, TypeError, ValueError or BadRecord for anything else."""
        secret = data["secret"]
        founding = cls(
            name=str(data["name"]),
            secret=bytes.fromhex(secret) if secret else None,
            parameters=bytes.fromhex(data["parameters"]),
            parameters_hash=bytes.fromhex(data["parameters_hash"]),
            listen=tuple(map(str, data["listen"])),
        )
        if founding.parameters and parameters_hash(founding.parameters) != founding.parameters_hash:
            raise ValueError("the parameters do not have the hash that is kept beside them")
        founding.rules()
        return founding

    def anchors(self) -> tuple[str, ...]:
        """Return the anchors that the parameters name; none without parameters."""
        if not self.parameters:
            return ()
        return SwarmParameters.from_body(Envelope.from_bytes(self.parameters).body).anchors

    def rules(self) -> Rules | None:
        """Return the rules that the parameters hold, or None without them; raises BadRecord."""
        if not self.parameters:
            return None
        return SwarmParameters.from_body(Envelope.from_bytes(self.parameters).body).rules


async def run_bootstrap(options: BootstrapOptions, reporter: Reporter) -> None:
    """Serve a swarm's bootstrap until told to stop.

    Raises:
        UserError: one of its calibrations cannot be used.
        DaemonDied: its p2pd has ended by itself.
    """
    calibrations = one_of_each([read_calibration(path) for path in options.calibrations])
    identity = Identity.load_or_create(options.home / "identity")
    state_path = options.home / _STATE_FILE
    founding = _load_or_found(state_path, identity, options)
    listen = options.listen or founding.listen or ("/ip4/127.0.0.1/tcp/0",)
    others = options.join.addresses if options.join else ()
    peers = JoinCode(others, founding.name, founding.parameters_hash, founding.secret)
    place_in_swarm = Swarm(
        identity, join=peers, listen=listen, announce=options.announce, carry=True, parameters=founding.parameters
    )
    async with place_in_swarm as swarm:
        founding = replace(founding, listen=_with_ports(listen, swarm.addresses), parameters=swarm.parameters_envelope)
        _save(state_path, founding)
        addresses = tuple(swarm.addresses)
        code = JoinCode((*addresses, *others), founding.name, founding.parameters_hash, founding.secret).encode()
        async with (
            bootstrap_duties(swarm, identity, options.home, options.join),
            calibrations_of_bootstrap(swarm, identity, calibrations, reporter),
        ):
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
                for task in (told, closed):
                    task.cancel()
                await asyncio.gather(told, closed, return_exceptions=True)


def _load_or_found(path: Path, identity: Identity, options: BootstrapOptions) -> Founding:
    if path.exists():
        try:
            founding = Founding.from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError, BadRecord) as error:
            raise UserError(
                f"The state of the bootstrap in {path} cannot be read; restore it, or move it away to found another."
            ) from error
        _check_founded(founding, path.parent, options)
        return founding
    if options.join is not None:
        if options.epoch_s is not None or options.proof_of_work_bits is not None or options.anchors:
            raise UserError(
                "The swarm that is joined has its rules already; leave out --epoch, --proof-of-work and --anchors."
            )
        return Founding(options.join.name, options.join.secret, b"", options.join.parameters_hash, ())
    envelope = seal(_parameters(identity.peer_id, options), identity).envelope
    secret = secrets.token_bytes(SECRET_BYTES) if options.private else None
    return Founding(options.name, secret, envelope, parameters_hash(envelope), ())


def _parameters(founder: str, options: BootstrapOptions) -> SwarmParameters:
    bits = options.proof_of_work_bits
    if bits is None:
        bits = 0 if options.private else _PUBLIC_PROOF_OF_WORK_BITS
    plain = SwarmParameters(
        founder=founder,
        t=int(time.time()),
        life_s=_LIFE_S,
        name=options.name,
        private=options.private,
        proof_of_work_bits=bits,
        anchors=_anchors(founder, options.anchors),
    )
    return plain if options.epoch_s is None else replace(plain, epoch_s=options.epoch_s)


def _anchors(founder: str, others: Sequence[str]) -> tuple[str, ...]:
    """Name the founder first: without anybody to begin with, nobody could be trusted."""
    anchors = tuple(dict.fromkeys((founder, *others)))
    if len(anchors) > MAX_ANCHORS:
        raise UserError(f"A swarm has at most {MAX_ANCHORS} anchors, this bootstrap among them; name fewer.")
    return anchors


def _check_founded(founding: Founding, home: Path, options: BootstrapOptions) -> None:
    """Refuse options that say something else than what stands in the state directory."""
    mend = "use another EFEDLLM_HOME for another swarm"
    if options.private and founding.secret is None:
        raise UserError(f"The swarm founded in {home} is public; use another EFEDLLM_HOME for a private one.")
    rules = founding.rules()
    if rules is None:
        if options.epoch_s is not None or options.proof_of_work_bits is not None or options.anchors:
            raise UserError(f"The rules of the swarm joined in {home} are its founder's; {mend}.")
        return
    if options.epoch_s not in (None, rules.epoch_s):
        raise UserError(f"The swarm of {home} has epochs of {rules.epoch_s} s; {mend}.")
    if options.proof_of_work_bits not in (None, rules.proof_of_work_bits):
        raise UserError(f"The swarm of {home} asks for {rules.proof_of_work_bits} bits of proof of work; {mend}.")
    if set(options.anchors) - set(founding.anchors()):
        raise UserError(f"The anchors of the swarm of {home} were named when it was founded; {mend}.")


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
