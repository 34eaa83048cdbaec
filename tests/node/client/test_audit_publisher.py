"""What was judged comes to stand on the DHT, also what nobody kept at first, and what is left at the end."""

import asyncio

import pytest

from dht.audit import Audit
from dht.errors import PeerUnreachable
from dht.rules import DEFAULT_RULES
from dht.validation import parse_envelope
from node.client import audit_publisher
from node.client.audit_book import Outcome
from node.client.audit_publisher import AuditPublisher
from tests.dht.samples import EPOCH, EPOCH_BEGAN
from tests.node.client.test_audit_tally import AUDITOR, PROVIDER, result


class Members:
    """Takes what is stored; ``num_holding`` says how many members do."""

    def __init__(self):
        self.stored, self.num_holding, self.error = [], 3, None

    async def store_many(self, records):
        if self.error is not None:
            raise self.error
        self.stored += [parse_envelope(signed.envelope, DEFAULT_RULES)[1].record for signed in records]
        return [self.num_holding] * len(records)


@pytest.fixture
def members():
    return Members()


def publisher(members):
    return AuditPublisher(members, AUDITOR, DEFAULT_RULES, lambda: EPOCH_BEGAN + 100.5)


async def test_a_batch_is_published_once_and_again_only_when_nobody_kept_it(members):
    async with publisher(members) as publishing:
        publishing.enter(result())
        members.num_holding = 0
        assert await publishing.publish() == 0
        members.num_holding = 3
        assert await publishing.publish() == 1
        assert await publishing.publish() == 0
    assert len(members.stored) == 2
    assert {(audit.auditor, audit.epoch, audit.t) for audit in members.stored} == {
        (AUDITOR.peer_id, EPOCH, EPOCH_BEGAN + 100)
    }
    assert {audit.provider for audit in members.stored} == {PROVIDER.peer_id}


async def test_what_is_left_is_published_at_the_end(members):
    async with publisher(members) as publishing:
        publishing.enter(result(Outcome.FAIL))
    assert [type(record) for record in members.stored] == [Audit]


async def test_it_is_published_by_itself_after_a_while_and_tried_again_after_an_error(members, monkeypatch):
    monkeypatch.setattr(audit_publisher, "PERIOD_S", 0.01)
    members.error = PeerUnreachable("nobody answers")
    async with publisher(members) as publishing:
        publishing.enter(result())
        await asyncio.sleep(0.05)
        assert not members.stored
        members.error = None
        async with asyncio.timeout(5):
            while not members.stored:
                await asyncio.sleep(0.01)


async def test_a_node_that_has_lost_the_swarm_ends_without_its_last_word(members):
    members.error = PeerUnreachable("nobody answers")
    async with publisher(members) as publishing:
        publishing.enter(result())
    assert not members.stored
