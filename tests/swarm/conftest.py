"""One private swarm of real processes for the whole folder: a bootstrap, and three servers of a small llama."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node import AutoDistributedModelForCausalLM
from tests.processes import NodeProcess, bootstrap, servers
from tests.swarm.models import LLAMA, SPANS, save


@dataclass(frozen=True)
class ServedModel:
    """A model, who serves it, and a client's view of it."""

    directory: Path
    join: str
    local: Any
    """transformers' own model."""
    remote: Any
    """The client's model."""
    servers: list[NodeProcess]


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
def llama(join: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """A llama in three spans on three servers; its directory is called ``llama``."""
    directory = tmp_path_factory.mktemp("model") / "llama"
    local = save(directory, "llama", LLAMA)
    with (
        servers(directory, join, SPANS, tmp_path_factory.mktemp("servers"), "--num-threads", "1") as processes,
        AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join) as remote,
    ):
        yield ServedModel(directory, join, local, remote, processes)
