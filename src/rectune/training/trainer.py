"""Training: one flat loop over steps. An objective turns columns into losses; their sum is divided once.

A step takes its rows from the plan; their gradient is added up over micro-batches (`accumulation.py`) and
processes, and taken by the optimizer. What is logged is in `metrics.py`, what a run goes on from in
`checkpoint.py`, what it reads in `dataloader.py`. A step whose gradient is not finite changes nothing; a signal
stops the run behind a step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather

from rectune.config import TrainConfig
from rectune.data.chat_template import Template
from rectune.errors import UserError
from rectune.models.load import choose_dtype, fingerprint, load_model
from rectune.models.lora import add_lora, load_adapter_weights, merge_lora
from rectune.models.scorer import Scorer
from rectune.objective_spec import Phase, make_phases, phase_at
from rectune.runtime.distributed import TIMEOUT, on_cpu, translate_peer_failure
from rectune.runtime.io import fsync, to_json, translate_disk_errors
from rectune.runtime.locks import lock
from rectune.runtime.progress import progress
from rectune.runtime.signals import Stopped, defer_signals
from rectune.training.accumulation import Gradients, named
from rectune.training.checkpoint import (
    last_good_checkpoint,
    load_checkpoint,
    save_checkpoint,
    take_back_metrics,
)
from rectune.training.dataloader import Texts, TrainingData, load_data
from rectune.training.drift import make_probe
from rectune.training.fsdp import gathered_state, is_sharded, shard_all
from rectune.training.inputs import read_inputs, with_models_own
from rectune.training.metrics import evaluate_holdout, peak_memory_mib, reset_peak_memory
from rectune.training.mixed_precision import Masters, learning_rate, make_optimizer
from rectune.training.reference import frozen_reference, reference_logprobs
from rectune.training.run_dir import TrainResult as TrainResult
from rectune.training.run_dir import (
    check_run,
    kept_limit,
    open_run,
    read_result,
    save_model,
    summarise,
    write_result,
)
from rectune.training.trackers import make_trackers, start_trackers

log = logging.getLogger("rectune")


def train(
    config: TrainConfig, *, resume: bool = False, until: int | None = None, began: float | None = None
) -> TrainResult:
    """Fine-tune `config.model` on `config.data`; writes the run folder `config.output_dir`.

    Args:
        config: All settings.
        resume: Go on from the last checkpoint in the folder, with the same bits as an uninterrupted run on this
            machine; with nothing there, start afresh.
        until: Pause after this step, if it is not the last: with a checkpoint and the weights in OUT/model, without
            summary.json. Going on later gives the bits of a run that never paused.
        began: `time.perf_counter()` as the command began, for the summary's `seconds`; None: now.

    Returns:
        The content of `summary.json`; at a pause `after` are the figures of the last evaluation.

    Raises:
        UserError: Data, model or settings that cannot be used, a folder that holds another run or is used by another
            process, or a disk that is full.
        Stopped: By Ctrl-C or SIGTERM, behind a step, with a checkpoint.
    """
    began = time.perf_counter() if began is None else began
    reset_peak_memory()
    make_phases(config)
    config = with_models_own(config)
    accelerator = _accelerator(config)
    check_run(config, resume=resume)
    if resume and (finished := read_result(config.output_dir)):
        log.info("%s: the run is finished", config.output_dir)
        return finished
    texts = read_inputs(config)
    with lock(config.output_dir, "training") if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            check_run(config, resume=resume)  # another process may have begun before the lock was ours
        with (
            translate_disk_errors(config.output_dir, "run it again (train with --resume)"),
            translate_peer_failure(),
        ):
            return _train(config, texts, accelerator, resume=resume, until=until, began=began)


def _train(
    config: TrainConfig,
    texts: Texts,
    accelerator: Accelerator,
    *,
    resume: bool,
    until: int | None,
    began: float,
) -> TrainResult:
    phases = make_phases(config)
    model, tokenizer = load_model(config.model, dtype=torch.float32, device=accelerator.device)
    data = load_data(config, tokenizer, model, paired="pair" in phases[0].columns, texts=texts)
    identity = fingerprint(model)
    if config.lora_r:
        model = add_lora(model, config, config.seed)  # type: ignore[assignment]
    dtype, why = choose_dtype(config.dtype, accelerator.device)
    sharded = is_sharded(accelerator)  # shards are float32, and computed with in `dtype`
    masters = Masters(model, torch.float32 if sharded else dtype)
    scorer = Scorer(model, memory_budget=config.logits_memory_mb << 20)
    if config.gradient_checkpointing:
        enable = "activation_checkpointing_enable"  # its new name in transformers
        getattr(model, enable, model.gradient_checkpointing_enable)()
    needed = {name for phase in phases for name in phase.columns}
    reference = frozen_reference(config, scorer, tokenizer) if "kl" in needed else None
    old = scorer.frozen() if "old_logp" in needed else None
    skeleton = None
    if sharded:
        skeleton = shard_all(scorer, [reference, old], dtype, accelerator)
        masters = Masters(model, torch.float32)
    optimizer = make_optimizer(masters, config)
    ref_logp = None  # of the model as it is now, unless another is named
    if "ref_logp" in needed:
        ref_logp = reference_logprobs(config, data, scorer, tokenizer, identity, accelerator)
    extra = {"old": {n: p for n, p in old.model.named_parameters() if n in masters.masters}} if old else {}
    say_decisions(config, data, phases, f"{dtype} ({why})".removeprefix("torch."))

    main = accelerator.is_main_process
    steps = len(data.plan)
    last = steps if until is None else min(steps, max(1, until))
    metrics = config.output_dir / "metrics.jsonl"
    checkpoints = config.output_dir / "checkpoints"
    probe = make_probe(scorer, tokenizer, config, data.holdout, accelerator)  # the model still is the base
    gradients = Gradients(
        config, data, scorer, masters, accelerator, reference=reference, ref_logp=ref_logp, old=old
    )
    start, skipped = 0, 0
    before: dict[str, Any] = {}  # figures of the model as it was
    best: dict[
        str, Any
    ] = {}  # figures of the weights in OUT/model, where config.metric_for_best_model picks them
    found = last_good_checkpoint(checkpoints) if resume else None
    if found:
        state = load_checkpoint(found, masters.masters, optimizer, extra)
        if not data.is_of(state["data"]):
            was = f"the rows are not those the run began with ({state['data']}, now {data.fingerprint})"
            hint = "restore them, or give another --output-dir; an earlier version may have split or cut them otherwise"
            raise UserError(was, where=config.data, hint=hint)
        if ref_logp and state.get("reference", ref_logp.identity) != ref_logp.identity:
            was = f"is not the one the run began with ({state['reference']}, now {ref_logp.identity})"
            raise UserError(was, where="reference_model", hint="restore it, or give another --output-dir")
        masters.publish()
        start, skipped, before, best = state["step"], state["skipped"], state["before"], state["best"]
        began -= state.get("seconds", 0.0)
        gradients.limit = state.get("limit")
        log.info("going on from %s, step %d of %d", found, start, steps)
        if start > last:
            raise UserError(f"is at step {start} already, beyond step {last}", where=config.output_dir)
    if resume:
        gradients.limit = min(filter(None, (gradients.limit, kept_limit(config.output_dir))), default=None)
    if gradients.limit:
        log.info("micro-batches of at most %d tokens: more did not fit into memory", gradients.limit)
    accelerator.wait_for_everyone()  # all have checked the folder
    if main:
        open_run(config, data.template, steps, max_length=data.max_length)
        take_back_metrics(metrics, start if found else -1)
    if probe and found and main:
        probe.recall(metrics)
    if config.report_to:
        start_trackers(accelerator, config, start)

    def evaluation(step: int) -> dict[str, Any]:
        figures = evaluate_holdout(
            scorer, data.holdout, config, accelerator, ref_logp=ref_logp if data.paired else None
        )
        if figures:
            _log(accelerator, metrics, {"step": step, "kind": "holdout", **figures})
        if probe:
            _log(accelerator, metrics, probe.measure(step))
        accelerator.wait_for_everyone()  # often only the first process watches
        return figures

    def save(step: int, skipped: int) -> None:
        kept: tuple[Any, Any, Any] = masters.masters, optimizer, extra
        if sharded:
            kept = gathered_state(*kept, keep=main)
        if not main:
            return
        fsync(metrics)  # a power cut must not leave fewer lines than steps
        state = {"data": data.fingerprint, "skipped": skipped, "before": before, "best": best}
        state |= {"limit": gradients.limit, "reference": ref_logp.identity if ref_logp else None}
        state |= {"seconds": time.perf_counter() - began}
        keep = config.save_total_limit
        save_checkpoint(checkpoints, step, *kept, state, keep)

    def whole_model() -> Any:
        return skeleton.filled(model, dtype, keep=main) if skeleton else model

    if not found:
        before = evaluation(0)
    after = before
    model.train()
    with progress(steps, start, label="step", shown=main, lines=10) as report, defer_signals() as signalled:
        for step in range(start, last):
            at = time.perf_counter()
            phase = phase_at(phases, step, steps)
            if old and step % config.old_policy_interval == 0:
                old.model.load_state_dict(model.state_dict())
            monitor = gradients.accumulate(step, phase)
            norm = masters.finish_step(accelerator).item()
            rate = learning_rate(config, step, steps)
            done = step + 1
            if math.isfinite(norm):
                skipped = 0
                if config.max_grad_norm and norm > config.max_grad_norm:
                    masters.scale_gradients(config.max_grad_norm / norm)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                masters.publish()
            else:
                skipped += 1
                rows = gradients.blame(step, phase)
                which = f"in {named(rows)}" if rows else "over all rows together"
                if main:
                    say = "step %d: the loss or gradient is not finite, %s; the weights stay as they are"
                    log.warning(say, done, which)
            tokens = sum(data.train.lengths(data.plan.rows(step)))
            seconds = max(time.perf_counter() - at, 1e-9)
            figures = {
                "step": done,
                "kind": "train",
                "phase": phase.name,
                **monitor.figures(accelerator),
                "grad_norm": norm,
                "learning_rate": rate,
                "tokens": tokens,
                "seconds": round(seconds, 4),
                "tokens_per_second": round(tokens / seconds, 1),
                "peak_memory_mib": peak_memory_mib(),
            }
            _log(accelerator, metrics, figures)
            report(done, _line(figures))
            if skipped >= min(config.max_nonfinite_steps, steps):  # of a short run all may be skipped
                if done > skipped and not extra:  # masters and moments still are those of that step
                    save(done - skipped, 0)
                accelerator.wait_for_everyone()
                raise _no_gradient(skipped, done, checkpoints)
            if done == steps or (config.eval_steps and done % config.eval_steps == 0):
                after = evaluation(done)
                if _badness(config.metric_for_best_model, after) < _badness(
                    config.metric_for_best_model, best
                ):
                    best, plain = after, whole_model()
                    if main:
                        save_model(config.output_dir / _folder(config), plain, tokenizer, data.template)
                        if probe:
                            probe.write(config.output_dir / "probe.json")
            stop = _of_any(accelerator, signalled())
            due = config.save_steps and done % config.save_steps == 0 and not skipped
            if done < steps and (due or stop or done == last):
                save(done, skipped)
                accelerator.wait_for_everyone()
            if stop and done < last:
                raise Stopped(
                    f"{config.output_dir}: stopped at step {done} of {steps}; go on with --resume", stop
                )
        accelerator.wait_for_everyone()
        plain = whole_model()
        if main:
            _save(config, plain, tokenizer, data.template, chosen=bool(best))
        if main and last == steps and probe and not best:
            probe.write(config.output_dir / "probe.json")
        result = summarise(config.output_dir, last, before, best or after, time.perf_counter() - began)
        if main and result.skipped:
            log.warning("%d of %d steps were skipped: no finite loss or gradient", result.skipped, last)
        if main and last == steps:
            write_result(result)
    if config.report_to:
        accelerator.end_training()
    if stop := _of_any(accelerator, signalled()):  # too late for this run, but not for what would follow
        raise Stopped(
            f"{config.output_dir}: step {last} of {steps} is done and saved, and nothing follows", stop
        )
    return result


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


def _no_gradient(skipped: int, step: int, checkpoints: Path) -> UserError:
    good = last_good_checkpoint(checkpoints)
    return UserError(
        f"no finite gradient in {skipped} steps in a row, up to step {step}; "
        + (f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"),
        where=checkpoints.parent,
        hint="begin again in another --output-dir, for instance with a lower learning_rate",
    )


def _of_any(accelerator: Accelerator, signal: int) -> int:
    """The signal that any process has got, since all have to stop behind the same step; 0 for none."""
    if accelerator.num_processes == 1:
        return signal
    return int(gather(torch.tensor([signal], device=accelerator.device)).max())


def _badness(choose: str, figures: dict[str, Any]) -> float:
    """What an evaluation is judged by, smaller is better; never the objective's own value."""
    if choose == "last" or not figures:
        return math.inf
    return float(figures["nll"] if choose == "nll" else -figures["mean_p"])


