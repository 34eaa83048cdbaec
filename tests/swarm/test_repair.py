"""Servers vanish, freeze and come back in the middle of an answer; the answer is the one that it would have been."""

import itertools
import json
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from node import AutoDistributedModelForCausalLM
from node.errors import MissingBlocks
from node.transport import FrameStream
from node.wire import Open
from tests.churn_kit import AtTokens, Fleet
from tests.processes import run_command
from tests.swarm.models import LLAMA, SPANS, noisy_copy, save

HISTORY = 256
"""Tokens of the prompt, so that a repair has as many to replay at least."""
NEW_TOKENS = 24
MAX_TOKENS = 2000
"""Of an answer that ends when something has happened."""


class Swarm:
    """Three stages, and one more server of each span."""

    def __init__(self, fleet: Fleet, local: Any, remote: Any) -> None:
        self.fleet, self.local, self.remote = fleet, local, remote
        self.repairs: list[Any] = []
        remote._connector.on_repaired = self.repairs.append

    def prompt(self, tokens: int = HISTORY, rows: int = 1) -> dict[str, torch.Tensor]:
        """Draw a prompt."""
        ids = torch.randint(3, 100, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def stages(self) -> list[str]:
        """Return the peers that the running session goes through."""
        (chain,) = self.remote._connector._chains
        return [stage.peer_id for stage in chain.route.stages]

    def kill(self, *stages: int) -> None:
        """Let stages of the running session vanish."""
        for peer_id in [self.stages()[stage] for stage in stages]:
            self.fleet.kill(peer_id)

    def kill_in_the_first_step(self, stage: int) -> None:
        """Wait until a session has begun with a step, and let a stage vanish while that is computed."""
        until_s = time.monotonic() + 30.0
        while [bool(chain._waiting) for chain in list(self.remote._connector._chains)] != [True]:
            assert time.monotonic() < until_s
            time.sleep(0.001)
        self.kill(stage)

    def freeze(self, stage: int) -> None:
        """Let a stage of the running session stop in its tracks until it is brought back: a start costs seconds."""
        self.fleet.freeze(self.stages()[stage])

    def bring_back(self) -> None:
        """Thaw and start again whoever was harmed, with the same identity; let the client know nothing of the past."""
        for peer_id in self.fleet.servers:
            self.fleet.thaw(peer_id)
        dead = [peer_id for peer_id, server in self.fleet.servers.items() if server.returncode is not None]
        self.fleet.restart(*dead)
        self.remote._connector.forget()
        self.repairs.clear()

    def generate(self, acts: dict[int, Any], **settings: Any) -> tuple[torch.Tensor, AtTokens]:
        """Generate while things happen; return the tokens and when they came."""
        streamer = AtTokens(acts)
        settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, **settings}
        return self.remote.generate(**self.prompt(), **settings, streamer=streamer), streamer

    def generate_by_steps(self, acts: dict[int, Any], **settings: Any) -> torch.Tensor:
        """Generate while things happen, by the number of steps: beams and candidates take no streamer."""
        num_steps = itertools.count(1)

        def act(*_: Any, **__: Any) -> torch.Tensor:
            step = next(num_steps)
            if step in acts:
                acts[step]()
            return torch.tensor(False)

        settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, **settings}
        tokens: torch.Tensor = self.remote.generate(**self.prompt(), **settings, stopping_criteria=[act])
        return tokens

    def generate_until_repaired(self, act: Any, at: int = 9) -> AtTokens:
        """Generate until some steps after a repair, however long that takes; check the tokens, return when they came.

        Whoever leaves is replaced while it goes on serving: a short answer on a quick machine may end before that.
        """
        num_after = itertools.count()

        def is_over(*_: Any, **__: Any) -> torch.Tensor:
            return torch.tensor([bool(self.repairs) and next(num_after) >= NEW_TOKENS])

        settings = {"max_new_tokens": MAX_TOKENS, "min_new_tokens": MAX_TOKENS, "stopping_criteria": [is_over]}
        tokens, streamer = self.generate({at: act}, **settings)
        num_new = tokens.shape[1] - HISTORY
        assert torch.equal(tokens, self.expected(max_new_tokens=num_new, min_new_tokens=num_new))
        return streamer

    def expected(self, **settings: Any) -> torch.Tensor:
        """Generate the same with transformers alone."""
        settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, **settings}
        tokens: torch.Tensor = self.local.generate(**self.prompt(), **settings)
        return tokens


