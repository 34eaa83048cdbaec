"""A model writes the text that it is given, in as many steps as the text allows."""

import pytest
import torch

from tests.churn.latency import law_s, write
from tests.families import build
from tests.swarm.models import LLAMA

LOOKUP = {"prompt_lookup_num_tokens": 4}


@pytest.fixture(scope="module")
def model():
    return build("llama", LLAMA, 0)


def test_the_law_counts_one_hop_more_than_stages():
    assert law_s(0.01, 3, 0.05) == pytest.approx(0.11)
    assert law_s(0.01, 1, 0.0) == 0.01


@pytest.mark.parametrize("how", [{}, LOOKUP])
def test_what_is_written_is_the_text(model, how):
    text = [3, 4, 5, 6, 7] * 8
    written = write(model, torch.tensor([text[:15]]), 12, how, text)
    assert written.tokens[0].tolist() == text[:27]


def test_without_a_text_the_model_chooses(model):
    prompt = torch.tensor([[3, 4, 5]])
    expected = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, min_new_tokens=8, do_sample=False
    )
    written = write(model, prompt, 8, {})
    assert torch.equal(written.tokens, expected)
    assert written.num_tokens == written.num_steps == 7
    assert 0 < written.step_s <= written.seconds
    assert written.per_s == 7 / written.seconds


def test_lookup_needs_fewer_steps_where_text_repeats_itself_and_not_elsewhere(model):
    repeats, differs = [3, 4, 5, 6, 7] * 8, list(range(3, 43))
    assert write(model, torch.tensor([repeats[:15]]), 16, LOOKUP, repeats).num_steps < 6
    assert write(model, torch.tensor([differs[:15]]), 16, LOOKUP, differs).num_steps == 15
