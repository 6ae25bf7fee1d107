"""The fused implementation of the head: chunks of logits within a memory budget, and their gradient in place.

Public functions and the definition are in `__init__.py`, the passes over the elements of a chunk in
`logprobs/elementwise.py`. Here is what they say about each row, and the autograd function that keeps the last
chunk's logits and recomputes the others.

Shapes: N rows (tokens), D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rectune.logprobs.elementwise import (
    BLOCK,
    Shape,
    differences_,
    divergence,
    entropy20,
    run_pass,
    shaped_logits,
    softmax_,
    sums,
    wide,
)

_ALL = slice(None)
_SUMS = ("entropy", "log_sum_p2", "lower_mass")
"""Columns that come from a sum over the vocabulary: `elementwise.sums`."""


class _Outcome(NamedTuple):
    """What forward finds out about a chunk of rows; `state` is what backward needs besides the logits."""

    value: Tensor
    state: tuple[Tensor, ...]
    extras: tuple[Tensor, ...] = ()


@dataclass
class LogProbability:
    """log p of the target, and statistics of the distribution."""

    targets: Tensor
    shape: Shape
    names: tuple[str, ...]
    compiled: bool
    matrices = 1  # of logits per row

    @property
    def extra_names(self) -> tuple[str, ...]:
        return tuple(n for n in (*_SUMS, "entropy20", "top1") if n in self.names)

    def products(
        self, logits: Sequence[Tensor], hidden: Tensor, weight: Tensor, rows: slice, columns: slice = _ALL
    ) -> None:
        torch.mm(hidden, weight[columns].T, out=logits[0])

    def outcome(self, logits: Sequence[Tensor], bias: Tensor | None, rows: slice) -> _Outcome:
        (raw,) = logits
        target, names = self.targets[rows, None], tuple(n for n in _SUMS if n in self.names)
        maximum, total, *rest = run_pass(sums, (raw, target), bias, self.shape, names, compiled=self.compiled)
        found = dict(zip(names, rest, strict=True))
        at_target = shaped_logits(raw.gather(1, target), None if bias is None else bias[target], self.shape)
        logit, slope = at_target
        shifted = logit.squeeze(1) - maximum
        extras = {"top1": shifted >= 0}
        if "entropy" in found:
            extras["entropy"] = total.log() - found["entropy"] / total
        if "log_sum_p2" in found:
            extras["log_sum_p2"] = found["log_sum_p2"].log() - 2 * total.log()
        if "lower_mass" in found:
            extras["lower_mass"] = found["lower_mass"] / total
        if "entropy20" in self.names:
            extras["entropy20"] = entropy20(raw, bias, self.shape)
        logp = shifted - total.log()
        step = logp.expm1().neg()  # d logp / d logit at the target
        step = step if slope is None else step * slope.squeeze(1)
        return _Outcome(logp, (maximum + total.log(), step), tuple(extras[n] for n in self.extra_names))

    def gradient_(
        self,
        logits: Sequence[Tensor],
        bias: Tensor | None,
        rows: slice,
        state: tuple[Tensor, ...],
        upstream: Tensor,
        columns: slice = _ALL,
    ) -> None:
        """Overwrites logits[0], some columns of the vocabulary, with upstream * d value / d raw product."""
        (raw,) = logits
        lse, step = state
        factor = upstream * self.shape.scale
        bias = None if bias is None else bias[columns]
        run_pass(softmax_, (raw, lse, -factor), bias, self.shape, compiled=self.compiled)
        place = self.targets[rows] - (columns.start or 0)
        inside = place.clamp(0, raw.shape[1] - 1)
        every = torch.arange(len(place), device=place.device)
        value = (step * factor).to(raw.dtype)
        # not scatter_, which on a CPU makes a float32 copy of all bfloat16 logits; no mask, which a GPU would wait for
        raw[every, inside] = torch.where(place == inside, value, raw[every, inside])


@dataclass
class Divergence:
    """KL(reference || model) over the whole vocabulary."""

    ref_hidden: Tensor
    ref_weight: Tensor
    ref_bias: Tensor | None
    shape: Shape
    compiled: bool
    matrices = 2

    def products(
        self, logits: Sequence[Tensor], hidden: Tensor, weight: Tensor, rows: slice, columns: slice = _ALL
    ) -> None:
        torch.mm(hidden, weight[columns].T, out=logits[0])
        torch.mm(self.ref_hidden[rows], self.ref_weight[columns].T, out=logits[1])

    def outcome(self, logits: Sequence[Tensor], bias: Tensor | None, rows: slice) -> _Outcome:
        parts: list[Tensor] = []
        no_target = self.ref_hidden.new_zeros(logits[0].shape[0], 1, dtype=torch.int64)
        for raw, b in zip(logits, (bias, self.ref_bias), strict=True):
            maximum, total = run_pass(sums, (raw, no_target), b, self.shape, (), compiled=self.compiled)
            parts += [maximum, total.log()]
        kl = run_pass(divergence, (*logits, *parts), bias, self.ref_bias, self.shape, compiled=self.compiled)
        return _Outcome(kl, (parts[0] + parts[1], parts[2] + parts[3]))

    def gradient_(
        self,
        logits: Sequence[Tensor],
        bias: Tensor | None,
        rows: slice,
        state: tuple[Tensor, ...],
        upstream: Tensor,
        columns: slice = _ALL,
    ) -> None:
        per_row = (*logits, *state, upstream * self.shape.scale)
        biases = (None if b is None else b[columns] for b in (bias, self.ref_bias))
        run_pass(differences_, per_row, *biases, self.shape, compiled=self.compiled)


# --- Chunks, memory, forward and backward ---------------------------------------------------------------

_spare: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _take_buffer(like: Tensor, elements: int) -> Tensor:
    """Memory for logits. A CPU keeps one buffer: touching fresh pages takes longer than the product itself."""
    spare = _spare.pop((like.device, like.dtype), None)
    if spare is not None and spare.numel() >= elements:
        return spare
    return torch.empty(elements, dtype=like.dtype, device=like.device)


def _give_buffer(buffer: Tensor) -> None:
    if buffer.device.type == "cpu" and not buffer.is_inference():  # those cannot be written to in training
        _spare[buffer.device, buffer.dtype] = buffer


def _chunks(rows: int, fit: int) -> list[slice]:
    """All rows by chunks of at most `fit`. The last one is full if any is, since it is the one that is kept."""
    starts = [0, *range(rows % fit or fit, rows, fit)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], rows], strict=True)]


class _Plan(NamedTuple):
    """Chunks of rows, and the width of the tiles by which two chunks are gone through together; 0: one by one."""

    chunks: list[slice]
    tile: int
    elements: int  # of the buffer


def _plan(rows: int, width: int, itemsize: int, matrices: int, budget: int) -> _Plan:
    """How to stay within `budget` bytes, which hold one row of `width` logits at least."""
    fit = budget // (width * itemsize * matrices)
    kept = (budget - budget // 8) // (width * itemsize * matrices)
    tile = budget // 8 // (itemsize * (rows + (matrices - 1) * max(0, rows - kept))) if rows else 0
    if rows > fit and rows <= 2 * kept and tile:
        tile = min(tile, width)
        elements = matrices * kept * width + (rows + (matrices - 1) * (rows - kept)) * tile
        return _Plan([slice(0, rows - kept), slice(rows - kept, rows)], tile, elements)
    return _Plan(_chunks(rows, fit), 0, matrices * min(fit, rows) * width)


def run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, task: LogProbability | Divergence, budget: int
) -> tuple[Tensor, ...]:
    """The task's value and extras, each (N,), with logits of at most `budget` bytes, which holds one row at least."""
    plan = _plan(hidden.shape[0], weight.shape[0], hidden.element_size(), task.matrices, budget)
    result: tuple[Tensor, ...] = _Head.apply(hidden, weight, bias, task, plan)  # type: ignore[no-untyped-call]
    return result


