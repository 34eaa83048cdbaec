"""Which signatures are believed when many are checked at once, in worker processes."""

import asyncio
from dataclasses import replace

import pytest
import uvloop

from dht.identity import Identity
from dht.receipts.checking import SignatureChecker, job_in
from dht.receipts.signatures import are_signed
from dht.records import Envelope, seal
from dht.rules import DEFAULT_RULES
from dht.validation import RecordValidator
from tests.dht.samples import EPOCH_BEGAN, receipt
from tests.dht.test_validation import as_stored

P, C, STRANGER = (Identity.ephemeral() for _ in range(3))


def on_both_loops(test):
    """Run a test on asyncio's own loop and on uvloop, on which nodes run: they differ about pipes that are broken."""

    @pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def on_loop(loop):
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(test())

    return on_loop


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


@on_both_loops
async def test_the_same_are_believed_in_workers_and_here():
    made = envelopes(40)
    mixed = [forged(envelope) if index % 3 == 0 else envelope for index, envelope in enumerate(made)]
    for many in (1, 10**9):
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


async def killed(checker) -> int:
    """Kill the processes of a checker, and wait until that is known here; how many there were."""
    processes = [worker._process for worker in checker._workers if worker._process is not None]
    for process in processes:
        process.kill()
        await process.wait()
    return len(processes)


@on_both_loops
async def test_verdicts_come_although_workers_die_and_others_take_their_places():
    mixed = jobs([*envelopes(3), forged(envelopes(1)[0])])
    async with SignatureChecker(num_workers=1, many=1) as checker:
        for _ in range(3):
            assert await checker.check(mixed) == [True] * 3 + [False]
            assert await killed(checker) == 1, "it was checked in a process"
        await checker._workers[0].start()
        checker._workers[0]._process.kill()
        assert await checker.check(mixed) == [True] * 3 + [False], "its death is not known here yet"


@on_both_loops
async def test_a_pipe_that_breaks_while_it_is_written_to_costs_no_verdict():
    async with SignatureChecker(num_workers=1, many=1) as checker:
        assert await checker.check(jobs(envelopes(1))) == [True]
        checker._workers[0]._process.stdin.transport.abort()
        await asyncio.sleep(0.05)
        for _ in range(3):
            assert await checker.check(jobs([*envelopes(2), forged(envelopes(1)[0])])) == [True, True, False]
        assert await killed(checker) == 1, "another worker took its place"


@on_both_loops
async def test_a_machine_that_starts_no_process_checks_all_the_same():
    async with SignatureChecker(many=1) as checker:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dht.receipts.checking.command", lambda: ["/nowhere/no-python"])
            assert await checker.check(jobs([*envelopes(3), forged(envelopes(1)[0])])) == [True] * 3 + [False]


@on_both_loops
async def test_a_reader_that_gives_up_cancels_no_other_that_waits_for_the_same():
    validator = RecordValidator(clock=lambda: EPOCH_BEGAN + 100)
    made = envelopes(200)
    async with SignatureChecker() as checker:
        one, other = (asyncio.create_task(checker.forestall(validator, made)) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        await other
    assert all(validator.remembers(envelope) for envelope in made)


@on_both_loops
async def test_a_check_that_was_given_up_leaves_no_verdict_for_the_next():
    async with SignatureChecker(num_workers=1, many=1) as checker:
        given_up = asyncio.get_running_loop().create_task(checker.check(jobs(envelopes(400))))
        while not any(worker._process for worker in checker._workers):
            await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert await checker.check(jobs([forged(envelopes(1)[0])])) == [False]
