"""Ctrl-C and SIGTERM finish the step, write a checkpoint and say how to resume; a second Ctrl-C stops at once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rectune.cli.app import main
from rectune.config import flag
from rectune.grading import files
from rectune.runtime.signals import Stopped
from rectune.sampling.sample import SamplesFile
from rectune.training.accumulation import Gradients
from rectune.training.checkpoint import list_checkpoints
from training_runs import same_runs

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell starts what it puts into the background deaf to Ctrl-C, and so would be these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def signals_at(call: int, function: Callable[..., Any], *numbers: int) -> Callable[..., Any]:
    """`function`, in whose given call (from 1) this process gets signals."""
    calls = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for number in numbers:
                os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return interrupted


def command(toy: dict[str, Any], out: Path, *more: str) -> list[str]:
    settings = {**toy, "output_dir": out}.items()
    return ["train", *(part for name, value in settings for part in (flag(name), str(value))), *more]


@pytest.mark.parametrize(
    ("number", "code"), [SIGNALS[0], pytest.param(*SIGNALS[1], marks=pytest.mark.faults)]
)
def test_training_stops_after_the_step(
    toy: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], number: int, code: int,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    before = [signal.getsignal(one) for one, _ in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(Gradients, "accumulate", signals_at(3, Gradients.accumulate, number))
        assert main(command(toy, out)) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"rectune: {out}: stopped at step 3 of 6; resume it with --resume"
    assert list_checkpoints(out / "checkpoints")[-1].name == "step-000003"
    assert [signal.getsignal(one) for one, _ in SIGNALS] == before
    assert main(command(toy, out, "--resume")) == 0
    same_runs(whole, out)


@pytest.mark.parametrize(("call", "numbers", "settings", "words", "kept"), [
    (4, (signal.SIGTERM, signal.SIGTERM, signal.SIGINT), {}, "at once", "step-000002"),
    # what called `train`, such as a comparison, does not continue
    (6, (signal.SIGINT,), {}, "step 6 of 6 is done and saved", None),
    # without checkpoints one is written
    pytest.param(1, (signal.SIGTERM,), {"save_steps": 0}, "stopped at step 1 of 6", "step-000001",
                 marks=pytest.mark.faults),
])  # fmt: skip
def test_a_second_ctrl_c_the_last_step_and_no_checkpoints(
    run: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    call: int, numbers: tuple[int, ...], settings: dict[str, Any], words: str, kept: str | None,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Gradients, "accumulate", signals_at(call, Gradients.accumulate, *numbers))
        with pytest.raises(Stopped, match=words):
            run(**settings)
    if kept is not None:
        assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == kept
        run(resume=True)
    same_runs(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(*SIGNALS[0], marks=pytest.mark.faults), SIGNALS[1]]
)
def test_sampling_and_grading_keep_what_they_have(
    toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], number: int, code: int,
) -> None:  # fmt: skip
    problems, samples, graded = (tmp_path / f"{name}.jsonl" for name in ("problems", "samples", "graded"))
    lines = [json.dumps({"prompt": f"{n}?", "answer": "1", "grader": "exact"}) + "\n" for n in range(8)]
    problems.write_text("".join(lines))
    short = ["-n", "1", "--max-new-tokens", "4", "--sampling-batch-size", "2", "--dtype", "float32"]
    ask = ["sample", "--model", toy["model"], "--problems", str(problems), "--output", str(samples), *short]
    grade = ["grade", str(samples), "--output", str(graded), "--grading-workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(SamplesFile, "append", signals_at(3, SamplesFile.append, number))
        assert main(ask) == code
    assert f"rectune: {samples}: 2 of 8 samples are there; run it again to resume" in capsys.readouterr().err
    assert [line[-1:] for line in samples.read_bytes().splitlines()] == [b"}", b"}"]
    assert main(ask) == 0
    with monkeypatch.context() as patch:
        patch.setattr(files, "_with_verdict", signals_at(5, files._with_verdict, number))
        assert main(grade) == code
    assert f"rectune: {graded}: 4 lines are graded; run it again, it resumes" in capsys.readouterr().err
    assert main(grade) == 0
    assert len(graded.read_text().splitlines()) == 8
