"""Keys and values: slots for the sequences in progress, attention over them, and a cache of prompts for later calls.

A prompt's keys and values are stored once for all of its samples. A completion's are stored in the pool of its length
class and move to the next class when they fill it: nothing is copied at a step, and no row pays for the longest row of
the batch. The slots in use of a pool are always its first ones, so that attention slices it.

Attention of one new token per row is a transformers attention function. It is registered under `IMPLEMENTATION` and
gets the step's `DecodePlan` through the model's keyword arguments, so that a model's own forward does everything else:
positions, projections, norms, experts, head. A row attends to its prompt (together with the prompt's other rows) and to
its completion; the two results are joined by their log-sum-exp, which is exact. On a CPU completions are attended by
`cpu.attend`, in float32.

Shapes: S slots, H key heads, G query heads per key head, C positions of a slot, T filled positions, D head width,
R rows that share a prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig

from rectune.errors import UserError
from rectune.sampling.hf import cpu
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


IMPLEMENTATION = "rectune_slots"
Attention = Callable[["PlanPart", Tensor], tuple[Tensor, Tensor]]


@dataclass
class PlanPart:
    """Slots attended to in one call: which pool, and which rows of the batch.

    Always over the whole capacity of the pool, so that the shape of a row's attention depends on its own length alone;
    `filled` says where its keys end.

    Attributes:
        rows: For completions a slice of the batch; for prompts an index of all (prompt, row) pairs, padded.
        first, filled: Position of the slots' first key in its sequence, and number of keys; one per slot.
        query: Positions of the new tokens, slots x R.
    """

    pool: KVPool
    rows: slice | Tensor
    first: Tensor
    filled: Tensor
    query: Tensor
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    places: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype, groups: int) -> Tensor:
        """Additive mask, slots x 1 x R*G x C; the lowest finite number for -inf, so that no row is NaN."""
        if (window, dtype) not in self.masks:
            key = torch.arange(self.pool.capacity, device=self.filled.device)
            seen = (key < self.filled[:, None])[:, None].expand(-1, self.query.shape[1], -1)
            if window is not None:
                seen = seen & (self.query[..., None] - self.first[:, None, None] - key < window)
            additive = torch.zeros(seen.shape, dtype=dtype, device=key.device)
            additive.masked_fill_(~seen, torch.finfo(dtype).min)
            self.masks[window, dtype] = additive.repeat_interleave(groups, 1)[:, None]
        return self.masks[window, dtype]

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Append the newest key and value of each slot (slots x H x 1 x D)."""
        keys, values = self.pool.layers[layer]
        key, value = key.to(keys.dtype), value.to(values.dtype)
        places, columns = self._places(*key.shape[1::2])
        values.view(-1, values.shape[-1]).index_copy_(0, places, value.reshape(-1, value.shape[-1]))
        if self.pool.blocks:
            keys.put_(columns, key)
        else:
            keys.view(-1, keys.shape[-1]).index_copy_(0, places, key.reshape(-1, key.shape[-1]))

    def _places(self, heads: int, width: int) -> tuple[Tensor, Tensor]:
        """Of all slots and heads the newest position, slots*H, and where in blocks the numbers of its key are."""
        if (heads, width) not in self.places:
            count = torch.arange(len(self.filled) * heads, device=self.filled.device).view(-1, heads)
            places = (count * self.pool.capacity + self.filled[:, None] - 1).view(-1)
            # a key is a column of its block
            column = places // cpu.BLOCK * cpu.BLOCK * width + places % cpu.BLOCK
            columns = column[:, None] + cpu.BLOCK * torch.arange(width, device=column.device)
            self.places[heads, width] = places, columns
        return self.places[heads, width]


@dataclass
class DecodePlan:
    """One decoding step, the same for all layers.

    Attributes:
        completions: One part per length class in use, in the order of the batch.
        prompts: One part per length class of prompts.
        back: For each row of the batch its place among all (prompt, row) pairs of the prompt parts.
        padding: Rows at the end of the batch that belong to no sequence.
    """

    completions: list[PlanPart]
    prompts: list[PlanPart]
    back: Tensor
    padding: int


