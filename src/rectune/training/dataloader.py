"""What a run reads: its rows as token ids, the hold-out, and which rows each micro-batch of a step holds.

Everything here is a function of config and step alone, so a resumed run reads what it would have read. For an
objective over pairs (DPO) the better and the worse answer are two encoded rows that always go together: "row" below
then means the pair.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rectune.config import SplitConfig, TrainConfig, TrainerConfig
from rectune.data.chat_template import Template, check_template
from rectune.data.converters import PAIR
from rectune.data.encoded_dataset import EncodedRows
from rectune.data.loading import PACKAGED, local_path, read_rows, weights_of
from rectune.data.packing import Batch, collate, pack_for
from rectune.data.sampler import StepPlan, plan_steps, questions, split_holdout, subsample
from rectune.data.trained_prompt import as_trained
from rectune.errors import UserError
from rectune.models.limits import encode_for, longest_row
from rectune.models.load import check_model
from rectune.models.lora import with_own_lora
from rectune.records import RowWeights
from rectune.runtime.io import check_writable
from rectune.training.metrics_log import check_trackers
from rectune.training.run_dir import run_template

log = logging.getLogger("rectune")

Trained = TypeVar("Trained", bound=TrainerConfig)

_BUSY = 0.9  # share of a step below which a run says that processes wait
_STEPS_LOOKED_AT = 64

LOGPROBS = ".safetensors"
"""How the name of a file of reference log-probabilities ends, which may be given in place of a model."""


@dataclass(frozen=True)
class Split:
    """Some of the encoded rows.

    Attributes:
        encoded: All of them.
        members: (rows, 1) int64, for each row of the split its index in `encoded`; for a pair two, the better answer
            first.
        rows: Those that were encoded, as text.
    """

    encoded: EncodedRows
    members: np.ndarray
    rows: datasets.Dataset

    def __len__(self) -> int:
        return len(self.members)

    @property
    def indices(self) -> list[int]:
        """Indices in `encoded`, members of a pair one behind the other."""
        indices: list[int] = self.members.ravel().tolist()
        return indices

    def lengths(self, rows: list[int] | None = None) -> list[int]:
        """Tokens of the given rows of the split, or of all."""
        chosen = self.members if rows is None else self.members[rows]
        lengths: list[int] = self.encoded.lengths[chosen].sum(1).tolist()
        return lengths

    @cached_property
    def supervised(self) -> np.ndarray:
        """Targets of each row of the split: (rows,)."""
        sums: np.ndarray = self.encoded.supervised[self.members].sum(1)
        return sums

    @cached_property
    def mean_weight(self) -> float:
        """Mean weight of the split's targets, by which weights are divided: exactly 1 where rows have none."""
        return float(self.encoded.weight_sums[self.members].sum() / max(1, self.supervised.sum())) or 1.0

    def row_weights(self) -> RowWeights | None:
        """The weights of the split's answers; None where all are 1.

        Raises:
            UserError: All are 0.
        """
        if weights_of(self.rows) is None:
            return None
        records = self.encoded.dataset.with_format("numpy", columns=["row"])[:]["row"][self.members[:, 0]]
        found = weights_of(self.rows.select(records.tolist()))
        if found is None:
            return None
        if not self.encoded.weight_sums[self.members].any():
            what = "the weights of all rows to train on are 0"
            raise UserError(what, where=self.where(0), hint="give some row a weight above 0")
        return found.model_copy(update={"mean": self.mean_weight})

    @cached_property
    def asked(self) -> np.ndarray:
        """What each row of the split asks, as a number that rows share which ask the same: (rows,)."""
        rows = self.encoded.dataset.with_format("numpy", columns=["row"])[:]["row"]
        asked: np.ndarray = questions(self.rows)[rows[self.members[:, 0]]]
        return asked

    def where(self, row: int) -> str:
        """Where a row of the split came from: `file:line`."""
        return str(self.rows[self.encoded.dataset[int(self.members[row][0])]["row"]]["where"])

    def batch(self, rows: list[int], device: object = None) -> Batch:
        """The rows of the split that are named, their weights divided by the split's mean."""
        encoded = self.encoded.take([int(i) for row in rows for i in self.members[row]])
        return collate(encoded, device, mean_weight=self.mean_weight)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, rows kept aside, and the order of the steps; rows are cut at `max_length` tokens."""

    train: Split
    holdout: Split
    plan: StepPlan
    config: TrainConfig
    template: Template
    max_length: int
    paired: bool = False

    def micro_batches(self, step: int, processes: int = 1) -> list[list[int]]:
        """Rows of each forward pass of a step, which the processes take by turns."""
        return self._cut(self.plan.rows(step), processes)

    def _cut(self, rows: list[int], processes: int) -> list[list[int]]:
        """Rows packed for this many processes, or by fixed counts as the paper's code does."""
        if self.config.normalization == "micro-batch":
            size = self.config.per_device_train_batch_size
            return [rows[start : start + size] for start in range(0, len(rows), size)]
        bins = pack_for(processes, self.train.lengths(rows), capacity(self.config, paired=self.paired))
        return [[rows[place] for place in places] for places in bins]

    def busy_share(self, processes: int, batch_size: int | None = None) -> float:
        """The share of a step for which processes have work while the busiest one computes, by tokens, from 0 to 1.

        Args:
            batch_size: Rows of a step; None: as configured.
        """
        size, steps = batch_size or self.config.batch_size, range(min(len(self.plan), _STEPS_LOOKED_AT))
        rows = [row for step in steps for row in self.plan.rows(step)]
        work = most = 0
        for start in range(0, len(rows), size):
            parts = self._cut(rows[start : start + size], processes)
            tokens = [sum(self.train.lengths(part)) for part in parts]
            work += sum(tokens)
            most += max(sum(tokens[process::processes]) for process in range(processes))
        return work / (processes * most)

    def idle_processes(self, processes: int) -> str | None:
        """What to change where processes would often wait for each other; None where they would not."""
        busy, size = self.busy_share(processes), self.config.batch_size
        if busy >= _BUSY:
            return None
        what = f"{processes} processes have work for {busy:.0%} of a step of {size} rows"
        rows = size * min(len(self.plan), _STEPS_LOOKED_AT)
        while (size := 2 * size) <= rows:
            if (larger := self.busy_share(processes, size)) >= _BUSY:
                return f"{what}: use fewer processes, or batch_size {size} ({larger:.0%})"
        return f"{what}: use fewer processes, or a larger batch_size"

    def units(self, rows: list[int]) -> int:
        """What the sum of losses over these rows is divided by: their targets, or for pairs their number."""
        return len(rows) if self.paired else int(self.train.supervised[rows].sum())

    @cached_property
    def fingerprint(self) -> str:
        """What a resumed run must find again: sizes and a checksum of the rows' ids, labels and weights."""
        checksum = zlib.crc32(self.train.encoded.checksums[self.train.members.ravel()])
        return f"{len(self.train):,} rows, {sum(self.train.lengths()):,} tokens, checksum {checksum:08x}"

    def is_of(self, fingerprint: str) -> bool:
        """Whether a run with this fingerprint read the same rows; the first version took its checksum otherwise."""
        if fingerprint == self.fingerprint:
            return True
        checksum = 0
        rows = self.train.encoded.dataset.select(self.train.indices).with_format("arrow")
        for part in rows.iter(batch_size=1000):
            for name in ("input_ids", "labels"):
                checksum = zlib.crc32(part[name].combine_chunks().flatten().to_numpy(), checksum)
        return fingerprint == f"{self.fingerprint[:-8]}{checksum:08x}"


