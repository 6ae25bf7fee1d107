"""Where figures are logged besides metrics.jsonl: TensorBoard, Weights & Biases and Trackio, through accelerate."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from rectune.config import TrainConfig
from rectune.errors import UserError


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
    return {name: v if isinstance(v, (bool, int, float, str)) else _text(v) for name, v in config}


def _text(value: Any) -> str:
    """As on the command line."""
    if isinstance(value, dict):
        value = tuple(f"{key}={one}" for key, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
