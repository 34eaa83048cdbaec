"""How a server divides its memory, embeddings and head included."""

import pytest

from node.errors import DoesNotFit
from node.serve.placement import DEFAULT_CACHE_SHARE, MIB, WORKING_BYTES, plan_memory

BLOCKS = [10 * MIB] * 8


@pytest.mark.parametrize("end_bytes", [0, 30 * MIB])
def test_what_embeddings_and_head_take_is_taken_from_the_caches(end_bytes):
    plan = plan_memory(WORKING_BYTES + 100 * MIB, BLOCKS, 4, end_bytes)
    assert (plan.num_blocks, plan.end_bytes, plan.usable_bytes) == (4, end_bytes, 100 * MIB)
    assert plan.num_blocks * plan.block_bytes + plan.end_bytes + plan.cache_bytes == plan.usable_bytes
    assert ("30 MiB of embeddings and head" in str(plan)) == bool(end_bytes)


def test_a_server_that_chooses_its_blocks_takes_fewer_beside_embeddings_and_head():
    free = WORKING_BYTES + 100 * MIB
    alone, beside = (plan_memory(free, BLOCKS, None, end_bytes).num_blocks for end_bytes in (0, 60 * MIB))
    assert alone == int(100 * (1 - DEFAULT_CACHE_SHARE)) // 10
    assert beside == int(40 * (1 - DEFAULT_CACHE_SHARE)) // 10


def test_blocks_that_fit_only_without_embeddings_and_head_do_not_fit_with_them():
    free = WORKING_BYTES + 45 * MIB
    assert plan_memory(free, BLOCKS, 4).cache_bytes == 5 * MIB
    with pytest.raises(DoesNotFit):
        plan_memory(free, BLOCKS, 4, 5 * MIB)
