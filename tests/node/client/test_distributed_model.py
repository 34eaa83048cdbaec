"""A client's model beside transformers' own: sessions, masks, long prompts, and what it refuses."""

import asyncio
import copy
import gc
import json
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig

from node.client import remote_session
from node.client.distributed_model import AutoDistributedModelForCausalLM, build_model, use_generation_config
from node.client.remote_session import RemoteCache
from node.errors import DamagedCheckpoint, LocalError, PromptTooLong, Refused, UserError
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from node.wire import Result, max_step_tokens
from tests.families import FAMILIES, VOCABULARY, build
from tests.in_process import InProcessSwarm

CPU = torch.device("cpu")
TEXT = torch.randint(3, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(3))
BATCH = torch.randint(3, VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(4))
MASK = torch.ones_like(BATCH)
MASK[0, :4] = 0


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build("qwen3", FAMILIES["qwen3"]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def local(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.fixture(scope="module")
def checkpoint(directory):
    return Checkpoint.open(str(directory))


def connect(checkpoint, dtype=torch.float32, max_length=64, codec="auto", cuts=((0, 2), (2, 4))):
    model, remote = build_model(checkpoint.config, checkpoint.load_client(dtype=dtype), dtype=dtype, device=CPU)
    use_generation_config(model, checkpoint.tokenizer_dir)
    spans = [
        build_span(checkpoint.config, checkpoint.load_span(*span, dtype=dtype), *span, dtype=dtype, device=CPU)
        for span in cuts
    ]
    swarm = InProcessSwarm(spans, checkpoint.config.hidden_size)
    model.attach(swarm, remote, max_length, codec)
    return model, swarm


@pytest.fixture
def connected(checkpoint):
    return connect(checkpoint)


@pytest.fixture
def model(connected):
    return connected[0]


@pytest.fixture
def swarm(connected):
    return connected[1]


def test_the_client_holds_no_block_and_is_of_the_familys_own_class(model, local):
    assert len(model.model.layers) == 1
    assert not list(model.model.layers.parameters())
    whole, blocks = (sum(p.numel() for p in part.parameters()) for part in (local, local.model.layers))
    assert sum(p.numel() for p in model.parameters()) <= whole - blocks
    assert type(model).__name__ == type(local).__name__
    assert isinstance(model, type(local))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_long_prompt_is_sent_in_several_steps_and_gives_the_same(rows, model, swarm, local, monkeypatch):
    monkeypatch.setattr(remote_session, "_MAX_STEP_BYTES", 3 * rows * 32 * 4)
    text = TEXT.repeat(rows, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(text).logits, local(text).logits, atol=1e-5, rtol=1e-5)
    assert swarm.num_steps == 4
    options = {"num_beams": 2, "max_new_tokens": 4}
    assert torch.equal(model.generate(text, **options), local.generate(text, **options))


@pytest.mark.parametrize("shape", [(1, 4097, 8), (8, 2100, 4), (1024, 20, 4)])
def test_no_step_carries_more_positions_than_a_server_takes(swarm, shape, monkeypatch):
    lengths = []

    def echo(_, steps):
        lengths.extend(step.shape[1] for step in steps)
        return [Result(step.session, step.position, step.shape, step.codec, step.payload) for step in steps]

    monkeypatch.setattr(swarm, "run", echo)
    hidden = torch.randn(shape)
    assert torch.equal(RemoteCache(swarm, shape[1]).step(hidden, ()), hidden)
    assert sum(lengths) == shape[1]
    assert len(lengths) > 1
    assert max(lengths) <= max_step_tokens(shape[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_travels_as_it_is_computed(checkpoint, directory, dtype):
    local = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    model, swarm = connect(checkpoint, dtype)
    with torch.no_grad():
        remote_logits, local_logits = model(TEXT).logits, local(TEXT).logits
    assert remote_logits.dtype == dtype
    assert torch.equal(remote_logits, local_logits)
    assert {chain.stages[0].state.opened.codec for chain in swarm.chains} == {str(dtype).removeprefix("torch.")}


@pytest.mark.parametrize(("codec", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 5e-2)])
def test_a_codec_that_is_asked_for_is_that_of_every_session_and_costs_little(
    checkpoint, local, monkeypatch, codec, tolerance
):
    model, swarm = connect(checkpoint, codec=codec)
    travelled, run = [], swarm.run

    def watch(chain, steps):
        results = run(chain, steps)
        travelled.extend(frame.codec for frame in (*steps, *results))
        return results

    monkeypatch.setattr(swarm, "run", watch)
    with torch.no_grad():
        remote_logits, local_logits = model(TEXT).logits, local(TEXT).logits
    assert remote_logits.dtype == torch.float32
    assert not torch.equal(remote_logits, local_logits), "nothing was rounded"
    assert (remote_logits - local_logits).abs().max() <= tolerance * local_logits.abs().max()
    with model.inference_session(20):
        model.generate(TEXT, max_new_tokens=3)
    model.generate(TEXT, max_new_tokens=3, num_beams=2)
    assert {chain.stages[0].state.opened.codec for chain in swarm.chains} == {codec}
    assert set(travelled) == {codec}


@torch.no_grad()
def test_int8_through_three_servers_of_the_trained_model_gives_the_local_tokens_of_a_text_step_by_step():
    checkpoint = Checkpoint.open("embedded")
    local = AutoModelForCausalLM.from_pretrained(checkpoint.tokenizer_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
    model, _ = connect(checkpoint, codec="int8", cuts=((0, 3), (3, 6), (6, 8)))
    num_agreeing = num_tokens = 0
    for prompt in ("This package provides", "A library for", "python3-", "GNU R package to"):
        ids = local.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=32, do_sample=False)
        with model.inference_session(ids.shape[1]):
            pieces = (ids[:, :8], *ids[:, 8:].split(1, dim=1))
            ours = torch.cat([model(piece).logits for piece in pieces], dim=1)[0]
        theirs = local(ids).logits[0]
        assert ours.shape == theirs.shape
        errors = (ours - theirs).abs() / theirs.std(dim=-1, keepdim=True)
        assert 0 < errors.mean() < 0.01
        assert errors.max() < 0.1
        num_agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        num_tokens += len(ours)
    assert num_agreeing >= 0.98 * num_tokens, "this is what two tokens that are nearly as likely may cost"


def test_a_session_keeps_the_codec_that_it_was_opened_with(checkpoint):
    _, swarm = connect(checkpoint)
    cache = RemoteCache(swarm, 8)
    cache.step(torch.ones(1, 2, 32), ())
    assert cache.step(torch.ones(1, 1, 32, dtype=torch.bfloat16), ()).dtype == torch.bfloat16
    cache.crop(-3)
    cache.step(torch.ones(1, 2, 32, dtype=torch.bfloat16), ())
    assert [chain.stages[0].state.opened.codec for chain in swarm.chains] == ["float32", "bfloat16"]


def test_a_coarse_codec_takes_longer_pieces_of_a_prompt_in_one_step(checkpoint, monkeypatch):
    monkeypatch.setattr(remote_session, "_MAX_STEP_BYTES", 3 * 32 * 4)
    for codec, num_steps in (("float32", 4), ("float16", 2), ("int8", 2)):
        model, swarm = connect(checkpoint, codec=codec)
        model(TEXT)
        assert swarm.num_steps == num_steps


def test_a_codec_that_does_not_exist_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="int8"):
        AutoDistributedModelForCausalLM.from_pretrained("/nowhere", join="", codec="int3")


@pytest.mark.parametrize("share", [-0.01, 0.06, 1.0, float("nan")])
def test_newcomers_are_given_no_larger_share_than_a_twentieth(share):
    with pytest.raises(UserError, match=r"shadow_rate .*from 0 to 0\.05"):
        AutoDistributedModelForCausalLM.from_pretrained("/nowhere", join="", shadow_rate=share)


def test_a_dtype_that_no_codec_carries_is_refused_with_the_mend(checkpoint):
    model, _ = connect(checkpoint, torch.float64)
    with pytest.raises(UserError, match=r"torch\.float32"):
        model(TEXT)


def test_generate_closes_the_session_it_opened(model, swarm):
    model.generate(TEXT, max_new_tokens=3)
    assert len(swarm.chains) == 1
    assert swarm.num_open == 0


def test_generate_closes_its_session_when_it_fails(model, swarm):
    def fail(*_):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        model.generate(TEXT, max_new_tokens=3, stopping_criteria=[fail])
    assert swarm.num_open == 0


def test_a_cache_that_generate_returns_stays_open_and_can_be_continued(model, swarm, local):
    options = {"max_new_tokens": 3, "return_dict_in_generate": True}
    output = model.generate(TEXT, **options)
    assert swarm.num_open == 1
    token = output.sequences[:, -1:]
    with torch.no_grad():
        remote_logits = model(token, past_key_values=output.past_key_values).logits
        local_logits = local(output.sequences).logits[:, -1:]
    torch.testing.assert_close(remote_logits, local_logits, atol=1e-5, rtol=1e-5)
    del output
    gc.collect()
    assert swarm.num_open == 0


def test_a_cache_that_a_call_returns_has_room_for_more_than_that_call(model, swarm, local):
    options = {"max_new_tokens": 3, "return_dict_in_generate": True}
    for start in (lambda m: m.generate(TEXT, **options).past_key_values, lambda m: m(TEXT).past_key_values):
        text = torch.cat([TEXT, TEXT + 1], dim=1)
        cache = start(model)
        assert cache.history.max_length == 64
        cache.crop(TEXT.shape[1] - cache.get_seq_length())
        output = model.generate(text, past_key_values=cache, max_new_tokens=30)
        assert torch.equal(output, local.generate(text, max_new_tokens=30))
        with pytest.raises(PromptTooLong, match=r"inference_session\(max_length="):
            model.generate(output, past_key_values=cache, max_new_tokens=60)


def test_a_call_needs_no_more_room_than_its_text_where_servers_are_short_of_it(model, swarm, monkeypatch):
    opened, reserved = swarm.open, []

    def short_of_room(batch, left_padding, max_length, codec):
        reserved.append(max_length)
        if max_length > 40:
            raise Refused("too_long", "no room")
        return opened(batch, left_padding, max_length, codec)

    monkeypatch.setattr(swarm, "open", short_of_room)
    model(TEXT)
    model.generate(TEXT, max_new_tokens=3, return_dict_in_generate=True)
    assert reserved[:3] == [64, 12, 64]
    assert reserved[3] < 40
    with pytest.raises(Refused):
        model.generate(TEXT, max_new_tokens=30)
    assert len(reserved) == 5, "there was nothing less to ask for"


def test_a_prefill_in_chunks_gives_the_same_where_a_row_begins_with_chunks_of_padding(model, local):
    options = {"attention_mask": MASK, "prefill_chunk_size": 3, "max_new_tokens": 4}
    assert torch.equal(model.generate(BATCH, **options), local.generate(BATCH, **options))
    assert torch.equal(model.generate(BATCH, num_beams=2, **options), local.generate(BATCH, num_beams=2, **options))


def test_a_remote_cache_is_not_copied(model):
    with pytest.raises(UserError, match="cannot be copied"):
        copy.deepcopy(model(TEXT).past_key_values)


def test_a_cache_is_cropped_by_a_negative_number_as_transformers_does(model):
    cache = model(TEXT).past_key_values
    with pytest.raises(ValueError, match="negative"):
        cache.crop(5)
    cache.crop(0)
    assert cache.get_seq_length() == 12
    cache.crop(-5)
    assert cache.get_seq_length() == 7


def test_more_rows_than_a_session_takes_are_refused_before_it_opens(model, swarm):
    with pytest.raises(UserError, match="at most 1024 rows"):
        model(TEXT.repeat(1025, 1)[:, :1])
    assert swarm.chains == []


def test_generating_without_a_cache_gives_the_same(model, swarm, local):
    options = {"max_new_tokens": 3, "use_cache": False}
    assert torch.equal(model.generate(TEXT, **options), local.generate(TEXT, **options))
    assert swarm.num_open == 0


def test_a_family_that_returns_any_cache_it_is_given_generates_without_one(tmp_path):
    build("bloom", FAMILIES["bloom"]).save_pretrained(tmp_path)
    model, swarm = connect(Checkpoint.open(str(tmp_path)))
    local = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    options = {"attention_mask": MASK, "max_new_tokens": 3, "use_cache": False}
    assert torch.equal(model.generate(BATCH, **options), local.generate(BATCH, **options))
    assert swarm.num_open == 0


def test_a_call_without_a_session_leaves_none_behind(model, swarm):
    model(TEXT)
    assert len(swarm.chains) == 1
    assert swarm.num_open == 0


def test_every_call_inside_a_session_continues_it(model, swarm, local):
    with model.inference_session(max_length=20) as session, torch.no_grad():
        parts = [model(TEXT[:, :5]).logits, model(TEXT[:, 5:6]).logits, model(input_ids=TEXT[:, 6:]).logits]
        assert session.length == TEXT.shape[1]
        assert "peer0" in session.route
        torch.testing.assert_close(torch.cat(parts, 1), local(TEXT).logits, atol=1e-5, rtol=1e-5)
    assert len(swarm.chains) == 1
    assert swarm.num_open == 0


def test_a_session_generates_over_a_padded_batch_and_goes_on(model, local):
    with model.inference_session(max_length=30):
        first = model.generate(BATCH, attention_mask=MASK, max_new_tokens=3)
        mask = torch.cat([MASK, torch.ones(2, 3, dtype=torch.long)], dim=1)
        second = model.generate(first, attention_mask=mask, max_new_tokens=3)
    assert torch.equal(first, local.generate(BATCH, attention_mask=MASK, max_new_tokens=3))
    assert torch.equal(second, local.generate(first, attention_mask=mask, max_new_tokens=3))


def test_sessions_nest_and_the_outer_one_goes_on_afterwards(model, swarm):
    with model.inference_session(max_length=20) as outer:
        model(TEXT[:, :4])
        with model.inference_session(max_length=20) as inner:
            model(TEXT)
            assert (outer.length, inner.length) == (4, 12)
        model(TEXT[:, 4:6])
        assert outer.length == 6
    assert swarm.num_open == 0


def test_a_session_that_is_closed_is_refused(model):
    with model.inference_session(max_length=20) as session:
        model(TEXT)
    with pytest.raises(UserError, match="closed"):
        model(TEXT, past_key_values=session.cache)


def test_a_text_longer_than_its_session_is_refused_and_what_was_there_stays(model):
    with model.inference_session(max_length=8) as session:
        with pytest.raises(PromptTooLong, match="max_length"):
            model(TEXT)
        model(TEXT[:, :8])
        assert session.length == 8
        with pytest.raises(PromptTooLong):
            model(TEXT[:, 8:9])


@pytest.mark.parametrize("max_length", [0, -3])
def test_a_session_of_no_length_is_refused(model, max_length):
    with pytest.raises(UserError, match="at least 1"), model.inference_session(max_length=max_length):
        pass


def test_a_session_cropped_to_nothing_takes_other_rows_and_padding(model, swarm, local):
    with model.inference_session(max_length=20) as session, torch.no_grad():
        model(TEXT)
        session.cache.crop(-session.length)
        assert session.length == 0
        positions = (MASK.cumsum(1) - 1).clamp_min(0)
        remote_logits = model(BATCH, attention_mask=MASK, position_ids=positions).logits
        local_logits = local(BATCH, attention_mask=MASK, position_ids=positions).logits
        kept = MASK.bool()
        torch.testing.assert_close(remote_logits[kept], local_logits[kept], atol=1e-5, rtol=1e-5)
    assert swarm.num_open == 0


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0]] * 2),
        torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1, 1, 1]] * 2),
        torch.tensor([[0] * 10, [1] * 10]),
        torch.ones(2, 1, 10, 10).tril(),
    ],
    ids=["padding on the right", "a hole", "an empty row", "four dimensions"],
)
def test_a_mask_that_is_not_left_padding_is_refused(model, swarm, mask):
    with pytest.raises(UserError, match="attention_mask"):
        model(BATCH, attention_mask=mask)
    assert swarm.num_open == 0


