"""A run that died anywhere goes on with --resume, to the same bits as one that never died."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.config import dump_config, load_config
from rectune.errors import UserError
from rectune.objective_spec import Phase
from rectune.training import checkpoint as checkpoints
from rectune.training import trainer as loop
from rectune.training.metrics_log import MetricsLog
from training_runs import Died, dies_at, metrics, same_runs


@pytest.fixture(scope="module")
def whole(toy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's run, uninterrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(load_config(None, {**toy, "output_dir": out}))
    return out


MOMENTS = [
    *[(MetricsLog, "add", line) for line in (1, 2, 4, 6, 8)],
    (checkpoints, "save_checkpoint", 1),
    *[(checkpoints, "save_file", file) for file in (1, 2, 3, 4)],
    *[(checkpoints, "fsync", file) for file in (2, 3, 7, 8)],
    (checkpoints, "list_checkpoints", 2),  # the new one is renamed, the old one not yet removed
    (checkpoints, "_remove", 1),
    (loop, "save_model", 1),
    (loop, "totals", 1),
    (loop, "write_record", 1),
]
KINDS: dict[str, dict[str, Any]] = {
    "dft": {},
    "bf16": {"dtype": "bfloat16"},
    "best": {"metric_for_best_model": "nll", "eval_steps": 1, "learning_rate": 0.02},
    "phases": {"objective": "sft@0.5+dft@0.5"},
    "psft": {"objective": "psft", "old_policy_interval": 3, "dtype": "bfloat16"},
    "iw_sft": {"objective": "iw_sft"},
    "shuffled": {"objective": "sft@0.4+cadft:signal=base:shuffled@0.6"},
    "lora": {"lora_r": 2, "lora_dropout": 0.3, "merge_adapter": True},
    "lora psft": {"lora_r": 2, "objective": "psft", "old_policy_interval": 3},
    "lora best": {
        "lora_r": 2, "merge_adapter": True, "metric_for_best_model": "mean_p", "eval_steps": 1, "learning_rate": 0.3,
    },
}  # fmt: skip


@pytest.mark.parametrize(("module", "function", "call"), MOMENTS, ids=lambda v: getattr(v, "__name__", v))
def test_death_at_any_moment(
    run: Any,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    call: int,
) -> None:
    settings = {"save_steps": 2, "save_total_limit": 1}
    with monkeypatch.context() as patch:
        patch.setattr(module, function, dies_at(call, getattr(module, function)))
        with pytest.raises(Died):
            run("died", **settings)
    folder = tmp_path / "died" / "checkpoints"
    assert all(not checkpoints._damage(found) for found in checkpoints.list_checkpoints(folder))
    run("died", resume=True, **settings)
    same_runs(whole, tmp_path / "died")
    assert checkpoints.last_good_checkpoint(folder) == folder / "step-000004"


@pytest.mark.parametrize(
    ("kind", "line"),
    [*((kind, 5) for kind in KINDS), *((kind, "last") for kind in ("best", "lora best", "lora"))],
)
def test_death_of_any_kind_of_run(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, line: int | str
) -> None:
    settings = {"save_steps": 2, **KINDS[kind]}
    run("whole", **settings)
    owner, where, call = (loop, "write_record", 1) if line == "last" else (MetricsLog, "add", line)
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, dies_at(call, getattr(owner, where)))
        with pytest.raises(Died):
            run("died", **settings)
    with (tmp_path / "died" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "kind": "tr')
    run("died", resume=True, **settings)
    same_runs(tmp_path / "whole", tmp_path / "died")


@pytest.mark.parametrize("rank", [0, 2])
def test_death_after_the_best_evaluation(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """What was best before the last checkpoint is still the best afterwards."""

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, float]:
        return {"nll": 1.0 if torch.initial_seed() % 1_000_003 == 1 else 5.0, "mean_p": 0.5}

    monkeypatch.setattr(loop, "evaluate_holdout", evaluate)
    settings = {
        "save_steps": 2,
        "eval_steps": 1,
        "metric_for_best_model": "nll",
        "lora_r": rank,
        "merge_adapter": True,
    }
    run("whole", **settings)
    for owner, where, call in (
        (MetricsLog, "add", 10),
        (loop.Trainer, "_save", 1),
        (loop, "write_record", 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, where, dies_at(call, getattr(owner, where)))
            with pytest.raises(Died):
                run("died", resume=True, **settings)
    run("died", resume=True, **settings)
    same_runs(tmp_path / "whole", tmp_path / "died")
    assert json.loads((tmp_path / "died" / "summary.json").read_text())["after"]["nll"] == 1.0


def test_two_deaths_and_a_skipped_step(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW's count of updates is its own: it is behind the steps once a step was skipped."""
    loss = Phase.loss

    def broken(*args: Any) -> torch.Tensor:
        return loss(*args) * (float("nan") if torch.initial_seed() % 1_000_003 == 1 else 1)

    monkeypatch.setattr(Phase, "loss", broken)
    run("whole", save_steps=1)
    assert metrics(tmp_path / "whole", "train")[1]["grad_norm"] is None
    for line in (4, 3):
        with monkeypatch.context() as patch:
            patch.setattr(MetricsLog, "add", dies_at(line, MetricsLog.add))
            with pytest.raises(Died):
                run("died", resume=True, save_steps=1)
    run("died", resume=True, save_steps=1)
    same_runs(tmp_path / "whole", tmp_path / "died")


