"""Where the keys and values of the sequences in work lie: what makes batching continuous.

A prompt's keys and values are stored once for all of its samples. A completion's are stored in the pool of
its length class and move to the next one when they fill it: nothing is copied at a step, and no row pays for
the longest row of the batch. The slots in use of a pool are always its first ones, so that a pool is attended
to as a slice. How is in `attention.py`; which sequences are in work is in `batch.py`.

Shapes: S slots, H key heads, C positions of a slot, T filled positions, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Owner(Protocol):
    """Whoever uses a slot: `length` positions of it are filled."""

    slot: int
    length: int


class Pool:
    """Slots of one capacity, at most `most`: per layer, keys and values of shape S x H x C x D.

    There are at most four times as many as are in use.
    """

    def __init__(self, capacity: int, like: Sequence[tuple[Tensor, Tensor]], most: int) -> None:
        self.capacity, self.owners, self.most = capacity, list[Any](), most
        self.layers = [tuple(t.new_zeros((0, t.shape[0], capacity, t.shape[2])) for t in kv) for kv in like]

    @property
    def slots(self) -> int:
        return self.layers[0][0].shape[0]

    def add(self, owner: Owner, content: Sequence[tuple[Tensor, Tensor]] | None = None) -> None:
        """Give the next free slot to `owner` and fill it with `content` (H x T x D per layer)."""
        owner.slot = len(self.owners)
        self.owners.append(owner)
        if len(self.owners) > self.slots:
            self._resize(min(2 * len(self.owners), self.most))
        if content is not None:
            for stored, new in zip(self.layers, content, strict=True):
                for old, part in zip(stored, new, strict=True):
                    old[owner.slot, :, : part.shape[1]] = part

    def content(self, owner: Owner) -> list[tuple[Tensor, Tensor]]:
        """Views of the filled part of a slot, H x T x D per layer."""
        return [(k[owner.slot, :, : owner.length], v[owner.slot, :, : owner.length]) for k, v in self.layers]

    def remove(self, slot: int) -> None:
        """Free a slot; the last slot in use moves into the hole."""
        last = self.owners.pop()
        if slot < len(self.owners):
            for stored, part in zip(self.layers, self.content(last), strict=True):
                for old, new in zip(stored, part, strict=True):
                    old[slot, :, : last.length] = new
            self.owners[slot], last.slot = last, slot
        if self.slots > 4 * len(self.owners):
            self._resize(self.slots // 2 if self.owners else 0)

    def _resize(self, slots: int) -> None:
        """Other storage with the content of the slots in use, layer by layer, so that there never are two of all."""
        used = min(len(self.owners), self.slots)  # a new owner has nothing in the old one
        for layer, kv in enumerate(self.layers):
            resized = tuple(t.new_empty((slots, *t.shape[1:])) for t in kv)
            for new, old in zip(resized, kv, strict=True):
                new[:used] = old[:used]
                new[used:] = 0  # masked, but 0 * nan would not be 0
            self.layers[layer] = resized


def capacity_for(length: int) -> int:
    """The smallest length class that holds `length` positions: 64, 128, 192, 256, 384, 512, 768, ..."""
    size = 64
    while size < length:
        size = 128 if size == 64 else size + size // 2 if size & (size - 1) == 0 else size + size // 3
    return size
