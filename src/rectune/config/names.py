"""Names of settings in rectune 0.1 and in other programs.

`with_new_names` reads run folders of rectune 0.1; `advice` names our setting in an error message.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
    "objective.name": "objective", "objective.phases": "objective", "objective.protect": "min_eos_weight",
    "objective.refresh": "old_policy_interval",
    "protect": "min_eos_weight", "refresh": "old_policy_interval",
}  # fmt: skip
"""Old name to new name, of `train` and `rft` runs."""

RENAMED_RL = RENAMED | {
    "epochs": "num_iterations", "minibatches": "num_mini_batches", "n": "num_samples", "template": "chat_template",
    "system": "system_prompt", "engine": "backend", "server_url": "base_url", "served_name": "served_model_name",
    "sampling_batch": "sampling_batch_size", "kl": "use_bias_correction_kl", "advantage": "scale_rewards",
    "aggregation": "loss_type", "value_coefficient": "vf_coef", "value_clip": "cliprange_value",
    "entropy_bonus": "entropy_coef", "whiten": "whiten_advantages", "holdout": "eval_problems",
    "holdout_n": "eval_num_samples", "rollouts_every": "save_rollout_steps",
}  # fmt: skip
"""Old name to new name, of `rl` runs."""

OTHER_NAMES = {
    "lr": "learning_rate", "num_epochs": "num_train_epochs", "n_epochs": "num_train_epochs",
    "num_steps": "max_steps", "model_name_or_path": "model", "model_name": "model", "model_id": "model",
    "pretrained": "model", "base_model": "model", "model_path": "model", "dataset": "data",
    "dataset_name": "data", "train_file": "data", "data_path": "data", "train_data": "data",
    "dataset_path": "data", "validation_file": "eval_data", "eval_dataset": "eval_data",
    "test_size": "eval_split_size", "val_size": "eval_split_size", "dataset_train_split": "split",
    "output": "output_dir", "out": "output", "output_path": "output_dir", "output_file": "output",
    "train_batch_size": "batch_size", "global_batch_size": "batch_size", "batch": "batch_size",
    "max_seq_length": "max_length", "max_seq_len": "max_length", "cutoff_len": "max_length",
    "block_size": "max_length", "max_model_len": "max_length", "lr_scheduler": "lr_scheduler_type",
    "gradient_clipping": "max_grad_norm", "grad_clip": "max_grad_norm", "torch_dtype": "dtype",
    "evaluation_strategy": "eval_steps", "eval_strategy": "eval_steps", "save_strategy": "save_steps",
    "load_best_model_at_end": "metric_for_best_model", "lora_rank": "lora_r", "use_peft": "lora_r",
    "target_modules": "lora_target_modules", "loss": "objective", "objective": "objectives",
    "ref_model": "reference_model", "system": "system_prompt", "template": "chat_template",
    "num_generations": "num_samples", "n_samples": "num_samples", "num_return_sequences": "num_samples",
    "max_completion_length": "max_new_tokens", "max_tokens": "max_new_tokens",
    "response_length": "max_new_tokens", "max_gen_toks": "max_new_tokens", "api_base": "base_url",
    "benchmarks": "tasks", "benchmark": "tasks", "task": "tasks", "benchmark_file": "tasks",
    "benchmarks_in": "tasks_in", "benchmarks_out": "tasks_out", "benchmark_dir": "include_path",
    "without_logprobs": "no_logprobs", "without_gradients": "no_gradients",
    "no_sharpening": "no_match_entropy", "workers": "grading_workers", "timeout": "grading_timeout",
    "unjudged": "include_unjudged", "unfinished": "include_unfinished", "num_fewshot": "prompt",
    "kl_coef": "beta", "init_kl_coef": "beta", "cliprange": "epsilon", "num_ppo_epochs": "num_iterations",
    "reward_funcs": "reward", "reward_model": "reward", "data": "problems",
}  # fmt: skip
"""What TRL, transformers, vLLM, verl, LLaMA-Factory, lm-evaluation-harness and rectune 0.1 call it, to our name."""

HINTS = {
    "signal": "it belongs to an objective: dft:signal=base",
    "shuffled": "it belongs to an objective: dft:shuffled",
    "betas": "give adam_beta1 and adam_beta2",
    "per_device_eval_batch_size": "evaluation packs rows up to tokens_per_micro_batch",
    "gradient_accumulation_steps": "batch_size is the number of rows per step; it is accumulated over micro-batches of "
    "tokens_per_micro_batch tokens",
    "bf16": "give dtype bfloat16",
    "fp16": "float16 is not supported; give dtype bfloat16",
    "fp32": "give dtype float32",
    "warmup_steps": "give warmup_ratio, a share of the steps",
    "optim": "the optimizer is AdamW",
    "logging_steps": "every step is written to metrics.jsonl",
    "packing": "rows are packed, and do not see each other",
    "padding_free": "rows are packed, and do not see each other",
    "resume_from_checkpoint": "give --resume",
    "overwrite_output_dir": "remove the folder, or give another output_dir",
    "do_train": "rectune train trains",
    "do_eval": "rectune train evaluates on held-out rows, rectune eval on benchmarks",
    "deepspeed": "models are sharded by FSDP2, see docs/scaling.md",
    "fsdp": "start it with accelerate launch, see docs/scaling.md",
    "load_in_4bit": "quantised training is not supported",
    "load_in_8bit": "quantised training is not supported",
    "push_to_hub": "upload the folder model with huggingface-cli upload",
    "top_k": "give top_p",
    "trust_remote_code": "code of a model repository is not run",
    "completion_only_loss": "the loss is on answers only",
    "assistant_only_loss": "the loss is on answers only",
    "loss_type": "give objective",
    "data_format": "the answers to --problems are trained on, in their own format",
}
"""Advice for settings that do not exist."""

OTHER_VERBS = {
    "finetune": "train", "fine-tune": "train", "sft": "train --objective sft", "dft": "train --objective dft",
    "dpo": "train --objective dpo", "evaluate": "eval", "generate": "sample", "predict": "sample", "online": "rl",
    "offline": "rft", "grpo": "rl", "ppo": "rl --algorithm ppo", "raft": "rft", "validate": "check",
    "inspect": "check", "benchmarks": "list tasks", "tasks": "list tasks", "objectives": "list objectives",
    "models": "list models", "help": "--help", "version": "--version",
}  # fmt: skip

OTHER_VALUES = {
    "local": "hf", "transformers": "hf", "server": "openai", "sglang": "openai", "bf16": "bfloat16",
    "fp32": "float32", "float": "float32", "std": "group", "token": "dapo", "sequence": "grpo",
    "constant": "dr_grpo", "rloo": "leave-one-out", "benchmarks": "tasks", "md": "markdown",
}  # fmt: skip
"""What a choice is called elsewhere, to the choice that it is here."""

_VALUES: dict[tuple[str, object], object] = {
    ("dtype", "bf16"): "bfloat16", ("dtype", "fp32"): "float32", ("backend", "local"): "hf",
    ("backend", "server"): "openai", ("scale_rewards", "std"): "group", ("loss_type", "token"): "dapo",
    ("loss_type", "sequence"): "grpo", ("loss_type", "constant"): "dr_grpo",
    ("use_bias_correction_kl", "corrected"): True, ("use_bias_correction_kl", "plain"): False,
}  # fmt: skip


def with_new_names(config: Mapping[str, object]) -> dict[str, object]:
    """The content of a run's config.json with the names and values of today, where rectune 0.1 wrote it."""
    if "output_dir" in config or not {"out", "rows"} & set(config):
        return dict(config)
    names = RENAMED_RL if "algorithm" in config else RENAMED
    flat: dict[str, object] = {}
    if isinstance(table := config.get("objective"), dict):
        resolved = {key: table[key] for key in ("protect", "refresh") if key in table}
        config = {**config, "objective": objective_text(table), **resolved}
    for key, value in config.items():
        if isinstance(value, dict) and key in ("rows", "lora", "sampling", "selection"):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    if isinstance(betas := flat.get("betas"), list):
        flat["adam_beta1"], flat["adam_beta2"] = betas
        del flat["betas"]
    if isinstance(flat.get("rows.holdout"), str):
        flat["eval_data"] = flat.pop("rows.holdout")
    new = {names.get(key, key): value for key, value in flat.items()}
    return {
        key: _VALUES.get((key, value), value) if isinstance(value, str) else value
        for key, value in new.items()
    }


def objective_text(table: Mapping[str, object]) -> str:
    """An objective that rectune 0.1 wrote as a table, as it is given now: `power:alpha=0.3`, `sft@0.3+dft@0.7`."""
    if phases := table.get("phases"):
        return str(phases).replace(",", "+").replace(":", "@")
    own = [
        f"{key}={value}"
        for key, value in table.items()
        if key not in ("name", "phases", "protect", "refresh")
    ]
    return ":".join([str(table.get("name", "dft")), *([",".join(own)] if own else [])])


def advice(typed: str, known: Collection[str]) -> str | None:
    """Advice for an unknown name; None if there is none.

    Args:
        typed: The name on the command line or in a recipe.
        known: Names of the existing settings.
    """
    name = typed.lstrip("-").replace("-", "_")
    if name.startswith("objective.") and name not in RENAMED:
        return f"settings of an objective belong to it: objective NAME:{name.partition('.')[2]}=VALUE"
    for table in (RENAMED, RENAMED_RL, OTHER_NAMES):
        if (new := table.get(name, "")) in known:
            return f"use {'--' + new.replace('_', '-') if typed.startswith('-') else new}"
    return HINTS.get(name)
