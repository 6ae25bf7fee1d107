"""What a model computes for a row of a pack must not depend on the other rows: attention and rotary frequencies.

`attend_rows` is causal attention within each row, registered with transformers under `NAME`. The rows are attended one
by one, so nothing is computed and then masked: exact, and on a CPU 1.5 times as fast as one dense mask over the pack.
On a GPU in 16 bits one kernel attends them all. Calls without `row_lengths` (generation) are transformers' own `sdpa`.
With flash attention models use transformers' variable-length path instead (`scorer.py`).

`choose_per_row` is for LongRoPE (Phi-3) and dynamic NTK scaling, which take other frequencies beyond the length of
pre-training. transformers decides by the longest row of a batch, which would change what a shorter row computes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from itertools import accumulate
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rectune.errors import UserError

NAME = "rectune_rows"

_SHORT = 256  # tokens up to which a bfloat16 row on a CPU is attended by plain products

# Keyword arguments of models that do not change attention; any other would be ignored, so it is refused.
_HARMLESS = {"position_ids", "position_embeddings", "cache_position", "use_cache", "output_attentions"}


def attend_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: list[int] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: (1, heads, T, d) to (1, T, heads, d).

    Args:
        row_lengths: Tokens of each row of the pack; None means an ordinary batch.

    Raises:
        UserError: The model passes an argument that is not implemented here.
    """
    if row_lengths is None and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask,
            dropout=dropout, scaling=scaling, is_causal=is_causal, sliding_window=sliding_window, **others,
        )  # fmt: skip
    if row_lengths is None:
        capped = _attend_capped(query, key, value, dropout, scaling, attention_mask, softcap)
        return capped.transpose(1, 2).contiguous(), None
    unknown = {k for k, v in others.items() if v is not None and v is not False} - _HARMLESS
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if unknown or not causal:
        what = f"arguments {', '.join(sorted(unknown))}" if unknown else "attention that is not causal"
        raise UserError(f"{type(module).__name__} uses {what}, which packed rows do not support")
    if _one_kernel(query, value, dropout, softcap):
        return _attend_together(query, key, value, row_lengths, scaling, sliding_window), None
    # split, not slices: the gradient of a split is one concatenation, that of a slice is as large as the pack
    rows = zip(*(t.split(row_lengths, dim=2) for t in (query, key, value)), strict=True)
    attended = [_attend(q, k, v, dropout, scaling, sliding_window, softcap) for q, k, v in rows]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _one_kernel(query: Tensor, value: Tensor, dropout: float, softcap: float | None) -> bool:
    """Whether torch has a kernel for rows of any length in one call."""
    if query.dtype not in (torch.bfloat16, torch.float16) or query.device.type != "cuda":
        return False
    plain = softcap is None and not dropout
    width = query.shape[-1]
    fits = value.shape[-1] == width <= 256 and width % 8 == 0
    return plain and fits and _varlen(query.device) is not None


