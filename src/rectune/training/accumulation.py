"""The gradient of one step: micro-batches added up, halved where memory runs out, searched where it is not finite.

However a step is cut into micro-batches its gradient is the same, up to the order in which floats are added: the sum of
losses is divided by the whole step's number of targets. Where weights depend on all targets of a step (`cadft`,
shuffled weights) a pass without gradient comes first, unless one micro-batch is the whole step. What is done with the
gradient is in `trainer.py`.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object
from torch import Tensor

from rectune.columns import COLUMNS, HEAD_COLUMNS
from rectune.config import TrainConfig
from rectune.data.packing import pack
from rectune.errors import UserError
from rectune.logprobs import supervised_positions
from rectune.models.scorer import Scorer, batch_columns
from rectune.objective_spec import Phase
from rectune.runtime.memory import repeat_while_out_of_memory
from rectune.training.dataloader import TrainingData, pair_columns
from rectune.training.fsdp import is_sharded, turns
from rectune.training.metrics import MONITORED, Monitor
from rectune.training.mixed_precision import Masters
from rectune.training.reference import ReferenceColumns
from rectune.training.run_dir import keep_limit

log = logging.getLogger("rectune")

_NAMED = 8  # rows that one message names

T = TypeVar("T")
_OfRows = dict[int, dict[str, Tensor]]  # columns by name, each of the targets of a row

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the first product of the process
_unable: list[str] = []  # why this process no longer tries


class Gradients:
    """Adds up the gradient of a step's rows, as far as this process has them.

    Args:
        config, data, scorer, masters, accelerator: Of the run.
        reference: What `kl` refers to.
        ref_columns: Of all rows, where the objective reads any.
        old: What `old_logp` refers to.
        limit: See below.

    Attributes:
        limit: Most tokens of a micro-batch of several rows, once more did not fit into memory; None before.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        scorer: Scorer,
        masters: Masters,
        accelerator: Accelerator,
        *,
        reference: Scorer | None = None,
        ref_columns: ReferenceColumns | None = None,
        old: Scorer | None = None,
        limit: int | None = None,
    ) -> None:
        self.config, self.data, self.scorer, self.masters = config, data, scorer, masters
        self.accelerator, self.reference, self.old, self.limit = accelerator, reference, old, limit
        self.ref_columns = ref_columns
        self._rows: list[int] = []  # of the micro-batch in work

    def accumulate(self, step: int, phase: Phase) -> Monitor:
        """Add up the gradient of `step` in the masters; returns what was seen on the way.

        Where memory runs out the step is repeated with smaller micro-batches, and so are all that follow. Where weights
        are sharded all processes would have to repeat it, and those that had room wait for those that had not: the run
        ends, and takes smaller ones when it is started again.

        Raises:
            UserError: A single row does not fit into memory, or weights are sharded.
        """
        of_step = self._over_step(step, phase)
        return self._repeat(lambda: self._once(step, phase, of_step))

    def find_nonfinite_rows(self, step: int, phase: Phase) -> list[str]:
        """Which rows of `step`, in any process, have alone a loss or gradient that is not finite: `file:line`.

        Leaves a gradient behind that is of no use. All processes have to call it: where weights are sharded every pass
        is one of all, and one of them at a time has rows in it.
        """
        sharded, processes = is_sharded(self.accelerator), self.accelerator.num_processes
        of_step = self._over_step(step, phase, even_alone=True)
        guilty = []
        for turn, (rows, divisor) in enumerate(self._micro_batches(step, all_of_them=sharded)):
            mine = not sharded or turn % processes == self.accelerator.process_index
            if not self._is_finite(rows, phase, step, of_step, divisor, mine=mine):
                alone = [
                    row
                    for row in rows
                    if not self._is_finite([row], phase, step, of_step, divisor, mine=mine)
                ]
                guilty += alone or rows
        if not sharded and processes > 1:
            guilty = sorted(gather_object(guilty))
        return [self.data.train.where(row) for row in guilty]

    def _repeat(self, function: Callable[[], T]) -> T:
        """Deterministically, again with smaller micro-batches where memory runs out; without collectives."""
        device = self.accelerator.device
        return repeat_while_out_of_memory(lambda: run_deterministically(device, function), self._halve)

    def _once(self, step: int, phase: Phase, of_step: _OfRows | None) -> Monitor:
        monitor = Monitor(phase)
        self.masters.start_step()
        finite = torch.ones((), dtype=torch.bool, device=self.accelerator.device)
        micro_batches = self._micro_batches(step)
        if of_step is None and len(micro_batches) > 1:  # memory ran out since it was one
            of_step = self._over_step(step, phase)
        self._set_seed(step)  # so that dropout can be resumed
        for rows, divisor in micro_batches:
            self._rows = rows
            columns, losses = self._losses(rows, phase, step, of_step)
            loss = losses.sum() / divisor
            if "router_loss" in columns:
                loss = loss + self._share(rows, step) * columns["router_loss"]
            loss.backward()
            monitor.add(columns, losses)
            finite &= losses.isfinite().all()  # asked for at the end: a GPU would be waited for
        if not finite:  # its gradient may be: the step is to be skipped, by all processes
            self.masters.scale_gradients(math.nan)
        return monitor

    def _share(self, rows: list[int], step: int) -> float:
        """What a loss of a micro-batch as a whole counts in the step: its share of the tokens."""
        if self.config.normalization == "micro-batch":
            return float(bool(rows))
        lengths = self.data.train.lengths
        return sum(lengths(rows)) / sum(lengths(self.data.plan.rows(step)))

    def _micro_batches(self, step: int, *, all_of_them: bool = False) -> list[tuple[list[int], int]]:
        """This process's share of the step: rows that go together, and what their losses are divided by."""
        data = self.data
        units = max(1, data.units(data.plan.rows(step)))
        every = [
            (rows, units if self.config.normalization == "tokens" else max(1, data.units(rows)))
            for rows in data.micro_batches(step, self.accelerator.num_processes)
        ]
        sharded = is_sharded(self.accelerator)
        if sharded:  # all have the same limit, and need as many passes
            every = self._parts(every)
        mine = every if all_of_them else turns(every, self.accelerator, ([], 1))
        return mine if sharded else self._parts(mine)

    def _parts(self, micro_batches: list[tuple[list[int], int]]) -> list[tuple[list[int], int]]:
        """Micro-batches in parts of at most `limit` tokens; a longer row is a part by itself."""
        if self.limit is None:
            return micro_batches
        made = []
        for rows, divisor in micro_batches:
            lengths = [min(length, self.limit) for length in self.data.train.lengths(rows)]
            parts = pack(lengths, self.limit) if sum(lengths) > self.limit else [range(len(rows))]
            made += [([rows[place] for place in places], divisor) for places in parts]
        return made

    def _seed(self, step: int) -> int:
        return self.config.seed * 1_000_003 + step

    def _set_seed(self, step: int) -> None:
        if self.accelerator.device.type == "cpu":
            torch.default_generator.manual_seed(self._seed(step))
        else:
            torch.manual_seed(self._seed(step))  # of every kind of device, which takes a stack trace for each

    def _losses(
        self, rows: list[int], phase: Phase, step: int, of_step: _OfRows | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        columns = self._columns(rows, (*MONITORED, *phase.columns))
        if phase.step_columns:
            of_step = of_step or self._spread(step, phase, _by_row(self.data, rows, columns, phase))
            for name in phase.step_columns:
                parts = [of_step[row][name] for row in rows]
                columns[name] = torch.cat([torch.empty(0), *parts]).to(columns["logp"])
        return columns, phase.loss(columns) * columns["weight"]

    def _columns(self, rows: list[int], names: Iterable[str]) -> dict[str, Tensor]:
        """Columns of these rows, by name, but for those of the step; always those of the batch."""
        batch, needed = self.data.train.batch(rows, self.accelerator.device), set(names)
        if of_head := [name for name in HEAD_COLUMNS if name in needed]:
            columns = self.scorer.columns(batch, [*of_head, "router_loss"], reference=self.reference)
        else:
            columns = batch_columns(batch, supervised_positions(batch.labels)[0])
        if self.ref_columns and any(COLUMNS[name].source == "reference" for name in needed):
            columns |= self.ref_columns.of(self.data.train, rows, self.accelerator.device)
        if self.data.paired:
            columns |= pair_columns(columns["row"])
        if self.old and "old_logp" in needed:
            with torch.no_grad():
                columns["old_logp"] = self.old.columns(batch)["logp"]
        return columns

    def _over_step(self, step: int, phase: Phase, *, even_alone: bool = False) -> _OfRows | None:
        """For each row of `step` the columns that depend on all of the step's targets: a pass without gradient.

        None where the objective reads none, or where one micro-batch of one process is the whole step, whose columns
        `_losses` has anyway (unless `even_alone`). All processes have to call it.
        """
        several = self.accelerator.num_processes > 1
        if not phase.step_columns or not (several or even_alone or len(self._micro_batches(step)) > 1):
            return None
        parts = self._repeat(lambda: self._first_pass(step, phase))
        if several:
            parts = {row: part for of_process in gather_object([parts]) for row, part in of_process.items()}
        return self._spread(step, phase, parts)

    @torch.no_grad()
    def _first_pass(self, step: int, phase: Phase) -> _OfRows:
        """What `Phase.over_step` reads, for the rows of this process; the model runs only where it reads of it."""
        self._set_seed(step)  # the dropout of the pass with gradient
        parts: _OfRows = {}
        for rows, _ in self._micro_batches(step):
            self._rows = rows
            parts |= _by_row(self.data, rows, self._columns(rows, phase.step_inputs), phase)
        return parts

    def _spread(self, step: int, phase: Phase, parts: _OfRows) -> _OfRows:
        """The columns of the step, from what it reads of all rows, whichever micro-batch and process had them.

        A row that the step has twice gets the mean of both places, which adds up to the same gradient.
        """
        order = self.data.plan.rows(step)
        times, sizes = Counter(order), [len(parts[row]["structural"]) for row in order]
        whole = {name: torch.cat([parts[row][name] for row in order]) for name in parts[order[0]]}
        whole["row"] = torch.arange(len(order)).repeat_interleave(torch.tensor(sizes))
        of_step: _OfRows = {row: {} for row in order}
        for name, column in phase.over_step(whole, self._seed(step)).items():
            for row, part in zip(order, column.split(sizes), strict=True):
                of_step[row][name] = of_step[row].get(name, 0) + part / times[row]
        return of_step

    def _is_finite(
        self, rows: list[int], phase: Phase, step: int, of_step: _OfRows | None, divisor: int, *, mine: bool
    ) -> bool:
        """Of the gradient of these rows, or of no rows where they are not `mine`."""
        self.masters.start_step()
        _, losses = self._losses(rows if mine else [], phase, step, of_step)
        finite = bool(losses.isfinite().all())
        if not is_sharded(self.accelerator):
            if finite:
                (losses.sum() / divisor).backward()
            return finite and self.masters.is_finite()
        (losses.sum() / divisor).backward()
        finite = self.masters.is_finite() and finite
        return bool(gather(torch.tensor([finite], device=self.accelerator.device)).all())

    def _halve(self) -> None:
        split, rows = self.data.train, self._rows
        tokens = sum(split.lengths(rows))
        if len(rows) < 2:
            raise UserError(
                f"its {tokens} tokens do not fit into memory" if rows else "does not fit into memory",
                where=split.where(rows[0]) if rows else "model",
                hint="lower max_length or logits_memory_mb, or turn on gradient_checkpointing or LoRA (lora_r)",
            )
        self.limit = tokens // 2
        if is_sharded(self.accelerator):
            keep_limit(self.config.output_dir, self.accelerator.process_index, self.limit)
            raise UserError(
                f"out of memory at {tokens} tokens at once",
                where=self.config.output_dir,
                hint=f"start again with --resume: it continues with micro-batches of at most {self.limit}, as torchrun"
                " --max-restarts does by itself",
            )
        log.warning(
            "out of memory at %d tokens at once: the step is repeated, with the same gradient, in micro-batches of"
            " at most %d, and so are all that follow",
            tokens,
            self.limit,
        )


@torch.no_grad()
def _by_row(data: TrainingData, rows: list[int], columns: Mapping[str, Tensor], phase: Phase) -> _OfRows:
    """What `Phase.over_step` reads of each row, on the CPU."""
    sizes: list[int] = data.train.supervised[rows].tolist()
    names = dict.fromkeys((*phase.step_inputs, "structural"))
    split = {name: columns[name].cpu().split(sizes) for name in names}
    return {row: {name: split[name][place].clone() for name in names} for place, row in enumerate(rows)}


def named(rows: list[str]) -> str:
    """The first of these rows, and how many more there are."""
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return ", ".join(rows[:_NAMED]) + more


def run_deterministically(device: torch.device, function: Callable[[], T]) -> T:
    """What `function` returns; gradients that it computes are the same bits each time, on this kind of GPU.

    Where an operation of the model cannot be told to, that is said once, and `function` is called again without.
    """
    if device.type == "cuda" and not _unable:
        try:
            with _deterministic():
                return function()
        except RuntimeError as error:
            if "use_deterministic_algorithms" not in str(error):
                raise
            _unable.append(str(error))
        reason = _unable[0].partition(",")[0].partition(". ")[0]
        log.warning("a resumed run will not be bit-identical to an uninterrupted one: %s", reason)
    return function()


@contextmanager
def _deterministic() -> Iterator[None]:
    settings: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a pass over each new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        settings.fill_uninitialized_memory = filled
