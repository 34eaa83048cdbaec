"""The benchmark of receipts makes receipts that are valid, finds the figures that it prints, and judges them."""

import asyncio

import bench_receipts


def test_the_receipts_are_made_alike_each_time_and_all_count():
    envelopes = bench_receipts.many(120, seed=1)
    assert len(set(envelopes)) == 120
    figures = asyncio.run(bench_receipts.checking_many(envelopes))
    assert figures["num_receipts"] == 120
    assert figures["total_s"] > 0


def test_a_validation_takes_longer_than_its_signatures_and_a_refusal_less_than_either():
    figures = bench_receipts.checking_one(bench_receipts.many(bench_receipts.CALLS, seed=1))
    assert figures["refuse_us"] < figures["known_us"] < figures["two_signatures_us"] < figures["validate_us"]


async def test_what_publishing_costs_is_found_with_real_members():
    from dht.parameters import JoinCode
    from dht.testnet import testnet

    async with testnet(3) as nodes:
        join = JoinCode(tuple(nodes[0].addresses), nodes[0].name).encode()
        figures = await bench_receipts.publishing(join, 3, 10, seed=1)
    assert figures["replicas"] == 3
    assert figures["publish_ms"] > 0
