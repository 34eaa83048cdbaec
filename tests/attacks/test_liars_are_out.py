"""Three liars among eight servers: found by a verifier, convicted by the others, and out, whatever they say in court.

Real processes on loopback: a bootstrap, two ranges of the bundled model with four servers each, of which three lie in
different ways (a block left out, noise, noise now and then), attract work by what they announce, deny every claim,
appeal, and vote for each other; a verifier that the founder named an anchor; a slanderer, who claims what is right,
with the evidence of it; and a client that audits nothing and knows of all this only what stands on the DHT. An epoch
takes 96 s here, so a trial's unit is eight seconds.

The ordinary suite has the same with liars who say nothing in court, and without the slanderer: default judgement takes
a few units, where a trial that is fought over takes two epochs.
"""

import contextlib
import itertools
import json
import time
from collections import Counter
from importlib import resources
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from node import AutoDistributedModelForCausalLM
from tests.attacks.evil_server import evil_server
from tests.churn_kit import Fleet
from tests.processes import NodeProcess, bootstrap, run_command

EPOCH_S = 96
LOW, HIGH = (0, 4), (4, 8)
PATIENCE_S = 8 * EPOCH_S
"""For all three to be convicted: trials take two epochs, and on a busy machine some are lost for want of time."""
AFTERWARDS = 20
"""Requests that are sent when all three are out."""
PROMPT, NEW_TOKENS = 24, 12
LARGEST_ERROR = 0.05
"""Of a logit that is right: float32 differs by 1e-4 between one process and two, the least lie by 0.5."""


class Client:
    """Sends one request after the other, audits nothing, and compares what comes with what the model says by itself."""

    def __init__(self, join):
        self.model = AutoDistributedModelForCausalLM.from_pretrained("embedded", join=join, audit_rate=0.0)
        self._reference = AutoModelForCausalLM.from_pretrained(
            str(resources.files("node") / "embedded"), dtype=torch.float32
        )
        self._seeds = itertools.count()

    def ask(self):
        """Return whether the answer was right, and who worked for it."""
        chance = torch.Generator().manual_seed(next(self._seeds))
        ids = torch.randint(3, self.model.config.vocab_size, (1, PROMPT), generator=chance)
        given, right = (self._generate(model, ids) for model in (self.model, self._reference))
        error = max(float((one - other).abs().max()) for one, other in zip(given.logits, right.logits, strict=False))
        is_right = given.sequences.tolist() == right.sequences.tolist() and error < LARGEST_ERROR
        candidates = self.model.explain_route().candidates
        return is_right, [each.peer_id for each in candidates if each.taken is not None]

    def convicted(self):
        """Name those whom it uses no more because they were convicted."""
        explained = self.model.explain_route()
        candidates = explained.candidates if explained is not None else ()
        return {each.peer_id for each in candidates if "convicted" in each.reason}

    @staticmethod
    def _generate(model, ids):
        return model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )


@contextlib.contextmanager
def swarm_among(lying, home, *, slanders):
    """Start everything; ``lying`` says how the three liars go about it in court."""
    verifying = home / "verifier"
    verifying.mkdir()
    verifier = json.loads(run_command(["identity", "show", "--json"], verifying).stdout)["peer_id"]
    rules = ("--epoch", str(EPOCH_S), "--anchors", verifier)
    serving = ("--dtype", "float32", "--num-threads", "1", "--max-memory", "1GiB")
    with (
        bootstrap(home / "bootstrap", *rules) as (_, join),
        Fleet("embedded", join, home / "fleet", *serving) as fleet,
    ):
        honest = fleet.start(LOW, LOW, HIGH, HIGH, HIGH)
        liars = [
            fleet.start(span, program=evil_server(f"{behaviour} {lying}"))[0]
            for span, behaviour in ((LOW, "skipping"), (HIGH, "noisy"), (LOW, "flickering"))
        ]
        command = ["verify", "embedded", "--join", join, "--num-threads", "1", "--canaries-per-epoch"]
        with contextlib.ExitStack() as exits:
            process = NodeProcess([*command, "20"], verifying)
            exits.callback(process.stop)
            slanderer = ""
            if slanders:
                slandering = NodeProcess([*command, "4"], home / "slanderer", program=evil_server("slanders"))
                exits.callback(slandering.stop)
                slanderer = slandering.ready()["peer_id"]
            assert process.ready()["peer_id"] == verifier
            yield SimpleNamespace(
                join=join,
                honest={*honest},
                liars={*liars},
                verifier=verifier,
                slanderer=slanderer,
                home=home / "user",
            )


