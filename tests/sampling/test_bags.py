"""Attention by weighted sums of stored rows is attention, to the bits whatever else is stored."""

import pytest
import torch
from torch import Tensor

from rectune.sampling.hf.cpu_attention import BLOCK, Bags, attend, from_blocks, to_blocks

SLOTS, HEADS, BLOCKS = 19, 2, 3
NEVER = torch.finfo(torch.float32).min


def stored(groups: int, width: int, value_width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys (not in blocks), values, and a mask of slots that are filled differently."""
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(SLOTS, HEADS, groups, width, generator=generator)
    keys = torch.randn(SLOTS, HEADS, BLOCKS * BLOCK, width, generator=generator)
    values = torch.randn(SLOTS, HEADS, BLOCKS * BLOCK, value_width, generator=generator)
    filled = torch.randint(1, BLOCKS * BLOCK + 1, (SLOTS, 1), generator=generator)
    mask = torch.where(torch.arange(BLOCKS * BLOCK) < filled, 0.0, NEVER)
    return query, keys, values, mask[:, None, None].expand(-1, -1, groups, -1)


def test_blocks_are_the_same_keys() -> None:
    keys = torch.randn(2, 3, 4 * BLOCK, 5)
    blocks = to_blocks(keys)
    assert blocks.shape == (2, 3, 4, 5, BLOCK)
    assert torch.equal(blocks[1, 2, 3, :, 7], keys[1, 2, 3 * BLOCK + 7])
    assert torch.equal(from_blocks(blocks), keys)


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize(("groups", "width", "value_width"), [(1, 8, 8), (3, 16, 16), (4, 16, 24)])
def test_it_is_attention(groups: int, width: int, value_width: int, softcap: float | None) -> None:
    query, keys, values, mask = stored(groups, width, value_width)
    bags = Bags.over(SLOTS + 5, HEADS, groups, BLOCKS, width)
    out, lse = attend(query, to_blocks(keys).contiguous(), values, mask, bags, scale=0.3, softcap=softcap)
    scores = query.double() @ keys.double().transpose(-1, -2) * 0.3
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    torch.testing.assert_close(out.double(), scores.softmax(-1) @ values.double(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=1e-6, rtol=1e-5)


def test_other_slots_do_not_change_a_bit() -> None:
    query, keys, values, mask = stored(3, 16, 16)
    keys, bags = to_blocks(keys).contiguous(), Bags.over(SLOTS, HEADS, 3, BLOCKS, 16)
    whole = attend(query, keys, values, mask, bags, scale=0.25, softcap=None)
    for some in (slice(0, 1), slice(0, 7), slice(5, 18), slice(18, 19)):
        part = attend(query[some], keys[some], values[some], mask[some], bags, scale=0.25, softcap=None)
        assert all(torch.equal(one, all_[some]) for one, all_ in zip(part, whole, strict=True))
