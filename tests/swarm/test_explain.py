"""``generate --explain`` on a swarm of processes: every server is told of, what it costs and why it was left."""

import json

import pytest

from tests.churn_kit import Fleet
from tests.processes import run_command
from tests.swarm.models import SPANS

SHORT = ("--prompt", "Why this route", "--greedy", "--max-new-tokens", "3")


def generate(llama, home, *extra):
    return run_command(["generate", str(llama.directory), "--join", llama.join, *SHORT, *extra], home)


@pytest.fixture(scope="module")
def spare(llama, tmp_path_factory):
    """The peer id of a fourth server, of blocks that others serve too."""
    with Fleet(llama.directory, llama.join, tmp_path_factory.mktemp("spare"), "--num-threads", "1") as fleet:
        yield fleet.start((3, 4))[0]


@pytest.fixture(scope="module")
def first_events(llama, spare, tmp_path_factory):
    """The explanation and the route, as events."""
    done = generate(llama, tmp_path_factory.mktemp("first"), "--explain", "--events", "json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()][:2]


def test_the_event_tells_of_every_server_and_adds_up_for_those_that_are_taken(first_events):
    explained, route = first_events
    assert (explained["event"], route["event"]) == ("explain", "route")
    candidates = explained["candidates"]
    assert len(candidates) == len(SPANS) + 1
    taken = {entry["peer_id"]: entry["taken"] for entry in candidates if entry["taken"]}
    assert taken == {stage["peer_id"]: stage["blocks"] for stage in route["stages"]}
    (left,) = [entry for entry in candidates if not entry["taken"]]
    assert left["blocks"] == "3:4"
    assert left["reason"].startswith("the best route through it takes")
    assert (
        left["token_ms"]
        >= explained["token_ms"]
        > sum(
            entry["block_ms"] * (int(entry["taken"].split(":")[1]) - int(entry["taken"].split(":")[0]))
            for entry in candidates
            if entry["taken"]
        )
    )
    assert all(entry["round_trip_ms"] is None or 0 < entry["round_trip_ms"] < 1000 for entry in candidates)
    assert any(entry["round_trip_ms"] is not None for entry in candidates)


def test_people_get_a_table_before_the_text_and_only_the_peers_they_allow(llama, spare, first_events, tmp_path):
    candidates = first_events[0]["candidates"]
    allowed = [entry["peer_id"] for entry in candidates if entry["blocks"] != "3:4"] + [spare]
    done = generate(llama, tmp_path, "--explain", *(word for peer in allowed for word in ("--only", peer)))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Servers of the model, for the fastest route")
    assert sum("not among the peers that were allowed" in line for line in lines) == 1
    assert lines[-1].startswith("Route: ")
    assert lines[-1].endswith(f"3:4 on {spare}")


def test_where_there_is_no_route_the_reasons_are_said_all_the_same(llama, spare, tmp_path):
    done = generate(llama, tmp_path, "--explain", "--only", spare)
    assert done.returncode == 5
    assert "None of the 1 peers that were allowed holds the blocks 0:3 of 4" in done.stderr
    assert "its blocks are of no use without those that nobody holds" in done.stderr
    assert done.stdout == ""
