"""Clipped steps over a rollout: in each epoch its answers are dealt into minibatches, and each makes one update.

A minibatch is packed into micro-batches; the sum of its tokens' losses, weighted as `loss_type` says, does not
depend on how, so it is begun again with smaller ones where memory runs out. Answers that cannot have a gradient
(advantage 0, no KL) are not run; they count in the means all the same. The losses are in `objectives.py` (policy) and
`policy.py` (value).
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from rectune.config import RLConfig
from rectune.data.packing import collate, pack
from rectune.objectives import grpo, k3
from rectune.records import Figures
from rectune.rl.advantages import token_weights
from rectune.rl.policy import Policy, TokenLimit, value_loss
from rectune.rl.rollout import Rollout
from rectune.training.accumulation import named, run_deterministically
from rectune.training.mixed_precision import Masters

log = logging.getLogger("rectune")

_ORDER = 7  # stream of the seed, in addition to those of data/sampler.py


def update(
    policy: Policy,
    masters: Masters,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    rollout: Rollout,
    config: RLConfig,
    step: int,
    limit: TokenLimit,
) -> Figures:
    """All updates of a step; the optimizer's learning rates are already set.

    Returns:
        `updates` made, `skipped` ones (the loss or gradient was not finite, the log names the answers), `grad_norm`
        (mean before clipping), `objective` (mean loss), and means over the tokens that were run: `entropy` in nats,
        `clip_share`, `kl_old` (KL to the policy that drew, k3), `kl` (to the reference, k3; None without one),
        `value_loss` (ppo).

    Raises:
        UserError: A single answer does not fit into memory.
    """
    totals: defaultdict[str, float] = defaultdict(float)
    norms: list[float] = []
    updates = skipped = 0
    for rows in minibatches(rollout.used, config, step):
        minibatch = _Minibatch(policy, masters, rollout, rows, config)
        for name, value in minibatch.backward(limit).items():
            totals[name] += value
        norm = masters.finish_step(accelerator).item()
        if not math.isfinite(norm):
            skipped += 1
            which = named(minibatch.find_nonfinite_rows()) or "all answers together"
            say = "step %d: the loss or gradient of an update is not finite, over %s; the weights stay as they are"
            log.warning(say, step + 1, which)
            continue
        norms.append(norm)
        if config.max_grad_norm and norm > config.max_grad_norm:
            masters.scale_gradients(config.max_grad_norm / norm)
        optimizer.step()
        masters.sync_working_weights()
        updates += 1
    tokens = totals.pop("tokens", 0.0)
    objective = totals.pop("objective", 0.0)
    means = {name: total / tokens for name, total in totals.items()} if tokens else {}
    return {
        "objective": objective / max(1, updates + skipped),
        "entropy": None,
        "clip_share": 0.0,
        "kl_old": 0.0,
        "kl": None,
        **means,
        "grad_norm": sum(norms) / len(norms) if norms else None,
        "updates": updates,
        "skipped": skipped,
    }


def trained(rollout: Rollout, rows: Sequence[int], config: RLConfig) -> list[int]:
    """Those of the answers that can have a gradient: under GRPO without a KL those whose advantage is not 0."""
    if config.algorithm == "ppo" or config.beta:
        return list(rows)
    return [i for i in rows if rollout.columns[i]["advantage"].any()]


def minibatches(used: Sequence[int], config: RLConfig, step: int) -> Iterator[list[int]]:
    """Answers of each update, over all epochs; a function of seed and step."""
    for epoch in range(config.num_iterations):
        order = list(used)
        if config.num_mini_batches > 1:
            shuffled = np.random.default_rng([config.seed, _ORDER, step, epoch]).permutation(len(used))
            order = [used[i] for i in shuffled]
        for part in np.array_split(np.array(order, dtype=np.int64), config.num_mini_batches):
            if len(part):
                yield part.tolist()


class _Minibatch:
    """The answers of one update, and how much each of their tokens counts."""

    def __init__(
        self, policy: Policy, masters: Masters, rollout: Rollout, rows: Sequence[int], config: RLConfig
    ) -> None:
        self.policy, self.masters, self.rollout, self.config = policy, masters, rollout, config
        lengths = rollout.lengths
        of_rows = token_weights([lengths[i] for i in rows], config.loss_type, config.max_new_tokens)
        self.weights = dict(zip(rows, of_rows, strict=True))
        self.rows = trained(rollout, rows, config)
        self.lengths = [len(rollout.rows[i]) for i in self.rows]

    def backward(self, limit: TokenLimit) -> dict[str, float]:
        """Leaves the gradient in the masters; sums over the tokens that were run."""
        return run_deterministically(self.policy.device, lambda: limit.fit(self._attempt, self.lengths))

    def find_nonfinite_rows(self) -> list[str]:
        """The answers that, alone, have a loss or gradient that is not finite; leaves a useless gradient behind."""
        return [self._name(row) for row in self.rows if not self._is_finite(row)]

    def _attempt(self, capacity: int) -> dict[str, float]:
        totals: defaultdict[str, float] = defaultdict(float)
        self.masters.start_step()
        finite = True
        for places in pack(self.lengths, capacity):
            columns, loss = self._loss([self.rows[place] for place in places])
            loss.backward()
            _add(totals, columns, loss.item(), self.config)
            finite = finite and bool(loss.isfinite())
        if not finite:  # its gradient may be
            self.masters.scale_gradients(math.nan)
        return totals

    def _loss(self, chosen: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        rollout, policy, config = self.rollout, self.policy, self.config
        batch = collate([rollout.rows[i] for i in chosen], policy.device)
        columns = policy.columns(batch, entropy_gradient=config.entropy_coef > 0)
        for name in rollout.columns[chosen[0]]:
            columns[name] = rollout.cat(name, chosen, policy.device)
        columns.setdefault("old_logp", columns["logp"])
        weights = torch.stack([self.weights[i] for i in chosen]).to(policy.device)
        return columns, (token_losses(columns, config) * weights[columns["row"]]).sum()

    def _is_finite(self, row: int) -> bool:
        self.masters.start_step()
        _, loss = self._loss([row])
        if not loss.isfinite():
            return False
        loss.backward()
        return self.masters.is_finite()

    def _name(self, row: int) -> str:
        request = self.rollout.answers[row].request
        return f"answer {request.sample_index} to problem {request.problem_id}"


def token_losses(columns: dict[str, Tensor], config: RLConfig) -> Tensor:
    """Loss of each token, (N,): the clipped surrogate, and what the settings add to it."""
    losses = grpo(
        columns["logp"],
        columns["old_logp"],
        columns["advantage"],
        epsilon=config.epsilon,
        high=config.epsilon_high,
    )
    if config.algorithm == "grpo":
        if not config.beta:
            return losses
        old_logp = columns["old_logp"] if config.use_bias_correction_kl else None
        return losses + config.beta * k3(columns["logp"], columns["ref_logp"], old_logp)
    error = value_loss(
        columns["value"], columns["old_value"], columns["returns"], clip=config.cliprange_value
    )
    losses = losses + config.vf_coef * error
    return losses - config.entropy_coef * columns["entropy"] if config.entropy_coef else losses


@torch.no_grad()
def _add(totals: defaultdict[str, float], columns: dict[str, Tensor], loss: float, config: RLConfig) -> None:
    ratio = (columns["logp"] - columns["old_logp"]).exp()
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    clipped = (ratio < 1 - config.epsilon) & (columns["advantage"] < 0)
    clipped |= (ratio > 1 + high) & (columns["advantage"] > 0)
    totals["tokens"] += len(ratio)
    totals["objective"] += loss
    totals["entropy"] += float(columns["entropy"].sum())
    totals["clip_share"] += float(clipped.sum())
    totals["kl_old"] += float(k3(columns["logp"], columns["old_logp"]).sum())
    if "ref_logp" in columns:
        totals["kl"] += float(k3(columns["logp"], columns["ref_logp"]).sum())
    if "returns" in columns:
        totals["value_loss"] += float(
            value_loss(columns["value"], columns["old_value"], columns["returns"], clip=0).sum()
        )