class _Head(torch.autograd.Function):
    """Chunk by chunk: products, outcome; backward from the last chunk, whose logits are still there, to the first."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        task: LogProbability | Divergence,
        plan: _Plan,
    ) -> tuple[Tensor, ...]:
        ctx.task, ctx.plan = task, plan
        buffer = _take_buffer(hidden, plan.elements)
        outcomes = []
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in plan.chunks:
                logits = _view(buffer, task.matrices, rows, weight.shape[0])
                task.products(logits, hidden[rows], weight, rows)
                outcomes.append(task.outcome(logits, bias, rows))
        ctx.states = [outcome.state for outcome in outcomes]
        ctx.kept = buffer if any(ctx.needs_input_grad) else None
        if ctx.kept is None:
            _give_buffer(buffer)
        ctx.save_for_backward(hidden, weight, bias)
        value = torch.cat([outcome.value for outcome in outcomes])
        extras = [torch.cat(parts) for parts in zip(*(outcome.extras for outcome in outcomes), strict=True)]
        ctx.mark_non_differentiable(*extras)
        return (value, *extras)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        task, plan = ctx.task, ctx.plan
        sums = _Gradients(ctx.needs_input_grad, hidden, weight, len(plan.chunks) == 1 or plan.tile > 0)
        buffer, ctx.kept = ctx.kept, None  # a second backward (retain_graph) recomputes every chunk
        kept = buffer is not None
        if not kept:
            buffer = _take_buffer(hidden, plan.elements)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, state in zip(reversed(plan.chunks), reversed(ctx.states), strict=True):
                logits = _view(buffer, task.matrices, rows, weight.shape[0])
                if not kept:
                    task.products(logits, hidden[rows], weight, rows)
                kept = False
                task.gradient_(logits, bias, rows, state, upstream[rows])
                sums.of_hidden(logits[0], weight, rows)
                if plan.tile:
                    _together(task, plan, buffer, hidden, weight, bias, ctx.states[0], upstream, sums)
                    sums.of_hidden(logits[0][: plan.chunks[0].stop], weight, plan.chunks[0])
                    break
                sums.of_weight(logits[0], hidden[rows])
        _give_buffer(buffer)
        return *sums.results(bias), None, None


def _together(
    task: LogProbability | Divergence,
    plan: _Plan,
    buffer: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: tuple[Tensor, ...],
    upstream: Tensor,
    sums: _Gradients,
) -> None:
    """Weight gradient of two chunks, of which the second is in the buffer, by tiles of the vocabulary.

    Each tile holds the gradients of all rows, so that one product sums over them and nothing is rounded twice. The
    kept columns are done with after their tile; the first chunk's take their place, for its hidden states.
    """
    first, second = plan.chunks
    width, n = weight.shape[0], first.stop
    kept = _view(buffer, task.matrices, second, width)[0]
    scratch = buffer[task.matrices * kept.numel() :]
    for start in range(0, width, plan.tile):
        columns = slice(start, min(start + plan.tile, width))
        size = columns.stop - start
        both = scratch[: hidden.shape[0] * size].view(-1, size)
        logits = [both[:n]]
        if task.matrices == 2:
            logits.append(scratch[both.numel() :][: n * size].view(-1, size))
        task.products(logits, hidden[first], weight, first, columns)
        task.gradient_(logits, bias, first, state, upstream[first], columns)
        both[n:] = kept[:, columns]
        kept[:n, columns] = both[:n]
        sums.of_weight(both, hidden, columns)


def _view(buffer: Tensor, matrices: int, rows: slice, width: int) -> tuple[Tensor, ...]:
    """The chunk's matrices of logits within the buffer, each (rows, V)."""
    shape = (matrices, rows.stop - rows.start, width)
    return buffer[: math.prod(shape)].view(shape).unbind()