def test_a_mask_that_hides_other_positions_than_at_the_start_is_refused(model):
    with model.inference_session(max_length=20):
        model(BATCH[:, :9], attention_mask=MASK[:, :9])
        for wrong in (torch.ones_like(BATCH), MASK.flip(0)):
            with pytest.raises(UserError, match="than it did when this session began"):
                model(BATCH[:, 9:], attention_mask=wrong)
        model(BATCH[:, 9:], attention_mask=MASK)


@pytest.mark.parametrize("width", [1, 2, 5, 11])
def test_a_mask_that_is_not_of_the_history_and_the_new_tokens_is_refused(model, width):
    with model.inference_session(max_length=20) as session:
        model(TEXT[:, :9])
        with pytest.raises(UserError, match="10 in all"):
            model(TEXT[:, 9:10], attention_mask=torch.ones(1, width, dtype=torch.long))
        assert session.length == 9


@pytest.mark.parametrize("positions", [[*range(6), *range(6)], [*range(5, 17)], [0, 2, 1, *range(3, 12)], [0]], ids=str)
def test_positions_that_the_servers_would_not_follow_are_refused(model, swarm, positions):
    with pytest.raises(UserError, match="position_ids"):
        model(TEXT, position_ids=torch.tensor([positions]))
    assert swarm.chains == []


