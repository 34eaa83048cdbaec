"""A swarm without its bootstrap: running text goes on, and once the bootstrap is back new nodes join through it."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers.generation.streamers import BaseStreamer

from node import AutoDistributedModelForCausalLM
from tests.families import NUM_BLOCKS
from tests.processes import bootstrap, children_of, run_command, servers
from tests.swarm.process_tree import left_after

TEXT = torch.arange(3, 15).unsqueeze(0)
NEW_TOKENS = 24


class Gate(BaseStreamer):
    """Lets a few tokens pass, then holds generation up until it is opened."""

    def __init__(self, num_tokens):
        self.num_left = num_tokens
        self.reached, self.opened = threading.Event(), threading.Event()

    def put(self, value):
        self.num_left -= 1
        if self.num_left == 0:
            self.reached.set()
            assert self.opened.wait(60)

    def end(self):
        pass


def generate(model, **options):
    return model.generate(TEXT, max_new_tokens=NEW_TOKENS, **options)


def test_without_the_bootstrap_text_goes_on_and_through_it_restarted_new_nodes_join(llama, tmp_path):
    home, directory = tmp_path / "bootstrap", str(llama.directory)
    expected = generate(llama.local)
    with bootstrap(home) as (first, code):
        half = NUM_BLOCKS // 2
        with (
            servers(directory, code, [(0, half), (half, NUM_BLOCKS)], tmp_path),
            AutoDistributedModelForCausalLM.from_pretrained(directory, join=code) as early,
        ):
            gate = Gate(6)
            with ThreadPoolExecutor(1) as threads:
                running = threads.submit(generate, early, streamer=gate)
                assert gate.reached.wait(60)
                its_processes = [first.pid, *children_of(first.pid)]
                first.signal(signal.SIGKILL)
                assert first.wait() == -signal.SIGKILL
                assert left_after(its_processes, 10.0) == [], "its p2pd goes with it"
                gate.opened.set()
                assert torch.equal(running.result(60), expected)
            assert torch.equal(generate(early), expected), "a new session needs no bootstrap either"

            with (
                bootstrap(home) as (_, code_again),
                servers(directory, code_again, [(0, NUM_BLOCKS)], tmp_path) as (newcomer,),
            ):
                assert code_again == code
                assert newcomer.returncode is None
                status = run_command(["status", "--json", "--join", code], tmp_path)
                (model,) = json.loads(status.stdout)["models"].values()
                assert model["missing"] == []
                assert {server["state"] for server in model["servers"]} == {"online"}
                peers = {server["blocks"]: server["peer_id"] for server in model["servers"]}
                assert sorted(peers) == ["0:2", "0:4", "2:4"]
                with AutoDistributedModelForCausalLM.from_pretrained(
                    directory, join=code_again, only_peers=[peers["0:4"]]
                ) as late:
                    assert torch.equal(generate(late), expected)
