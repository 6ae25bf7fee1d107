"""What each objective would do to this data: where its gradient goes, how many tokens carry it, and how large it is.

The share of gradient weight of a token is its effective weight times 1 - p, the size of the gradient at the target's
logit, compared with all tokens; for SFT that is 1 - p alone. Turn-ending tokens are protected as in training.
Weights come from `objective_spec.Phase`, so that a user's own objective is covered. What depends on the rows of a step
is computed over all measured rows, and the model is its own base.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from rectune.config import ObjectiveConfig
from rectune.data.packing import Batch
from rectune.diagnosis.measure import MEASURED, Measured, with_reference
from rectune.diagnosis.risks import RATE_BOUNDS
from rectune.diagnosis.token_classes import CLASSES
from rectune.errors import UserError
from rectune.models.scorer import Scorer
from rectune.objective_spec import Phase, make_phases, parse_objective, text_of
from rectune.objectives import Objective
from rectune.records import ObjectiveEffect
from rectune.training.metrics import PROBABILITY_BINS

log = logging.getLogger("rectune")

DEFAULT = (
    "sft", "dft", "power:alpha=0.5", "floor", "rectified", "mixture", "threshold", "uncertain", "infosft", "eaft",
    "deft", "idft", "lower_mass", "cadft", "asft", "geometric_dft", "sequence_dft", "focal",
)  # fmt: skip
"""What is shown unless the user names objectives: those that differ from SFT at the first step."""
_SEED = 0  # of the order of shuffled weights


def parse(objectives: Sequence[str | Objective]) -> list[Phase]:
    """Each objective with its settings, as training has it by default; sft is always among them, to compare with.

    Raises:
        UserError: An unknown name or setting, or an objective with phases.
    """
    phases: dict[str, Phase] = {}
    for objective in ("sft", *objectives):
        text = text_of(objective)
        parsed = parse_objective(text)
        if len(parsed) > 1:
            raise UserError(
                f"'{text}' has phases, which cannot be diagnosed together",
                where="objectives",
                hint=f"name them one by one: {', '.join(phase.label for phase in parsed)}",
            )
        (phase,) = make_phases(ObjectiveConfig(objective=text))
        phases.setdefault(phase.label, phase)
    return list(phases.values())


def effective_weights(phases: Iterable[Phase], measured: Measured) -> dict[str, np.ndarray]:
    """Effective weight of each target, (N,) float64, by label; what one pass cannot give is left out and logged."""
    columns, weights = measured.columns(), {}
    for phase in phases:
        if not set(phase.columns) - set(phase.step_columns) <= set(columns):  # pairs, advantages
            log.warning("%s: reads columns that a single pass does not give; left out", phase.label)
            continue
        weight_N = phase.weight({**columns, **phase.over_step(columns, _SEED)})
        if weight_N.isfinite().all():
            weights[phase.label] = weight_N.numpy()
        else:
            log.warning("%s: gives weights that are not finite; left out", phase.label)
    return weights


def describe(
    phase: Phase, weight_N: np.ndarray, measured: Measured, norms: Mapping[str, float]
) -> ObjectiveEffect:
    """What one objective would do.

    Args:
        weight_N: Its effective weight of each target.
        norms: Gradient norms by label; empty where they were not measured.
    """
    p = measured.p_N
    size = abs(weight_N) * (1 - p)
    total = max(float(size.sum()), 1e-300)
    bins = np.clip(np.digitize(p, PROBABILITY_BINS[1:-1]), 0, len(PROBABILITY_BINS) - 2)
    by_bin = np.bincount(bins, weights=size, minlength=len(PROBABILITY_BINS) - 1) / total
    by_class = np.bincount(measured.classes_N, weights=size, minlength=len(CLASSES)) / total
    squares = float((weight_N**2).sum())
    ratio = norms[phase.label] / norms["sft"] if norms and norms["sft"] else None
    return ObjectiveEffect(
        label=phase.label,
        name=phase.name,
        settings=phase.settings,
        mean_weight=float(weight_N.mean()),
        share_by_bin=by_bin.tolist(),
        share_by_class=dict(zip(CLASSES, by_class.tolist(), strict=True)),
        effective_sample_size=float(weight_N.sum() ** 2 / (len(weight_N) * squares)) if squares else 0.0,
        gradient_norm_ratio=ratio,
        learning_rate_factor=None if ratio is None else learning_rate_factor(ratio),
    )


def gradient_norms(scorer: Scorer, batch: Batch, phases: Iterable[Phase]) -> dict[str, float]:
    """Norm of the gradient of all parameters on one batch under each objective, by label.

    The loss is the sum over targets divided by their number, as in training; turn-ending tokens are protected. A
    forward and a backward pass for each objective; a parameter's gradient is dropped as soon as its norm is known.
    """
    parts: list[torch.Tensor] = []

    def take(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parts.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(take) for p in scorer.model.parameters() if p.requires_grad]
    norms = {}
    for phase in phases:
        columns = with_reference(scorer.columns(batch, MEASURED))
        with torch.no_grad():
            step = phase.over_step({name: column.cpu() for name, column in columns.items()}, _SEED)
        columns |= {name: column.to(columns["logp"].device) for name, column in step.items()}
        parts.clear()
        (phase.loss(columns).sum() / max(1, len(columns["logp"]))).backward()
        norms[phase.label] = float(torch.stack([part.cpu() for part in parts]).norm()) if parts else 0.0
    for hook in hooks:
        hook.remove()
    return norms


def learning_rate_factor(ratio: float) -> float:
    """How much larger a learning rate may have to be, from a ratio of gradient norms; bounded."""
    low, high = RATE_BOUNDS
    return min(high, max(low, 1 / ratio)) if ratio > 0 else high
