"""What the embedded engine does otherwise on a CPU: packed weights, batch-invariant shapes, attention as sums of rows.

A GPU uses none of it. Figures are of SmolLM2-135M on two cores (docs/decisions.md says how they were measured):

- `PackedLinears`: bfloat16 answers to 128 tokens at 545 tokens/s in place of 479; in float32 the head's product at 123
  GFLOP/s in place of 67. oneDNN takes weights that are packed for the processor already, as `torch.compile` has it do
  for frozen models. torch has no public function for it; where the private ones are absent, plain layers compute.
- `batch_invariant_sizes`: what makes samples in float32 independent of the batch size, to the bit.
- `attend`: 1.2 to 2.3 times as fast as torch's flash kernel, which packs all keys and values at every step; float32
  answers to 1,024 tokens at 105 tokens/s in place of 103 (and 2.95 in place of 2.68 times `generate`'s speed).

Shapes: S slots, H key heads, G query heads per key head, C positions of a slot, N = C / BLOCK, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad

PACKED_LIMIT = 4 << 30  # bytes of packed weights, which are held in addition to the model's own
PACKED_ROWS = 128  # the layout is chosen for this number of rows; it serves any number
ROWS, MOST_ROWS, STEP = 64, 128, 16
"""Multiples of `ROWS` are batch-invariant untried; others are tried in steps of `STEP` up to `MOST_ROWS`."""
BLOCK = 64
"""Positions of a block of keys; the capacities of `kv_cache.py` are multiples of it."""
_VECTOR = (
    16  # floats of a vector register: elementwise functions may round the ones that fill none differently
)


class PackedLinears:
    """The model's plain linear layers, with their weights packed as they are now.

    Args:
        limit: Bytes of packed weights, spent from the model's end (the head) on.
    """

    @torch.inference_mode()
    def __init__(self, model: nn.Module, limit: int = PACKED_LIMIT) -> None:
        self.products: dict[nn.Linear, Callable[[Tensor], Tensor]] = {}
        for layer in reversed(list(model.modules())):
            if type(layer) is not nn.Linear or "forward" in vars(layer) or not _can_pack(layer.weight.data):
                continue
            limit -= layer.weight.nbytes
            if limit < 0:
                break
            self.products[layer] = partial(_packed_product, weight=_pack(layer.weight), bias=layer.bias)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within it the layers compute from the packed weights, without gradients."""
        for layer, product in self.products.items():
            vars(layer)["forward"] = (
                product  # not by setattr, which a module makes slow, since this is done at each step
            )
        try:
            yield
        finally:
            for layer in self.products:
                del vars(layer)["forward"]


def _pack(weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
    return result


def _packed_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return result


def _can_pack(weight: Tensor) -> bool:
    return type(weight) is Tensor and weight.device.type == "cpu" and packing_works(weight.dtype)


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether this torch and processor multiply by packed weights of this dtype, found by trying."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    rows, layer = torch.ones(2, 3, dtype=dtype), nn.Linear(3, 5, dtype=dtype)
    with torch.inference_mode():
        try:
            product = _packed_product(rows, _pack(layer.weight), layer.bias)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False  # not in this torch, not on this processor, or with other arguments in this version
        return torch.allclose(product, layer(rows), atol=1e-5 if dtype == torch.float32 else 0.05)


@torch.inference_mode()
def batch_invariant_sizes(model: nn.Module) -> tuple[int, ...]:
    """Numbers of rows up to `MOST_ROWS`, ascending, at which all linear layers of a float32 model give a row the same
    bits, wherever it stands. A BLAS uses other kernels for few rows, which add in another order; from which number on
    it does not depends on the processor, the library, the threads and the shape, so it is tried.
    """
    always = set(range(ROWS, MOST_ROWS + 1, ROWS))
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    tables = [layer for layer in model.modules() if isinstance(layer, nn.Embedding)]
    known = {id(layer.weight) for layer in (*linear, *tables)}
    if any(weight.dim() > 1 and id(weight) not in known for weight in model.parameters()):
        return tuple(sorted(always))  # products of other modules (experts, convolutions) are not tried
    sizes = set(range(STEP, MOST_ROWS, STEP)) - always
    for layer in {(layer.weight.shape, "forward" in vars(layer)): layer for layer in linear}.values():
        rows_RI = torch.randn(MOST_ROWS, layer.in_features, generator=torch.Generator().manual_seed(0))
        whole_RO = layer(rows_RI)
        sizes = {
            size
            for size in sizes
            if torch.equal(layer(rows_RI[:size]), whole_RO[:size])
            and torch.equal(layer(rows_RI[-size:]), whole_RO[-size:])
        }
    return tuple(sorted(sizes | always))


def to_blocks(keys: Tensor) -> Tensor:
    """Keys ... x C x D as blocks ... x N x D x BLOCK (a view)."""
    result: Tensor = keys.unflatten(-2, (-1, BLOCK)).transpose(-1, -2)
    return result


def from_blocks(blocks: Tensor) -> Tensor:
    """Blocks ... x N x D x BLOCK as keys ... x C x D."""
    return blocks.transpose(-1, -2).flatten(-3, -2)


class BagRows(NamedTuple):
    """Which rows `attend` sums, for storage of one shape: the same for all layers and steps; a prefix for fewer slots.

    Attributes:
        keys: int32, S*H*G*N*D: for each query row the rows of each block.
        values: int32, S*H*G*C: for each query row the rows of its slot.
    """

    keys: Tensor
    values: Tensor


def bag_rows(slots: int, heads: int, groups: int, blocks: int, width: int) -> BagRows:
    """For `slots` slots of `blocks` blocks, `heads` key heads and `groups` query heads to each."""
    places = torch.arange(slots * heads * blocks, dtype=torch.int32).view(slots * heads, 1, blocks, 1)

    def rows(per_block: int) -> Tensor:
        each = places * per_block + torch.arange(per_block, dtype=torch.int32)
        return each.expand(-1, groups, -1, -1).flatten()

    return BagRows(rows(width), rows(BLOCK))


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    bags: BagRows,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention of few query rows over whole slots, as weighted sums of stored rows.

    `embedding_bag` sums rows of a table by weight and reads them where they are stored. Values are such rows; keys are
    if they are stored in blocks, one row for each of the D numbers of a key: the sum of these, weighted by the query,
    is a block of scores. A slot's result has the same bits whichever other slots there are.

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
    scores = _bag_sums(keys, bags.keys, weights.reshape(-1), width).view(*shape, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores += mask
    shares = scores.softmax(-1)
    out = _bag_sums(values, bags.values, shares.view(-1), shares.shape[-1])
    largest = shares.amax(-1)
    log = pad(largest, (0, 0, 0, 0, 0, -len(largest) % _VECTOR), value=1.0).log()[: len(largest)]
    return out.view(*shape, -1), scores.amax(-1) - log


def _bag_sums(table: Tensor, rows: Tensor, weights: Tensor, bag: int) -> Tensor:
    """Weighted sums of rows of a table (its last dimension), `bag` rows to a sum."""
    starts = torch.arange(0, len(weights), bag, dtype=torch.int32)
    return embedding_bag(
        rows[: len(weights)], table.view(-1, table.shape[-1]), starts, mode="sum", per_sample_weights=weights
    )