DRIVER = """
import sys, time
from rectune.training import checkpoint as checkpoints
from rectune.config import TrainConfig
write = checkpoints.fsync
def slow(path):
    if path.name == "moments.safetensors" and "000004" in str(path):
        print("writing", flush=True)
        time.sleep(60)
    write(path)
checkpoints.fsync = slow
from rectune.training import drift
drift.NEW_TOKENS = (8, 256)  # as in conftest.py
from rectune.training.trainer import train
train(TrainConfig.model_validate_json(sys.stdin.read()))
"""


@pytest.mark.slow
def test_kill_9_while_a_checkpoint_is_written(
    run: Any, whole: Path, toy: dict[str, Any], tmp_path: Path
) -> None:
    config = load_config(None, {**toy, "output_dir": tmp_path / "died", "save_steps": 2})
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(dump_config(config))
        process.stdin.close()
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=20) == -signal.SIGKILL
    found = checkpoints.list_checkpoints(tmp_path / "died" / "checkpoints")
    assert [path.name for path in found] == ["step-000002"]
    run("died", resume=True, save_steps=2)
    same_runs(whole, tmp_path / "died")


def test_with_nothing_there_it_starts_afresh(run: Any, whole: Path, tmp_path: Path) -> None:
    run("new", resume=True)
    same_runs(whole, tmp_path / "new")


def test_a_finished_run_is_left_alone(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with caplog.at_level("INFO", "rectune"):
        assert run(resume=True) == result
    assert "the run is finished" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_a_folder_with_a_run_needs_resume_and_the_same_settings(run: Any, tmp_path: Path) -> None:
    run(save_steps=2)
    with pytest.raises(UserError, match="run: the folder already has a run; continue with --resume"):
        run(save_steps=2)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError) as caught:
        run(resume=True, save_steps=2, seed=1, objective="sft")
    assert (
        "the run cannot be resumed with other settings: min_eos_weight was 1.0, is 0.0, objective was"
        in str(caught.value)
    )
    assert "seed was 0, is 1" in str(caught.value)
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "run", moved)
    run("moved", resume=True, save_steps=3, save_total_limit=1)  # these do not change the result


def test_other_rows_are_refused(run: Any, toy: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    shutil.copy(toy["data"], data)
    run(data=str(data), save_steps=2)
    (tmp_path / "run" / "summary.json").unlink()
    data.write_text(data.read_text().replace("7 and 0?", "7 and 9?"))
    with pytest.raises(UserError, match=r"rows.jsonl: the rows have changed since the run began \(32 rows"):
        run(resume=True, data=str(data), save_steps=2)


def test_a_mistake_in_the_data_leaves_no_run_behind(run: Any, toy: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run(data="nothing.jsonl")
    run()


@pytest.mark.parametrize("file", ["weights.safetensors", "moments.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(
    run: Any, whole: Path, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    run("died", save_steps=2)
    (tmp_path / "died" / "summary.json").unlink()
    folder = tmp_path / "died" / "checkpoints"
    flip(folder / "step-000004" / file)
    run("died", resume=True, save_steps=2)
    assert "step-000004: the checkpoint is damaged" in caplog.text
    same_runs(whole, tmp_path / "died")


def test_only_damaged_checkpoints_are_refused(run: Any, tmp_path: Path) -> None:
    run(save_steps=2)
    (tmp_path / "run" / "summary.json").unlink()
    for step in (2, 4):
        flip(tmp_path / "run" / "checkpoints" / f"step-00000{step}" / "weights.safetensors")
    with pytest.raises(
        UserError, match=r"step-000002: the checkpoint is damaged \(weights.safetensors has another"
    ):
        run(resume=True, save_steps=2)


def test_a_checkpoint_of_another_format(run: Any, tmp_path: Path) -> None:
    run(save_steps=2)
    (tmp_path / "run" / "summary.json").unlink()
    state = tmp_path / "run" / "checkpoints" / "step-000004" / "state.json"
    content = {**json.loads(state.read_text()), "format": 99}
    del content["checksums"]["state.json"]
    content["checksums"]["state.json"] = checkpoints._own_checksum(content)
    state.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"step-000004: the file has format 99, this version reads 1; use the later"
    ):
        run(resume=True, save_steps=2)


def flip(path: Path) -> None:
    """Change a byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(("every", "keep", "kept"), [(1, 3, [3, 4, 5]), (4, 2, [4]), (0, 2, [])])
def test_checkpoints_kept(run: Any, tmp_path: Path, every: int, keep: int, kept: list[int]) -> None:
    run(save_steps=every, save_total_limit=keep)
    found = checkpoints.list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in found] == [f"step-{step:06d}" for step in kept]