@lru_cache
def _varlen(device: torch.device) -> Callable[..., Any] | None:
    """torch's flash attention over rows of any length; since torch 2.11, and for GPUs since Ampere."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = set(signature(varlen_attn).parameters)
    if not {"window_size", "scale"} <= known or torch.cuda.get_device_capability(device) < (8, 0):
        return None

    def attend(query: Tensor, key: Tensor, value: Tensor, *others: Any, **settings: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and "enable_gqa" in known:
            settings["enable_gqa"] = True
        elif groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return varlen_attn(query, key, value, *others, **settings)

    return attend


def _attend_together(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_lengths: list[int],
    scaling: float | None,
    window: int | None,
) -> Tensor:
    attend = _varlen(query.device)
    assert attend is not None
    ends, longest = _ends(tuple(row_lengths), query.device), max(row_lengths)
    out: Tensor = attend(
        *(t[0].transpose(0, 1) for t in (query, key, value)), ends, ends, longest, longest,
        scale=scaling, window_size=(-1 if window is None else window - 1, 0),
    )  # fmt: skip
    return out[None]


@lru_cache(maxsize=2)
def _ends(row_lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where rows begin and end in their pack; the same for all layers."""
    with torch.inference_mode(False):  # the cached tensor may be used in training next
        return torch.tensor([0, *accumulate(row_lengths)], dtype=torch.int32, device=device)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    length = query.shape[2]
    mask = None if window is None or length <= window else _band(length, window, query.device)
    if softcap is not None:
        return _attend_capped(query, key, value, dropout, scaling, mask, softcap)
    short = length <= _SHORT and query.device.type == "cpu" and query.dtype == torch.bfloat16
    if short and mask is None and not dropout:
        return _attend_short(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def _attend_short(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Softmax of a product, written out: forward and backward take a third of torch's CPU flash kernel's time."""
    _, heads, length, width = query.shape
    groups = heads // key.shape[1]
    stacked = (query * scaling).reshape(key.shape[1], groups * length, width)
    bias = _causal_bias(length, groups, query.dtype).expand(key.shape[1], -1, -1)
    weights = torch.baddbmm(bias, stacked, key[0].mT).softmax(-1)
    return (weights @ value[0]).view(1, heads, length, value.shape[-1])


def _attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    mask: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """Gemma 2's soft-capped scores, which `scaled_dot_product_attention` does not know. No mask means causal."""
    assert softcap is not None
    length = query.shape[2]
    if mask is None and length > 1:
        mask = _band(length, None, query.device)
        key, value = key[:, :, :length], value[:, :, :length]  # the rest of a static cache is empty
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        # Not -inf: a padding position sees nothing at all, and its NaN would spread to every layer above.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return nn.functional.dropout(weights, dropout) @ value


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length) bool: causal, and at most `window` tokens back, the own one included."""
    return _square_band(1 << (length - 1).bit_length(), window, device)[:length, :length]


@lru_cache(maxsize=8)
def _square_band(size: int, window: int | None, device: torch.device) -> Tensor:
    """Kept for few sizes only: one for each length of a row would add up to gigabytes."""
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    return causal if window is None else causal.triu(1 - window)


@lru_cache(maxsize=256)
def _causal_bias(length: int, groups: int, dtype: torch.dtype) -> Tensor:
    """(groups * length, length): 0 where attention is allowed, -inf elsewhere, for heads stacked on one key."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1).repeat(groups, 1)


def choose_per_row(model: nn.Module) -> None:
    """Make rotary embeddings whose frequencies depend on the length choose them by row; others are unchanged."""
    for module in model.modules():
        if original_lengths(module) and "forward" not in vars(module):
            # a method of the module, not a closure: a copy of the module gets its own
            module.forward = MethodType(_rotary_forward, module)


def original_lengths(module: nn.Module) -> dict[str | None, tuple[str, int]]:
    """Rope type, and the length beyond which frequencies change, of each layer type; None for all layers.

    Empty for a module whose frequencies are always the same, and for what is no rotary embedding.
    """
    types = getattr(module, "rope_type", None)
    by_layer: dict[str | None, Any] = types if isinstance(types, dict) else {None: types}
    lengths: dict[str | None, tuple[str, int]] = {}
    for layer, kind in by_layer.items():
        original = None
        if kind == "longrope":
            parameters = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
            parameters = parameters if layer is None else parameters[layer]
            original = parameters.get("original_max_position_embeddings")
        elif isinstance(kind, str) and "dynamic" in kind:
            original = getattr(module, "original_max_seq_len", None)
        if original is not None:  # else it is a model's own code, which the scorer's check tests
            lengths[layer] = kind, int(original)
    return lengths


def _rotary_forward(self: nn.Module, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
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


AttentionInterface.register(NAME, attend_rows)
AttentionMaskInterface.register(NAME, sdpa_mask)
