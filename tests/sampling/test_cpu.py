"""What the CPU backend replaces it equals: packed products, padded products, attention as sums of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rectune.sampling.hf import cpu
from rectune.sampling.hf.cpu import BLOCK, ROWS, PackedLinears, attend, bag_rows, batch_invariant_sizes
from toys import tiny_model

WHY = "this torch or processor has no products with packed weights"
needs_packing = pytest.mark.skipif(not cpu.packing_works(torch.float32), reason=WHY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "out", "bias"), [(64, 1, False), (5, 7, True), (96, 200, False)])
@torch.inference_mode()
def test_a_packed_product_is_the_product(width: int, out: int, bias: bool, dtype: torch.dtype) -> None:
    if not cpu.packing_works(dtype):
        pytest.skip(WHY)
    layer = nn.Linear(width, out, bias=bias, dtype=dtype)
    packed = PackedLinears(layer)
    for shape in [(0,), (1,), (3, 2), (130,)]:
        rows = torch.randn(*shape, width, dtype=dtype)
        usual = layer(rows)
        with packed.installed():
            assert "forward" in vars(layer)
            torch.testing.assert_close(layer(rows), usual)
        assert torch.equal(layer(rows), usual)


@needs_packing
@torch.inference_mode()
def test_packed_weights_are_those_of_the_moment_and_an_error_uninstalls_them() -> None:
    layer = nn.Linear(8, 8, bias=False)
    packed = PackedLinears(layer)
    layer.weight.zero_()
    with packed.installed():
        assert layer(torch.ones(1, 8)).any()
    with pytest.raises(KeyError), packed.installed():
        raise KeyError
    assert "forward" not in vars(layer)
    with PackedLinears(layer).installed():
        assert not layer(torch.ones(1, 8)).any()


@needs_packing
def test_the_limit_is_spent_from_the_head_on() -> None:
    model = tiny_model()
    head = model.get_output_embeddings()
    every = PackedLinears(model).products
    assert len(every) == sum(isinstance(layer, nn.Linear) for layer in model.modules())
    assert list(PackedLinears(model, head.weight.nbytes).products) == [head]
    assert PackedLinears(model, head.weight.nbytes - 1).products == {}


def test_other_layers_and_other_versions_of_torch_keep_plain_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Scaled(nn.Linear):
        pass

    def absent(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    replaced, halves = nn.Linear(8, 8), nn.Linear(8, 8, dtype=torch.float16)
    replaced.forward = lambda rows: rows  # type: ignore[method-assign]
    assert PackedLinears(nn.Sequential(Scaled(8, 8), replaced, halves, nn.LayerNorm(8))).products == {}
    monkeypatch.setattr(cpu, "_packed_product", absent)
    cpu.packing_works.cache_clear()
    try:
        assert PackedLinears(nn.Linear(8, 8)).products == {}
    finally:
        cpu.packing_works.cache_clear()


def test_sizes_that_round_differently_are_left_out_and_other_modules_are_not_tried() -> None:
    """A layer is tried as it computes, packed or not."""
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(64, 96))
    model[1].forward = lambda rows: torch.full((len(rows), 96), float(len(rows) == 48))  # type: ignore[method-assign]
    sizes = batch_invariant_sizes(model)
    assert 48 not in sizes and {64, 128} <= set(sizes)
    model.experts = nn.Parameter(torch.zeros(2, 64, 96))
    assert batch_invariant_sizes(model) == (ROWS, 2 * ROWS)


SLOTS, HEADS, BLOCKS = 19, 2, 3


def stored(groups: int, width: int, value_width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys (not in blocks), values, and a mask of slots that are filled differently."""
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(SLOTS, HEADS, groups, width, generator=generator)
    keys = torch.randn(SLOTS, HEADS, BLOCKS * BLOCK, width, generator=generator)
    values = torch.randn(SLOTS, HEADS, BLOCKS * BLOCK, value_width, generator=generator)
    filled = torch.randint(1, BLOCKS * BLOCK + 1, (SLOTS, 1), generator=generator)
    mask = torch.where(torch.arange(BLOCKS * BLOCK) < filled, 0.0, torch.finfo(torch.float32).min)
    return query, keys, values, mask[:, None, None].expand(-1, -1, groups, -1)


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize(("groups", "width", "value_width"), [(1, 8, 8), (3, 16, 16), (4, 16, 24)])
def test_sums_of_rows_are_attention(groups: int, width: int, value_width: int, softcap: float | None) -> None:
    query, keys, values, mask = stored(groups, width, value_width)
    blocks = cpu.to_blocks(keys).contiguous()
    assert torch.equal(blocks[1, 1, 2, :, 7], keys[1, 1, 2 * BLOCK + 7])
    assert torch.equal(cpu.from_blocks(blocks), keys)
    bags = bag_rows(SLOTS + 5, HEADS, groups, BLOCKS, width)
    out, lse = attend(query, blocks, values, mask, bags, scale=0.3, softcap=softcap)
    scores = query.double() @ keys.double().transpose(-1, -2) * 0.3
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    torch.testing.assert_close(out.double(), scores.softmax(-1) @ values.double(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=1e-6, rtol=1e-5)
