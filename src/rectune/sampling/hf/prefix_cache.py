"""Prompts that were computed before: a model that stays as it is reads each of them once, as far as memory goes.

A second evaluation of the same problems, or more samples than share one prompt's attention, then cost no prefill. What
prompts of sequences in work are is in `scheduler.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

Computed = tuple[Tensor, Sequence[tuple[Tensor, Tensor]]]
"""Logits of the first new token, 1 x V, and keys and values of each layer, H x T x D."""


class KeptPrompts:
    """The prompts used last, within `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[tuple[int, ...], Computed] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, ids: tuple[int, ...]) -> Computed | None:
        if ids in self._kept:
            self._kept.move_to_end(ids)
        return self._kept.get(ids)

    def keep(self, ids: tuple[int, ...], computed: Computed) -> None:
        self._kept[ids] = computed
        self.size += _bytes(computed)
        while self.size > self.limit:
            self.size -= _bytes(self._kept.popitem(last=False)[1])


def _bytes(computed: Computed) -> int:
    logits, content = computed
    return logits.nbytes + sum(key.nbytes + value.nbytes for key, value in content)
