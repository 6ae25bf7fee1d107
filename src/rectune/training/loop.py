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
from rectune.models.lora import add_lora, merge_lora
from rectune.models.scorer import Scorer
from rectune.objectives import apply_objective
from rectune.training.batches import load_data
from rectune.training.checkpoints import (
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    take_back_metrics,
    write_text,
)
from rectune.training.monitors import COLUMNS, Monitor, evaluate_holdout, peak_memory_mib
from rectune.training.phases import make_phases, phase_at
from rectune.training.progress import progress, say_decisions
from rectune.training.run_folder import open_run, save_model
from rectune.training.weights import Masters, choose_precision, learning_rate, make_optimizer

log = logging.getLogger("rectune")

_GIVE_UP_AFTER = 10  # steps in a row without a finite gradient


@dataclass(frozen=True)
class TrainResult:
    """What a finished run says in `summary.json`.

    Attributes:
        out: The run folder.
        steps: Optimizer steps.
        before, after: Figures on the hold-out rows (see `Monitor.figures`); empty without hold-out rows.
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


def train(config: TrainConfig, *, resume: bool = False) -> TrainResult:
    """Fine-tune `config.model` on `config.data`; writes the run folder `config.out`.

    Args:
        config: All settings.
        resume: Go on from the last checkpoint in the folder, with the same bits as an uninterrupted run on this
            machine; with nothing there, start afresh.

    Raises:
        UserError: Data, model or settings that cannot be used, or a folder that holds another run.
    """
    trackers = list(config.trackers)
    accelerator = Accelerator(log_with=trackers or None, project_dir=str(config.out))  # type: ignore[arg-type]
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    ):
        raise UserError(f"training under {accelerator.distributed_type.value} is not supported yet")
    phases = make_phases(config.objective)
    if accelerator.is_main_process:
        open_run(config, resume=resume)
    accelerator.wait_for_everyone()
    if resume and (config.out / "summary.json").exists():
        log.info("%s: the run is finished", config.out)
        return TrainResult(**json.loads((config.out / "summary.json").read_text()))

    model, tokenizer = load_model(config.model, dtype=torch.float32, device=accelerator.device)
    data = load_data(config, tokenizer)
    if config.lora.rank:
        model = add_lora(model, config.lora, config.seed)  # type: ignore[assignment]
    dtype, why = choose_precision(config.precision, accelerator.device)
    masters = Masters(model, dtype)
    optimizer = make_optimizer(masters, config)
    scorer = Scorer(model, memory_budget=config.memory_budget << 20)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    say_decisions(config, data, phases, f"{dtype} ({why})".removeprefix("torch."))
    needed = {name for phase in phases for name in phase.columns}
    reference = _reference(scorer, bool(config.lora.rank)) if needed & {"kl", "ref_logp"} else None
    old = scorer.frozen() if "old_logp" in needed else None
    extra = {"old": dict(old.model.named_parameters())} if old else {}
    if old and config.lora.rank:
        extra = {"old": {n: p for n, p in extra["old"].items() if n in masters.masters}}

    steps = len(data.plan)
    metrics = config.out / "metrics.jsonl"
    checkpoints = config.out / "checkpoints"
    start, best, before, skipped = 0, math.inf, {}, 0
    found = list_checkpoints(checkpoints) if resume else []
    if found:
        state = load_checkpoint(found[-1], masters.masters, optimizer, extra)
        masters.publish()
        start, best, before = state["step"], state["best"] or math.inf, state["before"]
        log.info("going on from %s, step %d of %d", found[-1], start, steps)
    if accelerator.is_main_process:
        take_back_metrics(metrics, start if found else -1)
    if trackers:
        accelerator.init_trackers("rectune", {k: str(v) for k, v in config.model_dump().items()})

    def evaluation(step: int) -> dict[str, Any]:
        figures = evaluate_holdout(scorer, data.holdout, config, accelerator)
        _log(accelerator, metrics, {"step": step, "kind": "holdout", **figures})
        return figures

    if not found:
        before = evaluation(0)
    after = before
    model.train()
    with progress(steps, start) as advance:
        for step in range(start, steps):
            began = time.perf_counter()
            phase = phase_at(phases, step, steps)
            monitor = Monitor(phase.objective, phase.settings, phase.protect)
            if old and step % config.objective.refresh == 0:
                old.model.load_state_dict(model.state_dict())
            torch.manual_seed(
                config.seed * 1_000_003 + step
            )  # dropout: a function of the step, so it can be resumed
            masters.start_step()
            rate = learning_rate(config, step, steps)
            targets, tokens = data.supervised(step), 0
            micro_batches = data.micro_batches(step)
            for rows in micro_batches[accelerator.process_index :: accelerator.num_processes]:
                batch = data.train.batch(rows, accelerator.device)
                names = {*COLUMNS, *phase.columns} - {"row", "structural", "old_logp"}
                columns = scorer.columns(batch, sorted(names), reference=reference)
                if old and "old_logp" in phase.columns:
                    with torch.no_grad():
                        columns["old_logp"] = old.columns(batch)["logp"]
                losses = apply_objective(phase.objective, columns, protect=phase.protect, **phase.settings)
                per_token = config.normalization == "tokens"
                (losses.sum() / (targets if per_token else max(1, len(losses)))).backward()
                monitor.add(columns, losses)
            tokens = sum(data.train.lengths(data.plan.rows(step)))
            norm = masters.finish_step(accelerator).item()
            skipped = 0 if math.isfinite(norm) else skipped + 1
            if not skipped:
                if config.clip and norm > config.clip:
                    masters.scale_gradients(config.clip / norm)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                masters.publish()
            else:
                log.warning("step %d: the gradient is not finite; the weights stay as they are", step + 1)
                if skipped == _GIVE_UP_AFTER:
                    raise UserError(
                        f"no finite gradient in {skipped} steps in a row, up to step {step + 1}",
                        where=config.out,
                        hint="lower learning_rate, or go on from a checkpoint with other settings",
                    )
            seconds = time.perf_counter() - began
            figures = {
                "step": step + 1,
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
            done = step + 1
            if done == steps or (config.evaluate_every and done % config.evaluate_every == 0):
                after = evaluation(done)
                value = _choice(config.choose, after)
                if value < best:
                    best = value
                    if accelerator.is_main_process:
                        save_model(config.out / "best", model, tokenizer)
            if config.checkpoint_every and done % config.checkpoint_every == 0 and done < steps:
                if accelerator.is_main_process:
                    state = {"best": None if math.isinf(best) else best, "before": before}
                    save_checkpoint(
                        checkpoints, done, masters.masters, optimizer, extra, state, config.keep_checkpoints
                    )
                accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _save(config, model, tokenizer)
    result = _summary(config, metrics, steps, before, after)
    if accelerator.is_main_process:
        write_text(config.out / "summary.json", json.dumps(asdict(result), indent=2) + "\n")
    if trackers:
        accelerator.end_training()
    return result


def _reference(scorer: Scorer, lora: bool) -> Scorer:
    return scorer.without_adapter() if lora else scorer.frozen()


def _choice(choose: str, figures: dict[str, Any]) -> float:
    """What the evaluation is judged by, smaller is better; never the objective's own value."""
    if choose == "last" or not figures:
        return math.inf
    return float(figures["nll"] if choose == "nll" else -figures["mean_p"])


def _log(accelerator: Accelerator, path: Path, figures: dict[str, Any]) -> None:
    if accelerator.is_main_process:
        with path.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    if accelerator.trackers:
        kind = figures["kind"]
        numbers = {f"{kind}/{k}": v for k, v in figures.items() if isinstance(v, (int, float))}
        accelerator.log(numbers, step=figures["step"])


def _save(config: TrainConfig, model: Any, tokenizer: Any) -> None:
    best = config.out / "best"
    if config.lora.rank:
        save_model(config.out / "adapter", model, tokenizer)
        if config.lora.merge:
            save_model(config.out / "model", merge_lora(model), tokenizer)
    elif best.exists():
        best.rename(config.out / "model")
    else:
        save_model(config.out / "model", model, tokenizer)


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
