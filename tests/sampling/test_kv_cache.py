"""Slots keep their content while the storage grows and shrinks; the prefix cache keeps the prompts used last."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from rectune.sampling.hf.kv_cache import KVPool, PrefixCache

HEADS, CAPACITY, FILLED, WIDTH, MOST = 2, 192, 128, 3, 20
LIKE = [(torch.zeros(HEADS, 1, WIDTH), torch.zeros(HEADS, 1, WIDTH))] * 2


@dataclass(eq=False)
class Owner:
    name: int
    length: int = FILLED
    slot: int = -1


def content(name: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    numbers = torch.arange(1.0, HEADS * FILLED * WIDTH + 1).view(HEADS, FILLED, WIDTH)
    return [(name * numbers + 0.25 * layer, -name * numbers - 0.5 * layer) for layer in range(2)]


@pytest.fixture(params=[False, True], ids=["plain", "blocks"])
def blocks(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def filled(names: range, blocks: bool) -> tuple[KVPool, list[Owner]]:
    pool, owners = KVPool(CAPACITY, LIKE, MOST, blocks=blocks), [Owner(name) for name in names]
    for owner in owners:
        pool.add(owner, content(owner.name))
    return pool, owners


def test_no_more_slots_than_can_be_in_use_and_none_when_all_left(blocks: bool) -> None:
    pool, owners = filled(range(1, MOST + 1), blocks)
    assert pool.slots == MOST
    for owner in owners[:-1]:
        pool.remove(owner.slot)
        assert pool.slots <= 4 * len(pool.owners)
    pool.remove(owners[-1].slot)
    assert pool.slots == 0
    pool.add(owners[0], content(1))
    assert torch.equal(pool.content(owners[0])[0][0], content(1)[0][0])


def test_what_is_not_filled_is_finite(blocks: bool) -> None:
    dirty = [torch.full((8 * HEADS * CAPACITY * WIDTH,), torch.nan) for _ in range(8)]
    del dirty  # memory that the next tensors of this size get
    pool, _ = filled(range(1, 10), blocks)
    assert all(stored.isfinite().all() for kv in pool.layers for stored in kv)


def test_the_prefix_cache_keeps_the_prompts_used_last() -> None:
    def prefilled(size: int) -> Any:
        return torch.zeros(size), [(torch.zeros(size), torch.zeros(size))]

    cache = PrefixCache(limit=4 * 9)
    for name in (1, 2, 3):
        cache.put((name,), prefilled(1))
    assert cache.get((1,)) is not None
    cache.put((4,), prefilled(1))
    assert [cache.get((name,)) is not None for name in (1, 2, 3, 4)] == [True, False, True, True]
    cache.put((5,), prefilled(100))
    assert (cache.size, cache.get((5,))) == (0, None)
