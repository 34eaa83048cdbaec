"""Through three server processes, a few families give what transformers gives, in every way of generating.

The other families, and more of their shapes, are compared in ``tests/node/model/test_families.py``, without sockets.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from node import AutoDistributedModelForCausalLM
from node.client.remote_session import _MAX_STEP_BYTES
from tests.families import FAMILIES, VOCABULARY, WINDOW
from tests.processes import servers
from tests.swarm.conftest import ServedModel
from tests.swarm.models import LLAMA, SPANS, noisy_copy, save

TOLERANCE = 1e-4
"""Of the largest logit."""
NEW_TOKENS = 8
TEXT_LENGTH = 18
PADDING = (5, 0)
FAMILIES_HERE = ("llama", "gpt2", "bloom", "mixtral", "gemma2")
"""Grouped attention and tied embeddings; learned positions; alibi; experts; a sliding window with soft caps."""


@pytest.fixture(scope="module", params=FAMILIES_HERE)
def served(request, join, tmp_path_factory):
    if request.param == "llama":
        yield request.getfixturevalue("llama")
        return
    directory = tmp_path_factory.mktemp("model") / request.param
    local = save(directory, request.param, FAMILIES[request.param])
    with (
        servers(directory, join, SPANS, tmp_path_factory.mktemp("servers"), "--num-threads", "1") as processes,
        AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join) as remote,
    ):
        yield ServedModel(directory, join, local, remote, processes)


@pytest.fixture(scope="module")
def text():
    """Ids of one text, ``[1, TEXT_LENGTH]``, longer than any sliding window, with a passage that repeats."""
    ids = torch.randint(3, VOCABULARY, (1, TEXT_LENGTH), generator=torch.Generator().manual_seed(1))
    ids[0, -5:] = ids[0, 2:7]
    assert WINDOW + max(PADDING) < TEXT_LENGTH
    return ids


@pytest.fixture(scope="module")
def batch(text):
    """Two texts, the first padded on the left, and their mask."""
    ids = torch.randint(3, VOCABULARY, (2, TEXT_LENGTH), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    for row, padding in enumerate(PADDING):
        ids[row, :padding] = mask[row, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_close(remote, local):
    assert remote.shape == local.shape
    scale = local.abs().max()
    assert scale > 0.01, "logits this small would hide any difference"
    assert ((remote - local).abs().max() / scale).item() < TOLERANCE


def generate_both(served, *, seed=0, **options):
    outputs = []
    for model in (served.local, served.remote):
        torch.manual_seed(seed)
        outputs.append(model.generate(max_new_tokens=NEW_TOKENS, **options))
    return outputs


def greedy(model, ids, **options):
    """Generate greedily; with a mask, because transformers takes every id of the padding token for padding."""
    return model.generate(ids, attention_mask=torch.ones_like(ids), **{"max_new_tokens": NEW_TOKENS, **options})


def test_the_client_holds_no_block_and_the_route_has_three_stages(served, text):
    assert served.remote.get_decoder().__class__.__name__ == served.local.get_decoder().__class__.__name__
    blocks = [name for name, _ in served.remote.named_parameters() if ".0." in name or ".1." in name]
    assert blocks == []
    with served.remote.inference_session(max_length=TEXT_LENGTH) as session:
        served.remote(text)
        stages = session.cache.route.stages
    assert [(stage.start, stage.end) for stage in stages] == list(SPANS)
    assert len({stage.peer_id for stage in stages}) == 3


@torch.no_grad()
def test_logits_are_those_of_the_whole_model(served, text):
    whole = served.local(text, use_cache=False).logits
    assert_close(served.remote(text, use_cache=False).logits, whole)
    first = served.remote(text[:, :9], use_cache=True)
    second = served.remote(text[:, 9:10], past_key_values=first.past_key_values)
    third = served.remote(text[:, 10:], past_key_values=second.past_key_values)
    assert_close(torch.cat([first.logits, second.logits, third.logits], dim=1), whole)


def test_greedy_tokens_are_the_same_and_stream_one_by_one(served, text):
    class Collector(BaseStreamer):
        def __init__(self):
            self.pieces, self.has_ended = [], False

        def put(self, value):
            self.pieces.append(value.flatten().tolist())

        def end(self):
            self.has_ended = True

    streamer = Collector()
    tokens = greedy(served.remote, text, streamer=streamer)
    assert torch.equal(tokens, greedy(served.local, text))
    assert streamer.has_ended
    assert streamer.pieces == [text[0].tolist(), *([token] for token in tokens[0, TEXT_LENGTH:].tolist())]


def test_seeded_samples_are_the_same_and_seeds_matter(served, text):
    sampling = {"input_ids": text, "do_sample": True, "top_k": 40, "temperature": 1.3}
    local, remote = generate_both(served, seed=3, num_return_sequences=3, **sampling)
    assert torch.equal(remote, local)
    assert remote.shape == (3, TEXT_LENGTH + NEW_TOKENS)
    torch.manual_seed(4)
    other = served.remote.generate(max_new_tokens=NEW_TOKENS, num_return_sequences=3, **sampling)
    assert not torch.equal(other, local)


def test_beams_are_the_same_also_when_they_end_at_different_lengths(served, batch):
    options = {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": list(range(2, VOCABULARY, 5))}
    local, remote = generate_both(served, **batch, **options)
    assert torch.equal(remote, local)


def test_a_batch_padded_on_the_left_gives_the_same_tokens(served, batch):
    local, remote = generate_both(served, **batch)
    assert torch.equal(remote, local)


def test_prompt_lookup_and_an_assistant_give_the_greedy_tokens(served, text):
    expected = greedy(served.local, text)
    assert torch.equal(greedy(served.remote, text, prompt_lookup_num_tokens=3), expected)
    assert torch.equal(greedy(served.remote, text, assistant_model=noisy_copy(served.local)), expected)


def test_a_session_goes_on_where_it_stopped(served, text):
    with served.remote.inference_session(max_length=60) as session:
        first = greedy(served.remote, text)
        assert torch.equal(first, greedy(served.local, text))
        assert session.length == first.shape[1] - 1
        longer = torch.cat([first, text[:, :4]], dim=1)
        assert torch.equal(greedy(served.remote, longer), greedy(served.local, longer))
        assert session.length == longer.shape[1] + NEW_TOKENS - 1


def test_a_session_is_cropped_then_searched_with_beams_then_cropped_again(served, text):
    with served.remote.inference_session(max_length=60) as session:
        greedy(served.remote, text)
        session.crop(10)
        session.cache.batch_repeat_interleave(3)
        other = torch.cat([text[:, :10], text[:, 2:6]], dim=1)
        beams = {"num_beams": 3, "num_return_sequences": 3}
        assert torch.equal(greedy(served.remote, other, **beams), greedy(served.local, other, **beams))
        session.crop(12)
        session.cache.batch_select_indices(torch.tensor([1]))
        assert torch.equal(greedy(served.remote, other), greedy(served.local, other))


def test_two_threads_generate_with_one_model_at_once(served, text):
    texts = [text, text.flip(1), text[:, 4:], text.flip(1)[:, 3:]]
    together = threading.Barrier(2)

    def run(ids):
        together.wait(30)
        return greedy(served.remote, ids), greedy(served.remote, ids, num_beams=2)

    with ThreadPoolExecutor(2) as threads:
        outputs = list(threads.map(run, texts))
    for ids, (tokens, beams) in zip(texts, outputs, strict=True):
        assert torch.equal(tokens, greedy(served.local, ids))
        assert torch.equal(beams, greedy(served.local, ids, num_beams=2))


def test_one_thread_generates_in_a_session_while_another_generates_without_one(llama, text):
    others, together = [text.flip(1), text[:, 4:]], threading.Barrier(2)

    def inside():
        with llama.remote.inference_session(max_length=60):
            together.wait(30)
            return greedy(llama.remote, text, max_new_tokens=30)

    def outside():
        together.wait(30)
        return [greedy(llama.remote, ids) for ids in others]

    with ThreadPoolExecutor(2) as threads:
        futures = threads.submit(inside), threads.submit(outside)
        mine, theirs = (future.result(timeout=60) for future in futures)
    assert torch.equal(mine, greedy(llama.local, text, max_new_tokens=30))
    assert all(torch.equal(*pair) for pair in zip(theirs, [greedy(llama.local, ids) for ids in others], strict=True))


async def test_generate_works_inside_a_running_event_loop(served, text):
    ticking = asyncio.create_task(asyncio.sleep(0))
    tokens = greedy(served.remote, text)  # As in a notebook's cell: nobody awaits, the loop waits.
    await ticking
    assert torch.equal(tokens, greedy(served.local, text))
    tokens = await asyncio.to_thread(greedy, served.remote, text)
    assert torch.equal(tokens, greedy(served.local, text))


@torch.no_grad()
def test_a_prompt_longer_than_a_step_travels_in_pieces(llama):
    shape = (2, 1500)
    assert shape[0] * shape[1] * LLAMA["hidden_size"] * 4 > 1.4 * _MAX_STEP_BYTES
    ids = torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[0, :700] = mask[0, :700] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    inputs = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    remote, local = llama.remote(ids, **inputs).logits, llama.local(ids, **inputs).logits
    assert_close(remote[mask.bool()], local[mask.bool()])
    options = {"attention_mask": mask, "max_new_tokens": 4}
    assert torch.equal(llama.remote.generate(ids, **options), llama.local.generate(ids, **options))
