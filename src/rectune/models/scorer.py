"""From a packed batch to per-token columns: the only file that depends on the inside of transformers' models.

A causal model is a body (ids to hidden states) and a head (hidden states to logits). The body runs over the
pack with attention inside rows only; only supervised positions reach the head, through `logprobs/__init__.py`. Before
its first batch a `Scorer` checks both halves against the model's own forward, so that an architecture whose rows
would leak into each other, or whose head applies an unknown transform, is refused by name, not trained wrongly.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rectune.columns import HEAD_COLUMNS
from rectune.data.packing import Batch
from rectune.errors import UserError
from rectune.logprobs import MEMORY_BUDGET, Implementation, supervised_positions, token_columns
from rectune.models import packed_attention as attention
from rectune.models.limits import no_embedding, positions, rope_kinds
from rectune.models.packed_attention import choose_per_row

T = TypeVar("T")


class Head(NamedTuple):
    """The output layer: weight (V, D), and what becomes of its product."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    logit_scale: float

    def settings(self) -> dict[str, Any]:
        """Arguments of `token_columns`."""
        return {"bias": self.bias, "softcap": self.softcap, "logit_scale": self.logit_scale}


class RouterLoss(NamedTuple):
    """transformers' loss that balances a mixture of experts, which the model's own forward adds where labels are given.

    Attributes:
        function: Of the logits of all layers' routers, the number of experts, and how many a token takes.
        coefficient: What the loss is multiplied with.
    """

    function: Callable[[Any, int, int], Tensor]
    experts: int
    chosen: int
    coefficient: float

    def __call__(self, router_logits: Sequence[Tensor]) -> Tensor:
        return self.coefficient * self.function(tuple(router_logits), self.experts, self.chosen)

    @classmethod
    def of(cls, causal: Any) -> RouterLoss | str | None:
        """The loss of a model, or why it is off; None for a model that has none."""
        config = causal.config.get_text_config()
        coefficient = getattr(config, "router_aux_loss_coef", getattr(config, "aux_loss_coef", None))
        if not coefficient or not hasattr(config, "output_router_logits"):
            return None
        if not config.output_router_logits:
            return "output_router_logits is false in the model's config.json"
        function = getattr(sys.modules[type(causal).__module__], "load_balancing_loss_func", None)
        if function is None:
            return f"transformers' {type(causal).__name__} does not compute it"
        experts = getattr(causal, "num_experts", None) or config.num_experts
        return cls(function, experts, config.num_experts_per_tok, coefficient)


@dataclass(frozen=True)
class Sharding:
    """How a model's weights are spread over processes (`training/fsdp.py`).

    Attributes:
        dtype: What the model computes in; the shards are kept in float32.
        run: Calls a function while the weights are whole.
    """

    dtype: torch.dtype
    run: Callable[[Callable[[], Any]], Any]


class Reference(Protocol):
    """What `kl` and `ref_logp` refer to: a `Scorer`, or hidden states that were kept."""

    def states(self, batch: Batch) -> tuple[Tensor, Head]: ...


def batch_columns(batch: Batch, index: Tensor) -> dict[str, Tensor]:
    """The columns of the batch, given the places that predict its targets: `supervised_positions`."""
    target = index + 1
    return {
        "row": batch.rows[target],
        "structural": batch.structural[0, target],
        "weight": batch.weight[0, target],
    }


