"""The fused implementation of the head: chunks of logits within a memory budget, and their gradient in place.

Public functions and the definition are in `logprobs.py`, the passes over the elements of a chunk in `elementwise.py`.
Here is what they say about each row, and the autograd function that keeps the last chunk's logits and
recomputes the others.

Shapes: N rows (tokens), D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rectune.elementwise import (
    BLOCK,
    Shape,
    differences_,
    divergence,
    entropy20_of,
    run_pass,
    shaped_logits,
    softmax_,
    sums,
    wide,
)


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
        return tuple(n for n in ("entropy", "entropy20", "top1") if n in self.names)

    def products(self, logits: Tensor, hidden: Tensor, weight: Tensor, rows: slice) -> None:
        torch.mm(hidden, weight.T, out=logits[0])

    def _at_target(
        self, raw: Tensor, bias: Tensor | None, rows: slice
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        target = self.targets[rows, None]
        logit, slope = shaped_logits(
            raw.gather(1, target), None if bias is None else bias[target], self.shape
        )
        return target, logit, slope

    def outcome(self, logits: Tensor, bias: Tensor | None, rows: slice) -> _Outcome:
        (raw,) = logits
        arguments = (bias, self.shape, "entropy" in self.names)
        maximum, total, weighted = run_pass(sums, (raw,), *arguments, compiled=self.compiled)
        shifted = self._at_target(raw, bias, rows)[1].squeeze(1) - maximum
        extras = {"entropy": total.log() - weighted / total, "top1": shifted >= 0}
        if "entropy20" in self.names:
            extras["entropy20"] = run_pass(entropy20_of, (raw,), bias, self.shape, compiled=False)
        logp = shifted - total.log()
        return _Outcome(logp, (maximum + total.log(), logp), tuple(extras[n] for n in self.extra_names))

    def gradient_(
        self, logits: Tensor, bias: Tensor | None, rows: slice, state: tuple[Tensor, ...], upstream: Tensor
    ) -> None:
        """Overwrites logits[0] with upstream * d value / d raw product."""
        (raw,) = logits
        lse, logp = state
        factor = upstream * self.shape.scale
        target, _, slope = self._at_target(raw, bias, rows)
        at_target = -logp.expm1() * factor
        run_pass(softmax_, (raw, lse, -factor), bias, self.shape, compiled=self.compiled)
        at_target = at_target if slope is None else at_target * slope.squeeze(1)
        # not scatter_, which on a CPU makes a float32 copy of all bfloat16 logits
        raw[torch.arange(len(raw), device=raw.device), target.squeeze(1)] = at_target.to(raw.dtype)


@dataclass
class Divergence:
    """KL(reference || model) over the whole vocabulary."""

    ref_hidden: Tensor
    ref_weight: Tensor
    ref_bias: Tensor | None
    shape: Shape
    compiled: bool
    matrices = 2

    def products(self, logits: Tensor, hidden: Tensor, weight: Tensor, rows: slice) -> None:
        torch.mm(hidden, weight.T, out=logits[0])
        torch.mm(self.ref_hidden[rows], self.ref_weight.T, out=logits[1])

    def outcome(self, logits: Tensor, bias: Tensor | None, rows: slice) -> _Outcome:
        parts: list[Tensor] = []
        for raw, b in zip(logits, (bias, self.ref_bias), strict=True):
            maximum, total, _ = run_pass(sums, (raw,), b, self.shape, False, compiled=self.compiled)
            parts += [maximum, total.log()]
        kl = run_pass(divergence, (*logits, *parts), bias, self.ref_bias, self.shape, compiled=self.compiled)
        return _Outcome(kl, (parts[0] + parts[1], parts[2] + parts[3]))

    def gradient_(
        self, logits: Tensor, bias: Tensor | None, rows: slice, state: tuple[Tensor, ...], upstream: Tensor
    ) -> None:
        per_row = (*logits, *state, upstream * self.shape.scale)
        run_pass(differences_, per_row, bias, self.ref_bias, self.shape, compiled=self.compiled)


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


def run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, task: LogProbability | Divergence, budget: int
) -> tuple[Tensor, ...]:
    """The task's value and extras, each (N,), with logits of at most `budget` bytes, which holds one row at least."""
    row_bytes = weight.shape[0] * hidden.element_size() * task.matrices
    result: tuple[Tensor, ...] = _Head.apply(hidden, weight, bias, task, budget // row_bytes)
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
        fit: int,
    ) -> tuple[Tensor, ...]:
        ctx.task, ctx.chunks = task, _chunks(hidden.shape[0], fit)
        ctx.elements = task.matrices * min(fit, hidden.shape[0]) * weight.shape[0]
        buffer = _take_buffer(hidden, ctx.elements)
        outcomes = []
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in ctx.chunks:
                logits = _view(buffer, task, rows, weight)
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
        task, needs = ctx.task, ctx.needs_input_grad
        dhidden = torch.empty_like(hidden) if needs[0] else None
        dweight = _WeightGradient(weight, len(ctx.chunks)) if needs[1] else None
        dbias = upstream.new_zeros(weight.shape[0]) if needs[2] else None
        buffer, ctx.kept = ctx.kept, None  # a second backward (retain_graph) recomputes every chunk
        kept = buffer is not None
        if not kept:
            buffer = _take_buffer(hidden, ctx.elements)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, state in zip(reversed(ctx.chunks), reversed(ctx.states), strict=True):
                logits = _view(buffer, task, rows, weight)
                if not kept:
                    task.products(logits, hidden[rows], weight, rows)
                kept = False
                task.gradient_(logits, bias, rows, state, upstream[rows])
                if dhidden is not None:
                    torch.mm(logits[0], weight, out=dhidden[rows])
                if dweight is not None:
                    dweight.add(logits[0], hidden[rows])
                if dbias is not None:
                    for columns in _chunks(weight.shape[0], BLOCK // (1 + rows.stop - rows.start) + 1):
                        dbias[columns] += logits[0][:, columns].sum(0, dtype=dbias.dtype)
        _give_buffer(buffer)
        dbias = None if dbias is None else dbias.to(bias.dtype)
        return dhidden, None if dweight is None else dweight.result(), dbias, None, None


def _view(buffer: Tensor, task: LogProbability | Divergence, rows: slice, weight: Tensor) -> Tensor:
    """The chunk's logits within the buffer: (matrices, rows, V)."""
    shape = (task.matrices, rows.stop - rows.start, weight.shape[0])
    return buffer[: math.prod(shape)].view(shape)


class _WeightGradient:
    """Sum over chunks of G.T @ h: one product for one chunk, a float32 sum by tiles of the vocabulary for several."""

    def __init__(self, weight: Tensor, chunks: int) -> None:
        self.single = chunks == 1
        self.dtype = weight.dtype
        self.total = torch.zeros_like(weight, dtype=weight.dtype if self.single else wide(weight.dtype))

    def add(self, gradient: Tensor, hidden: Tensor) -> None:
        if self.single:
            torch.mm(gradient.T, hidden, out=self.total)
        elif self.total.dtype == hidden.dtype:
            self.total.addmm_(gradient.T, hidden)
        else:
            for columns in _chunks(gradient.shape[1], max(1, BLOCK // hidden.shape[0])):
                _add_product(self.total[columns], gradient[:, columns].T, hidden)

    def result(self) -> Tensor:
        return self.total.to(self.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b for bfloat16 a and b without rounding the product to bfloat16.

    The CPU has no such product by name, but its float32 product may compute in bfloat16, which is exact here.
    """
    if total.device.type != "cpu":
        total += torch.mm(a, b, out_dtype=torch.float32)
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        total.addmm_(a.float(), b.float())
    finally:
        settings.fp32_precision = before
