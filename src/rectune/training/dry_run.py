"""What a run would do, without doing it: `rectune train --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rectune.config import MemoryConfig, TrainConfig
from rectune.models.load import choose_dtype, load_model
from rectune.models.lora import add_lora, starts_from_adapter
from rectune.objective_spec import Phase, make_phases
from rectune.runtime.distributed import default_device
from rectune.runtime.io import check_writable
from rectune.training.dataloader import TrainingData, capacity, load_data, read_inputs, with_models_own
from rectune.training.mixed_precision import freeze_unused
from rectune.training.run_dir import settled


def plan(config: TrainConfig) -> dict[str, Any]:
    """Resolved config, rows, tokens, steps and memory of a run; reads the data and the model, writes nothing.

    `tokens` are those of the rows, `tokens_to_train_on` those of all steps, as metrics.jsonl will count them.

    Raises:
        UserError: Whatever `train` would refuse about model, data and settings.
    """
    return plans([config])[0]


def plans(configs: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """`plan` of several configs that differ in `out`, `seed` and `steps` at most: model and data are read once."""
    phases = make_phases(configs[0])
    configs = [with_models_own(config) for config in configs]
    config = configs[0]
    check_writable(config.output_dir)
    paired = "pair" in phases[0].columns
    texts = read_inputs(config, paired=paired)
    device = default_device()
    dtype, why = choose_dtype(config.dtype, device)
    model, tokenizer = load_model(config.model, dtype=dtype)
    all_data = [load_data(one, tokenizer, model, paired=paired, texts=texts) for one in configs]
    if config.lora_r:
        model = add_lora(model, config, config.seed)  # type: ignore[assignment]
    freeze_unused(model)
    needed = {name for phase in phases for name in phase.columns}
    copies = ("old_logp" in needed) + (
        "kl" in needed
        and (config.reference_model is not None or not config.lora_r or starts_from_adapter(config))
    )
    held_out = config.eval_data is not None or config.eval_split_size > 0
    memory = memory_estimate(
        model, config, dtype, tokens=max(map(_largest_batch, all_data)), copies=copies,
        head=held_out and config.drift_rows > 0 and not config.lora_r,
    )  # fmt: skip
    precision = f"{dtype} ({why})".removeprefix("torch.")
    return [_of_run(data, phases) | {"precision": precision, "memory_mib": memory} for data in all_data]


def _of_run(data: TrainingData, phases: Sequence[Phase]) -> dict[str, Any]:
    lengths, steps = data.train.lengths(), len(data.plan)
    trained = sum(lengths[row] for step in range(steps) for row in data.plan.rows(step))
    weights = data.train.row_weights()
    return {
        "config": settled(data.config),
        "objective": [f"{phase.label} until step {round(phase.end * steps)}" for phase in phases],
        "template": data.template.name,
        "rows": len(data.train),
        "holdout_rows": len(data.holdout),
        "tokens": sum(lengths),
        "supervised_tokens": int(data.train.supervised.sum()),
        **({"weights": weights.to_dict()} if weights else {}),
        "steps": steps,
        "tokens_to_train_on": trained,
        "tokens_per_step": round(trained / steps),
    }


def _largest_batch(data: TrainingData) -> int:
    """Tokens that one forward pass can have at most."""
    config, longest = data.config, max(data.train.lengths())
    if config.normalization == "micro-batch":
        return longest * min(config.per_device_train_batch_size, config.batch_size)
    return min(capacity(config, paired=data.paired), longest * config.batch_size)


def memory_estimate(
    model: Any, config: MemoryConfig, dtype: torch.dtype, *, tokens: int, copies: int = 0, head: bool = False
) -> dict[str, int]:
    """MiB by part, besides what the libraries themselves need.

    Weights, masters, gradients and moments are exact; activations are an estimate for `tokens` in one forward
    pass. Per token and layer: what the backward pass of a gated decoder layer keeps, about 16 vectors of the model's
    width and 4 of its inner width; with gradient checkpointing one vector per layer and one layer's worth.

    Args:
        model: As it is trained, adapters on it.
        config: Of the run.
        dtype: Of the working weights.
        tokens: Most tokens of a forward pass.
        copies: Frozen copies of the model that the objective refers to.
        head: Whether the base model's head is kept, to measure drift from it.
    """
    shape = model.config.get_text_config()
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = dtype.itemsize
    mixed = dtype != torch.float32
    inner = getattr(shape, "intermediate_size", 4 * shape.hidden_size)
    layer = (16 * shape.hidden_size + 4 * inner) * size
    layers = shape.num_hidden_layers
    kept = layers * shape.hidden_size * size + layer if config.gradient_checkpointing else layers * layer
    parts = {
        "weights": every * size * (1 + copies),
        "masters": trained * 4 if mixed else 0,
        "gradients": trained * 4,
        "moments": trained * 8,
        "activations": tokens * kept,
        "head": config.logits_memory_mb << 20,
        "probe": model.get_output_embeddings().weight.numel() * size if head else 0,
    }
    estimate = {name: value >> 20 for name, value in parts.items()}
    return {**estimate, "total": sum(estimate.values())}
