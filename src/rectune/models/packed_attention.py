"""Causal attention within each row of a packed sequence, registered with transformers under a name.

The rows of a pack are attended one by one, so nothing is masked away that was computed: exact, and on a CPU
half again as fast as one dense mask over the pack. On a GPU in 16 bits one kernel attends them all. Calls without
`row_lengths` (generation) are transformers' own `sdpa`. With flash attention models keep transformers' variable-length
path instead; see `scorer.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rectune.errors import UserError

NAME = "rectune_rows"

_SHORT = 256  # tokens up to which a bfloat16 row on a CPU is attended by plain products

# What models hand to their attention besides the usual; anything else would be ignored, so it is refused.
_HARMLESS = {"position_ids", "position_embeddings", "cache_position", "use_cache", "output_attentions"}


def attend_rows(
    module: torch.nn.Module,
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
        UserError: The model wants something of its attention that is not known here.
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
    if _together(query, value, dropout, softcap):
        return _attend_together(query, key, value, row_lengths, scaling, sliding_window), None
    # split, not slices: the gradient of a split is one concatenation, that of a slice is as large as the pack
    rows = zip(*(t.split(row_lengths, dim=2) for t in (query, key, value)), strict=True)
    attended = [_attend(q, k, v, dropout, scaling, sliding_window, softcap) for q, k, v in rows]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _together(query: Tensor, value: Tensor, dropout: float, softcap: float | None) -> bool:
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
    """Where rows begin and end in their pack; all layers ask for the same."""
    with torch.inference_mode(False):  # training may be next to ask
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
    return torch.nn.functional.dropout(weights, dropout) @ value


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


AttentionInterface.register(NAME, attend_rows)
AttentionMaskInterface.register(NAME, sdpa_mask)
