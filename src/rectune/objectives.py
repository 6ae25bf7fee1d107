"""The objectives: what is done with the log-probability of each target token. Read this file first.

An objective is a pure function of per-token columns (tensors of shape (N,), float32 or float64). Its
positional parameters name the columns it reads, its keyword-only parameters are its settings, and it
returns the loss of each token, shape (N,), not yet summed or divided. `sg` is the stop-gradient; it is
written in this file only. With p = exp(logp), the *effective weight* of a token is -d loss / d logp: what
its gradient is multiplied with, compared with plain fine-tuning (whose weight is 1).

What each column means is in `columns.py`. A text such as `power:alpha=0.5` becomes a function with its settings in
`objective_spec.py`, where a function is also applied to columns and its weight is found by autograd.
How the columns are computed is in `logprobs/__init__.py` and `models/scorer.py`; the one division by the number of
tokens is in `training/trainer.py`. "The paper" is arXiv:2508.05629.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Objective = Callable[..., Tensor]

sg = Tensor.detach


def sum_by(row: Tensor, values: Tensor) -> Tensor:
    """Sum of `values` (N,) over the tokens of each row: shape (largest row index + 1,)."""
    rows = int(row.max()) + 1 if row.numel() else 0
    return values.new_zeros(rows).index_add(0, row, values)


def mean_by(row: Tensor, values: Tensor) -> Tensor:
    """Mean of `values` (N,) over the tokens of each row; 0 for a row without tokens."""
    return sum_by(row, values) / sum_by(row, torch.ones_like(values)).clamp(min=1)


def sft(logp: Tensor) -> Tensor:
    """Supervised fine-tuning, the paper's Eq. 1: -log p. Weight 1.

    Args:
        logp: Log-probability of each target, (N,).

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2508.05629, Eq. 1.

    Example:
        >>> sft(torch.tensor([0.9, 0.5, 0.1]).log())
        tensor([0.1054, 0.6931, 2.3026])
    """
    return -logp


def dft(logp: Tensor) -> Tensor:
    """Dynamic Fine-Tuning, the paper's Eq. 9: -sg(p) log p. Weight p, gradient -grad p.

    Args:
        logp: Log-probability of each target, (N,).

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2508.05629, Eq. 9.

    Example:
        >>> logp = torch.tensor([0.9, 0.5, 0.1]).log()
        >>> dft(logp)
        tensor([0.0948, 0.3466, 0.2303])
        >>> effective_weight("dft", {"logp": logp})  # p
        tensor([0.9000, 0.5000, 0.1000])
    """
    return -sg(logp.exp()) * logp


def power(logp: Tensor, *, alpha: float = 0.5) -> Tensor:
    """Between SFT (alpha 0) and DFT (alpha 1), arXiv:2510.00526. Weight p^alpha.

    Args:
        logp: Log-probability of each target, (N,).
        alpha: Exponent of the weight; 0 is SFT, 1 is DFT.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2510.00526: the gradient is that of (1 - p^alpha) / alpha.

    Example:
        >>> logp = torch.tensor([0.9, 0.5, 0.1]).log()
        >>> effective_weight("power", {"logp": logp}, alpha=0.5)
        tensor([0.9487, 0.7071, 0.3162])
    """
    return -sg((alpha * logp).exp()) * logp


def threshold(logp: Tensor, *, q: float = 0.2) -> Tensor:
    """-log p where p >= q, nothing elsewhere, arXiv:2510.00526. Weight 1[p >= q].

    Args:
        logp: Log-probability of each target, (N,).
        q: Least probability of a token that is trained on.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2510.00526.

    Example:
        >>> threshold(torch.tensor([0.9, 0.5, 0.1]).log(), q=0.2)
        tensor([0.1054, 0.6931, 0.0000])
    """
    return -sg((logp.exp() >= q).to(logp.dtype)) * logp


def floor(logp: Tensor, *, minimum: float = 0.1) -> Tensor:
    """DFT with a least weight, as the paper's authors advise for stuck tokens. Weight max(p, minimum).

    Args:
        logp: Log-probability of each target, (N,).
        minimum: Least weight of a token.

    Returns:
        Loss per token, (N,).

    Source:
        advice of the paper's authors, yongliang-wu/DFT#1.

    Example:
        >>> logp = torch.tensor([0.9, 0.5, 0.1]).log()
        >>> effective_weight("floor", {"logp": logp}, minimum=0.2)
        tensor([0.9000, 0.5000, 0.2000])
    """
    return -sg(logp.exp().clamp(min=minimum)) * logp


def rectified(logp: Tensor, *, tau: float = 0.1) -> Tensor:
    """DFT below tau and SFT from there on, the coefficient of GFT, arXiv:2604.14258. Weight p where p < tau, else 1.

    Args:
        logp: Log-probability of each target, (N,).
        tau: Probability from which a token has weight 1, between 0 and 1.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2604.14258, dynamic coefficient rectification, without its advantages; ZJU-OmniAI/GFT trains
        Qwen2.5-Math-1.5B with tau 0.1.

    Example:
        >>> logp = torch.tensor([0.9, 0.5, 0.1]).log()
        >>> effective_weight("rectified", {"logp": logp}, tau=0.3)
        tensor([1.0000, 1.0000, 0.1000])
    """
    p = logp.exp()
    return -sg(torch.where(p < tau, p, 1.0)) * logp


def mixture(logp: Tensor, *, share: float = 0.5) -> Tensor:
    """`share` of DFT and the rest of SFT. Weight share * p + 1 - share.

    Args:
        logp: Log-probability of each target, (N,).
        share: Share of DFT, from 0 (SFT) to 1 (DFT).

    Returns:
        Loss per token, (N,).

    Source:
        the sum of Eq. 1 and Eq. 9 of arXiv:2508.05629.

    Example:
        >>> logp = torch.tensor([0.9, 0.5, 0.1]).log()
        >>> effective_weight("mixture", {"logp": logp}, share=0.5)
        tensor([0.9500, 0.7500, 0.5500])
    """
    return -sg(share * logp.exp() + (1 - share)) * logp


def uncertain(logp: Tensor) -> Tensor:
    """Tokens the model is undecided about, CHORD's phi, arXiv:2508.11408. Weight p (1 - p).

    Args:
        logp: Log-probability of each target, (N,).

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2508.11408 (CHORD).

    Example:
        >>> logp = torch.tensor([0.9, 0.5, 0.1]).log()
        >>> effective_weight("uncertain", {"logp": logp})
        tensor([0.0900, 0.2500, 0.0900])
    """
    return -sg(-logp.exp() * logp.expm1()) * logp


def infosft(logp: Tensor, *, ceiling: float = 0.93) -> Tensor:
    """Tokens of medium probability, InfoSFT, arXiv:2605.14967. Weight p max(0, 1 - logit p / logit ceiling).

    Args:
        logp: Log-probability of each target, (N,).
        ceiling: Probability from which a token has weight 0, between 0.5 and 1.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2605.14967, whose weight p max(0, logit ceiling - logit p) is divided by logit ceiling here, so that it
        is p at p = 0.5.

    Example:
        >>> logp = torch.tensor([0.95, 0.5, 0.1]).log()
        >>> effective_weight("infosft", {"logp": logp})
        tensor([-0.0000, 0.5000, 0.1849])
    """
    logit = logp - (-logp.expm1()).log()
    return -sg(logp.exp() * (1 - logit / math.log(ceiling / (1 - ceiling))).clamp(min=0)) * logp


def focal(logp: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Focal loss, arXiv:1708.02002: -(1 - p)^gamma log p, gradient through the weight. Weight high where p is low.

    Args:
        logp: Log-probability of each target, (N,).
        gamma: Exponent; 0 is SFT.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:1708.02002, Eq. 4.

    Example:
        >>> focal(torch.tensor([0.5, 0.25]).log(), gamma=2.0)  # 1/4 log 2, 9/16 log 4
        tensor([0.1733, 0.7798])
    """
    return -(-logp.expm1()).clamp(min=torch.finfo(logp.dtype).tiny).pow(gamma) * logp


