"""One private swarm for the whole folder, with two servers of a small model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from node import AutoDistributedModelForCausalLM
from tests.limits.small_swarm import MAX_SESSIONS, SmallSwarm, save_model
from tests.processes import bootstrap, servers


@pytest.fixture(scope="session", autouse=True)
def home_of_the_test_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what clients in this process write out of the user's own directory."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EFEDLLM_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def join(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The join code of a private swarm that runs until the last test of the folder."""
    with bootstrap(tmp_path_factory.mktemp("bootstrap")) as (_, code):
        yield code


@pytest.fixture(scope="session")
def small(join: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallSwarm]:
    """Two servers with little memory and few sessions, and an honest client."""
    with _small(join, tmp_path_factory, seed=0) as small:
        yield small


@pytest.fixture(scope="session")
def uncounted(join: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallSwarm]:
    """The same, of a model of its own, without receipts: whoever opens a session there has to offer nothing."""
    with _small(join, tmp_path_factory, "--no-receipts", seed=1, receipts=False) as small:
        yield small


@contextlib.contextmanager
def _small(
    join: str, tmp_path_factory: pytest.TempPathFactory, *options: str, seed: int, receipts: bool = True
) -> Iterator[SmallSwarm]:
    model = tmp_path_factory.mktemp("model") / "small"
    local = save_model(model, seed)
    bounds = ("--num-threads", "1", "--max-memory", "700MiB", "--max-sessions", str(MAX_SESSIONS), *options)
    with (
        servers(model, join, [(0, 3), (3, 6)], tmp_path_factory.mktemp("servers"), *bounds) as processes,
        AutoDistributedModelForCausalLM.from_pretrained(str(model), join=join, receipts=receipts) as remote,
    ):
        listed = {stage.start: stage.peer_id for stage in _route(remote)}
        yield SmallSwarm(join, model, local, remote, processes, [listed[0], listed[3]])


def _route(remote: Any) -> Any:
    with remote.inference_session(max_length=8) as session:
        remote.generate(torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=False)
        return session.cache.route.stages
