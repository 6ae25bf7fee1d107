"""A comparison that is killed again and again ends as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from comparisons import SETTINGS, Task, compare_task
from rectune.config import flag

MOMENTS = (
    "runs/base/evaluation/samples.jsonl",
    "runs/dft/seed-0/validation-3/samples.jsonl",
    "runs/dft/seed-0/at-0.5/evaluation/samples.jsonl",
    "runs/base/matched-dft/match.json",
)
HOW = {"limit": 4, "race": "50steps", "interpolate": "0.5"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name != "seconds"}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def killed_at(command: list[str], file: Path, pause: float) -> None:
    """Start, and kill -9 some time after this file has appeared."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=subprocess.PIPE, env=environment) as process:
        until = time.monotonic() + 120
        while not file.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(pause)
        assert process.poll() is None, (
            f"ended by itself before {file}: {process.communicate()[1].decode()[-2000:]}"
        )
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.faults
def test_kill_9_at_any_moment(task: Task, tmp_path: Path) -> None:
    whole = compare_task(task, tmp_path / "whole", "sft,dft", **HOW)
    out = tmp_path / "killed"
    settings = {**SETTINGS, "model": task["model"], "data": task["data"], "output_dir": out, **HOW}
    asked = {"tasks_in": task["inside"], "tasks_out": task["outside"], "max_new_tokens": 6}
    flags = [part for name, value in {**settings, **asked}.items() for part in (flag(name), str(value))]
    command = [
        sys.executable,
        "-m",
        "rectune.cli.app",
        "compare",
        "--objectives",
        "sft,dft",
        "-n",
        "2",
        *flags,
    ]
    pauses = random.Random()  # any moment will do
    for moment in MOMENTS:
        killed_at(command, out / moment, pauses.uniform(0, 0.2))
    record = compare_task(task, out, "sft,dft", **HOW)
    assert without_times(record) == without_times(whole)
    assert not list(out.rglob("at-0.5/*model*"))
    assert json.loads((out / "comparison.json").read_text()) == record
