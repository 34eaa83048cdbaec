"""For every family: three spans and a client's model give what transformers' own model gives, in every mode.

The spans run in this process, behind the frames and sessions of a real server; only sockets are missing.
"""

import copy
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from node.client import remote_session
from node.client.distributed_model import build_model
from node.errors import DamagedCheckpoint, SessionError, UnsupportedFamily
from node.model.checkpoint import Checkpoint
from node.model.families import _REASONS, CHECKED_FAMILIES, STATE_FAMILIES, check_family, keeps_state, max_positions
from node.model.span import build_span
from tests.families import FAMILIES, NUM_BLOCKS, STATEFUL, VARIANTS, VOCABULARY, build
from tests.in_process import InProcessSwarm

CPU = torch.device("cpu")
TOLERANCE = 1e-4
"""Of the largest logit."""
CASES = {**{family: (family, values) for family, values in (FAMILIES | STATEFUL).items()}, **VARIANTS}
TEXT_LENGTH = 14
PADDING = (3, 0)


@dataclass
class Case:
    """One family's model, whole and split."""

    local: Any
    remote: Any
    swarm: InProcessSwarm
    text: torch.Tensor
    """Ids of one text, ``[1, TEXT_LENGTH]``, with a passage that repeats."""
    batch: torch.Tensor
    """Ids of two texts, the first padded on the left, ``[2, TEXT_LENGTH]``."""
    mask: torch.Tensor
    """1 where ``batch`` is text."""

    def generate_both(self, *args, seed=0, **options):
        outputs = []
        for model in (self.local, self.remote):
            torch.manual_seed(seed)
            outputs.append(model.generate(*args, max_new_tokens=6, **options))
        return outputs


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    family, values = CASES[request.param]
    directory = tmp_path_factory.mktemp("model")
    build(family, values).save_pretrained(directory)
    local = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    checkpoint = Checkpoint.open(str(directory))
    check_family(checkpoint.config)
    remote, blocks = build_model(
        checkpoint.config, checkpoint.load_client(dtype=torch.float32), dtype=torch.float32, device=CPU
    )
    remote.generation_config = copy.deepcopy(local.generation_config)
    # The middle stage serves a part of its span, as a server does for a client whose route needs no more of it.
    spans = [span_of(checkpoint, 0, 1), span_of(checkpoint, 1, 4).view(1, 3), span_of(checkpoint, 3, 4)]
    swarm = InProcessSwarm(spans, checkpoint.config.hidden_size)
    remote.attach(swarm, blocks, max_length=64)
    ids = torch.randint(3, VOCABULARY, (2, TEXT_LENGTH), generator=torch.Generator().manual_seed(1))
    text = ids[:1].clone()
    text[0, -4:] = text[0, 2:6]
    mask = torch.ones_like(ids)
    for row, padding in enumerate(PADDING):
        mask[row, :padding] = 0
        ids[row, :padding] = 0
    return Case(local, remote, swarm, text, ids, mask)


def span_of(checkpoint, start, end):
    tensors = checkpoint.load_span(start, end, dtype=torch.float32)
    return build_span(checkpoint.config, tensors, start, end, dtype=torch.float32, device=CPU)


def assert_close(remote, local):
    assert remote.shape == local.shape
    scale = local.abs().max()
    assert scale > 0.01, "logits this small would hide any difference"
    assert ((remote - local).abs().max() / scale).item() < TOLERANCE


@torch.no_grad()
def test_logits_are_those_of_the_whole_model(case):
    local, remote, text = case.local, case.remote, case.text
    whole = local(text, use_cache=False).logits
    assert_close(remote(text, use_cache=False).logits, whole)

    # Step by step behind a cache, longer than any sliding window.
    first = remote(text[:, :9], use_cache=True)
    second = remote(text[:, 9:10], past_key_values=first.past_key_values)
    third = remote(text[:, 10:], past_key_values=second.past_key_values)
    assert_close(torch.cat([first.logits, second.logits, third.logits], dim=1), whole)

    # Cropped, and continued otherwise; a state cannot be, and nothing is computed from a wrong one.
    cache = third.past_key_values
    if keeps_state(local.config):
        again = None
        cache.crop(-(TEXT_LENGTH - 5))
        with pytest.raises(SessionError, match="keep a state"):
            remote(text[:, 5:], past_key_values=cache)
    else:
        cache.crop(-(TEXT_LENGTH - 5))
        assert cache.get_seq_length() == 5
        again = remote(text[:, 5:], past_key_values=cache)
        assert_close(again.logits, whole[:, 5:])
    assert case.swarm.chains[-1].length == TEXT_LENGTH

    # Padded rows: what stands on padding is of no account.
    kept = case.mask.bool()
    padded_local = local(case.batch, attention_mask=case.mask, position_ids=positions_of(case.mask), use_cache=False)
    padded_remote = remote(case.batch, attention_mask=case.mask, position_ids=positions_of(case.mask), use_cache=False)
    assert_close(padded_remote.logits[kept], padded_local.logits[kept])
    del first, second, third, again, cache, padded_remote
    assert case.swarm.num_open == 0, "a session ends with the last reference to its cache"


def positions_of(mask):
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


class Collector(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self):
        self.tokens, self.has_ended = [], False

    def put(self, value):
        self.tokens.extend(value.flatten().tolist())

    def end(self):
        self.has_ended = True


