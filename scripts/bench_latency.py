#!/usr/bin/env python3
"""Measure tokens per second through three servers whose links have round trips, beside the law that should hold.

Bootstrap, servers and the client's way to them stand behind proxies, so that every hop (client to first, between
neighbours, last to client) takes half a round trip. Each round measures every way of decoding at every round trip; C,
what a token costs without any, is plain decoding at 0 ms in the same round, through the same proxies. `token_ms` is the
median token of a generation, and `of_law` the law over it; `tokens_per_s` is all tokens over all time. Prints one
JSON line; exit code 1 when a token was another one than transformers' own.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench.report import circumstances, spread

sys.path.insert(0, str(Path(__file__).parents[1]))  # The churn kit is with the tests.

from transformers import AutoModelForCausalLM, AutoTokenizer

from node import AutoDistributedModelForCausalLM
from node.config import HOME_VARIABLE
from node.model.checkpoint import EMBEDDED as MODEL
from node.model.checkpoint import Checkpoint
from node.run.libraries import silence_libraries
from tests.churn.latency import LIST, PROSE, Written, law_s, write
from tests.churn_kit import Fleet, Links

SPANS = ((0, 3), (3, 6), (6, 8))
_DRAFT_NOISE = 0.1
"""Standard deviation of the relative noise on a draft model's weights."""


@dataclass(frozen=True)
class Work:
    """One way of decoding one text."""

    name: str
    text: list[int]
    """Prompt and what follows it."""
    num_prompt: int
    is_forced: bool
    """Whether the text is what must be written; otherwise the model chooses."""
    how: dict[str, Any]

    def run(self, model: Any, num_tokens: int) -> Written:
        """Generate."""
        prompt = torch.tensor([self.text[: self.num_prompt]])
        return write(model, prompt, num_tokens, self.how, self.text if self.is_forced else ())


def draft_of(model: Any, num_candidates: int) -> Any:
    """Return a copy of ``model`` with noise on its weights: it drafts well, not always, and costs as much."""
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.mul_(1 + _DRAFT_NOISE * torch.randn(parameter.shape, generator=generator))
    draft.generation_config.num_assistant_tokens = num_candidates
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return draft


def works(local: Any, tokenizer: Any, num_candidates: int) -> list[Work]:
    """Return what is measured; the first two are plain decoding of the two texts."""
    lookup = {"prompt_lookup_num_tokens": num_candidates}
    ids = {"list": tokenizer(LIST)["input_ids"], "prose": tokenizer(PROSE)["input_ids"]}
    starts = {"list": len(ids["list"]) // 2, "prose": 40}
    forced = [
        Work(f"{name} {text}", ids[text], starts[text], True, how)
        for name, how in (("plain", {}), ("lookup", lookup))
        for text in ids
    ]
    draft = {"assistant_model": draft_of(local, num_candidates)}
    own = [
        Work(name, ids["prose"], starts["prose"], False, how) for name, how in (("plain own", {}), ("draft own", draft))
    ]
    return [*forced, *own]


def measure(
    remote: Any, fleet: Fleet, todo: Sequence[Work], round_trips_ms: Sequence[float], num_tokens: int
) -> dict[tuple[float, str], Written]:
    """Do everything once at every round trip."""
    done = {}
    for round_trip_ms in round_trips_ms:
        for peer_id in fleet.servers:
            fleet.delay(peer_id, round_trip_ms / 1000)
        for work in todo:
            done[round_trip_ms, work.name] = work.run(remote, num_tokens)
    return done


def summarise(rounds: Sequence[dict[tuple[float, str], Written]], round_trip_ms: float, work: Work) -> dict[str, Any]:
    """Return medians and spreads of one way of decoding at one round trip."""
    plain = work.name if work.name.startswith("plain") else f"plain {work.name.split()[1]}"
    here = [done[round_trip_ms, work.name] for done in rounds]
    figures: dict[str, Any] = {
        "round_trip_ms": round_trip_ms,
        "way": work.name,
        **spread("tokens_per_s", [each.per_s for each in here], 2),
        "tokens_per_step": round(here[0].num_tokens / here[0].num_steps, 2),
    }
    if plain != work.name:
        speedups = [done[round_trip_ms, work.name].per_s / done[round_trip_ms, plain].per_s for done in rounds]
        return {**figures, **spread("over_plain", speedups)}
    laws_s = [law_s(done[0, plain].step_s, len(SPANS), round_trip_ms / 1000) for done in rounds]
    return {
        **figures,
        **spread("token_ms", [1000 * each.step_s for each in here], 1),
        **spread("of_law", [law / each.step_s for each, law in zip(here, laws_s, strict=True)]),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the swarm, measure, compare tokens."""
    silence_libraries()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-") as directory:
        home = Path(directory)
        os.environ[HOME_VARIABLE] = str(home / "client")
        files = Checkpoint.open(MODEL).tokenizer_dir
        tokenizer = AutoTokenizer.from_pretrained(files)
        local = AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32).eval()
        todo = works(local, tokenizer, arguments.candidates)
        with (
            Links() as links,
            links.bootstrap(home / "bootstrap") as (_, join),
            Fleet(MODEL, join, home, "--num-threads", "1", proxied=links) as fleet,
        ):
            fleet.start(*SPANS)
            with AutoDistributedModelForCausalLM.from_pretrained(MODEL, join=join) as remote:
                num_tokens, round_trips_ms = arguments.new_tokens, [0, *arguments.round_trips_ms]
                measure(remote, fleet, todo, [0], min(16, num_tokens))  # Caches and connections get warm.
                rounds = [measure(remote, fleet, todo, round_trips_ms, num_tokens) for _ in range(arguments.rounds)]
    expected = {work.name: work.run(local, num_tokens).tokens for work in todo}
    by_way = [
        summarise(rounds, round_trip_ms, work) for round_trip_ms in [0, *arguments.round_trips_ms] for work in todo
    ]
    return {
        **circumstances("latency", arguments.seed),
        "rounds": arguments.rounds,
        "model": MODEL,
        "vocab_size": len(tokenizer),
        "num_servers": len(SPANS),
        "new_tokens": num_tokens,
        "candidates": arguments.candidates,
        "tokens_equal": all(
            torch.equal(written.tokens, expected[name]) for done in rounds for (_, name), written in done.items()
        ),
        "by_way": by_way,
    }


def main() -> int:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds after a warm-up (default: 3)")
    parser.add_argument("--round-trips-ms", type=float, nargs="+", default=[50, 100], help="beside 0 (default: 50 100)")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=8, help="tokens that lookup and draft propose (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    line = run(parser.parse_args())
    print(json.dumps(line))
    return 0 if line["tokens_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
