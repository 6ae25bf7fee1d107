"""Numbers of rows at which a matrix product rounds a row the same, whatever stands in the other rows.

A BLAS takes other kernels for few rows, which add in another order; from how many rows on it no longer does depends on
the processor, the library, the threads and the shape. So it is tried, once for each model. Who pads is in
`scheduler.py`.
"""

from __future__ import annotations

import torch
from torch import nn

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
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    kinds = {(layer.weight.shape, "forward" in vars(layer)): layer for layer in layers}  # see prepacked.py
    known = {id(layer.weight) for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Embedding))}
    if any(weight.dim() > 1 and id(weight) not in known for weight in model.parameters()):
        return tuple(always)
    tried = set(range(STEP, MOST, STEP)) - set(always)
    for layer in kinds.values():
        tried = _same_at(tried, layer)
    return tuple(sorted({*tried, *always}))


def _same_at(sizes: set[int], layer: nn.Linear) -> set[int]:
    """Those of the sizes at which the layer's products have the bits that they have at `MOST` rows."""
    generator = torch.Generator().manual_seed(0)
    rows_RI = torch.randn(MOST, layer.in_features, generator=generator)
    whole_RO = layer(rows_RI)
    return {
        size
        for size in sizes
        if torch.equal(layer(rows_RI[:size]), whole_RO[:size])
        and torch.equal(layer(rows_RI[-size:]), whole_RO[-size:])
    }
