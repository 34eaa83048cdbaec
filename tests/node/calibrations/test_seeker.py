"""A node gets what its anchors name from whoever has it, and nothing else gets into it, whoever says so.

Real nodes on loopback, in this process.
"""

import asyncio
import random
import time
from dataclasses import replace

import pytest

from dht.parameters import SwarmParameters
from dht.records import seal
from node.calibrations.current import Current
from node.calibrations.publisher import CalibrationPublisher
from node.calibrations.seeker import CALIBRATION_PROTOCOL
from node.check.calibration import MAX_BYTES, encode_calibration
from node.handout import Handout
from tests.dht.samples import announcement
from tests.node.calibrations.town import DATA, MADE, OTHER, RULES, town_of


@pytest.fixture
async def town(tmp_path):
    async with town_of(tmp_path) as town:
        yield town


async def test_what_an_anchor_publishes_is_fetched_kept_and_used(town):
    given = Current(MADE)
    await Handout(CALIBRATION_PROTOCOL, given.file).start(town.swarms[town.founder])
    publisher = CalibrationPublisher(town.swarms[town.founder], town.founder, [MADE])
    assert not await town.look(), "nobody has named one"
    await publisher.publish(RULES)
    used = []
    town.current.on_used.append(used.append)
    assert await town.look()
    assert town.current.calibration == MADE
    assert used == [MADE]
    assert town.kept == [DATA]
    assert (await town.look(), len(used), town.told) == (True, 1, [])
    again = town.another()
    await again.use_kept()
    assert len(used) == 2, "the next start has it at once"
    assert await again.look(RULES)
    assert len(used) == 2, "and need not fetch it"


async def test_an_anchor_that_is_away_holds_nobody_up_where_a_server_has_it(town):
    one, two = town.anchors
    await town.name(one, DATA)
    addresses = tuple(town.swarms[two].addresses)
    served = replace(announcement(two), manifest=MADE.manifest, addresses=addresses)
    await town.swarms[two].store(seal(served, two))
    assert not await town.look()
    assert (town.current.calibration, town.told[0][:45]) == (
        None,
        f"Nobody hands out the calibration {MADE.digest.hex()[:12]}",
    )
    await town.hand_out(two, DATA)
    assert await town.look()
    assert town.current.calibration == MADE
    assert len(town.told) == 1


async def test_strangers_name_nothing(town):
    await town.name(town.seeking, DATA)
    await town.hand_out(town.founder, DATA)
    assert not await town.look()
    assert town.current.calibration is None
    town.seeker = town.another(anchors=[town.seeking.peer_id])  # Whoever trusts oneself has nobody to ask.
    assert not await town.look()
    town.seeker = town.another(anchors=[town.founder.peer_id])
    assert not await town.look()


UNFIT = (
    (encode_calibration(replace(MADE, manifest=bytes(32))), "of the model 00000000"),
    (DATA + b" ", "canonical"),
    (DATA.replace(b'"seed":0', b'"seed": 0'), "canonical"),
    (b"\xff" * 100, "cannot be read"),
    (b"[" * 100_000, "cannot be read"),
)


async def test_a_file_that_is_none_of_this_model_is_told_once_and_the_next_choice_is_used(town):
    one, two = town.anchors
    await town.hand_out(one, *(data for data, _ in UNFIT))
    await town.name(town.founder, DATA)
    for seq, (data, why) in enumerate(UNFIT, 1):
        await town.name(one, data, seq=seq)
        await town.name(two, data, seq=seq)
        town.told.clear()
        town.seeker = town.another()
        assert not await town.look()
        assert not await town.look(), "the next choice is not handed out"
        assert why in town.told[0]
        assert one.peer_id in town.told[0]
        assert two.peer_id in town.told[0]
        assert town.seeker.failures["unfit"] == 1, "it is fetched once"
        assert (town.current.calibration, town.kept) == (None, [])
    await town.hand_out(town.founder, DATA)
    assert await town.look()
    assert town.current.calibration == MADE
    assert town.kept == [DATA]
    assert len(town.told) == 2


