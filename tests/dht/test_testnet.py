import asyncio
import subprocess
import time

import pytest

from dht.testnet import testnet


async def test_five_nodes_start_in_under_two_seconds_and_leave_in_half_of_one():
    best = []
    for _ in range(3):  # the machine is shared: the best of three says what the code takes
        started = time.perf_counter()
        async with testnet(5, secret=b"s" * 32) as nodes:
            entered = time.perf_counter()
            assert len({node.peer_id for node in nodes}) == 5
            left = time.perf_counter()
        best.append((entered - started, time.perf_counter() - left))
        if best[-1][0] < 2:
            break
    assert min(start_s for start_s, _ in best) < 2
    assert min(leave_s for _, leave_s in best) < 0.5


async def test_one_node_is_a_swarm_too():
    async with testnet(1) as (node,):
        assert node.members() == []


async def test_a_body_that_fails_or_is_cancelled_leaves_no_p2pd():
    pids: list[int] = []

    async def failing() -> None:
        async with testnet(2) as nodes:
            pids.extend(node._daemon.pid for node in nodes)
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        await failing()

    async def sleeping() -> None:
        async with testnet(2) as nodes:
            pids.extend(node._daemon.pid for node in nodes)
            await asyncio.sleep(60)

    task = asyncio.create_task(sleeping())
    while len(pids) < 4:
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    command = ["ps", "-o", "pid=", "-p", ",".join(map(str, pids))]
    running = subprocess.run(command, capture_output=True, text=True, check=False)
    assert running.stdout == ""
