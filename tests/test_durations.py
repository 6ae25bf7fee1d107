"""Times that are printed and written are times that passed: loading is in them, and what a run did before a resume."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rectune.cli.app import main
from rectune.reporting.report import report
from training_runs import make_toy

SLOW = 0.7
"""Seconds that loading a model takes here besides."""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a short run; its model loads slowly."""
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    for room in ("training.trainer", "diagnosis.diagnose", "rl.rl_trainer"):
        module = __import__(f"rectune.{room}", fromlist=["load_model"])
        real = module.load_model
        monkeypatch.setattr(
            module, "load_model", lambda *a, real=real, **k: (time.sleep(SLOW), real(*a, **k))[1]
        )
    settings = make_toy(tmp_path)
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def wall(arguments: list[str]) -> float:
    began = time.perf_counter()
    assert main(arguments) == 0
    return time.perf_counter() - began


def test_a_training_run(toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passed = wall(["train", *toy, "--output-dir", str(tmp_path / "run")])
    said = json.loads(capsys.readouterr().out)
    assert SLOW < said["seconds"] <= passed
    assert said["step_seconds"] < said["seconds"] - SLOW
    cost = report([tmp_path / "run"]).cost[0]
    assert (cost.seconds, cost.step_seconds) == (said["seconds"], said["step_seconds"])


def test_a_resumed_run_has_both_parts(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rectune.config import load_config
    from rectune.training.trainer import train

    words = dict(zip([w[2:].replace("-", "_") for w in toy[::2]], toy[1::2], strict=True))
    config = load_config(None, {**words, "output_dir": tmp_path / "run"})
    began = time.perf_counter()
    first = train(config, until=3)
    second = train(config, resume=True)
    passed = time.perf_counter() - began
    assert SLOW < first.seconds < second.seconds - SLOW
    assert 2 * SLOW < second.seconds <= passed
    assert train(config, resume=True) == second  # as it was said


def test_a_diagnosis(toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags: dict[str, Any] = dict(zip(toy[::2], toy[1::2], strict=True))
    some = [word for name in ("--model", "--data", "--max-length", "--dtype") for word in (name, flags[name])]
    passed = wall(["diagnose", *some, "--output-dir", str(tmp_path / "d")])
    found = json.loads((tmp_path / "d" / "diagnosis.json").read_text())
    assert SLOW < found["seconds"] <= passed
    assert found["seconds_measuring"] < found["seconds"] - SLOW
    shown = " ".join(capsys.readouterr().out.split())
    assert f"s for the pass over rows, {found['seconds']:.0f} s in all" in shown


def test_an_online_run(toy: list[str], tmp_path: Path) -> None:
    (tmp_path / "problems.jsonl").write_text(
        "".join(f'{{"prompt": "{n}?", "answer": "{n}"}}\n' for n in range(4))
    )
    words = ["rl", "--model", str(tmp_path / "model"), "--problems", str(tmp_path / "problems.jsonl")]
    words += [
        "--max-steps",
        "2",
        "--problems-per-step",
        "2",
        "-n",
        "2",
        "--max-new-tokens",
        "4",
        "--dtype",
        "float32",
    ]
    passed = wall([*words, "--output-dir", str(tmp_path / "run")])
    said = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert SLOW < said["seconds"] <= passed and said["step_seconds"] < said["seconds"] - SLOW