def sequence_dft(logp: Tensor, row: Tensor) -> Tensor:
    """DFT by whole answers, the paper's Eq. 8. Weight: the product of p over the row (nearly 0 for long rows).

    Args:
        logp: Log-probability of each target, (N,).
        row: Index of the row of each token, (N,), int64.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2508.05629, Eq. 8.

    Example:
        >>> logp, row = torch.tensor([0.9, 0.5, 0.1]).log(), torch.tensor([0, 0, 1])
        >>> effective_weight("sequence_dft", {"logp": logp, "row": row})
        tensor([0.4500, 0.4500, 0.1000])
    """
    return -sg(sum_by(row, logp).exp()[row]) * logp


def geometric_dft(logp: Tensor, row: Tensor) -> Tensor:
    """DFT by whole answers, length-normalised, the paper's section 4.6. Weight: geometric mean of p over the row.

    Args:
        logp: Log-probability of each target, (N,).
        row: Index of the row of each token, (N,), int64.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2508.05629, section 4.6.

    Example:
        >>> logp, row = torch.tensor([0.9, 0.5, 0.1]).log(), torch.tensor([0, 0, 1])
        >>> effective_weight("geometric_dft", {"logp": logp, "row": row})
        tensor([0.6708, 0.6708, 0.1000])
    """
    return -sg(mean_by(row, logp).exp()[row]) * logp


