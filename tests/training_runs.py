"""A toy to train on, and what tests read from a run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rectune.objective_spec import column_names
from rectune.objectives import OBJECTIVES
from toys import save_toy

FIXED = ("dft:signal=base", "dft:shuffled", "cadft:signal=base:shuffled")
OVER_ROWS = [*(name for name in OBJECTIVES if "pair" not in column_names(name)), *FIXED]
"""Objectives that train on rows, some with weights from elsewhere; DPO has tests of its own."""


def metrics(out: Path | str, kind: str | None = None) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl`, of one kind or of all."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


TIMINGS = {
    "seconds", "seconds_sampling", "seconds_grading", "seconds_training", "tokens_per_second", "peak_memory_mib",
}  # fmt: skip


def without_timings(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def weights(out: Path | str, name: str = "model/model.safetensors") -> dict[str, Tensor]:
    """The tensors that a run saved."""
    return load_file(Path(out) / name)


def make_toy(folder: Path) -> dict[str, Any]:
    """Settings of a short run in float32, without `out`: a two-layer model in a local folder and forty short sums."""
    save_toy(folder / "model")
    rows = [{"prompt": f"{n} and {n % 7}?", "completion": f"{n + n % 7}{'!' * (n % 5)}"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(folder / "model"),
        "data": str(folder / "rows.jsonl"),
        "max_steps": 6,
        "batch_size": 7,
        "max_length": 64,
        "tokens_per_micro_batch": 96,
        "learning_rate": 3e-3,
        "dtype": "float32",
        "eval_split_size": 0.2,
    }


def same_runs(one: Path, other: Path) -> None:
    """Two finished runs have the same metrics but for timings, figures and rollouts and, to the bit, weights."""
    assert without_timings(metrics(one)) == without_timings(metrics(other))
    first, second = (json.loads((out / "summary.json").read_text()) for out in (one, other))
    assert all(first.get(name) == second.get(name) for name in ("before", "after", "validation", "steps"))
    rollouts = [[path.read_text() for path in sorted(out.glob("rollouts/*"))] for out in (one, other)]
    assert rollouts[0] == rollouts[1]
    files = [p.relative_to(one) for p in one.glob("[!.]*/*.safetensors")]
    assert files
    for file in files:
        ours, theirs = weights(one, str(file)), weights(other, str(file))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), f"{file} differs"


_DRIVER = """
import json, logging, os, sys
from rectune.config import load_config
from rectune.runtime.distributed import exit_process
from rectune.training.trainer import train
logging.basicConfig(level=logging.INFO, format="%(message)s")
runs, until = json.load(open(sys.argv[1]))
for settings, sharded in runs:
    os.environ |= {"ACCELERATE_USE_FSDP": str(sharded).lower(), "FSDP_VERSION": "2"}
    train(load_config(None, settings), resume=True, until=until)
exit_process(0)
"""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
"""Followed by how many processes, and what they run."""


def together(
    runs: Sequence[dict[str, Any]],
    sharded: Sequence[bool],
    folder: Path,
    *,
    processes: int = 2,
    until: int | None = None,
    timeout: int = 180,
    first: str = "",
) -> str:
    """Train these runs one after the other in several processes, with weights sharded or not; returns their log.

    `first` is Python that each process runs before.
    """
    both = list(zip(runs, sharded, strict=True))
    (folder / "runs.json").write_text(json.dumps([both, until], default=str))
    (folder / "driver.py").write_text(first + _DRIVER)
    settings = {"OMP_NUM_THREADS": "1"}
    if torch.cuda.device_count() < processes:
        settings["CUDA_VISIBLE_DEVICES"] = ""  # on the CPU, then
    done = subprocess.run(
        [*TORCHRUN, str(processes), str(folder / "driver.py"), str(folder / "runs.json")],
        timeout=timeout, env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    sys.stderr.write(done.stderr)
    done.check_returncode()
    return done.stderr


class Died(BaseException):
    """Stands in for kill -9: nothing in the code under test catches it, and nothing is tidied up."""


def dies_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Died
        return function(*args, **kwargs)

    return dying
