"""What an online run says and keeps beside its weights: kept rollouts, a line of progress, and the summary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectune.config import RLConfig
from rectune.data.trained_prompt import as_trained
from rectune.models.load import choose_dtype, load_model
from rectune.models.lora import add_lora, starts_from_adapter, with_own_lora
from rectune.rl.prompt_batches import Asked, ask, check_room, read_inputs
from rectune.rl.reward import Rewards
from rectune.rl.rollout import Rollout
from rectune.runtime.distributed import default_device
from rectune.runtime.io import write_jsonl
from rectune.training.dry_run import memory_estimate
from rectune.training.run_dir import run_template, settled


def plan(config: RLConfig) -> dict[str, Any]:
    """Resolved config, problems, answers, updates and memory of a run; writes nothing.

    Raises:
        UserError: Whatever `train_rl` would refuse about them.
    """
    config = as_trained(config.model, with_own_lora(config))
    problems, kept = read_inputs(config)
    with Rewards(config.reward, config.grading_timeout) as rewards:
        rewards.check([*problems, *kept])
    device = default_device()
    dtype, why = choose_dtype(config.dtype, device)
    model, tokenizer = load_model(config.model, dtype=dtype)
    template = run_template(config.output_dir, config.chat_template, tokenizer)
    asked = ask([*problems, *kept], tokenizer, template)
    check_room(asked, model, tokenizer, config.max_new_tokens)
    longest = max(map(len, asked.prompts)) + config.max_new_tokens
    answers = config.problems_per_step * config.num_samples
    if config.lora_r:
        model = add_lora(model, config, config.seed)  # type: ignore[assignment]
    return {
        "config": settled(config),
        "precision": f"{dtype} ({why})".removeprefix("torch."),
        "template": template.name,
        "problems": len(problems),
        "holdout_problems": len(kept),
        "longest_prompt": longest - config.max_new_tokens,
        "steps": config.max_steps,
        "answers_per_step": answers,
        "updates": config.max_steps * config.num_iterations * config.num_mini_batches,
        "passes_over_the_problems": round(config.max_steps * config.problems_per_step / len(problems), 2),
        "most_tokens": config.max_steps * answers * config.max_new_tokens,
        "memory_mib": memory_estimate(
            model,
            config,
            dtype,
            tokens=min(max(config.tokens_per_micro_batch, longest), longest * answers),
            copies=int(config.beta > 0 and (not config.lora_r or starts_from_adapter(config))),
        ),
    }


@dataclass(frozen=True)
class OnlineResult:
    """What a finished run says in `summary.json`.

    Attributes:
        out: The run folder.
        steps: Rollouts.
        validation: `before` and `after`: figures on the hold-out problems (`reward`, `correct`, `length`, ...) of the
            model as it was and of the one saved; empty without hold-out problems.
        reward: Mean reward of the first and of the last tenth of the steps, each an own rollout of the policy then.
        tokens_per_second: Drawn tokens per second of steps.
        peak_memory_mib: Of the process, or of the GPU where there is one.
        seconds: That passed from the command's start to its end; of a run that went on from a checkpoint, those up to
            that checkpoint are in it.
        step_seconds: Of all steps; None in summaries of older versions, whose `seconds` they are.
    """

    out: str
    steps: int
    validation: dict[str, dict[str, Any]]
    reward: dict[str, float | None]
    tokens_per_second: float
    peak_memory_mib: float
    seconds: float
    step_seconds: float | None = None
    format: int = 1


def keep_rollout(rollout: Rollout, asked: Asked, path: Path, step: int) -> None:
    """A rollout as JSON lines, for people to read."""
    records: list[dict[str, Any]] = []
    for i, (answer, earned) in enumerate(zip(rollout.answers, rollout.earned, strict=True)):
        problem = asked.problems[rollout.problems[i]]
        advantage = rollout.columns[i].get("advantage")
        record = {
            "format": 1,
            "step": step + 1,
            "problem_id": problem.problem_id,
            "sample_index": answer.request.sample_index,
            "question": problem.prompt[-1].content,
            "text": answer.text,
            "answer": problem.answer,
            "reward": earned.reward,
            "verdict": earned.verdict,
            "advantage": None if advantage is None else float(advantage.mean()),
            "tokens": len(answer.token_ids),
            "finish_reason": answer.finish_reason,
        }
        records.append(record)
    write_jsonl(path, records)


def line(figures: dict[str, Any]) -> str:
    """What the progress bar says of a step."""
    reward = "-" if figures["reward"] is None else f"{figures['reward']:.3f}"
    entropy = "-" if figures["entropy"] is None else f"{figures['entropy']:.3f}"
    return (
        f"reward {reward}  length {figures['length']:.0f}  entropy {entropy}"
        f"  {figures['degenerate']} of {figures['groups']} groups alike  {figures['seconds']:.1f} s"
    )


def summary(
    config: RLConfig, metrics: Path, before: dict[str, Any], after: dict[str, Any], seconds: float
) -> OnlineResult:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    taken = [line for line in lines if line["kind"] == "train"]
    tenth = max(1, len(taken) // 10)
    ends = {"first": taken[:tenth], "last": taken[-tenth:]}
    reward = {}
    for name, some in ends.items():
        known = [line["reward"] for line in some if line["reward"] is not None]
        reward[name] = sum(known) / len(known) if known else None
    step_seconds = sum(line["seconds"] for line in taken)
    return OnlineResult(
        out=str(config.output_dir),
        steps=config.max_steps,
        validation={"before": before, "after": after},
        reward=reward,
        tokens_per_second=sum(line["tokens"] for line in taken) / step_seconds if step_seconds else 0.0,
        peak_memory_mib=max((line["peak_memory_mib"] for line in taken), default=0.0),
        seconds=round(seconds, 3),
        step_seconds=step_seconds,
    )


def table(result: OnlineResult) -> list[dict[str, Any]]:
    """The run in a row or two: reward of first and last rollouts, and accuracy on the hold-out problems."""
    rows = [{"": "reward of rollouts", **{name: _shown(value) for name, value in result.reward.items()}}]
    before, after = result.validation["before"], result.validation["after"]
    for name in ("reward", "length") if after else ():
        ends = {"first": before.get(name), "last": after.get(name)}
        rows.append({"": f"hold-out {name}", **{end: _shown(value) for end, value in ends.items()}})
    return rows


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
