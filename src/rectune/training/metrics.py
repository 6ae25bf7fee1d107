"""What is logged about a step or a hold-out pass, from the same per-token columns that the objective reads.

The objective's own value is logged and must not choose anything: -p log p falls as p goes to 0, so DFT's loss
falls while the model gets worse. NLL and mean p stand beside it, and only they may choose a checkpoint.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rectune.config import TrainConfig
from rectune.data.packing import pack_for
from rectune.models.scorer import Scorer
from rectune.objective_spec import Phase
from rectune.objectives import sum_by
from rectune.records import Figures
from rectune.training.dataloader import Split, capacity, pair_columns
from rectune.training.fsdp import turns
from rectune.training.reference import ReferenceColumns

QUANTILES = (0.1, 0.5, 0.9)
PROBABILITY_BINS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Edges of the 13 bins of Figure 2 of the paper (arXiv:2508.05629)."""
MONITORED = ("logp", "entropy", "top1")
"""Columns of the head that every monitor reads."""


class Monitor:
    """Collects columns over micro-batches and processes, then tells the figures.

    Args:
        phase: What is trained with; None for a pass that only evaluates.
    """

    def __init__(self, phase: Phase | None = None) -> None:
        self.phase = phase
        self._columns: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, columns: Mapping[str, Tensor], loss: Tensor | None = None) -> None:
        """Keep a micro-batch's columns, each (N,), and the loss of each token."""
        seen = {name: columns[name] for name in (*MONITORED, "structural")}
        seen["row_weight"] = columns["weight"]
        if "router_loss" in columns:
            seen["router_loss"] = columns["router_loss"].expand(len(columns["logp"]))
        if "pair" in columns:  # DPO: the better answers' tokens, and of each pair its margin
            seen = {name: column[columns["sign"] > 0] for name, column in seen.items()}
            seen["margin"] = sum_by(
                columns["pair"], columns["sign"] * (columns["logp"] - columns["ref_logp"])
            )
        if loss is not None and self.phase is not None:
            seen["loss"] = loss
            seen["weight"] = self.phase.weight(columns) * columns["weight"]
            if "pair" in columns:
                seen["loss"] = sum_by(columns["pair"], loss)
                seen["weight"] = seen["weight"] * columns["sign"]
        for name, column in seen.items():
            self._columns.setdefault(name, []).append(column.to(torch.float32, copy=True))

    def figures(self, accelerator: Accelerator | None = None) -> Figures:
        """Means over all tokens seen, in all processes.

        `objective` loss per token; `nll` in nats; `mean_p`, `p10`, `p50`, `p90` of the targets' probabilities;
        `weight` mean effective weight; `entropy` in nats; `accuracy` share of targets that are top-1;
        `eos_p` mean probability of turn-ending and special targets (None without any); `low_p` and `high_p`
        shares of targets with p < 0.01 and p > 0.9; `supervised` number of targets.
        Where rows have weights, `objective` and `weight` include them, and there are `weighted_nll` and
        `weighted_mean_p`; the other figures count each target once. `router_loss` is that of a mixture of experts.
        A pass that only evaluates also gets `histogram`, counts in `PROBABILITY_BINS`. Over pairs these are figures of
        the better answers, `objective` is per pair, and there are `margin` (mean over pairs, in nats: by how much
        log p / p_ref of the better answer exceeds the worse one's) and `preferred` (share of pairs where it does).
        """
        parts = [{name: [torch.cat(seen).cpu()] for name, seen in self._columns.items()}]
        if accelerator is not None and accelerator.num_processes > 1:
            parts = gather_object(parts)
        names = {name for part in parts for name in part}
        columns = {name: torch.cat([t for part in parts for t in part.get(name, [])]) for name in names}
        if not columns or not len(columns["logp"]):
            return {"supervised": 0}
        p = columns["logp"].exp()
        ends = p[columns["structural"].bool()]
        quantiles = dict(zip(("p10", "p50", "p90"), _quantiles(p), strict=True))
        figures: Figures = {
            "nll": -_mean(columns["logp"]),
            "mean_p": _mean(p),
            **quantiles,
            "entropy": _mean(columns["entropy"]),
            "accuracy": _mean(columns["top1"]),
            "eos_p": _mean(ends) if len(ends) else None,
            "low_p": _mean(p < 0.01),
            "high_p": _mean(p > 0.9),
            "supervised": len(p),
        }
        weight = columns["row_weight"].double()
        if (weight != 1).any() and weight.sum() > 0:
            of_all = weight / weight.mean()
            figures |= {
                "weighted_nll": -_mean(of_all * columns["logp"]),
                "weighted_mean_p": _mean(of_all * p),
            }
        if "router_loss" in columns:
            figures["router_loss"] = _mean(columns["router_loss"])
        if "margin" in columns:
            figures |= {"margin": _mean(columns["margin"]), "preferred": _mean(columns["margin"] > 0)}
        if "loss" in columns:
            figures = {"objective": _mean(columns["loss"]), "weight": _mean(columns["weight"]), **figures}
        else:
            figures["histogram"] = histogram(p)
        return figures


@torch.no_grad()
def evaluate_holdout(
    scorer: Scorer,
    holdout: Split,
    config: TrainConfig,
    accelerator: Accelerator | None = None,
    *,
    reference: ReferenceColumns | None = None,
) -> Figures:
    """Figures of `Monitor` over hold-out rows, or, with `reference`, over pairs; empty where there are none."""
    if not len(holdout):
        return {}
    monitor = Monitor()
    training = scorer.model.training
    scorer.model.eval()
    device = None if accelerator is None else accelerator.device
    processes = 1 if accelerator is None else accelerator.num_processes
    packs = pack_for(processes, holdout.lengths(), capacity(config, paired=reference is not None))
    for rows in packs if accelerator is None else turns(packs, accelerator, []):
        columns = scorer.columns(holdout.batch(rows, device), MONITORED)
        if reference is not None:
            columns |= reference.of(holdout, rows, device) | pair_columns(columns["row"])
        monitor.add(columns)
    scorer.model.train(training)
    return monitor.figures(accelerator)


def peak_memory_mib() -> float:
    """Most memory held since `reset_peak_memory`: of the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):  # Linux only; getrusage tells the same, but its figure cannot be reset everywhere
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(usage / (1024 if sys.platform != "darwin" else 2**20), 1)


def reset_peak_memory() -> None:
    """Begin anew, so that a second run in one process does not show the first one's peak; where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def histogram(p: Tensor | Sequence[float]) -> list[int]:
    """How many of the probabilities lie in each of `PROBABILITY_BINS`; NaN counts nowhere.

    Bin i holds edges[i] <= p < edges[i + 1], the last one its upper edge too. Edges are rounded to the dtype of `p`, so
    that 0.7 in float32 lies in the bin that begins at 0.7.
    """
    p = torch.as_tensor(p, dtype=None if hasattr(p, "dtype") else torch.float64).flatten()
    edges = torch.tensor(PROBABILITY_BINS, dtype=torch.float64, device=p.device).to(p.dtype)
    places = torch.bucketize(p[~p.isnan()], edges, right=True) - 1
    bins = len(PROBABILITY_BINS) - 1
    counts: list[int] = torch.bincount(places.clamp(0, bins - 1), minlength=bins).tolist()
    return counts


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _quantiles(p: Tensor) -> list[float]:
    ordered = p.sort().values
    return [float(ordered[min(len(p) - 1, int(q * len(p)))]) for q in QUANTILES]