def capacity(config: TrainConfig, *, paired: bool = False) -> int:
    """Tokens of a packed sequence: as configured, but never less than one row, or pair, may have."""
    return max(config.tokens_per_micro_batch, config.max_length * (1 + paired))


def pair_columns(row: Tensor) -> dict[str, Tensor]:
    """Columns `pair` and `sign` of a batch of pairs: its even rows are the better answers."""
    return {"pair": row // 2, "sign": 1 - 2 * (row % 2)}


@dataclass(frozen=True)
class Texts:
    """What a run reads, as text: of pairs the better answers, then the worse ones.

    Attributes:
        rows: To train on.
        holdout: Kept aside, where they are of a source of their own.
    """

    rows: list[datasets.Dataset]
    holdout: list[datasets.Dataset] | None


def read_texts(config: TrainConfig, *, paired: bool) -> Texts:
    """The rows, or pairs, of a config; takes no tokenizer, so that it can come before the weights.

    Raises:
        UserError: A file that is not there, or rows that cannot be used.
    """
    holdout = config.eval_data
    if holdout is not None and holdout not in PACKAGED and not local_path(holdout)[0].exists():
        raise UserError(f"no such file: {holdout}", where="eval_data")

    def read(source: str) -> list[datasets.Dataset]:
        formats = PAIR if paired else (config.data_format,)
        return [read_rows(source, options=config.model_copy(update={"data_format": f})) for f in formats]

    return Texts(read(config.data), None if holdout is None else read(holdout))


def with_models_own(config: Trained) -> Trained:
    """The settings with what comes from the model where it is not given: LoRA of an adapter, the prompt of a run.

    Raises:
        UserError: A setting of LoRA that is not the adapter's, or a model that is not there.
    """
    return as_trained(config.model, with_own_lora(config))


def read_inputs(config: TrainConfig, *, paired: bool) -> Texts:
    """The rows of a config as text, after all other paths in it were checked: before weights are loaded.

    Raises:
        UserError: A path that leads nowhere, or rows that cannot be used.
    """
    check_named(config)
    return read_texts(config, paired=paired)


def check_named(config: TrainerConfig) -> None:
    """Raise `UserError` for a model, reference, template or tracker that is not there."""
    check_trackers(config.report_to)
    if config.report_to and config.logging_dir is not None:
        check_writable(config.logging_dir)
    check_model(config.model)
    check_template(config.chat_template)
    if config.reference_model is None:
        return
    if not config.reference_model.endswith(LOGPROBS):
        check_model(config.reference_model)
    elif not Path(config.reference_model).expanduser().is_file():
        raise UserError(f"no such file: {config.reference_model}", where="reference_model")


def load_data(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None = None,
    *,
    paired: bool = False,
    texts: Texts | None = None,
) -> TrainingData:
    """Encode and split the rows, or pairs, of a config. Raises `UserError` for those that cannot be used.

    Args:
        model: What will read them, whose positions and embeddings bound them; None where none will.
        texts: What `read_texts` gave; None reads them.
    """
    template = run_template(config.output_dir, config.chat_template, tokenizer)
    texts = texts or read_texts(config, paired=paired)

    def encoded(sides: list[datasets.Dataset]) -> Split:
        max_length = config.max_length
        found = _together(
            [
                encode_for(
                    model,
                    side,
                    tokenizer,
                    template,
                    max_length=max_length,
                    skip_bad_rows=config.skip_bad_rows,
                )
                for side in sides
            ],
            sides[0],
        )
        return _without_cut(found) if config.too_long == "drop" else found

    everything = encoded(texts.rows)
    if config.metric_for_best_model != "last" and config.eval_data is None and config.eval_split_size == 0:
        raise UserError(
            f"'{config.metric_for_best_model}' needs held-out rows",
            where="metric_for_best_model",
            hint="set eval_split_size or eval_data",
        )
    train, holdout = _split(config, everything, encoded(texts.holdout) if texts.holdout is not None else None)
    if weights := train.row_weights():
        log.info("weights of the answers: %s; losses are multiplied with weight / mean", weights)
        if len(holdout) and not holdout.encoded.weight_sums[holdout.members].any():
            log.warning("the weights of all held-out rows are 0: their metrics count each target once")
    plan = plan_steps(
        len(train),
        config.batch_size,
        epochs=config.num_train_epochs,
        steps=config.max_steps,
        seed=config.seed,
    )
    longest = longest_row(model, config.max_length)
    return TrainingData(train, holdout, plan, config, template, longest, paired)


def _split(config: TrainConfig, everything: Split, holdout: Split | None) -> tuple[Split, Split]:
    """The rows to train on and those kept aside, where these are not of a source of their own."""
    first = np.array(subsample(len(everything), config.max_train_samples, config.seed))
    second = first[:0]
    if holdout is not None:
        _say_holdout(config, everything.asked[first], holdout.asked)
    elif config.eval_split_size and not _asks_one(config, everything.asked[first]):
        asked = everything.asked
        here, there = split_holdout(asked[first], config.eval_split_size, config.seed)
        first, second = first[here], first[there]
        _say_holdout(config, asked[first], asked[second])
    train, rest = (replace(everything, members=everything.members[some]) for some in (first, second))
    return train, rest if holdout is None else holdout


def _asks_one(config: TrainConfig, asked: np.ndarray) -> bool:
    """Whether all rows ask the same, so that none can be kept aside, and no setting wants a hold-out."""
    if len(np.unique(asked)) > 1 or config.metric_for_best_model != "last":
        return False
    if config.eval_split_size != SplitConfig.model_fields["eval_split_size"].default:
        return False
    log.warning("all rows have the same question: none is held out for evaluation (eval_split_size)")
    return True


def _say_holdout(config: TrainConfig, train: np.ndarray, holdout: np.ndarray) -> None:
    """How many rows and questions are kept aside, and how many of them are trained on as well; given what they ask."""
    shared = int(np.isin(holdout, train).sum())
    rows, asked = f"{len(holdout):,}", f"{len(np.unique(holdout)):,}"
    log.info("hold-out: %s rows, %s questions%s", rows, asked, ", none of them trained on" * (not shared))
    if shared:
        log.warning(
            "%s: %s of %s rows have a question that training rows have; their metrics say little about new questions",
            config.eval_data or "hold-out", f"{shared:,}", rows,
        )  # fmt: skip


def _without_cut(split: Split) -> Split:
    """The rows, or pairs, of which nothing was cut."""
    cut = np.asarray(split.encoded.dataset.with_format("numpy")["truncated"][:])
    whole = ~cut[split.members].any(axis=1)
    log.info("%s of %s rows are too long; left out", f"{int((~whole).sum()):,}", f"{len(whole):,}")
    if not whole.any():
        raise UserError("every row is too long", where="max_length", hint="make it larger")
    return replace(split, members=split.members[whole])


def _together(sides: list[EncodedRows], rows: datasets.Dataset) -> Split:
    """One side as it is; of two, the rows that neither lost (to the cut at max_length), as pairs."""
    if len(sides) == 1:
        return Split(sides[0], np.arange(len(sides[0]))[:, None], rows)
    first, second = (np.asarray(side.dataset.with_format("numpy")["row"][:]) for side in sides)
    _, here, there = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    if lost := len(first) + len(second) - 2 * len(here):
        log.warning("%d pairs lost all targets of one answer at max_length; left out", lost)
    if not len(here):
        raise UserError("no pair has a target in both answers", where="max_length", hint="make it larger")
    joined = datasets.concatenate_datasets([side.dataset for side in sides])
    return Split(EncodedRows(joined, sides[0].counts), np.stack([here, len(first) + there], axis=1), rows)
