"""Advantages against numbers worked out by hand, and against the definition of GAE written as a sum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectune.rl.advantages import (
    degenerate_groups,
    explained_variance,
    gae,
    group_advantages,
    token_weights,
    whitened,
)
from rectune.rl.policy import value_loss

NAN = math.nan


def close(a: torch.Tensor, b: object) -> bool:
    return torch.allclose(a.double(), torch.as_tensor(b, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("none", [[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0], [0.5, 0.0, -0.5, 0.0]]),
        # (r - mean of the three others): 1 - 0, 0 - 1/3; one unjudged: of the two that are left, the other
        ("leave-one-out", [[1.0, -1 / 3, -1 / 3, -1 / 3], [0.0, 0.0, 0.0, 0.0], [0.75, 0.0, -0.75, 0.0]]),
        # std with n - 1: 0.5, 0, and 0.5 of the three
        ("std", [[0.75 / 0.5001, *[-0.25 / 0.5001] * 3], [0.0] * 4, [0.5 / 0.5001, 0.0, -0.5 / 0.5001, 0.0]]),
    ],
)
def test_group_advantages(variant: str, expected: list[list[float]]) -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0] * 4, [1.0, 0.5, 0.0, NAN]], dtype=torch.float64)
    assert close(group_advantages(rewards, variant), expected)


def test_a_group_of_which_nothing_or_one_is_known() -> None:
    rewards = torch.tensor([[NAN, NAN], [NAN, 1.0], [0.0, 1.0]])
    for variant in ("std", "none", "leave-one-out"):
        assert close(group_advantages(rewards, variant)[:2], torch.zeros(2, 2))
    assert degenerate_groups(rewards) == 2


def test_gae_by_hand() -> None:
    """Two answers; gamma 0.5, lambda 0.5. From behind, for the first: delta_2 = 1 - 0.4 = 0.6,
    delta_1 = 0 + 0.5 * 0.4 - 0.2 = 0, A_1 = 0 + 0.25 * 0.6 = 0.15, delta_0 = 0 + 0.5 * 0.2 - 0.1 = 0, A_0 = 0.0375."""
    reward = torch.tensor([0.0, 0.0, 1.0, -1.0])
    value = torch.tensor([0.1, 0.2, 0.4, 0.5])
    advantage, returns = gae(reward, value, [3, 1], gamma=0.5, lam=0.5)
    assert close(advantage, [0.0375, 0.15, 0.6, -1.5])
    assert close(returns, [0.1375, 0.35, 1.0, -1.0])


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    gamma=st.sampled_from([0.0 + 1.0, 0.9, 0.3]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    seed=st.integers(0, 99),
)
def test_gae_is_its_definition(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    """A_t = sum over l of (gamma lam)^l delta_(t+l), within each answer; with lambda 1 the discounted return."""
    draws = torch.Generator().manual_seed(seed)
    reward = torch.randn(sum(lengths), generator=draws, dtype=torch.float64)
    value = torch.randn(sum(lengths), generator=draws, dtype=torch.float64)
    advantage, returns = gae(reward, value, lengths, gamma=gamma, lam=lam)
    start = 0
    for length in lengths:
        r, v = reward[start : start + length].tolist(), [*value[start : start + length].tolist(), 0.0]
        for t in range(length):
            deltas = [r[k] + gamma * v[k + 1] - v[k] for k in range(t, length)]
            expected = sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas))
            assert math.isclose(float(advantage[start + t]), expected, abs_tol=1e-9)
            if lam == 1:
                later = sum(gamma ** (k - t) * r[k] for k in range(t, length))
                assert math.isclose(float(returns[start + t]), later, abs_tol=1e-9)
        start += length


def test_no_answer_at_all() -> None:
    empty = torch.zeros(0)
    assert [len(t) for t in gae(empty, empty, [], gamma=1.0, lam=1.0)] == [0, 0]


def test_whitening_and_explained_variance() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    white = whitened(values)
    assert close(white.mean(), 0.0)
    assert close(white.std(), 1.0)
    assert whitened(values[:1]).tolist() == [1.0]
    assert explained_variance(values, values) == 1.0
    assert explained_variance(torch.full((4,), 5.0), values) == pytest.approx(0.0)
    assert explained_variance(-values, values) == pytest.approx(-3.0)
    assert explained_variance(values, torch.ones(4)) is None


def test_the_clipped_value_loss() -> None:
    """A step from the old value of more than the clip gains nothing, a step back into it costs in full."""
    value = torch.tensor([0.9, 0.1, -0.9], requires_grad=True)
    old, returns = torch.zeros(3), torch.ones(3)
    loss = value_loss(value, old, returns, clip=0.2)
    assert close(loss, [0.5 * 0.8**2, 0.5 * 0.9**2, 0.5 * 1.9**2])
    loss.sum().backward()
    assert close(value.grad, [0.0, -0.9, -1.9])
    assert close(value_loss(value, old, returns, clip=0), [0.005, 0.405, 1.805])


def test_token_weights_make_means() -> None:
    lengths = [1, 3]
    assert close(token_weights(lengths, "dapo", 8), [0.25, 0.25])
    assert close(token_weights(lengths, "grpo", 8), [0.5, 1 / 6])
    assert close(token_weights(lengths, "dr_grpo", 8), [1 / 16, 1 / 16])
