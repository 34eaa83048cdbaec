"""Look-ups over drawn swarms: who is found, also where peers are silent or name ghosts."""

import asyncio
import random

import pytest

from dht.hardening.walk import find_nearest

SPACE = 2**32
BEAM = 20


class Drawn:
    """Members that know their neighbourhood and a few others, as routing tables do."""

    def __init__(self, rng: random.Random, num_members: int) -> None:
        self.members = [rng.randrange(SPACE) for _ in range(num_members)]
        self.tables = {
            one: sorted(self.members, key=lambda other: one ^ other)[1 : BEAM + 1]
            + rng.sample(self.members, min(len(self.members), 20))
            for one in self.members
        }
        self.asked: list[int] = []
        self.silent: set[int] = set()
        self.ghosts: dict[int, list[int]] = {}
        self.at_once = self.most_at_once = 0

    async def find(self, target: int, start: int, **changes: int) -> list[int]:
        async def ask(member: int) -> list[int] | None:
            self.asked.append(member)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await asyncio.sleep(0)
            self.at_once -= 1
            if member in self.silent or member not in self.tables:
                return None
            return self.ghosts.get(member) or sorted(self.tables[member], key=lambda each: each ^ target)[:BEAM]

        known = {start: start ^ target}
        return await find_nearest(
            lambda member: member ^ target, known, ask, **{"beam": BEAM, "num_at_once": 8, **changes}
        )

    def nearest(self, target: int, among: set[int] | None = None) -> list[int]:
        return sorted(among or self.members, key=lambda member: member ^ target)[:BEAM]


@pytest.mark.parametrize("num_members", [1, 5, 60, 1000])
async def test_the_nearest_are_found_from_anywhere_and_nobody_is_asked_twice(num_members):
    rng = random.Random(num_members)
    drawn = Drawn(rng, num_members)
    for _ in range(10):
        target = rng.randrange(SPACE)
        drawn.asked.clear()
        assert await drawn.find(target, rng.choice(drawn.members)) == drawn.nearest(target)
        assert len(set(drawn.asked)) == len(drawn.asked) <= 60
    assert drawn.most_at_once <= 8


async def test_silent_members_are_passed_by_and_others_take_their_places():
    rng = random.Random(2)
    drawn = Drawn(rng, 200)
    target = rng.randrange(SPACE)
    drawn.silent = set(drawn.nearest(target)[::2])
    found = await drawn.find(target, next(each for each in drawn.members if each not in drawn.silent))
    assert found == drawn.nearest(target, set(drawn.members) - drawn.silent)


async def test_peers_that_name_ghosts_hide_nobody_from_a_search_that_others_answer():
    rng = random.Random(3)
    drawn = Drawn(rng, 200)
    target = rng.randrange(SPACE)
    liars = rng.sample(drawn.members, 3)
    for liar in liars:
        drawn.ghosts[liar] = [target ^ rng.randrange(1000) for _ in range(BEAM)]
    start = next(each for each in drawn.members if each not in liars)
    assert await drawn.find(target, start) == drawn.nearest(target)


async def test_ghosts_without_end_are_not_asked_for_ever():
    asked = []

    async def ask(ghost: int) -> list[int]:
        asked.append(ghost)
        return [ghost - number for number in range(1, BEAM)]  # ever nearer ones

    await find_nearest(lambda ghost: ghost, {10**6: 10**6}, ask, beam=BEAM, num_at_once=8, max_asked=50)
    assert len(asked) == 50


async def test_a_search_that_is_given_up_leaves_no_task_behind():
    async def ask(member: int) -> list[int]:
        await asyncio.sleep(60)
        return []

    before = asyncio.all_tasks()
    search = asyncio.ensure_future(find_nearest(lambda each: each, {1: 1, 2: 2}, ask, beam=3, num_at_once=2))
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks() - before) == 3
    search.cancel()
    await asyncio.gather(search, return_exceptions=True)
    assert asyncio.all_tasks() == before


async def test_a_call_that_fails_fails_the_search_with_its_own_error():
    async def ask(member: int) -> list[int]:
        raise OSError(str(member))

    with pytest.raises(OSError, match="7"):
        await find_nearest(lambda each: each, {7: 7}, ask, beam=3, num_at_once=2)
