"""Under load contributors are served before those who only take, in admission and in the engine; else nobody waits."""

import asyncio
import heapq
import itertools
import random
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from dht.reputation import DEFAULT_SCORE_RULES, Contribution
from dht.standing.precedence import NEW_LEVEL, level_of
from node.batching import Limits
from node.engine import Engine
from node.errors import Refused
from node.serve.admission import Admission
from node.serve.precedence import MAX_KEPT, Precedence

UNIT = DEFAULT_SCORE_RULES.unit_work
NUM = 200
LIGHT = [f"light {n}" for n in range(NUM)]
HEAVY = [f"heavy {n}" for n in range(NUM)]
RIDERS = [f"rider {n}" for n in range(76)]
DEMAND = {"light": 0.6, "heavy": 1.24, "rider": 3.0}
"""What one of each asks for, over what one contributor's server can do: in all 1.49 of what the 400 servers can."""
TOTAL = sum(DEMAND[name.split()[0]] for name in [*LIGHT, *HEAVY, *RIDERS]) / (2 * NUM)


def level(client):
    """Contributors have given what a server can do in a window; everybody has had what it asks for."""
    kind = client.split()[0]
    given = 0 if kind == "rider" else 1000 * UNIT
    return level_of(Contribution(given, int(1000 * DEMAND[kind] * UNIT)), DEFAULT_SCORE_RULES)


def arrivals(rng, load=1.0):
    """Yield who asks and after how long, per unit of time as much as fills the servers ``TOTAL`` times."""
    names = [*LIGHT, *HEAVY, *RIDERS]
    weights = [DEMAND[name.split()[0]] for name in names]
    while True:
        yield rng.expovariate(TOTAL * load), rng.choices(names, weights)[0]


def shares(asked, served):
    return {kind: served[kind] / asked[kind] for kind in DEMAND}


# ---------------------------------------------------------------------------------------------------------- sessions


def admission(num_sessions, levels):
    served = SimpleNamespace(max_sessions=num_sessions, span=SimpleNamespace(state_positions=0))
    served.span.cache_bytes_per_position = 1
    return Admission(served, 16 * num_sessions, 0, Precedence(levels) if levels else None)


def attend(levels, load=1.0, num_sessions=256, until=16.0, seed=1):
    """Let sessions of a mean length of one be asked for; return which share of its demand each kind was given."""
    rng, books = random.Random(seed), admission(num_sessions, levels)
    asked, served, ends, now = Counter(), Counter(), [], 0.0
    for wait, client in arrivals(rng, load):
        now += wait / num_sessions
        if now > until:
            return shares(asked, served)
        while ends and ends[0][0] <= now:
            _, _, gone, given = heapq.heappop(ends)
            books.leave(gone)
            books.slots.release(given)
        is_counted = now > until / 4
        asked[client.split()[0]] += is_counted
        try:
            books.check_room(client)
            slot = books.lease(client, 1, 16)
        except Refused:
            continue
        books.enter(client)
        heapq.heappush(ends, (now + rng.expovariate(1.0), slot.start, client, slot))
        served[client.split()[0]] += is_counted
    return None


def test_at_one_and_a_half_times_the_sessions_there_are_contributors_get_theirs_and_free_riders_little():
    assert 1.45 < TOTAL < 1.55
    found = attend(level)
    assert found["light"] >= 0.9
    assert found["rider"] <= 0.2
    alike = attend(None)
    assert alike["rider"] > 2 * found["rider"], "without levels who asks most gets more"


def test_where_there_is_room_levels_refuse_nobody_anything():
    assert attend(level, load=0.3) == dict.fromkeys(DEMAND, 1.0)


def test_where_nobody_of_a_higher_level_asks_nothing_is_kept_free():
    books = admission(8, level)
    for number in range(8):
        books.check_room(f"rider {number}")
        books.enter(f"rider {number}")
    with pytest.raises(Refused):
        books.check_room("light 1")
    assert books.precedence.kept_from("rider 9") > 0, "but now somebody has asked"
    assert books.precedence.kept_from("light 2") == 0


def test_no_more_than_a_fifth_is_kept_from_anybody():
    precedence = Precedence(level)
    for number in range(100):
        precedence.ask(f"light {number}")
    assert precedence.kept_from("rider 1") == MAX_KEPT


def test_a_free_rider_under_new_names_stays_behind_contributors():
    def renamed(client):
        return NEW_LEVEL if client.startswith("rider") else level(client)

    found = attend(renamed)
    assert found["light"] >= 0.9
    assert found["rider"] <= 0.2


# ------------------------------------------------------------------------------------------------------------- steps


class Ticks:
    """A group whose forwards the test lets pass one by one."""

    def __init__(self):
        self.began, self.may_run = threading.Semaphore(0), threading.Semaphore(0)
        self.num_run = 0
        self.running = ()

    def run(self, shares):
        self.running = {job.session for job, _ in shares}
        self.began.release()
        assert self.may_run.acquire(timeout=10)
        for job, _ in shares:
            job.positions_left = 0
        self.num_run += 1
        return [None] * len(shares)


class Job:
    rows = 1

    def __init__(self, group, client, number, levels):
        self.group, self.client, self.session = group, client, number.to_bytes(16, "big")
        self.priority = levels(client) if levels else 0
        self.positions_left = 1

    def prepare(self):
        pass

    def result(self):
        return True


async def step(levels, load=1.0, num_ticks=200, rows=8, patience=5, seed=2):
    """Let steps be asked for in ticks of one forward of ``rows`` steps; who waits longer than ``patience`` gives up."""
    rng, group = random.Random(seed), Ticks()
    asked, served, waiting = Counter(), Counter(), []
    coming, numbers = arrivals(rng, load), itertools.count()
    due = 0.0
    async with Engine(max_waiting=4096, limits=Limits(max_rows=rows, linger_share=0.0)) as engine:
        for tick in range(num_ticks):
            while due <= tick:
                wait, client = next(coming)
                due += wait / rows
                job = Job(group, client, next(numbers), levels)
                waiting.append((tick, job, asyncio.create_task(engine.run(job))))
                asked[client.split()[0]] += tick < num_ticks - 2 * patience
            await asyncio.sleep(0)
            if waiting:
                assert await asyncio.to_thread(group.began.acquire, timeout=10)
                num_run = group.num_run
                group.may_run.release()
                while group.num_run == num_run:
                    await asyncio.sleep(0.0002)
                await asyncio.sleep(0.001)  # What it came to is delivered.
            kept = []
            for since, job, task in waiting:
                if task.done():
                    served[job.client.split()[0]] += since < num_ticks - 2 * patience
                elif tick - since >= patience and job.session not in group.running:
                    task.cancel()
                else:
                    kept.append((since, job, task))
            waiting = kept
        for _, _, task in waiting:
            task.cancel()
        for _ in range(8):
            group.may_run.release()
    return shares(asked, served)


async def test_at_one_and_a_half_times_the_steps_that_fit_contributors_get_theirs_and_free_riders_little():
    found = await step(level)
    assert found["light"] >= 0.9
    assert found["rider"] <= 0.2
    alike = await step(None)
    assert alike["rider"] > 2 * found["rider"], "without levels who asks most gets more"


async def test_while_all_steps_fit_nobody_waits_for_anybody():
    assert await step(level, load=0.4) == dict.fromkeys(DEMAND, 1.0)