def test_generated_tokens_are_those_of_the_whole_model(case):
    # Greedy, streamed.
    streamer = Collector()
    greedy = case.local.generate(case.text, max_new_tokens=6)
    assert torch.equal(case.remote.generate(case.text, max_new_tokens=6, streamer=streamer), greedy)
    assert streamer.has_ended
    assert streamer.tokens == greedy[0].tolist()

    # A batch padded on the left; greedy, and several samples of each row.
    local, remote = case.generate_both(case.batch, attention_mask=case.mask)
    assert torch.equal(remote, local)
    local, remote = case.generate_both(case.text, do_sample=True, num_return_sequences=2, top_k=20, seed=7)
    assert torch.equal(remote, local)

    # Beams of a padded batch, several of them returned; with so many end tokens, beams finish at different lengths.
    beams = {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": list(range(2, VOCABULARY, 5))}
    local, remote = case.generate_both(case.batch, attention_mask=case.mask, **beams)
    assert torch.equal(remote, local)
    assert case.swarm.num_selections > 0

    check_drafts(case, greedy)

    # A session that goes on: what it has seen is not sent again.
    with case.remote.inference_session(max_length=40) as session:
        text = case.remote.generate(case.text, max_new_tokens=4)
        assert session.length == text.shape[1] - 1
        longer = torch.cat([text, case.text[:, :3]], dim=1)
        before = case.swarm.num_tokens
        # A mask, because transformers takes every id of a padding token for padding where none is given.
        everything = {"attention_mask": torch.ones_like(longer), "max_new_tokens": 4}
        continued = case.remote.generate(longer, **everything)
        num_new = continued.shape[1] - longer.shape[1]
        assert case.swarm.num_tokens - before == 4 + num_new - 1
    assert torch.equal(continued, case.local.generate(longer, **everything))
    assert case.swarm.num_open == 0


def check_drafts(case, greedy):
    """Check that drafts change no token; where layers keep a state, that they are refused."""
    from_assistant = {"assistant_model": assistant_of(case.local)}
    if keeps_state(case.local.config):
        for drafts in ({"prompt_lookup_num_tokens": 3}, from_assistant):
            with pytest.raises((SessionError, ValueError), match=r"stateful|keep a state"):
                case.remote.generate(case.text, max_new_tokens=6, **drafts)
        return
    # Out of the prompt.
    num_crops = case.swarm.num_crops
    local, remote = case.generate_both(case.text, prompt_lookup_num_tokens=3)
    assert torch.equal(remote, local)
    assert torch.equal(remote, greedy)
    # Of a smaller model that is sometimes wrong.
    assisted = case.remote.generate(case.text, max_new_tokens=6, **from_assistant)
    assert torch.equal(assisted, greedy)
    assert case.swarm.num_crops > num_crops, "no draft was ever wrong: nothing was tried here"


def assistant_of(model):
    """Return a copy of ``model`` with some noise: it drafts well, and not always."""
    assistant = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
    assistant.generation_config.num_assistant_tokens = 3
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant


def test_a_prompt_that_travels_in_pieces_gives_the_same_tokens(case, monkeypatch):
    bytes_per_token = case.batch.shape[0] * case.local.config.hidden_size * 4
    whole = case.local.generate(case.batch, attention_mask=case.mask, max_new_tokens=6)
    # Pieces of one token are all padding in one row, and text in the other.
    for tokens_per_step in (1, 2, 5) if keeps_state(case.local.config) else (5,):
        monkeypatch.setattr(remote_session, "_MAX_STEP_BYTES", tokens_per_step * bytes_per_token)
        num_steps = case.swarm.num_steps
        pieced = case.remote.generate(case.batch, attention_mask=case.mask, max_new_tokens=6)
        assert torch.equal(pieced, whole)
        assert case.swarm.num_steps - num_steps == -(-TEXT_LENGTH // tokens_per_step) + 5


def test_the_families_tested_here_are_the_families_that_are_served():
    assert set(FAMILIES) | set(STATEFUL) == CHECKED_FAMILIES
    assert set(STATEFUL) == STATE_FAMILIES
    assert CHECKED_FAMILIES.isdisjoint(_REASONS)


def test_windows_are_shorter_than_the_text_and_models_have_more_layers_than_stages():
    windows = [
        values[key] for _, values in CASES.values() for key in ("sliding_window", "window_size") if key in values
    ]
    assert len(windows) >= 10
    assert max(windows) < TEXT_LENGTH
    assert NUM_BLOCKS > 3


@pytest.mark.parametrize("family", sorted(_REASONS))
def test_a_family_that_cannot_work_is_refused_by_name_before_any_weight_is_read(family, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": 99}), "utf-8")
    with pytest.raises(UnsupportedFamily, match=family) as refusal:
        check_family(Checkpoint.open(str(tmp_path)).config)
    assert "choose a model of" in str(refusal.value)


@pytest.mark.parametrize("family", ["bart", "t5", "bert", "mamba", "blip", "whisper"])
def test_a_family_that_nobody_checked_is_refused_and_the_message_names_those_that_work(family):
    with pytest.raises(UnsupportedFamily, match="llama") as refusal:
        check_family(CONFIG_MAPPING[family]())
    assert family in str(refusal.value)


def test_a_config_that_contradicts_itself_is_named_as_damaged(tmp_path):
    config = {"model_type": "qwen2", "num_hidden_layers": 3, "layer_types": ["full_attention"] * 4}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(DamagedCheckpoint, match=r"config.json of .* contradicts itself .*layer_types"):
        Checkpoint.open(str(tmp_path))


def test_sessions_end_where_a_table_ends_or_the_length_would_choose_the_frequencies():
    def bound(family, **values):
        return max_positions(CONFIG_MAPPING[family](**{**FAMILIES[family], **values}))

    trained = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    assert bound("llama") is None
    assert bound("gptj") == bound("codegen") == bound("gpt_neo") == bound("mpt") == 128
    assert bound("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}) == 128
    assert bound("phi3", rope_parameters=trained, original_max_position_embeddings=32) == 32
    assert bound("llama", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}) is None
