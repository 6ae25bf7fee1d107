"""Who is chosen and who is dropped: by accuracy on the same problems, and only where the difference is clear."""

from __future__ import annotations

import numpy as np
import pytest

from rectune.errors import UserError
from rectune.experiments.grid import Budget, parse_budget
from rectune.experiments.lr_sweep import best_rate
from rectune.experiments.successive_halving import compare_arms, rungs

P, N = 60, 4


def answers(share: float, seed: int = 0, seeds: int = 1) -> list[np.ndarray]:
    """Verdicts whose problems are right with this chance; the same seed has the same luck."""
    rng = np.random.default_rng(seed)
    return [(rng.random((P, N)) < share).astype(np.int8) for _ in range(seeds)]


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_clearly_worse_arm_is_dropped_and_a_slightly_worse_one_is_not(seeds: int) -> None:
    found = compare_arms(
        {"bad": answers(0.1, 1, seeds), "good": answers(0.7, 2, seeds), "near": answers(0.66, 3, seeds)}
    )
    assert found.leader == "good"
    assert found.worse == ["bad"]
    assert found.behind["bad"].low > 0
    assert found.behind["bad"].difference == pytest.approx(
        found.accuracy["good"].mean - found.accuracy["bad"].mean
    )
    assert found.behind["near"].low < 0 < found.behind["near"].high
    assert set(found.behind) == {"bad", "near"}


def test_the_correction_is_over_all_pairs() -> None:
    """The leader is itself found in the data; among many arms the same difference must count for less."""
    a, b = answers(0.6, 1), answers(0.45, 2)
    two, many = (
        compare_arms({"a": a, "b": b}),
        compare_arms({"a": a, "b": b, **{f"c{i}": answers(0.5, 3 + i) for i in range(4)}}),
    )
    p_value = two.behind["b"].p_value
    assert two.leader == many.leader == "a"
    assert two.behind["b"].p_holm == p_value
    assert many.behind["b"].p_holm > 4 * p_value  # alone of 5 pairs with the leader it could be 5 at most


def test_arms_that_are_alike_are_rarely_dropped() -> None:
    """Six arms of one strength, forty races: fewer than 5 % may lose anyone."""
    lost = sum(
        bool(compare_arms({f"{i}": answers(0.3, 1000 * race + i) for i in range(6)}).worse)
        for race in range(40)
    )
    assert lost <= 4


def test_the_best_rate_and_of_several_the_lowest() -> None:
    assert best_rate({1e-4: 0.5, 5e-5: 0.6, 2e-5: 0.6}) == 2e-5
    assert best_rate({1e-4: 0.7, 5e-5: 0.6}) == 1e-4


def test_a_tie_is_led_by_the_first() -> None:
    same = answers(0.5)
    found = compare_arms({"b": same, "a": same})
    assert (found.leader, found.worse) == ("b", [])


def test_budgets() -> None:
    assert parse_budget("800steps") == Budget("800steps", 800, True)
    assert parse_budget("30m") == Budget("30m", 1800, False)
    assert parse_budget("1.5 h") == Budget("1.5 h", 5400, False)


@pytest.mark.parametrize("text", ["", "800", "steps", "-3m", "0h", "2 days"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UserError, match=r"--race: .* is not a budget; such as 30m, 2h or 800steps"):
        parse_budget(text)


def test_rungs() -> None:
    assert rungs(2, 100) == [25, 50]
    assert rungs(8, 100) == [12, 25, 50]
    assert rungs(3, 3) == [1, 2]
    assert rungs(2, 1) == []
