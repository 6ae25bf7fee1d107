"""Checkpoints that a killed run goes on from, bit for bit: written aside, then renamed.

A checkpoint holds float32 masters and AdamW's moments as safetensors (no pickle) and `state.json`. Nothing else
is needed: row order, dropout and schedule are functions of seed and step. The lines of `metrics.jsonl`
that a killed run wrote after its last checkpoint are taken back when it goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rectune.errors import UserError

FORMAT = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: after a crash it has its old content or the new one."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    _sync(aside)
    aside.replace(path)


def save_checkpoint(
    folder: Path,
    step: int,
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write `folder/step-N` atomically and remove all but the `keep` newest.

    Args:
        folder: The run's `checkpoints` folder.
        step: Steps done.
        masters: Name to master weight.
        optimizer: AdamW over just these.
        extra: Further named sets of tensors, a file each.
        state: JSON values to be handed back.
    """
    target = folder / f"step-{step:06d}"
    aside = folder / f".{target.name}.new"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    moments = {
        f"{kind}.{name}": optimizer.state[master][kind]
        for name, master in masters.items()
        for kind in _MOMENTS
        if master in optimizer.state
    }
    for file, tensors in {"weights": masters, "moments": moments, **extra}.items():
        save_file({n: t.data.contiguous() for n, t in tensors.items()}, aside / f"{file}.safetensors")
        _sync(aside / f"{file}.safetensors")
    (aside / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}))
    _sync(aside / "state.json")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    _sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob("step-*/state.json"))


def load_checkpoint(
    folder: Path,
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Copy a checkpoint into existing tensors (their memory stays where it is, for the sake of equal bits).

    Returns:
        The `state` it was saved with, and `step`.

    Raises:
        UserError: Damaged, from another format version, or of another model.
    """
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    if state["format"] != FORMAT:
        raise UserError(
            f"checkpoint of format {state['format']}, this version reads {FORMAT}",
            where=folder,
            hint="train with the rectune version that wrote it, or start afresh in another folder",
        )
    step = torch.tensor(float(state["step"]))
    for master in masters.values():
        optimizer.state[master] = {
            "step": step.clone(),
            **{kind: torch.zeros_like(master) for kind in _MOMENTS},
        }
    moments = {
        f"{kind}.{name}": optimizer.state[master][kind]
        for name, master in masters.items()
        for kind in _MOMENTS
    }
    for file, tensors in {"weights": masters, "moments": moments, **extra}.items():
        _read_into(folder / f"{file}.safetensors", tensors)
    return state


@torch.no_grad()
def _read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        with safe_open(path, "pt") as file:
            if set(file.keys()) != set(tensors):
                raise UserError("holds the weights of another model", where=path)
            for name, tensor in tensors.items():
                tensor.copy_(file.get_tensor(name))
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(
            f"is damaged ({error})", where=path, hint="remove this checkpoint to go on from the one before"
        ) from None


def take_back_metrics(path: Path, step: int) -> None:
    """Drop the lines of `metrics.jsonl` that come after `step`, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except json.JSONDecodeError:
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
