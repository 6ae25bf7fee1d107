"""The run folder: what is in it before, during and after training, and whether a run may start there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rectune.config import TrainConfig, dump_config
from rectune.errors import UserError
from rectune.training.checkpoints import write_text

# Settings that may differ between a run and its continuation, since they do not change its result.
FREE = {"checkpoint_every", "keep_checkpoints", "trackers", "memory_budget"}


def open_run(config: TrainConfig, *, resume: bool) -> None:
    """Make the run folder and write `config.json` and `environment.json`, or check that the run there is the same.

    Raises:
        UserError: The folder holds a run and `resume` is off, or a run with other settings; lists which.
    """
    path = config.out / "config.json"
    if path.exists():
        if not resume:
            raise UserError(
                "already holds a run", where=config.out, hint="go on with --resume, or give another --out"
            )
        _check_same(config, path)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        write_text(path, dump_config(config))
        write_text(config.out / "environment.json", json.dumps(environment(), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=config.out) from None


def _check_same(config: TrainConfig, path: Path) -> None:
    try:
        before: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError:
        raise UserError("is no JSON", where=path, hint="give another --out") from None
    now: dict[str, Any] = json.loads(dump_config(config))
    differing = sorted(
        key for key in before.keys() | now.keys() if key not in FREE and before.get(key) != now.get(key)
    )
    differing = [key for key in differing if key != "out"]  # a moved folder is the same run
    if differing:
        changes = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in differing)
        raise UserError(
            f"cannot go on with other settings: {changes}",
            where=path,
            hint="restore them, or give another --out",
        )


def environment() -> dict[str, Any]:
    """What the figures of a run depend on besides its config; no names of machines or users, no secrets."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {
            name: version(name)
            for name in ("rectune", "torch", "transformers", "accelerate", "datasets", "safetensors")
        },
    }


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write model and tokenizer as one folder that plain `from_pretrained` loads; all of it or nothing."""
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
