"""One client of a soak, a process of its own: it generates in every mode, and compares with transformers alone.

    python -m tests.soak.churn_client DIRECTORY JOIN SEED

Writes a JSON line for each answer, until its standard input ends: whether the tokens are those of the whole model, how
long it took, how often a stage was replaced. An error is an answer too.
"""

import json
import random
import sys
import threading
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from node import AutoDistributedModelForCausalLM
from node.errors import MissingBlocks
from node.run.libraries import silence_libraries

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 4},
}
NO_ROUTE = "no route to begin with"
"""All servers of some blocks had left the swarm when a session was to be opened; one that runs waits."""
PROMPTS = (8, 60, 200)
NEW_TOKENS = (8, 24, 48)


class Asked:
    """One thing to generate, drawn at random."""

    def __init__(self, chance: random.Random) -> None:
        self.mode = chance.choice(sorted(MODES))
        self.seed = chance.randrange(2**32)
        count = chance.choice(NEW_TOKENS)
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(3, 100, (1, chance.choice(PROMPTS)), generator=generator)
        self.settings = {
            **MODES[self.mode],
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": count,
            "min_new_tokens": count,
        }

    def of(self, model: Any) -> torch.Tensor:
        """Generate it with ``model``."""
        torch.manual_seed(self.seed)
        tokens: torch.Tensor = model.generate(**self.settings)
        return tokens


def main(directory: str, join: str, seed: int) -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(1)
    silence_libraries()
    chance, ended, repairs = random.Random(seed), threading.Event(), []
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    local = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with AutoDistributedModelForCausalLM.from_pretrained(directory, join=join) as remote:
        remote._connector.on_repaired = repairs.append
        print(json.dumps({"ready": True}), flush=True)
        while not ended.is_set():
            asked, before, started_s = Asked(chance), len(repairs), time.monotonic()
            try:
                outcome = "right" if torch.equal(asked.of(remote), asked.of(local)) else "wrong tokens"
            except MissingBlocks as error:
                outcome = NO_ROUTE if "No server holds" in str(error) else repr(error)
                time.sleep(1.0)
            except Exception as error:  # noqa: BLE001 - whatever it is, the soak wants to tell it
                outcome = repr(error)
            line = {"mode": asked.mode, "outcome": outcome, "s": round(time.monotonic() - started_s, 2)}
            print(json.dumps({**line, "repairs": len(repairs) - before}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