@contextmanager
def decoding(configs: Sequence[PreTrainedConfig]) -> Iterator[None]:
    """Within it the attention of the model of these configs is `attend`.

    It takes a `DecodePlan` in the model's keyword arguments.
    """
    usual = [(config, config._attn_implementation) for config in configs]
    for config, _ in usual:  # not by set_attn_implementation, which takes a tenth of a small model's step
        config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        for config, implementation in usual:
            config._attn_implementation = implementation


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    plan: DecodePlan | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token per row over its prompt and completion; stores the token's key and value.

    Args:
        query, key, value: Rows x heads x 1 x D, as transformers hands them to an attention function; rows
            behind those of the completions are padding.

    Returns:
        Rows x 1 x heads x D, and None in place of the weights.

    Raises:
        UserError: The model's attention has a feature (sinks, position bias) that is not implemented here.
    """
    extra = sorted(k for k in ("s_aux", "position_bias", "cache") if unknown.get(k) is not None)
    if plan is None or extra or query.shape[2] != 1:
        raise UserError(
            f"the hf backend cannot run {type(module).__name__} ({', '.join(extra) or 'no plan'})",
            hint="serve the model and use --backend openai",
        )
    query = query.view(query.shape[0], key.shape[1], -1, query.shape[-1])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    attention = partial(_part, layer=layer, scale=scale, softcap=softcap, window=sliding_window)
    own, lse = _completions(plan, layer, query, key, value, attention)
    far, far_lse = _prompts(plan, query, attention)
    share = torch.sigmoid(far_lse - lse).unsqueeze(-1)
    joined = torch.lerp(own.to(share.dtype), far.to(share.dtype), share).to(query.dtype)
    return joined.reshape(query.shape[0], 1, -1, value.shape[-1]), None


def _completions(
    plan: DecodePlan, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Store the new keys and values and attend to the completions; rows x H x G x D, and log-sum-exp."""
    outs, lses = [], []
    for part in plan.completions:
        part.store(layer, key[part.rows], value[part.rows])
        out, lse = attention(part, query[part.rows])
        outs.append(out)
        lses.append(lse)
    if plan.padding:
        outs.append(outs[0].new_zeros(plan.padding, *outs[0].shape[1:]))
        lses.append(lses[0].new_zeros(plan.padding, *lses[0].shape[1:]))
    return _cat(outs), _cat(lses)


def _prompts(plan: DecodePlan, query: Tensor, attention: Attention) -> tuple[Tensor, Tensor]:
    """Attend to the prompts, all rows of a prompt in one; rows x H x G x D, and log-sum-exp."""
    heads, groups = query.shape[1:3]
    outs, lses = [], []
    for part in plan.prompts:
        slots, per_slot = part.query.shape
        q = query.index_select(0, part.rows).view(slots, per_slot, *query.shape[1:])  # type: ignore[arg-type]
        out, lse = attention(part, q.transpose(1, 2).flatten(2, 3))
        outs.append(out.reshape(slots, heads, per_slot, groups, -1).transpose(1, 2).flatten(0, 1))
        lses.append(lse.reshape(slots, heads, per_slot, groups).transpose(1, 2).flatten(0, 1))
    return _cat(outs).index_select(0, plan.back), _cat(lses).index_select(0, plan.back)


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _part(
    part: PlanPart, q: Tensor, *, layer: int, scale: float, softcap: float | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Attention of q (slots x H x R*G x D) over one part, and its log-sum-exp (slots x H x R*G)."""
    keys, values = (stored[: len(part.filled)] for stored in part.pool.layers[layer])
    groups = q.shape[2] // part.query.shape[1]
    if part.pool.blocks:
        mask, rows = part.mask(window, torch.float32, groups), part.pool.bags(layer, groups)
        return cpu.attend(q.float(), keys, values, mask, rows, scale=scale, softcap=softcap)
    mask = part.mask(window, q.dtype, groups)
    if q.device.type == "cpu" and softcap is None and q.shape[-1] == values.shape[-1]:
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        result: tuple[Tensor, Tensor] = op(q, keys, values, attn_mask=mask, scale=scale)
        return result
    scores = (q @ keys.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp().to(values.dtype) @ values, lse


AttentionInterface.register(IMPLEMENTATION, attend)
