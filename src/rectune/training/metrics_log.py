"""metrics.jsonl of a run, the trackers that get the same figures (TensorBoard, Weights & Biases, Trackio), and what of
it goes into summary.json.

Which figures there are is in `metrics.py`, `drift.py` and `rl/rollout.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from rectune.config import TrainConfig, typed
from rectune.data.readers import read_jsonl
from rectune.errors import UserError
from rectune.records import MetricsLine, RunSummary, parse_line
from rectune.runtime.io import fsync, to_json, write_text

log = logging.getLogger("rectune")


class MetricsLog:
    """The metrics of a run; in the first of several processes they are written.

    Args:
        path: metrics.jsonl.
        accelerator: Its trackers get the figures too.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator

    def add(self, line: MetricsLine) -> None:
        """Append a line, and log its numbers as KIND/NAME."""
        figures = line.to_dict()
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(to_json(figures) + "\n")
        if self.accelerator.trackers:
            numbers = {f"{line.kind}/{k}": v for k, v in figures.items() if isinstance(v, (int, float))}
            self.accelerator.log(numbers, step=line.step)

    def read(self, kind: str) -> list[MetricsLine]:
        """The lines of one kind."""
        lines = (
            parse_line(
                MetricsLine, line, "a line of metrics", f"{self.path}:{number}", "training writes them"
            )
            for number, line in read_jsonl(self.path)
        )
        return [line for line in lines if line.kind == kind]

    def truncate(self, step: int) -> None:
        """Drop the lines after `step`, which a killed run wrote after its last checkpoint, and torn ones."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                log.warning("%s: an incomplete line was removed", self.path)
        write_text(self.path, "".join(kept))

    def sync(self) -> None:
        """Wait until all lines are on the disk: a power cut must not leave fewer lines than steps."""
        fsync(self.path)


def totals(out: Path, steps: int, lines: Sequence[MetricsLine], seconds: float) -> RunSummary:
    """What every summary of a run says, from the lines of its steps."""
    step_seconds = sum(line.seconds for line in lines)
    tokens = sum(line.tokens for line in lines)
    return RunSummary(
        out=str(out),
        steps=steps,
        tokens_per_second=tokens / step_seconds if step_seconds else 0.0,
        peak_memory_mib=max((line.peak_memory_mib for line in lines), default=0.0),
        seconds=round(seconds, 3),
        step_seconds=step_seconds,
    )


def check_trackers(names: Sequence[str]) -> None:
    """Raise `UserError` for a tracker that is not installed: nobody wants to find out at the end of a run."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"{name} is not installed", where="report_to", hint=f"pip install {name}")


def make_trackers(config: TrainConfig) -> list[GeneralTracker]:
    """The run's trackers, not started yet. TensorBoard's files go to logging_dir/project/run_name."""
    project, name = config.project, config.run_name or config.output_dir.resolve().name
    folder = config.logging_dir or config.output_dir
    own = {} if config.logging_dir is None else {"dir": str(folder)}
    made: dict[str, GeneralTracker] = {
        "tensorboard": TensorBoardTracker(f"{project}/{name}", str(folder)),
        "wandb": WandBTracker(project, name=name, **own),
        "trackio": TrackioTracker(project, name=name),
    }
    return [made[name] for name in dict.fromkeys(config.report_to)]


def start_trackers(accelerator: Accelerator, config: TrainConfig, step: int) -> None:
    """Start all of them; what was logged beyond `step`, from which the run resumes, is taken back in TensorBoard."""
    if config.logging_dir is not None and accelerator.is_main_process:
        config.logging_dir.mkdir(parents=True, exist_ok=True)
    for tracker in accelerator.log_with:
        if isinstance(tracker, TensorBoardTracker):
            tracker.init_kwargs["purge_step"] = step + 1
    accelerator.init_trackers(config.project, hyperparameters(config))


def hyperparameters(config: TrainConfig) -> dict[str, int | float | str]:
    """Every setting by its name, numbers and switches as such; what is no number or text becomes text."""
    return {name: v if isinstance(v, (bool, int, float, str)) else typed(v) for name, v in config}
