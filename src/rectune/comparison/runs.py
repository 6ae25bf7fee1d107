"""Carrying out one run of a comparison, or a part of it, and putting away what is no longer needed.

A run that is finished, or paused where it should be, is left alone without loading a model; one that was killed
goes on from its last checkpoint (`training/loop.py`).
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

from rectune.config import TrainConfig
from rectune.training.loop import train


def is_trained(folder: Path) -> bool:
    """Whether the run in this folder is finished."""
    return (folder / "summary.json").is_file()


def train_run(config: TrainConfig, *, until: int | None = None) -> None:
    """Train to the end, or pause after step `until`; the checkpoints of a finished run are removed."""
    if not is_trained(config.out):
        train(config, resume=True, until=until)
        gc.collect()  # the model of this run, before the next one's
    if is_trained(config.out):
        shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
