"""Where the keys and values of the sequences in work lie: what makes batching continuous.

A prompt's keys and values are stored once for all of its samples. A completion's are stored in the pool of
its length class and move to the next one when they fill it: nothing is copied at a step, and no row pays for
the longest row of the batch. The slots in use of a pool are always its first ones, so that a pool is attended
to as a slice. How is in `decode_attention.py`; which sequences are in work is in `scheduler.py`.

Shapes: S slots, H key heads, C positions of a slot, T filled positions, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rectune.sampling.hf.cpu_attention import BLOCK, Bags, from_blocks, to_blocks


class Owner(Protocol):
    """Whoever uses a slot: `length` positions of it are filled."""

    slot: int
    length: int


class Pool:
    """Slots of one capacity, at most `most`: per layer, keys and values of shape S x H x C x D.

    There are at most four times as many as are in use. With `blocks` the keys are stored as `cpu_attention.py`
    reads them, and all is float32.
    """

    def __init__(
        self, capacity: int, like: Sequence[tuple[Tensor, Tensor]], most: int, *, blocks: bool = False
    ) -> None:
        self.capacity, self.owners, self.most, self.blocks = capacity, list[Any](), most, blocks
        self.layers = [self._empty(*kv) for kv in like]
        self._bags: dict[tuple[int, int, int], Bags] = {}

    def _empty(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        heads, width = keys.shape[0], keys.shape[2]
        of_key = (self.capacity // BLOCK, width, BLOCK) if self.blocks else (self.capacity, width)
        of_value, dtype = (self.capacity, values.shape[2]), torch.float32 if self.blocks else keys.dtype
        return tuple(keys.new_zeros((0, heads, *shape), dtype=dtype) for shape in (of_key, of_value))

    @property
    def slots(self) -> int:
        return self.layers[0][0].shape[0]

    def add(self, owner: Owner, content: Sequence[tuple[Tensor, Tensor]] | None = None) -> None:
        """Give the next free slot to `owner`, filled with `content` (H x T x D per layer; with `blocks` whole ones)."""
        owner.slot = len(self.owners)
        self.owners.append(owner)
        if len(self.owners) > self.slots:
            self._resize(min(2 * len(self.owners), self.most))
        if content is not None:
            for (keys, values), (key, value) in zip(self.layers, content, strict=True):
                values[owner.slot, :, : value.shape[1]] = value
                new = to_blocks(key) if self.blocks else key
                keys[owner.slot, :, : new.shape[1]] = new

    def content(self, owner: Owner) -> list[tuple[Tensor, Tensor]]:
        """The filled part of a slot, H x T x D per layer."""
        stored = [(keys[owner.slot], values[owner.slot]) for keys, values in self.layers]
        if self.blocks:
            stored = [(from_blocks(keys), values) for keys, values in stored]
        return [(keys[:, : owner.length], values[:, : owner.length]) for keys, values in stored]

    def bags(self, layer: int, groups: int) -> Bags:
        """The rows that `groups` query heads to each key head sum in a layer of this pool."""
        heads, blocks, width = self.layers[layer][0].shape[1:4]
        if (heads, groups, width) not in self._bags:
            self._bags[heads, groups, width] = Bags.over(self.slots, heads, groups, blocks, width)
        return self._bags[heads, groups, width]

    def remove(self, slot: int) -> None:
        """Free a slot; the last slot in use moves into the hole."""
        last = self.owners.pop()
        if slot < len(self.owners):
            for stored in self.layers:
                for kept in stored:
                    kept[slot] = kept[last.slot]
            self.owners[slot], last.slot = last, slot
        if self.slots > 4 * len(self.owners):
            self._resize(self.slots // 2 if self.owners else 0)

    def _resize(self, slots: int) -> None:
        """Other storage with the content of the slots in use, layer by layer, so that there never are two of all."""
        used = min(len(self.owners), self.slots)  # a new owner has nothing in the old one
        self._bags.clear()
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
