"""A damaged checkpoint is passed over, by name; whatever byte of it was flipped and whatever file is gone."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from rectune.config import load_config
from rectune.training import checkpoint as checkpoints
from rectune.training.trainer import train
from training_runs import same_runs


@pytest.fixture(scope="module")
def good(toy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the toy."""
    out = tmp_path_factory.mktemp("damage") / "run"
    train(load_config(None, {**toy, "output_dir": out}), until=2)
    return out / "checkpoints" / "step-000002"


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.faults)])
def test_every_flipped_bit_of_the_state_is_noticed(good: Path, tmp_path: Path, every: int) -> None:
    copy = Path(shutil.copytree(good, tmp_path / "checkpoints" / good.name))
    state, content = copy / "state.json", (good / "state.json").read_bytes()
    assert not checkpoints._damage(copy)
    for place in range(0, len(content), every):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        state.write_bytes(flipped)
        if not checkpoints._damage(copy):  # the last of 17 digits, which the same float may be written with
            assert json.loads(flipped) == json.loads(content), (
                f"byte {place}: {content[place - 9 : place + 9]!r}"
            )


@pytest.mark.parametrize(("content", "damage"), [
    *((content, "state.json cannot be read") for content in (
        b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"checksums": {}, "a": ' + b"[" * 100_000)),
    *((json.dumps({"checksums": {name: 1}}).encode(), f"{name[:100]} is missing") for name in (
        "gone", "x" * 5000, "a\0b")),
], ids=range(9))  # fmt: skip
def test_whatever_stands_in_the_state_is_damage(
    good: Path, tmp_path: Path, content: bytes, damage: str
) -> None:
    copy = Path(shutil.copytree(good, tmp_path / "checkpoints" / good.name))
    (copy / "state.json").write_bytes(content)
    assert checkpoints._damage(copy) == damage


@pytest.mark.parametrize("file", ["weights.safetensors", "moments.safetensors"])
def test_flipped_bits_of_tensors_are_noticed(good: Path, tmp_path: Path, file: str) -> None:
    copy = Path(shutil.copytree(good, tmp_path / "checkpoints" / good.name))
    content = (good / file).read_bytes()
    draw = random.Random(0)
    for _ in range(20):
        place = draw.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        (copy / file).write_bytes(flipped)
        assert checkpoints._damage(copy) == f"{file} has another checksum than when it was written"
    (copy / file).write_bytes(content[:-1])
    assert checkpoints._damage(copy)


@pytest.mark.parametrize(
    "gone",
    ["state.json", *(pytest.param(name, marks=pytest.mark.faults) for name in ("moments.safetensors", "*"))],
)
def test_missing_files(
    run: Any, whole: Path, tmp_path: Path, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    run(until=4)
    last = out / "checkpoints" / "step-000004"
    for path in list(last.glob(gone)):
        path.unlink()
    run(resume=True)
    said = f"{last}: the checkpoint is damaged ({'state.json' if gone == '*' else gone} is missing) and is skipped"
    assert said in caplog.text
    same_runs(whole, out)


@pytest.mark.faults
def test_damaged_ones_never_push_out_good_ones(run: Any, whole: Path, tmp_path: Path) -> None:
    """Two damaged checkpoints are newer than the good one, and two are kept."""
    out = tmp_path / "run"
    settings = {"save_steps": 1, "save_total_limit": 3}
    run(until=5, **settings)
    for step in (4, 5):
        (out / "checkpoints" / f"step-00000{step}" / "weights.safetensors").unlink()
    run(resume=True, until=4, save_steps=0, save_total_limit=1)
    assert not checkpoints._damage(out / "checkpoints" / "step-000004")
    run(resume=True)
    same_runs(whole, out)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000", "step-000002", "step-notes"):
        (tmp_path / name).mkdir()
    names = [path.name for path in checkpoints.list_checkpoints(tmp_path)]
    assert names == ["step-000002", "step-999999", "step-1000000"]


def test_a_folder_of_the_first_version(run: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(until=4)
    state = out / "checkpoints" / "step-000004" / "state.json"
    content = json.loads(state.read_text())
    del content["checksums"]["state.json"], content["limit"], content["reference"]
    content["data"] = (
        "32 rows, 1,002 tokens, checksum 2bf59702"  # as the version before it wrote it of the toy
    )
    state.write_text(json.dumps(content))
    for name in ("config.json", "environment.json"):
        content = json.loads((out / name).read_text())
        del content["format"]
        content.pop("max_nonfinite_steps", None)
        (out / name).write_text(json.dumps(content))
    run(resume=True)
    same_runs(whole, out)