def told(swarm, *command):
    done = run_command([*command, "--join", swarm.join], swarm.home)
    assert done.returncode == 0, done.stderr
    return done.stdout


def claims_of(swarm):
    return json.loads(told(swarm, "claims", "--json"))["claims"]


def convicted_for_good(swarm):
    """Name those against whom a verdict is final: before that a denial that is still on its way can lift it."""
    return {claim["accused"] for claim in claims_of(swarm) if claim["state"] == "upheld" and claim["is_final"]}


def standings(swarm):
    (model,) = json.loads(told(swarm, "status", "--json"))["models"].values()
    return {server["peer_id"]: server["standing"] for server in model["servers"]}


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """Start a swarm with liars, and a client in it."""
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path / "client"))
    with contextlib.ExitStack() as exits:

        def start(lying, *, slanders):
            swarm = exits.enter_context(swarm_among(lying, tmp_path, slanders=slanders))
            client = Client(swarm.join)
            exits.callback(client.model.close)
            return swarm, client

        yield start


def ask_until_all_are_out(swarm, client):
    """Ask again and again; return what the answers were, and how long it took, s."""
    began_s, answers = time.monotonic(), []
    while not (swarm.liars <= client.convicted() and swarm.liars <= convicted_for_good(swarm)):
        assert time.monotonic() - began_s < PATIENCE_S, told(swarm, "claims")
        answers.append(client.ask())
        time.sleep(2.0)
    took_s = time.monotonic() - began_s
    num_wrong = sum(not is_right for is_right, _ in answers)
    print(f"{num_wrong} of {len(answers)} answers were wrong in the {took_s:.0f} s before the last liar was out")
    assert num_wrong, "they did no harm, so nothing was shown"


def check_that_all_is_well(swarm, client):
    """From now on every answer is right and every honest server is as well thought of as before."""
    after = [client.ask() for _ in range(AFTERWARDS)]
    assert [is_right for is_right, _ in after] == [True] * AFTERWARDS
    workers = [peer for _, peers in after for peer in peers]
    assert len(workers) == 2 * AFTERWARDS
    assert set(workers) <= swarm.honest
    assert not client.convicted() - swarm.liars, "an honest server was convicted"

    ranks = standings(swarm)
    assert {peer for peer, rank in ranks.items() if rank == "convicted"} == swarm.liars
    assert {peer for peer, rank in ranks.items() if rank == "established"} == swarm.honest
    by_verifier = [claim for claim in claims_of(swarm) if claim["accuser"] == swarm.verifier]
    assert {claim["accused"] for claim in by_verifier} == swarm.liars, "nobody else was accused by it"
    assert not [claim for claim in by_verifier if claim["state"] == "rejected"]
    for liar in swarm.liars:
        story = told(swarm, "score", liar, "--why")
        assert "convicted of false work" in story
        assert "It gets no work" in story


@pytest.mark.timeout(PATIENCE_S + 300)
def test_liars_who_say_nothing_are_convicted_and_from_then_on_every_answer_is_right(scene):
    swarm, client = scene("mute", slanders=False)
    ask_until_all_are_out(swarm, client)
    check_that_all_is_well(swarm, client)


@pytest.mark.full
@pytest.mark.timeout(PATIENCE_S + 300)
def test_liars_are_convicted_and_from_then_on_every_answer_is_right(scene):
    swarm, client = scene("liar", slanders=True)
    ask_until_all_are_out(swarm, client)
    check_that_all_is_well(swarm, client)

    claims = claims_of(swarm)
    print(Counter((claim["accuser"] == swarm.slanderer, claim["state"], claim["is_final"]) for claim in claims))
    slanders = [claim for claim in claims if claim["accuser"] == swarm.slanderer and claim["accused"] in swarm.honest]
    assert slanders, "it did no harm, so nothing was shown"
    assert not [claim for claim in slanders if claim["state"] == "upheld"]
    story = told(swarm, "score", slanders[0]["accused"], "--why")
    assert "established" in story
    assert swarm.slanderer in story
