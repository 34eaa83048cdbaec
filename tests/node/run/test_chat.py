"""A conversation keeps its text, cuts it into tokens once, and goes on when its session cannot."""

import io
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from node.errors import StageLost
from node.model.checkpoint import Checkpoint
from node.run import chat
from node.run.events import Reporter


class Model:
    """Answers every prompt with the same token, or loses its session when told to."""

    def __init__(self, token):
        self.config = SimpleNamespace(max_position_embeddings=64)
        self.token, self.losses = token, 0
        self.prompts = []

    def generate(self, input_ids, attention_mask, max_new_tokens, streamer):
        assert attention_mask.shape == input_ids.shape
        if self.losses:
            self.losses -= 1
            raise StageLost("The stage is gone.")
        self.prompts.append(input_ids)
        answer = torch.full((1, max_new_tokens), self.token)
        streamer.put(input_ids)
        for column in answer.unbind(1):
            streamer.put(column)
        streamer.end()
        return torch.cat([input_ids, answer], dim=1)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(Checkpoint.open("embedded").tokenizer_dir)


def make(tokenizer, monkeypatch, lines=(), limit=64):
    waiting = iter(lines)
    monkeypatch.setattr(chat, "_read_line", lambda reporter: next(waiting, None))
    options = SimpleNamespace(max_new_tokens=3, do_sample=None, temperature=None, top_p=None, seed=None)
    reporter = Reporter(events_json=False, out=io.StringIO(), err=io.StringIO())
    model = Model(tokenizer.convert_tokens_to_ids("a"))
    return chat._Chat(model, tokenizer, options, reporter, limit), model


def session():
    crops = []
    return SimpleNamespace(crop=crops.append, crops=crops)


def test_a_template_that_writes_the_begin_token_gets_no_second_one(tokenizer, monkeypatch):
    talk, _ = make(tokenizer, monkeypatch)
    monkeypatch.setattr(tokenizer, "chat_template", "{{ bos_token }}{{ messages[0]['content'] }}")
    ids = talk._inputs_with("hello")["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert talk._inputs_with("hello")["input_ids"][0].tolist() == ids


def test_a_second_line_continues_where_the_session_stands(tokenizer, monkeypatch):
    talk, model = make(tokenizer, monkeypatch, [" more"])
    held = session()
    assert talk.talk(held, "hello") is None
    first, second = model.prompts
    assert held.crops[0] == 0
    assert held.crops[1] >= first.shape[1]
    assert tokenizer.decode(second[0], skip_special_tokens=True) == "helloaaa more"


def test_a_conversation_that_outgrows_its_session_starts_anew_with_the_line(tokenizer, monkeypatch):
    talk, model = make(tokenizer, monkeypatch, [" more"], limit=8)
    assert talk.talk(session(), "hello") == " more"
    assert talk.talk(session(), " more") is None
    assert tokenizer.decode(model.prompts[-1][0], skip_special_tokens=True) == " more"


def test_a_session_lost_between_two_lines_is_opened_anew_and_one_lost_at_once_is_an_error(tokenizer, monkeypatch):
    talk, model = make(tokenizer, monkeypatch, [" more"])

    def lose(answer=model.generate, **inputs):
        model.losses = 1 if len(model.prompts) == 1 else 0
        return answer(**inputs)

    model.generate = lose
    assert talk.talk(session(), "hello") == " more"
    with pytest.raises(StageLost):
        talk.talk(session(), " more")


def test_positions_stay_valid_up_to_the_first_token_that_differs():
    seen, wanted = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 9, 4, 5]])
    assert chat._common_prefix(seen, wanted) == 2
    assert chat._common_prefix(seen, torch.tensor([[1, 2, 3, 4]])) == 3
    assert chat._common_prefix(seen, torch.tensor([[1]])) == 0
