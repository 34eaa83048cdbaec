"""An admitted but malicious member: whatever it sends, the server refuses it, goes on serving, and stays small.

The attacker is a real node of the swarm that writes its own bytes. After every attack an honest client generates
through the same servers and must get transformers' tokens.
"""

import asyncio
import contextlib
import math
import os
import struct
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy
import pytest

from dht.directory import read_directory
from dht.errors import PeerUnreachable
from dht.hardening.control import MAX_STREAMS_PER_PEER
from dht.identity import Identity
from dht.parameters import parse_join
from dht.swarm import Stream, Swarm
from node.model.checkpoint import Checkpoint
from node.wire import MAX_FRAME_BYTES, PROTOCOL, Accept, Frame, Refuse, Result, decode, decode_length
from tests.limits.commands import resident_bytes
from tests.limits.small_swarm import MAX_SESSIONS_OF_ONE, SmallSwarm

HIDDEN = 32
ANSWER_S = 20.0
MIB = 2**20


def raw(header: Any, payload: bytes = b"") -> bytes:
    """Write a frame without asking whether it may be written."""
    body = msgpack.packb(header) + payload
    return struct.pack(">I", len(body)) + body


class Attack:
    """One stream of a malicious member to a server."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    async def send(self, data: bytes) -> None:
        """Write bytes; a server that has hung up already is a fine answer too."""
        try:
            self.stream.writer.write(data)
            await self.stream.writer.drain()
        except (OSError, RuntimeError):
            pass

    async def answer(self) -> Frame | None:
        """Read the next frame; None when the server has closed the stream."""
        async with asyncio.timeout(ANSWER_S):
            try:
                length = decode_length(await self.stream.reader.readexactly(4))
                return decode(await self.stream.reader.readexactly(length))
            except (asyncio.IncompleteReadError, OSError):
                return None

    async def close(self) -> None:
        """Hang up."""
        await self.stream.close()


@dataclass
class Member:
    """The attacker: a member of the swarm under an identity of its own."""

    runner: asyncio.Runner
    swarm: Swarm
    small: SmallSwarm
    manifest: bytes
    attacks: list[Attack] = field(default_factory=list)

    def run(self, attack: Coroutine[Any, Any, Any]) -> Any:
        """Run a piece of an attack in the attacker's loop."""
        return self.runner.run(attack)

    async def dial(self, server: int = 0) -> Attack:
        """Open a stream to the server of blocks 0:3 (0) or 3:6 (1)."""
        return Attack(await self.swarm.dial(self.small.peers[server], PROTOCOL))

    def open(self, server: int = 0, **changes: Any) -> dict[str, Any]:
        """Return the header of an ``open`` that is fine but for ``changes``."""
        start = 3 * server
        header = {
            "kind": "open",
            "session": os.urandom(16),
            "manifest": self.manifest,
            "start": start,
            "end": start + 3,
        }
        header |= {"batch": 1, "left_padding": [], "max_length": 64, "codec": "float32"}
        return {**header, "previous": "", "next": "", "next_addresses": [], **changes}

    async def opened(self, server: int = 0, **changes: Any) -> tuple[Attack, bytes]:
        """Open a session; return its stream and id."""
        attack, header = await self.dial(server), self.open(server, **changes)
        await attack.send(raw(header))
        assert isinstance(await attack.answer(), Accept)
        return attack, header["session"]

    async def num_accepted(self, count: int, server: int = 0) -> int:
        """Open ``count`` sessions at once, close them, and return how many were accepted."""
        attacks = await asyncio.gather(*(self.dial(server) for _ in range(count)))
        await asyncio.gather(*(attack.send(raw(self.open(server))) for attack in attacks))
        answers = await asyncio.gather(*(attack.answer() for attack in attacks))
        await asyncio.gather(*(attack.close() for attack in attacks))
        return sum(isinstance(answer, Accept) for answer in answers)

    async def until_all_is_free(self, server: int = 0, within_s: float = ANSWER_S) -> None:
        """Wait until the server has no session left: then it takes as many as it ever does."""
        async with asyncio.timeout(within_s):
            while await self.num_accepted(MAX_SESSIONS_OF_ONE, server) < MAX_SESSIONS_OF_ONE:
                await asyncio.sleep(0.2)


def step(session: bytes, hidden: numpy.ndarray | None = None, **changes: Any) -> bytes:
    """Return a step of ``hidden`` ``[rows, tokens, HIDDEN]`` that is fine but for ``changes``."""
    hidden = numpy.ones((1, 2, HIDDEN), numpy.float32) if hidden is None else hidden
    header = {"kind": "step", "session": session, "position": 0, "shape": list(hidden.shape), "codec": "float32"}
    return raw({**header, **changes}, hidden.tobytes())


