"""A court of real nodes for whoever asks for it."""

import pytest

from tests.node.claims.court import sitting


@pytest.fixture
async def court(tmp_path):
    async with sitting(tmp_path) as court:
        yield court