def eaft(logp: Tensor, entropy20: Tensor) -> Tensor:
    """Entropy-adaptive fine-tuning, arXiv:2601.02151. Weight: top-20 entropy / ln 20.

    Args:
        logp: Log-probability of each target, (N,).
        entropy20: Entropy of the 20 most probable tokens, renormalised, (N,), in nats.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2601.02151.

    Example:
        >>> entropy = torch.tensor([math.log(2), math.log(20) / 2])
        >>> effective_weight("eaft", {"logp": torch.tensor([0.5, 0.5]).log(), "entropy20": entropy})
        tensor([0.2314, 0.5000])
    """
    return -sg(entropy20 / math.log(20)) * logp


def deft(logp: Tensor, log_sum_p2: Tensor) -> Tensor:
    """Dynamic entropy fine-tuning, arXiv:2602.11424. Weight p^a, a = sum of p(v)^2: SFT where flat, DFT where peaked.

    Args:
        logp: Log-probability of each target, (N,).
        log_sum_p2: Log of the sum of squared probabilities over the vocabulary, (N,).

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2602.11424; luludus/DEFT: the gradient is that of (1 - p^a) / a with a detached.

    Example:
        >>> columns = {"logp": torch.tensor([0.01, 0.01]).log(), "log_sum_p2": torch.tensor([0.05, 0.9]).log()}
        >>> effective_weight("deft", columns)
        tensor([0.7943, 0.0158])
    """
    return -sg((log_sum_p2.exp() * logp).exp()) * logp


def idft(logp: Tensor, entropy: Tensor, *, beta: float = 1.0) -> Tensor:
    """In-distribution fine-tuning, arXiv:2602.12222. Weight p^g, g = exp(-(log p + entropy) / beta) within 0.1 and 2.

    Args:
        logp: Log-probability of each target, (N,).
        entropy: Entropy of the model's distribution, (N,), in nats.
        beta: Temperature of the exponent, above 0.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2602.12222; the weight is detached, as in fsdp_polylog_trainer.py of its released code. In losses.py
        there p^g has a gradient: the true weight p^g (1 + g log p) is negative for many tokens.

    Example:
        >>> columns = {"logp": torch.tensor([0.3, 0.3]).log(), "entropy": torch.tensor([0.2, 3.0])}
        >>> effective_weight("idft", columns)  # the model is sure of another token; the model is undecided
        tensor([0.0900, 0.8189])
    """
    exponent = (-(logp + entropy) / beta).exp().clamp(0.1, 2.0)
    return -sg((exponent * logp).exp()) * logp


def lower_mass(logp: Tensor, lower_mass: Tensor, *, q: float = 0.5) -> Tensor:
    """Tokens that the model supports, PriFT-mass, arXiv:2606.09396. Weight 1 where u >= q, u = mass of tokens up to p.

    Args:
        logp: Log-probability of each target, (N,).
        lower_mass: u, the sum of p(v) over all tokens v with p(v) <= p(target), (N,).
        q: Least u of a token that is trained on, between 0 and 1.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2606.09396, where u is the frozen base's: `lower_mass:signal=base`. Its released code leaves out tokens
        that are exactly as probable as the target.

    Example:
        >>> columns = {"logp": torch.tensor([0.6, 0.3]).log(), "lower_mass": torch.tensor([1.0, 0.4])}
        >>> effective_weight("lower_mass", columns)
        tensor([1., -0.])
    """
    return -sg((lower_mass >= q).to(logp.dtype)) * logp


