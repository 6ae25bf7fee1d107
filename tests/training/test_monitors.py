"""What evaluations log beyond means, and the peak of memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.training.metrics import PROBABILITY_BINS, histogram, peak_memory_mib, reset_peak_memory
from training_runs import metrics


def slow_histogram(values: list[float]) -> list[int]:
    bins = itertools.pairwise(PROBABILITY_BINS)
    return [sum(low <= p < high or p == high == 1 for p in values) for low, high in bins]


def test_bins_are_closed_below_and_the_last_one_above_too() -> None:
    edges = list(PROBABILITY_BINS)
    values = [*edges, *torch.rand(500, dtype=torch.float64).tolist(), 1e-9, 5e-4, 0.9999]
    assert histogram(values) == slow_histogram(values)
    assert histogram(edges) == [1] * 12 + [2]
    assert histogram(torch.tensor(edges)) == [1] * 12 + [2]  # 0.7 in float32 is below 0.7
    assert histogram([0.1 - 1e-12]) == [0, 0, 0, 1] + [0] * 9
    assert histogram([]) == [0] * 13
    assert histogram(torch.tensor([float("nan"), 1.0000001])) == [0] * 12 + [1]


def test_evaluations_log_the_histogram(run: Any) -> None:
    result = run()
    for line in metrics(result.out, "holdout"):
        assert len(line["histogram"]) == 13
        assert sum(line["histogram"]) == line["supervised"]
        assert sum(line["histogram"][:3]) == round(line["low_p"] * line["supervised"])
    assert not any("histogram" in line for line in metrics(result.out, "train"))


def test_a_second_run_does_not_show_the_first_ones_peak() -> None:
    if torch.cuda.is_available():
        pytest.skip("the peak is the GPU's")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system cannot reset the peak")
    reset_peak_memory()
    block = torch.ones(80 << 20, dtype=torch.float32)
    high = peak_memory_mib()
    assert high > 320 == block.numel() * 4 >> 20
    del block
    assert peak_memory_mib() >= high - 8  # the kernel counts in batches
    reset_peak_memory()
    assert peak_memory_mib() < high - 200
