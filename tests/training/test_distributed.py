"""Several processes on this machine: every objective, plain and sharded, other numbers of them, losses and restarts.

Takes minutes: `make distributed`. What two processes do at all is in `test_gradients.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from rectune.config import load_config
from rectune.objective_spec import column_names
from rectune.objectives import OBJECTIVES
from rectune.training import trainer as loop
from training_runs import OVER_ROWS, TORCHRUN, metrics, together, weights, without_timings

pytestmark = pytest.mark.distributed

# torchrun of torch 2.13 hands a restarted worker the addresses of the dead one, unless each attempt has its own store.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.fixture
def pairs(toy: dict[str, Any], tmp_path: Path) -> str:
    """A file of pairs for the toy."""
    lines = [
        {"prompt": f"{n}+1?", "chosen": f"{n + 1}", "rejected": f"{n}{'?' * (n % 3)}"} for n in range(20)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def update(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """What a run added to the weights it began with."""
    lora = "lora_r" in settings
    file = "adapter/adapter_model.safetensors" if lora else "model/model.safetensors"
    start = {} if lora else weights(settings["model"], "model.safetensors")
    return {name: tensor - start.get(name, 0) for name, tensor in weights(out, file).items()}


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    off = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return (off / sum(float(tensor.square().sum()) for tensor in other.values())) ** 0.5


def test_every_objective_in_four_processes(toy: dict[str, Any], pairs: str, tmp_path: Path) -> None:
    """Uneven batches too: three processes of four have nothing to do in the last of 29 rows."""
    base = {
        **toy,
        "max_steps": None,
        "num_train_epochs": 1,
        "drift_rows": 0,
        "save_steps": 0,
        "tokens_per_micro_batch": 64,
    }
    base |= {"eval_split_size": 0.1, "old_policy_interval": 2}
    cases: list[dict[str, Any]] = [{"objective": name} for name in OVER_ROWS]
    cases += [{"objective": name, "data": pairs} for name in OBJECTIVES if "pair" in column_names(name)]
    cases += [{"lora_r": 2, "objective": name} for name in ("dft", "asft", "iw_sft")]
    cases += [{"objective": "dft", "batch_size": 1, "max_steps": 3}]
    cases += [{"objective": "sft", "normalization": "micro-batch", "per_device_train_batch_size": 3}]
    cases += [{"objective": "dft", "gradient_checkpointing": True}]
    runs = [{**base, **case} for case in cases]
    ways = [(run, sharded) for run in runs for sharded in (False, True)]
    many = [{**run, "output_dir": str(tmp_path / f"four {i}")} for i, (run, _) in enumerate(ways)]
    together(many, [sharded for _, sharded in ways], tmp_path, processes=4, timeout=1200)
    for i, run in enumerate(runs):
        one = tmp_path / f"one {i}"
        loop.train(load_config(None, {**run, "output_dir": one}))
        for way in (2 * i, 2 * i + 1):
            out = tmp_path / f"four {way}"
            lines = metrics(one, "train"), metrics(out, "train")
            assert len(lines[0]) == len(lines[1])
            for ours, theirs in zip(*lines, strict=True):
                for key in {"objective", "nll", "grad_norm", "supervised"} & ours.keys():
                    assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-6), (ways[way], key)
            assert difference(update(run, out), update(run, one)) < 1e-2, ways[way]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_goes_on_in_any_number_of_processes(
    toy: dict[str, Any], tmp_path: Path, precision: str
) -> None:
    """One, then four sharded, then two plain, then one again: as one process without a stop."""
    settings = {**toy, "max_steps": 8, "dtype": precision, "drift_rows": 0, "save_steps": 2}
    whole, parts = tmp_path / "whole", {**settings, "output_dir": str(tmp_path / "parts")}
    loop.train(load_config(None, {**settings, "output_dir": whole}))
    loop.train(load_config(None, parts), until=2)
    together([parts], [True], tmp_path, processes=4, until=4, timeout=600)
    together([parts], [False], tmp_path, processes=2, until=6, timeout=600)
    loop.train(load_config(None, parts), resume=True)
    ours, theirs = metrics(tmp_path / "parts"), metrics(whole)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(without_timings(ours), without_timings(theirs), strict=True):
        for key in {"nll", "grad_norm", "mean_p"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-3 if precision == "float32" else 0.05)
    limit = 1e-2 if precision == "float32" else 0.2
    assert difference(update(settings, tmp_path / "parts"), update(settings, whole)) < limit


def children(of: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(of)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def started(toy: dict[str, Any], out: Path, *torchrun: str) -> subprocess.Popen[str]:
    """A long run in two processes, by the command line."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in toy.items()]
    command = [
        *TORCHRUN,
        "2",
        *torchrun,
        "-m",
        "rectune.cli.app",
        "train",
        *flags,
        "--output-dir",
        str(out),
        "--resume",
    ]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def wait_for_steps(out: Path, steps: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(metrics_so_far(out)) < steps:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def metrics_so_far(out: Path) -> list[str]:
    return [line for line in (out / "metrics.jsonl").read_text().splitlines() if '"train"' in line]


LONG = {"max_steps": 4000, "drift_rows": 0, "save_steps": 10}


def test_a_lost_process_ends_the_others_with_one_line(toy: dict[str, Any], tmp_path: Path) -> None:
    process = started({**toy, **LONG}, tmp_path / "run")
    wait_for_steps(tmp_path / "run", 15, process)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=90)
    assert process.returncode != 0
    assert time.monotonic() - began < 60
    assert "rectune: another process of this command has ended" in said or "finishing this step" in said, said


