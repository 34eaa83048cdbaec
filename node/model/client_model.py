"""Build a client's model: transformers' own ``*ForCausalLM`` with one stand-in layer where its blocks were.

Embeddings, norm, head, scalings and soft caps come with the class; only their tensors are read. Knows nothing of
sessions or peers: what the stand-in layer does is the caller's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from node.errors import UnsupportedFamily
from node.model.packed import transpose_linears
from node.model.span import check_loaded, on_meta
from node.model.trunk import Layers, find_trunk


def build_client_model(
    config: Any,
    tensors: dict[str, torch.Tensor],
    stand_in: nn.Module,
    *,
    mixin: type,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Build the model of ``config`` with ``stand_in`` as its only layer.

    Args:
        config: transformers' config of the whole model.
        tensors: everything of the checkpoint outside its blocks, in its own naming.
        stand_in: takes ``hidden_states`` and returns them, ``[batch, seq, hidden]`` both.
        mixin: class put before the family's own, to extend ``generate`` and ``forward``.
        dtype: dtype of weights and activations.
        device: where embeddings and head compute.

    Raises:
        ConfigMismatch: tensors are missing, unexpected, or of another shape than the config asks for.
    """
    config = copy.deepcopy(config)
    whole = on_meta(AutoModelForCausalLM, config)
    causal_class, path = type(whole), find_trunk(whole, config.num_hidden_layers).path

    class ClientModel(mixin, causal_class):  # type: ignore[misc, valid-type]
        """A causal language model without its blocks."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.set_submodule(path, Layers())

    # transformers finds its checkpoint conversions by class name, for classes of its own modules only.
    ClientModel.__name__, ClientModel.__module__ = causal_class.__name__, causal_class.__module__
    model, info = ClientModel.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )
    check_loaded(info, "the client's part")
    model.set_submodule(path, Layers([stand_in]))  # Not before: some families initialise their layers by name.
    model.eval().requires_grad_(False).to(device)
    transpose_linears(model)
    return model


@torch.inference_mode()
def probe_returns_tuple(model: Any) -> bool:
    """Say whether the family's layers return a tuple, by running the model with a stand-in that echoes.

    The stand-in must echo a bare tensor when this is called. A family that expects a tuple takes the first row
    instead, which shows in the shape, or fails to unpack it.

    Raises:
        UnsupportedFamily: neither explains what the model makes of it.
    """
    base = model.base_model
    rows, tokens = 3, 2
    ids = torch.zeros((rows, tokens), dtype=torch.long, device=model.device)
    hidden_size = model.config.hidden_size
    try:
        shape = tuple(base(input_ids=ids, use_cache=False).last_hidden_state.shape)
    except ValueError:  # Three rows were unpacked as the two parts of a tuple.
        return True
    if shape == (rows, tokens, hidden_size):
        return False
    if rows not in shape:
        return True
    raise UnsupportedFamily(
        f"The family {model.config.model_type} hands hidden states between its layers in a way that cannot be split; "
        "choose a model of a family that `efedllm doctor` lists."
    )
