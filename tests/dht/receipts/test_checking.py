"""Which signatures are believed when many are checked at once, in worker processes."""

import asyncio
from dataclasses import replace

import pytest

from dht.identity import Identity
from dht.receipts.checking import SignatureChecker, job_in
from dht.receipts.signatures import are_signed
from dht.records import Envelope, seal
from dht.rules import DEFAULT_RULES
from dht.validation import RecordValidator
from tests.dht.samples import EPOCH_BEGAN, receipt
from tests.dht.test_validation import as_stored

P, C, STRANGER = (Identity.ephemeral() for _ in range(3))


def envelopes(count: int) -> list[bytes]:
    return [seal(receipt(P, C, lane=lane), P, C).envelope for lane in range(count)]


def forged(envelope: bytes) -> bytes:
    opened = Envelope.from_bytes(envelope)
    return replace(opened, signatures=(opened.signatures[0], STRANGER.sign(opened.kind, opened.body))).to_bytes()


def jobs(made: list[bytes]):
    return [job_in(envelope, DEFAULT_RULES) for envelope in made]


def test_a_record_is_signed_by_all_its_authors_or_not_at_all():
    kind, body, authors, signatures = jobs(envelopes(1))[0]
    assert are_signed([(kind, body, authors, signatures)]) == [True]
    wrong = [
        (kind + 1, body, authors, signatures),
        (kind, body + b"x", authors, signatures),
        (kind, body, authors, signatures[:1]),
        (kind, body, authors, signatures[::-1]),
        (kind, body, (), ()),
    ]
    assert are_signed(wrong) == [False] * 5


@pytest.mark.parametrize("many", [1, 10**9])
async def test_the_same_are_believed_in_workers_and_here(many):
    made = envelopes(40)
    mixed = [forged(envelope) if index % 3 == 0 else envelope for index, envelope in enumerate(made)]
    async with SignatureChecker(many=many) as checker:
        verdicts = await checker.check(jobs(mixed))
        assert verdicts == [index % 3 != 0 for index in range(40)]
        assert checker.has_workers == (many == 1)


async def test_a_validator_remembers_what_was_checked_beforehand_and_nothing_else():
    validator = RecordValidator(clock=lambda: EPOCH_BEGAN + 100)
    good, bad = seal(receipt(P, C), P, C), forged(seal(receipt(P, C, lane=8), P, C).envelope)
    async with SignatureChecker() as checker:
        await checker.forestall(validator, [good.envelope, good.envelope, bad, b"junk", b""])
    assert validator.remembers(good.envelope)
    assert not validator.remembers(bad)
    assert validator.validate(as_stored(good))


async def test_verdicts_come_although_a_worker_has_been_killed():
    async with SignatureChecker(many=1) as checker:
        assert await checker.check(jobs(envelopes(3))) == [True] * 3
        for worker in checker._workers:
            await worker.stop()
        assert await checker.check(jobs([*envelopes(3), forged(envelopes(1)[0])])) == [True] * 3 + [False]


async def test_a_check_that_was_given_up_leaves_no_verdict_for_the_next():
    async with SignatureChecker(num_workers=1, many=1) as checker:
        given_up = asyncio.get_running_loop().create_task(checker.check(jobs(envelopes(400))))
        while not checker.has_workers:
            await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert await checker.check(jobs([forged(envelopes(1)[0])])) == [False]
