"""The output head's product in tiles of the vocabulary, for the few rows of a decoding step on a CPU.

MKL runs one product of few rows with a whole vocabulary at about half the speed of narrow ones (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

TILE = 1024  # words


@contextmanager
def tiled_head(model: nn.Module) -> Iterator[None]:
    """Within it the model's own forward computes its logits by `tiled_linear`, if its head is one for it."""
    head = tiled_layer(model)
    if head is not None:
        head.forward = partial(tiled_linear, weight=head.weight, bias=head.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if head is not None:
            del head.forward


def tiled_layer(model: nn.Module) -> nn.Linear | None:
    """The model's head, if it is a plain linear layer on a CPU."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if type(head) is not nn.Linear or "forward" in vars(head) or head.weight.device.type != "cpu":
        return None
    return head


def tiled_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.functional.linear` without a gradient: rows (... x I) and weight (O x I) give ... x O."""
    if len(weight) <= TILE:
        return nn.functional.linear(rows, weight, bias)
    flat = rows.reshape(-1, rows.shape[-1])
    out = flat.new_empty(len(flat), len(weight))
    for place, words in zip(out.split(TILE, 1), weight.split(TILE), strict=True):
        torch.mm(flat, words.t(), out=place)
    if bias is not None:
        out += bias
    return out.view(*rows.shape[:-1], -1)
