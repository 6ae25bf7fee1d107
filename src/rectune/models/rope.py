"""Rotary embeddings whose frequencies depend on a sequence's length choose them for each row by itself.

LongRoPE (Phi-3) and dynamic NTK scaling take other frequencies beyond the length that the model was pre-trained at.
transformers decides by the longest row of a batch, so that a row would be computed otherwise beside a longer one.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rectune.errors import UserError


def choose_per_row(model: nn.Module) -> None:
    """Make such rotary embeddings of a model decide by row; all others are left as they are."""
    for module in model.modules():
        if original_lengths(module) and "forward" not in vars(module):
            # a method of the module, not a closure: a copy of the module gets its own
            module.forward = MethodType(_forward, module)


def original_lengths(module: nn.Module) -> dict[str | None, tuple[str, int]]:
    """Rope type, and the length beyond which frequencies change, of each layer type; None for all layers.

    Empty for a module whose frequencies are always the same, and for what is no rotary embedding.
    """
    types = getattr(module, "rope_type", None)
    by_layer: dict[str | None, Any] = types if isinstance(types, dict) else {None: types}
    found: dict[str | None, tuple[str, int]] = {}
    for layer, kind in by_layer.items():
        original = None
        if kind == "longrope":
            parameters = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
            parameters = parameters if layer is None else parameters[layer]
            original = parameters.get("original_max_position_embeddings")
        elif isinstance(kind, str) and "dynamic" in kind:
            original = getattr(module, "original_max_seq_len", None)
        if original is not None:  # else it is code of a model's own, which the scorer's check judges
            found[layer] = kind, int(original)
    return found


def _forward(self: nn.Module, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
    """As the class's own `forward`, with each row's frequencies: those of its largest position.

    Args:
        position_ids: (B, T); within each line a row begins where the position is 0.
    """
    given = (layer_type,) * (layer_type is not None)
    own = type(self).forward
    if layer_type not in (known := original_lengths(self)):
        return own(self, x, position_ids, *given)
    kind, original = known[layer_type]
    if position_ids.dim() != 2:
        raise UserError(f"{type(self).__name__} ({kind}) takes positions in {position_ids.dim()} dimensions")
    longest = _longest(position_ids).clamp(min=original)
    if kind == "longrope":  # two sets of frequencies in all
        longest = longest.clamp(max=original + 1)
    lengths = longest.unique().tolist()
    made: list[Tensor] | None = None
    for length in lengths:
        own(self, x, position_ids.new_zeros(1, 1), *given)  # dynamic scaling would keep those of a longer row
        where = longest == length
        parts = own(self, x, position_ids if len(lengths) == 1 else position_ids[where][None], *given)
        if len(lengths) == 1:
            return parts
        parts = parts if isinstance(parts, tuple) else (parts,)
        made = made or [part.new_empty(*position_ids.shape, *part.shape[2:]) for part in parts]
        for whole, part in zip(made, parts, strict=True):
            whole[where] = part[0]
    assert made is not None
    return tuple(made) if len(made) > 1 else made[0]


def _longest(position_ids: Tensor) -> Tensor:
    """(B, T): for each position the length of its row."""
    starts = (position_ids == 0).to(torch.int64)
    starts[:, 0] = 1
    row = starts.flatten().cumsum(0) - 1
    lengths = position_ids.new_zeros(position_ids.numel())
    lengths.scatter_reduce_(0, row, position_ids.flatten() + 1, "amax")
    return lengths[row].view_as(position_ids)
