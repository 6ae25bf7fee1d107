"""Inputs of a head to test with, and the comparison of an implementation with the dense one in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rectune.logprobs import token_columns

CHUNK = 7
"""Rows that fit into the budget where logits are computed in chunks."""

EVERYTHING = 256 << 20
"""A budget in bytes that holds the logits of every case."""


class Case:
    """A head's inputs in some dtype, the reference's, and an upstream gradient with negatives and zeros."""

    def __init__(self, n: int, v: int, dtype: torch.dtype, *, d: int = 24, bias: bool = False, seed: int = 0):
        g = torch.Generator().manual_seed(seed + 1000 * n + v)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype)

        self.hidden, self.weight = normal(n, d), normal(v, d, scale=0.5)
        self.bias = normal(v) if bias else None
        self.targets = torch.randint(v, (n,), generator=g)
        self.upstream = torch.randn(n, generator=g, dtype=torch.float64) * (torch.arange(n) % 3 > 0)
        self.reference = {"ref_hidden_ND": normal(n, d), "ref_weight_VD": normal(v, d, scale=0.5)}
        self.row_bytes = v * self.hidden.element_size()

    def to(self, dtype: torch.dtype) -> Case:
        other: Case = object.__new__(Case)
        other.__dict__.update(self.__dict__)
        other.hidden, other.weight = self.hidden.to(dtype), self.weight.to(dtype)
        other.bias = None if self.bias is None else self.bias.to(dtype)
        other.reference = {name: value.to(dtype) for name, value in self.reference.items()}
        return other

    def cuda(self) -> Case:
        """The same, on the GPU."""
        other = self.to(self.hidden.dtype)
        for name in ("hidden", "weight", "bias", "targets", "upstream"):
            value = getattr(self, name)
            setattr(other, name, None if value is None else value.cuda())
        other.reference = {name: value.cuda() for name, value in self.reference.items()}
        return other

    def run(self, column: str = "logp", **settings: Any) -> dict[str, Tensor]:
        """The column and the gradients of its product with the upstream gradient."""
        leaves = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        leaves = {name: t.clone().requires_grad_() for name, t in leaves.items() if t is not None}
        if column == "kl":
            settings |= self.reference
        value = token_columns(
            leaves["hidden"], leaves["weight"], self.targets, (column,), bias=leaves.get("bias"), **settings
        )[column]
        gradients = torch.autograd.grad(value, list(leaves.values()), self.upstream.to(value.dtype))
        return {column: value.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_as_exact_as_dense(
    case: Case, column: str = "logp", *, head: dict[str, Any] | None = None, **settings: Any
):
    """By norm, at most 1.1 times the dense path's error against float64 truth, plus units in the last place.

    For float64 the dense path is the truth itself, so that 16 units are allowed. For float32 it is 4: a BLAS adds up
    in another order when it gets few rows, and which one depends on the processor and its threads.
    """
    head = head or {}
    truth = case.to(torch.float64).run(column, implementation="dense", **head)
    dense = case.run(column, implementation="dense", **head)
    ours = case.run(column, **head, **settings)
    for name, true in truth.items():
        assert ours[name].dtype == dense[name].dtype and ours[name].shape == dense[name].shape
        error, allowed = ((result[name].double() - true).norm() for result in (ours, dense))
        units = {torch.float64: 16, torch.float32: 4}.get(ours[name].dtype, 1)
        rounding = units * torch.finfo(ours[name].dtype).eps * true.norm()
        assert error <= 1.1 * allowed + rounding, f"{name}: {error:.3g} against {allowed:.3g} of dense"