@pytest.fixture(scope="module")
def served(join: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    directory = tmp_path_factory.mktemp("model") / "repaired"
    local = save(directory, "llama", LLAMA, seed=7)
    with Fleet(directory, join, tmp_path_factory.mktemp("fleet"), "--num-threads", "1") as fleet:
        fleet.start(*SPANS, *SPANS)
        with AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join) as remote:
            yield Swarm(fleet, local, remote)


@pytest.fixture
def swarm(served: Swarm) -> Swarm:
    served.bring_back()
    return served


@pytest.mark.parametrize("num_runs", [6, pytest.param(50, marks=[pytest.mark.full, pytest.mark.timeout(1800)])])
def test_an_answer_does_not_notice_that_a_stage_vanishes_at_any_token(
    swarm: Swarm, num_runs: int, capsys: pytest.CaptureFixture[str]
):
    chance = random.Random(num_runs)
    expected, added_s = swarm.expected(), []
    for run in range(num_runs):
        at, stage = chance.randint(1, NEW_TOKENS - 1), run % 3
        tokens, streamer = swarm.generate({at: lambda stage=stage: swarm.kill(stage)})
        assert torch.equal(tokens, expected), (run, at, stage)
        pauses_s = streamer.pauses_s()
        added_s.append(max(pauses_s) - statistics.median(pauses_s))
        (repaired,) = swarm.repairs
        assert repaired.same_drift_class
        assert repaired.replayed_tokens >= HISTORY
        swarm.bring_back()
    line = {"runs": num_runs, "added_s_p50": statistics.median(added_s), "added_s_max": max(added_s)}
    with capsys.disabled():
        print(f"\n{json.dumps(line)}")
    assert statistics.median(added_s) < 1.0
    assert sorted(added_s)[int(0.95 * num_runs)] < 2.0


