"""What a run reads: its rows as token ids, the hold-out, and which rows each micro-batch of a step holds.

Everything here is a function of config and step alone, so a run that goes on reads what it would have read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from rectune.config import TrainConfig
from rectune.data.encoding import EncodedRows, choose_template, encode_rows
from rectune.data.order import StepPlan, draw, plan_steps, split_holdout
from rectune.data.packing import Batch, collate, pack
from rectune.data.reading import read_rows
from rectune.data.sources import PACKAGED
from rectune.errors import UserError


@dataclass(frozen=True)
class Split:
    """Some of the encoded rows, by their indices; `rows` are those that were encoded, as text."""

    encoded: EncodedRows
    indices: list[int]
    rows: datasets.Dataset

    def __len__(self) -> int:
        return len(self.indices)

    def lengths(self, rows: list[int] | None = None) -> list[int]:
        """Tokens of the given rows of the split, or of all."""
        chosen = self.indices if rows is None else [self.indices[row] for row in rows]
        return [int(n) for n in self.encoded.lengths[chosen]]

    @cached_property
    def supervised(self) -> np.ndarray:
        """Targets of each row of the split: (rows,)."""
        column = self.encoded.dataset.with_format("numpy", columns=["supervised"])[:]["supervised"]
        return np.asarray(column)[self.indices]

    def where(self, row: int) -> str:
        """Where a row of the split came from: `file:line`."""
        return str(self.rows[self.encoded.dataset[self.indices[row]]["row"]]["where"])

    def batch(self, rows: list[int], device: object = None) -> Batch:
        return collate([self.encoded[self.indices[row]] for row in rows], device)  # type: ignore[arg-type]

    def packed(self, capacity: int, device: object = None) -> Iterator[Batch]:
        """The whole split, packed."""
        for rows in pack(self.lengths(), capacity):
            yield self.batch(rows, device)


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, rows kept aside, and the order of the steps."""

    train: Split
    holdout: Split
    plan: StepPlan
    config: TrainConfig
    template: str

    def micro_batches(self, step: int) -> list[list[int]]:
        """Rows of each forward pass of a step: packed best-fit, or by fixed counts as the paper's code does."""
        rows = self.plan.rows(step)
        if self.config.normalization == "micro-batch":
            size = self.config.micro_batch_rows
            return [rows[start : start + size] for start in range(0, len(rows), size)]
        bins = pack(self.train.lengths(rows), capacity(self.config))
        return [[rows[place] for place in places] for places in bins]

    def supervised(self, step: int) -> int:
        """Targets of a step, over all processes: what its sum of losses is divided by."""
        return int(self.train.supervised[self.plan.rows(step)].sum())

    @cached_property
    def fingerprint(self) -> str:
        """What a run that goes on must find again: sizes and a checksum of the rows' ids and labels."""
        rows = self.train.encoded.dataset.select(self.train.indices).with_format("arrow")
        checksum = 0
        for part in rows.iter(batch_size=1000):
            for name in ("input_ids", "labels"):
                checksum = zlib.crc32(part[name].combine_chunks().flatten().to_numpy(), checksum)
        return f"{len(self.train):,} rows, {sum(self.train.lengths()):,} tokens, checksum {checksum:08x}"


def capacity(config: TrainConfig) -> int:
    """Tokens of a packed sequence: as configured, but never less than one row may have."""
    return max(config.micro_batch_tokens, config.max_length)


def load_data(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    """Read, encode and split the rows of a config. Raises `UserError` for rows that cannot be used."""
    template = choose_template(config.rows.template, tokenizer)
    rows = read_rows(config.data, options=config.rows)
    encoded = encode_rows(rows, tokenizer, template, max_length=config.max_length)
    chosen = draw(len(encoded), config.rows.limit, config.seed)
    if config.choose != "last" and config.rows.holdout == 0:
        raise UserError(f"'{config.choose}' needs hold-out rows", where="choose", hint="set rows.holdout")
    if isinstance(config.rows.holdout, str):
        if config.rows.holdout not in PACKAGED and not Path(config.rows.holdout).exists():
            raise UserError(f"no such file: {config.rows.holdout}", where="rows.holdout", hint="or a share")
        aside = read_rows(config.rows.holdout, options=config.rows)
        kept = encode_rows(aside, tokenizer, template, max_length=config.max_length)
        train, holdout = Split(encoded, chosen, rows), Split(kept, list(range(len(kept))), aside)
    else:
        first, second = split_holdout(len(chosen), config.rows.holdout, config.seed)
        train = Split(encoded, [chosen[i] for i in first], rows)
        holdout = Split(encoded, [chosen[i] for i in second], rows)
    plan = plan_steps(
        len(train), config.batch_size, epochs=config.epochs, steps=config.steps, seed=config.seed
    )
    return TrainingData(train, holdout, plan, config, template.name)
