"""eFedLLM: a peer-to-peer node for large language models.

``AutoDistributedModelForCausalLM`` is the client library; everything else is reached through the ``efedllm`` command.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from node.client.distributed_model import AutoDistributedModelForCausalLM

__all__ = ["AutoDistributedModelForCausalLM"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the client library on first use: torch takes seconds, and most commands do not need it."""
    if name == "AutoDistributedModelForCausalLM":
        from node.client.distributed_model import AutoDistributedModelForCausalLM

        return AutoDistributedModelForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
