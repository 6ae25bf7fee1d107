"""kill -9 at random moments, again and again, over every verb that runs long: what comes out is what would have.

Run by `make faults`. RECTUNE_FAULTS_SEED repeats the moments of an earlier run (as far as a machine repeats its
timing), RECTUNE_FAULTS_KILLS is how many there are in all.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comparisons import SETTINGS, Task, make_task
from online_runs import REWARDS, yes_no_task
from rectune.config import flag
from training_runs import make_toy, metrics, same_runs

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("RECTUNE_FAULTS_SEED") or random.SystemRandom().randrange(10**6))
KILLS = int(os.environ.get("RECTUNE_FAULTS_KILLS", "50"))
SHARES = {"train": 0.36, "sample": 0.12, "eval": 0.14, "compare": 0.14, "rl": 0.14, "rft": 0.1}
"""Of the kills, by verb."""
SHORT = ("--max-new-tokens", "12", "--sampling-batch-size", "8", "--dtype", "float32")


class Warm:
    """The process of server.py."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RECTUNE_CACHE": str(folder / "cache")}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, argv: list[str], *, kill_after: float | None = None, slow: float = 0.0) -> int:
        """The exit code of one command line, which may be killed after so many seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"argv": argv, "log": str(self.log), "slow": slow, "kill_after": kill_after}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    print(f"\nRECTUNE_FAULTS_SEED={SEED}")
    warm = Warm(tmp_path_factory.mktemp("warm"))
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("task"))


def flags(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (flag(name), str(value))]


def torture(
    warm: Warm, tmp_path: Path, verb: str, command: Callable[[Path], list[str]], again: list[str],
    same: Callable[[Path, Path], None], slow: float = 0.02,
) -> None:  # fmt: skip
    """Runs of a verb killed at random moments, each resumed until it ends; all have to equal one left alone."""
    draw = random.Random(f"{SEED} {verb}")
    whole = tmp_path / "whole"
    assert warm.run(command(tmp_path / "first")) == 0, warm.log.read_text()[-3000:]  # fills caches
    began = time.monotonic()
    assert warm.run(command(whole), slow=slow) == 0
    seconds = time.monotonic() - began
    kills = inside = rounds = 0
    wanted = max(1, round(SHARES[verb] * KILLS))
    while kills < wanted or rounds == 0:
        rounds += 1
        out, more, code = tmp_path / f"killed-{rounds}", list[str](), -signal.SIGKILL
        while code == -signal.SIGKILL:
            last = kills >= wanted  # then it may end
            code = warm.run(
                command(out) + more, slow=slow, kill_after=None if last else draw.uniform(0, 0.8 * seconds)
            )
            kills += code == -signal.SIGKILL
            inside += code == -signal.SIGKILL and any(out.rglob(".step-*"))
            more = again
        assert code == 0, warm.log.read_text()[-3000:]
        same(whole, out)
    print(
        f"{verb}: {kills} kills in {rounds} runs of {seconds:.1f} s, {inside} of them inside a checkpoint write"
    )


def test_train(warm: Warm, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    toy = {**make_toy(tmp_path_factory.mktemp("toy")), "save_steps": 1, "eval_steps": 2, "max_steps": 8}

    def same(one: Path, other: Path) -> None:
        same_runs(one, other)
        assert (one / "token_logprobs.json").read_text() == (other / "token_logprobs.json").read_text()

    torture(
        warm, tmp_path, "train", lambda out: ["train", *flags({**toy, "output_dir": out})], ["--resume"], same
    )


def lines_of(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines())


def test_sample(warm: Warm, tmp_path: Path, task: Task) -> None:
    how = ["--model", task["model"], "--problems", task["inside"], "-n", "16", *SHORT]

    def same(one: Path, other: Path) -> None:
        assert lines_of(one / "samples.jsonl") == lines_of(other / "samples.jsonl")

    def command(out: Path) -> list[str]:
        return ["sample", *how, "--output", str(out / "samples.jsonl")]

    torture(warm, tmp_path, "sample", command, [], same)


def test_eval(warm: Warm, tmp_path: Path, task: Task) -> None:
    how = ["--model", task["model"], "--tasks", task["inside"], "-n", "8", *SHORT]

    def same(one: Path, other: Path) -> None:
        for name in ("samples.jsonl", "graded.jsonl"):
            assert lines_of(one / name) == lines_of(other / name)
        assert (one / "evaluation.json").read_text() == (other / "evaluation.json").read_text()

    def command(out: Path) -> list[str]:
        return ["eval", *how, "--output-dir", str(out)]

    torture(warm, tmp_path, "eval", command, [], same)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name != "seconds"}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def test_compare(warm: Warm, tmp_path: Path, task: Task) -> None:
    settings = {**SETTINGS, "model": task["model"], "data": task["data"], "save_steps": 2}
    asked = {"tasks_in": task["inside"], "max_new_tokens": 6, "limit": 8, "race": "50steps"}

    def command(out: Path) -> list[str]:
        given = flags({**settings, **asked, "output_dir": out})
        return ["compare", "--objectives", "sft,dft", "-n", "2", *given]

    def same(one: Path, other: Path) -> None:
        first, second = (json.loads((out / "comparison.json").read_text()) for out in (one, other))
        assert without_times(first) == without_times(second)
        runs = sorted(path.parent.relative_to(one) for path in one.rglob("summary.json"))
        assert runs
        for run in runs:
            same_runs(one / run, other / run)

    torture(warm, tmp_path, "compare", command, [], same, slow=0.005)


def test_rl(warm: Warm, tmp_path: Path, task: Task) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    settings = {
        "model": task["model"], "problems": task["inside"], "reward": f"{tmp_path / 'rewards.py'}:even", "max_steps": 6,
        "problems_per_step": 2, "num_samples": 4, "max_new_tokens": 12, "learning_rate": 3e-3, "dtype": "float32",
        "save_steps": 1, "save_rollout_steps": 1,
    }  # fmt: skip

    def same(one: Path, other: Path) -> None:
        same_runs(one, other)
        assert any(line["updates"] for line in metrics(one, "train"))

    def command(out: Path) -> list[str]:
        return ["rl", *flags({**settings, "output_dir": out})]

    torture(warm, tmp_path, "rl", command, ["--resume"], same)


def test_rft(warm: Warm, tmp_path: Path) -> None:
    settings = {**yes_no_task(tmp_path), "max_steps": 6}

    def same(one: Path, other: Path) -> None:
        assert lines_of(one / "samples.jsonl") == lines_of(other / "samples.jsonl")
        assert lines_of(one / "rows.jsonl") == lines_of(other / "rows.jsonl")
        same_runs(one / "train", other / "train")

    def command(out: Path) -> list[str]:
        return ["rft", *flags({**settings, "output_dir": out})]

    torture(warm, tmp_path, "rft", command, ["--resume"], same)
