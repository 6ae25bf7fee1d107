"""The head: log-probabilities of target tokens without the N x V logits. It knows no objective.

The fast thing is defined by the slow thing; for every input

    token_logprobs(h_ND, w_VD, y_N)  ==  (h_ND @ w_VD.T).float().log_softmax(-1)[arange(N), y_N]

which ships as `implementation="dense"` and is what tests and benchmarks compare with. The fused version
goes through chunks of rows. Forward keeps the logits of as many rows as the memory budget holds, in the
dtype of `h_ND`, and only the log-sum-exp of the others. Backward overwrites kept logits with their gradient,
G = g * (onehot - softmax) for the upstream gradient g of each row, so that what remains is two products,

    dh = G @ w        dw = G.T @ h

which makes three with the forward one; rows that were not kept cost a fourth. Sums and statistics are
float32 (float64 inputs stay float64), and so is the weight's gradient across chunks.

Shapes: N supervised tokens, D width, V vocabulary, B rows, T positions. What is done with log-probabilities
is in `objectives.py`; which hidden states belong here is in `models/scorer.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rectune.errors import UserError, unknown_name

Implementation = Literal["fused", "plain", "dense"]

IGNORE = -100
MEMORY_BUDGET = 256 << 20
COLUMNS = ("logp", "entropy", "entropy20", "top1", "kl")

_LOG2E = 1 / math.log(2)
_BLOCK = 1 << 20  # elements that plain torch handles at a time, so that its temporaries stay in the cache
_COMPILE_FROM = 1 << 22  # elements from which a compiled kernel earns its compilation

log = logging.getLogger("rectune")


def supervised_positions(labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The label shift, written here and nowhere else: position t predicts label t + 1.

    Args:
        labels_BT: int64, -100 where a token is no target.

    Returns:
        `index_N`, positions in the flattened (B * T) sequence whose hidden state predicts a target, and `targets_N`.
    """
    shifted = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORE).flatten()
    index_N = (shifted != IGNORE).nonzero().squeeze(1)
    return index_N, shifted[index_N]


