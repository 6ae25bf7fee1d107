"""Which rows are kept aside, and which rows each step reads: functions of the seed alone.

Any step can be asked for by its number, so a resumed run reads what the uninterrupted one would have. How a
step's rows are laid out is in `packing.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from rectune.errors import UserError

if TYPE_CHECKING:
    import datasets

_HOLDOUT, _LIMIT, _EPOCH = range(3)  # one random stream for each use of the seed


def subsample(n: int, limit: int | None, seed: int) -> list[int]:
    """At most `limit` of `n` row indices, sampled without replacement, ascending; None takes all."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(np.random.default_rng([seed, _LIMIT]).permutation(n)[:limit].tolist())


def questions(rows: datasets.Dataset) -> np.ndarray:
    """(rows,) int64 that rows of a `read_rows` dataset share which ask the same.

    What a row asks are its turns before the first supervised one, whatever spaces are in them.
    """
    digests = []
    for batch in rows.select_columns(["turns"]).with_format("arrow").iter(1000):
        for turns in batch["turns"].to_pylist():
            first = next((i for i, turn in enumerate(turns) if turn["supervised"]), len(turns))
            asked = "\0".join(f"{t['role']} {' '.join(t['content'].split())}" for t in turns[:first])
            digests.append(
                int.from_bytes(blake2b(asked.encode(), digest_size=8).digest(), "big", signed=True)
            )
    return np.array(digests, np.int64)


def split_holdout(asked: Sequence[int] | np.ndarray, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on and of those kept aside (`share` of them, at least one), both ascending.

    Args:
        asked: For each row what it asks, as a number: rows that ask the same stay together, so that fewer rows than
            the share may be kept aside, or more where no question has that few.

    Raises:
        UserError: `share` is not in [0, 1), or no row would be left to train on.
    """
    n = len(asked)
    if not 0 <= share < 1:
        raise UserError(f"must be from 0 to 1 (got {share})", where="eval_split_size", hint="0 to 1")
    if share == 0:
        return list(range(n)), []
    aside = max(1, round(n * share))
    _, question, sizes = np.unique(asked, return_inverse=True, return_counts=True)
    aside = max(aside, min(sizes.tolist(), default=1))
    if aside >= n:
        raise UserError(
            f"holding out {aside} of {n} rows leaves none to train on (rows with the same question stay together; "
            f"different questions: {len(sizes)})",
            where="eval_split_size",
            hint="give rows of more questions, or eval_split_size = 0",
        )
    order = question[np.random.default_rng([seed, _HOLDOUT]).permutation(n)]
    chosen, left = np.zeros(len(sizes), bool), aside
    for one in dict.fromkeys(order.tolist()):
        if sizes[one] <= left:
            chosen[one] = True
            left -= sizes[one]
    kept = chosen[question]
    return np.flatnonzero(~kept).tolist(), np.flatnonzero(kept).tolist()


@dataclass(frozen=True)
class StepPlan:
    """Which of `n` rows each optimizer step reads: one permutation an epoch, one behind the other.

    A step that reaches the end of an epoch goes on into the next one's permutation; the last step of all is
    short where the epochs end within it.

    Attributes:
        n: Number of rows.
        batch_size: Rows per step.
        total: Rows read by the whole run, repeats counted.
        seed: Of the permutations.
    """

    n: int
    batch_size: int
    total: int
    seed: int

    def __len__(self) -> int:
        """Number of steps."""
        return math.ceil(self.total / self.batch_size)

    def rows(self, step: int) -> list[int]:
        """Row indices of `step`, counted from 0."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        start = step * self.batch_size
        places = range(start, min(start + self.batch_size, self.total))
        return [int(_permutation(self.n, self.seed, place // self.n)[place % self.n]) for place in places]


def plan_steps(
    n: int, batch_size: int, *, epochs: float = 1.0, steps: int | None = None, seed: int = 0
) -> StepPlan:
    """The plan for `epochs` passes over `n` rows, or for `steps` full steps where that is given."""
    if n == 0:
        raise UserError("no rows to train on", hint="all were dropped or held out, or the data is empty")
    return StepPlan(n, batch_size, math.ceil(n * epochs) if steps is None else steps * batch_size, seed)


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, _EPOCH, epoch]).permutation(n)
