"""Element-wise passes over a chunk of logits, in float32: compiled where a compiler works, else in plain torch.

What the passes are for is in `logprobs/fused.py`. A name that ends in _ overwrites its first argument. Every
pass returns one tensor per row or several.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LOG2E = 1 / math.log(2)
BLOCK = 1 << 20  # elements of a tile of the vocabulary where sums go over tiles
_PLAIN_BLOCK = 1 << 18  # elements that plain torch handles at a time: its temporaries stay in a CPU's cache
_PLAIN_BLOCK_OF_GPU = 1 << 20  # fewer keep it waiting for the next launch
_COMPILE_FROM = 1 << 22  # elements from which a compiled kernel earns its compilation

log = logging.getLogger("rectune")


class Shape(NamedTuple):
    """What happens to the product of hidden state and weight before the softmax."""

    softcap: float | None
    scale: float


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def shaped_logits(raw: Tensor, bias: Tensor | None, shape: Shape) -> tuple[Tensor, Tensor | None]:
    """Logits in float32 from the raw product, and their slope d logits / d (scale * raw) where it is not 1."""
    x = raw.to(wide(raw.dtype))
    if bias is not None:
        x = x + bias
    x = x * shape.scale
    if shape.softcap is None:
        return x, None
    t = (x / shape.softcap).tanh()
    return t * shape.softcap, 1 - t * t


def entropy_of(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def sums(
    raw: Tensor, target: Tensor, bias: Tensor | None, shape: Shape, names: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """Maximum m of each row, sum of exp(x - m), and sums for the columns of `names`, in this order.

    entropy: of exp(x - m) * (x - m); log_sum_p2: of exp(x - m)^2; lower_mass: of exp(x - m) where x is at most that of
    `target` (rows, 1), whose x is computed here too, since another kernel may round it otherwise.
    exp2 rather than exp: the compiled kernel takes half the time with it.
    """
    x, _ = shaped_logits(raw, bias, shape)
    maximum = x.amax(1)
    y = (x - maximum[:, None]) * _LOG2E
    e = y.exp2()
    found = [maximum, e.sum(1)]
    for name in names:
        if name == "entropy":
            found.append((e * y).sum(1) / _LOG2E)
        elif name == "log_sum_p2":
            found.append((e * e).sum(1))
        elif name == "lower_mass":
            found.append(torch.where(x <= x.gather(1, target), e, 0.0).sum(1))
    return tuple(found)


def softmax_(raw: Tensor, lse: Tensor, factor: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
    """Overwrites `raw` with factor * softmax * slope; returns `lse` (every pass returns a tensor per row)."""
    x, slope = shaped_logits(raw, bias, shape)
    p = ((x - lse[:, None]) * _LOG2E).exp2() * factor[:, None]
    raw.copy_(p if slope is None else p * slope)
    return lse


def divergence(
    raw: Tensor,
    ref: Tensor,
    maximum: Tensor,
    log_total: Tensor,
    ref_maximum: Tensor,
    ref_log_total: Tensor,
    bias: Tensor | None,
    ref_bias: Tensor | None,
    shape: Shape,
) -> Tensor:
    """KL(reference || model) of each row, from each side's maximum and log of the sum of exp(x - maximum)."""
    logp = shaped_logits(raw, bias, shape)[0] - maximum[:, None] - log_total[:, None]
    ref_logp = shaped_logits(ref, ref_bias, shape)[0] - ref_maximum[:, None] - ref_log_total[:, None]
    return (ref_logp.exp() * (ref_logp - logp)).sum(1)


def differences_(
    raw: Tensor,
    ref: Tensor,
    lse: Tensor,
    ref_lse: Tensor,
    factor: Tensor,
    bias: Tensor | None,
    ref_bias: Tensor | None,
    shape: Shape,
) -> Tensor:
    """Overwrites `raw` with factor * (p - p_ref) * slope."""
    x, slope = shaped_logits(raw, bias, shape)
    r, _ = shaped_logits(ref, ref_bias, shape)
    difference = ((x - lse[:, None]).exp() - (r - ref_lse[:, None]).exp()) * factor[:, None]
    raw.copy_(difference if slope is None else difference * slope)
    return lse


@lru_cache
def _can_compile(device: str) -> bool:
    """Whether torch.compile works here, found out once by trying; the answer is said in the log."""
    try:
        torch.compile(torch.exp2)(torch.ones(8, device=device))
    except torch._dynamo.exc.BackendCompilerFailed as error:
        reason = str(error.inner_exception).strip().splitlines()[0]
        log.warning("no working compiler for %s (%s): the head runs in plain torch, slower", device, reason)
        return False
    return True


_compiled = lru_cache(partial(torch.compile, dynamic=True))


def run_pass(
    function: Callable[..., Any], per_row: tuple[Tensor, ...], *settings: Any, compiled: bool
) -> Any:
    """Runs an element-wise pass: compiled in one go, or in plain torch by blocks of rows that stay in the cache."""
    logits = per_row[0]
    if compiled and logits.numel() >= _COMPILE_FROM and _can_compile(logits.device.type):
        return _compiled(function)(*per_row, *settings)
    block = _PLAIN_BLOCK if logits.device.type == "cpu" else _PLAIN_BLOCK_OF_GPU
    step = max(1, block // logits.shape[1])
    results = [function(*block, *settings) for block in zip(*(t.split(step) for t in per_row), strict=True)]
    if isinstance(results[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
    return torch.cat(results)


def entropy20(raw: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
    """Entropy over the twenty likeliest tokens of each row."""
    if bias is None and shape.scale > 0:  # the shape keeps their order, so that no others have to be shaped
        return entropy_of(shaped_logits(_largest(raw), None, shape)[0])
    return run_pass(_entropy20, (raw,), bias, shape, compiled=False)  # type: ignore[no-any-return]


def _entropy20(raw: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
    return entropy_of(_largest(shaped_logits(raw, bias, shape)[0]))


def _largest(logits: Tensor) -> Tensor:
    return logits.topk(min(20, logits.shape[1])).values
