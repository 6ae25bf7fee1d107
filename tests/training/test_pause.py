"""`train(..., until=k)` pauses with a checkpoint and a model; going on gives the bits of a run that never paused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.config import load_config
from rectune.errors import UserError
from rectune.training.checkpoint import list_checkpoints
from rectune.training.trainer import train
from training_runs import metrics, weights, without_timings

KINDS: dict[str, dict[str, Any]] = {
    "dft": {"save_steps": 0},
    "phases in bf16": {"objective": "sft@0.5+dft@0.5", "dtype": "bfloat16"},
    "best": {"metric_for_best_model": "nll", "eval_steps": 1, "learning_rate": 0.02, "save_steps": 2},
    "psft": {"objective": "psft", "old_policy_interval": 3},
    "lora": {"lora_r": 2, "lora_dropout": 0.3, "merge_adapter": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_run_goes_on_to_the_same_bits(toy: dict[str, Any], tmp_path: Path, kind: str) -> None:
    settings = {**toy, **KINDS[kind]}
    whole, paused = tmp_path / "whole", tmp_path / "paused"
    train(load_config(None, {**settings, "output_dir": whole}))
    config = load_config(None, {**settings, "output_dir": paused})
    for step in (2, 2, 3):  # the second asks for what is there already
        result = train(config, resume=True, until=step)
        assert result.steps == step
        assert list_checkpoints(paused / "checkpoints")[-1].name == f"step-{step:06d}"
        assert weights(paused).keys() == weights(whole).keys()
        assert not (paused / "summary.json").exists()
    train(config, resume=True)
    assert without_timings(metrics(whole)) == without_timings(metrics(paused))
    first, second = weights(whole), weights(paused)
    assert all(torch.equal(first[name], second[name]) for name in first)
    after = [json.loads((out / "summary.json").read_text())["after"] for out in (whole, paused)]
    assert after[0] == after[1]


def test_the_model_at_a_pause_is_that_of_the_step(toy: dict[str, Any], tmp_path: Path) -> None:
    """With a constant rate, pausing after 2 steps of 6 leaves the weights of a run of 2 steps."""
    settings = {**toy, "lr_scheduler_type": "constant", "warmup_ratio": 0, "eval_split_size": 0}
    train(load_config(None, {**settings, "max_steps": 2, "output_dir": tmp_path / "short"}))
    train(load_config(None, {**settings, "max_steps": 6, "output_dir": tmp_path / "long"}), until=2)
    short, long = weights(tmp_path / "short"), weights(tmp_path / "long")
    assert all(torch.equal(short[name], long[name]) for name in short)


def test_a_pause_at_the_end_is_no_pause_and_behind_is_refused(toy: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(None, {**toy, "output_dir": tmp_path / "run"})
    train(config, until=4)
    with pytest.raises(UserError, match="the run is already at step 4, beyond step 2"):
        train(config, resume=True, until=2)
    assert train(config, resume=True, until=6).steps == 6
    assert (tmp_path / "run" / "summary.json").exists()
