"""Training: one flat loop over steps. An objective turns columns into losses; their sum is divided once.

A step takes its rows from the plan, packs them into micro-batches, and divides the sum of losses by the number of
supervised tokens of the whole step over all processes. So any split of a step into micro-batches or
processes gives the same gradient. What is logged is in `monitors.py`, what a run goes on from in `checkpoints.py`,
what it reads in `batches.py`.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from rectune.config import TrainConfig
from rectune.errors import UserError
from rectune.models.loading import load_model
from rectune.models.lora import add_lora, load_adapter_weights, merge_lora
from rectune.models.scorer import Scorer
from rectune.objectives import apply_objective
from rectune.training.batches import load_data, pair_columns
from rectune.training.checkpoints import (
    last_good_checkpoint,
    load_checkpoint,
    save_checkpoint,
    take_back_metrics,
    to_json,
    write_text,
)
from rectune.training.drift import make_probe
from rectune.training.monitors import (
    COLUMNS,
    Monitor,
    evaluate_holdout,
    peak_memory_mib,
    reset_peak_memory,
)
from rectune.training.phases import Phase, make_phases, phase_at
from rectune.training.progress import progress, say_decisions
from rectune.training.run_folder import check_run, open_run, save_model
from rectune.training.weights import Masters, choose_precision, learning_rate, make_optimizer

log = logging.getLogger("rectune")

_GIVE_UP_AFTER = 10  # steps in a row without a finite gradient


@dataclass(frozen=True)
class TrainResult:
    """What a finished run says in `summary.json`.

    Attributes:
        out: The run folder.
        steps: Optimizer steps.
        before, after: Figures on the hold-out rows (see `Monitor.figures`) of the model as it was and of the one
            saved; empty without hold-out rows.
        tokens_per_second: Tokens of the rows, prompts included, per second of training steps.
        peak_memory_mib: Of the process, or of the GPU where there is one.
        seconds: Of training steps.
    """

    out: str
    steps: int
    before: dict[str, Any]
    after: dict[str, Any]
    tokens_per_second: float
    peak_memory_mib: float
    seconds: float


def train(config: TrainConfig, *, resume: bool = False, until: int | None = None) -> TrainResult:
    """Fine-tune `config.model` on `config.data`; writes the run folder `config.out`.

    Args:
        config: All settings.
        resume: Go on from the last checkpoint in the folder, with the same bits as an uninterrupted run on this
            machine; with nothing there, start afresh.
        until: Pause after this step, if it is not the last: with a checkpoint and the weights in OUT/model, without
            summary.json. Going on later gives the bits of a run that never paused.

    Returns:
        The content of `summary.json`; at a pause `after` are the figures of the last evaluation.

    Raises:
        UserError: Data, model or settings that cannot be used, or a folder that holds another run.
    """
    reset_peak_memory()
    accelerator = _accelerator(config)
    phases = make_phases(config.objective)
    check_run(config, resume=resume)
    if resume and (config.out / "summary.json").exists():
        log.info("%s: the run is finished", config.out)
        return TrainResult(**json.loads((config.out / "summary.json").read_text()))

    model, tokenizer = load_model(config.model, dtype=torch.float32, device=accelerator.device)
    data = load_data(config, tokenizer, paired="pair" in phases[0].columns)
    if config.lora.rank:
        model = add_lora(model, config.lora, config.seed)  # type: ignore[assignment]
    dtype, why = choose_precision(config.precision, accelerator.device)
    masters = Masters(model, dtype)
    optimizer = make_optimizer(masters, config)
    scorer = Scorer(model, memory_budget=config.memory_budget << 20)
    if config.gradient_checkpointing:
        enable = "activation_checkpointing_enable"  # its new name in transformers
        getattr(model, enable, model.gradient_checkpointing_enable)()
    needed = {name for phase in phases for name in phase.columns}
    reference = _reference(scorer, bool(config.lora.rank)) if needed & {"kl", "ref_logp"} else None
    old = scorer.frozen() if "old_logp" in needed else None
    extra = {"old": {n: p for n, p in old.model.named_parameters() if n in masters.masters}} if old else {}
    say_decisions(config, data, phases, f"{dtype} ({why})".removeprefix("torch."))

    main = accelerator.is_main_process
    steps = len(data.plan)
    last = steps if until is None else min(steps, max(1, until))
    metrics = config.out / "metrics.jsonl"
    checkpoints = config.out / "checkpoints"
    probe = make_probe(scorer, tokenizer, config, data.holdout, accelerator)  # the model still is the base
    start, skipped = 0, 0
    before: dict[str, Any] = {}  # figures of the model as it was
    best: dict[str, Any] = {}  # figures of the weights in OUT/model, where config.choose picks them
    found = last_good_checkpoint(checkpoints) if resume else None
    if found:
        state = load_checkpoint(found, masters.masters, optimizer, extra)
        if state["data"] != data.fingerprint:
            was = f"the rows are not those the run began with ({state['data']}, now {data.fingerprint})"
            raise UserError(was, where=config.data, hint="restore them, or give another --out")
        masters.publish()
        start, skipped, before, best = state["step"], state["skipped"], state["before"], state["best"]
        log.info("going on from %s, step %d of %d", found, start, steps)
        if start > last:
            raise UserError(f"is at step {start} already, beyond step {last}", where=config.out)
    accelerator.wait_for_everyone()  # all have checked the folder
    if main:
        open_run(config)
        take_back_metrics(metrics, start if found else -1)
    if probe and found:
        probe.recall(metrics)
    if config.trackers:
        accelerator.init_trackers("rectune", {k: str(v) for k, v in config.model_dump().items()})

    def evaluation(step: int) -> dict[str, Any]:
        figures = evaluate_holdout(
            scorer, data.holdout, config, accelerator, reference=reference if data.paired else None
        )
        if figures:
            _log(accelerator, metrics, {"step": step, "kind": "holdout", **figures})
        if probe:
            _log(accelerator, metrics, probe.measure(step, last=step == steps))
        accelerator.wait_for_everyone()  # only the first process watches
        return figures

    if not found:
        before = evaluation(0)
    after = before
    model.train()
    with progress(steps, start, shown=main) as advance:
        for step in range(start, last):
            began = time.perf_counter()
            phase = phase_at(phases, step, steps)
            monitor = Monitor(phase.objective, phase.settings, phase.protect)
            if old and step % config.objective.refresh == 0:
                old.model.load_state_dict(model.state_dict())
            torch.manual_seed(config.seed * 1_000_003 + step)  # so that dropout can be resumed
            masters.start_step()
            units = max(1, data.units(data.plan.rows(step)))
            micro_batches = data.micro_batches(step)
            for rows in micro_batches[accelerator.process_index :: accelerator.num_processes]:
                batch = data.train.batch(rows, accelerator.device)
                columns = scorer.columns(batch, _head_columns(phase), reference=reference)
                if data.paired:
                    columns |= pair_columns(columns["row"])
                if old and "old_logp" in phase.columns:
                    with torch.no_grad():
                        columns["old_logp"] = old.columns(batch)["logp"]
                losses = apply_objective(phase.objective, columns, protect=phase.protect, **phase.settings)
                divisor = units if config.normalization == "tokens" else max(1, data.units(rows))
                (losses.sum() / divisor).backward()
                monitor.add(columns, losses)
            norm = masters.finish_step(accelerator).item()
            rate = learning_rate(config, step, steps)
            done = step + 1
            if math.isfinite(norm):
                skipped = 0
                if config.clip and norm > config.clip:
                    masters.scale_gradients(config.clip / norm)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                masters.publish()
            else:
                skipped += 1
                log.warning("step %d: the gradient is not finite; the weights stay as they are", done)
            tokens = sum(data.train.lengths(data.plan.rows(step)))
            seconds = time.perf_counter() - began
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
            advance(figures)
            if skipped == _GIVE_UP_AFTER:
                raise UserError(
                    f"no finite gradient in {skipped} steps in a row, up to step {done}",
                    where=config.out,
                    hint="begin again in another --out, for instance with a lower learning_rate",
                )
            if done == steps or (config.evaluate_every and done % config.evaluate_every == 0):
                after = evaluation(done)
                if _badness(config.choose, after) < _badness(config.choose, best):
                    best = after
                    if main:
                        save_model(config.out / _folder(config), model, tokenizer)
                        if probe:
                            probe.write(config.out / "probe.json")
            due = config.checkpoint_every and done % config.checkpoint_every == 0
            if done < steps and (due or done == last):
                if main:
                    state = {"data": data.fingerprint, "skipped": skipped, "before": before, "best": best}
                    keep = config.keep_checkpoints
                    save_checkpoint(checkpoints, done, masters.masters, optimizer, extra, state, keep)
                accelerator.wait_for_everyone()
    accelerator.wait_for_everyone()
    result = _summary(config, metrics, last, before, best or after)
    if main:
        _save(config, model, tokenizer, chosen=bool(best))
    if main and last == steps:
        if probe and not best:
            probe.write(config.out / "probe.json")
        write_text(config.out / "summary.json", to_json(asdict(result), indent=2) + "\n")
    if config.trackers:
        accelerator.end_training()
    return result


def _accelerator(config: TrainConfig) -> Accelerator:
    accelerator = Accelerator(log_with=list(config.trackers) or None, project_dir=str(config.out))  # type: ignore[arg-type]
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(f"training under {kind.value} is not supported yet")
    if not accelerator.is_main_process:
        log.setLevel(logging.WARNING)  # the first process speaks for all
    return accelerator


def _reference(scorer: Scorer, lora: bool) -> Scorer:
    return scorer.without_adapter() if lora else scorer.frozen()


def _head_columns(phase: Phase) -> list[str]:
    """What the scorer is asked for: it always gives `row` and `structural`, and never knows the others."""
    return sorted({*COLUMNS, *phase.columns} - {"row", "structural", "old_logp", "pair", "sign"})


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
    return "adapter" if config.lora.rank else "model"


def _save(config: TrainConfig, model: Any, tokenizer: Any, *, chosen: bool) -> None:
    """Write the last weights, unless an evaluation chose weights, which are there already."""
    saved = config.out / _folder(config)
    if not chosen:
        save_model(saved, model, tokenizer)
    if config.lora.rank and config.lora.merge:
        if chosen:
            load_adapter_weights(model, saved)
        save_model(config.out / "model", merge_lora(model), tokenizer)


def _summary(
    config: TrainConfig, metrics: Path, steps: int, before: dict[str, Any], after: dict[str, Any]
) -> TrainResult:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    taken = [line for line in lines if line["kind"] == "train"]
    seconds = sum(line["seconds"] for line in taken)
    tokens = sum(line["tokens"] for line in taken)
    return TrainResult(
        out=str(config.out),
        steps=steps,
        before=before,
        after=after,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        peak_memory_mib=max((line["peak_memory_mib"] for line in taken), default=0.0),
        seconds=seconds,
    )