def cadft(logp: Tensor, row_nll_z: Tensor, *, beta: float = 1.0) -> Tensor:
    """DFT with less of rows that are unlikely for the step, CADFT, arXiv:2606.11206. Weight p exp(-beta max(0, z)).

    Args:
        logp: Log-probability of each target, (N,).
        row_nll_z: z, the mean NLL of the token's row, z-scored over the rows of the step, (N,).
        beta: How fast the weight falls with z, above 0; near 0 it is DFT.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2606.11206, whose experiments have beta 1; without its rewriting of rows.

    Example:
        >>> columns = {"logp": torch.tensor([0.9, 0.5]).log(), "row_nll_z": torch.tensor([-1.0, 1.0])}
        >>> effective_weight("cadft", columns)
        tensor([0.9000, 0.1839])
    """
    return -sg((logp - beta * row_nll_z.clamp(min=0)).exp()) * logp


def iw_sft(logp: Tensor, ref_logp: Tensor, *, low: float = 0.2, high: float = 1.8) -> Tensor:
    """Importance-weighted SFT per token, arXiv:2507.12856. Weight clip(p / p_ref, low, high).

    Args:
        logp: Log-probability of each target, (N,).
        ref_logp: The same targets under the reference model, (N,); without gradient.
        low: Least weight.
        high: Greatest weight.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2507.12856.

    Example:
        >>> columns = {"logp": torch.tensor([0.9, 0.1]).log(), "ref_logp": torch.tensor([0.6, 0.1]).log()}
        >>> effective_weight("iw_sft", columns)
        tensor([1.5000, 1.0000])
    """
    return -sg((logp - ref_logp).exp().clamp(low, high)) * logp


def iw_sft_sequence(
    logp: Tensor, row: Tensor, ref_logp: Tensor, *, temperature: float = 1.0, high: float = 16.0
) -> Tensor:
    """Importance-weighted SFT per row, arXiv:2507.12856. Weight min(exp(temperature * mean log p / p_ref), high).

    Args:
        logp: Log-probability of each target, (N,).
        row: Index of the row of each token, (N,), int64.
        ref_logp: The same targets under the reference model, (N,); without gradient.
        temperature: Factor on the row's mean log-ratio. 1 is what the published trainer passes; the default of its
            loss function, which that never uses, is 2.
        high: Greatest weight.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2507.12856.

    Example:
        >>> columns = {"logp": torch.tensor([0.9, 0.1]).log(), "ref_logp": torch.tensor([0.6, 0.1]).log()}
        >>> effective_weight("iw_sft_sequence", {**columns, "row": torch.tensor([0, 0])})
        tensor([1.2247, 1.2247])
    """
    return -sg((temperature * mean_by(row, logp - ref_logp)).exp().clamp(max=high)[row]) * logp


def psft(logp: Tensor, old_logp: Tensor, *, high: float = 0.28) -> Tensor:
    """Proximal SFT, arXiv:2508.17784: PPO's clip at advantage 1. Weight p / p_old, 0 once it exceeds 1 + high.

    Args:
        logp: Log-probability of each target, (N,).
        old_logp: The same targets under the model some steps ago, (N,).
        high: Upper clip: a token's weight is 0 once p / p_old exceeds 1 + high.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2508.17784.

    Example:
        >>> columns = {"logp": torch.tensor([0.9, 0.1]).log(), "old_logp": torch.tensor([0.6, 0.1]).log()}
        >>> effective_weight("psft", columns)  # 0.9 / 0.6 is beyond the clip
        tensor([-0., 1.])
    """
    return -(logp - sg(old_logp)).exp().clamp(max=1 + high)  # PPO's lower clip never binds at advantage 1


def asft(logp: Tensor, kl: Tensor, *, anchor: float = 0.05) -> Tensor:
    """Anchored SFT, arXiv:2509.23753: DFT + anchor * KL(base || model). Weight p, plus the pull to the base model.

    Args:
        logp: Log-probability of each target, (N,).
        kl: KL(base || model) at each token's position, (N,), in nats; with gradient.
        anchor: Factor on the KL.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:2509.23753.

    Example:
        >>> asft(torch.tensor([0.5]).log(), torch.tensor([2.0]), anchor=0.05)  # DFT's 0.3466 + 0.05 * 2
        tensor([0.4466])
    """
    return dft(logp) + anchor * kl


