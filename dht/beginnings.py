"""Remember since which epoch an identity exists in each swarm, and its proof of work: ``EFEDLLM_HOME/ident.json``.

What the file says is believed only as far as it bears itself out. This file knows no network. It runs at start-up.
"""

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from dht.ident import proof_bits
from dht.rules import Rules
from dht.work import MAX_EPOCH

BEGINNINGS_FILE = "ident.json"
"""Name of the file in a node's state directory."""

MAX_FILE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Beginning:
    """Since when an identity exists in one swarm."""

    created_epoch: int  # epoch that it counts from
    nonce: int  # its proof of work
    epoch_s: int  # length of that swarm's epochs, seconds

    @property
    def since_s(self) -> int:
        """When that epoch began, unix seconds."""
        return self.created_epoch * self.epoch_s

    def holds(self, peer_id: str, rules: Rules, now_s: float) -> bool:
        """Say whether a swarm with these rules believes it."""
        if self.epoch_s != rules.epoch_s or self.created_epoch > rules.epoch_of(now_s):
            return False
        return proof_bits(peer_id, self.created_epoch, self.nonce) >= rules.proof_of_work_bits


def read_beginnings(path: Path, peer_id: str) -> dict[str, Beginning]:
    """Read in which swarms an identity was enrolled, by the hex of their parameters' hash; empty where none is."""
    return _beginnings_in(_read_file(path).get(peer_id))


def _read_file(path: Path) -> dict[str, object]:
    """Read what the file says of each identity; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            whole = json.loads(file.read(MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return whole if isinstance(whole, dict) else {}


def _beginnings_in(entries: object) -> dict[str, Beginning]:
    """Read what is said of one identity; all of it counts, or nothing."""
    try:
        read = {str(swarm): Beginning(**entry) for swarm, entry in entries.items()}  # type: ignore[attr-defined]
    except (TypeError, AttributeError):
        return {}
    return {swarm: beginning for swarm, beginning in read.items() if _is_sound(beginning)}


def _to_text(known: dict[str, dict[str, Beginning]]) -> str:
    fields = {
        peer: {swarm: asdict(each) for swarm, each in entries.items()} for peer, entries in known.items() if entries
    }
    return json.dumps(fields, indent=1)


def _is_sound(beginning: Beginning) -> bool:
    bounds = ((beginning.created_epoch, MAX_EPOCH), (beginning.nonce, 2**64 - 1), (beginning.epoch_s, 2**24))
    return all(isinstance(value, int) and 0 <= value <= most for value, most in bounds)


def write_beginning(path: Path, peer_id: str, swarm: str, beginning: Beginning) -> None:
    """Add to what is known of an identity; what is known of others stays. The file changes whole or not at all.

    Of others is kept what can be read; where that would make the file too long to be read again, nothing is.

    Raises:
        OSError: It could not be written.
    """
    known = {each: _beginnings_in(entries) for each, entries in _read_file(path).items()}
    known[peer_id] = {**known.get(peer_id, {}), swarm: beginning}
    text = _to_text(known)
    if len(text) >= MAX_FILE_BYTES:
        text = _to_text({peer_id: known[peer_id]})
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