def test_positions_that_only_count_on_are_taken_padded_rows_too(model, local):
    positions = (MASK.cumsum(1) - 1).masked_fill(MASK == 0, 1)
    with model.inference_session(max_length=20), torch.no_grad():
        model(BATCH[:, :8], attention_mask=MASK[:, :8], position_ids=positions[:, :8])
        for at in (8, 9):
            mask, now = MASK[:, : at + 1], positions[:, at : at + 1]
            for wrong in (now - 1, now + 1, now.flip(0), torch.full_like(now, at)):
                with pytest.raises(UserError, match="position_ids"):
                    model(BATCH[:, at : at + 1], attention_mask=mask, position_ids=wrong)
            remote_logits = model(BATCH[:, at : at + 1], attention_mask=mask, position_ids=now).logits
            local_logits = local(BATCH[:, : at + 1], attention_mask=mask, position_ids=positions[:, : at + 1]).logits
            torch.testing.assert_close(remote_logits, local_logits[:, -1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [5, 11, 12])
def test_a_text_with_nothing_new_for_its_session_is_refused_with_the_mend(model, tokens):
    with model.inference_session(max_length=30) as session:
        model(TEXT)
        with pytest.raises(UserError, match="whole text so far"):
            model.generate(TEXT[:, :tokens], attention_mask=torch.ones(1, tokens), max_new_tokens=2)
        assert session.length == TEXT.shape[1]
        with pytest.raises(UserError, match="no new token"):
            model(TEXT[:, :0])


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_outputs_that_stay_on_the_servers_are_refused(model, swarm, option):
    with pytest.raises(UserError, match=option):
        model(TEXT, **{option: True})
    with pytest.raises(UserError, match=option):
        model.generate(TEXT, max_new_tokens=2, return_dict_in_generate=True, **{option: True})
    assert swarm.chains == []


def test_padding_ids_inside_a_sessions_text_are_not_silently_taken_for_padding(model):
    with model.inference_session(max_length=30):
        text = model.generate(TEXT, max_new_tokens=2)
        text[0, -1] = model.generation_config.pad_token_id
        with pytest.raises(UserError, match="attention_mask"):
            model.generate(torch.cat([text, TEXT[:, :2]], dim=1), max_new_tokens=2)


def test_a_cache_of_another_kind_is_refused(model):
    with pytest.raises(UserError, match="DynamicCache"):
        model(TEXT, past_key_values=DynamicCache())
    with pytest.raises(UserError, match="DynamicCache"):
        model.generate(TEXT, past_key_values=DynamicCache(), max_new_tokens=2)
    with pytest.raises(UserError, match="cache_implementation"):
        model.generate(TEXT, cache_implementation="static", max_new_tokens=2)


def test_the_inner_modules_cannot_be_called_past_the_model(model):
    with pytest.raises(LocalError, match="Call the model itself"):
        model.model(TEXT)


def test_keys_and_values_cannot_be_written_to_a_remote_session(swarm):
    with pytest.raises(LocalError, match="hidden states"):
        RemoteCache(swarm, 8).update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0)