def dpo(
    logp: Tensor,
    ref_logp: Tensor,
    pair: Tensor,
    sign: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimisation, arXiv:2305.18290: -log sigmoid(beta * margin) of a pair, spread over its tokens.

    The margin is the sum of log p / p_ref over the better answer minus that over the worse one.
    Weight sign * beta * sigmoid(-beta * margin).

    Args:
        logp: Log-probability of each target, (N,).
        ref_logp: The same targets under the reference model, (N,); without gradient.
        pair: Index of the pair of each token's row, (N,), int64.
        sign: +1 in the better row of a pair, -1 in the worse one, (N,).
        beta: Factor on the margin.
        label_smoothing: Share of pairs assumed to be labelled the wrong way round.

    Returns:
        Loss per token, (N,): the loss of its pair divided by the pair's number of tokens.

    Source:
        arXiv:2305.18290, Eq. 7; `label_smoothing` is conservative DPO's.

    Example:
        >>> logp, ref_logp = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.4, 0.4]).log()
        >>> dpo(logp, ref_logp, torch.tensor([0, 0]), torch.tensor([1, -1]), beta=1.0)  # margin 2 log 2
        tensor([0.1116, 0.1116])
    """
    margin = sum_by(pair, sign * (logp - ref_logp))
    loss = -(1 - label_smoothing) * logsigmoid(beta * margin) - label_smoothing * logsigmoid(-beta * margin)
    return (loss / sum_by(pair, torch.ones_like(logp)).clamp(min=1))[pair]


def grpo(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, *, epsilon: float = 0.2, high: float | None = None
) -> Tensor:
    """PPO's clipped surrogate; with a group's advantages it is GRPO.

    Weight advantage * p / p_old, 0 where the ratio has left the clip in the advantage's direction.

    Args:
        logp: Log-probability of each target, (N,).
        old_logp: The same targets under the model some steps ago, (N,).
        advantage: How much better than expected the token's answer turned out, (N,).
        epsilon: The ratio p / p_old is clipped to 1 - epsilon and 1 + epsilon.
        high: Upper clip where it is not `epsilon`, as in DAPO.

    Returns:
        Loss per token, (N,).

    Source:
        arXiv:1707.06347, Eq. 7; arXiv:2402.03300, Eq. 3; `high`: arXiv:2503.14476.

    Example:
        >>> columns = {"logp": torch.tensor([0.9, 0.1]).log(), "old_logp": torch.tensor([0.6, 0.1]).log()}
        >>> effective_weight(grpo, {**columns, "advantage": torch.tensor([1.0, -2.0])})
        tensor([-0., -2.])
    """
    ratio = (logp - sg(old_logp)).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + (epsilon if high is None else high))
    return -torch.minimum(ratio * advantage, clipped * advantage)


def k3(logp: Tensor, ref_logp: Tensor, old_logp: Tensor | None = None) -> Tensor:
    """KL(model || reference) estimated at sampled tokens, in nats: r - log r - 1 with r = p_ref / p; never negative.

    GRPO's penalty.

    Args:
        logp: Log-probability of each target, (N,).
        ref_logp: The same targets under the reference model, (N,); without gradient.
        old_logp: Log-probability under the model that sampled the tokens, (N,). With it the estimate is multiplied
            by p / p_old, and its gradient over those samples is that of the KL, as in TRL; without it the gradient is
            that of KL(reference || model).

    Returns:
        Estimate of the penalty per token, (N,).

    Source:
        arXiv:2402.03300, Eq. 4; with `old_logp`: arXiv:2512.02556.

    Example:
        >>> k3(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.5, 0.25]).log())
        tensor([0.0000, 0.1931])
    """
    log_ratio = sg(ref_logp) - logp
    estimate = log_ratio.expm1() - log_ratio
    return estimate if old_logp is None else (logp - sg(old_logp)).exp() * estimate


OBJECTIVES: dict[str, Objective] = {
    objective.__name__: objective
    for objective in (
        sft,
        dft,
        power,
        threshold,
        floor,
        rectified,
        mixture,
        uncertain,
        infosft,
        focal,
        sequence_dft,
        geometric_dft,
        eaft,
        deft,
        idft,
        lower_mass,
        cadft,
        iw_sft,
        iw_sft_sequence,
        psft,
        asft,
        dpo,
    )
}
"""What `rectune train` can train with; `grpo` and `k3` need live samples, so they belong to `rectune rl`."""

BETWEEN: dict[str, dict[str, tuple[float, float]]] = {
    "rectified": {"tau": (0, 1)},
    "infosft": {"ceiling": (0.5, 1)},
    "idft": {"beta": (0, math.inf)},
    "cadft": {"beta": (0, math.inf)},
    "lower_mass": {"q": (0, 1)},
}
"""Settings that have to lie between two numbers, which they may not be; others may be any number."""
