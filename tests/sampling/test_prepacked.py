"""Weights laid out once: the same numbers for any shape, within a limit, and a model left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rectune.sampling.hf import mkldnn_linear as module
from rectune.sampling.hf.mkldnn_linear import available, prepack, prepacked
from toys import tiny_model

WHY = "this torch has no products with weights laid out before"
needed = pytest.mark.skipif(not available(torch.float32), reason=WHY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(0,), (1,), (3, 2), (130,), (5, 1)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "out"), [(64, 1), (5, 7), (96, 200)])
@torch.inference_mode()
def test_a_product_is_the_product(
    rows: tuple[int, ...], bias: bool, width: int, out: int, dtype: torch.dtype
) -> None:
    if not available(dtype):
        pytest.skip(WHY)
    layer = nn.Linear(width, out, bias=bias, dtype=dtype)
    asked = torch.randn(*rows, width, dtype=dtype)
    usual = layer(asked)
    with prepacked(prepack(layer)):
        assert "forward" in vars(layer)
        torch.testing.assert_close(layer(asked), usual)
    assert "forward" not in vars(layer)
    assert torch.equal(layer(asked), usual)


@needed
def test_weights_are_those_of_the_moment() -> None:
    layer = nn.Linear(8, 8, bias=False)
    made = prepack(layer)
    with torch.no_grad():
        layer.weight.zero_()
    with torch.inference_mode(), prepacked(made):
        assert layer(torch.ones(1, 8)).any()
    with torch.inference_mode(), prepacked(prepack(layer)):
        assert not layer(torch.ones(1, 8)).any()


@needed
def test_the_limit_is_spent_from_the_head_on() -> None:
    model = tiny_model()
    head = model.get_output_embeddings()
    every = prepack(model)
    assert head in every
    assert len(every) == sum(isinstance(layer, nn.Linear) for layer in model.modules())
    assert list(prepack(model, head.weight.nbytes)) == [head]
    assert prepack(model, head.weight.nbytes - 1) == {}


def test_other_layers_are_left_alone() -> None:
    class Scaled(nn.Linear):
        pass

    replaced = nn.Linear(8, 8)
    replaced.forward = lambda rows: rows  # type: ignore[method-assign]
    halves = nn.Linear(8, 8, dtype=torch.float16)
    assert prepack(nn.Sequential(Scaled(8, 8), replaced, halves, nn.LayerNorm(8))) == {}


def test_without_such_products_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(module, "_product", absent)
    available.cache_clear()
    try:
        assert not available(torch.float32)
        assert prepack(nn.Linear(8, 8)) == {}
    finally:
        available.cache_clear()


def test_an_error_leaves_the_model_as_it_was() -> None:
    layer = nn.Linear(8, 8)
    with pytest.raises(KeyError), prepacked(prepack(layer)):
        raise KeyError
    assert "forward" not in vars(layer)
