"""Rows of different lengths side by side in one sequence, without padding.

`pack` decides which rows share a forward pass, and `pack_for` does for several processes; `collate` lays them out, with
positions that restart at each row. That no token attends across rows is left to `models/scorer.py`, which reads
`row_lengths`; which rows belong to a step is in `sampler.py`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from rectune.errors import UserError


class EncodedLike(Protocol):
    """What `collate` reads of a row: sequences of equal length, of which `weight` may be empty."""

    @property
    def input_ids(self) -> Sequence[int]: ...
    @property
    def labels(self) -> Sequence[int]: ...
    @property
    def structural(self) -> Sequence[bool]: ...
    @property
    def weight(self) -> Sequence[float]: ...


@dataclass(frozen=True)
class Batch:
    """Rows laid out as one packed sequence of T tokens, in the order given.

    Attributes:
        input_ids: (1, T) int64.
        position_ids: (1, T) int64, from 0 in each row.
        labels: (1, T) int64, the token's own id where it is a target and -100 elsewhere; not shifted. The
            first token of a row never is one, so shifting by one position cannot cross rows.
        structural: (1, T) bool, True at targets that end a turn or are special tokens.
        rows: (T,) int64, index within the batch of the row that each position belongs to.
        row_lengths: Tokens of each row; on the host, since attention needs them as numbers.
        weight: (1, T) float32, what the loss of each target is multiplied with.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    structural: torch.Tensor
    rows: torch.Tensor
    row_lengths: list[int]
    weight: torch.Tensor


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `capacity`: best-fit decreasing, O(n log n), deterministic.

    Raises:
        UserError: A row is longer than `capacity`.
    """
    bins: list[list[int]] = []
    spaces: list[int] = []  # distinct free spaces of the open bins, ascending
    with_space: dict[int, list[int]] = {}  # free space -> bins that have it
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = int(lengths[index])
        if length > capacity:
            raise UserError(
                f"a row of {length} tokens does not fit into {capacity}",
                where="tokens_per_micro_batch",
                hint=f"make it at least {length}, or max_length smaller",
            )
        at = bisect_left(spaces, length)
        if at < len(spaces):
            space = spaces[at]
            bin_index = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[at]
            bins[bin_index].append(index)
        else:
            space, bin_index = capacity, len(bins)
            bins.append([index])
        left = space - length
        if left not in with_space:
            with_space[left] = []
            insort(spaces, left)
        with_space[left].append(bin_index)
    return bins


def pack_for(processes: int, lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """`pack` for several processes that take its bins by turns: as many bins for each, with about as many tokens.

    Rows, longest first, join the bin with the fewest tokens. Fewer bins than processes come only of fewer rows. For
    one process these are the bins of `pack`.

    Raises:
        UserError: A row is longer than `capacity`.
    """
    bins = pack(lengths, capacity)
    if processes == 1:
        return bins
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for turns in range(-(-len(bins) // processes), len(lengths) + 1):
        loads = [(0, place) for place in range(min(len(lengths), turns * processes))]
        bins = [[] for _ in loads]
        for index in longest_first:
            tokens, place = loads[0]
            bins[place].append(index)
            heapq.heapreplace(loads, (tokens + int(lengths[index]), place))
        if max(loads, default=(0, 0))[0] <= capacity:
            break
    return sorted(filter(None, bins), key=lambda indices: -sum(lengths[i] for i in indices))


def collate(
    encoded: Sequence[EncodedLike], device: torch.device | str | None = None, *, mean_weight: float = 1.0
) -> Batch:
    """Lay rows out one behind the other; rows without targets, and no rows at all, are fine.

    Args:
        mean_weight: What the rows' weights are divided by.

    Raises:
        ValueError: The first token of a row is a target, though it has no preceding token.
    """
    lengths = [len(row.input_ids) for row in encoded]
    if any(length and row.labels[0] != -100 for row, length in zip(encoded, lengths, strict=True)):
        raise ValueError("the first token of a row cannot be a target: it has no preceding token")

    def joined(arrays: list[np.ndarray], dtype: type) -> torch.Tensor:
        flat: np.ndarray = np.concatenate([*arrays, np.empty(0, dtype)], dtype=dtype, casting="unsafe")
        return torch.from_numpy(flat).to(device)

    return Batch(
        input_ids=joined([np.asarray(row.input_ids) for row in encoded], np.int64)[None],
        position_ids=joined([np.arange(length) for length in lengths], np.int64)[None],
        labels=joined([np.asarray(row.labels) for row in encoded], np.int64)[None],
        structural=joined([np.asarray(row.structural) for row in encoded], np.bool_)[None],
        rows=joined([np.repeat(np.arange(len(lengths)), lengths)], np.int64),
        row_lengths=lengths,
        weight=joined(
            [np.asarray(row.weight or np.ones(len(row.input_ids))) / mean_weight for row in encoded],
            np.float32,
        )[None],
    )
