"""Slots keep what is theirs while the storage grows and shrinks around them, and give it back."""

from dataclasses import dataclass

import torch

from rectune.sampling.slots import Pool

HEADS, CAPACITY, WIDTH, MOST = 2, 6, 3, 20
LIKE = [(torch.zeros(HEADS, 1, WIDTH), torch.zeros(HEADS, 1, WIDTH))] * 2


@dataclass(eq=False)
class Owner:
    name: int
    length: int = 4
    slot: int = -1


def content(name: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.full((HEADS, 4, WIDTH), name + 0.25 * i), torch.full((HEADS, 4, WIDTH), -name - 0.5 * i))
            for i in range(2)]  # fmt: skip


def filled(names: range) -> tuple[Pool, list[Owner]]:
    pool, owners = Pool(CAPACITY, LIKE, MOST), [Owner(name) for name in names]
    for owner in owners:
        pool.add(owner, content(owner.name))
    return pool, owners


def test_everyone_keeps_their_content_in_any_order_of_leaving() -> None:
    pool, owners = filled(range(1, MOST + 1))
    leaving = torch.randperm(MOST, generator=torch.Generator().manual_seed(0)).tolist()
    for number, leaves in enumerate(leaving, 1):
        pool.remove(owners[leaves].slot)
        for stays in (owners[i] for i in leaving[number:]):
            for layer, (keys, values) in enumerate(pool.content(stays)):
                assert torch.equal(keys, content(stays.name)[layer][0])
                assert torch.equal(values, content(stays.name)[layer][1])


def test_no_more_slots_than_can_be_in_use_and_none_when_all_left() -> None:
    pool, owners = filled(range(1, MOST + 1))
    assert pool.slots == MOST
    for owner in owners[:-1]:
        pool.remove(owner.slot)
        assert pool.slots <= 4 * len(pool.owners)
    pool.remove(owners[-1].slot)
    assert pool.slots == 0
    pool.add(owners[0], content(1))
    assert torch.equal(pool.content(owners[0])[0][0], content(1)[0][0])


def test_what_is_not_filled_is_finite() -> None:
    dirty = [torch.full((8 * HEADS * CAPACITY * WIDTH,), torch.nan) for _ in range(8)]
    del dirty  # memory that the next tensors of this size get
    pool, _ = filled(range(1, 10))
    assert all(stored.isfinite().all() for kv in pool.layers for stored in kv)
