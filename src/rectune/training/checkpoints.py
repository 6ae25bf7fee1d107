"""Checkpoints that a killed run goes on from, bit for bit: written aside, then renamed.

A checkpoint holds float32 masters and AdamW's moments as safetensors (no pickle) and `state.json`, which has the
checksums of the others. Nothing else is needed: row order, dropout and schedule are functions of seed and step.
The lines of `metrics.jsonl` that a killed run wrote after its last checkpoint are taken back when it goes on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rectune.errors import UserError

log = logging.getLogger("rectune")

FORMAT = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")


def to_json(value: Any, **layout: Any) -> str:
    """JSON of nested dicts and lists; numbers that are not finite become null, since JSON has none."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: finite(inner) for name, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [finite(inner) for inner in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), **layout)


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
    for left_over in folder.glob(".step-*"):
        shutil.rmtree(left_over)
    target = folder / f"step-{step:06d}"
    aside = folder / f".{target.name}.new"
    aside.mkdir(parents=True)
    moments, updates = _moments(masters, optimizer)
    checksums = {}
    for file, tensors in {"weights": masters, "moments": moments, **extra}.items():
        path = aside / f"{file}.safetensors"
        save_file({n: t.data.contiguous() for n, t in tensors.items()}, path)
        _sync(path)
        checksums[path.name] = _checksum(path)
    state = {"format": FORMAT, "step": step, "updates": updates, "checksums": checksums, **state}
    (aside / "state.json").write_text(to_json(state))
    _sync(aside / "state.json")
    if target.exists():
        _remove(target)
    aside.rename(target)
    _sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        _remove(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Completely written checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob("step-*/state.json"))


def last_good_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged checkpoint; says in the log which damaged ones it passed over. None without any.

    Raises:
        UserError: All are damaged.
    """
    found = list_checkpoints(folder)
    damage = ""
    for checkpoint in reversed(found):
        damage = _damage(checkpoint)
        if not damage:
            return checkpoint
        log.warning("%s: damaged (%s), so it is passed over", checkpoint, damage)
    if found:
        raise UserError(f"is damaged ({damage})", where=found[0], hint="remove the folder to start afresh")
    return None


def load_checkpoint(
    folder: Path,
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Copy an undamaged checkpoint into existing tensors (their memory stays where it is, so that bits are equal).

    Returns:
        The `state` it was saved with, and `step`.

    Raises:
        UserError: From another format version, or of another model.
    """
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    if state["format"] != FORMAT:
        raise UserError(
            f"checkpoint of format {state['format']}, this version reads {FORMAT}",
            where=folder,
            hint="train with the rectune version that wrote it, or start afresh in another folder",
        )
    if state["updates"]:
        for master in masters.values():
            optimizer.state[master] = {
                "step": torch.tensor(float(state["updates"])),
                **{kind: torch.zeros_like(master) for kind in _MOMENTS},
            }
    moments, _ = _moments(masters, optimizer)
    for file, tensors in {"weights": masters, "moments": moments, **extra}.items():
        _read_into(folder / f"{file}.safetensors", tensors)
    return state


def _moments(
    masters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], int]:
    """AdamW's moments by name, and how many updates it made (fewer than steps where some were skipped)."""
    state = {name: optimizer.state[master] for name, master in masters.items() if master in optimizer.state}
    moments = {f"{kind}.{name}": state[name][kind] for name in state for kind in _MOMENTS}
    return moments, max((int(of_one["step"]) for of_one in state.values()), default=0)


def _damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files; empty for nothing."""
    try:
        expected: dict[str, int] = json.loads((checkpoint / "state.json").read_text())["checksums"]
    except (ValueError, KeyError, TypeError):
        return "state.json cannot be read"
    for name, checksum in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _checksum(path) != checksum:
            return f"{name} has another checksum than when it was written"
    return ""


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return checksum


@torch.no_grad()
def _read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with safe_open(path, "pt") as file:
        if set(file.keys()) != set(tensors):
            raise UserError("holds the weights of another model", where=path)
        for name, tensor in tensors.items():
            tensor.copy_(file.get_tensor(name))


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint off the list at once, then delete it."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.rename(aside)
    shutil.rmtree(aside)


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
