"""What tests read from a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rectune.objectives import OBJECTIVES, column_names

OVER_ROWS = [name for name in OBJECTIVES if "pair" not in column_names(name)]
"""Objectives that train on rows; DPO has tests of its own."""


def metrics(out: Path | str, kind: str | None = None) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl`, of one kind or of all."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


TIMINGS = {"seconds", "tokens_per_second", "peak_memory_mib"}


def without_timings(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def weights(out: Path | str, name: str = "model/model.safetensors") -> dict[str, Tensor]:
    """The tensors that a run saved."""
    return load_file(Path(out) / name)
