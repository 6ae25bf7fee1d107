"""rectune's objectives in TRL's `SFTTrainer`, on its fused head.

TRL's `compute_loss` has its model return the log-probability of each target without the logits, adds up their
negatives, and divides once by the number of targets of the step in all processes. Here it gets a model that returns
minus the loss of each token in their place: packing, accumulation, LoRA, sharding, metrics and the loss of a
mixture-of-experts router stay TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rectune.data.tokenization import special_ids
from rectune.errors import UserError
from rectune.integrations import supported_phases
from rectune.objective_spec import phase_at, protect_turn_ends
from rectune.objectives import Objective

try:
    import trl
    from trl.trainer.utils import add_fused_lm_head
except ImportError:
    raise UserError(
        "rectune.integrations.trl needs TRL with a fused head", hint="pip install 'trl>=1.16,<2'"
    ) from None

__all__ = ["SFTTrainer"]

_FIELDS = {
    "logp": "log_probs",
    "entropy": "entropy",
    "log_sum_p2": "log_sum_sq_probs",
    "top1": "is_top1",
}
"""What the columns of the head are called in what TRL's head returns."""
_REFERENCE = tuple(f"ref_{name}" for name in _FIELDS)


class SFTTrainer(trl.SFTTrainer):
    """TRL's `SFTTrainer` with an objective of rectune: `SFTTrainer(model, objective="power:alpha=0.5", args=...)`.

    The objective may have phases, and read `logp`, `entropy`, `log_sum_p2`, `top1`, `structural` and `row`, which is
    the example that a token is of, in packs too. The loss is divided by the number of targets of the step, as in
    `rectune train`. Beside TRL's metrics there is `nll`, the mean of -log p, in evaluation `eval_nll`: `eval_loss` is
    that of the objective, which may fall while the model gets worse.

    With LoRA it may also read columns of the model without its adapter (`ref_logp`, `signal=base`), at the price of a
    forward pass more.

    Args:
        objective: A text as for `rectune train`, or a function that follows the contract of `objectives.py`.
        min_eos_weight: Least weight of targets that are special tokens, the ends of turns among them. None is 1 where
            the objective gives a token of small p no weight, else 0; with 0, `dft` is TRL's `loss_type="dft"`.
        settings: Of TRL's `SFTTrainer`.

    Raises:
        UserError: An objective that reads another column, or a setting of TRL that has a loss of its own.
    """

    def __init__(
        self, *args: Any, objective: str | Objective, min_eos_weight: float | None = None, **settings: Any
    ) -> None:
        columns = ("row", "structural", *_FIELDS, *_REFERENCE)
        phases = supported_phases(objective, columns, "TRL's SFTTrainer")
        self.phases = protect_turn_ends(phases, min_eos_weight)
        super().__init__(*args, **settings)
        self._refuse_other_losses()
        read = {name: phase for phase in self.phases for name in phase.columns}
        self._bare: Any = self.accelerator.unwrap_model(self.model)
        adapter = hasattr(self._bare, "disable_adapter")
        virtual = adapter and self._bare.active_peft_config.is_prompt_learning
        if (of_reference := read.keys() & set(_REFERENCE)) and (virtual or not adapter):
            name = min(of_reference)
            raise UserError(
                f"{read[name].label} reads {name}, which TRL's SFTTrainer has only with LoRA",
                where="peft_config",
                hint="give one, or use rectune train",
            )
        if read.keys() & {"log_sum_p2", "ref_log_sum_p2"}:
            causal = self._bare.get_base_model() if adapter else self._bare
            add_fused_lm_head(causal, outputs=tuple(_FIELDS.values()))
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        self._special = torch.tensor(special_ids(tokenizer))

    def _refuse_other_losses(self) -> None:
        args: Any = self.args
        parallel = self.accelerator.parallelism_config
        wrapped = args.packing and args.packing_strategy == "wrapped"
        refused = {
            "compute_loss_func": self.compute_loss_func is not None,
            f"loss_type={args.loss_type}": args.loss_type not in ("nll", "chunked_nll"),
            "label_smoothing_factor": args.label_smoothing_factor > 0,
            "context or sequence parallelism": parallel and max(parallel.cp_size, parallel.sp_size) > 1,
            "packing_strategy=wrapped (row is unknown)": wrapped
            and any("row" in phase.columns for phase in self.phases),
        }
        for name, given in refused.items():
            if given:
                raise UserError(
                    f"{name} does not go with an objective", where="SFTConfig", hint="leave it out"
                )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's, of a model that returns minus the loss of each token where TRL reads its log-probability."""

        def scored(**given: Any) -> Any:
            outputs = model(**given)
            if given.get("fused_lm_head"):
                phase = phase_at(self.phases, self.state.global_step, self.state.max_steps)
                columns = self._columns(model, given, outputs, phase.columns)
                self._log_nll(columns["logp"])
                nothing = torch.zeros_like(outputs.log_probs)
                outputs.log_probs = -nothing.masked_scatter(outputs.label_mask, phase.loss(columns))
                outputs.loss = (
                    None  # so that a TRL that trains with it fails, and does not train with another loss
                )
            return outputs

        trainer: Any = super()
        return trainer.compute_loss(scored, inputs, return_outputs, num_items_in_batch)

    def _columns(
        self, model: Any, inputs: Mapping[str, Any], outputs: Any, read: Sequence[str]
    ) -> dict[str, Tensor]:
        """Columns of the targets, of which only `logp` has a gradient."""
        mask = outputs.label_mask
        with torch.no_grad():
            columns = _of_head(outputs)
            if any(name in _REFERENCE for name in read):
                with self._bare.disable_adapter():
                    reference = model(**inputs)
                columns |= {f"ref_{name}": column for name, column in _of_head(reference).items()}
            if "row" in read:
                columns["row"] = _predicted(_rows(inputs), mask)
            ids = _predicted(inputs["labels"], mask)
            columns["structural"] = torch.isin(ids, self._special.to(ids.device))
        return columns | {"logp": outputs.log_probs[mask]}

    @torch.no_grad()
    def _log_nll(self, logp: Tensor) -> None:
        here = torch.stack([-logp.sum(), logp.new_tensor(len(logp))])
        nll, targets = self.accelerator.reduce(here).tolist()
        mode = "train" if getattr(self.model, "training", False) else "eval"
        self._metrics[mode]["nll"].append(nll / max(1, targets))


def _of_head(outputs: Any) -> dict[str, Tensor]:
    """The columns that TRL's head has computed, of the targets."""
    fields = {name: getattr(outputs, field) for name, field in _FIELDS.items()}
    return {name: field[outputs.label_mask] for name, field in fields.items() if field is not None}


def _rows(inputs: Mapping[str, Tensor]) -> Tensor:
    """The example that each token is of, (B, T): positions begin at 0 in each, also in packs."""
    if (positions := inputs.get("position_ids")) is not None:
        return (positions == 0).flatten().cumsum(0).view(positions.shape)
    ids = inputs["input_ids"]
    return torch.arange(len(ids), device=ids.device)[:, None].expand(ids.shape)


def _predicted(values: Tensor, mask: Tensor) -> Tensor:
    """Of `values` (B, T) those of the targets, where `mask` is of predictions, which may be of virtual tokens too."""
    ahead = mask.shape[1] - values.shape[1]  # -1: nothing predicts the first token
    return torch.nn.functional.pad(values, (ahead, 0)).to(mask.device)[mask]
