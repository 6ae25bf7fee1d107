"""Hold-out split and step plan: functions of the seed alone, every row once an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.data.sampler import plan_steps, split_holdout, subsample
from rectune.errors import UserError


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), st.integers(0, 5))
def test_every_row_once_an_epoch(n: int, batch_size: int, epochs: int, seed: int) -> None:
    plan = plan_steps(n, batch_size, epochs=epochs, seed=seed)
    steps = [plan.rows(step) for step in range(len(plan))]
    assert all(len(rows) == batch_size for rows in steps[:-1])
    flat = [index for rows in steps for index in rows]
    assert len(flat) == n * epochs
    for epoch in range(epochs):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_steps_are_full_and_epochs_differ() -> None:
    plan = plan_steps(10, 4, steps=6, seed=3)
    assert [len(plan.rows(step)) for step in range(6)] == [4] * 6
    flat = [index for step in range(6) for index in plan.rows(step)]
    assert flat[:10] != flat[10:20]
    assert plan.rows(4) == plan_steps(10, 4, steps=600, seed=3).rows(4)
    assert plan.rows(4) != plan_steps(10, 4, steps=6, seed=4).rows(4)
    with pytest.raises(IndexError):
        plan.rows(6)


def test_part_of_an_epoch() -> None:
    assert len(plan_steps(10, 4, epochs=0.5).rows(1)) == 1


def test_no_rows() -> None:
    with pytest.raises(UserError, match="no rows to train on"):
        plan_steps(0, 4)


def test_holdout_is_apart_and_repeatable() -> None:
    train, aside = split_holdout(range(100), 0.05, 0)
    assert sorted(train + aside) == list(range(100))
    assert len(aside) == 5
    assert (train, aside) == split_holdout(range(100), 0.05, 0)
    assert aside != split_holdout(range(100), 0.05, 1)[1]
    assert split_holdout(range(3), 0, 0) == ([0, 1, 2], [])
    assert len(split_holdout(range(3), 0.05, 0)[1]) == 1


@pytest.mark.parametrize(("n", "share"), [(1, 0.05), (10, 1.0), (10, -0.1), (2, 0.9)])
def test_holdout_that_cannot_be(n: int, share: float) -> None:
    with pytest.raises(UserError, match=r"eval_split_size"):
        split_holdout(range(n), share, 0)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.floats(0.01, 0.5), st.integers(0, 5))
def test_questions_stay_together(asked: list[int], share: float, seed: int) -> None:
    sizes = [asked.count(one) for one in set(asked)]
    most = max(1, round(len(asked) * share), min(sizes))
    if most >= len(asked):
        with pytest.raises(
            UserError, match=rf"rows with the same question stay together; different questions: {len(sizes)}"
        ):
            split_holdout(asked, share, seed)
        return
    train, aside = split_holdout(asked, share, seed)
    assert sorted(train + aside) == list(range(len(asked)))
    assert not {asked[i] for i in train} & {asked[i] for i in aside}
    assert 0 < len(aside) <= most


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_rows_that_all_ask_something_else_are_split_as_ever(share: float) -> None:
    order = np.random.default_rng([3, 0]).permutation(40)
    count = round(40 * share)
    assert split_holdout(range(100, 140), share, 3) == (sorted(order[count:]), sorted(order[:count]))


def test_subsample() -> None:
    assert subsample(5, None, 0) == subsample(5, 9, 0) == [0, 1, 2, 3, 4]
    some = subsample(1000, 10, 0)
    assert len(set(some)) == 10
    assert some == sorted(some) == subsample(1000, 10, 0)
    assert some != list(range(10))
