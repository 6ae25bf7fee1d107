"""One forward pass over a sample of rows: what the model thinks of every target, within a time budget.

Rows are drawn at random with a seed and measured until the budget, the wanted number, or the rows end. Everything that
is said later comes from the columns that this pass gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rectune.data.encoded_dataset import EncodedRows
from rectune.data.packing import Batch, collate
from rectune.errors import UserError
from rectune.logprobs import supervised_positions
from rectune.models.scorer import Scorer

COLUMNS = ("logp", "entropy", "entropy20", "top1")


@dataclass(frozen=True)
class Measured:
    """Columns of the N measured targets, in the order of their rows.

    Attributes:
        logp_N, entropy_N, entropy20_N: float64, nats.
        top1_N, structural_N: bool.
        targets_N: Ids, int64.
        row_N: Index among the measured rows, int64, ascending.
        place_N: Position in the row's answers, in [0, 1).
        rows: For each measured row its index in the encoded rows.
        seconds, tokens: Of the pass; tokens with the prompts'.
    """

    logp_N: np.ndarray
    entropy_N: np.ndarray
    entropy20_N: np.ndarray
    top1_N: np.ndarray
    structural_N: np.ndarray
    targets_N: np.ndarray
    row_N: np.ndarray
    place_N: np.ndarray
    rows: list[int]
    seconds: float
    tokens: int

    @property
    def p_N(self) -> np.ndarray:
        return np.exp(self.logp_N)

    def per_row(self, values_N: np.ndarray) -> np.ndarray:
        """Mean over the targets of each measured row: (rows,)."""
        counts = np.bincount(self.row_N, minlength=len(self.rows))
        return np.bincount(self.row_N, weights=values_N, minlength=len(self.rows)) / np.maximum(counts, 1)

    def columns(self) -> dict[str, torch.Tensor]:
        """The columns that objectives read, the model being its own reference: (N,), float64."""
        logp = torch.from_numpy(self.logp_N)
        return {
            "logp": logp,
            "ref_logp": logp,
            "old_logp": logp,
            "kl": torch.zeros_like(logp),
            "entropy": torch.from_numpy(self.entropy_N),
            "entropy20": torch.from_numpy(self.entropy20_N),
            "row": torch.from_numpy(self.row_N),
            "structural": torch.from_numpy(self.structural_N),
        }


def measure(
    scorer: Scorer,
    encoded: EncodedRows,
    *,
    rows: int | None,
    seconds: float,
    capacity: int,
    seed: int,
    report: Callable[[int, int, float], None] = lambda done, total, left: None,
) -> Measured:
    """Measure up to `rows` rows (all where None), for about `seconds` unless `rows` is given.

    Args:
        scorer: Of the model.
        encoded: The rows.
        rows: How many; given, they are all measured however long it takes.
        seconds: Of the pass, where `rows` is None.
        capacity: Tokens of a packed batch.
        seed: Of the sample.
        report: Gets rows done, rows expected and seconds left after every batch.

    Raises:
        UserError: A log-probability that is not finite (a broken model).
    """
    order = np.random.default_rng(seed).permutation(len(encoded))
    wanted = len(encoded) if rows is None else min(rows, len(encoded))
    kept: dict[str, list[Any]] = {}
    taken: list[int] = []
    began, tokens = time.perf_counter(), 0
    device = next(scorer.model.parameters()).device
    for indices in _batches(encoded, order[:wanted], capacity):
        batch = collate([encoded[i] for i in indices], device)
        _keep(kept, scorer, batch, len(taken))
        taken += indices
        tokens += sum(batch.row_lengths)
        spent = time.perf_counter() - began
        if rows is None and spent >= seconds:
            break
        rest = spent / len(taken) * (wanted - len(taken))
        left = rest if rows is not None else min(rest, seconds - spent)
        report(len(taken), len(taken) + round(left * len(taken) / spent), left)
    columns = {name: np.concatenate(parts) for name, parts in kept.items()}
    if not np.isfinite(columns["logp_N"]).all():
        raise UserError(
            "the model gives log-probabilities that are not finite", hint="its weights are broken"
        )
    spent = time.perf_counter() - began
    return Measured(**columns, rows=taken, seconds=spent, tokens=tokens)


def _batches(encoded: EncodedRows, order: np.ndarray, capacity: int) -> Iterator[list[int]]:
    """Rows in the order given, as many as fit; the first batch is small, so that the speed is known early."""
    lengths, batch, room = encoded.lengths, list[int](), capacity // 4
    for index in order.tolist():
        if batch and lengths[index] > room:
            yield batch
            batch, room = [], capacity
        batch.append(index)
        room -= int(lengths[index])
    if batch:
        yield batch


@torch.inference_mode()
def _keep(kept: dict[str, list[Any]], scorer: Scorer, batch: Batch, before: int) -> None:
    columns = scorer.columns(batch, COLUMNS)
    row = columns["row"].cpu().numpy()
    counts = np.bincount(row, minlength=len(batch.row_lengths))
    starts = np.cumsum(counts) - counts
    found = {
        "logp_N": columns["logp"].double().cpu().numpy(),
        "entropy_N": columns["entropy"].double().cpu().numpy(),
        "entropy20_N": columns["entropy20"].double().cpu().numpy(),
        "top1_N": columns["top1"].bool().cpu().numpy(),
        "structural_N": columns["structural"].bool().cpu().numpy(),
        "targets_N": supervised_positions(batch.labels)[1].cpu().numpy(),
        "row_N": row + before,
        "place_N": (np.arange(len(row)) - starts[row]) / counts[row],
    }
    for name, values in found.items():
        kept.setdefault(name, []).append(values)
