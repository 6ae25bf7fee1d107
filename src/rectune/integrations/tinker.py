"""rectune's objectives for training services: Tinker, and others that take a loss of log-probabilities.

A service with `forward_backward_custom(data, loss)` computes the log-probability of each target token, has `loss` turn
those of all sequences into one number here, and continues with the gradient that this has. So an objective may read
`logp`, `row`, which is the sequence, and what comes with the data: `weight` and `ref_logp`. Nothing else of the model's
distribution arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rectune.data.tokenization import special_ids
from rectune.errors import UserError
from rectune.integrations import single_phase
from rectune.objective_spec import protect_turn_ends
from rectune.objectives import Objective

__all__ = ["loss"]

_HINT = "give one value for each target token; the weight is 0 where a token is none"

Loss = Callable[[Sequence[Any], Sequence[Tensor]], tuple[Tensor, dict[str, float]]]


def loss(
    objective: str | Objective,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    min_eos_weight: float | None = None,
) -> Loss:
    """An objective as `training_client.forward_backward_custom(data, loss("dft", tokenizer=tokenizer))`.

    A datum's `weights` say which tokens are targets: those whose weight is not 0. The loss is the sum of the objective
    over them, each times its weight, as that of the built-in `cross_entropy`, which `loss("sft")` equals. So calls
    before an `optim_step` add up, and weights of 1 / (targets of the step) give the mean of `rectune train`.
    An objective that reads `ref_logp`, as `signal=base` does, takes it from the field of this name in the datum's
    `loss_fn_inputs`: the log-probability of each token under the base model.

    Args:
        objective: A text as for `rectune train`, without phases, or a function that follows the contract of
            `objectives.py`.
        tokenizer: Of the model; needed where turn ends have a least weight.
        min_eos_weight: Least weight of targets that are special tokens, the ends of turns among them. None is 1 where
            the objective gives a token of small p no weight, else 0.

    Returns:
        A function of the data and the log-probabilities, which returns the loss and the metrics `nll` (mean of -log p),
        `mean_p` and `targets`.

    Raises:
        UserError: An objective that reads another column or has phases, or a least weight without a tokenizer; when the
            function is called, a datum that lacks a field, or has another number of values than of log-probabilities.
    """
    phase = single_phase(objective, ("logp", "row", "weight", "ref_logp"), "forward_backward_custom")
    (phase,) = protect_turn_ends((phase,), min_eos_weight)
    if phase.min_eos_weight and tokenizer is None:
        raise UserError(
            f"{phase.label} needs to know the turn ends, to give them at least weight {phase.min_eos_weight:g}",
            where="tokenizer",
            hint="give tokenizer=training_client.get_tokenizer(), or min_eos_weight=0",
        )
    special = torch.tensor(special_ids(tokenizer) if tokenizer is not None else [])
    fields = ["weights"] + ["target_tokens"] * bool(phase.min_eos_weight)
    fields += ["ref_logp"] * ("ref_logp" in phase.columns)

    def of_step(data: Sequence[Any], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        tokens = {name: _field(name, data, logprobs) for name in fields} | {"logp": torch.cat(list(logprobs))}
        sizes = torch.tensor([len(logp) for logp in logprobs])
        tokens["row"] = torch.arange(len(sizes)).repeat_interleave(sizes)
        target = tokens["weights"] != 0
        columns = {name: values[target] for name, values in tokens.items()}
        columns["weight"] = columns["weights"]
        if phase.min_eos_weight:
            columns["structural"] = torch.isin(columns["target_tokens"], special)
        total = (phase.loss(columns) * columns["weight"]).sum()
        with torch.no_grad():
            count = max(1, len(columns["logp"]))
            nll, p = -columns["logp"].sum() / count, columns["logp"].exp().sum() / count
        return total, {"nll": nll.item(), "mean_p": p.item(), "targets": float(target.sum())}

    return of_step


def _field(name: str, data: Sequence[Any], logprobs: Sequence[Tensor]) -> Tensor:
    """What the data say of each token under this name, one datum behind the other."""
    parts = []
    for place, (datum, logp) in enumerate(zip(data, logprobs, strict=True)):
        if name not in datum.loss_fn_inputs:
            raise UserError(f"datum {place} has no {name} in its loss_fn_inputs", hint=_HINT)
        values = datum.loss_fn_inputs[name].to_torch()
        if values.shape != logp.shape or logp.dim() != 1:
            sizes = f"of shape {tuple(values.shape)} and log-probabilities of {tuple(logp.shape)}"
            raise UserError(f"datum {place} has {name} {sizes}", hint=_HINT)
        parts.append(values)
    return torch.cat(parts)