def test_torchrun_starts_again_and_the_run_goes_on(toy: dict[str, Any], tmp_path: Path) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    settings = {**toy, "max_steps": 120, "drift_rows": 0, "save_steps": 10}
    process = started(settings, out, "--max-restarts", "2")
    wait_for_steps(out, 25, process)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "resuming from" in said
    loop.train(load_config(None, {**settings, "output_dir": whole}))
    assert difference(update(settings, out), update(settings, whole)) < 1e-2


SMALL = """
import torch
from rectune.models.scorer import Scorer

hidden = Scorer.hidden

def limited(self, batch):
    states = hidden(self, batch)
    if torch.is_grad_enabled() and sum(batch.row_lengths) > 40 and torch.distributed.get_rank() == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return states

Scorer.hidden = limited
"""
"""The second process has less memory."""


def test_where_weights_are_sharded_memory_that_ran_out_is_remembered(
    toy: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        **toy,
        "max_steps": 6,
        "drift_rows": 0,
        "save_steps": 2,
        "output_dir": str(tmp_path / "little"),
    }
    said = last = ""
    for _ in range(8):  # halved at each start, until it fits
        try:
            last = together([settings], [True], tmp_path, first=SMALL)
        except subprocess.CalledProcessError as error:
            said += error.stderr
        else:
            break
    whole = tmp_path / "whole"
    loop.train(load_config(None, {**settings, "output_dir": whole}))
    assert "out of memory at" in said and "start again with --resume" in said
    assert "more did not fit into memory" in last
    assert (
        json.loads((tmp_path / "little" / "micro_batch_limit-1.json").read_text())["micro_batch_tokens"] <= 48
    )
    assert [line["step"] for line in metrics(tmp_path / "little", "train")] == [1, 2, 3, 4, 5, 6]
    assert difference(update(settings, tmp_path / "little"), update(settings, whole)) < 1e-2


def test_sampling_and_evaluation_share_the_problems(toy: dict[str, Any], tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(json.dumps({"prompt": f"{n}+2?", "answer": str(n + 2)}) + "\n" for n in range(7))
    )
    common = ["--model", toy["model"], "-n", "3", "--max-new-tokens", "12", "--dtype", "float32"]
    files = {}
    for number in (1, 3):
        out = tmp_path / f"by {number}"
        run = [*TORCHRUN, str(number), "-m", "rectune.cli.app"]
        subprocess.run(
            [*run, "sample", "--problems", str(problems), "--output", str(out / "s.jsonl"), *common],
            env=ENVIRONMENT, check=True, timeout=180,
        )  # fmt: skip
        done = subprocess.run(
            [*run, "eval", "--tasks", str(problems), "--output-dir", str(out), *common, "--json"],
            env=ENVIRONMENT, check=True, timeout=180, capture_output=True, text=True,
        )  # fmt: skip
        assert len(json.loads(done.stdout)) == 1  # one of the processes speaks
        lines = [sorted((out / name).read_text().splitlines()) for name in ("s.jsonl", "graded.jsonl")]
        files[number] = (lines, json.loads((out / "evaluation.json").read_text()))
        assert not list(out.glob(".*.part"))
    assert files[1] == files[3]
