"""Give attention functions of ours a name in transformers, for as long as their owner lives.

transformers keeps what it is told for good: the function of an object would keep that object, and all the weights that
it attends with, in memory after everybody else has let go of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def name_attention(name: str, attend: Callable[..., tuple[Any, Any]]) -> None:
    """Let models find a method under ``name``, in transformers' interface, until its object has gone.

    Args:
        name: that no other has.
        attend: a bound method.
    """
    method = weakref.WeakMethod(attend)

    def call(*arguments: Any, **options: Any) -> tuple[Any, Any]:
        living = method()
        assert living is not None  # Whoever computes with a model holds it.
        return living(*arguments, **options)

    ALL_ATTENTION_FUNCTIONS[name] = call
    weakref.finalize(attend.__self__, _forget, name).atexit = False  # type: ignore[attr-defined]


def _forget(name: str) -> None:
    del ALL_ATTENTION_FUNCTIONS[name]
