"""Work side by side."""

import asyncio

from dht.hardening.turns import in_turns


async def test_work_is_done_for_every_item_and_for_so_many_at_once():
    done, running, most = [], 0, 0

    async def work(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        done.append(item)

    await in_turns(work, range(20), 3)
    await in_turns(work, [], 3)
    assert sorted(done) == list(range(20))
    assert most == 3
