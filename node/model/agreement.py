"""Whether the weights of a checkpoint are those that its config asks for, told from names and shapes alone.

transformers' loader would fill a missing tensor with noise and go on, and would find a wrong shape only after
everything was read. The model is built on the meta device, without memory, and compared with the headers. Where a
family's names in the checkpoint are not those in the model (fused experts, renamed modules), its loader converts, and
only what maps one to one is compared. Compute thread, or ``asyncio.to_thread``: a large model takes half a second.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from node.errors import ConfigMismatch, UnsupportedFamily

_MEND = "fetch config.json and the weight files again, from the same model"


@dataclass(frozen=True)
class ExpectedTensors:
    """The tensors of the model that a config builds, by their names in the model."""

    shapes: Mapping[str, tuple[int, ...]]  # parameters and saved buffers
    parameters: frozenset[str]  # those of them that a checkpoint has to bring
    ties: Mapping[str, frozenset[str]]  # the other names of a parameter that has several (tied embeddings)
    base_prefix: str  # old checkpoints leave it out, and those of base models do

    def name_of(self, name: str) -> str | None:
        """Return the model's name for a tensor of the checkpoint, or None where none is equal."""
        candidates = (name, f"{self.base_prefix}.{name}", name.removeprefix(f"{self.base_prefix}."))
        return next((candidate for candidate in candidates if candidate in self.shapes), None)


def expect_tensors(config: Any) -> ExpectedTensors | None:
    """Build the config's model on the meta device and list its tensors.

    Returns:
        The tensors, or None where they cannot be told: quantised checkpoints pack theirs.

    Raises:
        UnsupportedFamily: transformers has no causal language model for this config.
    """
    if getattr(config, "quantization_config", None) is not None:
        return None
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    except NotImplementedError:
        return None  # the family computes while it is built, which the meta device cannot
    except ValueError as error:
        raise UnsupportedFamily(
            f"transformers has no causal language model of the family {config.model_type!r}: choose another model"
        ) from error
    names_of: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), set()).add(name)
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]  # noqa: SLF001
    return ExpectedTensors(
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        parameters=frozenset(
            name
            for names in names_of.values()
            for name in names
            if not any(pattern.search(name) for pattern in ignored)
        ),
        ties={name: frozenset(names) for names in names_of.values() if len(names) > 1 for name in names},
        base_prefix=model.base_model_prefix,
    )


def check_shapes(expected: ExpectedTensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors whose shape is not the one that the config builds.

    A shape with its dimensions in another order passes: some loaders transpose.

    Args:
        expected: The tensors of the config's model.
        shapes: Shapes in the checkpoint, by its own names.

    Raises:
        ConfigMismatch: A shape differs.
    """
    for name, shape in shapes.items():
        target = expected.name_of(name)
        if target is not None and sorted(shape) != sorted(expected.shapes[target]):
            raise ConfigMismatch(
                f"config.json and the weights disagree: {name} has the shape {list(shape)} where the config asks for "
                f"{list(expected.shapes[target])}: {_MEND}"
            )


def check_completeness(expected: ExpectedTensors, names: Iterable[str], wanted: Iterable[str]) -> None:
    """Refuse a part of a checkpoint in which tensors are missing.

    Args:
        expected: The tensors of the config's model.
        names: The checkpoint's names for the part.
        wanted: The model's names for the same part.

    Raises:
        ConfigMismatch: A parameter of the part is in no file (not told where some names do not map one to one).
    """
    present = {name: expected.name_of(name) for name in names}
    if None in present.values():
        return
    found = {alias for target in present.values() for alias in expected.ties.get(str(target), {str(target)})}
    missing = sorted(name for name in wanted if name in expected.parameters and name not in found)
    if missing:
        which = f"{missing[0]} and {len(missing) - 1} more are" if len(missing) > 1 else f"{missing[0]} is"
        raise ConfigMismatch(f"config.json and the weights disagree: {which} in no weight file: {_MEND}")
