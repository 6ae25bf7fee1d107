"""What an online run would do, without doing it: `rectune online --dry-run`."""

from __future__ import annotations

from typing import Any

from rectune.data.run_prompt import as_trained
from rectune.models.loading import load_model
from rectune.models.lora import add_lora, starts_from_adapter, with_own_lora
from rectune.models.precision import choose_precision
from rectune.online.config import OnlineConfig
from rectune.online.problems import ask, check_room, read_inputs
from rectune.online.reward import Rewards
from rectune.processes import default_device
from rectune.training.plan import memory_estimate
from rectune.training.run_folder import run_template, settled


def plan(config: OnlineConfig) -> dict[str, Any]:
    """Resolved config, problems, answers, updates and memory of a run; writes nothing.

    Raises:
        UserError: Whatever `train_online` would refuse about them.
    """
    config = as_trained(config.model, with_own_lora(config))
    problems, kept = read_inputs(config)
    with Rewards(config.reward, config.grading_timeout) as rewards:
        rewards.check([*problems, *kept])
    device = default_device()
    dtype, why = choose_precision(config.precision, device)
    model, tokenizer = load_model(config.model, dtype=dtype)
    template = run_template(config.out, config.template, tokenizer)
    asked = ask([*problems, *kept], tokenizer, template)
    check_room(asked, model, tokenizer, config.max_new_tokens)
    longest = max(map(len, asked.prompts)) + config.max_new_tokens
    answers = config.problems_per_step * config.n
    if config.lora.rank:
        model = add_lora(model, config.lora, config.seed)  # type: ignore[assignment]
    return {
        "config": settled(config),
        "precision": f"{dtype} ({why})".removeprefix("torch."),
        "template": template.name,
        "problems": len(problems),
        "holdout_problems": len(kept),
        "longest_prompt": longest - config.max_new_tokens,
        "steps": config.steps,
        "answers_per_step": answers,
        "updates": config.steps * config.epochs * config.minibatches,
        "passes_over_the_problems": round(config.steps * config.problems_per_step / len(problems), 2),
        "most_tokens": config.steps * answers * config.max_new_tokens,
        "memory_mib": memory_estimate(
            model,
            config.training,
            dtype,
            tokens=min(max(config.micro_batch_tokens, longest), longest * answers),
            copies=int(config.beta > 0 and (not config.lora.rank or starts_from_adapter(config))),
        ),
    }
