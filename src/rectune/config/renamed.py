"""The names that settings had in rectune 0.1, for folders of that time and for people who type them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "out": "output_dir", "reference": "reference_model", "epochs": "num_train_epochs", "steps": "max_steps",
    "micro_batch_tokens": "tokens_per_micro_batch", "micro_batch_rows": "per_device_train_batch_size",
    "schedule": "lr_scheduler_type", "warmup": "warmup_ratio", "clip": "max_grad_norm", "precision": "dtype",
    "memory_budget": "logits_memory_mb", "evaluate_every": "eval_steps", "probe": "drift_rows",
    "checkpoint_every": "save_steps", "keep_checkpoints": "save_total_limit", "give_up_after": "max_nonfinite_steps",
    "choose": "metric_for_best_model", "trackers": "report_to",
    "rows.format": "data_format", "rows.columns": "columns", "rows.ignore": "ignore_fields",
    "rows.skip_bad_rows": "skip_bad_rows", "rows.template": "chat_template", "rows.system": "system_prompt",
    "rows.split": "split", "rows.too_long": "too_long", "rows.holdout": "eval_split_size",
    "rows.limit": "max_train_samples",
    "lora.rank": "lora_r", "lora.alpha": "lora_alpha", "lora.dropout": "lora_dropout",
    "lora.targets": "lora_target_modules", "lora.merge": "merge_adapter",
    "sampling.n": "num_samples", "sampling.temperature": "temperature", "sampling.top_p": "top_p",
    "sampling.max_new_tokens": "max_new_tokens", "sampling.stop": "stop", "sampling.seed": "sampling_seed",
    "sampling.samples": "samples", "sampling.grader": "grader", "sampling.timeout": "grading_timeout",
    "sampling.workers": "grading_workers", "sampling.engine": "backend", "sampling.server_url": "base_url",
    "sampling.served_name": "served_model_name", "sampling.batch_size": "sampling_batch_size",
    "sampling.benchmark_dir": "include_path",
    "selection.per_problem": "per_problem", "selection.balance": "balance", "selection.unjudged": "include_unjudged",
    "selection.unfinished": "include_unfinished",
}  # fmt: skip
"""Old name to new, of training and of offline runs, which are `rft` now."""

RENAMED_RL = RENAMED | {
    "epochs": "num_iterations", "minibatches": "num_mini_batches", "n": "num_samples", "template": "chat_template",
    "system": "system_prompt", "engine": "backend", "server_url": "base_url", "served_name": "served_model_name",
    "sampling_batch": "sampling_batch_size", "kl": "use_bias_correction_kl", "advantage": "scale_rewards",
    "aggregation": "loss_type", "value_coefficient": "vf_coef", "value_clip": "cliprange_value",
    "entropy_bonus": "entropy_coef", "whiten": "whiten_advantages", "holdout": "eval_problems",
    "holdout_n": "eval_num_samples", "rollouts_every": "save_rollout_steps",
}  # fmt: skip
"""The same of online runs, which are `rl` now."""

_VALUES: dict[tuple[str, object], object] = {
    ("dtype", "bf16"): "bfloat16", ("dtype", "fp32"): "float32", ("backend", "local"): "hf",
    ("backend", "server"): "openai", ("scale_rewards", "std"): "group", ("loss_type", "token"): "dapo",
    ("loss_type", "sequence"): "grpo", ("loss_type", "constant"): "dr_grpo",
    ("use_bias_correction_kl", "corrected"): True, ("use_bias_correction_kl", "plain"): False,
}  # fmt: skip


def with_new_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a run's config.json with the names and values of today, where rectune 0.1 wrote it."""
    if "output_dir" in config or not {"out", "rows"} & set(config):
        return dict(config)
    names = RENAMED_RL if "algorithm" in config else RENAMED
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and key in ("rows", "lora", "sampling", "selection"):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    if "betas" in flat:
        flat["adam_beta1"], flat["adam_beta2"] = flat.pop("betas")
    if isinstance(flat.get("rows.holdout"), str):
        flat["eval_data"] = flat.pop("rows.holdout")
    new = {names.get(key, key): value for key, value in flat.items()}
    return {
        key: _VALUES.get((key, value), value) if isinstance(value, str) else value
        for key, value in new.items()
    }
