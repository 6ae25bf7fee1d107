"""Checkpoints that a killed run resumes from, bit for bit: written aside, then renamed.

A checkpoint holds float32 masters and AdamW's moments as safetensors (no pickle) and `state.json`, which has the
checksums of the others and its own. Nothing else is needed: row order, dropout and schedule are functions of seed and
step. A damaged checkpoint is passed over, by name, and the one before it is used.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rectune.errors import UserError
from rectune.records import AnyState, CheckpointState, parse_line
from rectune.runtime.io import check_format, fsync, load_json, to_json
from rectune.training.fsdp import gathered_state, is_sharded, like

log = logging.getLogger("rectune")

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpointer:
    """Saves and restores what a run resumes from: weights, moments and a small state.

    Args:
        folder: Of the checkpoints.
        masters: float32 weights by name.
        optimizer: AdamW over them.
        extra: Further sets of tensors, by the name of their file.
        keep: How many checkpoints stay.
        began: `time.perf_counter()` as the run began.
        accelerator: Of the run; its first process writes.
    """

    def __init__(
        self,
        folder: Path,
        masters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        extra: Mapping[str, Mapping[str, Tensor]] | None = None,
        keep: int,
        began: float,
        accelerator: Accelerator,
    ) -> None:
        self.folder, self.masters, self.optimizer, self.extra = folder, masters, optimizer, extra or {}
        self.keep, self.began, self.accelerator = keep, began, accelerator

    @property
    def seconds(self) -> float:
        """How long the run took up to now; of a resumed run, with the time up to its checkpoint."""
        return time.perf_counter() - self.began

    def load(self, kind: type[AnyState]) -> AnyState | None:
        """The state of the newest undamaged checkpoint, whose tensors are then in place; None without any."""
        newest = last_good_checkpoint(self.folder)
        if newest is None:
            return None
        state = load_checkpoint(newest, kind, self.masters, self.optimizer, self.extra)
        self.began -= state.seconds
        log.info("resuming from %s", newest)
        return state

    def save(self, state: CheckpointState) -> None:
        """Write the checkpoint of `state.step`. All processes have to call this."""
        main = self.accelerator.is_main_process
        tensors: tuple[Any, Any, Any] = self.masters, self.optimizer, self.extra
        if is_sharded(self.accelerator):
            tensors = gathered_state(*tensors, keep=main)
        if main:
            state.seconds = self.seconds
            save_checkpoint(self.folder, state, *tensors, self.keep)


def save_checkpoint(
    folder: Path,
    state: CheckpointState,
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
    keep: int,
) -> Path:
    """Write `folder/step-N` atomically and remove all but the `keep` newest.

    Args:
        folder: The run's `checkpoints` folder.
        state: What else to write; gets the checksums.
        masters: Name to master weight.
        optimizer: AdamW over just these.
        extra: Further named sets of tensors, a file each.
    """
    for left_over in folder.glob(".step-*"):
        shutil.rmtree(left_over)
    target = folder / f"step-{state.step:06d}"
    aside = folder / f".{target.name}.new"
    try:
        _write(aside, state, masters, optimizer, extra)
    except Exception:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk needs the room
        raise
    if target.exists():
        _remove(target)
    aside.rename(target)
    fsync(folder)
    earlier = [found for found in list_checkpoints(folder) if _step(found) <= state.step]
    for old in earlier[:-keep]:
        _remove(old)
    return target


def _write(
    aside: Path,
    state: CheckpointState,
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
) -> None:
    aside.mkdir(parents=True)
    moments, state.updates = _moments(masters, optimizer)
    state.checksums = {}
    for file, tensors in {"weights": masters, "moments": moments, **extra}.items():
        path = aside / f"{file}.safetensors"
        save_file({n: t.data.contiguous() for n, t in tensors.items()}, path)
        fsync(path)
        state.checksums[path.name] = _checksum(path)
    written = json.loads(to_json(state.to_dict()))  # as it will be read
    written["checksums"]["state.json"] = _own_checksum(written)
    (aside / "state.json").write_text(json.dumps(written))
    fsync(aside / "state.json")


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by step; each was whole when it got its name."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdecimal()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[5:])


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
        log.warning("%s: the checkpoint is damaged (%s) and is skipped", checkpoint, damage)
    if found:
        raise UserError(
            f"the checkpoint is damaged ({damage})", where=found[0], hint="remove the folder to start afresh"
        )
    return None


def load_checkpoint(
    folder: Path,
    kind: type[AnyState],
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
) -> AnyState:
    """Copy an undamaged checkpoint into existing tensors (their memory stays where it is, so that bits are equal).

    Returns:
        The state it was saved with.

    Raises:
        UserError: From another format version, or of another model.
    """
    content = load_json(folder / "state.json")
    check_format(content, folder, kind.FORMAT)
    state = parse_line(kind, content, kind.WHAT, str(folder), kind.HINT)
    if state.updates:
        for master in masters.values():
            updates = torch.tensor(float(state.updates), device=master.device)  # read by the fused kernel
            optimizer.state[master] = {
                "step": updates,
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
    path = checkpoint / "state.json"
    if not path.is_file():
        return "state.json is missing"
    try:
        content = load_json(path)
        expected: dict[str, int] = content["checksums"]
        own = expected.pop("state.json", None)  # format 1 had none at first
    except (ValueError, KeyError, TypeError, AttributeError):
        return "state.json cannot be read"
    if own is not None and own != _own_checksum(content):
        return "state.json has another checksum than when it was written"
    for name, checksum in expected.items():
        path = checkpoint / name
        if not os.path.isfile(path):  # unlike Path's, also where the name is too long for one
            return f"{name[:100]} is missing"
        if _checksum(path) != checksum:
            return f"{name} has another checksum than when it was written"
    return ""


def _own_checksum(content: Mapping[str, object]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return checksum


@torch.no_grad()
def _read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with safe_open(path, "pt") as file:
        if not set(tensors) <= set(file.keys()):  # more: an earlier version kept weights that are frozen now
            raise UserError("the checkpoint has the weights of another model", where=path)
        for name, tensor in tensors.items():
            tensor.copy_(like(tensor, file.get_tensor(name)))


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint off the list at once, then delete it."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.rename(aside)
    shutil.rmtree(aside)
