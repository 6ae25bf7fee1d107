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
is in `objectives.py`; which hidden states belong here is in `models/scorer.py`; how the fused version works is in
`logprobs/fused.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from rectune.columns import HEAD_COLUMNS
from rectune.errors import UserError, unknown_name
from rectune.logprobs.elementwise import Shape, entropy_of, shaped_logits
from rectune.logprobs.fused import Divergence, LogProbability, run

Implementation = Literal["fused", "plain", "dense"]

IGNORE = -100
MEMORY_BUDGET = 256 << 20
_TEMPORARIES = 16 << 20  # bytes of a budget for blocks and tiles in float32; small ones are all logits


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
        UserError: Shapes, dtypes or devices that do not fit, a target outside the vocabulary, or a budget below one
            row of logits.

    Example:
        >>> hidden, weight = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> token_logprobs(hidden, weight, torch.tensor([0, 2]), implementation="plain").exp()
        tensor([0.5761, 0.2119])
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
    renormalised, in nats; `log_sum_p2`, log of the sum of squared probabilities; `lower_mass`, sum of the
    probabilities of all tokens that are at most as likely as the target; `top1` bool, whether the target is a most
    probable token; `kl`, differentiable KL(reference || model) over the vocabulary in nats, which needs
    `ref_hidden_ND` and `ref_weight_VD` (of the same vocabulary, cap and scale; no gradient reaches them).

    Returns:
        Name to tensor of shape (N,), float32 (float64 for float64 inputs) unless said otherwise.
    """
    for name in names:
        if name not in HEAD_COLUMNS:
            raise unknown_name("column of the head", name, HEAD_COLUMNS)
    if implementation not in get_args(Implementation):
        raise unknown_name("implementation", implementation, get_args(Implementation))
    _check(hidden_ND, weight_VD, targets_N, bias)
    weight_VD = weight_VD.to(hidden_ND.dtype)
    shape = Shape(softcap, logit_scale)
    reference = None
    if "kl" in names:
        reference = _reference(hidden_ND, weight_VD, ref_hidden_ND, ref_weight_VD, ref_bias)
    if implementation == "dense":
        return _dense(hidden_ND, weight_VD, targets_N, names, bias, shape, reference)
    compiled = implementation == "fused"
    statistics = bool(set(names) - {"kl"})
    share = _share(memory_budget, hidden_ND, weight_VD, statistics + 2 * ("kl" in names))
    columns: dict[str, Tensor] = {}
    if statistics:
        task = LogProbability(targets_N, shape, tuple(names), compiled)
        logp, *rest = run(hidden_ND, weight_VD, bias, task, share)
        columns = {"logp": logp, **dict(zip(task.extra_names, rest, strict=True))}
    if reference is not None:
        (columns["kl"],) = run(hidden_ND, weight_VD, bias, Divergence(*reference, shape, compiled), 2 * share)
    return {name: columns[name] for name in names}


Reference = tuple[Tensor, Tensor, Tensor | None]


def _reference(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
) -> Reference:
    """Hidden states, head weight and bias of the reference, in the model's dtype and without gradient."""
    if ref_hidden is None or ref_weight is None:
        raise UserError("column 'kl' needs the reference's hidden states and head weight")
    devices = {str(t.device) for t in (hidden, ref_hidden, ref_weight)}
    if len(devices) > 1:
        raise UserError(f"the model and the reference are on {' and '.join(sorted(devices))}")
    if ref_hidden.shape[0] != hidden.shape[0] or ref_weight.shape[0] != weight.shape[0]:
        raise UserError(
            f"the reference has {ref_hidden.shape[0]} tokens and a vocabulary of {ref_weight.shape[0]}, "
            f"the model {hidden.shape[0]} and {weight.shape[0]}"
        )
    ref_hidden, ref_weight = (t.detach().to(hidden.dtype) for t in (ref_hidden, ref_weight))
    return ref_hidden, ref_weight, None if ref_bias is None else ref_bias.detach()


def _share(budget: int, hidden: Tensor, weight: Tensor, matrices: int) -> int:
    """Bytes for each matrix of logits that is kept at the same time."""
    row_bytes = matrices * weight.shape[0] * hidden.element_size()
    if budget < row_bytes:
        raise UserError(
            f"{budget} bytes are too few for a row of {weight.shape[0]} logits",
            where="logits_memory_mb",
            hint=f"give at least {row_bytes} bytes (the default is 256 MiB)",
        )
    spare = _TEMPORARIES if budget >= 4 * _TEMPORARIES else 0
    return (budget - spare) // max(1, matrices)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    devices = {str(t.device) for t in (hidden, weight, targets, bias) if t is not None}
    if len(devices) > 1:
        raise UserError(f"hidden states, head weight and targets are on {' and '.join(sorted(devices))}")
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise UserError(
            f"hidden states {tuple(hidden.shape)} and head weight {tuple(weight.shape)} do not fit (N, D) and (V, D)"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise UserError(
            f"targets must be {hidden.shape[0]} int64 ids, not {tuple(targets.shape)} {targets.dtype}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UserError(f"a bias of {tuple(bias.shape)} does not fit a vocabulary of {weight.shape[0]}")
    if hidden.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise UserError(f"the head computes in bfloat16, float32 or float64, not {hidden.dtype}")
    if not weight.is_floating_point() or weight.itemsize < 2:
        raise UserError(
            f"the head's weight is quantised ({weight.dtype}), and the log-probabilities need unquantised weights"
        )
    check_targets(targets, weight.shape[0])


def check_targets(targets_N: Tensor, vocabulary: int) -> None:
    """Raise `UserError` for a target outside the vocabulary; on a GPU it would end the process's use of the device."""
    if not len(targets_N):
        return
    least, most = torch.stack(targets_N.aminmax()).tolist()
    if least < 0 or most >= vocabulary:
        wrong = least if least < 0 else most
        hint = f"positions without a target have the label {IGNORE}, and are left out of targets"
        raise UserError(f"target {wrong} is not an id of a vocabulary of {vocabulary}", hint=hint)


def _dense(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    names: Sequence[str],
    bias: Tensor | None,
    shape: Shape,
    reference: Reference | None,
) -> dict[str, Tensor]:
    """The definition of every column, with all logits in memory."""
    logits, _ = shaped_logits(hidden @ weight.T, bias, shape)
    columns = columns_of_logits(logits, targets, names)
    if reference is not None:
        ref_hidden, ref_weight, ref_bias = reference
        ref_logp = shaped_logits(ref_hidden @ ref_weight.T, ref_bias, shape)[0].log_softmax(-1)
        columns["kl"] = (ref_logp.exp() * (ref_logp - logits.log_softmax(-1))).sum(1)
    return {name: columns[name] for name in names}


def columns_of_logits(logits_NV: Tensor, targets_N: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The columns of the head but `kl`, by their definition, where all logits are in memory anyway.

    Args:
        logits_NV: As the softmax takes them; float32 or float64.
        targets_N: int64 token ids.
        names: Of `HEAD_COLUMNS`; `kl` and names that are not of the head are passed over.

    Returns:
        As `token_columns`.
    """
    logp, place = logits_NV.log_softmax(-1), targets_N[:, None]
    columns: dict[str, Callable[[], Tensor]] = {
        "logp": lambda: logp.gather(1, place).squeeze(1),
        "entropy": lambda: -(logp.exp() * logp).sum(1).detach(),
        "entropy20": lambda: entropy_of(logits_NV.detach().topk(min(20, logits_NV.shape[1])).values),
        "log_sum_p2": lambda: (2 * logp).logsumexp(1).detach(),
        "lower_mass": lambda: logp.exp().where(logits_NV <= logits_NV.gather(1, place), 0).sum(1).detach(),
        "top1": lambda: logits_NV.gather(1, place).squeeze(1) >= logits_NV.amax(1),
    }
    return {name: columns[name]() for name in names if name in columns}
