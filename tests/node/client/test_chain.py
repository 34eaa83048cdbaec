"""A chain over a real socket: one step at a time gets its own answer, and a second one is told so at once."""

import asyncio
import contextlib
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from dht.errors import PeerUnreachable
from node.client import chain as chains
from node.client.chain import Chain, SessionShape
from node.client.repair import Replacement
from node.client.route import Stage
from node.client.stage_link import StageLink
from node.errors import CannotSign, LocalError, MissingBlocks, SessionError, StageLost
from node.transport import FrameStream
from node.wire import Alive, Checkpoint, Drain, Probe, Result, Step

SESSION = bytes(16)


@dataclass
class SocketStream:
    """One end of a TCP connection on loopback, as ``dht.swarm.Stream`` offers it."""

    peer_id: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def finish(self):
        await self.close()


@contextlib.asynccontextmanager
async def stream():
    """Yield both ends of a stream between a client and a stage."""
    accepted = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *pair: accepted.set_result(pair), "127.0.0.1", 0)
    here = FrameStream(SocketStream("stage", *await asyncio.open_connection(*server.sockets[0].getsockname())))
    there = FrameStream(SocketStream("client", *await accepted))
    try:
        yield here, there
    finally:
        await there.close()
        await here.close()
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def chain_of_one_stage(step_timeout_s, contract=None):
    """Yield a chain and the stage's end of its control stream."""
    async with stream() as (control, stage), stream() as (push, _):
        deal = SimpleNamespace() if contract is not None else None
        link = StageLink(Stage("stage", 0, 4, ()), SESSION, control, "float32", deal)
        shape = SessionShape(bytes(32), 1, (), 64, "float32")
        chain = Chain(None, SESSION, shape, [link], push, step_timeout_s=step_timeout_s, contract=contract)
        try:
            yield chain, stage
        finally:
            await chain.close()


def step(position):
    return Step(SESSION, position, (1, 1, 1), "float32", bytes(4))


def answer(position):
    return Result(SESSION, position, (1, 1, 1), "float32", bytes(4))


def send_one(chain, position):
    outcome = asyncio.get_running_loop().create_future()
    chain.run_one(step(position), lambda value, error: outcome.set_result((value, error)))
    return outcome


async def test_a_second_step_is_refused_while_one_waits_and_the_first_gets_its_answer():
    async with chain_of_one_stage(10) as (chain, stage):
        first = send_one(chain, 0)
        _, error = await send_one(chain, 1)
        assert isinstance(error, LocalError)
        with pytest.raises(LocalError, match="one for each thread"):
            await chain.run([step(1), step(2)])
        await stage.send(answer(0))
        result, error = await asyncio.wait_for(first, 10)
        assert (result.position, error) == (0, None)
        second = send_one(chain, 1)
        await stage.send(answer(1))
        assert (await asyncio.wait_for(second, 10))[0].position == 1


async def test_a_step_is_refused_while_several_are_under_way():
    async with chain_of_one_stage(10) as (chain, stage):
        several = asyncio.create_task(chain.run([step(0), step(1)]))
        await asyncio.sleep(0)
        _, error = await send_one(chain, 2)
        assert isinstance(error, LocalError)
        for position in (0, 1):
            await stage.send(answer(position))
        assert [result.position for result in await several] == [0, 1]


async def test_a_step_that_nobody_answers_ends_in_time_even_when_a_second_was_tried():
    async with chain_of_one_stage(0.2) as (chain, _):
        first = send_one(chain, 0)
        await send_one(chain, 1)
        _, error = await asyncio.wait_for(first, 10)
        assert isinstance(error, StageLost)


async def test_a_stage_that_answers_another_step_is_lost():
    async with chain_of_one_stage(10) as (chain, stage):
        first = send_one(chain, 0)
        await stage.send(answer(3))
        _, error = await asyncio.wait_for(first, 10)
        assert isinstance(error, SessionError)


async def test_a_stage_that_closes_its_stream_is_lost_and_later_steps_fail_too():
    async with chain_of_one_stage(10) as (chain, stage):
        first = send_one(chain, 0)
        await stage.close()
        assert isinstance((await asyncio.wait_for(first, 10))[1], StageLost)
        assert isinstance((await asyncio.wait_for(send_one(chain, 1), 10))[1], StageLost)


class NobodyThere:
    """A planner of a swarm in which nobody could take over."""

    def __init__(self):
        self.num_asked = 0

    async def plan(self, _start, _end, _without):
        self.num_asked += 1
        raise MissingBlocks("Nobody.")

    def failed(self, peer_id, reason):
        """Forget it."""

    def tell(self, repaired):
        raise AssertionError(f"nothing was repaired: {repaired}")

    def rechecked(self, rechecked):
        raise AssertionError(f"nothing is signed for here: {rechecked}")


class EmptySwarm:
    """A swarm in which nobody can be reached."""

    async def dial(self, peer_id, _protocol, *, addresses=()):
        raise PeerUnreachable(f"{peer_id} is not there")


@contextlib.asynccontextmanager
async def chain_of_two_stages(planner, step_timeout_s, contract=None):
    """Yield a chain and both stages' ends of their control streams."""
    async with stream() as (first, first_stage), stream() as (last, last_stage), stream() as (push, _):
        links = [
            StageLink(Stage("first", 0, 2, ()), SESSION, first, "float32"),
            StageLink(Stage("last", 2, 4, ()), SESSION, last, "float32"),
        ]
        shape = SessionShape(bytes(32), 1, (), 64, "float32")
        options = {"step_timeout_s": step_timeout_s, "planner": planner, "contract": contract}
        chain = Chain(EmptySwarm(), SESSION, shape, links, push, **options)
        try:
            yield chain, first_stage, last_stage
        finally:
            await chain.close()


