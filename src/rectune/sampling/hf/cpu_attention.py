"""Attention of a few query rows on a CPU, as weighted sums of stored rows.

One new token asks a key head with few rows (the query heads that share it). A matrix product of few rows first packs
all keys and values, so it reads and writes them more often than it uses them. torch's `embedding_bag` sums rows of a
table by weight and reads them where they lie. Values are such rows; keys are if they are stored in blocks of `BLOCK`
positions, one row for each of the D numbers of a key: the rows' sum, weighted by the query, is a block of scores.

Shapes: S slots, H key heads, G query heads per key head, C positions of a slot, N = C / BLOCK, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

BLOCK = 64
"""Positions of a block of keys; the capacities of `kv_cache.py` are multiples of it."""
_WHOLE = 16  # numbers to a vector register: elementwise functions may round those that fill none otherwise


def to_blocks(keys: Tensor) -> Tensor:
    """Keys ... x C x D as blocks ... x N x D x BLOCK (a view)."""
    return keys.unflatten(-2, (-1, BLOCK)).transpose(-1, -2)


def from_blocks(blocks: Tensor) -> Tensor:
    """Blocks ... x N x D x BLOCK as keys ... x C x D."""
    return blocks.transpose(-1, -2).flatten(-3, -2)


@dataclass(frozen=True)
class Bags:
    """Which rows are summed, for storage of one shape: the same for all layers and steps, and for fewer slots a prefix.

    Attributes:
        keys: int32, S*H*G*N*D: the rows of each block that a query row asks.
        values: int32, S*H*G*C: the rows of each slot.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def over(cls, slots: int, heads: int, groups: int, blocks: int, width: int) -> Bags:
        """For `slots` slots of `blocks` blocks, `heads` key heads and `groups` query heads to each."""
        places = torch.arange(slots * heads * blocks, dtype=torch.int32).view(slots * heads, 1, blocks, 1)

        def rows(to_a_block: int) -> Tensor:
            each = places * to_a_block + torch.arange(to_a_block, dtype=torch.int32)
            return each.expand(-1, groups, -1, -1).flatten()

        return cls(rows(width), rows(BLOCK))


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    bags: Bags,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention over whole slots; exact, and a slot's result has the same bits whichever others there are.

    Args:
        query: S x H x G x D, float32.
        keys: S x H x N x D x BLOCK, contiguous.
        values: S x H x C x D', contiguous.
        mask: Added to the scores, S x 1 x G x C; finite.
        bags: For at least S slots of this shape.

    Returns:
        S x H x G x D', and the log-sum-exp of the scores, S x H x G.
    """
    *shape, blocks, width = *query.shape[:3], *keys.shape[2:4]
    weights = (query * scale).unsqueeze(3).expand(-1, -1, -1, blocks, -1)
    scores = _sums(keys, bags.keys, weights.reshape(-1), width).view(*shape, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores += mask
    shares = scores.softmax(-1)
    out = _sums(values, bags.values, shares.view(-1), shares.shape[-1])
    return out.view(*shape, -1), scores.amax(-1) - _log(shares.amax(-1))


def _sums(table: Tensor, rows: Tensor, weights: Tensor, each: int) -> Tensor:
    """Sums of `each` rows of a table (its last dimension) at a time, weighted."""
    starts = torch.arange(0, len(weights), each, dtype=torch.int32)
    return embedding_bag(
        rows[: len(weights)], table.view(-1, table.shape[-1]), starts, mode="sum", per_sample_weights=weights
    )


def _log(x: Tensor) -> Tensor:
    return pad(x, (0, 0, 0, 0, 0, -len(x) % _WHOLE), value=1.0).log()[: len(x)]
