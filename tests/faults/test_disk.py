"""A full or read-only disk, a lock, a clock: one clear line, and the last good checkpoint is there and used."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rectune.data.schema import Problem, Turn
from rectune.errors import UserError
from rectune.grading.files import grade
from rectune.runtime.io import lock, translate_disk_errors
from rectune.sampling.sample import sample
from rectune.sampling.types import EngineSpec, SamplingParams
from rectune.training import checkpoint as checkpoints
from rectune.training import trainer as loop
from rectune.training.metrics_log import MetricsLog
from training_runs import metrics, same_runs


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes: the write that would fails halfway, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_at(call: int, function: Callable[..., Any], size: Callable[[], int]) -> Callable[..., Any]:
    """`function`, in whose given call (from 1) the disk is full."""
    calls = 0

    def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return function(*args, **kwargs)
        with files_of_at_most(size()):
            return function(*args, **kwargs)

    return limited


LATER = [
    (checkpoints, "save_checkpoint", 2, 20),
    (loop, "save_model", 1, 1000),
    (loop, "save_model", 1, 60_000),
    (loop, "write_record", 1, 10),
]


@pytest.mark.parametrize(
    ("owner", "name", "call", "bytes_left"),
    [
        *[(checkpoints, "save_checkpoint", 2, 60_000), (MetricsLog, "add", 6, 100)],
        *[pytest.param(*one, marks=pytest.mark.faults) for one in LATER],
    ],
)
def test_a_full_disk(
    run: Any,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    bytes_left: int,
) -> None:
    out = tmp_path / "run"

    def size() -> int:
        return bytes_left + ((out / "metrics.jsonl").stat().st_size if name == "add" else 0)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_at(call, getattr(owner, name), size))
        with pytest.raises(
            UserError, match=r"cannot be written \(File too large\); free some space, then"
        ) as caught:
            run()
    assert "\n" not in str(caught.value)
    found = checkpoints.list_checkpoints(out / "checkpoints")
    assert found and not any(map(checkpoints._damage, found))
    assert not [path for path in out.rglob(".*") if path.name != ".lock"], "what was begun takes no room"
    run(resume=True)
    same_runs(whole, out)


def test_a_full_disk_under_samples(toy: dict[str, Any], tmp_path: Path) -> None:
    problems = [Problem(f"{n}", (Turn("user", f"{n}?"),), "1", "exact") for n in range(6)]
    params, engine = SamplingParams(max_new_tokens=4), EngineSpec(dtype="float32")
    how: dict[str, Any] = {"num_samples": 1, "params": params, "engine": engine}
    whole, cut = (
        sample(toy["model"], problems[:count], out=tmp_path / f"{count}", **how) for count in (6, 2)
    )
    words = r"2: the file cannot be written \(File too"
    with files_of_at_most(cut.stat().st_size + 200), pytest.raises(UserError, match=words):
        sample(toy["model"], problems, out=cut, **how)
    sample(toy["model"], problems, out=cut, **how)
    assert sorted(cut.read_text().splitlines()) == sorted(whole.read_text().splitlines())


def test_a_folder_that_cannot_be_written(run: Any) -> None:
    with pytest.raises(UserError, match=r"^/proc/rectune: the folder cannot be written \("):
        run("/proc/rectune")


def test_other_errors_stay_what_they_are() -> None:
    for error in (FileNotFoundError(2, "no such file"), ValueError("os error"), UserError("(os error 28)")):
        with pytest.raises(type(error)) as caught, translate_disk_errors("out"):
            raise error
        assert caught.value is error
    words = r"^out: the file cannot be written \(No space left on device\); free some space, then run"
    with pytest.raises(UserError, match=words), translate_disk_errors("out"):
        raise RuntimeError("while serializing: I/O error: No space left on device (os error 28)")


HOLDER = """
import os, sys, time
from pathlib import Path
from rectune.runtime.io import lock
with lock(Path(sys.argv[1]), "training"):
    if os.fork() == 0:
        os.close(1)
        time.sleep(60)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_two_processes_in_one_folder(run: Any, whole: Path, tmp_path: Path) -> None:
    """The second is refused; once the first is killed nothing blocks, not even a process that it forked."""
    out = tmp_path / "run"
    arguments = [sys.executable, "-c", HOLDER, str(out)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        assert first.stdout is not None
        pid = first.stdout.readline().strip()
        try:
            with pytest.raises(
                UserError, match=rf"run: another process \(process {pid}\) is training in this folder;"
            ):
                run()
            assert not (out / "config.json").exists()
            first.kill()
            first.wait()
            run()
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    same_runs(whole, out)


def test_two_processes_on_one_file_of_answers(tmp_path: Path) -> None:
    samples, graded = tmp_path / "samples.jsonl", tmp_path / "graded.jsonl"
    samples.write_text('{"answer": "1", "text": "1", "grader": "exact"}\n')
    with graded.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"graded.jsonl: another process is writing to this file"):
            grade(samples, graded, grading_workers=1)


def test_one_process_holds_a_folder_once(tmp_path: Path) -> None:
    with lock(tmp_path / "a", "training"):
        with lock(tmp_path / "b", "training"):
            pass
        with (
            pytest.raises(UserError, match=r"another process .*is training"),
            lock(tmp_path / "a" / ".", "training"),
        ):
            pass
    with lock(tmp_path / "a", "training"):
        pass


@pytest.mark.faults
def test_a_clock_that_jumps(run: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the time of day nor the files' times decide anything."""
    out = tmp_path / "run"
    run(until=5)
    newest_first = sorted((out / "checkpoints").iterdir(), reverse=True)
    for age, checkpoint in enumerate(newest_first):
        os.utime(checkpoint, (1e9 + age, 1e9 + age))
    now = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    run(resume=True)
    same_runs(whole, out)


def test_half_written_lines_of_metrics(
    run: Any, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    run(until=3)
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:-20] + "\n" + "".join(lines[1:]) + '{"step": 4, "kind": "tr')
    run(resume=True)
    assert caplog.text.count("metrics.jsonl: an incomplete line was removed") == 2
    same_runs(whole, out)
    assert [line["step"] for line in metrics(out, "train")] == [1, 2, 3, 4, 5, 6]
    assert json.loads(path.read_text().splitlines()[0])["step"] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skips where this process may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    asked = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(asked, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.faults
def test_a_disk_that_is_really_full(run: Any, whole: Path, small_disk: Path) -> None:
    """Room is taken away between two checkpoints; once it is given back the run resumes."""
    out, ballast = small_disk / "run", small_disk / "ballast"
    run(str(out), until=2)
    ballast.write_bytes(bytes(int(shutil.disk_usage(small_disk).free * 0.7) // 4096 * 4096))
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\); free some space"
    ) as caught:
        run(str(out), resume=True)
    assert "\n" not in str(caught.value)
    assert checkpoints.last_good_checkpoint(out / "checkpoints") is not None
    ballast.unlink()
    run(str(out), resume=True)
    same_runs(whole, out)


@pytest.mark.faults
def test_a_disk_that_became_read_only(run: Any, small_disk: Path) -> None:
    run(str(small_disk / "run"), until=2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"disk/run: the file cannot be written \(Read-only file system\)"):
        run(str(small_disk / "run"), resume=True)
