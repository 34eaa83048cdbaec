"""Canaries fit the model, and are made of what the model has written."""

import random

from hypothesis import given
from hypothesis import strategies as st

from node.verify.canary_text import MAX_NEW, MAX_PROMPT, MIN_PROMPT, CanaryTexts

chances = st.randoms(use_true_random=False)


@given(chances, st.integers(2, 10_000), st.integers(4, 4096))
def test_every_canary_fits_the_model_whatever_its_size(chance, vocab_size, max_positions):
    texts = CanaryTexts(vocab_size, max_positions, chance)
    for _ in range(10):
        script = texts.next()
        assert 1 <= len(script.prompt) <= MAX_PROMPT
        assert 1 <= script.num_new <= MAX_NEW
        assert len(script.prompt) + script.num_new <= max_positions
        assert all(0 <= token < vocab_size for token in script.prompt)
        texts.keep([*script.prompt, *(token % vocab_size for token in range(script.num_new))])


@given(chances)
def test_after_the_first_they_are_pieces_of_earlier_ones(chance):
    texts = CanaryTexts(1000, 4096, chance)
    written = tuple(range(300))
    texts.keep(written)
    prompt = texts.next().prompt
    assert prompt == written[prompt[0] : prompt[0] + len(prompt)]
    assert len(prompt) >= MIN_PROMPT


def test_lengths_differ():
    texts = CanaryTexts(1000, 4096, random.Random(0))
    texts.keep(range(300))
    assert len({(len(script.prompt), script.num_new) for script in (texts.next() for _ in range(50))}) > 40
