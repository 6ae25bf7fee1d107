"""The head's product in tiles: the same numbers, whatever the shape, and a model left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rectune.sampling.tiles import TILE, tiled_head, tiled_linear


@pytest.mark.parametrize("words", [7, TILE, TILE + 1, 3 * TILE - 5])
@pytest.mark.parametrize("bias", [False, True])
def test_a_tiled_product_is_the_product(words: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 2, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(words, 16, generator=generator, dtype=torch.float64)
    offset = torch.randn(words, generator=generator, dtype=torch.float64) if bias else None
    torch.testing.assert_close(
        tiled_linear(rows, weight, offset), nn.functional.linear(rows, weight, offset), rtol=1e-12, atol=1e-12
    )


class Model(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_a_head_is_tiled_and_left_as_it_was() -> None:
    model = Model(nn.Linear(8, TILE + 3))
    rows = torch.randn(5, 8)
    with torch.inference_mode():
        whole = model.head(rows)
        with tiled_head(model):
            assert "forward" in vars(model.head)
            torch.testing.assert_close(model.head(rows), whole)
    assert "forward" not in vars(model.head)


def test_another_kind_of_head_is_left_alone() -> None:
    class Scaled(nn.Linear):
        pass

    model = Model(Scaled(8, TILE + 3))
    with tiled_head(model):
        assert "forward" not in vars(model.head)
