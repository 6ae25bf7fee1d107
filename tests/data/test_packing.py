"""`pack` fills sequences without losing a row; `collate` lays rows out so that packed equals one by one."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectune.data.packing import Batch, collate, pack, pack_for
from rectune.data.tokenization import Encoded
from rectune.errors import UserError
from toys import tiny_model


def row(ids: list[int], prompt: int) -> Encoded:
    """A row of `ids` of which the first `prompt` are no targets and the last ends the turn."""
    targets = len(ids) - prompt
    return Encoded(ids, [-100] * prompt + ids[prompt:], [False] * (len(ids) - 1) + [targets > 0])


@given(st.lists(st.integers(0, 50), max_size=200), st.integers(50, 120))
def test_every_row_once_and_no_bin_above_capacity(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(i for bin in bins for i in bin) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in bin) <= capacity for bin in bins)
    assert bins == pack(list(lengths), capacity)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200))
def test_two_bins_are_never_both_half_empty(lengths: list[int]) -> None:
    fills = [sum(lengths[i] for i in bin) for bin in pack(lengths, 50)]
    assert sum(2 * fill <= 50 for fill in fills) <= 1


def test_takes_the_tightest_place() -> None:
    assert pack([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    assert pack([5, 6, 5, 4], 10) == [[1, 3], [0, 2]]
    assert pack([], 10) == []


def test_many_rows_are_packed_tightly() -> None:
    draw = random.Random(0)
    lengths = [min(2048, int(draw.lognormvariate(5, 0.7)) + 1) for _ in range(20_000)]
    bins = pack(lengths, 2048)
    assert sum(lengths) / (2048 * len(bins)) > 0.99


def test_a_row_that_fits_nowhere_is_named() -> None:
    with pytest.raises(UserError, match="a row of 11 tokens does not fit into 10"):
        pack([3, 11], 10)


@given(st.lists(st.integers(1, 50), max_size=100), st.integers(50, 120), st.integers(2, 9))
def test_every_process_has_as_many_bins(lengths: list[int], capacity: int, processes: int) -> None:
    bins = pack_for(processes, lengths, capacity)
    assert sorted(i for bin in bins for i in bin) == list(range(len(lengths)))
    fills = [sum(lengths[i] for i in bin) for bin in bins]
    assert all(0 < fill <= capacity for fill in fills) and fills == sorted(fills, reverse=True)
    assert len(bins) % processes == 0 or all(len(bin) == 1 for bin in bins)
    assert max(fills, default=0) - min(fills, default=0) <= max(lengths, default=0)
    assert pack_for(1, lengths, capacity) == pack(lengths, capacity)


def test_layout() -> None:
    batch = collate([row([5, 6, 7], 1), row([8, 9], 1)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.labels.tolist() == [[-100, 6, 7, -100, 9]]
    assert batch.structural.tolist() == [[False, False, True, False, True]]
    assert batch.rows.tolist() == [0, 0, 0, 1, 1]
    assert batch.row_lengths == [3, 2]
    assert batch.input_ids.dtype == batch.position_ids.dtype == batch.labels.dtype == torch.int64
    assert batch.rows.dtype == torch.int64
    assert batch.structural.dtype == torch.bool


def test_rows_without_targets_and_no_rows_at_all() -> None:
    assert (collate([row([5, 6], 2)]).labels == -100).all()
    empty = collate([])
    assert empty.input_ids.shape == empty.labels.shape == (1, 0)
    assert empty.row_lengths == []


def test_the_first_token_cannot_be_a_target() -> None:
    with pytest.raises(ValueError, match="it has no preceding token"):
        collate([row([5, 6], 1), row([5, 6], 0)])


def row_by_row(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Logits of a packed batch with attention within each row only, whatever the architecture."""
    parts = zip(
        batch.input_ids.split(batch.row_lengths, 1),
        batch.position_ids.split(batch.row_lengths, 1),
        strict=True,
    )
    return torch.cat([model(input_ids=ids, position_ids=at).logits for ids, at in parts], dim=1)


def nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over targets, shifted by one over the whole sequence, rows' borders not looked at."""
    return torch.nn.functional.cross_entropy(
        logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
    )


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_packed_equals_one_by_one(arch: str) -> None:
    model = tiny_model(arch)
    draw = random.Random(1)
    rows = [row([draw.randrange(3, 266) for _ in range(n)], n // 2) for n in (12, 2, 9, 17)]
    packed = nll(row_by_row(model, collate(rows)), collate(rows).labels)
    alone = sum(nll(model(torch.tensor([r.input_ids])).logits, torch.tensor([r.labels])) for r in rows)
    torch.testing.assert_close(packed, alone)
    packed_gradients = torch.autograd.grad(packed, list(model.parameters()))
    for ours, theirs in zip(
        packed_gradients, torch.autograd.grad(alone, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
