"""What a stage at an end of a route gives is found out where it is false: embedding, span, logits and tokens."""

import dataclasses
import math

import pytest
import torch

from node.check.calibrate import load_ends
from node.check.check import Verdict, through_codec
from node.check.end_check import EndWork, LoadedEnds, Part, check_ends, check_sizes
from node.errors import BadOpening, CannotCheck
from node.model.checkpoint import Checkpoint
from node.model.end_parameters import find_end_parameters
from node.model.sampling import top_logits
from node.model.span import build_span
from node.model.tensors import to_payload
from node.model.tokens import ids_to_payload, logits_to_payload
from tests.families import FAMILIES, NUM_BLOCKS, VOCABULARY, build
from tests.node.check.figures import calibration

CPU = torch.device("cpu")
HIDDEN, TOP = 32, 8
FIGURES = calibration(HIDDEN, NUM_BLOCKS, kinds=[("bfloat16", codec) for codec in ("float32", "bfloat16", "int8")])


class Model:
    def __init__(self, family, directory):
        build(family, FAMILIES[family]).save_pretrained(directory)
        self.checkpoint = Checkpoint.open(str(directory))
        self.ends = load_ends(self.checkpoint, find_end_parameters(self.checkpoint.config), torch.float32)
        tensors = self.checkpoint.load_span(0, NUM_BLOCKS, dtype=torch.float32)
        self.span = build_span(self.checkpoint.config, tensors, 0, NUM_BLOCKS, dtype=torch.float32, device=CPU)
        self.loaded = LoadedEnds(self.ends, self.ends)

    def last(self, hidden, codec="float32", padding=()):
        """What a last stage of two blocks makes of ``hidden``: its logits."""
        span, given = self.span.view(2, NUM_BLOCKS), through_codec(hidden, codec)
        column = torch.tensor(padding) if padding else None
        return self.ends.logits(span.forward(given, span.new_cache(hidden.shape[1], hidden.shape[0]), column))

    def check_last(self, work):
        check_sizes(work)
        return check_ends(self.span.view(2, NUM_BLOCKS), self.loaded, work, FIGURES, "bfloat16")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tmp_path_factory):
    return Model(request.param, tmp_path_factory.mktemp("model"))


def hidden_states(positions, rows=1, seed=0):
    return torch.randn(rows, positions, HIDDEN, generator=torch.Generator().manual_seed(seed))


def states(hidden, codec="float32", first=0):
    return Part(first, codec, hidden.shape[1], HIDDEN, bytes(to_payload(hidden, codec)))


def tokens(ids, first=0):
    return Part(first, "ids", ids.shape[1], 1, bytes(ids_to_payload(ids)))


def likeliest(logits, first, k=TOP):
    ids, values = top_logits(logits, k)
    return Part(first, "logits", logits.shape[1], k, bytes(logits_to_payload(ids, values)))


def work_of(inputs, outputs, first=0, codec="float32", rows=1, padding=(), top=TOP, **changes):
    return EndWork(rows, HIDDEN, codec, first, inputs, tuple(outputs), padding, top, **changes)


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_honest_logits_pass_wherever_they_were_asked_for(model, codec):
    hidden = hidden_states(100)
    logits = model.last(hidden, codec)
    parts = [likeliest(logits[:, first:last], first) for first, last in ((70, 71), (80, 95), (99, 100))]
    result = model.check_last(work_of(states(hidden, codec), parts, 64, codec))
    assert result.verdict is Verdict.PASS, result
    assert result.statistics.num_positions == 17


def test_logits_that_are_a_little_off_at_all_positions_or_much_at_one_fail(model):
    hidden = hidden_states(64)
    logits = model.last(hidden)
    noise = 0.1 * logits.std() * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    one = logits.clone()
    one[0, 40, one[0, 40].argmax()] += 0.5 * logits.std()
    for false in (logits + noise, one):
        assert model.check_last(work_of(states(hidden), [likeliest(false, 0)])).verdict is Verdict.FAIL


def test_who_skips_a_block_before_an_honest_head_fails(model):
    hidden = hidden_states(64)
    lazy = model.span.view(2, 3)
    logits = model.ends.logits(lazy.forward(hidden, lazy.new_cache(64)))
    assert model.check_last(work_of(states(hidden), [likeliest(logits, 0)])).verdict is Verdict.FAIL


def test_who_sends_fewer_logits_than_were_asked_for_fails_but_for_a_small_vocabulary(model):
    hidden = hidden_states(64)
    logits = model.last(hidden)
    kept_back, all_of_them = likeliest(logits, 0, TOP - 1), likeliest(logits, 0, VOCABULARY)
    assert model.check_last(work_of(states(hidden), [kept_back])).verdict is Verdict.FAIL
    assert model.check_last(work_of(states(hidden), [all_of_them], top=1000)).verdict is Verdict.PASS


def test_the_likeliest_tokens_pass_and_one_of_them_changed_fails_and_neither_is_pooled(model):
    hidden = hidden_states(64)
    logits = model.last(hidden)
    right = logits.argmax(dim=-1)
    wrong = right.clone()
    wrong[0, 5] = logits[0, 5].argmin()
    for ids, verdict in ((right, Verdict.PASS), (wrong, Verdict.FAIL)):
        result = model.check_last(work_of(states(hidden), [tokens(ids)], top=0))
        assert (result.verdict, math.isnan(result.ratio)) == (verdict, True)
    lost = torch.full_like(right, 2**31 - 1)
    assert model.check_last(work_of(states(hidden), [tokens(lost)], top=0)).verdict is Verdict.FAIL


def test_tokens_that_were_drawn_are_not_checked(model):
    work = work_of(states(hidden_states(64)), [tokens(torch.zeros(1, 64).long())], top=0, is_greedy=False)
    with pytest.raises(CannotCheck, match="drew by a seed"):
        check_sizes(work)


def test_what_is_embedded_and_goes_through_the_first_blocks_is_checked_like_hidden_states(model):
    ids = torch.randint(0, VOCABULARY, (2, 70), generator=torch.Generator().manual_seed(2))
    padding = (66, 3)
    span = model.span.view(0, 2)
    entered = model.ends.embed(ids, 0, padding)
    outputs = span.forward(entered, span.new_cache(70, 2), torch.tensor(padding))
    for given, verdict in ((outputs, Verdict.PASS), (entered, Verdict.FAIL)):
        work = work_of(tokens(ids), [states(given[:, 64:], first=64)], 64, rows=2, padding=padding)
        check_sizes(work)
        result = check_ends(span, LoadedEnds(model.ends, None), work, FIGURES, "bfloat16")
        assert result.verdict is verdict
        assert result.statistics.num_positions == 4, "padding is left out"


def test_a_route_of_one_stage_is_checked_from_ids_to_logits(model):
    ids = torch.randint(0, VOCABULARY, (2, 70), generator=torch.Generator().manual_seed(2))
    padding = (66, 0)
    entered = model.ends.embed(ids, 0, padding)
    logits = model.ends.logits(model.span.forward(entered, model.span.new_cache(70, 2), torch.tensor(padding)))
    other = model.ends.logits(model.span.forward(entered, model.span.new_cache(70, 2)))
    for given, verdict in ((logits, Verdict.PASS), (other, Verdict.FAIL)):
        work = work_of(tokens(ids), [likeliest(given[:, 64:], 64)], 64, rows=2, padding=padding)
        check_sizes(work)
        assert check_ends(model.span, model.loaded, work, FIGURES, "bfloat16").verdict is verdict


def test_infinite_inputs_blame_nobody(model):
    hidden = torch.full((1, 64, HIDDEN), math.inf)
    logits = torch.zeros(1, 64, VOCABULARY)
    assert model.check_last(work_of(states(hidden), [likeliest(logits, 0)])).verdict is Verdict.INCONCLUSIVE


def test_a_check_that_takes_more_memory_than_allowed_is_not_made(model):
    work = work_of(states(hidden_states(64)), [tokens(torch.zeros(1, 64).long())], top=0)
    with pytest.raises(CannotCheck, match="more than the 10,000 allowed"):
        check_ends(model.span, model.loaded, work, FIGURES, "bfloat16", max_bytes=10_000)


GOOD = work_of(states(hidden_states(64)), [tokens(torch.zeros(1, 2).long(), 10), tokens(torch.zeros(1, 2).long(), 20)])
HIDDEN_OUT = work_of(
    tokens(torch.zeros(1, 64).long()), [states(hidden_states(30)), states(hidden_states(34), first=30)]
)


@pytest.mark.parametrize(
    ("work", "changes"),
    [
        (GOOD, {"codec": "none"}),
        (GOOD, {"rows": 2}),
        (GOOD, {"hidden_size": 33}),
        (GOOD, {"first": 11}),
        (GOOD, {"first": 64}),
        (GOOD, {"outputs": ()}),
        (GOOD, {"outputs": GOOD.outputs[::-1]}),
        (GOOD, {"outputs": (dataclasses.replace(GOOD.outputs[0], first=63),)}),
        (GOOD, {"outputs": (dataclasses.replace(GOOD.outputs[0], width=2),)}),
        (GOOD, {"outputs": (dataclasses.replace(GOOD.outputs[0], num_positions=0),)}),
        (GOOD, {"outputs": (GOOD.outputs[0], states(hidden_states(1), first=30))}),
        (GOOD, {"inputs": dataclasses.replace(GOOD.inputs, first=1)}),
        (GOOD, {"inputs": dataclasses.replace(GOOD.inputs, codec="bfloat16")}),
        (GOOD, {"left_padding": (1, 1)}),
        (HIDDEN_OUT, {"outputs": HIDDEN_OUT.outputs[:1]}),
        (HIDDEN_OUT, {"outputs": (HIDDEN_OUT.outputs[0], dataclasses.replace(HIDDEN_OUT.outputs[1], first=29))}),
    ],
)
def test_an_opening_that_does_not_fit_together_is_refused_before_anything_is_computed(work, changes):
    check_sizes(work)
    with pytest.raises(BadOpening):
        check_sizes(dataclasses.replace(work, **changes))
