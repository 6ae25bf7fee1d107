"""A comparison with a margin: problems set aside in both domains, a decision that is made again, and the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comparisons import Task, compare_task, config_of
from rectune.analysis.decision import decide
from rectune.cli.app import main
from rectune.config import flag
from rectune.errors import UserError
from rectune.records import Comparison, read_record

HOW: dict[str, Any] = {"seeds": 2, "match_entropy": False}


@pytest.fixture(scope="module")
def decided(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("decided") / "out"
    return out, compare_task(task, out, margin=60, **HOW)


def answers(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("graded.jsonl")}


def test_both_domains_are_split_and_every_model_answers_both_parts(
    decided: tuple[Path, dict[str, Any]],
) -> None:
    out, record = decided
    assert record["problems"] == {"inside": 24, "outside": 4}
    assert record["validation"] == {"inside": 8, "outside": 2}
    for run in ("base", "sft/seed-0", "dft/seed-1"):
        for kind in ("evaluation", "greedy", "validation", "validation-greedy"):
            assert (out / "runs" / run / kind / "graded.jsonl").is_file()
    assert (out / "runs/base/validation-temperature-0.5").is_dir()
    decision = record["decision"]
    assert decision["problems"] == {"in": 24, "out": 4}
    assert decision["validation"] == {"in": 8, "out": 2}
    assert (decision["against"], decision["chosen"], decision["margin"]) == ("sft", "dft", 0.6)
    assert set(record["points"][1]["validation"]) == {"in", "out"}


def test_another_margin_decides_again_without_sampling(
    decided: tuple[Path, dict[str, Any]], task: Task
) -> None:
    out, _ = decided
    before = answers(out)
    decision = compare_task(task, out, margin=90, against="base", **HOW)["decision"]
    assert (decision["outcome"], decision["ship"]) == ("ship", "sft")
    assert decision["sentence"].startswith("ship sft: +")
    again = compare_task(task, out, **HOW)["decision"]  # the last margin stands
    assert again["sentence"] == decision["sentence"]
    assert answers(out) == before
    record = read_record(out / "comparison.json", Comparison)
    assert decide(record, out, margin=0.9, against="base").sentence == decision["sentence"]


def test_a_comparison_without_the_split_is_refused(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare_task(task, out, "sft", match_entropy=False, max_steps=1)
    with pytest.raises(
        UserError, match=r"comparison\.json: the comparison was begun without --margin: all of its"
    ):
        compare_task(task, out, "sft", match_entropy=False, max_steps=1, margin=1)


def test_the_gate(
    decided: tuple[Path, dict[str, Any]], task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3 and one line where it does not hold; all of it is in the JSON."""
    out, _ = decided
    config = config_of(
        task, out, **HOW, tasks_in=[task["inside"]], tasks_out=[task["outside"]], num_samples=2
    )
    given = config.model_dump(include=config.model_fields_set) | {"max_new_tokens": 6}
    switch = given.pop("match_entropy")
    assert switch is False
    flags = ["--no-match-entropy"]
    for name, value in given.items():
        flags += [flag(name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    gate = ["compare", *flags, "--margin", "90", "--against", "base", "--json", "--require"]
    assert main([*gate, "superior"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"]["passed"] is True
    gate[gate.index("base")] = "sft"
    assert main([*gate, "superior"]) == 3
    printed, err = capsys.readouterr()
    decision = json.loads(printed)["decision"]
    assert (decision["require"], decision["passed"]) == ("superior", False)
    assert err.splitlines()[-1] == f"rectune: --require superior does not hold: {decision['sentence']}"


def test_the_dry_run_says_what_can_be_shown(task: Task, tmp_path: Path) -> None:
    planned = compare_task(task, tmp_path / "out", margin=1, dry_run=True, **HOW)
    assert planned["validation"] == {"inside": 8, "outside": 2}
    assert planned["power"][0].startswith(
        "with 2 seeds and 4 problems out of domain a true gain of 2 points is"
    )
    assert planned["power"][1].startswith("the margin of 1 can hardly be shown: ")
    assert planned["validation_samples"] == 10 * (5 * 3 + 3 * 2)


def test_an_arm_that_the_race_stopped_is_replaced_by_the_base_model(
    task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = compare_task(task, tmp_path / "out", margin=90, against="dft", race="40steps", **HOW)
    assert [arm["label"] for arm in record["arms"] if arm["dropped"]] == ["dft"]
    assert (record["decision"]["against"], record["decision"]["chosen"]) == ("base", "sft")
    assert "dft was dropped by the race, so the decision is against the base model" in caplog.text
