"""Figure 2: the probability of the training targets under every model of a grid, and which tokens DFT gives up."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from rectune.config import TrainConfig
from rectune.experiments.grid import BASE, Grid
from rectune.runtime.distributed import default_device
from rectune.runtime.io import load_record, write_json

ROWS = 2000
"""Maximum number of rows that are measured."""
LOWEST = 20
"""Tokens of the lowest bins that are listed."""


def measure_targets(grid: Grid) -> dict[str, Any]:
    """Measure the models of the first seed that are not in OUT/histograms.json yet; label to counts and tokens."""
    path, seed = grid.out / "histograms.json", grid.seeds[0]
    found: dict[str, Any] = {}
    if path.is_file():
        found = cast(dict[str, Any], load_record(path, "models")["models"])
    rows = next(grid.run(arm, seed).training for arm in grid.arms if arm.method == "train")
    models = {BASE: grid.model} | {arm.label: str(grid.run(arm, seed).trained / "model") for arm in grid.arms}
    for label, model in models.items():
        if label not in found:
            found[label] = target_probabilities(model, rows)
            write_json(path, {"format": 1, "models": found}, indent=2)
    return found


def target_probabilities(model: str, config: TrainConfig) -> dict[str, Any]:
    """Probabilities of the targets of a run's training rows under a model.

    Returns:
        `tokens`; `histogram`, counts in `PROBABILITY_BINS`; `mean_p`; `lowest`: the most frequent tokens with p below
        0.01, with their counts.
    """
    import torch

    from rectune.data.packing import pack
    from rectune.models.load import load_model
    from rectune.models.scorer import Scorer
    from rectune.training.dataloader import capacity, load_data
    from rectune.training.metrics import histogram

    device = default_device()
    weights, tokenizer = load_model(model, dtype=torch.float32, device=device)
    limit = min(ROWS, config.max_train_samples or ROWS)
    config = config.model_copy(update={"max_train_samples": limit, "eval_split_size": 0.0, "eval_data": None})
    data = load_data(config, tokenizer, weights)
    scorer = Scorer(weights, memory_budget=config.logits_memory_mb << 20)
    parts, lowest = [], Counter[str]()
    with torch.no_grad():
        for rows in pack(data.train.lengths(), capacity(config)):
            batch = data.train.batch(rows, device)
            p = scorer.columns(batch, ["logp"])["logp"].exp().cpu()
            parts.append(p)
            targets = batch.labels[batch.labels >= 0].cpu()  # in the order of the columns
            lowest.update(str(tokenizer.decode([int(t)])) for t in targets[p < 0.01])
    p_N = torch.cat(parts)
    return {
        "tokens": len(p_N),
        "histogram": histogram(p_N),
        "mean_p": float(p_N.double().mean()),
        "lowest": lowest.most_common(LOWEST),
    }