def token_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    implementation: Implementation = "fused",
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Log-probability of each target: shape (N,), float32 (float64 for float64 inputs).

    Differentiable in hidden states, weight and bias, with any upstream gradient per token.

    Args:
        hidden_ND: Last hidden states at supervised positions; bfloat16, float32 or float64.
        weight_VD: Weight of the head, converted to the dtype of `hidden_ND` where it differs (autocast).
        targets_N: int64 token ids.
        bias: (V,) or None.
        softcap: c of c * tanh(logits / c), as in Gemma 2.
        logit_scale: Factor on the logits, before the cap, as in Cohere or Granite.
        implementation: "fused" compiles its element-wise pass where a compiler is at hand, "plain" never does,
            "dense" is the definition.
        memory_budget: Bytes for logits, beyond inputs, outputs and the weight's gradient.

    Raises:
        UserError: Shapes or dtypes that do not fit, or a budget below one row of logits.
    """
    columns = token_columns(
        hidden_ND,
        weight_VD,
        targets_N,
        ("logp",),
        bias=bias,
        softcap=softcap,
        logit_scale=logit_scale,
        implementation=implementation,
        memory_budget=memory_budget,
    )
    return columns["logp"]


def token_columns(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    names: Sequence[str] = ("logp",),
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ref_hidden_ND: Tensor | None = None,
    ref_weight_VD: Tensor | None = None,
    ref_bias: Tensor | None = None,
    implementation: Implementation = "fused",
    memory_budget: int = MEMORY_BUDGET,
) -> dict[str, Tensor]:
    """Statistics of each target's distribution, by name; arguments as in `token_logprobs`.

    Names: `logp`, differentiable; `entropy` in nats; `entropy20`, entropy of the 20 most probable tokens,
    renormalised, in nats; `top1` bool, whether the target is a most probable token; `kl`, differentiable
    KL(reference || model) over the vocabulary in nats, which needs `ref_hidden_ND` and `ref_weight_VD` (of the
    same vocabulary, cap and scale; no gradient reaches them).

    Returns:
        Name to tensor of shape (N,), float32 (float64 for float64 inputs) unless said otherwise.
    """
    for name in names:
        if name not in COLUMNS:
            raise unknown_name("column of the head", name, COLUMNS)
    _check(hidden_ND, weight_VD, targets_N)
    weight_VD = weight_VD.to(hidden_ND.dtype)
    shape = _Shape(softcap, logit_scale)
    if "kl" in names and (ref_hidden_ND is None or ref_weight_VD is None):
        raise UserError("column 'kl' needs the reference's hidden states and head weight")
    if implementation == "dense":
        reference = (ref_hidden_ND, ref_weight_VD, ref_bias)
        return _dense(hidden_ND, weight_VD, targets_N, names, bias, shape, reference)
    compiled = implementation == "fused"
    columns: dict[str, Tensor] = {}
    if set(names) - {"kl"}:
        task = _LogProbability(targets_N, shape, tuple(names), compiled)
        logp, *rest = _run(hidden_ND, weight_VD, bias, task, memory_budget)
        columns = {"logp": logp, **dict(zip(task.extra_names, rest, strict=True))}
    if "kl" in names:
        assert ref_hidden_ND is not None and ref_weight_VD is not None
        reference_head = (ref_hidden_ND.detach(), ref_weight_VD.detach().to(hidden_ND.dtype), ref_bias)
        kl = _Divergence(*reference_head, shape, compiled)
        (columns["kl"],) = _run(hidden_ND, weight_VD, bias, kl, memory_budget)
    return {name: columns[name] for name in names}


class _Shape(NamedTuple):
    """What happens to the product of hidden state and weight before the softmax."""

    softcap: float | None
    scale: float


def _check(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise UserError(
            f"hidden states {tuple(hidden.shape)} and head weight {tuple(weight.shape)} do not fit (N, D) and (V, D)"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise UserError(f"targets must be {hidden.shape[0]} int64 ids, not {tuple(targets.shape)} {targets.dtype}")
    if hidden.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise UserError(f"the head computes in bfloat16, float32 or float64, not {hidden.dtype}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(raw: Tensor, bias: Tensor | None, shape: _Shape) -> tuple[Tensor, Tensor | None]:
    """Logits in float32 from the raw product, and their slope d logits / d (scale * raw) where it is not 1."""
    x = raw.to(_wide(raw.dtype))
    if bias is not None:
        x = x + bias
    x = x * shape.scale
    if shape.softcap is None:
        return x, None
    t = (x / shape.softcap).tanh()
    return t * shape.softcap, 1 - t * t


def _dense(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    names: Sequence[str],
    bias: Tensor | None,
    shape: _Shape,
    reference: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> dict[str, Tensor]:
    """The definition of every column, with all logits in memory."""
    logits, _ = _logits(hidden @ weight.T, bias, shape)
    logp = logits.log_softmax(-1)
    columns = {"logp": logp.gather(1, targets[:, None]).squeeze(1)}
    if "entropy" in names:
        columns["entropy"] = -(logp.exp() * logp).sum(1).detach()
    if "entropy20" in names:
        columns["entropy20"] = _entropy(logits.detach().topk(min(20, logits.shape[1])).values)
    if "top1" in names:
        columns["top1"] = logits.gather(1, targets[:, None]).squeeze(1) >= logits.amax(1)
    if "kl" in names:
        ref_hidden, ref_weight, ref_bias = reference
        assert ref_hidden is not None and ref_weight is not None
        with torch.no_grad():
            ref_logits, _ = _logits(ref_hidden @ ref_weight.to(hidden.dtype).T, ref_bias, shape)
            ref_logp = ref_logits.log_softmax(-1)
        columns["kl"] = (ref_logp.exp() * (ref_logp - logp)).sum(1)
    return {name: columns[name] for name in names}


def _entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


# --- Element-wise passes over a chunk of logits --------------------------------------------------------


def _sums(raw: Tensor, bias: Tensor | None, shape: _Shape, entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum m of each row, sum of exp(x - m), and sum of exp(x - m) * (x - m) if asked.

    exp2 rather than exp: the compiled kernel takes half the time with it.
    """
    x, _ = _logits(raw, bias, shape)
    maximum = x.amax(1)
    y = (x - maximum[:, None]) * _LOG2E
    e = y.exp2()
    return maximum, e.sum(1), (e * y).sum(1) / _LOG2E if entropy else maximum


