"""How many tokens of a rollout go through the model at once: fewer once they did not fit into memory.

However a pass is cut its sums are the same, up to the order in which floats are added. What passes there are is in
`rollout.py` and `update.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from rectune.errors import UserError
from rectune.training.accumulation import is_out_of_memory

log = logging.getLogger("rectune")

Made = TypeVar("Made")


class Room:
    """Most tokens of a micro-batch of several rows; a longer row is a micro-batch by itself.

    Attributes:
        tokens: The limit as it is now; part of a checkpoint, since the order of sums depends on it.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def fit(self, work: Callable[[int], Made], lengths: Sequence[int]) -> Made:
        """What `work` gives with the capacity that rows of these lengths have; begun again with less if need be.

        Raises:
            UserError: The longest row does not fit into memory by itself.
        """
        while True:
            longest = max(lengths, default=1)
            try:
                return work(max(self.tokens, longest))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve(longest, sum(lengths))  # here, because the error keeps the micro-batch's tensors

    def _halve(self, longest: int, total: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.tokens <= longest:
            raise UserError(
                f"{longest} tokens of one prompt and answer do not fit into memory",
                where="max_new_tokens",
                hint="lower it or memory_budget, or turn on gradient_checkpointing or lora",
            )
        tried = min(self.tokens, total)
        self.tokens = max(longest, tried // 2)
        log.warning(
            "out of memory at up to %d tokens at once: repeated, with the same gradient, with at most %d, and so are"
            " all passes that follow",
            tried,
            self.tokens,
        )
