"""Online training: roll out, credit, update, again. The loop, and what a run goes on from.

A step is one rollout and its updates. All that a step does is a function of the config, the weights, the optimizer's
moments and the step's number, so a run that goes on from a checkpoint has the bits of one that never stopped. The
folder is that of an ordinary run: what writes it is in `rectune.training`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator

from rectune.config import RLConfig
from rectune.data.sampler import plan_steps
from rectune.data.schema import Problem
from rectune.data.trained_prompt import as_trained
from rectune.errors import UserError
from rectune.models.load import choose_dtype, load_model
from rectune.models.lora import add_lora, merge_lora, starts_from_adapter, with_own_lora
from rectune.rl.policy import Policy, TokenLimit
from rectune.rl.prompt_batches import ask, check_room, read_inputs
from rectune.rl.reward import Rewards
from rectune.rl.rl_summary import OnlineResult, keep_rollout, line, summary
from rectune.rl.rollout import Rollout, credit, measure, roll_out
from rectune.rl.update import trained, update
from rectune.rl.weight_sync import ReloadingServer
from rectune.runtime.distributed import on_cpu
from rectune.runtime.io import load_record, to_json, translate_disk_errors, write_json
from rectune.runtime.locks import lock
from rectune.runtime.progress import progress
from rectune.runtime.signals import Stopped, defer_signals
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.openai import OpenAIEngine
from rectune.sampling.types import Engine
from rectune.training.checkpoint import (
    last_good_checkpoint,
    load_checkpoint,
    save_checkpoint,
    take_back_metrics,
)
from rectune.training.metrics import peak_memory_mib, reset_peak_memory
from rectune.training.mixed_precision import Masters, learning_rate, make_optimizer
from rectune.training.run_dir import check_run, open_run, run_template, save_model

log = logging.getLogger("rectune")

_GIVE_UP_AFTER = 10  # steps in a row of which nothing could be judged, or without a finite gradient


def train_rl(config: RLConfig, *, resume: bool = False, began: float | None = None) -> OnlineResult:
    """Train `config.model` on its own answers to `config.problems`; writes the run folder `config.output_dir`.

    Args:
        config: All settings.
        resume: Go on from the last checkpoint in the folder, with the same bits as an uninterrupted run on this
            machine; with nothing there, start afresh.
        began: `time.perf_counter()` as the command began, for the summary's `seconds`; None: now.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: A model, problems, a reward or settings that cannot be used, a folder that holds another run, or a
            full disk. Where a reward function fails, a checkpoint of the steps before is written first.
        Stopped: By Ctrl-C or SIGTERM, behind a step, with a checkpoint.
    """
    began = time.perf_counter() if began is None else began
    reset_peak_memory()
    config = as_trained(config.model, with_own_lora(config))
    if config.backend == "openai" and config.lora_r:
        raise UserError(
            "the server reloads whole models, not adapters", where="engine", hint="merge it first"
        )
    check_run(config, resume=resume)  # type: ignore[arg-type]
    if resume and (config.output_dir / "summary.json").exists():
        log.info("%s: the run is finished", config.output_dir)
        fields = set(OnlineResult.__dataclass_fields__)
        path = config.output_dir / "summary.json"
        finished = {"step_seconds": None, **load_record(path, *fields - {"step_seconds"})}
        return OnlineResult(**{name: finished[name] for name in fields})
    problems, kept = read_inputs(config)
    with lock(config.output_dir, "training"), translate_disk_errors(config.output_dir, "go on with --resume"):
        check_run(config, resume=resume)  # type: ignore[arg-type]  # another process may have begun before
        with Rewards(config.reward, config.grading_timeout) as rewards:
            return _Run(config, rewards, problems, kept, began).go(resume=resume)


class _Run:
    """What a run consists of, made once; `go` is the loop."""

    def __init__(
        self,
        config: RLConfig,
        rewards: Rewards,
        problems: list[Problem],
        kept: list[Problem],
        began: float,
    ) -> None:
        self.config, self.rewards, self.began = config, rewards, began
        self.accelerator = Accelerator(cpu=on_cpu())
        if self.accelerator.num_processes > 1:
            hint = "for several GPUs see examples/trl_grpo.py"
            raise UserError("rectune online runs in one process", hint=hint)
        rewards.check([*problems, *kept])
        device = self.accelerator.device
        self.model: Any
        self.model, self.tokenizer = load_model(config.model, dtype=torch.float32, device=device)
        self.template = template = run_template(config.output_dir, config.chat_template, self.tokenizer)
        self.asked, self.kept = (ask(some, self.tokenizer, template) for some in (problems, kept))
        for some in (self.asked, self.kept):
            check_room(some, self.model, self.tokenizer, config.max_new_tokens)
        if config.lora_r:
            self.model = add_lora(self.model, config, config.seed)
        self.policy = Policy(
            self.model,
            value=config.algorithm == "ppo",
            temperature=config.temperature,
            memory_budget=config.logits_memory_mb << 20,
        )
        dtype, why = choose_dtype(config.dtype, device)
        self.masters = Masters(self.policy, dtype)
        self.optimizer = _optimizer(self.masters, config)
        if config.gradient_checkpointing:
            enable = "activation_checkpointing_enable"  # its new name in transformers
            getattr(self.model, enable, self.model.gradient_checkpointing_enable)()
        scorer = self.policy.scorer
        fresh = config.lora_r and not starts_from_adapter(config)
        of_base = scorer.without_adapter if fresh else scorer.frozen
        self.reference = of_base() if config.beta else None
        self.plan = plan_steps(
            len(problems), config.problems_per_step, steps=config.max_steps, seed=config.seed
        )
        longest = max(len(ids) for ids in (*self.asked.prompts, *self.kept.prompts)) + config.max_new_tokens
        self.room = TokenLimit(max(config.tokens_per_micro_batch, longest))
        self.engine = self._engine(template)
        self.metrics = config.output_dir / "metrics.jsonl"
        self.checkpoints = config.output_dir / "checkpoints"
        log.info(
            "algorithm: %s; precision: %s (%s)", config.algorithm, str(dtype).removeprefix("torch."), why
        )
        log.info(
            "problems: %s to learn on, %s kept apart, written with %s; %s steps of %s answers",
            f"{len(problems):,}", f"{len(kept):,}", template.name, f"{config.max_steps:,}",
            config.problems_per_step * config.num_samples,
        )  # fmt: skip

    def _engine(self, template: Any) -> Engine:
        config = self.config
        if config.backend == "hf":
            return HFEngine(
                self.model, self.tokenizer, template, batch_size=config.sampling_batch_size, exact=False
            )
        assert config.base_url is not None
        server = OpenAIEngine(
            config.model, config.base_url, served_model_name=config.served_model_name, template=template,
            concurrency=config.sampling_batch_size,
        )  # fmt: skip
        return ReloadingServer(server, self.model, self.tokenizer, config.output_dir / "served")

    def go(self, *, resume: bool) -> OnlineResult:
        config, steps = self.config, self.config.max_steps
        start, idle, before = self._recall() if resume else (0, 0, {})
        open_run(config, self.template, config.max_steps)  # type: ignore[arg-type]
        take_back_metrics(self.metrics, start if start else -1)
        if not start:
            before = self._measure(0)
        after = before
        self.model.train()
        with progress(steps, start, label="step", lines=10) as report, defer_signals() as stopped:
            for step in range(start, steps):
                began, asked = time.perf_counter(), self.plan.rows(step)
                try:
                    rollout = roll_out(self.engine, self.rewards, self.asked, asked, config, step)
                except UserError:
                    if step > start:
                        self._checkpoint(step, idle, before)  # so that nothing is lost
                    raise
                figures = self._learn(rollout, step, began)
                broken = figures["skipped"] > 0 or figures["unjudged"] == figures["answers"]
                idle = idle + 1 if broken and not figures["updates"] else 0
                self._log(figures)
                report(figures["step"], line(figures))
                done = step + 1
                if idle == _GIVE_UP_AFTER:
                    raise UserError(
                        f"no answer could be judged, or no gradient was finite, in {idle} steps in a row",
                        where=config.output_dir,
                        hint="look at OUT/rollouts, raise grading_timeout or lower learning_rate",
                    )
                if done == steps or (config.eval_steps and done % config.eval_steps == 0):
                    after = self._measure(done)
                stop = stopped()
                due = config.save_steps and done % config.save_steps == 0
                if done < steps and (due or stop):
                    self._checkpoint(done, idle, before)
                if done < steps and stop:
                    raise Stopped(
                        f"{config.output_dir}: stopped at step {done} of {steps}; go on with --resume", stop
                    )
        self._save()
        result = summary(config, self.metrics, before, after, time.perf_counter() - self.began)
        write_json(config.output_dir / "summary.json", asdict(result), indent=2)
        return result

    def _learn(self, rollout: Rollout, step: int, began: float) -> dict[str, Any]:
        """The updates of a step; its line of metrics."""
        config = self.config
        credit(rollout, self.policy, self.reference, config, self.room)
        factor = learning_rate(config, step, config.max_steps) / config.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        torch.manual_seed(config.seed * 1_000_003 + step)  # so that dropout can be resumed
        credited = time.perf_counter()
        made: dict[str, Any] = {"updates": 0, "skipped": 0}
        if trained(rollout, rollout.used, config):
            made = update(
                self.policy,
                self.masters,
                self.optimizer,
                self.accelerator,
                rollout,
                config,
                step,
                self.room,
            )
        if config.save_rollout_steps and (
            step % config.save_rollout_steps == 0 or step + 1 == config.max_steps
        ):
            keep_rollout(
                rollout, self.asked, config.output_dir / "rollouts" / f"step-{step + 1:06d}.jsonl", step
            )
        now = time.perf_counter()
        tokens = sum(rollout.lengths)
        return {
            "step": step + 1,
            "kind": "train",
            "phase": config.algorithm,
            **rollout.figures,
            "answers": len(rollout.answers),
            **{"objective": None, "entropy": None, "clip_share": 0.0, "kl": None, "grad_norm": None},
            **made,
            "learning_rate": config.learning_rate * factor,
            "tokens": tokens,
            "seconds": round(now - began, 4),
            "seconds_sampling": round(rollout.seconds["sampling"], 4),
            "seconds_grading": round(rollout.seconds["grading"], 4),
            "seconds_training": round(now - credited + rollout.seconds["credit"], 4),
            "tokens_per_second": round(tokens / (now - began), 1),
            "peak_memory_mib": peak_memory_mib(),
        }

    def _measure(self, step: int) -> dict[str, Any]:
        """Figures on the hold-out problems, logged; empty without any."""
        if not len(self.kept):
            return {}
        figures = measure(self.engine, self.rewards, self.kept, self.config)
        self._log({"step": step, "kind": "validation", **figures})
        return figures

    def _log(self, figures: dict[str, Any]) -> None:
        with self.metrics.open("a") as file:
            file.write(to_json(figures) + "\n")

    def _checkpoint(self, step: int, idle: int, before: dict[str, Any]) -> None:
        state = {"data": self.asked.fingerprint, "idle": idle, "before": before, "room": self.room.tokens}
        state["seconds"] = time.perf_counter() - self.began
        keep = self.config.save_total_limit
        save_checkpoint(self.checkpoints, step, self.masters.masters, self.optimizer, {}, state, keep)

    def _recall(self) -> tuple[int, int, dict[str, Any]]:
        """Weights and moments of the newest checkpoint; its step, idle steps, and figures of the model as it was."""
        found = last_good_checkpoint(self.checkpoints)
        if found is None:
            return 0, 0, {}
        state = load_checkpoint(found, self.masters.masters, self.optimizer, {})
        if state["data"] != self.asked.fingerprint:
            was = f"the problems are not those the run began with ({state['data']}, now {self.asked.fingerprint})"
            raise UserError(
                was, where=self.config.problems, hint="restore them, or give another --output-dir"
            )
        self.masters.publish()
        self.room.tokens = state.get("room", self.room.tokens)
        self.began -= state.get("seconds", 0.0)
        log.info("going on from %s, step %d of %d", found, state["step"], self.config.max_steps)
        return state["step"], state["idle"], state["before"]

    def _save(self) -> None:
        saved = self.config.output_dir / ("adapter" if self.config.lora_r else "model")
        save_model(saved, self.model, self.tokenizer, self.template)
        if self.config.lora_r and self.config.merge_adapter:
            save_model(
                self.config.output_dir / "model", merge_lora(self.model), self.tokenizer, self.template
            )


def _optimizer(masters: Masters, config: RLConfig) -> torch.optim.AdamW:
    """Training's AdamW on the model, and the value head beside it with a learning rate of its own and no decay."""
    of_model = {n: m for n, m in masters.masters.items() if not n.startswith("value.")}
    optimizer = make_optimizer(SimpleNamespace(masters=of_model), config)  # type: ignore[arg-type]
    for group in optimizer.param_groups:
        group["peak"] = config.learning_rate
    of_value = [m for n, m in masters.masters.items() if n not in of_model]
    if of_value:
        rate = config.value_learning_rate
        optimizer.add_param_group({"params": of_value, "weight_decay": 0.0, "lr": rate, "peak": rate})
    return optimizer
