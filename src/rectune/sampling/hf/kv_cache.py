"""Storage of keys and values: slots for the sequences in progress, and a cache of prompts for later calls.

A prompt's keys and values are stored once for all of its samples. A completion's are stored in the pool of its length
class and move to the next class when they fill it: nothing is copied at a step, and no row pays for the longest row of
the batch. The slots in use of a pool are always its first ones, so that attention (`decode_attention.py`) slices it.

Shapes: S slots, H key heads, C positions of a slot, T filled positions, D head width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from rectune.sampling.hf.cpu import BLOCK, BagRows, bag_rows, from_blocks, to_blocks

Layers = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer, H x T x D."""
Prefilled = tuple[Tensor, Layers]
"""Logits of the first new token, 1 x V, and keys and values of the prompt."""


class SlotOwner(Protocol):
    """A sequence that uses a slot; `length` positions of it are filled."""

    slot: int
    length: int


class KVPool:
    """Slots of one capacity: per layer, keys and values of shape S x H x C x D.

    Args:
        like: Keys and values of each layer, for heads, widths and dtype.
        most: Maximum number of slots. Fewer are allocated: at most four times as many as are in use.
        blocks: Store float32, and keys in the blocks that `cpu.attend` reads.
    """

    def __init__(self, capacity: int, like: Layers, most: int, *, blocks: bool = False) -> None:
        self.capacity, self.owners, self.most, self.blocks = capacity, list[Any](), most, blocks
        self.layers = [self._empty(*kv) for kv in like]
        self._bags: dict[tuple[int, int, int], BagRows] = {}

    def _empty(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        heads, width = keys.shape[0], keys.shape[2]
        of_key = (self.capacity // BLOCK, width, BLOCK) if self.blocks else (self.capacity, width)
        of_value = (self.capacity, values.shape[2])
        empty = tuple(keys.new_zeros((0, heads, *shape)) for shape in (of_key, of_value))
        return tuple(tensor.float() for tensor in empty) if self.blocks else empty

    @property
    def slots(self) -> int:
        return self.layers[0][0].shape[0]

    def add(self, owner: SlotOwner, content: Layers | None = None) -> None:
        """Give the next free slot to `owner`, filled with `content` (with `blocks` whole blocks)."""
        owner.slot = len(self.owners)
        self.owners.append(owner)
        if len(self.owners) > self.slots:
            self._resize(min(2 * len(self.owners), self.most))
        if content is not None:
            for (keys, values), (key, value) in zip(self.layers, content, strict=True):
                values[owner.slot, :, : value.shape[1]] = value
                new = to_blocks(key) if self.blocks else key
                keys[owner.slot, :, : new.shape[1]] = new

    def content(self, owner: SlotOwner) -> list[tuple[Tensor, Tensor]]:
        """The filled part of a slot."""
        stored = [(keys[owner.slot], values[owner.slot]) for keys, values in self.layers]
        if self.blocks:
            stored = [(from_blocks(keys), values) for keys, values in stored]
        return [(keys[:, : owner.length], values[:, : owner.length]) for keys, values in stored]

    def bags(self, layer: int, groups: int) -> BagRows:
        """The rows that `groups` query heads to each key head sum in a layer of this pool (`cpu.attend`)."""
        heads, blocks, width = self.layers[layer][0].shape[1:4]
        if (heads, groups, width) not in self._bags:
            self._bags[heads, groups, width] = bag_rows(self.slots, heads, groups, blocks, width)
        return self._bags[heads, groups, width]

    def remove(self, slot: int) -> None:
        """Free a slot; the last slot in use moves into it."""
        last = self.owners.pop()
        if slot < len(self.owners):
            for stored in self.layers:
                for tensor in stored:
                    tensor[slot] = tensor[last.slot]
            self.owners[slot], last.slot = last, slot
        if self.slots > 4 * len(self.owners):
            self._resize(self.slots // 2 if self.owners else 0)

    def _resize(self, slots: int) -> None:
        """Reallocate layer by layer, so that at no time all layers are held twice."""
        used = min(len(self.owners), self.slots)  # a new owner has nothing in the old storage
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


class PrefixCache:
    """LRU cache of prefilled prompts for frozen weights, bounded in bytes.

    A second evaluation of the same problems then costs no prefill, nor do more samples than share a prompt's attention.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._cached: OrderedDict[tuple[int, ...], Prefilled] = OrderedDict()

    def get(self, ids: tuple[int, ...]) -> Prefilled | None:
        if ids in self._cached:
            self._cached.move_to_end(ids)
        return self._cached.get(ids)

    def put(self, ids: tuple[int, ...], prefilled: Prefilled) -> None:
        self._cached[ids] = prefilled
        self.size += _bytes(prefilled)
        while self.size > self.limit:
            self.size -= _bytes(self._cached.popitem(last=False)[1])


def _bytes(prefilled: Prefilled) -> int:
    logits, layers = prefilled
    return logits.nbytes + sum(key.nbytes + value.nbytes for key, value in layers)
