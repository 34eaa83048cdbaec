"""Every node of a swarm goes by the rules that its founder signed, or stores nothing that depends on them."""

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dht.charter import Charter
from dht.errors import BadRecord, PeerUnreachable
from dht.hardening.storage import MAX_SUBKEYS
from dht.ident import Ident, Role
from dht.identity import Identity
from dht.parameters import JoinCode, parameters_hash
from dht.records import Kind, place, seal
from dht.rules import DEFAULT_RULES, Rules
from dht.swarm import Swarm
from dht.testnet import found, testnet
from dht.validation import RecordValidator
from tests.dht.receipts.made import holds
from tests.dht.samples import announcement
from tests.dht.test_swarm import eventually
from tests.dht.test_validation import as_stored

RULES = Rules(epoch_s=600, window_epochs=4, evidence_epochs=8, proof_of_work_bits=0)


def identity_record(owner: Identity, rules: Rules = RULES):
    epoch = rules.epoch_of(time.time())
    return seal(Ident(owner.peer_id, epoch, epoch, 0, Role.CLIENT, ""), owner, rules=rules)


def refusal(validator: RecordValidator, signed) -> str | None:
    record = as_stored(signed)
    return validator.why_not(record.key, record.subkey, record.value, record.expiration_time)


def test_what_depends_on_rules_that_are_not_known_is_refused_and_what_does_not_is_not():
    validator, owner = RecordValidator(), Identity.ephemeral()
    Charter(bytes(32), b"", validator)
    assert refusal(validator, identity_record(owner, DEFAULT_RULES)) == "rules not known"
    assert refusal(validator, seal(announcement(owner), owner)) is None
    validator.rules = RULES
    assert refusal(validator, identity_record(owner)) is None


def test_a_swarm_without_parameters_has_the_default_rules_at_once():
    validator, owner = RecordValidator(), Identity.ephemeral()
    charter = Charter(b"", b"", validator)
    assert charter.parameters is None
    assert charter.max_subkeys == MAX_SUBKEYS
    assert refusal(validator, identity_record(owner, DEFAULT_RULES)) is None


def test_other_parameters_than_the_join_code_names_are_not_taken():
    founder, validator = Identity.ephemeral(), RecordValidator()
    envelope = found(founder, "lab", RULES).envelope
    other = found(founder, "lab", replace(RULES, epoch_s=1)).envelope
    announced = seal(announcement(founder), founder).envelope
    with pytest.raises(BadRecord, match="not the parameters"):
        Charter(parameters_hash(envelope), other, validator)
    with pytest.raises(BadRecord, match="no parameters"):
        Charter(parameters_hash(announced), announced, validator)
    assert not validator.knows_rules


@pytest.mark.parametrize(("quota", "holds"), [(10, 10), (MAX_SUBKEYS, MAX_SUBKEYS), (2**16, MAX_SUBKEYS)])
def test_the_quota_of_the_parameters_is_bounded_by_our_own(quota: int, holds: int):
    envelope = found(Identity.ephemeral(), "lab", RULES, key_quota=quota).envelope
    assert Charter(parameters_hash(envelope), envelope, RecordValidator()).max_subkeys == holds


async def test_who_joins_has_the_rules_of_the_founder_and_so_stores_by_them():
    async with testnet(3, rules=RULES, key_quota=2) as nodes:
        for node in nodes:
            assert node.parameters == nodes[0].parameters
            assert node.validator.rules == await node.wait_for_rules() == RULES
            assert parameters_hash(node.parameters_envelope) == node.parameters_hash
            assert node._overlay.protocol.storage.max_subkeys == 2
        signed = identity_record(nodes[1]._identity)
        assert await nodes[1].store(signed)
        assert await nodes[2].fetch(Kind.IDENT, signed.record.key_parts()) == [signed.record]
        assert not await nodes[1].store(identity_record(nodes[1]._identity, DEFAULT_RULES))


async def test_no_node_holds_more_under_one_key_than_the_founder_allows():
    async with testnet(2, rules=RULES, key_quota=2) as (first, second):
        owners = [Identity.ephemeral() for _ in range(3)]
        assert [await second.store(seal(announcement(owner), owner)) for owner in owners] == [True, True, False]
        newer = seal(announcement(owners[0], t=int(time.time()) + 1), owners[0])
        assert await first.store(newer), "who stands there may say something new"


async def test_parameters_stand_at_a_whole_region():
    async with testnet(8, rules=RULES) as nodes:
        signed = place(nodes[0].parameters, nodes[0].parameters_envelope)
        assert await nodes[3].store(signed)
        holders = [node for node in nodes if holds(node, signed)]
        assert len(holders) > 5, "as many as hold an announcement"


async def test_rules_that_the_nearest_members_hide_are_read_from_the_region():
    published = found(Identity.ephemeral(), "lab", RULES)
    charter = Charter(parameters_hash(published.envelope), b"", RecordValidator())
    overlay = SurroundedOverlay(published.envelope)
    await charter.read(overlay)
    assert charter.parameters == published.record
    assert overlay.asked == [False, True]


class SurroundedOverlay:
    """Gives a record to those alone who ask a whole region."""

    def __init__(self, envelope: bytes) -> None:
        self._envelope = envelope
        self.asked: list[bool] = []
        self.protocol = SimpleNamespace(storage=SimpleNamespace(max_subkeys=0))

    async def collect(self, key: bytes, *, is_regional: bool) -> list[bytes]:
        self.asked.append(is_regional)
        return [self._envelope] if is_regional else []


async def test_a_client_that_joins_later_reads_the_rules_too():
    async with (
        testnet(2, rules=RULES) as (first, second),
        Swarm(Identity.ephemeral(), join=second.join_code, client_mode=True) as client,
    ):
        assert client.parameters == first.parameters


async def test_parameters_that_are_published_later_are_found_and_nothing_that_needs_them_is_stored_before():
    founder = Identity.ephemeral()
    published = found(founder, "late", RULES)
    code = JoinCode((), "late", parameters_hash(published.envelope))
    async with Swarm(founder, join=code) as first, Swarm(Identity.ephemeral(), join=first.join_code) as second:
        owner = Identity.ephemeral()
        assert second.parameters is None
        assert not await second.store(identity_record(owner))
        assert second.validator.refusals["rules not known"] == 1
        with pytest.raises(PeerUnreachable, match="is a bootstrap of it running"):
            await second.wait_for_rules(0.01)
        waiting = asyncio.create_task(second.wait_for_rules())
        assert await second.store(published)

        async def known() -> bool:
            return first.parameters == second.parameters == published.record

        await eventually(known)
        assert await waiting == RULES
        assert await second.store(identity_record(owner))


async def test_another_record_under_the_key_of_the_parameters_changes_no_rule():
    founder, forger = Identity.ephemeral(), Identity.ephemeral()
    published = found(founder, "lab", RULES)
    forged = found(forger, "lab", replace(RULES, epoch_s=1))
    code = JoinCode((), "lab", parameters_hash(published.envelope))
    async with Swarm(forger, join=code) as evil:
        evil.validator.why_not = lambda *_: None
        await evil._overlay.publish(published.key, forged.subkey, forged.envelope, forged.expires_s)
        assert await evil._overlay.collect(published.key) == [forged.envelope]
        async with Swarm(Identity.ephemeral(), join=evil.join_code) as joiner:
            assert joiner.parameters is None
            assert joiner.validator.refusals["key"] > 0