@pytest.fixture(scope="module")
def members(uncounted: SmallSwarm) -> Iterator[tuple[Member, Member]]:
    """Two attackers who know the join code. What they do where work is counted is in tests/attacks and tests/fuzz."""
    small = uncounted
    manifest = Checkpoint.open(str(small.model)).manifest32
    with asyncio.Runner() as runner:
        swarms = [Swarm(Identity.ephemeral(), join=parse_join(small.join), client_mode=True) for _ in range(2)]
        for swarm in swarms:
            runner.run(swarm.__aenter__())
            runner.run(read_directory(swarm, manifest, time.time()))  # A client learns there where servers are.
        try:
            yield (Member(runner, swarms[0], small, manifest), Member(runner, swarms[1], small, manifest))
        finally:
            for swarm in swarms:
                runner.run(swarm.__aexit__(None, None, None))


@pytest.fixture
def member(members: tuple[Member, Member]) -> Member:
    return members[0]


# ------------------------------------------------------------------------------- what begins a stream and may not

_BAD_BEGINNINGS: dict[str, Any] = {
    "a length of zero": bytes(4),
    "a length beyond the bound": struct.pack(">I", MAX_FRAME_BYTES + 1) + bytes(100),
    "garbage": bytes(range(255, 55, -1)),
    "no msgpack": struct.pack(">I", 50) + b"\xc1" * 50,
    "a list for a header": raw(["open"]),
    "nesting without end": struct.pack(">I", 3000) + b"\x91" * 3000,
    "a text of four gigabytes": struct.pack(">I", 9) + b"\x81\xa4kind\xdb\xff\xff",
    "an unknown kind": raw({"kind": "shutdown"}),
    "a kind that is no text": raw({"kind": 7}),
    "a frame for clients": raw({"kind": "accept", "session": bytes(16), "dtype": "float32"}),
    "a step of no session": step(bytes(16)),
    "a step with a length that lies": step(bytes(16), shape=[1, 500, HIDDEN]),
    "an unknown field": {"surprise": 1},
    "a negative batch": {"batch": -1},
    "a count that is not a number": {"batch": math.nan},
    "a count that is a text": {"max_length": "64"},
    "a batch beyond the bound": {"batch": 10**6},
    "a length of a session beyond the bound": {"max_length": 2**40},
    "a session id that is too long": {"session": bytes(17)},
    "a next stage that is no base58": {"next": "0OIl"},
    "a next stage that is no ASCII": {"next": "\u00e9\u00e9"},
    "a next stage that is no peer": {"next": "nobody"},
    "a previous stage that is no peer": {"previous": "nobody"},
    "a first frame beyond what a header may take": raw({"kind": "close", "session": bytes(16)}, bytes(2**16)),
    "a large step of no session": step(bytes(16), numpy.ones((1, 1024, HIDDEN), numpy.float32)),
    "too many addresses": {"next_addresses": ["/ip4/127.0.0.1/tcp/1"] * 17},
}


@pytest.mark.parametrize("beginning", _BAD_BEGINNINGS)
def test_a_stream_that_begins_wrongly_is_refused_and_closed(member: Member, beginning: str):
    what = _BAD_BEGINNINGS[beginning]

    async def attack() -> None:
        stream = await member.dial()
        await stream.send(raw(member.open(**what)) if isinstance(what, dict) else what)
        answer = await stream.answer()
        assert isinstance(answer, Refuse)
        assert answer.code == "protocol"
        assert await stream.answer() is None
        await stream.close()

    member.run(attack())
    member.small.still_serves()


_REFUSED_OPENINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a codec that does not exist": ({"codec": "float33"}, "unsupported"),
    "another model": ({"manifest": bytes(32)}, "wrong_model"),
    "blocks of another server": ({"start": 2, "end": 5}, "wrong_blocks"),
    "an empty span": ({"start": 2, "end": 2}, "wrong_blocks"),
    "no rows": ({"batch": 0}, "bad_open"),
    "padding for other rows": ({"left_padding": [1, 2, 3]}, "bad_open"),
    "padding up to the end": ({"left_padding": [64]}, "bad_open"),
    "more cache than there is": ({"batch": 1024, "max_length": 2**24}, "too_long"),
    "an adapter": ({"adapter": "mine"}, "unsupported"),
    "a next stage that does not exist": ({"next": Identity.ephemeral().peer_id}, "next_unreachable"),
}