SETTINGS = {
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "beams": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize(("mode", "stage"), [*zip(SETTINGS, (0, 1, 2, 1), strict=True), ("beams", 0), ("beams", 1)])
def test_every_way_of_generating_survives(swarm: Swarm, mode: str, stage: int):
    settings = SETTINGS[mode]
    torch.manual_seed(3)
    expected = swarm.expected(**settings)
    torch.manual_seed(3)
    tokens = swarm.generate_by_steps({3: lambda: swarm.freeze(stage)}, **settings)
    assert torch.equal(tokens, expected)
    assert len(swarm.repairs) == 1


def test_a_draft_models_candidates_survive(swarm: Swarm):
    assistant = noisy_copy(swarm.local)
    expected = swarm.expected(assistant_model=assistant)
    tokens = swarm.generate_by_steps({3: lambda: swarm.freeze(1)}, assistant_model=assistant)
    assert torch.equal(tokens, expected)
    assert len(swarm.repairs) == 1


def test_a_long_prefill_survives(swarm: Swarm):
    prompt = swarm.prompt(3000)
    expected = swarm.local.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    killer = threading.Thread(target=swarm.kill_in_the_first_step, args=(1,))
    killer.start()
    tokens = swarm.remote.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    killer.join()
    assert torch.equal(tokens, expected)
    assert len(swarm.repairs) == 1


@pytest.mark.parametrize("stages", [(0, 1), (0, 2), (0, 1, 2)])
def test_several_stages_vanish_at_once(swarm: Swarm, stages: tuple[int, ...]):
    tokens, _ = swarm.generate({9: lambda: swarm.kill(*stages)})
    assert torch.equal(tokens, swarm.expected())


def test_the_same_stage_vanishes_twice_in_a_row(swarm: Swarm):
    (third,) = swarm.fleet.start(SPANS[1])
    swarm.remote._connector.forget()
    tokens, _ = swarm.generate({5: lambda: swarm.kill(1), 12: lambda: swarm.kill(1)})
    assert torch.equal(tokens, swarm.expected())
    assert len(swarm.repairs) == 2
    swarm.fleet.servers.pop(third).stop()


def test_a_middle_stage_costs_the_client_less_than_a_kilobyte(swarm: Swarm, monkeypatch: pytest.MonkeyPatch):
    sent: list[int] = []
    opening: list[int] = []
    genuine = FrameStream.write

    def write(self: FrameStream, frame: Any) -> None:
        before = self.bytes_out
        genuine(self, frame)
        if isinstance(frame, Open):
            opening.append(self.bytes_out - before)

    def note() -> None:
        (chain,) = swarm.remote._connector._chains
        sent.append(chain.bytes_out - sum(opening))

    def note_and_kill() -> None:
        note()
        swarm.kill(1)

    monkeypatch.setattr(FrameStream, "write", write)
    swarm.generate({8: note, 9: note_and_kill, 10: note})
    ordinary, repaired = sent[1] - sent[0], sent[2] - sent[1]
    assert 0 < repaired - ordinary < 1024
    assert max(opening) < 1024, "the handshake, and what it offers the new stage"


def test_a_frozen_server_is_left_within_two_seconds_and_harms_nobody_when_it_wakes(swarm: Swarm):
    frozen = []

    def freeze() -> None:
        frozen.append(swarm.stages()[1])
        swarm.fleet.freeze(frozen[0])

    tokens, streamer = swarm.generate({9: freeze, 18: lambda: swarm.fleet.thaw(frozen[0])})
    assert torch.equal(tokens, swarm.expected())
    (repaired,) = swarm.repairs
    pauses_s = streamer.pauses_s()
    assert max(pauses_s) - repaired.seconds < max(2.0, 5 * statistics.median(pauses_s))


@pytest.mark.parametrize(("killed", "frozen"), [(1, 2), (2, 1)])
def test_a_stage_vanishes_while_its_neighbour_is_frozen(swarm: Swarm, killed: int, frozen: int):
    stages = []

    def harm() -> None:
        stages.extend(swarm.stages())
        swarm.fleet.freeze(stages[frozen])
        swarm.fleet.kill(stages[killed])

    tokens, streamer = swarm.generate({9: harm})
    swarm.fleet.thaw(stages[frozen])
    assert torch.equal(tokens, swarm.expected())
    assert max(streamer.pauses_s()) < 10.0


def test_a_dead_p2pd_is_a_lost_stage(swarm: Swarm):
    tokens, _ = swarm.generate({9: lambda: swarm.fleet.kill_daemon(swarm.stages()[1])})
    assert torch.equal(tokens, swarm.expected())


def test_without_a_spare_the_client_waits_and_goes_on_when_a_server_comes_back(swarm: Swarm):
    killed = []

    def kill_all_of_the_middle() -> None:
        running = set(swarm.stages())
        for peer_id, server in swarm.fleet.servers.items():
            if swarm.fleet._spans[peer_id] == SPANS[1] and server.returncode is None:
                swarm.fleet.kill(peer_id)
                killed.append(peer_id)
        assert running & set(killed)
        threading.Timer(2.0, lambda: swarm.fleet.restart(killed[0])).start()

    tokens, streamer = swarm.generate({9: kill_all_of_the_middle})
    assert torch.equal(tokens, swarm.expected())
    assert max(streamer.pauses_s()) > 2.0


def test_without_a_spare_the_client_says_in_the_end_which_blocks_are_missing(swarm: Swarm):
    def kill_all_of_the_middle() -> None:
        for peer_id, server in swarm.fleet.servers.items():
            if swarm.fleet._spans[peer_id] == SPANS[1] and server.returncode is None:
                swarm.fleet.kill(peer_id)

    connector = swarm.remote._connector
    patience_s, connector._step_timeout_s = connector._step_timeout_s, 3.0
    try:
        with pytest.raises(MissingBlocks, match="blocks 2:3"):
            swarm.generate({9: kill_all_of_the_middle})
    finally:
        connector._step_timeout_s = patience_s


def test_clients_without_weights_survive_too(swarm: Swarm, join: str, tmp_path: Path):
    directory = tmp_path / "thin"
    swarm.local.save_pretrained(directory)
    expected = swarm.expected()
    with AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join, thin=True) as remote:
        for stage in (0, 2):

            def kill(stage: int = stage) -> None:
                (chain,) = remote._connector._chains
                swarm.fleet.kill(chain.route.stages[stage].peer_id)

            streamer = AtTokens({9: kill})
            tokens = remote.generate(
                **swarm.prompt(),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                streamer=streamer,
            )
            assert torch.equal(tokens, expected)
            swarm.bring_back()
            remote._connector.forget()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_server_that_drains_hands_its_sessions_over_between_two_tokens(swarm: Swarm, stage: int):
    left = []

    def drain() -> None:
        left.append(swarm.fleet.servers[swarm.stages()[stage]])
        said = run_command(["drain", "--no-wait"], left[0].home)
        assert (said.returncode, said.stdout) == (0, "draining (it leaves); sessions: 1\n")

    streamer = swarm.generate_until_repaired(drain)
    (repaired,) = swarm.repairs
    assert repaired.were_leaving
    assert repaired.seconds < 1.0
    assert left[0].wait() == 0
    assert max(streamer.pauses_s()[9:]) < 1.0, "it served until somebody had taken its place"