class _Gradients:
    """Gradients of hidden states, weight and bias from chunks of G, as far as they are needed.

    The weight's is one product where every element gets all of its rows at once (`whole`), else a float32 sum.
    """

    def __init__(self, needs: Sequence[bool], hidden: Tensor, weight: Tensor, whole: bool) -> None:
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        self.weight: Tensor | None = None
        if needs[1]:
            self.weight = (
                torch.empty_like(weight) if whole else torch.zeros_like(weight, dtype=wide(weight.dtype))
            )
        self.bias = weight.new_zeros(weight.shape[0], dtype=wide(weight.dtype)) if needs[2] else None
        self.whole, self.dtype = whole, weight.dtype

    def of_hidden(self, gradient: Tensor, weight: Tensor, rows: slice) -> None:
        if self.hidden is not None:
            torch.mm(gradient, weight, out=self.hidden[rows])

    def of_weight(self, gradient: Tensor, hidden: Tensor, columns: slice = _ALL) -> None:
        """Also the bias's. `columns` of the vocabulary that `gradient` is of."""
        rows = max(1, hidden.shape[0])
        if self.bias is not None:
            part = self.bias[columns]
            for tile in _chunks(gradient.shape[1], BLOCK // rows + 1):
                part[tile] += gradient[:, tile].sum(0, dtype=part.dtype)
        if self.weight is None:
            return
        total = self.weight[columns]
        if self.whole:
            torch.mm(gradient.T, hidden, out=total)
        elif total.dtype == hidden.dtype:
            total.addmm_(gradient.T, hidden)
        elif total.device.type != "cpu":
            torch.addmm(total, gradient.T, hidden, out_dtype=total.dtype, out=total)
        else:
            for tile in _chunks(gradient.shape[1], max(1, 2 * BLOCK // rows)):
                _add_product(total[tile], gradient[:, tile].T, hidden)

    def results(self, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight = None if self.weight is None else self.weight.to(self.dtype)
        return self.hidden, weight, None if self.bias is None or bias is None else self.bias.to(bias.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b for bfloat16 a and b without rounding the product to bfloat16, on a CPU.

    It has no such product by name, but its float32 product may compute in bfloat16, which is exact here.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        total.addmm_(a.float(), b.float())
    finally:
        settings.fp32_precision = before
