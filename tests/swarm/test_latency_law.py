"""Where links have round trips, a token costs what the law says, and several tokens per round trip pay."""

import statistics
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from transformers import AutoTokenizer

from node import AutoDistributedModelForCausalLM
from node.model.checkpoint import EMBEDDED, Checkpoint
from tests.churn.latency import LIST, Written, law_s, write
from tests.churn_kit import AtTokens, Fleet

SPANS = ((0, 3), (3, 6), (6, 8))
NUM_TOKENS = 16
NUM_ROUNDS = 3
TOLERANCE = 0.15


class Delayed(NamedTuple):
    """Three stages of the embedded model, each behind a proxy, and a text that repeats itself."""

    fleet: Fleet
    remote: AutoDistributedModelForCausalLM
    text: list[int]

    def set_round_trip_s(self, round_trip_s: float) -> None:
        for peer_id in self.fleet.servers:
            self.fleet.delay(peer_id, round_trip_s)

    def token_s(self) -> tuple[float, float]:
        """Return the shortest and the median time of a token of plain decoding."""
        prompt = torch.tensor([self.text[:32]])
        streamer = AtTokens({})
        self.remote.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            streamer=streamer,
        )
        return min(streamer.pauses_s()), statistics.median(streamer.pauses_s())

    def write_list(self, **how: int) -> Written:
        prompt = torch.tensor([self.text[: len(self.text) // 2]])
        return write(self.remote, prompt, NUM_TOKENS, how, self.text)


@pytest.fixture(scope="module")
def delayed(join: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delayed]:
    text = AutoTokenizer.from_pretrained(Checkpoint.open(EMBEDDED).tokenizer_dir)(LIST)["input_ids"]
    home = tmp_path_factory.mktemp("delayed")
    with Fleet(EMBEDDED, join, home, "--num-threads", "1", proxied=True) as fleet:
        fleet.start(*SPANS)
        with AutoDistributedModelForCausalLM.from_pretrained(EMBEDDED, join=join) as remote:
            yield Delayed(fleet, remote, text)


def test_a_token_through_three_stages_costs_four_half_round_trips_beside_its_computing(delayed: Delayed):
    round_trip_s, shares = 0.05, []
    delayed.token_s()
    for _ in range(NUM_ROUNDS):
        delayed.set_round_trip_s(0.0)
        _, compute_s = delayed.token_s()
        delayed.set_round_trip_s(round_trip_s)
        shortest_s, median_s = delayed.token_s()
        assert shortest_s > law_s(0.0, len(SPANS), round_trip_s)  # No hop goes past the proxies.
        shares.append(law_s(compute_s, len(SPANS), round_trip_s) / median_s)
    print(f"of the law: {shares}")
    # The best round: a stall of a shared machine makes others worse and none better.
    assert min(abs(share - 1) for share in shares) < TOLERANCE


def test_prompt_lookup_pays_at_a_tenth_of_a_second_where_text_repeats_itself(delayed: Delayed):
    delayed.set_round_trip_s(0.1)
    plain, looked_up = delayed.write_list(), delayed.write_list(prompt_lookup_num_tokens=8)
    assert torch.equal(plain.tokens, looked_up.tokens)
    assert looked_up.per_s > 1.5 * plain.per_s
