"""Deterministic algorithms on a GPU: on while gradients are computed, off behind, given up where they are not had."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rectune.training import accumulation as repeatable
from rectune.training.accumulation import run_deterministically

GPU = torch.device("cuda")  # named only: nothing here needs one


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    repeatable._unable.clear()


def test_on_within_and_as_before_behind() -> None:
    assert run_deterministically(GPU, torch.are_deterministic_algorithms_enabled)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not run_deterministically(torch.device("cpu"), torch.are_deterministic_algorithms_enabled)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_deterministically(GPU, lambda: exec("raise RuntimeError('CUDA out of memory')"))
    assert not torch.are_deterministic_algorithms_enabled() and not repeatable._unable
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_an_operation_that_cannot_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def counts() -> int:
        calls.append(torch.are_deterministic_algorithms_enabled())
        if calls[-1]:
            raise RuntimeError(
                "_histc_cuda does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'. You can turn off determinism."
            )
        return 3

    assert [run_deterministically(GPU, counts) for _ in range(2)] == [3, 3]
    assert calls == [True, False, False]
    (said,) = [record.message for record in caplog.records]
    assert said.endswith("uninterrupted one: _histc_cuda does not have a deterministic implementation")
