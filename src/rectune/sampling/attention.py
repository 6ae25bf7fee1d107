"""Attention of one new token per row over keys and values in slots, as a transformers attention function.

It is registered under `IMPLEMENTATION` and gets the step's `Plan` through the model's keyword arguments, so
that a model's own forward does everything else: positions, projections, norms, experts, head. A row attends
to its prompt (together with the prompt's other rows) and to its completion; the two results are joined by
their log-sum-exp, which is exact. Where keys and values lie is in `slots.py`.

Shapes: S slots, H key heads, G query heads per key head, D head width, R rows that share a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from rectune.errors import UserError
from rectune.sampling.slots import Pool

IMPLEMENTATION = "rectune_slots"


@dataclass
class Part:
    """Slots attended to in one call: which pool, how much of it, which rows of the batch ask."""

    pool: Pool
    rows: slice | Tensor  # rows of the batch; for prompts an index of all (prompt, row) pairs, padded
    used: int  # longest filled length
    first: Tensor  # position of the slots' first key in its sequence, one per slot
    filled: Tensor  # filled positions, one per slot
    query: Tensor  # positions of the asking tokens, slots x R
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype, groups: int) -> Tensor:
        """Additive mask, slots x 1 x R*G x used; the lowest finite number for -inf, so that no row is NaN."""
        if (window, dtype) not in self.masks:
            key = torch.arange(self.used, device=self.filled.device)
            seen = (key < self.filled[:, None])[:, None].expand(-1, self.query.shape[1], -1)
            if window is not None:
                seen = seen & (self.query[..., None] - self.first[:, None, None] - key < window)
            additive = torch.zeros(seen.shape, dtype=dtype, device=key.device)
            additive.masked_fill_(~seen, torch.finfo(dtype).min)
            self.masks[window, dtype] = additive.repeat_interleave(groups, 1)[:, None]
        return self.masks[window, dtype]


@dataclass
class Plan:
    """One decoding step, the same for all layers.

    Attributes:
        completions: One part per length class in use, in the order of the batch.
        columns: For each of these, the position at which the new token is stored, one per slot.
        prompts: One part per length class of prompts.
        back: For each row of the batch its place among all (prompt, row) pairs of the prompt parts.
    """

    completions: list[Part]
    columns: list[Tensor]
    prompts: list[Part]
    back: Tensor


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
    plan: Plan | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token per row over its prompt and completion; stores the token's key and value.

    Args:
        query, key, value: Rows x heads x 1 x D, as transformers hands them to an attention function.

    Returns:
        Rows x 1 x heads x D, and None in place of the weights.

    Raises:
        UserError: The model's attention has a feature (sinks, position bias) that is not computed here.
    """
    extra = sorted(k for k in ("s_aux", "position_bias", "cache") if unknown.get(k) is not None)
    if plan is None or extra or query.shape[2] != 1:
        raise UserError(
            f"the local engine cannot run {type(module).__name__} ({', '.join(extra) or 'no plan'})",
            hint="serve the model and use --engine server",
        )
    rows, width = query.shape[0], value.shape[-1]
    query = query.view(rows, key.shape[1], -1, query.shape[-1])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    own, own_lse = [], []
    for part, column in zip(plan.completions, plan.columns, strict=True):
        keys, values = part.pool.layers[module.layer_idx]  # type: ignore[index]
        slot = torch.arange(len(column), device=column.device)
        keys[slot, :, column] = key[part.rows, :, 0]
        values[slot, :, column] = value[part.rows, :, 0]
        out, lse = _part(part, keys, values, query[part.rows], scale, softcap, sliding_window)
        own.append(out)
        own_lse.append(lse)
    shared, shared_lse = [], []
    for part in plan.prompts:
        keys, values = part.pool.layers[module.layer_idx]  # type: ignore[index]
        slots, asking = part.query.shape
        q = query[part.rows].view(slots, asking, *query.shape[1:]).transpose(1, 2).flatten(2, 3)
        out, lse = _part(part, keys, values, q, scale, softcap, sliding_window)
        shape = (slots, key.shape[1], asking, -1)
        shared.append(out.reshape(*shape, width).transpose(1, 2).flatten(0, 1))
        shared_lse.append(lse.reshape(shape).transpose(1, 2).flatten(0, 1))
    out, lse = _cat(own), _cat(own_lse)
    far, far_lse = _cat(shared)[plan.back], _cat(shared_lse)[plan.back]
    share = torch.sigmoid(far_lse - lse).unsqueeze(-1)
    joined = torch.lerp(out.to(share.dtype), far.to(share.dtype), share).to(query.dtype)
    return joined.reshape(rows, 1, -1, width), None


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _part(
    part: Part,
    keys: Tensor,
    values: Tensor,
    q: Tensor,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Attention of q (slots x H x R*G x D) over one part, and its log-sum-exp (slots x H x R*G)."""
    slots = len(part.filled)
    keys, values = keys[:slots, :, : part.used], values[:slots, :, : part.used]
    mask = part.mask(window, q.dtype, q.shape[2] // part.query.shape[1])
    if q.device.type == "cpu" and softcap is None and q.shape[-1] == values.shape[-1]:
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return op(q, keys, values, attn_mask=mask, scale=scale)
    scores = (q @ keys.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp().to(values.dtype) @ values, lse


AttentionInterface.register(IMPLEMENTATION, attend)
