"""Weights of a span in 8 or 4 bits, through transformers' integration of torchao.

transformers' loader quantises the linear layers of a block while it loads them (``node.model.span`` asks it to). Here
stands which layers a scheme takes, what a block then weighs, and whether this machine can run it:

    scheme   a weight of shape [out, in]             computes in        runs on
    int8     int8, one scale per output              any float dtype    cpu, cuda
    int4     4 bits, scale and zero per 64 inputs    bfloat16           cpu

Activations are not quantised, and norms, biases and fused experts stay in the dtype of the span. Which layers are taken
depends on the whole model, never on the span, so that two servers of one block hold the same weights. Knows no family
by name. Called from threads that plan and load.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, TorchAoConfig
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import is_torchao_available

from node.errors import QuantizerMissing, UnsupportedFamily, UserError
from node.model.trunk import find_trunk

_INSTALL = 'pip install "efedllm[quantized]"'
_INT4_GROUP = 64
"""Inputs that share a scale and a zero; torch's kernel knows 32, 64, 128 and 256."""
_INT4_OUTPUTS = 16
"""torch's kernel for CPUs packs this many outputs together."""


@dataclass(frozen=True)
class Scheme:
    """A way to hold the weights of linear layers in fewer bits."""

    name: str
    """What ``--quantize`` and the announcement call it."""
    dtype: torch.dtype | None
    """The only dtype that its kernel is fast in; None: any."""
    devices: tuple[str, ...]
    """Kinds of device that it runs on."""

    def takes(self, weight: torch.Tensor) -> bool:
        """Say whether a weight of this shape (``[out, in]``) can be held so."""
        outputs, inputs = weight.shape
        return self.name != "int4" or (inputs % _INT4_GROUP == 0 and outputs % _INT4_OUTPUTS == 0)

    def weight_bytes(self, weight: torch.Tensor, dtype: torch.dtype) -> int:
        """Return the bytes of a weight (``[out, in]``) that it takes, in a span that computes in ``dtype``."""
        outputs, inputs = (int(size) for size in weight.shape)
        if self.name == "int4":
            return outputs * inputs // 2 + 2 * outputs * (inputs // _INT4_GROUP) * int(dtype.itemsize)
        return outputs * inputs + outputs * (int(dtype.itemsize) + 1)  # a zero of one byte stands beside each scale

    def compute_dtype(self, asked: str, picked: torch.dtype) -> torch.dtype:
        """Return the dtype to compute in.

        Args:
            asked: the name that the user gave, or ``auto``.
            picked: what that means without quantisation.

        Raises:
            UserError: the user asked for one that the scheme does not compute in.
        """
        if self.dtype is None or self.dtype == picked:
            return picked
        if asked != "auto":
            only = str(self.dtype).removeprefix("torch.")
            raise UserError(f"--quantize {self.name} computes in {only} only; leave out --dtype {asked}.")
        return self.dtype

    def check_machine(self, device: torch.device) -> None:
        """Pass if spans can be quantised here.

        Raises:
            UserError: the scheme does not run on such a device.
            QuantizerMissing: the library is not installed.
        """
        if device.type not in self.devices:
            others = [scheme.name for scheme in SCHEMES.values() if device.type in scheme.devices]
            instead = f"choose --quantize {others[0]} or " if others else ""
            raise UserError(
                f"--quantize {self.name} does not run on {device.type}, only on {' and '.join(self.devices)}; "
                f"{instead}leave it out."
            )
        if not is_torchao_available():
            raise QuantizerMissing(f"--quantize {self.name} needs the library torchao, which is not here: {_INSTALL}")

    def block_bytes(self, config: Any, dtype: torch.dtype) -> list[int]:
        """Return the bytes that the weights of each block of the whole model take; reads no weight.

        Args:
            config: transformers' config of the whole model.
            dtype: dtype of what is not quantised.

        Raises:
            UnsupportedFamily: the blocks have no linear layer that the scheme takes.
        """
        layers = _layers_of(config)
        taken, _ = self._sort_linears(layers)
        if not taken:
            raise UnsupportedFamily(
                f"--quantize {self.name} finds no linear layer that it can take in the blocks of the family "
                f"{config.model_type}; leave it out."
            )
        return [
            sum(
                self.weight_bytes(parameter, dtype) if name in taken else parameter.numel() * dtype.itemsize
                for name, parameter in layer.named_parameters()
            )
            for layer in layers
        ]

    def loader_config(self, config: Any) -> TorchAoConfig:
        """Return what transformers' ``from_pretrained`` takes as ``quantization_config`` for blocks of this model.

        Its ``modules_to_not_convert`` is never None: transformers would then leave out the last layer that it sees,
        which is the head of a whole model, but a layer like any other of a span.
        """
        # Heavy, and in an optional extra.
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int8WeightOnlyConfig

        if self.name == "int4":
            how = PrototypeInt4WeightOnlyConfig(group_size=_INT4_GROUP, set_inductor_config=False)
        else:
            how = Int8WeightOnlyConfig()
        _, left_out = self._sort_linears(_layers_of(config))
        return TorchAoConfig(how, modules_to_not_convert=[f".{name}" for name in sorted(left_out)])

    def _sort_linears(self, layers: Sequence[nn.Module]) -> tuple[set[str], set[str]]:
        """Return the names, within a block, of the weights that are taken in all blocks, and of those that are not."""
        taken: set[str] = set()
        left_out: set[str] = set()
        for layer in layers:
            for path, module in layer.named_modules():
                if isinstance(module, nn.Linear):
                    (taken if self.takes(module.weight) else left_out).add(f"{path}.weight")
        return taken - left_out, left_out


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "int8": Scheme("int8", None, ("cpu", "cuda")),
        "int4": Scheme("int4", torch.bfloat16, ("cpu",)),
    }
)


