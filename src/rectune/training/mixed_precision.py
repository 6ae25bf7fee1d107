"""bfloat16 working weights beside float32 masters, and the optimizer that steps the masters.

The model computes with its working weights. Their gradients are added to the masters' in float32 as soon as
each is ready, so that accumulation over micro-batches and processes does not round, and no gradient is kept in
bfloat16. In float32 training working weights and masters are the same tensors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rectune.config import OptimConfig
from rectune.errors import UserError
from rectune.training.fsdp import whole

log = logging.getLogger("rectune")


def freeze_unused(model: Any) -> None:
    """Freeze the parameters that rows of text give no gradient, which AdamW would decay: a vision tower, for instance.

    They are those that no path leads to from the last hidden state of a few tokens, and those outside of the text model
    of a model that reads more than text.

    Args:
        model: In eval mode, not yet sharded, without gradient checkpointing.
    """
    causal = getattr(model, "get_base_model", lambda: model)()
    head = causal.get_output_embeddings()
    if head is None or causal.base_model is causal:  # refused by name, once it is to be scored
        return
    ids = torch.arange(8, device=causal.get_input_embeddings().weight.device)[None]
    with torch.enable_grad():
        hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
    used = _reached(hidden) | {id(p) for p in head.parameters()}
    if causal.config.get_text_config() is not causal.config:
        parts = causal.get_decoder(), causal.get_input_embeddings(), head
        used &= {id(p) for part in parts for p in part.parameters()}
    unused = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in used}
    for parameter in unused.values():
        parameter.requires_grad_(False)
    if unused:
        weights, first = sum(p.numel() for p in unused.values()), next(iter(unused))
        more = f" and {len(unused) - 1:,} more" if len(unused) > 1 else ""
        log.info("frozen: %s weights that text gives no gradient (%s%s)", f"{weights:,}", first, more)


def _reached(tensor: Tensor) -> set[int]:
    """`id` of each parameter that a backward pass from here would give a gradient."""
    seen, waiting, found = set(), [tensor.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [before for before, _ in node.next_functions]
    return found


class Masters:
    """Trainable parameters by name, with float32 masters and gradients.

    Args:
        model: Trainable weights in float32; its parameters are converted to `dtype` in place, and hooked. Frozen ones
            that are sharded stay as they are.
        dtype: Of the working weights.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        trainable: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            raise UserError("the model has no trainable parameters")
        self.mixed = dtype != torch.float32
        self.masters = (
            {n: p.data.to(torch.float32, copy=True) for n, p in trainable.items()}
            if self.mixed
            else trainable
        )
        for weight in model.parameters():  # not model.to(): rotary frequencies and other buffers stay exact
            if weight.dtype != dtype and not isinstance(weight, DTensor):
                weight.data = weight.data.to(dtype)
        self.working = trainable
        self._fresh: set[str] = set()
        for name, parameter in trainable.items():
            if self.mixed:
                self.masters[name].grad = torch.zeros_like(self.masters[name])
                parameter.register_post_accumulate_grad_hook(self._collector(name))

    def _collector(self, name: str) -> Callable[[Tensor], None]:
        total = self.masters[name].grad

        def collect(parameter: Tensor) -> None:
            assert total is not None
            assert parameter.grad is not None
            if name in self._fresh:
                self._fresh.discard(name)
                total.copy_(parameter.grad)
            else:
                total.add_(parameter.grad)
            parameter.grad = None

        return collect

    def start_step(self) -> None:
        """Forget the last step's gradients."""
        if self.mixed:
            self._fresh = set(self.masters)
        else:
            for parameter in self.masters.values():
                parameter.grad = None

    def finish_step(self, accelerator: Accelerator) -> Tensor:
        """Sum the gradients over processes; returns their norm over all parameters, a float32 scalar."""
        for name, master in self.masters.items():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            elif name in self._fresh:
                master.grad.zero_()
            if accelerator.num_processes > 1 and not isinstance(
                master, DTensor
            ):  # shards are summed up already
                master.grad.copy_(accelerator.reduce(master.grad, "sum"))
        gradients = [master.grad for master in self.masters.values() if master.grad is not None]
        return whole(torch.nn.utils.get_total_norm(gradients))

    def is_finite(self) -> bool:
        """Whether the norm of what this process has added up since `start_step` is."""
        added = [m.grad for n, m in self.masters.items() if m.grad is not None and n not in self._fresh]
        return not added or bool(whole(torch.nn.utils.get_total_norm(added)).isfinite())

    @torch.no_grad()
    def scale_gradients(self, factor: float) -> None:
        torch._foreach_mul_([m.grad for m in self.masters.values() if m.grad is not None], factor)

    @torch.no_grad()
    def sync_working_weights(self) -> None:
        """Round the masters into the working weights."""
        if self.mixed:
            torch._foreach_copy_(list(self.working.values()), list(self.masters.values()))


def make_optimizer(weights: Iterable[Tensor], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; decay on matrices only, since decaying norms and biases shrinks what should not shrink."""
    weights = list(weights)
    matrices = [weight for weight in weights if weight.dim() >= 2]
    others = [weight for weight in weights if weight.dim() < 2]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((matrices, config.weight_decay), (others, 0.0))
        if parameters
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), fused=True
    )


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of `step` (from 0) of `steps`, as transformers' `get_*_schedule_with_warmup`.

    It is 0 at the first step of a warm-up, at its peak once, at the first step behind it, and would be 0 at `steps`.
    """
    warmup = round(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * step / warmup
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    done = (step - warmup) / max(1, steps - warmup)
    course = 1 - done if config.lr_scheduler_type == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * course
