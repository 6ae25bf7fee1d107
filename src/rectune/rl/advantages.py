"""From rewards to advantages: within a group of answers (GRPO), or per token by GAE (PPO).

Pure functions on tensors without gradient. Rewards are in `rollout.py`; what is done with an advantage in
`objectives.py`.

Shapes: G problems, n answers to each, A answers, N tokens of all answers one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to a group's standard deviation, as in TRL."""


def group_advantages(rewards_Gn: Tensor, variant: str) -> Tensor:
    """Advantages of the answers to each problem, (G, n); 0 where the reward is NaN, which takes no part in the group.

    `group`: (r - mean) / (std + 1e-4), arXiv:2402.03300 section 4.1.2, std with n - 1; `none`: r - mean,
    arXiv:2503.20783; `leave-one-out`: r minus the mean of the others, arXiv:2402.14740.
    """
    known_Gn = ~rewards_Gn.isnan()
    count_G1 = known_Gn.sum(1, keepdim=True).to(rewards_Gn.dtype)
    r_Gn = rewards_Gn.nan_to_num(0.0)
    mean_G1 = r_Gn.sum(1, keepdim=True) / count_G1.clamp(min=1)
    apart_Gn = torch.where(known_Gn, r_Gn - mean_G1, 0.0)
    if variant == "none":
        return apart_Gn
    if variant == "leave-one-out":  # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
        return apart_Gn * count_G1 / (count_G1 - 1).clamp(min=1)
    std_G1 = (apart_Gn.square().sum(1, keepdim=True) / (count_G1 - 1).clamp(min=1)).sqrt()
    return apart_Gn / (std_G1 + EPSILON)


def degenerate_groups(rewards_Gn: Tensor) -> int:
    """How many groups say nothing: all judged rewards are equal, or none could be judged."""
    low_G = rewards_Gn.nan_to_num(torch.inf).amin(1)
    high_G = rewards_Gn.nan_to_num(-torch.inf).amax(1)
    return int((high_G <= low_G).sum())


def gae(
    reward_N: Tensor, value_N: Tensor, lengths: Sequence[int], *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, arXiv:1506.02438 Eq. 11-16: advantages and returns, each (N,).

    delta_t = r_t + gamma V_(t+1) - V_t and A_t = delta_t + gamma lam A_(t+1); behind the last token of an answer there
    is nothing, also where it was cut at the token limit. The return is A_t + V_t.

    Args:
        reward_N, value_N: Reward of each token, and value of what stands before it.
        lengths: Tokens of each answer.
    """
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    columns = torch.cat([torch.arange(length) for length in lengths] or [rows])
    longest = max(lengths, default=0)
    reward, value, advantage = (reward_N.new_zeros(len(lengths), longest + 1) for _ in range(3))
    reward[rows, columns], value[rows, columns] = reward_N, value_N
    for t in reversed(range(longest)):  # padding has reward and value 0, so nothing comes back from it
        delta = reward[:, t] + gamma * value[:, t + 1] - value[:, t]
        advantage[:, t] = delta + gamma * lam * advantage[:, t + 1]
    advantage_N = advantage[rows, columns]
    return advantage_N, advantage_N + value_N


def whitened(advantage_N: Tensor) -> Tensor:
    """To mean 0 and standard deviation 1."""
    if len(advantage_N) < 2:
        return advantage_N
    return (advantage_N - advantage_N.mean()) / (advantage_N.std() + 1e-8)


def explained_variance(value_N: Tensor, return_N: Tensor) -> float | None:
    """1 - Var(return - value) / Var(return): 1 for a perfect value head, 0 for a constant; None without variance."""
    if len(return_N) < 2 or (spread := float(return_N.double().var())) < 1e-12:
        return None
    return 1 - float((return_N - value_N).double().var()) / spread


def token_weights(lengths: Sequence[int], loss_type: str, max_new_tokens: int) -> Tensor:
    """What a token's loss is multiplied with, for each answer of an update; over its tokens they add up to a mean.

    As in TRL: `dapo` is 1 / all tokens, `grpo` 1 / (answers x own tokens), `dr_grpo` 1 / (answers x max_new_tokens).
    """
    own = torch.tensor(lengths, dtype=torch.float32)
    if loss_type == "dapo":
        return torch.ones_like(own) / own.sum().clamp(min=1)
    if loss_type == "grpo":
        return 1 / (len(lengths) * own.clamp(min=1))
    return torch.full_like(own, 1 / (len(lengths) * max_new_tokens))
