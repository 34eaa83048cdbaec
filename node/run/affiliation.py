"""``efedllm identity link`` and ``consent``: let a swarm know that a server and a client are one owner's.

    consent, where the client is      its key signs [server, client, epoch]; a line of text comes out
    link, where the server is         its key signs the same; the record stands in the swarm

Under one ``EFEDLLM_HOME`` both keys are at hand, and ``link`` needs no line. Neither command runs as its identity, so a
node that uses it goes on. Runs on the event loop of a command.
"""

from __future__ import annotations

import base64
import binascii
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord
from dht.ident import Affiliation
from dht.identity import Identity, peer_id_to_bytes, verify
from dht.parameters import JoinCode
from dht.records import Envelope, Kind, SignedRecord, place, seal, take_peer_id
from dht.rules import Rules
from dht.swarm import Swarm
from dht.work import MAX_EPOCH
from node.client.offers import check_peer_id
from node.config import CLIENT_IDENTITY, IDENTITY
from node.errors import NotStored, UserError
from node.run.swarm_receipts import RULES_S

_MAX_BYTES = 256
_MEND = "paste the whole line that `efedllm identity consent SERVER_PEER_ID` printed where the client is."


@dataclass(frozen=True, slots=True)
class Consent:
    """That a client belongs to a server's owner, signed by the client; a line of text between two machines."""

    member: str
    epoch: int
    signature: bytes

    def to_text(self) -> str:
        """Write it as one word."""
        return base64.urlsafe_b64encode(encode([peer_id_to_bytes(self.member), self.epoch, self.signature])).decode()

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read it.

        Raises:
            UserError: it is no such line.
        """
        try:
            fields = Fields(decode(base64.b64decode(text.strip(), altchars=b"-_", validate=True), _MAX_BYTES))
            member = take_peer_id(fields, "member")
            consent = cls(member, fields.uint("epoch", MAX_EPOCH), fields.blob("signature", 64))
            fields.end()
        except (binascii.Error, BadRecord, ValueError):
            raise UserError(f"That is no consent of a client; {_MEND}") from None
        return consent


async def consent(home: Path, join: JoinCode, server: str) -> None:
    """Print that this home's client belongs to a server's owner, signed.

    Args:
        home: The client's state directory; its identity is made where there is none.
        join: Of the swarm.
        server: Peer id of the server.

    Raises:
        UserError: That is no peer id, or the client's own.
    """
    check_peer_id(server)
    client = Identity.load_or_create(home / CLIENT_IDENTITY)
    if server == client.peer_id:
        raise UserError(f"{server} is this client itself; name the server, as `identity show` says it there.")
    async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as swarm:
        rules = await swarm.wait_for_rules(RULES_S)
    made = Affiliation(server, client.peer_id, rules.epoch_of(time.time()))
    given = Consent(client.peer_id, made.epoch, client.sign(Kind.AFFILIATION, made.to_body()))
    sys.stdout.write(given.to_text() + "\n")
    sys.stderr.write(
        f"Give this line to `efedllm identity link --consent LINE` where {server} is. From then on everybody can see "
        f"that {client.peer_id} is used by that server's owner.\n"
    )


async def link(home: Path, join: JoinCode, line: str | None) -> None:
    """Publish that this home's server and a client are one owner's.

    Args:
        home: The server's state directory.
        join: Of the swarm.
        line: What ``consent`` printed; None: the client is this home's, too.

    Raises:
        UserError: There is no server's identity, or the line is not for it.
        NotStored: No member of the swarm keeps the record.
    """
    try:
        server = Identity.load(home / IDENTITY)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no identity in {home}; `efedllm identity show` makes one.") from None
    given = Consent.from_text(line) if line is not None else None
    async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as swarm:
        rules = await swarm.wait_for_rules(RULES_S)
        signed = _of_home(home, server, rules) if given is None else _of_consent(given, server, rules)
        (num_members,) = await swarm.store_many([signed])
    if not num_members:
        raise NotStored(
            "No member of the swarm keeps the record, so nothing has changed; run it again when a bootstrap or a "
            "server answers."
        )
    record = signed.record
    assert isinstance(record, Affiliation)
    days = (rules.end_of_evidence(record.epoch) - time.time()) / 86400
    sys.stdout.write(f"{record.member}\n")
    sys.stderr.write(
        f"{num_members} members of the swarm know that this client and the server {server.peer_id} are one owner's: "
        f"what the server gives lifts the client's requests where not all can be served, for {days:.0f} days.\n"
    )


def _of_home(home: Path, server: Identity, rules: Rules) -> SignedRecord:
    client = Identity.load_or_create(home / CLIENT_IDENTITY)
    made = Affiliation(server.peer_id, client.peer_id, rules.epoch_of(time.time()))
    return seal(made, server, client, rules=rules)


def _of_consent(given: Consent, server: Identity, rules: Rules) -> SignedRecord:
    if given.member == server.peer_id:
        raise UserError(f"That consent is this server's own; {_MEND}")
    made = Affiliation(server.peer_id, given.member, given.epoch)
    body = made.to_body()
    if not verify(peer_id_to_bytes(given.member), Kind.AFFILIATION, body, given.signature):
        raise UserError(f"That consent is for another server than {server.peer_id}; {_MEND}")
    now_s = time.time()
    if (reason := made.objection(rules, now_s)) is not None or made.expires_s(rules) <= now_s:
        raise UserError(f"That consent is {reason or 'too old'}; print a new one, with both clocks right.")
    signatures = (server.sign(Kind.AFFILIATION, body), given.signature)
    return place(made, Envelope(Kind.AFFILIATION, body, signatures).to_bytes(), rules)
