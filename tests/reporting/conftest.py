"""Real runs of a tiny model: SFT with two seeds and DFT with two, evaluated with the base model on a few sums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rectune.config import load_config
from rectune.evaluation.evaluate import evaluate
from rectune.training.loop import train
from toys import byte_tokenizer, tiny_model

ARMS = ("sft", "dft")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `<arm>/seed-<s>`, an `evaluation` in each, and `base/evaluation`; do not write into it."""
    folder: Path = tmp_path_factory.mktemp("reported")
    model = folder / "tiny" / "model"
    tiny_model().save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    rows = [{"prompt": f"{n} and {n % 7}?", "completion": f"{n + n % 7}{'!' * (n % 5)}"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = [{"prompt": f"{n} and {n % 7}?", "answer": str(n + n % 7)} for n in range(6)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    for arm in ARMS:
        for seed in (0, 1):
            settings = {
                "model": str(model), "data": str(folder / "rows.jsonl"), "out": folder / arm / f"seed-{seed}",
                "objective.name": arm, "seed": seed, "steps": 3, "batch_size": 7, "max_length": 64,
                "micro_batch_tokens": 96, "learning_rate": 3e-3, "precision": "fp32", "rows.holdout": 0.2,
                "evaluate_every": 1,
            }  # fmt: skip
            train(load_config(None, settings))
            _evaluate(folder / arm / f"seed-{seed}", folder / arm / f"seed-{seed}" / "evaluation", folder)
    _evaluate(model, folder / "base" / "evaluation", folder)
    return folder


def _evaluate(model: Path, out: Path, folder: Path) -> None:
    evaluate(str(model), out=out, benchmark_files=[folder / "sums.jsonl"], n=2, max_new_tokens=6)
    mark_correct(out, model.parent.name)


def mark_correct(folder: Path, name: str) -> None:
    """Give some answers another verdict: a model this small is never right by itself."""
    right = {"sft": (0, 1, 2), "dft": (2, 3, 4)}.get(name, ())
    path = folder / "graded.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if int(str(line["problem_id"]).split("/")[1].lstrip("0") or 0) in right:
            line["verdict"] = "correct"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Any:
    """`copy("sft/seed-0")`: a copy of some of the runs' folder to damage."""
    import shutil

    def make(relative: str, to: str | None = None) -> Path:
        return Path(shutil.copytree(runs / relative, tmp_path / (to or relative)))

    return make
