"""Reinforcement learning: generate rollouts, compute advantages, update, again.

A step is one rollout and its updates. All that a step does is a function of the config, the weights, the optimizer's
moments and the step's number, so a resumed run has the bits of one that never stopped. The run folder, checkpoints and
metrics are those of training.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from accelerate import Accelerator

from rectune.config import RLConfig
from rectune.data.sampler import plan_steps
from rectune.data.trained_prompt import as_trained
from rectune.errors import UserError
from rectune.models.load import choose_dtype, load_model
from rectune.models.lora import add_lora, merge_lora, starts_from_adapter, with_own_lora
from rectune.records import Figures, MetricsLine, RLState, RLSummary, write_record
from rectune.rl.policy import Policy, ReloadingServer, TokenLimit
from rectune.rl.rollout import (
    Rewards,
    check_room,
    compute_advantages,
    evaluate_policy,
    generate_rollouts,
    load_prompts,
    read_inputs,
    save_rollout,
)
from rectune.rl.update import trained, update
from rectune.runtime.distributed import default_device, on_cpu
from rectune.runtime.progress import progress
from rectune.runtime.signals import Stopped, defer_signals
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.openai import OpenAIEngine
from rectune.sampling.types import Engine
from rectune.training.checkpoint import Checkpointer
from rectune.training.dry_run import memory_estimate
from rectune.training.metrics import peak_memory_mib, reset_peak_memory
from rectune.training.metrics_log import MetricsLog, totals
from rectune.training.mixed_precision import Masters, freeze_unused, learning_rate, make_optimizer
from rectune.training.run_dir import enter_run, finished_run, open_run, run_template, save_model, settled

log = logging.getLogger("rectune")

_MAX_IDLE_STEPS = 10  # in a row of which nothing could be judged, or without a finite gradient


def train_rl(config: RLConfig, *, resume: bool = False, began: float | None = None) -> RLSummary:
    """Train `config.model` on its own answers to `config.problems`; writes the run folder `config.output_dir`.

    Args:
        config: All settings.
        resume: Continue from the last checkpoint in the folder, with the same bits as an uninterrupted run on this
            machine; with nothing there, start afresh.
        began: `time.perf_counter()` as the command began, for the summary's `seconds`; None: now.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: A model, problems, a reward or settings that cannot be used, a folder that holds another run, or a
            full disk. Where a reward function fails, a checkpoint of the steps before is written first.
        Stopped: By Ctrl-C or SIGTERM, after a step, with a checkpoint.
    """
    began = time.perf_counter() if began is None else began
    reset_peak_memory()
    config = _resolved(config)
    if resume and (finished := finished_run(config, RLSummary)):
        return finished
    with enter_run(config, resume=resume), Rewards(config.reward, config.grading_timeout) as rewards:
        return RLTrainer(config, rewards, began).run(resume=resume)


def dry_run(config: RLConfig) -> dict[str, Any]:
    """Resolved config, problems, answers, updates and memory of a run; writes nothing.

    Raises:
        UserError: Whatever `train_rl` would refuse about them.
    """
    config = _resolved(config)
    problems, held_out = read_inputs(config)
    with Rewards(config.reward, config.grading_timeout) as rewards:
        rewards.check([*problems, *held_out])
    dtype, reason = choose_dtype(config.dtype, default_device())
    model, tokenizer = load_model(config.model, dtype=dtype)
    template = run_template(config.output_dir, config.chat_template, tokenizer)
    prompts = load_prompts([*problems, *held_out], tokenizer, template)
    check_room(prompts, model, tokenizer, config.max_new_tokens)
    longest = max(map(len, prompts.prompts)) + config.max_new_tokens
    answers = config.problems_per_step * config.num_samples
    if config.lora_r:
        model = add_lora(model, config, config.seed)  # type: ignore[assignment]
    memory = memory_estimate(
        model, config, dtype, tokens=min(max(config.tokens_per_micro_batch, longest), longest * answers),
        copies=int(config.beta > 0 and (not config.lora_r or starts_from_adapter(config))),
    )  # fmt: skip
    return {
        "config": settled(config),
        "precision": f"{dtype} ({reason})".removeprefix("torch."),
        "template": template.name,
        "problems": len(problems),
        "holdout_problems": len(held_out),
        "longest_prompt": longest - config.max_new_tokens,
        "steps": config.max_steps,
        "answers_per_step": answers,
        "updates": config.max_steps * config.num_iterations * config.num_mini_batches,
        "passes_over_the_problems": round(config.max_steps * config.problems_per_step / len(problems), 2),
        "most_tokens": config.max_steps * answers * config.max_new_tokens,
        "memory_mib": memory,
    }


def _resolved(config: RLConfig) -> RLConfig:
    """The settings with what comes from the model where it is not given: LoRA of an adapter, the prompt of a run."""
    config = as_trained(config.model, with_own_lora(config))
    if config.backend == "openai" and config.lora_r:
        raise UserError(
            "the server reloads whole models, not adapters", where="backend", hint="merge it first"
        )
    return config


class RLTrainer:
    """A run of reinforcement learning: what it consists of, made once, and its loop.

    Args:
        config: Of the run.
        rewards: Judge the answers.
        began: `time.perf_counter()` as the command began.
    """

    def __init__(self, config: RLConfig, rewards: Rewards, began: float) -> None:
        self.config, self.rewards = config, rewards
        problems, held_out = read_inputs(config)
        rewards.check([*problems, *held_out])
        self.accelerator = Accelerator(cpu=on_cpu())
        if self.accelerator.num_processes > 1:
            hint = "for several GPUs see examples/trl_grpo.py"
            raise UserError("rectune rl runs in one process", hint=hint)

        # Model and problems
        device = self.accelerator.device
        self.model: Any
        dtype, reason = choose_dtype(config.dtype, device)
        stored = dtype if config.lora_r else torch.float32
        self.model, self.tokenizer = load_model(config.model, dtype=stored, device=device)
        self.template = run_template(config.output_dir, config.chat_template, self.tokenizer)
        self.prompts, self.held_out = (
            load_prompts(some, self.tokenizer, self.template) for some in (problems, held_out)
        )
        for prompts in (self.prompts, self.held_out):
            check_room(prompts, self.model, self.tokenizer, config.max_new_tokens)
        self.plan = plan_steps(
            len(problems), config.problems_per_step, steps=config.max_steps, seed=config.seed
        )

        # Policy and reference
        if config.lora_r:
            self.model = add_lora(self.model, config, config.seed)
        freeze_unused(self.model)
        self.policy = Policy(
            self.model,
            value=config.algorithm == "ppo",
            temperature=config.temperature,
            memory_budget=config.logits_memory_mb << 20,
        )
        self.masters = Masters(self.policy, dtype)
        self.optimizer = _optimizer(self.masters, config)
        if config.gradient_checkpointing:
            enable = "activation_checkpointing_enable"  # its new name in transformers
            getattr(self.model, enable, self.model.gradient_checkpointing_enable)()
        scorer = self.policy.scorer
        fresh = config.lora_r and not starts_from_adapter(config)
        of_base = scorer.without_adapter if fresh else scorer.frozen
        self.reference = of_base() if config.beta else None
        self.engine = self._engine()
        longest = (
            max(len(ids) for ids in (*self.prompts.prompts, *self.held_out.prompts)) + config.max_new_tokens
        )
        self.limit = TokenLimit(max(config.tokens_per_micro_batch, longest))

        # What is kept of the run
        self.checkpoints = Checkpointer(
            config.output_dir / "checkpoints", self.masters.masters, self.optimizer,
            keep=config.save_total_limit, began=began, accelerator=self.accelerator,
        )  # fmt: skip
        self.metrics = MetricsLog(config.output_dir / "metrics.jsonl", self.accelerator)
        self.idle = 0  # steps in a row without an update
        self.before: Figures = {}  # of the model as it was, on the held-out problems
        log.info(
            "algorithm: %s; precision: %s (%s)", config.algorithm, str(dtype).removeprefix("torch."), reason
        )
        log.info(
            "problems: %s to train on, %s held out, written with %s; %s steps of %s answers",
            f"{len(problems):,}", f"{len(held_out):,}", self.template.name, f"{config.max_steps:,}",
            config.problems_per_step * config.num_samples,
        )  # fmt: skip

    def _engine(self) -> Engine:
        config = self.config
        if config.backend == "hf":
            return HFEngine(
                self.model, self.tokenizer, self.template, batch_size=config.sampling_batch_size, exact=False
            )
        assert config.base_url is not None
        server = OpenAIEngine(
            config.model, config.base_url, served_model_name=config.served_model_name, template=self.template,
            concurrency=config.sampling_batch_size,
        )  # fmt: skip
        return ReloadingServer(server, self.model, self.tokenizer, config.output_dir / "served")

    def run(self, *, resume: bool) -> RLSummary:
        """Train up to the end; see `train_rl`."""
        config, steps = self.config, self.config.max_steps
        state = self.checkpoints.load(RLState) if resume else None
        start = self._restore(state) if state else 0
        open_run(config, self.template, steps)
        self.metrics.truncate(start if start else -1)
        if not start:
            self.before = self._evaluate(0)
        after = self.before
        self.model.train()
        with progress(steps, start, label="step", lines=10) as report, defer_signals() as signalled:
            for step in range(start, steps):
                figures, done = self._step(step, start), step + 1
                self.metrics.add(MetricsLine.of(done, "train", figures))
                report(done, _shown(figures))
                broken = bool(figures["skipped"]) or figures["unjudged"] == figures["answers"]
                self.idle = self.idle + 1 if broken and not figures["updates"] else 0
                if self.idle == _MAX_IDLE_STEPS:
                    raise UserError(
                        f"no answer could be graded, or no gradient was finite, in {self.idle} consecutive steps",
                        where=config.output_dir,
                        hint="look at OUT/rollouts, raise grading_timeout or lower learning_rate",
                    )
                if done == steps or (config.eval_steps and done % config.eval_steps == 0):
                    after = self._evaluate(done)
                stop = signalled()
                due = config.save_steps and done % config.save_steps == 0
                if done < steps and (due or stop):
                    self._checkpoint(done)
                if done < steps and stop:
                    what = f"{config.output_dir}: stopped at step {done} of {steps}; resume it with --resume"
                    raise Stopped(what, stop)
        self._save()
        summary = self._summary(after)
        write_record(config.output_dir / "summary.json", summary)
        return summary

    def _restore(self, state: RLState) -> int:
        """The step of the checkpoint with this state, whose weights are loaded."""
        if state.data != self.prompts.fingerprint:
            raise UserError(
                f"the problems have changed since the run began ({state.data}, now {self.prompts.fingerprint})",
                where=self.config.problems,
                hint="restore them, or give another --output-dir",
            )
        self.masters.sync_working_weights()
        self.limit.tokens = state.limit or self.limit.tokens
        self.idle, self.before = state.idle, state.before
        return state.step

    def _step(self, step: int, start: int) -> Figures:
        """A rollout and its updates; the figures of its line of metrics."""
        config, began = self.config, time.perf_counter()
        try:
            rollout = generate_rollouts(
                self.engine, self.rewards, self.prompts, self.plan.rows(step), config, step
            )
        except UserError:
            if step > start:
                self._checkpoint(step)  # so that nothing is lost
            raise
        compute_advantages(rollout, self.policy, self.reference, config, self.limit)
        factor = learning_rate(config, step, config.max_steps) / config.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        torch.manual_seed(config.seed * 1_000_003 + step)  # so that dropout can be resumed
        credited = time.perf_counter()
        updates: Figures = {"updates": 0, "skipped": 0}
        if trained(rollout, rollout.used, config):
            updates = update(
                self.policy, self.masters, self.optimizer, self.accelerator, rollout, config, step, self.limit
            )
        every = config.save_rollout_steps
        if every and (step % every == 0 or step + 1 == config.max_steps):
            path = config.output_dir / "rollouts" / f"step-{step + 1:06d}.jsonl"
            save_rollout(rollout, self.prompts, path, step)
        now, tokens = time.perf_counter(), sum(rollout.lengths)
        return {
            "phase": config.algorithm,
            **rollout.figures,
            "answers": len(rollout.answers),
            **{"objective": None, "entropy": None, "clip_share": 0.0, "kl": None, "grad_norm": None},
            **updates,
            "learning_rate": config.learning_rate * factor,
            "tokens": tokens,
            "seconds": round(now - began, 4),
            "seconds_sampling": round(rollout.seconds["sampling"], 4),
            "seconds_grading": round(rollout.seconds["grading"], 4),
            "seconds_training": round(now - credited + rollout.seconds["credit"], 4),
            "tokens_per_second": round(tokens / (now - began), 1),
            "peak_memory_mib": peak_memory_mib(),
        }

    def _evaluate(self, step: int) -> Figures:
        """Figures on the held-out problems, logged; empty without any."""
        if not len(self.held_out):
            return {}
        figures = evaluate_policy(self.engine, self.rewards, self.held_out, self.config)
        self.metrics.add(MetricsLine.of(step, "validation", figures))
        return figures

    def _checkpoint(self, step: int) -> None:
        self.metrics.sync()
        state = RLState(
            step=step,
            data=self.prompts.fingerprint,
            idle=self.idle,
            before=self.before,
            limit=self.limit.tokens,
        )
        self.checkpoints.save(state)

    def _save(self) -> None:
        config, whole = self.config, self.config.output_dir / "model"
        saved = config.output_dir / "adapter" if config.lora_r else whole
        save_model(saved, self.model, self.tokenizer, self.template)
        if config.lora_r and config.merge_adapter:
            save_model(whole, merge_lora(self.model), self.tokenizer, self.template)

    def _summary(self, after: Figures) -> RLSummary:
        lines = self.metrics.read("train")
        tenth = max(1, len(lines) // 10)
        reward: dict[str, float | None] = {}
        for name, ends in (("first", lines[:tenth]), ("last", lines[-tenth:])):
            known = [line.reward for line in ends if line.reward is not None]
            reward[name] = sum(known) / len(known) if known else None
        return RLSummary(
            validation={"before": self.before, "after": after}, reward=reward,
            **totals(self.config.output_dir, self.config.max_steps, lines, self.checkpoints.seconds).to_dict(),
        )  # fmt: skip


def _optimizer(masters: Masters, config: RLConfig) -> torch.optim.AdamW:
    """Training's AdamW on the model, and on the value head with a learning rate of its own and no decay."""
    of_value = [master for name, master in masters.masters.items() if name.startswith("value.")]
    of_model = [master for name, master in masters.masters.items() if not name.startswith("value.")]
    optimizer = make_optimizer(of_model, config)
    for group in optimizer.param_groups:
        group["peak"] = config.learning_rate
    if of_value:
        rate = config.value_learning_rate
        optimizer.add_param_group({"params": of_value, "weight_decay": 0.0, "lr": rate, "peak": rate})
    return optimizer


def _shown(figures: Figures) -> str:
    """What the progress bar says of a step."""
    return (
        f"reward {_number(figures['reward'])}  length {figures['length']:.0f}  entropy {_number(figures['entropy'])}"
        f"  {figures['degenerate']} of {figures['groups']} groups alike  {figures['seconds']:.1f} s"
    )


def summary_table(result: RLSummary) -> list[dict[str, str]]:
    """The run in a row or two: reward of first and last rollouts, and accuracy on the held-out problems."""
    rows = [{"": "reward of rollouts", **{name: _number(value) for name, value in result.reward.items()}}]
    before, after = result.validation["before"], result.validation["after"]
    for name in ("reward", "length") if after else ():
        rows.append(
            {"": f"hold-out {name}", "first": _number(before.get(name)), "last": _number(after.get(name))}
        )
    return rows


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
