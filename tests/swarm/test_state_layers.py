"""Through servers whose layers keep a state, clients at once get transformers' own tokens; drafts are refused."""

import threading

import pytest
import torch

from node import AutoDistributedModelForCausalLM
from node.errors import NodeError
from tests.families import STATEFUL, VOCABULARY
from tests.processes import servers
from tests.swarm.models import save

SPANS = ((0, 1), (1, 4))
NUM_CLIENTS = 3


@pytest.fixture(scope="module")
def model(join, tmp_path_factory):
    """Return transformers' model and the client's; the first span has no layer that counts positions."""
    directory = tmp_path_factory.mktemp("model") / "state"
    local = save(directory, "lfm2", STATEFUL["lfm2"])
    with (
        servers(directory, join, SPANS, tmp_path_factory.mktemp("servers"), "--num-threads", "1"),
        AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join) as remote,
    ):
        yield local, remote


def text_of(seed, tokens=70):
    return torch.randint(3, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(seed))


def test_clients_at_once_get_the_tokens_that_each_gets_alone(model):
    local, remote = model
    texts = [text_of(seed) for seed in range(NUM_CLIENTS)]
    options = {"max_new_tokens": 8, "do_sample": False}
    outputs = {}

    def generate(number):
        outputs[number] = remote.generate(texts[number], attention_mask=torch.ones_like(texts[number]), **options)

    clients = [threading.Thread(target=generate, args=(number,)) for number in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for number, text in enumerate(texts):
        expected = local.generate(text, attention_mask=torch.ones_like(text), **options)
        assert torch.equal(outputs[number], expected)


def test_beams_and_a_session_that_goes_on_give_transformers_tokens(model):
    local, remote = model
    text = text_of(7, tokens=12)
    options = {"attention_mask": torch.ones_like(text), "max_new_tokens": 6, "num_beams": 3}
    assert torch.equal(remote.generate(text, **options), local.generate(text, **options))
    with remote.inference_session(max_length=64):
        first = remote.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=4)
        longer = torch.cat([first, text_of(8, tokens=5)], dim=1)
        options = {"attention_mask": torch.ones_like(longer), "max_new_tokens": 4}
        assert torch.equal(remote.generate(longer, **options), local.generate(longer, **options))


def test_drafts_end_with_a_sentence_instead_of_wrong_tokens(model):
    _, remote = model
    text = text_of(9, tokens=12)
    with pytest.raises(NodeError, match="keep a state"):
        remote.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=20, prompt_lookup_num_tokens=3)
