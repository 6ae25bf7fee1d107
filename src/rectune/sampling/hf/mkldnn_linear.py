"""Linear layers whose weights are laid out once for the processor, for a model that decodes on a CPU.

A product of few rows spends up to half its time on laying out the weight (in bfloat16 less). oneDNN takes one that is
laid out already, as `torch.compile` has it do for frozen models, and in float32 then also rounds a row the same for any
number of rows (docs/decisions.md). torch has no public function for it: where the private ones are absent, layers
stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

LIMIT = 4 << 30  # bytes of weights laid out, which stand beside the model's own
ROWS = 128  # for which the layout is chosen; it serves any number


@torch.inference_mode()
def prepack(model: nn.Module, limit: int = LIMIT) -> dict[nn.Linear, Tensor]:
    """Weights of the model's plain linear layers, laid out; from its end (the head) on, as far as `limit` bytes go."""
    made = dict[nn.Linear, Tensor]()
    for layer in reversed([layer for layer in model.modules() if _plain(layer)]):
        limit -= layer.weight.nbytes
        if limit < 0:
            break
        made[layer] = torch.ops.mkldnn._reorder_linear_weight(layer.weight, ROWS)
    return made


@contextmanager
def prepacked(layers: Mapping[nn.Linear, Tensor]) -> Iterator[None]:
    """Within it these layers compute by `prepack`'s weights, without a gradient."""
    for layer, weight in layers.items():
        layer.forward = partial(_product, weight=weight, bias=layer.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@cache
def available(dtype: torch.dtype) -> bool:
    """Whether this torch and processor multiply by such weights, found by trying."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    rows, layer = torch.ones(2, 3, dtype=dtype), nn.Linear(3, 5, dtype=dtype)
    with torch.inference_mode():
        try:
            weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight, ROWS)
            made = _product(rows, weight, layer.bias)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False  # not in this torch, not for this processor, or with other arguments by now
        return torch.allclose(made, layer(rows), atol=1e-5 if dtype == torch.float32 else 0.05)


def _plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight.data
    return type(weight) is Tensor and weight.device.type == "cpu" and available(weight.dtype)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