def _softmax_(raw: Tensor, lse: Tensor, factor: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
    """Overwrites `raw` with factor * softmax * slope; returns `lse` (every pass returns a tensor per row)."""
    x, slope = _logits(raw, bias, shape)
    p = ((x - lse[:, None]) * _LOG2E).exp2() * factor[:, None]
    raw.copy_(p if slope is None else p * slope)
    return lse


def _divergence(
    raw: Tensor,
    ref: Tensor,
    lse: Tensor,
    ref_lse: Tensor,
    bias: Tensor | None,
    ref_bias: Tensor | None,
    shape: _Shape,
) -> Tensor:
    """KL(reference || model) of each row."""
    logp = _logits(raw, bias, shape)[0] - lse[:, None]
    ref_logp = _logits(ref, ref_bias, shape)[0] - ref_lse[:, None]
    return (ref_logp.exp() * (ref_logp - logp)).sum(1)


def _differences_(
    raw: Tensor,
    ref: Tensor,
    lse: Tensor,
    ref_lse: Tensor,
    factor: Tensor,
    bias: Tensor | None,
    ref_bias: Tensor | None,
    shape: _Shape,
) -> Tensor:
    """Overwrites `raw` with factor * (p - p_ref) * slope."""
    x, slope = _logits(raw, bias, shape)
    r, _ = _logits(ref, ref_bias, shape)
    difference = ((x - lse[:, None]).exp() - (r - ref_lse[:, None]).exp()) * factor[:, None]
    raw.copy_(difference if slope is None else difference * slope)
    return lse


def _entropy20(raw: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
    logits, _ = _logits(raw, bias, shape)
    return _entropy(logits.topk(min(20, logits.shape[1])).values)


@lru_cache
def _can_compile(device: str) -> bool:
    """Whether torch.compile works here, found out once by trying; the answer is said in the log."""
    try:
        torch.compile(torch.exp2)(torch.ones(8, device=device))
    except torch._dynamo.exc.BackendCompilerFailed as error:
        reason = str(error).strip().splitlines()[0]
        log.warning("no working compiler for %s (%s): the head runs in plain torch, slower", device, reason)
        return False
    return True


_compiled = lru_cache(partial(torch.compile, dynamic=True))


def _pass(
    function: Callable[..., Any], per_row: tuple[Tensor, ...], *settings: Any, compiled: bool
) -> Any:
    """Runs an element-wise pass: compiled in one go, or in plain torch by blocks of rows that stay in the cache."""
    logits = per_row[0]
    if compiled and logits.numel() >= _COMPILE_FROM and _can_compile(logits.device.type):
        return _compiled(function)(*per_row, *settings)
    step = max(1, _BLOCK // logits.shape[1])
    results = [function(*block, *settings) for block in zip(*(t.split(step) for t in per_row), strict=True)]
    if isinstance(results[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
    return torch.cat(results)


# --- What the head computes per row ---------------------------------------------------------------------


class _Outcome(NamedTuple):
    """What forward finds out about a chunk of rows; `state` is what backward needs besides the logits."""

    value: Tensor
    state: tuple[Tensor, ...]
    extras: tuple[Tensor, ...] = ()


@dataclass
class _LogProbability:
    """log p of the target, and statistics of the distribution."""

    targets: Tensor
    shape: _Shape
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
        logit, slope = _logits(raw.gather(1, target), None if bias is None else bias[target], self.shape)
        return target, logit, slope

    def outcome(self, logits: Tensor, bias: Tensor | None, rows: slice) -> _Outcome:
        (raw,) = logits
        arguments = (bias, self.shape, "entropy" in self.names)
        maximum, total, weighted = _pass(_sums, (raw,), *arguments, compiled=self.compiled)
        shifted = self._at_target(raw, bias, rows)[1].squeeze(1) - maximum
        extras = {"entropy": total.log() - weighted / total, "top1": shifted >= 0}
        if "entropy20" in self.names:
            extras["entropy20"] = _pass(_entropy20, (raw,), bias, self.shape, compiled=False)
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
        at_target = (-logp.expm1() * factor)[:, None]
        _pass(_softmax_, (raw, lse, -factor), bias, self.shape, compiled=self.compiled)
        raw.scatter_(1, target, (at_target if slope is None else at_target * slope).to(raw.dtype))


@dataclass
class _Divergence:
    """KL(reference || model) over the whole vocabulary."""

    ref_hidden: Tensor
    ref_weight: Tensor
    ref_bias: Tensor | None
    shape: _Shape
    compiled: bool
    matrices = 2

    def products(self, logits: Tensor, hidden: Tensor, weight: Tensor, rows: slice) -> None:
        torch.mm(hidden, weight.T, out=logits[0])
        torch.mm(self.ref_hidden[rows], self.ref_weight.T, out=logits[1])

    def outcome(self, logits: Tensor, bias: Tensor | None, rows: slice) -> _Outcome:
        lse = []
        for raw, b in zip(logits, (bias, self.ref_bias), strict=True):
            maximum, total, _ = _pass(_sums, (raw,), b, self.shape, False, compiled=self.compiled)
            lse.append(maximum + total.log())
        kl = _pass(
            _divergence, (*logits, *lse), bias, self.ref_bias, self.shape, compiled=self.compiled
        )
        return _Outcome(kl, tuple(lse))

    def gradient_(
        self, logits: Tensor, bias: Tensor | None, rows: slice, state: tuple[Tensor, ...], upstream: Tensor
    ) -> None:
        per_row = (*logits, *state, upstream * self.shape.scale)
        _pass(_differences_, per_row, bias, self.ref_bias, self.shape, compiled=self.compiled)


# --- Chunks, memory, forward and backward ---------------------------------------------------------------

_spare: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _take_buffer(like: Tensor, elements: int) -> Tensor:
    """Memory for logits. A CPU keeps one buffer: touching fresh pages takes longer than the product itself."""
    spare = _spare.pop((like.device, like.dtype), None)
    if spare is not None and spare.numel() >= elements:
        return spare
    return torch.empty(elements, dtype=like.dtype, device=like.device)


def _give_buffer(buffer: Tensor) -> None:
    if buffer.device.type == "cpu":
        _spare[buffer.device, buffer.dtype] = buffer


def _chunks(rows: int, fit: int) -> list[slice]:
    """All rows by chunks of at most `fit`. The last one is full if any is, since it is the one that is kept."""
    starts = [0, *range(rows % fit or fit, rows, fit)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], rows], strict=True)]


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _LogProbability | _Divergence, budget: int
) -> tuple[Tensor, ...]:
    row_bytes = weight.shape[0] * hidden.element_size() * task.matrices
    if budget < row_bytes:
        raise UserError(
            f"{budget} bytes hold no row of {weight.shape[0]} logits",
            where="memory_budget",
            hint=f"give at least {row_bytes} bytes (the default is 256 MiB)",
        )
    result: tuple[Tensor, ...] = _Head.apply(hidden, weight, bias, task, budget // row_bytes)  # type: ignore[no-untyped-call]
    return result


class _Head(torch.autograd.Function):
    """Chunk by chunk: products, outcome; backward from the last chunk, whose logits are still there, to the first."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        task: _LogProbability | _Divergence,
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
        ctx.kept = buffer if any(ctx.needs_input_grad) else _give_buffer(buffer)
        ctx.save_for_backward(hidden, weight, bias)
        value = torch.cat([outcome.value for outcome in outcomes])
        extras = [torch.cat(parts) for parts in zip(*(outcome.extras for outcome in outcomes), strict=True)]
        ctx.mark_non_differentiable(*extras)
        return (value, *extras)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
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
                    for columns in _chunks(weight.shape[0], _BLOCK // (1 + rows.stop - rows.start) + 1):
                        dbias[columns] += logits[0][:, columns].sum(0, dtype=dbias.dtype)
        _give_buffer(buffer)
        dbias = None if dbias is None else dbias.to(bias.dtype)
        return dhidden, None if dweight is None else dweight.result(), dbias, None, None


def _view(buffer: Tensor, task: _LogProbability | _Divergence, rows: slice, weight: Tensor) -> Tensor:
    """The chunk's logits within the buffer: (matrices, rows, V)."""
    shape = (task.matrices, rows.stop - rows.start, weight.shape[0])
    return buffer[: math.prod(shape)].view(shape)


class _WeightGradient:
    """Sum over chunks of G.T @ h: one product for one chunk, a float32 sum by tiles of the vocabulary for several."""

    def __init__(self, weight: Tensor, chunks: int) -> None:
        self.single = chunks == 1
        self.dtype = weight.dtype
        self.total = torch.zeros_like(weight, dtype=weight.dtype if self.single else _wide(weight.dtype))

    def add(self, gradient: Tensor, hidden: Tensor) -> None:
        if self.single:
            torch.mm(gradient.T, hidden, out=self.total)
        elif self.total.dtype == hidden.dtype:
            self.total.addmm_(gradient.T, hidden)
        else:
            for columns in _chunks(gradient.shape[1], max(1, _BLOCK // hidden.shape[0])):
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
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        total.addmm_(a.float(), b.float())
    finally:
        settings.fp32_precision = before
