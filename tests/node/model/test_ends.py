"""On every family: both ends around the whole model's blocks give what the whole model gives."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from node.errors import SessionError, UnsupportedFamily
from node.model.checkpoint import Checkpoint
from node.model.end_parameters import EndParameters, find_end_parameters
from node.model.ends import Ends, build_ends
from node.model.families import CHECKED_FAMILIES
from node.model.tap import Tap
from node.model.trunk import Layers, find_trunk
from tests.families import FAMILIES, NUM_BLOCKS, STATEFUL, VARIANTS, VOCABULARY, build

CPU = torch.device("cpu")
SERVED = {family: (family, values) for family, values in {**FAMILIES, **STATEFUL}.items() if family in CHECKED_FAMILIES}
CASES = {**SERVED, **VARIANTS}
TEXT_LENGTH = 9
PADDING = (3, 0)
RENAMED = {"bailing_hybrid", "gpt_neox", "nemotron_h"}
"""Families whose checkpoints name an end otherwise than the model, so that it is read to know what it is."""
LOOKS_INTO_ITS_MASKS = {"biogpt"}
"""Families that cannot be run without values, so that which end uses what is not known."""


@dataclass
class Case:
    """One family's model, whole and as ends of its own."""

    whole: Any
    checkpoint: Checkpoint
    parameters: EndParameters
    ids: torch.Tensor
    """``[2, TEXT_LENGTH]``, the first row padded on the left."""
    mask: torch.Tensor

    def ends(self, *, embeds: bool, heads: bool, dtype: torch.dtype = torch.float32) -> Ends:
        wanted = self.parameters.of(embeds=embeds, heads=heads)
        tensors = self.checkpoint.load_client(dtype=dtype, parameters=wanted)
        return build_ends(
            self.checkpoint.config, tensors, self.parameters, embeds=embeds, heads=heads, dtype=dtype, device=CPU
        )

    @torch.no_grad()
    def around_blocks(self):
        """Return what enters the first block, what leaves the last one, and the logits, in the whole model."""
        seen = {}
        layers = find_trunk(self.whole, NUM_BLOCKS).layers

        def before(_, args, kwargs):
            seen["in"] = (args[0] if args else kwargs["hidden_states"]).clone()

        def after(_, args, output):
            seen["out"] = (output[0] if isinstance(output, tuple) else output).clone()

        hooks = [
            layers[0].register_forward_pre_hook(before, with_kwargs=True),
            layers[-1].register_forward_hook(after),
        ]
        positions = (self.mask.cumsum(dim=1) - 1).clamp_min(0)
        logits = self.whole(self.ids, attention_mask=self.mask, position_ids=positions, use_cache=False).logits
        for hook in hooks:
            hook.remove()
        return seen["in"], seen["out"], logits


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    return case_of(*CASES[request.param], tmp_path_factory.mktemp("model"))


