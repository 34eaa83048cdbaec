"""A node with a calibration names it where it is an anchor and hands it out; one without gets it, and hands it on."""

import asyncio
import io
import json
from dataclasses import replace
from hashlib import sha256

import pytest

from node.calibrations.current import Current
from node.calibrations.seeker import CALIBRATION_PROTOCOL
from node.errors import UserError
from node.handout import fetch_bytes
from node.run.calibrations import calibration_of_model, calibrations_of_bootstrap, one_of_each
from node.run.events import Reporter
from tests.node.calibrations.town import DATA, MADE, OTHER, town_of


@pytest.fixture
async def town(tmp_path):
    async with town_of(tmp_path) as town:
        yield town


@pytest.fixture
def out():
    return io.StringIO()


@pytest.fixture
def err():
    return io.StringIO()


@pytest.fixture
def reporter(out, err):
    return Reporter(events_json=True, out=out, err=err)


async def has(town, node, data):
    return await fetch_bytes(
        town.swarms[town.seeking if node is not town.seeking else town.founder],
        node.peer_id, CALIBRATION_PROTOCOL, sha256(data).digest(), len(data),
    ) == data  # fmt: skip


async def test_from_a_bootstrap_to_a_node_and_from_there_to_others(town, reporter, out):
    node, current = town.seeking, Current()
    looking = calibration_of_model(town.home, town.swarms[node], node, MADE.manifest, current, reporter)
    async with calibrations_of_bootstrap(town.swarms[town.founder], town.founder, [MADE], reporter), looking:
        assert await asyncio.wait_for(current.wait(), 20) == MADE
        assert await has(town, town.founder, DATA)
        assert await has(town, node, DATA)
        (record,) = await town.standing()
        assert record.signer == town.founder.peer_id, "who has only looked it up does not name it"
    (event,) = map(json.loads, out.getvalue().splitlines())
    assert event == {"event": "calibration", "sha256": MADE.digest.hex(), "manifest": MADE.manifest.hex()}


async def test_what_a_node_was_given_wins_over_what_its_anchors_name(town, reporter):
    anchor, node = town.anchors[0], town.seeking
    await town.name(anchor, DATA)
    await town.hand_out(anchor, DATA)
    current = Current(OTHER)
    async with calibration_of_model(town.home, town.swarms[node], node, MADE.manifest, current, reporter):
        await asyncio.sleep(2.5)
        assert current.calibration is OTHER
        assert town.kept == []


async def test_a_bootstrap_that_is_no_anchor_says_that_nobody_follows_it(town, reporter, err):
    node = town.seeking
    async with calibrations_of_bootstrap(town.swarms[node], node, [MADE], reporter):
        assert await has(town, node, DATA), "but whoever asks has it"
    assert "no anchor" in err.getvalue()
    assert await town.standing() == []


def test_two_calibrations_of_one_model_are_refused():
    with pytest.raises(UserError, match="once for each model"):
        one_of_each([MADE, OTHER])
    assert one_of_each([MADE, replace(OTHER, manifest=bytes(32))])
