"""Numbers of rows at which a matrix product rounds a row the same, whatever stands in the other rows.

A BLAS takes other kernels for few rows, which add in another order; from how many rows on it no longer does depends on
the processor, the library, the threads and the shape. So it is tried, once for each model. Who pads is in `batch.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rectune.sampling.tiles import tiled_layer, tiled_linear

ROWS = 64
"""Its multiples are taken untried: beyond `MOST`, and where products are not those of linear layers."""
MOST = 128
STEP = 16


@torch.inference_mode()
def steady_sizes(model: nn.Module) -> tuple[int, ...]:
    """Numbers of rows up to `MOST`, ascending, at which all linear layers of a float32 model give the same bits.

    A row has them in any place and at any of these sizes. Multiples of `ROWS` are always among them.
    """
    always = range(ROWS, MOST + 1, ROWS)
    head = tiled_layer(model)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    weights = {(layer.weight.shape, layer is head): layer.weight for layer in layers}
    known = {id(layer.weight) for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Embedding))}
    if any(weight.dim() > 1 and id(weight) not in known for weight in model.parameters()):
        return tuple(always)
    tried = set(range(STEP, MOST, STEP)) - set(always)
    for (_, tiled), weight in weights.items():
        tried = _same_at(tried, weight, tiled_linear if tiled else nn.functional.linear)
    return tuple(sorted({*tried, *always}))


def _same_at(sizes: set[int], weight_OI: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> set[int]:
    """Those of the sizes at which products with `weight_OI` have the bits that they have at `MOST` rows."""
    generator = torch.Generator().manual_seed(0)
    rows_RI = torch.randn(MOST, weight_OI.shape[1], generator=generator)
    whole_RO = product(rows_RI, weight_OI)
    return {
        size
        for size in sizes
        if torch.equal(product(rows_RI[:size], weight_OI), whole_RO[:size])
        and torch.equal(product(rows_RI[-size:], weight_OI), whole_RO[-size:])
    }
