"""Parts of several sessions in one forward pass give what each gives alone, in every family."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from node.model import ragged
from node.model.checkpoint import Checkpoint
from node.model.ragged import Part
from node.model.span import build_span
from tests.families import FAMILIES, NUM_BLOCKS, VARIANTS, VOCABULARY, WINDOW, build

CASES = {**{family: (family, values) for family, values in FAMILIES.items()}, **VARIANTS}
RUN_ONE_BY_ONE = {"bloom", "codegen", "doge", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "mpt"}
"""Families that compute attention themselves instead of naming a function for it."""
TOLERANCE = 1e-4
"""Of the largest output."""
MAX_LENGTH = 64


def span_of(family, values, directory, blocks=(0, NUM_BLOCKS)):
    if not (directory / "config.json").exists():
        build(family, values).save_pretrained(directory)
    checkpoint = Checkpoint.open(str(directory))
    tensors = checkpoint.load_span(*blocks, dtype=torch.float32)
    return build_span(checkpoint.config, tensors, *blocks, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    family, values = CASES[request.param]
    return family, span_of(family, values, tmp_path_factory.mktemp("model"), (1, NUM_BLOCKS))


class Session:
    """One session twice: in ``shared`` its steps run with those of others, in ``own`` alone."""

    def __init__(self, span, rows, padding=None, seed=0):
        self.span, self.rows = span, rows
        self.padding = None if padding is None else torch.tensor(padding)
        self.shared, self.own = span.new_cache(MAX_LENGTH, rows), span.new_cache(MAX_LENGTH, rows)
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, tokens):
        """Return the next ``tokens`` as a part, and what they give alone."""
        hidden = torch.randn(self.rows, tokens, self.span._config.hidden_size, generator=self.generator)
        first = self.own.length
        alone = self.span.forward(hidden, self.own, self.padding)
        kept = torch.ones(self.rows, tokens, dtype=torch.bool)
        if self.padding is not None:
            kept = torch.arange(first, first + tokens) >= self.padding[:, None]
        return Part(hidden, self.shared, self.padding), alone, kept


def assert_same_as_alone(span, sessions, lengths):
    steps = [session.step(tokens) for session, tokens in zip(sessions, lengths, strict=True)]
    outputs = span.forward_many([part for part, _, _ in steps])
    assert len(outputs) == len(steps)
    for output, (_, alone, kept), session in zip(outputs, steps, sessions, strict=True):
        assert output.shape == alone.shape
        assert session.shared.length == session.own.length
        assert ((output - alone)[kept].abs().max() / alone[kept].abs().max()).item() < TOLERANCE


def test_parts_in_one_forward_give_what_each_gives_alone(case):
    family, span = case
    assert span.can_batch == (family not in RUN_ONE_BY_ONE and span.state is None)
    sessions = [
        Session(span, 1, seed=1),
        Session(span, 3, seed=2),
        Session(span, 2, (3, 0), seed=3),
        Session(span, 1, seed=4),
        Session(span, 2, (0, 4), seed=5),
        Session(span, 3, (1, 0, 2), seed=6),
    ]
    # Prefills side by side, padded rows among them; beyond every sliding window from the first forward on.
    assert_same_as_alone(span, sessions[:5], (WINDOW + 5, 1, 2 * WINDOW, 3, WINDOW + 2))
    # Everybody decodes, and one more comes with its prompt.
    assert_same_as_alone(span, sessions, (1, 1, 1, 1, 1, 12))
    # Several tokens behind histories, in another order and company.
    assert_same_as_alone(span, sessions[::-1], (1, 4, 1, 7, WINDOW + 1, 1))
    assert_same_as_alone(span, sessions[2:4], (1, 1))
    assert_same_as_alone(span, sessions[3:4], (1,))
    assert_same_as_alone(span, sessions, (1,) * 6)


def test_a_history_that_was_cropped_is_forgotten(case):
    _, span = case
    if span.state is not None:
        return  # What these keep of a text cannot be cropped in place.
    sessions = [Session(span, 1, seed=7), Session(span, 2, (2, 0), seed=8)]
    assert_same_as_alone(span, sessions, (14, 14))
    for session in sessions:
        for cache in (session.shared, session.own):
            cache.crop_to(5)
    assert_same_as_alone(span, sessions, (3, 1))


def test_the_families_that_run_one_by_one_are_served():
    assert set(FAMILIES) > RUN_ONE_BY_ONE


def test_a_forward_that_fails_leaves_all_histories_and_the_next_forwards_as_they_were(tmp_path):
    span = span_of("llama", FAMILIES["llama"], tmp_path)
    sessions = [Session(span, 1, seed=1), Session(span, 2, seed=2)]
    assert_same_as_alone(span, sessions, (5, 9))

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = span._trunk.layers[2].register_forward_hook(fail)
    parts = [Part(torch.ones(session.rows, 3, 32), session.shared) for session in sessions]
    with pytest.raises(RuntimeError, match="out of memory"):
        span.forward_many(parts)
    hook.remove()
    assert [session.shared.length for session in sessions] == [5, 9]
    assert_same_as_alone(span, sessions, (1, 2))


@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek_v3"])
def test_a_view_made_within_a_forward_disturbs_neither_that_forward_nor_itself(family, tmp_path):
    """The event loop makes views when sessions open, while the compute thread runs a forward."""
    span, reference = (span_of(family, FAMILIES[family], tmp_path, blocks) for blocks in ((0, 4), (1, 3)))
    made = []
    hook = span._trunk.layers[1].register_forward_hook(lambda *_: made.append(span.view(1, 3)) or None)
    sessions = [Session(span, 1, seed=1), Session(span, 2, seed=2)]
    assert_same_as_alone(span, sessions, (1, 1))
    steps = [session.step(12) for session in sessions]
    made.clear()
    span._views = {(0, 4): span}
    outputs = span.forward_many([part for part, _, _ in steps])
    hook.remove()
    view = made[0]
    for output, (_, alone, _) in zip(outputs, steps, strict=True):
        torch.testing.assert_close(output, alone, atol=1e-4 * alone.abs().max().item(), rtol=0)
    sessions = [Session(view, 1, seed=3), Session(view, 2, seed=4)]
    for lengths in ((5, 12), (1, 3)):
        assert_same_as_alone(view, sessions, lengths)
    hidden = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(5))
    mine, its = view.new_cache(12), reference.new_cache(12)
    for piece in hidden.split((5, 1, 6), dim=1):
        torch.testing.assert_close(view.forward(piece, mine), reference.forward(piece, its), atol=1e-4, rtol=1e-4)
    assert_same_as_alone(span, [Session(span, 1, seed=6), Session(span, 1, seed=7)], (4, 4))


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_oss", "deepseek_v3", "qwen2_moe"])
def test_eight_sessions_in_changing_company_give_the_tokens_of_transformers_generate(family, tmp_path):
    span = span_of(family, FAMILIES[family], tmp_path)
    local = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    num_new, generator = 12, torch.Generator().manual_seed(0)
    texts = [torch.randint(3, VOCABULARY, (1, length), generator=generator) for length in (1, 3, 7, 8, 9, 14, 20, 2)]
    expected = [local.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=num_new) for text in texts]
    assert len({tuple(text[0, -num_new:].tolist()) for text in expected}) == len(texts)
    caches = [span.new_cache(MAX_LENGTH) for _ in texts]
    wanted = [text.shape[1] + num_new for text in texts]
    company, sizes = random.Random(0), set()
    while waiting := [number for number in range(8) if texts[number].shape[1] < wanted[number]]:
        chosen = company.sample(waiting, company.randint(1, len(waiting)))
        sizes.add(len(chosen))
        parts = [
            Part(local.get_input_embeddings()(texts[number][:, caches[number].length :]), caches[number])
            for number in chosen
        ]
        for number, output in zip(chosen, span.forward_many(parts), strict=True):
            token = local.lm_head(local.model.norm(output[:, -1:])).argmax(dim=2)
            texts[number] = torch.cat([texts[number], token], dim=1)
    assert max(sizes) >= 7
    for text, tokens in zip(texts, expected, strict=True):
        assert torch.equal(text, tokens)


TAKE_THE_SHORT_WAY = ("gpt_neox", "llama", "llama with one key head", "mistral", "qwen2", "qwen3", "mixtral")


@pytest.mark.parametrize("name", TAKE_THE_SHORT_WAY)
def test_one_tokens_attention_goes_to_torchs_kernel_directly(name, tmp_path, monkeypatch):
    span = span_of(*CASES[name], tmp_path)
    sessions = [Session(span, 1, seed=seed) for seed in range(3)]
    assert_same_as_alone(span, sessions, (2 * WINDOW, 3, WINDOW))
    calls = []
    kernel = ragged.scaled_dot_product_attention
    monkeypatch.setattr(
        ragged, "scaled_dot_product_attention", lambda *args, **options: (calls.append(1), kernel(*args, **options))[1]
    )
    assert_same_as_alone(span, sessions, (1, 1, 1))
    assert len(calls) == 3 * NUM_BLOCKS
