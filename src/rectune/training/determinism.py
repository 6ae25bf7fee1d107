"""The same bits again: a GPU adds up in the order in which its threads happen to come, unless it is told not to."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
log = logging.getLogger("rectune")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the first product of the process
_unable: list[str] = []  # why this process no longer tries


def repeatably(device: torch.device, function: Callable[[], T]) -> T:
    """What `function` returns; gradients that it computes are the same bits each time, on this kind of GPU.

    Where an operation of the model cannot be told to, that is said once, and `function` is called again without.
    """
    if device.type == "cuda" and not _unable:
        try:
            with _deterministic():
                return function()
        except RuntimeError as error:
            if "use_deterministic_algorithms" not in str(error):
                raise
            _unable.append(str(error))
        reason = _unable[0].partition(",")[0].partition(". ")[0]
        log.warning("a run that goes on will not have the same bits as one never stopped: %s", reason)
    return function()


@contextmanager
def _deterministic() -> Iterator[None]:
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
