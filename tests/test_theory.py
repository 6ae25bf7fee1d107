"""The paper's equations 5, 7, 8 and 13, by full enumeration over a toy policy in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rectune.objective_spec import apply_objective


class ToyPolicy:
    """Answers of three tokens from a vocabulary of four: the next token's logits from a table by the prefix."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(1)
        self.first = torch.randn(4, generator=g, dtype=torch.float64, requires_grad=True)
        self.later = torch.randn(2, 4, 4, generator=g, dtype=torch.float64, requires_grad=True)
        self.parameters = (self.first, self.later)
        self.answers = torch.cartesian_prod(*(torch.arange(4) for _ in range(3)))

    def logp(self, answer: Tensor) -> Tensor:
        """Log-probability of each token of an answer."""
        steps = [
            self.first,
            self.later[0, answer[0]],
            self.later[1, answer[1]] * self.first[answer[0]].tanh(),
        ]
        return torch.stack([x.log_softmax(0)[y] for x, y in zip(steps, answer, strict=True)])

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])

    def policy_gradient(self, reward: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sum over all answers y of pi(y) * reward(y, pi(y)) * grad log pi(y)."""
        total = torch.zeros(36, dtype=torch.float64)
        for y in self.answers:
            logp = self.logp(y).sum()
            pi = logp.exp().item()
            total += pi * float(reward(y, torch.tensor(pi, dtype=torch.float64))) * self.gradient(logp)
        return total


def test_equation_5_sft_is_policy_gradient_with_an_ill_posed_weight() -> None:
    """Eq. 5: grad of SFT = -E_{y ~ pi} [1[y = y*] / pi(y) * grad log pi(y)], by full enumeration."""
    policy = ToyPolicy()
    assert sum(policy.logp(y).sum().exp().item() for y in policy.answers) == pytest.approx(1)
    expert = torch.tensor([2, 0, 3])
    sft = policy.gradient(apply_objective("sft", {"logp": policy.logp(expert)}).sum())
    expected = -policy.policy_gradient(lambda y, pi: (y == expert).all() / pi)
    assert sft.norm() > 0.1
    torch.testing.assert_close(sft, expected, rtol=1e-12, atol=1e-14)


def test_equations_7_and_8_sequence_dft_is_policy_gradient_with_reward_1() -> None:
    """Eq. 7 and 8: the weight pi(y*) cancels 1 / pi, which leaves the indicator reward alone."""
    policy = ToyPolicy()
    expert = torch.tensor([2, 0, 3])
    c = {"logp": policy.logp(expert), "row": torch.zeros(3, dtype=torch.int64)}
    rectified = policy.gradient(apply_objective("sequence_dft", c).sum())
    expected = -policy.policy_gradient(lambda y, pi: (y == expert).all())
    torch.testing.assert_close(rectified, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        rectified, policy.gradient(-policy.logp(expert).sum().exp()), rtol=1e-12, atol=1e-14
    )


def test_equation_13_dft_descends_minus_p() -> None:
    """Eq. 13: token by token the gradient of DFT is -grad p."""
    policy = ToyPolicy()
    expert = torch.tensor([1, 3, 0])
    dft = policy.gradient(apply_objective("dft", {"logp": policy.logp(expert)}).sum())
    torch.testing.assert_close(dft, policy.gradient(-policy.logp(expert).exp().sum()), rtol=1e-12, atol=1e-14)


def test_deft_descends_the_deformed_log() -> None:
    """arXiv:2602.11424: the gradient of (1 - p^a) / a with a, the sum of squared probabilities, held fixed."""
    policy = ToyPolicy()
    expert = torch.tensor([1, 3, 0])
    logp = policy.logp(expert)
    squares = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    deft = policy.gradient(apply_objective("deft", {"logp": logp, "log_sum_p2": squares.log()}).sum())
    deformed = ((1 - (squares * policy.logp(expert)).exp()) / squares).sum()
    torch.testing.assert_close(deft, policy.gradient(deformed), rtol=1e-12, atol=1e-14)
