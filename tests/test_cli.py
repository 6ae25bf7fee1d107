"""The command line: verbs, flags, exit codes, and where the output goes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import types
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rectune.cli.app import main
from rectune.config import TrainConfig
from rectune.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Result:
    """Stands in for what a training returns."""

    nll: float = float("nan")

    def to_dict(self) -> dict[str, float]:
        return {"nll": self.nll}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainConfig, dict[str, bool]]]:
    """Stands in for training and planning: what `rectune train` would have started."""
    import rectune.training

    calls: list[tuple[TrainConfig, dict[str, bool]]] = []
    for name, function, result in (("trainer", "train", Result()), ("dry_run", "plan", {"steps": 7})):

        def call(config: TrainConfig, result: Any = result, name: str = name, **how: bool) -> Any:
            calls.append((config, {"dry_run": name == "dry_run", **how}))
            return result

        module = types.ModuleType(f"rectune.training.{name}")
        setattr(module, function, call)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(rectune.training, name, module, raising=False)
    return calls


def test_train_from_flags(trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--data d --output-dir o --objective power:alpha=0.5 --batch-size=8 --resume --merge-adapter"
    assert main(["train", *flags.split(), "--columns", "prompt=q,completion=a"]) == 0
    ((config, how),) = trained
    assert 0 < how.pop("began") <= time.perf_counter()  # when the command began
    assert (config.batch_size, config.merge_adapter, how) == (8, True, {"resume": True, "dry_run": False})
    assert config.objective == "power:alpha=0.5"
    assert config.columns == {"prompt": "q", "completion": "a"}
    assert json.loads(capsys.readouterr().out) == {"nll": None}


def test_train_from_a_recipe(trained: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('data = "d"\noutput_dir = "o"\nmax_steps = 5\nobjective = "floor:minimum=0.2"\n')
    assert main(["train", str(recipe), "--max-steps", "7", "--dry-run"]) == 0
    ((config, how),) = trained
    assert (config.max_steps, config.objective, how) == (7, "floor:minimum=0.2", {"dry_run": True})
    assert json.loads(capsys.readouterr().out) == {"steps": 7}


def test_data_by_position_beside_a_recipe_and_underscores(trained: list[Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('data = "d"\noutput_dir = "o"\n')
    assert main(["train", "rows.jsonl", "--output_dir", "o", "--batch_size", "3"]) == 0
    assert main(["train", str(recipe), "rows.jsonl"]) == 0
    configs = [config for config, _ in trained]
    assert [(config.data, config.batch_size) for config in configs] == [("rows.jsonl", 3), ("rows.jsonl", 16)]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--bach-size", "8"], "--bach-size. Did you mean --batch-size"),
        (["train", "--batch-size", "x"], "--batch-size: must be a whole number (got 'x')"),
        (["train", "--batch-size", "2.5"], "--batch-size: must be a whole number (got '2.5')"),
        (
            ["select", "g.jsonl", "--output", "o", "--for", "sft", "--per-problem", "2.5"],
            "a whole number (got '2.5')",
        ),
        (
            ["train", "--data", "d", "--output-dir", "o", "--learning-rate", "inf"],
            "must be a finite number (got inf)",
        ),
        (
            ["train", "--data", "d"],
            "output_dir: missing; give --output-dir or output_dir = ... in the recipe",
        ),
        (["train", "--lr-scheduler-type", "cosin"], "--lr-scheduler-type"),
        (["train", "nothing.toml"], "nothing.toml: no such recipe"),
        (["trian"], "train"),
        (["finetune"], "unknown command finetune; use rectune train"),
        (["train", "--lr", "1e-4"], "unknown option --lr; use --learning-rate"),
        (["train", "--out", "o"], "unknown option --out; use --output-dir"),
        (["train", "--output=o"], "unknown option --output; use --output-dir"),
        (["train", "--rows.template", "none"], "unknown option --rows.template; use --chat-template"),
        (["train", "--objective.name", "dft"], "unknown option --objective.name; use --objective"),
        (["train", "--objective.alpha", "0.5"], "objective NAME:alpha=VALUE"),
        (["train", "--model-name-or-path", "m"], "use --model"),
        (["train", "--per_device_eval_batch_size", "4"], "evaluation packs rows"),
        (["rl", "--num-generations", "4"], "use --num-samples"),
        (["eval", "--benchmark-file", "p"], "unknown option --benchmark-file; use --tasks"),
        (["train", "a.jsonl", "b.jsonl"], "b.jsonl: not a TOML recipe; give settings as flags"),
        (["train", "a.jsonl", "--data", "b.jsonl"], "--data: given both by position and as a flag"),
        (["list", "objektives"], "objectives"),
        (["list", "benchmarks"], "Use tasks."),
        (
            ["sample", "p", "--model", "m", "--output", "s", "--base-url", "http://h/v1"],
            "uses no server; leave base_url",
        ),
        (["train", "--dtype", "fp32"], "Use float32."),
        (["sample", "--backend", "server"], "Use openai."),
        (["sample", "p.jsonl", "--out", "s.jsonl"], "unknown option --out; use --output"),
        (["report", "run", "--out", "page.html"], "unknown option --out; use --output"),
        (["reproduce", "table2", "--out", "o"], "unknown option --out; use --output-dir"),
        (
            ["grade", "s.jsonl", "--output", "g", "--workers", "2"],
            "unknown option --workers; use --grading-workers",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err
    assert err.startswith("rectune: ")
    assert err.count("\n") == 1
    assert trained == []


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, trained: list[Any]) -> None:
    def broken(config: TrainConfig, **how: bool) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["rectune.training.trainer"], "train", broken)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--data", "d", "--output-dir", "o"])


def test_out_of_memory_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def broken(config: TrainConfig, **how: bool) -> None:
        torch.empty(1 << 48)

    monkeypatch.setattr(sys.modules["rectune.training.trainer"], "train", broken)
    assert main(["train", "--data", "d", "--output-dir", "o"]) == 2
    assert capsys.readouterr().err.startswith("rectune: out of memory; what is written so far is kept; lower")


def test_an_interrupt_is_one_line_and_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: TrainConfig, **how: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["rectune.training.trainer"], "train", interrupted)
    assert main(["train", "--data", "d", "--output-dir", "o"]) == 130
    assert capsys.readouterr().err == "rectune: interrupted\n"


def test_list_objectives_agrees_with_the_functions(capsys: pytest.CaptureFixture[str]) -> None:
    from rectune.objective_spec import column_names, parse_objective, setting_names
    from rectune.objectives import OBJECTIVES

    assert main(["list", "objectives", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["objective"] for row in rows] == list(OBJECTIVES)
    for row in rows:
        assert tuple(filter(None, row["columns"].split(", "))) == column_names(row["objective"])
        named = tuple(s.partition(" = ")[0] for s in row["settings"].split(", ") if s)
        assert named == setting_names(row["objective"])
        for suffix in ("signal=base", "shuffled"):
            with (
                nullcontext()
                if suffix in row["suffixes"].split(", ")
                else pytest.raises(UserError, match="cannot")
            ):
                parse_objective(f"{row['objective']}:{suffix}")
        assert row["about"]


@pytest.mark.parametrize("what", ["objectives", "columns", "tasks", "models", "recipes"])
def test_list_prints_a_table(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    if what == "objectives":
        assert "Weight 1[p >= q]" in out  # brackets are text, not markup
        assert max(map(len, out.splitlines())) > 110  # nothing is folded into a pipe


def test_list_alone_prints_all_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"objectives", "columns", "tasks", "models", "recipes"}
    assert main(["list"]) == 0
    assert "objectives:" in capsys.readouterr().out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    import rectune

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == rectune.__version__
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--objective" in out
    assert "Rows per optimizer step" in out


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="cyclopts 4, the last for Python 3.10, lays help out differently"
)
def test_the_documented_command_line_is_what_help_prints() -> None:
    spec = importlib.util.spec_from_file_location("make_cli_docs", ROOT / "scripts" / "make_cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == "\n".join(script.sections())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_first_page(arguments: list[str]) -> None:
    page = subprocess.run(
        [sys.executable, "-m", "rectune", *arguments], check=True, capture_output=True, encoding="utf-8"
    ).stdout
    assert page.startswith("Usage: rectune COMMAND")
    assert "  train      Fine-tune a model on demonstrations.\n" in page


def test_bad_rows_are_skipped_by_the_short_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1?", "completion": "2"}\n{"prompt": "1+2?", "completion": ""}\n')
    assert main(["check", str(rows)]) == 2
    assert main(["check", str(rows), "--skip-bad-rows"]) == 0
    assert "faulty rows: 1" in capsys.readouterr().out