def case_of(family, values, directory):
    build(family, values).save_pretrained(directory)
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    checkpoint = Checkpoint.open(str(directory))
    ids = torch.randint(3, VOCABULARY, (2, TEXT_LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate(PADDING):
        mask[row, :padding] = 0
        ids[row, :padding] = 0
    return Case(whole, checkpoint, find_end_parameters(checkpoint.config), ids, mask)


@pytest.mark.parametrize(("embeds", "heads"), [(True, True), (True, False), (False, True)])
def test_the_ends_around_the_whole_models_blocks_give_what_the_whole_model_gives(case, embeds, heads):
    entering, leaving, logits = case.around_blocks()
    ends = case.ends(embeds=embeds, heads=heads)
    kept = case.mask.bool()
    if embeds:
        embedded = [
            ends.embed(case.ids[:, :5], 0, PADDING),
            ends.embed(case.ids[:, 5:6], 5, PADDING),
            ends.embed(case.ids[:, 6:], 6, PADDING),
        ]
        torch.testing.assert_close(torch.cat(embedded, dim=1)[kept], entering[kept], atol=0, rtol=0)
        without_padding = ends.embed(case.ids[1:], 0)
        torch.testing.assert_close(without_padding, entering[1:], atol=0, rtol=0)
    if heads:
        scale = logits.abs().max()
        assert scale > 0.01, "logits this small would hide any difference"
        assert ends.logits(leaving).dtype == torch.float32
        assert (ends.logits(leaving) - logits).abs().max() / scale < 1e-5
        last = ends.logits(leaving[:, -1:])
        assert (last[:, 0] - logits[:, -1]).abs().max() / scale < 1e-5


def test_one_end_holds_the_weights_that_it_uses_and_no_others(case):
    config, parameters = case.checkpoint.config, case.parameters
    sizes = {name: parameter.nbytes for name, parameter in case.whole.named_parameters()}
    layers = find_trunk(case.whole, NUM_BLOCKS).path
    around = {name: size for name, size in sizes.items() if not name.startswith(f"{layers}.")}
    tokens = case.whole.get_input_embeddings().weight.nbytes
    entry, exit_ = case.ends(embeds=True, heads=False), case.ends(embeds=False, heads=True)
    assert case.ends(embeds=True, heads=True).weight_bytes == sum(around.values())
    for ends, wanted in ((entry, parameters.entry), (exit_, parameters.exit)):
        assert ends.weight_bytes == sum(size for name, size in around.items() if name in wanted)
        read = case.checkpoint.client_bytes(torch.float32, parameters=wanted)
        most = sum(around.values()) if config.model_type in RENAMED else ends.weight_bytes
        assert ends.weight_bytes <= read <= most
    if config.model_type in LOOKS_INTO_ITS_MASKS:
        assert entry.weight_bytes == exit_.weight_bytes == sum(around.values())
    else:
        shared = tokens if config.tie_word_embeddings else 0
        assert entry.weight_bytes + exit_.weight_bytes == sum(around.values()) + shared
        assert max(entry.weight_bytes, exit_.weight_bytes) < sum(around.values()) or shared


def test_an_id_beyond_the_vocabulary_is_refused_before_it_reaches_the_embedding(case):
    ends = case.ends(embeds=True, heads=False)
    assert ends.vocab_size == VOCABULARY
    ends.embed(torch.tensor([[0, VOCABULARY - 1]]), 0)
    for id_ in (VOCABULARY, 2**32 - 1, -1):
        with pytest.raises(SessionError, match=f"ids 0 to {VOCABULARY - 1}"):
            ends.embed(torch.tensor([[1, id_]]), 0)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neo", "gpt_bigcode", "biogpt"])
def test_a_position_without_an_embedding_is_refused_before_it_reaches_the_table(family, tmp_path):
    case = case_of(family, FAMILIES[family], tmp_path)
    ends = case.ends(embeds=True, heads=True)
    limit = case.checkpoint.config.max_position_embeddings
    assert ends.max_positions == limit == 128
    ends.embed(torch.ones((2, 4), dtype=torch.long), limit - 4)
    # A row's padding takes no position of the table, so a padded row may reach further.
    ends.embed(torch.ones((2, 4), dtype=torch.long), limit - 2, (2, 3))
    for position, padding in ((limit - 3, ()), (limit - 1, (2, 3)), (2**24, ())):
        with pytest.raises(SessionError, match=f"embeddings for {limit}"):
            ends.embed(torch.ones((2, 4), dtype=torch.long), position, padding)


def test_a_family_without_position_embeddings_reaches_any_position(tmp_path):
    ends = case_of("llama", FAMILIES["llama"], tmp_path).ends(embeds=True, heads=False)
    assert ends.max_positions is None
    torch.testing.assert_close(ends.embed(torch.tensor([[5]]), 2**23), ends.embed(torch.tensor([[5]]), 0))


def test_hidden_states_that_are_no_numbers_give_logits_of_their_own_row_only(tmp_path):
    ends = case_of("gemma2", FAMILIES["gemma2"], tmp_path).ends(embeds=False, heads=True)
    hidden = torch.linspace(-1, 1, 64).reshape(2, 1, 32)
    poisoned = hidden.clone()
    poisoned[0] = torch.nan
    torch.testing.assert_close(ends.logits(poisoned)[1], ends.logits(hidden)[1], atol=0, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_a_smaller_dtype_the_ends_give_what_the_whole_model_gives_in_it(family, tmp_path):
    case = case_of(family, FAMILIES[family], tmp_path)
    case.whole = case.whole.to(torch.bfloat16)
    entering, leaving, logits = case.around_blocks()
    ends = case.ends(embeds=True, heads=True, dtype=torch.bfloat16)
    kept = case.mask.bool()
    torch.testing.assert_close(ends.embed(case.ids, 0, PADDING)[kept], entering[kept], atol=0, rtol=0)
    torch.testing.assert_close(ends.logits(leaving), logits.float(), atol=0.02 * logits.abs().max().item(), rtol=0)


class Mixing(torch.nn.Module):
    """An embedding in which every token hears of the one before it."""

    def __init__(self, embedding):
        super().__init__()
        self.weight = embedding.weight
        self._embedding = [embedding]

    def forward(self, ids):
        hidden = self._embedding[0](ids)
        return hidden + hidden.roll(1, dims=1) * (hidden.shape[1] > 1)


def test_a_model_that_mixes_tokens_outside_its_blocks_is_refused_by_name(tmp_path):
    case = case_of("llama", FAMILIES["llama"], tmp_path)
    model, tap = case.whole, Tap()
    trunk = find_trunk(model, NUM_BLOCKS)
    setattr(trunk.holder, trunk.name, Layers([tap]))
    Ends(model, tap, embeds=True, heads=True).probe()
    model.model.embed_tokens = Mixing(model.model.embed_tokens)
    with pytest.raises(UnsupportedFamily, match="llama treats a token by its neighbours"):
        Ends(model, tap, embeds=True, heads=True).probe()