def test_a_server_that_is_told_to_end_and_has_no_spare_ends_when_the_answer_does(swarm: Swarm):
    ended = []

    def leave_one_in_the_middle_and_end_it() -> None:
        ended.append(swarm.stages()[1])
        for peer_id, server in swarm.fleet.servers.items():
            if swarm.fleet._spans[peer_id] == SPANS[1] and peer_id != ended[0] and server.returncode is None:
                swarm.fleet.kill(peer_id)
        swarm.fleet.servers[ended[0]].signal(signal.SIGTERM)

    tokens, _ = swarm.generate({5: leave_one_in_the_middle_and_end_it})
    assert torch.equal(tokens, swarm.expected())
    assert swarm.repairs == []
    assert swarm.fleet.servers[ended[0]].wait() == 0


def test_a_second_signal_ends_a_draining_server_at_once(swarm: Swarm):
    with swarm.remote.inference_session(max_length=HISTORY + NEW_TOKENS + 1):
        swarm.generate({})
        last = swarm.fleet.servers[swarm.stages()[1]]
        for peer_id, server in swarm.fleet.servers.items():
            if swarm.fleet._spans[peer_id] == SPANS[1] and server is not last and server.returncode is None:
                swarm.fleet.kill(peer_id)
        last.signal(signal.SIGTERM)
        time.sleep(1.0)
        assert last.returncode is None, "it waits for the session that nobody else can take"
        last.signal(signal.SIGTERM)
        assert last.wait() == 0


def test_an_idle_session_is_handed_over_and_goes_on(swarm: Swarm):
    expected = swarm.expected(max_new_tokens=12, min_new_tokens=12)
    with swarm.remote.inference_session(max_length=HISTORY + NEW_TOKENS + 1):
        first = swarm.remote.generate(**swarm.prompt(), max_new_tokens=4, min_new_tokens=4, do_sample=False)
        server = swarm.fleet.servers[swarm.stages()[0]]
        assert run_command(["drain"], server.home).stdout.endswith("The server has left.\n")
        assert server.wait() == 0
        assert len(swarm.repairs) == 1
        mask = torch.ones_like(first)
        tokens = swarm.remote.generate(
            input_ids=first, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False
        )
    assert torch.equal(tokens, expected)
    assert len(swarm.repairs) == 1


def test_a_paused_server_gives_its_sessions_away_and_takes_them_again_when_it_is_resumed(swarm: Swarm):
    paused = []

    def pause() -> None:
        paused.append(swarm.stages()[1])
        assert "paused" in run_command(["pause"], swarm.fleet.servers[paused[0]].home).stdout

    swarm.generate_until_repaired(pause)
    assert len(swarm.repairs) == 1
    home = swarm.fleet.servers[paused[0]].home
    states = {server.owner: server.state.name for server in swarm.remote._connector.directory().servers}
    assert states[paused[0]] == "PAUSED"
    assert run_command(["resume"], home).stdout == "online; sessions: 0\n"
    states = {server.owner: server.state.name for server in swarm.remote._connector.directory().servers}
    assert states[paused[0]] == "ONLINE"