@pytest.mark.parametrize("opening", _REFUSED_OPENINGS)
def test_an_opening_that_asks_too_much_is_refused(member: Member, opening: str):
    changes, code = _REFUSED_OPENINGS[opening]

    async def attack() -> None:
        stream = await member.dial()
        await stream.send(raw(member.open(**changes)))
        answer = await stream.answer()
        assert isinstance(answer, Refuse)
        assert answer.code == code
        assert await stream.answer() is None
        await stream.close()
        await member.until_all_is_free()

    member.run(attack())
    member.small.still_serves()


# ----------------------------------------------------------------------------- what a session may not be asked


def _rows(count: int) -> numpy.ndarray:
    return numpy.ones((count, 2, HIDDEN), numpy.float32)


_BAD_STEPS: dict[str, Any] = {
    "a negative position": {"position": -1},
    "a position not reached yet": {"position": 40},
    "a position that is not a number": {"position": math.nan},
    "a crop beyond the length": {"position": 2, "crop": 50},
    "a negative crop": {"position": 2, "crop": -1},
    "rows out of range": {"position": 2, "rows": [7]},
    "negative rows": {"position": 2, "rows": [-1]},
    "more rows selected than sent": {"position": 2, "rows": [0, 0]},
    "another batch": {"position": 2, "hidden": _rows(3)},
    "another hidden size": {"position": 2, "shape": [1, 4, HIDDEN // 2]},
    "no tokens": {"position": 2, "shape": [1, 0, HIDDEN]},
    "a shape with two entries": {"position": 2, "shape": [2, HIDDEN]},
    "a shape that is not a number": {"position": 2, "shape": [1, math.nan, HIDDEN]},
    "a shape that is larger than its bytes": {"position": 2, "shape": [1, 3, HIDDEN]},
    "a shape with overflowing entries": {"position": 2, "shape": [2**24, 2**24, 2**24]},
    "another codec": {"position": 2, "codec": "float16", "shape": [1, 4, HIDDEN]},
    "a dtype that does not exist": {"position": 2, "codec": "int3"},
    "an unknown field": {"position": 2, "priority": 9},
    "more than the session was opened for": {"position": 2, "hidden": numpy.ones((1, 63, HIDDEN), numpy.float32)},
    "a session that is not its own": {"session": bytes(16), "position": 2},
    "a second opening": "open",
    "a frame for clients": "result",
}


@pytest.mark.parametrize("name", _BAD_STEPS)
def test_a_step_that_does_not_fit_ends_the_session_and_frees_it(member: Member, name: str):
    what = _BAD_STEPS[name]

    async def attack() -> None:
        stream, session = await member.opened()
        await stream.send(step(session))
        assert isinstance(await stream.answer(), Result)
        if what == "open":
            await stream.send(raw(member.open()))
        elif what == "result":
            await stream.send(step(session, kind="result"))
        else:
            await stream.send(step(**{"session": session, **what}))
        answer = await stream.answer()
        assert isinstance(answer, Refuse)
        assert answer.code == "protocol"
        assert await stream.answer() is None
        await stream.close()
        await member.until_all_is_free()

    member.run(attack())
    member.small.still_serves()


# ------------------------------------------------------------------------------------ sessions of other clients


def test_only_the_previous_peer_may_push_into_a_session(members: tuple[Member, Member]):
    victim, thief = members

    async def attack() -> None:
        control, session = await victim.opened(previous=thief.swarm.peer_id)
        stranger = await victim.dial()  # the client itself is not the previous peer either
        await stranger.send(step(session))
        refusal = await stranger.answer()
        assert isinstance(refusal, Refuse)
        assert refusal.code == "protocol"
        await stranger.close()
        named = await thief.dial()
        await named.send(step(session))
        assert isinstance(await control.answer(), Result)
        await named.close()
        await control.close()

    victim.run(attack())
    victim.small.still_serves()


def test_the_session_of_another_client_goes_on_whatever_others_do_to_it(members: tuple[Member, Member]):
    victim, thief = members
    first, second = (numpy.random.default_rng(n).standard_normal((1, 4, HIDDEN), numpy.float32) for n in range(2))

    async def honest(between: Coroutine[Any, Any, None] | None = None, session: bytes | None = None) -> bytes:
        control, session = await victim.opened(**({"session": session} if session else {}))
        await control.send(step(session, first))
        assert isinstance(await control.answer(), Result)
        if between is not None:
            await between
        await control.send(step(session, second, position=4))
        result = await control.answer()
        assert isinstance(result, Result)
        await control.close()
        return bytes(result.payload)

    async def steal(session: bytes) -> None:
        for own_session_first in (False, True):
            stream = (await thief.opened())[0] if own_session_first else await thief.dial()
            await stream.send(step(session, second, position=4))
            refusal = await stream.answer()
            assert isinstance(refusal, Refuse)
            assert refusal.code == "protocol"
            await stream.close()
        for frame in (thief.open(session=session), {"kind": "close", "session": session}):
            stream = await thief.dial()
            await stream.send(raw(frame))
            assert isinstance(await stream.answer(), Refuse)
            await stream.close()

    async def poison(session: bytes) -> None:
        stream, own = await thief.opened()
        await stream.send(step(own, numpy.full((1, 4, HIDDEN), math.nan, numpy.float32)))
        answer = await stream.answer()
        assert isinstance(answer, Result)
        assert numpy.isnan(numpy.frombuffer(answer.payload, numpy.float32)).all()
        await stream.close()
        assert session != own

    expected = victim.run(honest())
    for harm in (steal, poison):
        session = os.urandom(16)
        assert victim.run(honest(harm(session), session)) == expected
    victim.small.still_serves()


# ------------------------------------------------------------------------------------------------ many and slow


def test_ten_thousand_openings_leave_no_session_and_no_memory_behind(member: Member):
    server = member.small.servers[0]
    width, num_openings = 50, 10_000

    async def attack(count: int) -> int:
        return sum([await member.num_accepted(width) for _ in range(count // width)])

    member.run(attack(500))  # what the first sessions allocate for good is not counted
    before_bytes = resident_bytes(server.pid)
    assert member.run(attack(num_openings)) >= MAX_SESSIONS_OF_ONE
    member.run(member.until_all_is_free())
    assert resident_bytes(server.pid) - before_bytes < 64 * MIB
    member.small.still_serves()


def test_sessions_whose_client_vanishes_are_freed(member: Member):
    async def attack() -> None:
        for _ in range(5):
            for _ in range(MAX_SESSIONS_OF_ONE):
                stream, session = await member.opened(batch=16)
                await stream.send(step(session, _rows(16)))
                await stream.close()
            await member.until_all_is_free()

    member.run(attack())
    member.small.still_serves()


def test_half_frames_followed_by_silence_hold_nobody_up(member: Member):
    server = member.small.servers[0]

    async def attack() -> list[Attack]:
        streams = [await member.dial() for _ in range(200)]
        for index, stream in enumerate(streams):
            announced = struct.pack(">I", MAX_FRAME_BYTES)
            await stream.send(announced[: 1 + index % 4] if index % 2 else announced + bytes(1000))
        return streams

    before_bytes = resident_bytes(server.pid)
    streams = member.run(attack())
    member.small.still_serves()
    assert resident_bytes(server.pid) - before_bytes < 64 * MIB

    async def hang_up() -> None:
        await asyncio.gather(*(stream.close() for stream in streams))
        await member.until_all_is_free()

    member.run(hang_up())


def test_the_streams_of_one_peer_are_counted(member: Member):
    async def attack() -> int:
        dialed = await asyncio.gather(
            *(member.dial() for _ in range(MAX_STREAMS_PER_PEER + 20)), return_exceptions=True
        )
        streams = [each for each in dialed if isinstance(each, Attack)]
        await asyncio.gather(*(stream.close() for stream in streams))
        assert all(isinstance(each, Attack | PeerUnreachable) for each in dialed)
        return len(streams)

    assert member.run(attack()) <= MAX_STREAMS_PER_PEER
    member.small.still_serves()
    member.run(member.until_all_is_free())


def test_a_client_that_never_reads_its_results_hurts_only_itself(member: Member):
    server = member.small.servers[1]
    hidden = numpy.ones((64, 64, HIDDEN), numpy.float32)  # half a megabyte a step

    async def flood() -> tuple[Attack, int]:
        attack, session = await member.opened(1, batch=64, max_length=64)
        frame, taken_bytes = step(session, hidden), 0  # repeated: the server answers each from memory
        with contextlib.suppress(TimeoutError, OSError, RuntimeError):  # It reads no further, or hangs up.
            async with asyncio.timeout(3.0):
                while taken_bytes < 500 * MIB:
                    attack.stream.writer.write(frame)
                    await attack.stream.writer.drain()
                    taken_bytes += len(frame)
        return attack, taken_bytes

    before_bytes = resident_bytes(server.pid)
    stream, taken_bytes = member.run(flood())
    print(f"{taken_bytes / MIB:.0f} MiB were taken")
    assert taken_bytes < 100 * MIB, "steps were taken from a client that reads no results"
    assert resident_bytes(server.pid) - before_bytes < 64 * MIB
    member.small.still_serves()

    async def hang_up() -> None:
        await stream.close()
        await member.until_all_is_free(1, within_s=60.0)

    # libp2p does not tell a server that such a peer has gone: its session ends when nothing was read for 30 s.
    member.run(hang_up())
    member.small.still_serves()