def test_rows_are_selected_and_repeated_as_transformers_asks(model, swarm, local):
    mask_after = torch.tensor([True, False])
    with torch.no_grad():
        cache = model(BATCH[:, :9]).past_key_values
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0]))
        cache.batch_select_indices(mask_after)
        logits = model(BATCH[1:, 9:], past_key_values=cache).logits
        torch.testing.assert_close(logits, local(BATCH[1:]).logits[:, -1:], atol=1e-5, rtol=1e-5)
    assert swarm.num_selections == 1


def test_two_threads_each_have_their_own_session(model, local):
    expected = {seed: local.generate(TEXT + seed, max_new_tokens=5) for seed in range(3)}
    results = {}

    def work(seed):
        results[seed] = model.generate(TEXT + seed, max_new_tokens=5)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[seed], expected[seed]) for seed in expected)


def test_another_threads_calls_stay_out_of_a_session_and_its_length(model, swarm, local):
    results = []
    with model.inference_session(max_length=30) as session:
        model(TEXT[:, :4])
        thread = threading.Thread(target=lambda: results.append(model.generate(TEXT + 1, max_new_tokens=3)))
        thread.start()
        thread.join()
        assert session.length == 4
        assert torch.equal(model.generate(TEXT, max_new_tokens=3), local.generate(TEXT, max_new_tokens=3))
    assert torch.equal(results[0], local.generate(TEXT + 1, max_new_tokens=3))
    assert len(swarm.chains) == 2


