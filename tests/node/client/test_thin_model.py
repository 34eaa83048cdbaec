"""A client without weights beside transformers' own model, over three spans behind the frames of real servers."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from node.client.thin_model import ThinModel
from node.client.thin_terms import ThinTerms
from node.errors import SessionError, UserError
from node.model.checkpoint import Checkpoint
from node.model.end_parameters import find_end_parameters
from node.model.ends import build_ends
from node.model.families import CHECKED_FAMILIES
from node.model.sampling import Sampling, choose
from node.model.span import build_span
from node.model.tokens import ids_to_payload
from node.wire import IDS, LOGITS, MAX_TOP, Result, Step
from tests.families import FAMILIES, STATEFUL, VARIANTS, VOCABULARY, build
from tests.in_process import InProcessSwarm

CPU = torch.device("cpu")
SERVED = {family: (family, values) for family, values in {**FAMILIES, **STATEFUL}.items() if family in CHECKED_FAMILIES}
CASES = {**SERVED, **VARIANTS}
TEXT_LENGTH = 12
PADDING = (4, 0)
TOP = 16
SPANS = ((0, 1), (1, 3), (3, 4))


@dataclass
class Case:
    """One family's model, whole and behind a client without weights."""

    local: Any
    swarm: InProcessSwarm
    config: Any
    text: torch.Tensor
    batch: torch.Tensor
    mask: torch.Tensor

    def thin(self, top=TOP, *, server_sampling=False):
        model = ThinModel(self.config, top, server_sampling=server_sampling)
        model.generation_config = copy.deepcopy(self.local.generation_config)
        model.connect(self.swarm, 64)
        return model


def case_of(family, values, directory):
    build(family, values).save_pretrained(directory)
    local = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    local.generation_config = GenerationConfig(bos_token_id=1, pad_token_id=0)
    checkpoint, here = Checkpoint.open(str(directory)), {"dtype": torch.float32, "device": CPU}
    config, parameters = checkpoint.config, find_end_parameters(checkpoint.config)
    spans = [build_span(config, checkpoint.load_span(*span, **here), *span, **here) for span in SPANS]
    tensors = checkpoint.load_client(**here)
    first = build_ends(config, tensors, parameters, embeds=True, heads=False, **here)
    last = build_ends(config, tensors, parameters, embeds=False, heads=True, **here)
    swarm = InProcessSwarm(spans, config.hidden_size, [first, None, last])
    ids = torch.randint(3, VOCABULARY, (2, TEXT_LENGTH), generator=torch.Generator().manual_seed(1))
    text = ids[1:].clone()
    text[0, -4:] = text[0, 2:6]
    mask = torch.ones_like(ids)
    for row, padding in enumerate(PADDING):
        ids[row, :padding] = mask[row, :padding] = 0
    return Case(local, swarm, config, text, ids, mask)


@pytest.fixture(scope="module", params=CASES)
def family(request, tmp_path_factory):
    return case_of(*CASES[request.param], tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return case_of("llama", FAMILIES["llama"], tmp_path_factory.mktemp("model"))


def test_greedy_tokens_are_those_of_the_whole_model(family):
    thin = family.thin()
    options = {"max_new_tokens": 6}
    assert torch.equal(thin.generate(family.text, **options), family.local.generate(family.text, **options))
    options["attention_mask"] = family.mask
    assert torch.equal(thin.generate(family.batch, **options), family.local.generate(family.batch, **options))
    sampled = family.thin(server_sampling=True).generate(family.batch, **options)
    assert torch.equal(sampled, family.local.generate(family.batch, **options))
    assert family.swarm.num_open == 0


@torch.no_grad()
def test_the_largest_logits_are_those_of_the_whole_model_and_all_others_are_minus_infinity(llama):
    whole = llama.local(llama.text).logits
    logits = llama.thin()(llama.text).logits
    assert logits.shape == whole.shape
    sent = logits > -torch.inf
    assert bool((sent.sum(dim=-1) == TOP).all())
    torch.testing.assert_close(logits[sent], whole[sent], atol=1e-5, rtol=1e-5)
    assert whole.masked_fill(sent, -torch.inf).amax() <= whole.masked_fill(~sent, torch.inf).amin(dim=-1).max()
    everything = llama.thin(top=MAX_TOP)(llama.text, logits_to_keep=3).logits
    torch.testing.assert_close(everything, whole[:, -3:], atol=1e-5, rtol=1e-5)


def test_only_the_last_position_of_a_prompt_is_scored_and_ids_are_what_travels(llama):
    thin = llama.thin()
    first = len(llama.swarm.results)
    thin.generate(llama.text, max_new_tokens=3)
    results = llama.swarm.results[first:]
    assert [result.shape for result in results] == [(1, 1, TOP)] * 3
    assert {result.codec for result in results} == {LOGITS}
    assert all(len(result.payload) == TOP * 8 for result in results)
    first = len(llama.swarm.results)
    llama.thin(server_sampling=True).generate(llama.text, max_new_tokens=3)
    results = llama.swarm.results[first:]
    assert [(result.shape, result.codec, len(result.payload)) for result in results] == [((1, 1, 1), IDS, 4)] * 3


def test_what_is_sampled_within_the_largest_logits_is_what_transformers_samples(llama):
    options = {"do_sample": True, "top_k": TOP, "temperature": 1.3, "num_return_sequences": 3, "max_new_tokens": 8}
    outputs = []
    for model in (llama.local, llama.thin()):
        torch.manual_seed(4)
        outputs.append(model.generate(llama.text, **options))
    assert torch.equal(*outputs)
    assert len({tuple(row) for row in outputs[0].tolist()}) > 1


def test_drafts_out_of_the_prompt_are_verified_by_the_servers(llama):
    thin, num_crops = llama.thin(), llama.swarm.num_crops
    drafted = thin.generate(llama.text, max_new_tokens=10, prompt_lookup_num_tokens=3)
    assert torch.equal(drafted, llama.local.generate(llama.text, max_new_tokens=10))
    assert llama.swarm.num_crops > num_crops, "no draft was ever wrong: nothing was tried here"


def test_beams_are_those_of_the_whole_model_where_all_logits_travel(llama):
    beams = {"num_beams": 3, "max_new_tokens": 6, "attention_mask": llama.mask}
    thin = llama.thin(top=MAX_TOP)
    assert torch.equal(thin.generate(llama.batch, **beams), llama.local.generate(llama.batch, **beams))


def test_more_beams_than_the_logits_allow_are_refused_in_a_sentence(llama):
    with pytest.raises(UserError, match="5 beams choose among 10 tokens and the server sends 8"):
        llama.thin(top=8).generate(llama.text, num_beams=5, max_new_tokens=2)


def test_a_session_goes_on_over_several_calls(llama):
    thin = llama.thin()
    with thin.inference_session(max_length=40) as session:
        text = thin.generate(llama.text, max_new_tokens=4)
        assert session.length == text.shape[1] - 1
        tokens = llama.swarm.num_tokens
        longer = thin.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=4)
        assert llama.swarm.num_tokens - tokens == 4
    assert torch.equal(longer, llama.local.generate(llama.text, max_new_tokens=8))


@torch.no_grad()
def test_what_a_server_samples_is_what_the_pure_sampler_chooses_and_a_seed_repeats_it(llama):
    thin = llama.thin(server_sampling=True)
    options = {"do_sample": True, "temperature": 1.5, "top_k": 30, "top_p": 0.9, "max_new_tokens": 6}
    torch.manual_seed(9)
    text = thin.generate(llama.batch, attention_mask=llama.mask, **options)
    torch.manual_seed(9)
    seed = int(torch.randint(0, 2**63 - 1, ()))
    expected, sampling = llama.batch, Sampling(1.5, 30, 0.9, seed)
    for _ in range(6):
        mask = torch.cat([llama.mask, torch.ones((2, expected.shape[1] - TEXT_LENGTH), dtype=torch.long)], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        logits = llama.local(expected, attention_mask=mask, position_ids=positions).logits[:, -1]
        expected = torch.cat([expected, choose(logits, sampling, expected.shape[1]).unsqueeze(1)], dim=1)
    assert torch.equal(text, expected)
    torch.manual_seed(9)
    assert torch.equal(thin.generate(llama.batch, attention_mask=llama.mask, **options), text)
    assert not torch.equal(thin.generate(llama.batch, attention_mask=llama.mask, **options), text)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 2}, "beams"),
        ({"prompt_lookup_num_tokens": 2}, "prompt lookup"),
        ({"use_cache": False}, "use_cache"),
        ({"repetition_penalty": 1.2}, "RepetitionPenalty"),
        ({"do_sample": True, "min_p": 0.1}, "MinP"),
        ({"do_sample": True, "temperature": 2000.0}, "temperature 2000"),
    ],
)
def test_what_a_sampling_server_cannot_do_is_refused_in_a_sentence(options, named, llama):
    with pytest.raises(UserError, match=named):
        llama.thin(server_sampling=True).generate(llama.text, max_new_tokens=2, **options)
    assert llama.swarm.num_open == 0


def test_of_the_authors_defaults_those_that_a_server_does_not_follow_are_left_out_and_named(llama):
    thin = llama.thin(server_sampling=True)
    thin.generation_config = GenerationConfig(repetition_penalty=1.3, top_p=0.9, temperature=0.5, do_sample=True)
    assert thin.leave_out_defaults() == ["repetition_penalty"]
    assert (thin.generation_config.top_p, thin.generation_config.temperature) == (0.9, 0.5)
    assert thin.generate(llama.text, max_new_tokens=3).shape == (1, TEXT_LENGTH + 3)


def test_a_session_that_is_sampled_in_one_way_is_not_gone_on_with_in_another(llama):
    thin = llama.thin(server_sampling=True)
    sampled = {"do_sample": True, "max_new_tokens": 2}
    with thin.inference_session(max_length=64):
        text = thin.generate(llama.text, temperature=0.7, **sampled)
        text = thin.generate(text, attention_mask=torch.ones_like(text), temperature=0.7, **sampled)
        with pytest.raises(UserError, match="open a new"):
            thin.generate(text, attention_mask=torch.ones_like(text), temperature=0.8, **sampled)


def test_ids_beyond_the_vocabulary_and_embeddings_are_refused_before_anything_is_sent(llama):
    thin, num_steps = llama.thin(), llama.swarm.num_steps
    with pytest.raises(UserError, match=f"0 to {VOCABULARY - 1}"):
        thin(torch.tensor([[1, VOCABULARY]]))
    with pytest.raises(UserError, match="embeds nothing"):
        thin(inputs_embeds=torch.zeros((1, 2, 32)))
    with pytest.raises(UserError, match="as a number"):
        thin(llama.text, logits_to_keep=torch.tensor([0]))
    assert llama.swarm.num_steps == num_steps


def test_the_client_holds_no_weight(llama):
    thin = llama.thin()
    assert not list(thin.parameters())
    assert not list(thin.buffers())


def test_a_token_that_does_not_exist_is_the_last_servers_fault(llama, monkeypatch):
    run = llama.swarm.run

    def lie(chain, steps):
        ids = torch.tensor([[[VOCABULARY]]])
        return [Result(each.session, each.position, (1, 1, 1), IDS, ids_to_payload(ids)) for each in run(chain, steps)]

    thin = llama.thin(server_sampling=True)
    monkeypatch.setattr(llama.swarm, "run", lie)
    with pytest.raises(SessionError, match="does not have"):
        thin(llama.text)


def result(codec, shape, num_bytes):
    return Result(bytes(16), 0, shape, codec, bytes(num_bytes))


def test_an_answer_has_the_form_that_was_asked_for():
    step = Step(bytes(16), 0, (2, 5, 1), IDS, bytes(40), logits_to_keep=3)
    logits, sampled = ThinTerms(4), ThinTerms(0, (1.0, 0, 1.0, 0))
    assert logits.is_answer(result(LOGITS, (2, 3, 4), 192), step)
    assert logits.is_answer(result(LOGITS, (2, 3, 2), 96), step), "a vocabulary may be smaller than what is asked for"
    assert sampled.is_answer(result(IDS, (2, 3, 1), 24), step)
    for terms, other in (
        (logits, result(LOGITS, (2, 3, 5), 240)),
        (logits, result(LOGITS, (2, 2, 4), 128)),
        (logits, result(LOGITS, (1, 3, 4), 96)),
        (logits, result(IDS, (2, 3, 1), 24)),
        (logits, result("float32", (2, 3, 4), 96)),
        (sampled, result(LOGITS, (2, 3, 1), 48)),
        (sampled, result(IDS, (2, 3, 2), 48)),
    ):
        assert not terms.is_answer(other, step)
