"""A run that died anywhere, or stopped, resumes to the same bits as one that never did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from online_runs import config_of
from rectune.config import dump_config
from rectune.errors import UserError
from rectune.rl import rl_trainer as loop
from rectune.runtime.signals import Stopped
from rectune.training import checkpoint as checkpoints
from training_runs import Died, dies_at, same_runs

PPO = {"algorithm": "ppo", "num_iterations": 2, "num_mini_batches": 2, "beta": 0.05, "entropy_coef": 0.01}
KINDS: dict[str, dict[str, Any]] = {
    "grpo, several updates and a reference": {
        "num_iterations": 2,
        "num_mini_batches": 2,
        "beta": 0.05,
        "loss_type": "grpo",
    },
    "ppo in bf16": {**PPO, "dtype": "bfloat16"},
    "lora": {"lora_r": 2, "lora_dropout": 0.3, "merge_adapter": True, "beta": 0.05},
}


@pytest.mark.parametrize("kind", KINDS)
def test_death_between_and_inside_steps(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = {"save_steps": 2, "save_rollout_steps": 1, **KINDS[kind]}
    run("whole", **settings)
    for function, call in (("compute_advantages", 2), ("save_rollout", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(loop, function, dies_at(call, getattr(loop, function)))
            with pytest.raises(Died):
                run("died", resume=True, **settings)
    run("died", resume=True, **settings)
    same_runs(tmp_path / "whole", tmp_path / "died")
    before = (tmp_path / "died" / "summary.json").read_text()
    run("died", resume=True, **settings)  # a finished run is left alone
    assert (tmp_path / "died" / "summary.json").read_text() == before


DRIVER = """
import os, sys
from rectune.rl import rl_trainer as loop
from rectune.config import RLConfig
where, step = sys.argv[1], int(sys.argv[2])
from rectune.training import checkpoint as checkpoints
update, save = loop.update, checkpoints.save_checkpoint
def wait(name, now):
    if (name, now) == (where, step):
        print("there", flush=True)
        sys.stdin.readline()  # until it is killed
def waiting_update(*args):
    made = update(*args)
    wait("update", args[6])
    return made
def waiting_save(folder, state, *args):
    sync = checkpoints.fsync
    def slow(path):
        if path.name == "moments.safetensors":
            wait("save", state.step)
        sync(path)
    checkpoints.fsync = slow
    save(folder, state, *args)
loop.update, checkpoints.save_checkpoint = waiting_update, waiting_save
loop.train_rl(RLConfig.model_validate_json(sys.argv[3]), resume=True)
"""


@pytest.mark.slow
def test_kill_9(run: Any, toy: dict[str, Any], tmp_path: Path) -> None:
    """Twice: when the weights have just changed, and while a checkpoint is written."""
    settings = {"save_steps": 2, **PPO}
    run("whole", **settings)
    config = config_of(toy, tmp_path / "died", **settings)
    for where, step in (("update", 2), ("save", 4)):
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, where, str(step), dump_config(config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            process.send_signal(signal.SIGKILL)
            assert process.wait(timeout=20) == -signal.SIGKILL
        found = checkpoints.list_checkpoints(tmp_path / "died" / "checkpoints")
        assert [path.name for path in found] == ["step-000002"]
    run("died", resume=True, **settings)
    same_runs(tmp_path / "whole", tmp_path / "died")


def test_a_signal_stops_behind_a_step(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("whole", save_steps=0)
    original = loop.compute_advantages

    def signalled(*args: Any) -> None:
        original(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_advantages", signalled)
        with pytest.raises(Stopped, match="stopped at step 1 of 5; resume it with --resume"):
            run("stopped", save_steps=0)
    run("stopped", resume=True, save_steps=0)
    same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_other_problems_or_settings_are_refused(run: Any, toy: dict[str, Any], tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(Path(toy["problems"]).read_text())
    with pytest.raises(UserError, match="the service is gone"):
        run(problems=problems, reward="from_third", save_steps=1)
    with pytest.raises(UserError, match="the folder already has a run; continue with --resume"):
        run(problems=problems, reward="from_third", save_steps=1)
    with pytest.raises(UserError, match="the run cannot be resumed with other settings: learning_rate was"):
        run(problems=problems, reward="from_third", save_steps=1, learning_rate=1e-5, resume=True)
    problems.write_text(problems.read_text() + json.dumps({"prompt": "one more", "answer": "1"}) + "\n")
    with pytest.raises(UserError, match="the problems have changed since the run began"):
        run(problems=problems, reward="from_third", save_steps=1, resume=True)