def test_a_session_follows_the_task_that_opened_it_into_another_thread(model):
    async def work(tokens):
        with model.inference_session(max_length=20) as session:
            await asyncio.to_thread(model, TEXT[:, :tokens])
            await asyncio.sleep(0)
            return session.length

    async def both():
        return await asyncio.gather(work(4), work(7))

    assert asyncio.run(both()) == [4, 7]


def test_a_second_thread_in_one_session_is_refused_while_a_step_is_under_way(model, swarm, local, monkeypatch):
    is_under_way, may_go_on = threading.Event(), threading.Event()
    run, outputs = swarm.run, []

    def slow(chain, steps):
        is_under_way.set()
        assert may_go_on.wait(10)
        return run(chain, steps)

    monkeypatch.setattr(swarm, "run", slow)
    with model.inference_session(max_length=20) as session:
        thread = threading.Thread(target=lambda: outputs.append(model(TEXT, past_key_values=session.cache).logits))
        thread.start()
        assert is_under_way.wait(10)
        with pytest.raises(UserError, match="Another thread"):
            session.cache.step(torch.zeros(1, 1, 32), ())
        may_go_on.set()
        thread.join()
    torch.testing.assert_close(outputs[0], local(TEXT).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_drafts", [1, 5, 30])
def test_drafts_never_run_past_the_room_that_generate_reserves(model, local, num_drafts):
    text = TEXT.repeat(1, 2)
    options = {"max_new_tokens": 3, "prompt_lookup_num_tokens": num_drafts}
    assert torch.equal(model.generate(text, **options), local.generate(text, max_new_tokens=3))
    local.generation_config.num_assistant_tokens = num_drafts
    assert torch.equal(
        model.generate(text, max_new_tokens=3, assistant_model=local), local.generate(text, max_new_tokens=3)
    )


def test_the_authors_own_generation_settings_are_used(tmp_path):
    whole = build("llama", FAMILIES["llama"])
    whole.generation_config = GenerationConfig(
        max_new_tokens=7, repetition_penalty=1.9, eos_token_id=[5, 6], pad_token_id=0, bos_token_id=1
    )
    whole.save_pretrained(tmp_path)
    model, _ = connect(Checkpoint.open(str(tmp_path)))
    assert model.generation_config.eos_token_id == [5, 6]
    generated = model.generate(TEXT)
    assert torch.equal(generated, AutoModelForCausalLM.from_pretrained(tmp_path).generate(TEXT))
    assert not torch.equal(generated, model.generate(TEXT, repetition_penalty=1.0))


def test_the_authors_choice_of_a_local_cache_is_not_taken_for_the_callers(tmp_path, model, local):
    GenerationConfig(cache_implementation="static", bos_token_id=1, pad_token_id=0).save_pretrained(tmp_path)
    use_generation_config(model, tmp_path)
    assert torch.equal(model.generate(TEXT, max_new_tokens=3), local.generate(TEXT, max_new_tokens=3))
    with pytest.raises(UserError, match="cache_implementation"):
        model.generate(TEXT, max_new_tokens=3, cache_implementation="static")


def test_damaged_generation_settings_are_named(tmp_path, model):
    (tmp_path / "generation_config.json").write_text("{", "utf-8")
    with pytest.raises(DamagedCheckpoint, match=r"generation_config\.json"):
        use_generation_config(model, tmp_path)


def test_a_model_without_generation_settings_keeps_those_of_its_config(tmp_path, model):
    before = json.loads(model.generation_config.to_json_string())
    use_generation_config(model, tmp_path)
    assert json.loads(model.generation_config.to_json_string()) == before


def test_the_entry_point_is_a_function_and_not_an_object():
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoDistributedModelForCausalLM()
