"""Loops are told from prose."""

from __future__ import annotations

import numpy as np

from rectune.sampling.repetition import repetition


def test_repetition_sees_loops_and_not_prose() -> None:
    rng = np.random.default_rng(0)
    assert repetition(rng.integers(0, 5000, 300).tolist()) < 0.05
    assert repetition([1, 2, 3, 4, 5] * 40) > 0.9
    assert repetition([1] * 10) == 0