async def test_what_is_too_large_is_not_asked_for_and_takes_no_true_size_away(town):
    one, two = town.anchors
    asked = []
    await Handout(CALIBRATION_PROTOCOL, asked.append).start(town.swarms[one])
    await town.name(one, DATA, file_bytes=MAX_BYTES + 1)
    assert not await town.look()
    assert not await town.look()
    assert (asked, town.seeker.failures["too large"], len(town.told)) == ([], 2, 1)
    assert f"{MAX_BYTES + 1:,} bytes" in town.told[0]
    await town.name(two, DATA)
    await town.hand_out(two, DATA)
    assert await town.look()
    assert town.current.calibration == MADE


async def test_who_hands_out_other_bytes_is_not_asked_again(town):
    one, two = town.anchors
    asked, lies = [], [DATA[:-1], DATA + b"\n", DATA.replace(b"torch", b"Torch"), b""]

    def lie(name):
        asked.append(name)
        return lies[len(asked) - 1]

    await town.name(one, DATA)
    await Handout(CALIBRATION_PROTOCOL, lie).start(town.swarms[one])
    for number in range(1, len(lies) + 1):
        town.told.clear()
        town.seeker = town.another()
        assert not await town.look()
        assert not await town.look()
        assert len(asked) == number
        assert (town.current.calibration, town.kept) == (None, [])
        assert town.seeker.failures["false bytes"] == 1
        assert one.peer_id in town.told[0]
    await town.name(two, DATA)
    await town.hand_out(two, DATA)
    assert await town.look()
    assert town.current.calibration == MADE


async def test_another_choice_of_the_anchors_takes_the_place_of_the_first(town):
    one, two = town.anchors
    other = encode_calibration(OTHER)
    await town.name(one, DATA)
    await town.hand_out(one, DATA)
    assert await town.look()
    await town.name(two, other)
    await town.name(town.founder, other)
    await town.hand_out(two, other)
    assert await town.look()
    assert town.current.calibration == OTHER
    assert town.kept == [other]


async def test_a_node_in_the_background_finds_what_comes_later(town):
    town.seeker._chance = random.Random(0)
    running = asyncio.create_task(town.seeker.run())
    try:
        await asyncio.sleep(0)
        await town.hand_out(town.founder, DATA)
        await town.name(town.founder, DATA)
        assert await asyncio.wait_for(town.current.wait(), 20) == MADE
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_record_is_signed_anew_for_another_file_and_for_another_epoch_only(town):
    swarm, now_s = town.swarms[town.founder], time.time()

    def publisher(made, clock=lambda: now_s):
        return CalibrationPublisher(swarm, town.founder, [made], clock=clock)

    await publisher(MADE).publish(RULES)
    (first,) = await town.standing()
    assert (first.file, first.file_bytes, first.seq) == (MADE.digest, len(DATA), 1)
    await publisher(MADE, lambda: now_s + 1).publish(RULES)
    assert await town.standing() == [first], "a restart signs nothing"
    await publisher(OTHER).publish(RULES)
    (second,) = await town.standing()
    assert (second.file, second.epoch, second.seq) == (OTHER.digest, first.epoch, 2)
    later = publisher(OTHER, lambda: now_s + RULES.epoch_s)
    signed = await later._signed(OTHER, RULES)
    assert (signed.record.epoch, signed.record.seq) == (first.epoch + 1, 1)


async def test_who_is_no_anchor_publishes_nothing_unless_it_was_told_to(town):
    swarm = town.swarms[town.seeking]
    assert isinstance(swarm.parameters, SwarmParameters)
    await asyncio.wait_for(CalibrationPublisher(swarm, town.seeking, [MADE]).run(), 10)
    assert await town.standing() == []
    running = asyncio.create_task(CalibrationPublisher(swarm, town.seeking, [MADE], anchors_only=False).run())
    try:
        async with asyncio.timeout(10):
            while not await town.standing():
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
