"""Row counts at which products have the same bits are found by trying."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rectune.sampling.hf.batch_invariance import ROWS, steady_sizes
from rectune.sampling.hf.scheduler import Batch
from toys import tiny_model


def test_sizes_give_the_same_bits() -> None:
    model = tiny_model()
    sizes = steady_sizes(model)
    assert {64, 128} <= set(sizes) <= set(range(16, 129, 16))
    rows = torch.randn(128, 64)
    layer = nn.Linear(64, 96)
    whole = layer(rows)
    for size in steady_sizes(layer):
        for start in (0, 128 - size):
            assert torch.equal(layer(rows[start : start + size]), whole[start : start + size])


def test_a_size_with_other_bits_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    original = nn.Linear.forward

    def rounding(self: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        made = original(self, rows)
        return made.nextafter(made + 1) if len(rows) in (32, 80) and self.out_features == 96 else made

    monkeypatch.setattr(nn.Linear, "forward", rounding)
    sizes = steady_sizes(nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 96)))
    assert not {32, 80} & set(sizes)
    assert {64, 128} <= set(sizes)


def test_other_products_than_linear_layers_are_not_tried() -> None:
    layer = nn.Linear(64, 96)
    layer.experts = nn.Parameter(torch.zeros(2, 64, 96))
    assert steady_sizes(layer) == (ROWS, 2 * ROWS)


@pytest.mark.parametrize(
    ("rows", "computed"), [(1, 16), (16, 16), (17, 64), (64, 64), (65, 128), (129, 256), (300, 384)]
)
def test_a_batch_is_padded_to_the_next_size(rows: int, computed: int) -> None:
    batch = Batch(torch.device("cpu"), (16, 64, 128), 8)
    padded = batch.padded(torch.ones(rows, 2))
    assert len(padded) == computed
    assert padded[:rows].all()
    assert not padded[rows:].any()
    assert len(Batch(torch.device("cpu"), None, 8).padded(torch.ones(rows, 2))) == rows


def test_a_layer_is_tried_as_it_is_computed() -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(64, 96))
    tried = list[int]()

    def rounding(rows: torch.Tensor) -> torch.Tensor:
        tried.append(len(rows))
        return torch.full((len(rows), 96), float(len(rows) == 48))

    model[1].forward = rounding  # type: ignore[method-assign]
    assert 48 not in steady_sizes(model)
    assert {16, 48, 128} <= set(tried)
