"""Which tensors of a checkpoint belong to which transformer block, told from their names alone.

    model.layers.3.mlp.experts.7.up_proj.weight
    '----------' | '--------------------------'
      layers   block  rest                        the first number in a name is the block, later ones are not

No model family is named here: the layers are the one path whose numbers are exactly 0 .. num_blocks - 1. Pure;
any thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from node.errors import ConfigMismatch

# Towers of multimodal checkpoints, which may count as many layers as the language model.
_OTHER_TOWERS = ("vision", "visual", "audio", "speech", "encoder", "image")


@dataclass(frozen=True)
class BlockNames:
    """The path of a checkpoint's layer list, which reads and renumbers tensor names."""

    layers: str  # such as "model.layers" or "h": what stands before the block's number
    num_blocks: int

    def block_of(self, name: str) -> int | None:
        """Return the block that the tensor belongs to, or None when it lies outside the layer list.

        The answer may reach beyond ``num_blocks - 1``: some checkpoints append layers for drafting, which nobody loads.
        """
        if not name.startswith(self.layers + "."):
            return None
        number = name[len(self.layers) + 1 :].partition(".")[0]
        return int(number) if _is_number(number) else None

    def renumber(self, name: str, start: int) -> str:
        """Return the name that the tensor has in a model whose first layer is block ``start``."""
        number, _, rest = name[len(self.layers) + 1 :].partition(".")
        return f"{self.layers}.{int(number) - start}.{rest}"


def find_block_names(
    names: Iterable[str], num_blocks: int, *, num_extra_blocks: int = 0, layers: str | None = None
) -> BlockNames:
    """Find the layer list among the names of a checkpoint.

    Args:
        names: All tensor names of the checkpoint.
        num_blocks: Number of blocks that the config asks for.
        num_extra_blocks: How many layers the checkpoint may append after them (drafting layers).
        layers: Path of the layer list in the built model, where the caller knows it, such as ``model.layers``; it
            decides between several candidates, and may differ from the checkpoint's by a prefix.

    Raises:
        ConfigMismatch: No path has just these numbers: the weights hold more or fewer blocks than the config says.
    """
    numbers: dict[str, set[int]] = {}
    num_tensors: dict[str, int] = {}
    for name in names:
        path, number = _split_at_first_number(name)
        if path and number is not None:
            numbers.setdefault(path, set()).add(number)
            num_tensors[path] = num_tensors.get(path, 0) + 1

    def preference(path: str) -> tuple[bool, bool, int]:
        return (
            layers is not None and _same_tail(path, layers),
            not any(word in path for word in _OTHER_TOWERS),
            num_tensors[path],
        )

    counts = range(num_blocks, num_blocks + num_extra_blocks + 1)
    exact = [path for path, seen in numbers.items() if any(seen == set(range(count)) for count in counts)]
    if exact:
        return BlockNames(max(exact, key=preference), num_blocks)
    if not numbers:
        raise ConfigMismatch(
            f"config.json asks for {num_blocks} blocks and the weight files hold none: fetch the whole model again"
        )
    closest = max(numbers, key=preference)
    raise ConfigMismatch(_difference(closest, numbers[closest], num_blocks))


def _difference(layers: str, seen: set[int], num_blocks: int) -> str:
    missing = sorted(set(range(num_blocks)) - seen)
    which = f"block {missing[0]} is missing from" if missing else f"{max(seen) + 1} are in"
    return (
        f"config.json asks for {num_blocks} blocks and {which} the weight files ({layers}): "
        "fetch config.json and the weight files again, from the same model"
    )


def _split_at_first_number(name: str) -> tuple[str, int | None]:
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if _is_number(part):
            return ".".join(parts[:index]), int(part)
    return "", None


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 6


def _same_tail(path: str, other: str) -> bool:
    return path == other or path.endswith("." + other) or other.endswith("." + path)
