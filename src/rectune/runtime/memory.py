"""Work that is repeated with less at once where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Made = TypeVar("Made")


def repeat_while_out_of_memory(work: Callable[[], Made], shrink: Callable[[], None]) -> Made:
    """What `work` gives, begun again after `shrink` each time memory runs out.

    Args:
        shrink: Lets the next try take less at once, or raises where there is nothing less.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        shrink()  # not in the handler: the error keeps the tensors of the failed try alive


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in words and "memory" in words
