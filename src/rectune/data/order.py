"""Which rows are kept aside, and which rows each step reads: functions of the seed alone.

Any step can be asked for by its number, so a resumed run reads what the uninterrupted one would have. How a
step's rows are laid out is in `packing.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rectune.errors import UserError

_HOLDOUT, _LIMIT, _EPOCH = range(3)  # one random stream for each use of the seed


def draw(n: int, limit: int | None, seed: int) -> list[int]:
    """At most `limit` of `n` row indices drawn without replacement, ascending; None draws all."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(np.random.default_rng([seed, _LIMIT]).permutation(n)[:limit].tolist())


def split_holdout(n: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on and of those kept aside (`share` of `n`, at least one), both ascending.

    Raises:
        UserError: `share` is not in [0, 1), or no row would be left to train on.
    """
    if not 0 <= share < 1:
        raise UserError(f"a share of {share} cannot be kept aside", where="rows.holdout", hint="0 to 1")
    if share == 0:
        return list(range(n)), []
    aside = max(1, round(n * share))
    if aside >= n:
        raise UserError(
            f"keeping {aside} of {n} rows aside leaves none to train on",
            where="rows.holdout",
            hint="give more rows, or holdout = 0",
        )
    order = np.random.default_rng([seed, _HOLDOUT]).permutation(n)
    return sorted(order[aside:].tolist()), sorted(order[:aside].tolist())


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
        raise UserError("no rows to train on", hint="all were dropped, kept aside, or never there")
    return StepPlan(n, batch_size, math.ceil(n * epochs) if steps is None else steps * batch_size, seed)


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, _EPOCH, epoch]).permutation(n)