def find_scheme(name: str, config: Any) -> Scheme:
    """Return the scheme called ``name`` for a model with ``config``.

    Raises:
        UserError: there is none of that name, or the checkpoint is quantised already.
    """
    if name not in SCHEMES:
        raise UserError(f"There is no quantisation {name!r}; choose one of: {', '.join(SCHEMES)}.")
    method = stored_method(config)
    if method is not None:
        raise UserError(f"The weights of this model are quantised already ({method}); leave out --quantize {name}.")
    return SCHEMES[name]


def stored_method(config: Any) -> str | None:
    """Return how the weights of a checkpoint are quantised, in transformers' words, or None if they are not."""
    stored = _stored(config)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, Mapping) else getattr(stored, "quant_method", None)
    return str(getattr(method, "value", method) or "by an unnamed method")


def check_stored(config: Any, device: torch.device) -> None:
    """Pass if a checkpoint is not quantised, or if transformers can compute with its weights on ``device``.

    Raises:
        QuantizerMissing: it cannot; the message ends with its own reason.
    """
    method = stored_method(config)
    if method is None:
        return
    mend = "serve the model's unquantised checkpoint, with --quantize if memory is short"
    if method == "torchao":
        # Its integration reads how tensors were packed from the files themselves, which the loader of a span lacks.
        raise QuantizerMissing(f"Weights that torchao has quantised cannot be served in spans: {mend}.")
    try:
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(_stored(config)), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device})
    except (ImportError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise QuantizerMissing(
            f"The weights of this model are quantised ({method}), which does not run here: {mend}. "
            f"transformers says: {reason}"
        ) from error


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes that the parameters of ``model`` take in memory, quantised ones as they are held."""
    return sum(_held_bytes(parameter) for parameter in model.parameters())


def _held_bytes(tensor: torch.Tensor) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.numel()) * int(tensor.element_size())
    names, _ = tensor.__tensor_flatten__()
    return sum(_held_bytes(getattr(tensor, name)) for name in names)


def _stored(config: Any) -> Any:
    text_config = config.get_text_config()
    return getattr(config, "quantization_config", None) or getattr(text_config, "quantization_config", None)


def _layers_of(config: Any) -> nn.ModuleList:
    with torch.device("meta"):
        model = AutoModel.from_config(copy.deepcopy(config))
    return find_trunk(model, config.num_hidden_layers).layers
