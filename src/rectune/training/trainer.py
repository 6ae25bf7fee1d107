"""Training: one loop over steps. An objective turns columns into losses; their sum is divided once.

`Trainer` reads from top to bottom: set-up, resuming, the loop, a step, evaluation, saving. A step takes its rows from
the plan; their gradient is added up over micro-batches (`accumulation.py`) and processes, and taken by the optimizer.
A step whose gradient is not finite changes nothing; a signal stops the run after a step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather

from rectune.columns import COLUMNS
from rectune.config import TrainConfig
from rectune.errors import UserError
from rectune.models.load import choose_dtype, fingerprint, load_model
from rectune.models.lora import add_lora, load_adapter_weights, merge_lora
from rectune.models.scorer import Scorer
from rectune.objective_spec import Phase, make_phases, phase_at
from rectune.records import Figures, MetricsLine, TrainState, TrainSummary, write_record
from rectune.runtime.distributed import TIMEOUT, on_cpu, translate_peer_failure
from rectune.runtime.progress import progress
from rectune.runtime.signals import Stopped, defer_signals
from rectune.training.accumulation import Gradients, named
from rectune.training.checkpoint import Checkpointer, last_good_checkpoint
from rectune.training.dataloader import Texts, load_data, read_inputs, with_models_own
from rectune.training.drift import make_probe
from rectune.training.fsdp import is_sharded, shard_all
from rectune.training.metrics import evaluate_holdout, peak_memory_mib, reset_peak_memory
from rectune.training.metrics_log import MetricsLog, make_trackers, start_trackers, totals
from rectune.training.mixed_precision import Masters, freeze_unused, learning_rate, make_optimizer
from rectune.training.reference import frozen_reference, reference_columns
from rectune.training.run_dir import enter_run, finished_run, kept_limit, open_run, save_model

log = logging.getLogger("rectune")


def train(
    config: TrainConfig, *, resume: bool = False, until: int | None = None, began: float | None = None
) -> TrainSummary:
    """Fine-tune `config.model` on `config.data`; writes the run folder `config.output_dir`.

    Args:
        config: All settings.
        resume: Continue from the last checkpoint in the folder, with the same bits as an uninterrupted run on this
            machine; with nothing there, start afresh.
        until: Pause after this step, if it is not the last: with a checkpoint and the weights in OUT/model, without
            summary.json. Resuming later gives the bits of a run that never paused.
        began: `time.perf_counter()` as the command began, for the summary's `seconds`; None: now.

    Returns:
        The content of `summary.json`; at a pause `after` are the figures of the last evaluation.

    Raises:
        UserError: Data, model or settings that cannot be used, a folder that holds another run or is used by another
            process, or a disk that is full.
        Stopped: By Ctrl-C or SIGTERM, after a step, with a checkpoint.
    """
    began = time.perf_counter() if began is None else began
    reset_peak_memory()
    phases = make_phases(config)
    config = with_models_own(config)
    accelerator = _accelerator(config)
    if resume and (finished := finished_run(config, TrainSummary)):
        return finished
    with enter_run(config, resume=resume, main=accelerator.is_main_process), translate_peer_failure():
        texts = read_inputs(config, paired="pair" in phases[0].columns)
        return Trainer(config, phases, texts, accelerator, began).run(resume=resume, until=until)


class Trainer:
    """A run of training: what it consists of, made once, and its loop.

    Args:
        config, phases: Of the run.
        texts: Its rows.
        accelerator: Of this process.
        began: `time.perf_counter()` as the command began.
    """

    def __init__(
        self,
        config: TrainConfig,
        phases: Sequence[Phase],
        texts: Texts,
        accelerator: Accelerator,
        began: float,
    ) -> None:
        self.config, self.phases, self.accelerator = config, phases, accelerator
        self.main, sharded = accelerator.is_main_process, is_sharded(accelerator)

        # Model and data
        self.model: Any
        self.dtype, reason = choose_dtype(config.dtype, accelerator.device)
        stored = (
            self.dtype if config.lora_r else torch.float32
        )  # what is trained, adapters too, begins in float32
        self.model, self.tokenizer = load_model(config.model, dtype=stored, device=accelerator.device)
        paired = "pair" in phases[0].columns
        self.data = load_data(config, self.tokenizer, self.model, paired=paired, texts=texts)
        identity = fingerprint(self.model, dtype=torch.float32)
        if config.lora_r:
            self.model = add_lora(self.model, config, config.seed)
        freeze_unused(self.model)
        if not sharded:
            self.masters = Masters(self.model, self.dtype)
        self.scorer = Scorer(self.model, memory_budget=config.logits_memory_mb << 20)
        if config.gradient_checkpointing:
            enable = "activation_checkpointing_enable"  # its new name in transformers
            getattr(self.model, enable, self.model.gradient_checkpointing_enable)()

        # What the objective refers to: the model as it is now, unless another is named
        columns = {name for phase in phases for name in phase.columns}
        self.reference = frozen_reference(config, self.scorer, self.tokenizer) if "kl" in columns else None
        self.old = self.scorer.frozen() if "old_logp" in columns else None
        self.skeleton = None
        if sharded:
            self.skeleton = shard_all(self.scorer, [self.reference, self.old], self.dtype, accelerator)
            self.masters = Masters(
                self.model, torch.float32
            )  # the shards, which are computed with in `dtype`
        self.ref_columns = None
        if names := [name for name in COLUMNS if COLUMNS[name].source == "reference" and name in columns]:
            self.ref_columns = reference_columns(
                config, self.data, self.scorer, self.tokenizer, identity, accelerator, names
            )
        self.probe = make_probe(self.scorer, self.tokenizer, config, self.data.holdout, accelerator)

        # Optimizer, and what is kept of the run
        self.optimizer = make_optimizer(self.masters.masters.values(), config)
        old = {}
        if self.old:
            weights = self.old.model.named_parameters()
            old = {"old": {name: p for name, p in weights if name in self.masters.masters}}
        self.checkpoints = Checkpointer(
            config.output_dir / "checkpoints", self.masters.masters, self.optimizer, extra=old,
            keep=config.save_total_limit, began=began, accelerator=accelerator,
        )  # fmt: skip
        self.metrics = MetricsLog(config.output_dir / "metrics.jsonl", accelerator)
        self.skipped = 0  # steps in a row without a finite gradient
        self.before: Figures = {}  # of the model as it was
        self.after: Figures = {}  # of the last evaluation
        self.best: Figures = {}  # of the weights in OUT/model, where metric_for_best_model picks them
        self._say_decisions(f"{self.dtype} ({reason})".removeprefix("torch."))

    # Starting and resuming

    def run(self, *, resume: bool, until: int | None) -> TrainSummary:
        """Train up to the end, or up to step `until`; see `train`."""
        config, accelerator, steps = self.config, self.accelerator, len(self.data.plan)
        last = steps if until is None else min(steps, max(1, until))
        state = self.checkpoints.load(TrainState) if resume else None
        start = self._restore(state) if state else 0
        if start > last:
            raise UserError(
                f"the run is already at step {start}, beyond step {last}", where=config.output_dir
            )
        limits = [state.limit if state else None, kept_limit(config.output_dir) if resume else None]
        limit = min(filter(None, limits), default=None)
        if limit:
            log.info("micro-batches of at most %d tokens: more did not fit into memory", limit)
        self.gradients = Gradients(
            config, self.data, self.scorer, self.masters, accelerator, reference=self.reference,
            ref_columns=self.ref_columns, old=self.old, limit=limit,
        )  # fmt: skip
        accelerator.wait_for_everyone()  # all have checked the folder
        if self.main:
            open_run(config, self.data.template, steps, max_length=self.data.max_length)
            self.metrics.truncate(start if start else -1)
        if start and self.probe and self.main:
            self.probe.recall(self.metrics.read("drift"))
        if config.report_to:
            start_trackers(accelerator, config, start)
        if not start:
            self.before = self._evaluate(0)
        self.after = self.before
        return self._loop(start, last)

    def _restore(self, state: TrainState) -> int:
        """The step of the checkpoint with this state, whose weights are loaded."""
        data, identity = self.data, self.ref_columns.identity if self.ref_columns else None
        if not data.is_of(state.data):
            raise UserError(
                f"the rows have changed since the run began ({state.data}, now {data.fingerprint})",
                where=self.config.data,
                hint="restore them, or give another --output-dir; an earlier version may have split or cut them"
                " differently",
            )
        if identity and state.reference not in (None, identity):
            raise UserError(
                f"the reference has changed since the run began ({state.reference}, now {identity})",
                where="reference_model",
                hint="restore it, or give another --output-dir",
            )
        self.masters.sync_working_weights()
        self.skipped, self.before, self.best = state.skipped, state.before, state.best
        return state.step

    # The loop

    def _loop(self, start: int, last: int) -> TrainSummary:
        config, steps = self.config, len(self.data.plan)
        give_up = min(config.max_nonfinite_steps, steps)  # of a short run all may be skipped
        self.model.train()
        with (
            progress(steps, start, label="step", shown=self.main, lines=10) as report,
            defer_signals() as signalled,
        ):
            for step in range(start, last):
                figures, done = self._step(step), step + 1
                self.metrics.add(figures)
                report(done, _shown(figures.to_dict()))
                if self.skipped >= give_up:
                    raise self._no_gradient(done)
                if done == steps or (config.eval_steps and done % config.eval_steps == 0):
                    self.after = self._evaluate(done)
                    self._keep_best()
                stop = self._of_any(signalled())
                due = config.save_steps and done % config.save_steps == 0 and not self.skipped
                if done < steps and (due or stop or done == last):
                    self._checkpoint(done, self.skipped)
                if stop and done < last:
                    what = f"{config.output_dir}: stopped at step {done} of {steps}; resume it with --resume"
                    raise Stopped(what, stop)
            summary = self._finish(last)
        if config.report_to:
            self.accelerator.end_training()
        if stop := self._of_any(signalled()):  # too late for this run, but not for what would follow
            what = f"{config.output_dir}: step {last} of {steps} is done and saved, and nothing follows"
            raise Stopped(what, stop)
        return summary

    def _step(self, step: int) -> MetricsLine:
        """One optimizer step; its line of metrics."""
        began, config, data = time.perf_counter(), self.config, self.data
        phase = phase_at(self.phases, step, len(data.plan))
        if self.old and step % config.old_policy_interval == 0:
            self.old.model.load_state_dict(self.model.state_dict())
        monitor = self.gradients.accumulate(step, phase)
        norm = self.masters.finish_step(self.accelerator).item()
        rate = learning_rate(config, step, len(data.plan))
        if math.isfinite(norm):
            self.skipped = 0
            if config.max_grad_norm and norm > config.max_grad_norm:
                self.masters.scale_gradients(config.max_grad_norm / norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.masters.sync_working_weights()
        else:
            self.skipped += 1
            rows = self.gradients.find_nonfinite_rows(step, phase)
            which = f"in {named(rows)}" if rows else "over all rows together"
            if self.main:
                say = "step %d: the loss or gradient is not finite, %s; the weights do not change"
                log.warning(say, step + 1, which)
        tokens = sum(data.train.lengths(data.plan.rows(step)))
        seconds = max(time.perf_counter() - began, 1e-9)
        figures = {
            "phase": phase.name,
            **monitor.figures(self.accelerator),
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
            "peak_memory_mib": peak_memory_mib(),
        }
        return MetricsLine.of(step + 1, "train", figures)

    # Evaluation

    def _evaluate(self, step: int) -> Figures:
        """Figures on the held-out rows, logged; empty without any."""
        reference = self.ref_columns if self.data.paired else None
        figures = evaluate_holdout(
            self.scorer, self.data.holdout, self.config, self.accelerator, reference=reference
        )
        if figures:
            self.metrics.add(MetricsLine.of(step, "holdout", figures))
        if self.probe:
            self.metrics.add(self.probe.measure(step))
        self.accelerator.wait_for_everyone()  # often only the first process watches
        return figures

    def _keep_best(self) -> None:
        """Save the model where the last evaluation is the best so far by metric_for_best_model."""
        metric = self.config.metric_for_best_model
        if not _badness(metric, self.after) < _badness(metric, self.best):  # NaN is no improvement
            return
        self.best, whole = self.after, self._whole_model()
        if self.main:
            save_model(self.config.output_dir / self._folder, whole, self.tokenizer, self.data.template)
            self._write_probe()

    # Saving

    def _checkpoint(self, step: int, skipped: int) -> None:
        if self.main:
            self.metrics.sync()
        reference = self.ref_columns.identity if self.ref_columns else None
        state = TrainState(
            step=step, data=self.data.fingerprint, skipped=skipped, before=self.before, best=self.best,
            limit=self.gradients.limit, reference=reference,
        )  # fmt: skip
        self.checkpoints.save(state)
        self.accelerator.wait_for_everyone()

    def _finish(self, last: int) -> TrainSummary:
        """Save the model and, after the last step, the summary."""
        config, finished = self.config, last == len(self.data.plan)
        self.accelerator.wait_for_everyone()
        whole = self._whole_model()
        if self.main:
            self._save(whole)
            if finished and not self.best:
                self._write_probe()
        lines = self.metrics.read("train")
        summary = TrainSummary(
            before=self.before, after=self.best or self.after, skipped=sum(line.grad_norm is None for line in lines),
            **totals(config.output_dir, last, lines, self.checkpoints.seconds).to_dict(),
        )  # fmt: skip
        if self.main and summary.skipped:
            log.warning("%d of %d steps were skipped: no finite loss or gradient", summary.skipped, last)
        if self.main and finished:
            write_record(config.output_dir / "summary.json", summary)
        return summary

    def _save(self, model: Any) -> None:
        config = self.config
        folder = config.output_dir / self._folder
        if not self.best:
            save_model(folder, model, self.tokenizer, self.data.template)
        if config.lora_r and config.merge_adapter:
            if self.best:
                load_adapter_weights(model, folder)
            save_model(config.output_dir / "model", merge_lora(model), self.tokenizer, self.data.template)

    @property
    def _folder(self) -> str:
        return "adapter" if self.config.lora_r else "model"

    def _whole_model(self) -> Any:
        """The model to be saved; sharded, it is gathered in the first process (all of them have to call this)."""
        return self.skeleton.filled(self.model, self.dtype, keep=self.main) if self.skeleton else self.model

    def _write_probe(self) -> None:
        if self.probe:
            self.probe.write(self.config.output_dir / "token_logprobs.json")

    # Several processes, and what is said

    def _of_any(self, signal: int) -> int:
        """The signal that any process has got, since all have to stop after the same step; 0 for none."""
        if self.accelerator.num_processes == 1:
            return signal
        return int(gather(torch.tensor([signal], device=self.accelerator.device)).max())

    def _no_gradient(self, step: int) -> UserError:
        """The end of a run that no longer learns; keeps the last step that did."""
        if step > self.skipped and not self.old:  # masters and moments still are those of that step
            self._checkpoint(step - self.skipped, 0)
        self.accelerator.wait_for_everyone()
        good = last_good_checkpoint(self.checkpoints.folder)
        return UserError(
            f"no finite gradient in {self.skipped} consecutive steps, up to step {step}; "
            + (f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"),
            where=self.config.output_dir,
            hint="start again in another --output-dir, for instance with a lower learning_rate",
        )

    def _say_decisions(self, precision: str) -> None:
        """One line per decision, with its reason."""
        config, data, phases = self.config, self.data, self.phases
        steps = len(data.plan)
        shown = ", then ".join(f"{phase.label} until step {round(phase.end * steps)}" for phase in phases)
        log.info("objective: %s", shown)
        if least := phases[0].min_eos_weight:
            names = " and ".join(phase.label for phase in phases if phase.vanishes())
            reason = f", because {names} gives no weight to tokens that the model never writes (0 is the paper's Eq. 9)"
            reason = reason if config.min_eos_weight is None else ""
            log.info("min_eos_weight: turn-ending and special tokens keep weight %g%s", least, reason)
        log.info("precision: %s", precision)
        if router := self.scorer.router_loss:
            shown = (
                f"off, because {router}" if isinstance(router, str) else f"on, times {router.coefficient:g}"
            )
            log.info("router loss: %s", shown)
        log.info(
            "rows: %s to train on, %s held out, written with %s; %s steps of %s rows",
            f"{len(data.train):,}", f"{len(data.holdout):,}", data.template.name, f"{steps:,}", config.batch_size,
        )  # fmt: skip
        if self.main and (idle := data.idle_processes(self.accelerator.num_processes)):
            log.warning("%s", idle)


def _accelerator(config: TrainConfig) -> Accelerator:
    waiting = InitProcessGroupKwargs(timeout=TIMEOUT)
    accelerator = Accelerator(cpu=on_cpu(), log_with=make_trackers(config) or None, kwargs_handlers=[waiting])
    kind = accelerator.distributed_type
    plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if kind not in plain and not is_sharded(accelerator):
        raise UserError(f"training under {kind.value} is not supported yet")
    if not accelerator.is_main_process:
        log.setLevel(logging.WARNING)  # the first process speaks for all
    return accelerator


def _badness(metric: str, figures: Figures) -> float:
    """What an evaluation is judged by, smaller is better, by the rows' weights; never the objective's own value."""
    if metric == "last" or not figures:
        return math.inf
    value = figures.get(f"weighted_{metric}", figures[metric])
    assert isinstance(value, float)
    return value if metric == "nll" else -value


def _shown(figures: Mapping[str, object]) -> str:
    if "nll" not in figures:
        return "no targets"
    return (
        f"objective {figures['objective']:.3f}  nll {figures['nll']:.3f}  mean p {figures['mean_p']:.3f}"
        f"  {figures['tokens_per_second']:.0f} tokens/s"
    )
