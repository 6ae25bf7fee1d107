"""What each objective would do to this data: where its gradient goes, how many tokens carry it, and how large it is.

The share of gradient weight of a token is its effective weight times 1 - p, the size of the gradient at the target's
logit, compared with all tokens; for SFT that is 1 - p alone. Turn-ending tokens are protected as in training.
Weights come from `objectives.effective_weight`, so that a user's own objective is covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rectune.config import ObjectiveConfig
from rectune.data.packing import Batch
from rectune.diagnosis.classes import CLASSES
from rectune.diagnosis.measure import Measured
from rectune.diagnosis.risks import RATE_BOUNDS
from rectune.errors import UserError
from rectune.models.scorer import Scorer
from rectune.objective_spec import Phase, make_phases, parse_objective, text_of
from rectune.objectives import Objective
from rectune.training.metrics import PROBABILITY_BINS

DEFAULT = (
    "sft", "dft", "power:alpha=0.5", "floor", "mixture", "threshold", "uncertain", "eaft", "asft", "geometric_dft",
    "sequence_dft", "focal",
)  # fmt: skip
"""What is shown unless the user names objectives: those that differ from SFT at the first step."""


def parse(objectives: Sequence[str | Objective]) -> list[Phase]:
    """Each objective with its settings, as training has it by default; sft is always among them, to compare with."""
    phases: dict[str, Phase] = {}
    for objective in ("sft", *objectives):
        text = text_of(objective)
        parsed = parse_objective(text)
        if len(parsed) > 1:
            raise UserError(
                f"'{text}' has phases, and a diagnosis sees one moment",
                where="objectives",
                hint=f"name them one by one: {', '.join(phase.label for phase in parsed)}",
            )
        (phase,) = make_phases(ObjectiveConfig(objective=text))
        phases.setdefault(phase.label, phase)
    return list(phases.values())


def known_columns(phase: Phase, columns: dict[str, torch.Tensor]) -> bool:
    """Whether one forward pass has all that the objective reads (not so for pairs or advantages)."""
    return set(phase.columns) <= set(columns)


def describe(phase: Phase, weight_N: np.ndarray, measured: Measured, classes_N: np.ndarray) -> dict[str, Any]:
    """Figures of one objective; shares add up to 1."""
    p = measured.p_N
    size = abs(weight_N) * (1 - p)
    total = max(float(size.sum()), 1e-300)
    bins = np.clip(np.digitize(p, PROBABILITY_BINS[1:-1]), 0, len(PROBABILITY_BINS) - 2)
    by_bin = np.bincount(bins, weights=size, minlength=len(PROBABILITY_BINS) - 1) / total
    by_class = np.bincount(classes_N, weights=size, minlength=len(CLASSES)) / total
    squares = float((weight_N**2).sum())
    ess = float(weight_N.sum() ** 2 / (len(weight_N) * squares)) if squares else 0.0
    return {
        "label": phase.label,
        "name": phase.name,
        "settings": phase.settings,
        "mean_weight": float(weight_N.mean()),
        "share_by_bin": [float(share) for share in by_bin],
        "share_by_class": {name: float(share) for name, share in zip(CLASSES, by_class, strict=True)},
        "effective_sample_size": ess,
    }


def gradient_norms(scorer: Scorer, batch: Batch, phases: Sequence[Phase]) -> dict[str, float]:
    """Norm of the gradient of all parameters on one batch under each objective, by label: the model's own numbers.

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
        columns = scorer.columns(batch, ("logp", "entropy", "entropy20"))
        with torch.no_grad():
            same = columns["logp"].clone()
        columns |= {"ref_logp": same, "old_logp": same, "kl": torch.zeros_like(same)}
        loss = phase.loss(columns).sum() / max(1, len(same))
        parts.clear()
        loss.backward()
        norms[phase.label] = float(torch.stack([part.cpu() for part in parts]).norm()) if parts else 0.0
    for hook in hooks:
        hook.remove()
    return norms


def learning_rate_factor(ratio: float) -> float:
    """How much larger a learning rate may have to be, from a ratio of gradient norms; bounded."""
    low, high = RATE_BOUNDS
    return min(high, max(low, 1 / ratio)) if ratio > 0 else high