def _log(accelerator: Accelerator, path: Path, figures: dict[str, Any]) -> None:
    if accelerator.is_main_process:
        with path.open("a") as file:
            file.write(to_json(figures) + "\n")
    if accelerator.trackers:
        kind = figures["kind"]
        numbers = {f"{kind}/{k}": v for k, v in figures.items() if isinstance(v, (int, float))}
        accelerator.log(numbers, step=figures["step"])


def _folder(config: TrainConfig) -> str:
    return "adapter" if config.lora_r else "model"


def _save(config: TrainConfig, model: Any, tokenizer: Any, template: Template, *, chosen: bool) -> None:
    """Write the last weights, unless an evaluation chose weights, which are there already."""
    saved = config.output_dir / _folder(config)
    if not chosen:
        save_model(saved, model, tokenizer, template)
    if config.lora_r and config.merge_adapter:
        if chosen:
            load_adapter_weights(model, saved)
        save_model(config.output_dir / "model", merge_lora(model), tokenizer, template)


def say_decisions(config: TrainConfig, data: TrainingData, phases: Sequence[Phase], precision: str) -> None:
    """One line per decision, with its reason."""
    steps = len(data.plan)
    shown = ", then ".join(f"{phase.label} until step {round(phase.end * steps)}" for phase in phases)
    log.info("objective: %s", shown)
    if least := phases[0].min_eos_weight:
        names = " and ".join(phase.name for phase in phases if phase.vanishes())
        reason = f", because {names} gives no weight to what the model never says (0 is the paper's Eq. 9)"
        reason = reason if config.min_eos_weight is None else ""
        log.info("min_eos_weight: turn-ending and special tokens keep weight %g%s", least, reason)
    log.info("precision: %s", precision)
    log.info(
        "rows: %s to train on, %s kept aside, written with %s; %s steps of %s rows",
        f"{len(data.train):,}", f"{len(data.holdout):,}", data.template.name, f"{len(data.plan):,}", config.batch_size,
    )  # fmt: skip


def _line(figures: dict[str, Any]) -> str:
    if "nll" not in figures:
        return "no targets"
    return (
        f"objective {figures['objective']:.3f}  nll {figures['nll']:.3f}  mean p {figures['mean_p']:.3f}"
        f"  {figures['tokens_per_second']:.0f} tokens/s"
    )
