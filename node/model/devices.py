"""The machine's compute devices: which there are, what memory they have free, which dtype suits them."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from node.errors import UserError

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPE_NAMES = ("auto", *_DTYPES)


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` prefers CUDA, then MPS, then the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.partition(":")[0]
    if not available.get(kind, False):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(f"This machine has no device {name!r} that torch can use; choose one of: {there}.")
    return torch.device(name)


def pick_dtype(name: str, stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the dtype called ``name``; ``auto`` is the checkpoint's own on a GPU and float32 on a CPU.

    Args:
        name: one of ``DTYPE_NAMES``.
        stored: dtype that the checkpoint's config names, if any.
        device: where the span will compute.
    """
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cpu" or stored not in _DTYPES.values():
        return torch.float32
    assert stored is not None
    return stored


def free_bytes(device: torch.device) -> int:
    """Return the memory of ``device`` that nobody uses now, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # macOS does not say what is free
