"""Weights, gradients and moments sharded over processes by PyTorch's FSDP2, switched on the way accelerate has it.

`accelerate launch --use_fsdp --fsdp_version 2` (or its config file, or the environment variables that it sets) shards;
nothing of ours has to be set. Each decoder layer is a group of its own, everything else (embedding, last norm, head)
the root's. A forward pass gathers a group in the working precision, the backward pass gathers it again and adds the
float32 gradients up over the processes; the shards themselves are the float32 masters that the optimizer steps. The
head reads its weight from within the root's forward pass, where it is whole (`Scorer.columns`).

Every process has to take part in every forward and backward pass, with an empty micro-batch if need be (`turns`).
Whole tensors for checkpoints and models are gathered on the first process, so that their files are those of a run in
one process, and a run resumes with any number of them, sharded or not.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from types import MethodType, SimpleNamespace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from rectune.errors import UserError
from rectune.models.scorer import Scorer, Sharding

T = TypeVar("T")


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether accelerate is told to use FSDP, and there is more than one process.

    Raises:
        UserError: It is told to use FSDP's first version.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("training under FSDP 1 is not supported", hint="set fsdp_version: 2")
    return bool(accelerator.num_processes > 1)


def shard(scorer: Scorer, dtype: torch.dtype, accelerator: Accelerator, *, reference: bool = False) -> None:
    """Shard a scorer's model in place.

    Args:
        scorer: Of a model whose weights are float32, the same in all processes.
        dtype: What it computes in.
        accelerator: Of the run. With `dp_replicate_size` in its parallelism config the groups of processes that hold
            the whole model together are that many.
        reference: Of a model that is not trained: its head stays whole once it was used, since it is read from outside.
    """
    causal, mesh = scorer.causal, _mesh(accelerator)
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    kinds = set(causal._no_split_modules or ())
    for layer in [module for module in causal.modules() if type(module).__name__ in kinds]:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(causal, mesh=mesh, mp_policy=policy, reshard_after_forward=not reference)
    for module in causal.modules():
        if isinstance(module, FSDPModule):  # sums, not means: the loss is divided by the whole step's targets
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    causal.run_unsharded = MethodType(
        _call, causal
    )  # PyTorch gathers weights for a method of the module only
    register_fsdp_forward_method(causal, "run_unsharded")
    scorer.sharding = Sharding(dtype, causal.run_unsharded)


def shard_all(
    scorer: Scorer, references: Sequence[Scorer | None], dtype: torch.dtype, accelerator: Accelerator
) -> Skeleton:
    """`shard` the model of a run and those that it refers to; returns its skeleton, to save it with."""
    skeleton = Skeleton(scorer.model)
    shard(scorer, dtype, accelerator)
    for reference in references:
        if reference and reference.causal is scorer.causal:
            reference.sharding = scorer.sharding
        elif reference:
            shard(reference, dtype, accelerator, reference=True)
    return skeleton


def _call(_: nn.Module, function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


def _mesh(accelerator: Accelerator) -> DeviceMesh:
    processes, config = accelerator.num_processes, getattr(accelerator, "parallelism_config", None)
    replicas = config.dp_replicate_size if config else 1
    kind = accelerator.device.type
    if replicas <= 1:
        return init_device_mesh(kind, (processes,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (replicas, processes // replicas), mesh_dim_names=("replicate", "shard"))


def turns(micro_batches: Sequence[T], accelerator: Accelerator, empty: T) -> list[T]:
    """This process's share of the micro-batches; where weights are sharded as many as any other's, empty ones last."""
    of = accelerator.num_processes
    mine = list(micro_batches[accelerator.process_index :: of])
    if is_sharded(accelerator):
        mine += [empty] * (-(-len(micro_batches) // of) - len(mine))
    return mine


def whole(tensor: Tensor) -> Tensor:
    """A tensor itself, or gathered from its shards (all processes have to call this)."""
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(target: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, whole in every process, in the shards of `target` where that has some."""
    if not isinstance(target, DTensor):
        return tensor
    tensor = tensor.to(target.device, target.dtype)
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU where `keep`, one after the other (all processes have to call this)."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            found[name] = full.to("cpu", copy=True)
    return found


def gathered_state(
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
    *,
    keep: bool,
) -> tuple[dict[str, Tensor], Any, dict[str, dict[str, Tensor]]]:
    """What `save_checkpoint` takes, whole: masters, an object with the optimizer's `state` of them, the extra sets."""
    plain = gathered(masters, keep=keep)
    state = {}
    for name, master in masters.items():
        if of_one := optimizer.state.get(master):
            full = gathered(of_one, keep=keep)
            if keep:
                state[plain[name]] = full
    others = {name: gathered(tensors, keep=keep) for name, tensors in extra.items()}
    return plain, SimpleNamespace(state=state), others


class Skeleton:
    """A model without its weights, to be filled with gathered ones and saved as any other. Made before sharding."""

    def __init__(self, model: nn.Module) -> None:
        empty = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
            for p in model.parameters()
        }
        self.model = copy.deepcopy(model, empty)

    def filled(self, model: nn.Module, dtype: torch.dtype, *, keep: bool) -> Any:
        """The sharded `model` whole, in `dtype` on the CPU, where `keep` (all processes have to call this)."""
        tensors = gathered(model.state_dict(), keep=keep)
        if not keep:
            return None
        plain = copy.deepcopy(self.model)
        weights = {name for name, _ in plain.named_parameters(remove_duplicate=False)}
        plain.load_state_dict(
            {n: t.to(dtype) if n in weights else t for n, t in tensors.items()}, assign=True
        )
        getattr(plain, "get_base_model", lambda: plain)().tie_weights()  # type: ignore[operator]
        return plain
