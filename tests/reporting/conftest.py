"""Real runs of a tiny model: SFT and DFT, two seeds each, evaluated with the base model on a few sums."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluations import run_eval
from rectune.config import load_config
from rectune.training.trainer import train
from reported import edit, mark_correct, write_lines
from toys import byte_tokenizer, tiny_model

RIGHT = {"sft": (1, 2, 3), "dft": (3, 4, 5), "base": ()}
"""Numbers of the problems that a model's answers are marked as correct for: a model this small never is by itself."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<arm>/seed-<s>`, with an `evaluation` in each, and `base/evaluation`; not to be written into.

    Seed 1 is seed 0 under another number and with one more answer that is right: training is slow.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("reported")
        model = folder / "tiny" / "model"
        tiny_model().save_pretrained(model)
        byte_tokenizer().save_pretrained(model)
        rows = [
            {"prompt": f"{n} and {n % 7}?", "completion": f"{n + n % 7}{'!' * (n % 5)}"} for n in range(40)
        ]
        write_lines(folder / "rows.jsonl", rows)
        write_lines(
            folder / "sums.jsonl", [{"prompt": f"{n} and {n}?", "answer": str(2 * n)} for n in range(6)]
        )
        for arm in ("sft", "dft"):
            settings = {
                "model": str(model), "data": str(folder / "rows.jsonl"), "output_dir": folder / arm / "seed-0",
                "objective": arm, "max_steps": 3, "batch_size": 7, "max_length": 64, "tokens_per_micro_batch": 96,
                "learning_rate": 3e-3, "dtype": "float32", "eval_split_size": 0.2, "eval_steps": 1,
            }  # fmt: skip
            train(load_config(None, settings))
            _ask(
                folder / arm / "seed-0" / "model", folder / arm / "seed-0" / "evaluation", folder, RIGHT[arm]
            )
            _second_seed(folder / arm, (*RIGHT[arm], 6))
        _ask(model, folder / "base" / "evaluation", folder, RIGHT["base"])
    return folder


def _ask(model: Path, out: Path, folder: Path, right: tuple[int, ...]) -> None:
    run_eval(model, out, folder / "sums.jsonl", num_samples=2, max_new_tokens=6)
    mark_correct(out, right)


def _second_seed(arm: Path, right: tuple[int, ...]) -> None:
    other = shutil.copytree(
        arm / "seed-0", arm / "seed-1", ignore=shutil.ignore_patterns("model", "checkpoints")
    )
    edit(other / "config.json", seed=1)
    edit(other / "evaluation" / "evaluation.json", training_run=str(other), model=str(other / "model"))
    mark_correct(other / "evaluation", right)


Copy = Callable[..., Path]


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Copy:
    """`copy("sft/seed-0", "x")`: a copy of one of the runs' folders, to damage, without the model."""

    def make(relative: str, to: str | None = None) -> Path:
        ignored = shutil.ignore_patterns("model", "checkpoints")
        return Path(shutil.copytree(runs / relative, tmp_path / (to or relative), ignore=ignored))

    return make