class Scorer:
    """Columns of a model's target tokens, for any objective.

    Args:
        model: A transformers causal language model, or a peft model around one. Its attention is set to
            rectune's unless it is a flash attention, and works for generation as before.
        memory_budget: Bytes for the head's logits.
        implementation: Of the head, see `token_logprobs`.

    Attributes:
        temperature: Divides the logits.
        sharding: Of the weights, once they are sharded.
        router_loss: What `columns` can give as `router_loss`.

    Raises:
        UserError: The architecture cannot be scored exactly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        memory_budget: int = MEMORY_BUDGET,
        implementation: Implementation = "fused",
        check: bool = True,
    ) -> None:
        self.model, self.memory_budget, self.implementation = model, memory_budget, implementation
        self.temperature = 1.0  # set later, since the check is of the model as it is
        self.sharding: Sharding | None = None
        self.causal: Any = getattr(model, "get_base_model", lambda: model)()
        name = type(self.causal).__name__
        self.varlen = "flash" in (self.causal.config._attn_implementation or "")
        if not self.varlen:
            if not self.causal._supports_attention_backend:
                raise UserError(
                    f"{name} does not use transformers' attention interface, so it cannot be trained packed"
                )
            try:
                self.causal.set_attn_implementation(attention.NAME)
            except ValueError as error:
                raise UserError(f"{name} cannot be given another attention: {error}") from None
        if self.causal.base_model is self.causal:
            raise UserError(f"{name} has no base model without the language-model head")
        choose_per_row(self.causal)
        self.router_loss = RouterLoss.of(self.causal)
        self._router_logits: Sequence[Tensor] | None = None  # of the last pass
        self.head()
        if check:
            self._check(name)

    def head(self) -> Head:
        """The head as it is now. Raises `UserError` if it is an adapter or no linear layer."""
        layer = self.causal.get_output_embeddings()
        name = type(self.causal).__name__
        if hasattr(layer, "lora_A") or hasattr(layer, "modules_to_save"):
            raise UserError(
                "an adapter on the language-model head is not supported",
                where="lora_target_modules",
                hint="leave lm_head out of the targets, or merge the adapter first",
            )
        if not isinstance(layer, nn.Linear):
            raise UserError(f"the head of {name} is not a linear layer but {type(layer).__name__}")
        config = self.causal.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        if softcap is not None and self.temperature != 1:
            raise UserError(
                f"{name} caps its logits, so they cannot be tempered", where="temperature", hint="use 1"
            )
        return Head(layer.weight, layer.bias, softcap, _logit_scale(config) / self.temperature)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states of a packed batch: (T, D), connected to the parameters also where T is 0."""
        if not batch.row_lengths:  # models cannot run over nothing, so a token is run and dropped
            token = batch.input_ids.new_zeros(1, 1)
            return self.hidden(replace(batch, input_ids=token, position_ids=token, row_lengths=[1]))[:0]
        self._check_batch(batch)
        arguments: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        if not self.varlen:
            # The mask of four dimensions keeps transformers from building its own; `attend_rows` reads none.
            mask = batch.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
            arguments |= {"attention_mask": mask, "row_lengths": batch.row_lengths}
        output = self.causal.base_model(**arguments, use_cache=False)
        self._router_logits = getattr(output, "router_logits", None)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _check_batch(self, batch: Batch) -> None:
        """What an embedding would answer with an IndexError, on a GPU with the end of the device's use."""
        weight = self.causal.get_input_embeddings().weight
        if batch.input_ids.device != weight.device:
            raise UserError(f"the rows are on {batch.input_ids.device}, the model on {weight.device}")
        for token in torch.stack(batch.input_ids.aminmax()).tolist():
            if not 0 <= token < weight.shape[0]:
                raise no_embedding(token, weight.shape[0])
        longest, places = max(batch.row_lengths), positions(self.causal)
        if places and longest > places and not rope_kinds(self.causal.config.get_text_config()):
            raise UserError(f"a row of {longest} tokens does not fit the model's {places} positions")

    def columns(
        self, batch: Batch, names: Sequence[str] = ("logp",), *, reference: Reference | None = None
    ) -> dict[str, Tensor]:
        """Per-token columns of the N targets of a batch, in order.

        Args:
            names: Of the head's columns (`logp`, `entropy`, `entropy20`, `top1`, `kl`), `ref_logp`, and `hidden`, the
                states that predict the targets, (N, D) and differentiable; `router_loss` is a scalar, differentiable.
            reference: Scorer of the model that `kl` and `ref_logp` refer to; `without_adapter()` for LoRA.

        Returns:
            The named columns, each (N,), and always `row` (int64), `structural` (bool) and `weight` (float32). `logp`
            and `kl` are differentiable; with no target at all they are empty and still connected to the parameters.
        """
        return self._with_weights(lambda: self._columns(batch, names, reference))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; sharded weights are kept in float32."""
        return self.sharding.dtype if self.sharding else self.head().weight.dtype

    def states(self, batch: Batch) -> tuple[Tensor, Head]:
        """`hidden` of the batch, and the head that reads it."""
        return self._with_weights(lambda: (self.hidden(batch), self.head()))

    def kept_head(self) -> Head:
        """The head as it is now, copied where training would change it or where it is whole for a pass only."""

        def copied() -> Head:
            head = self.head()
            if not head.weight.requires_grad and not self.sharding:
                return head
            bias = None if head.bias is None else head.bias.data.clone()
            return head._replace(weight=head.weight.data.clone(), bias=bias)

        return self._with_weights(copied)

    def _with_weights(self, function: Callable[[], T]) -> T:
        return self.sharding.run(function) if self.sharding else function()

    def _columns(self, batch: Batch, names: Sequence[str], reference: Reference | None) -> dict[str, Tensor]:
        index, targets = supervised_positions(batch.labels)
        hidden, head = self.hidden(batch)[index], self.head()
        router_logits, self._router_logits = self._router_logits, None
        settings: dict[str, Any] = {
            "implementation": self.implementation,
            "memory_budget": self.memory_budget,
        }
        extra = batch_columns(batch, index)
        if "hidden" in names:
            extra["hidden"] = hidden
        if "router_loss" in names and router_logits and isinstance(self.router_loss, RouterLoss):
            extra["router_loss"] = self.router_loss(router_logits)
        ref: dict[str, Any] = {}
        if {"kl", "ref_logp"} & set(names):
            if reference is None:
                raise UserError("columns 'kl' and 'ref_logp' need a reference model")
            with torch.no_grad():
                states, ref_head = reference.states(batch)
                ref_hidden = states[index]
                if "ref_logp" in names:
                    of_reference = settings | ref_head.settings()
                    extra["ref_logp"] = token_columns(ref_hidden, ref_head.weight, targets, **of_reference)[
                        "logp"
                    ]
            ref = {"ref_hidden_ND": ref_hidden, "ref_weight_VD": ref_head.weight}
            if ref_head.bias is not None:
                ref["ref_bias"] = ref_head.bias
        of_head = [name for name in HEAD_COLUMNS if name in names]
        columns = token_columns(hidden, head.weight, targets, of_head, **head.settings(), **ref, **settings)
        return columns | extra

    def frozen(self) -> Scorer:
        """A copy of the model as it is now, without gradients: a reference."""
        model = copy.deepcopy(self.model).requires_grad_(False).eval()
        return self._like(Scorer, model)

    def without_adapter(self) -> Scorer:
        """The model that a LoRA adapter sits on, sharing its weights: a reference that costs no memory.

        Raises:
            UserError: The model has no adapter.
        """
        if not hasattr(self.model, "disable_adapter"):
            raise UserError(f"{type(self.model).__name__} has no adapter", hint="use frozen()")
        return self._like(_WithoutAdapter, self.model)

    def plain(self) -> Scorer:
        """Another scorer of the same model, whose head is not compiled: for few targets now and then."""
        scorer = self._like(Scorer, self.model)
        scorer.implementation = "plain"
        return scorer

    def _like(self, kind: type[Scorer], model: PreTrainedModel) -> Scorer:
        scorer = kind(
            model, memory_budget=self.memory_budget, implementation=self.implementation, check=False
        )
        scorer.temperature, scorer.sharding = self.temperature, self.sharding
        return scorer

    @torch.no_grad()
    def _check(self, name: str) -> None:
        """Two packs that differ in their first row only must agree on the second, and on the model's own logits."""
        device = self.causal.get_input_embeddings().weight.device
        vocabulary = self.head().weight.shape[0]
        ids = torch.arange(2, 26, device=device) * 7 % vocabulary
        first, other, second = ids[:9], ids.flip(0)[:9], ids[9:]
        training = self.model.training
        self.model.eval()
        try:
            packs = [self.hidden(_two_rows(row, second))[9:] for row in (first, other)]
            with_longer = self.hidden(_two_rows(first, second, reach=self._reach()))[9:]
            logits = self.causal(second[None], use_cache=False).logits[0, :-1]
        finally:
            self.model.train(training)
        # Without a leak the same numbers are computed twice, so that a weak one, as in a hybrid of attention and
        # state space, is seen as well.
        coarse = packs[0].dtype == torch.bfloat16
        if not _close(packs[0], packs[1], 0.01 if coarse else 1e-4):
            raise UserError(
                f"{name} lets the rows of a pack attend to each other, so it cannot be trained packed"
            )
        if not _close(packs[0], with_longer, 0.01 if coarse else 1e-4):
            what = f"{name} computes a row differently in a pack with a longer one, so it cannot be trained packed"
            raise UserError(what, where="rope_parameters", hint="the model's positions depend on the batch")
        head = self.head()
        ours = token_columns(
            packs[0][:-1], head.weight, second[1:], implementation="dense", **head.settings()
        )["logp"]
        theirs = logits.to(ours.dtype).log_softmax(-1).gather(1, second[1:, None]).squeeze(1)
        if not _close(ours, theirs, 0.05 if coarse else 1e-3):
            raise UserError(
                f"{name}: log-probabilities computed from the head's weight differ from the model's own",
                hint="its head applies a transform that is not supported",
            )

    def _reach(self) -> int:
        """A position far out that the model has, beyond what its frequencies are scaled from where that is known."""
        config = self.causal.config.get_text_config()
        places = getattr(config, "max_position_embeddings", None) or 9
        return int(places) * (1 + ("dynamic" in str(getattr(config, "rope_parameters", "")))) - 1


