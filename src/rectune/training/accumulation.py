"""The gradient of one step: micro-batches added up, halved where memory runs out, searched where it is not finite.

However a step is cut into micro-batches its gradient is the same, up to the order in which floats are added: the sum of
losses is divided by the whole step's number of targets. What is done with the gradient is in `trainer.py`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object
from torch import Tensor

from rectune.columns import HEAD_COLUMNS
from rectune.config import TrainConfig
from rectune.data.packing import pack
from rectune.errors import UserError
from rectune.models.scorer import Scorer
from rectune.objective_spec import Phase
from rectune.runtime.memory import repeat_while_out_of_memory
from rectune.training.dataloader import TrainingData, pair_columns
from rectune.training.fsdp import is_sharded, turns
from rectune.training.metrics import MONITORED, Monitor
from rectune.training.mixed_precision import Masters
from rectune.training.reference import ReferenceLogprobs
from rectune.training.run_dir import keep_limit

log = logging.getLogger("rectune")

_NAMED = 8  # rows that one message names

T = TypeVar("T")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the first product of the process
_unable: list[str] = []  # why this process no longer tries


class Gradients:
    """Adds up the gradient of a step's rows, as far as this process has them.

    Args:
        config, data, scorer, masters, accelerator: Of the run.
        reference: What `kl` refers to.
        ref_logp: Of all rows, where the objective reads it.
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
        ref_logp: ReferenceLogprobs | None = None,
        old: Scorer | None = None,
        limit: int | None = None,
    ) -> None:
        self.config, self.data, self.scorer, self.masters = config, data, scorer, masters
        self.accelerator, self.reference, self.old, self.limit = accelerator, reference, old, limit
        self.ref_logp = ref_logp
        self._rows: list[int] = []  # of the micro-batch in work

    def accumulate(self, step: int, phase: Phase) -> Monitor:
        """Add up the gradient of `step` in the masters; returns what was seen on the way.

        Where memory runs out the step is repeated with smaller micro-batches, and so are all that follow. Where weights
        are sharded all processes would have to repeat it, and those that had room wait for those that had not: the run
        ends, and takes smaller ones when it is started again.

        Raises:
            UserError: A single row does not fit into memory, or weights are sharded.
        """
        return repeat_while_out_of_memory(
            lambda: run_deterministically(self.accelerator.device, lambda: self._once(step, phase)),
            self._halve,
        )

    def find_nonfinite_rows(self, step: int, phase: Phase) -> list[str]:
        """Which rows of `step`, in any process, have alone a loss or gradient that is not finite: `file:line`.

        Leaves a gradient behind that is of no use. All processes have to call it: where weights are sharded every pass
        is one of all, and one of them at a time has rows in it.
        """
        sharded, processes = is_sharded(self.accelerator), self.accelerator.num_processes
        guilty = []
        for turn, (rows, divisor) in enumerate(self._micro_batches(step, all_of_them=sharded)):
            mine = not sharded or turn % processes == self.accelerator.process_index
            if not self._is_finite(rows, phase, divisor, mine=mine):
                alone = [row for row in rows if not self._is_finite([row], phase, divisor, mine=mine)]
                guilty += alone or rows
        if not sharded and processes > 1:
            guilty = sorted(gather_object(guilty))
        return [self.data.train.where(row) for row in guilty]

    def _once(self, step: int, phase: Phase) -> Monitor:
        monitor = Monitor(phase)
        torch.manual_seed(self.config.seed * 1_000_003 + step)  # so that dropout can be resumed
        self.masters.start_step()
        finite = torch.ones((), dtype=torch.bool, device=self.accelerator.device)
        for rows, divisor in self._micro_batches(step):
            self._rows = rows
            columns, losses = self._losses(rows, phase)
            (losses.sum() / divisor).backward()
            monitor.add(columns, losses)
            finite &= losses.isfinite().all()  # asked for at the end: a GPU would be waited for
        if not finite:  # its gradient may be: the step is to be skipped, by all processes
            self.masters.scale_gradients(math.nan)
        return monitor

    def _micro_batches(self, step: int, *, all_of_them: bool = False) -> list[tuple[list[int], int]]:
        """This process's share of the step: rows that go together, and what their losses are divided by."""
        data = self.data
        units = max(1, data.units(data.plan.rows(step)))
        every = [
            (rows, units if self.config.normalization == "tokens" else max(1, data.units(rows)))
            for rows in data.micro_batches(step)
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

    def _losses(self, rows: list[int], phase: Phase) -> tuple[dict[str, Tensor], Tensor]:
        batch = self.data.train.batch(rows, self.accelerator.device)
        columns = self.scorer.columns(batch, head_columns(phase), reference=self.reference)
        if self.ref_logp and "ref_logp" in phase.columns:
            columns["ref_logp"] = self.ref_logp.of(self.data.train, rows, self.accelerator.device)
        if self.data.paired:
            columns |= pair_columns(columns["row"])
        if self.old and "old_logp" in phase.columns:
            with torch.no_grad():
                columns["old_logp"] = self.old.columns(batch)["logp"]
        return columns, phase.loss(columns) * columns["weight"]

    def _is_finite(self, rows: list[int], phase: Phase, divisor: int, *, mine: bool) -> bool:
        """Of the gradient of these rows, or of no rows where they are not `mine`."""
        self.masters.start_step()
        _, losses = self._losses(rows if mine else [], phase)
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


def head_columns(phase: Phase) -> list[str]:
    """Columns of the head that the objective or the monitor reads."""
    return [name for name in HEAD_COLUMNS if name in {*MONITORED, *phase.columns}]


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
