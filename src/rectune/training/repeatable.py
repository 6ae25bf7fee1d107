"""The same bits again: a GPU adds up in the order in which its threads happen to come, unless it is told not to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the first product of the process


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Gradients computed within are a function of weights and batch, bit for bit, on this kind of GPU."""
    if device.type != "cuda":
        yield
        return
    settings: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a pass over each new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        settings.fill_uninitialized_memory = filled