class _WithoutAdapter(Scorer):
    def states(self, batch: Batch) -> tuple[Tensor, Head]:
        return self.hidden(batch), self.head()  # weights are whole already, for the model with its adapter

    def hidden(self, batch: Batch) -> Tensor:
        model: Any = self.model
        with model.disable_adapter():
            return super().hidden(batch)


def _logit_scale(config: Any) -> float:
    """The factor on the logits, whose name differs from family to family."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling if config.model_type == "hyperclovax" else 1 / scaling)


def _two_rows(first: Tensor, second: Tensor, reach: int | None = None) -> Batch:
    """A pack of both; with `reach` the last token of the first has this position, as if its row were as long."""
    lengths = [len(first), len(second)]
    ids = torch.cat([first, second])[None]
    positions = torch.cat([torch.arange(n, device=ids.device) for n in lengths])[None]
    if reach is not None:
        positions[0, lengths[0] - 1] = reach
    labels = torch.full_like(ids, -100)
    rows = torch.arange(2, device=ids.device).repeat_interleave(torch.tensor(lengths, device=ids.device))
    nowhere, weight = torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.float32)
    return Batch(ids, positions, labels, nowhere, rows, lengths, weight)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether the norm of each difference (of vectors in the last dimension) is within a share of the norm."""
    return bool(((a - b).float().norm(dim=-1) <= tolerance * b.float().norm(dim=-1) + 1e-6).all())