@contextlib.asynccontextmanager
async def giving_signs(stage, taken, handed_on, *after):
    """Let a stage answer every probe with the same sign of life, and send the frames ``after`` behind the first one."""

    async def answer_probes():
        more = list(after)
        while (frame := await stage.receive()) is not None:
            if isinstance(frame, Probe):
                await stage.send(Alive(SESSION, frame.tag, taken, handed_on))
                while more:
                    await stage.send(more.pop(0))

    answering = asyncio.create_task(answer_probes())
    try:
        yield
    finally:
        answering.cancel()


async def test_a_stage_that_never_catches_up_is_waited_for_only_as_long_as_a_step_may_take():
    async with chain_of_two_stages(NobodyThere(), 0.5) as (chain, first, last), giving_signs(first, 0, 0):
        answered = send_one(chain, 0)
        await last.send(answer(0))
        await asyncio.wait_for(answered, 10)
        lost = send_one(chain, 1)
        await last.close()
        _, error = await asyncio.wait_for(lost, 10)
        assert isinstance(error, MissingBlocks)


class AsksFor(NobodyThere):
    """A planner that notes for which blocks it is asked, and who is said to have failed."""

    def __init__(self):
        super().__init__()
        self.asked, self.failures = [], []

    async def plan(self, start, end, without):
        self.asked.append((start, end))
        return await super().plan(start, end, without)

    def failed(self, peer_id, reason):
        self.failures.append(peer_id)


@pytest.mark.parametrize(
    ("handed_on", "after", "asked"),
    [(0, (), (0, 4)), (1, (), (0, 2)), (1, (answer(1),), (0, 2))],
    ids=["without its history", "with it", "with it and answering meanwhile"],
)
async def test_a_stage_is_replaced_with_the_one_before_only_if_that_was_giving_it_its_history(handed_on, after, asked):
    planner = AsksFor()
    async with chain_of_two_stages(planner, 0.5) as (chain, first, last), giving_signs(last, 1, handed_on, *after):
        answered = send_one(chain, 0)
        await last.send(answer(0))
        await asyncio.wait_for(answered, 10)
        lost = send_one(chain, 1)
        await first.close()
        await asyncio.wait_for(lost, 10)
        for _ in range(100):
            if planner.asked:
                break
            await asyncio.sleep(0.05)
    assert planner.asked[0] == asked
    assert set(planner.failures) == {"first"}


async def test_nobody_is_asked_again_and_again_for_a_leaving_stage_that_is_gone():
    planner = NobodyThere()
    async with chain_of_two_stages(planner, 10) as (_, first, _):
        await first.send(Drain(SESSION, 30))
        await asyncio.sleep(0.1)
        await first.close()
        await asyncio.sleep(1.5)
        assert planner.num_asked == 2, "once for its blocks, once for those of its neighbour too"


class NotingContract:
    """A contract that checks nothing, and notes what those who take others' places are given."""

    next_segment, is_due = 1, False

    def __init__(self):
        self.num_sent, self.handed = 0, asyncio.get_running_loop().create_future()

    def sent(self, step):
        self.num_sent += 1
        return step

    def answered(self, step, result):
        """Take it as it is."""

    def overdue(self):
        return []

    def unsigned(self, place, *, is_at_fault=False):
        return ()

    def checkpoint(self, place, body):
        raise CannotSign("The disk is full; free some space.")

    def replaced(self, first, last, deals, handed):
        self.handed.set_result(handed)

    def seal(self):
        """End nothing."""

    def close(self):
        """End nothing."""


async def test_what_an_heir_is_given_does_not_change_while_it_is_opened(monkeypatch):
    contract = NotingContract()
    async with chain_of_two_stages(NobodyThere(), 5, contract) as (chain, first, last), giving_signs(last, 4, 1):

        async def open_slowly(*_, **__):
            await last.send(answer(1))
            while chain._answered < 2:
                await asyncio.sleep(0.01)
            return Replacement(0, 0, [])

        monkeypatch.setattr(chains, "open_replacement", open_slowly)
        running = asyncio.create_task(chain.run([step(position) for position in range(4)]))
        await last.send(answer(0))
        while chain._answered < 1 or contract.num_sent < 4:
            await asyncio.sleep(0.01)
        await first.close()
        handed = await asyncio.wait_for(contract.handed, 10)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert (handed.answered, handed.length) == (1, 1)
    assert [given.position for given in handed.waiting] == [1, 2, 3]


async def test_a_session_whose_client_cannot_sign_ends_and_says_why():
    async with chain_of_one_stage(10, NotingContract()) as (chain, stage):
        answered = send_one(chain, 0)
        await stage.send(Checkpoint(SESSION, b"body"))
        _, error = await asyncio.wait_for(answered, 10)
        assert isinstance(error, CannotSign)


async def test_who_is_told_of_answers_hears_of_them_before_the_caller_and_of_the_end():
    heard = []
    told = SimpleNamespace(answered=lambda asked, given: heard.append((asked, given)), end=lambda: heard.append("end"))
    async with chain_of_one_stage(10) as (chain, stage):
        chain.trace = told
        chain.run_one(step(0), lambda given, error: heard.append("settled"))
        assert chain.is_waiting
        await stage.send(answer(0))
        async with asyncio.timeout(10):
            while "settled" not in heard:
                await asyncio.sleep(0)
        assert not chain.is_waiting
    assert heard == [(step(0), answer(0)), "settled", "end"]
