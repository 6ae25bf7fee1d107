"""`compare --interpolate` and `--soup`: models between base and runs are evaluated, and leave no weights behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from comparisons import Task, compare_task
from rectune.config import MergeConfig
from rectune.errors import UserError
from rectune.experiments.comparison_tables import tables
from rectune.models.load import fingerprint, load_model
from rectune.models.merge import merge
from rectune.records import Comparison

Record = dict[str, Any]
HOW: Record = {"match_entropy": False, "limit": 6, "settings": {"learning_rate": 2e-2}}
MERGED = {"interpolate": [0.5], "soup": ["dft+sft"]}


@pytest.fixture(scope="module")
def plain(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """A comparison that is finished."""
    out = tmp_path_factory.mktemp("plain") / "out"
    return out, compare_task(task, out, "sft,dft", **HOW)


@pytest.fixture(scope="module")
def added(
    plain: tuple[Path, Record], task: Task, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Record]:
    """The same with points added."""
    out = tmp_path_factory.mktemp("added") / "out"
    shutil.copytree(plain[0], out)
    return out, compare_task(task, out, "sft,dft", **HOW, **MERGED)


def answers(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("samples.jsonl")}


def test_points_are_added_to_a_finished_comparison(
    plain: tuple[Path, Record], added: tuple[Path, Record]
) -> None:
    out, record = added
    before, after = answers(plain[0]), answers(out)
    assert {name: after[name] for name in before} == before
    assert record["points"][:3] == plain[1]["points"]
    assert record["verdict"] == plain[1]["verdict"]
    found = {
        (point["arm"], point["label"], point["at"], *point["folders"].values())
        for point in record["points"][3:]
    }
    assert found == {
        ("sft", "sft at 0.5", 0.5, "runs/sft/seed-0/at-0.5"),
        ("dft", "dft at 0.5", 0.5, "runs/dft/seed-0/at-0.5"),
        ("sft+dft", "mean of sft and dft at 0.5", 0.5, "runs/sft+dft/seed-0/at-0.5"),
        ("sft+dft", "mean of sft and dft", 1.0, "runs/sft+dft/seed-0"),
    }
    for point in record["points"]:
        assert point["scores"].keys() == point["greedy"].keys() == {"in", "out"}
    title, rows = next(tables(Comparison.model_validate(record)))
    assert title == "Models between base and tuned"
    assert [row["model"] for row in rows] == [point["label"] for point in record["points"]]


def test_a_point_is_base_plus_t_times_the_difference(
    added: tuple[Path, Record], task: Task, tmp_path: Path
) -> None:
    out, _ = added
    runs = [str(out / "runs" / name / "seed-0") for name in ("sft", "dft")]
    for tuned, at, folder in (
        (runs[:1], 0.5, "runs/sft/seed-0/at-0.5"),
        (runs, 0.5, "runs/sft+dft/seed-0/at-0.5"),
        (runs, 1.0, "runs/sft+dft/seed-0"),
    ):
        config = MergeConfig(
            base=task["model"], tuned=tuple(tuned), at=(at,), output_dir=tmp_path / f"{len(tuned)}"
        )
        (model,) = merge(config)
        evaluation = json.loads((out / folder / "evaluation/evaluation.json").read_text())
        assert evaluation["fingerprint"] == fingerprint(load_model(model)[0])
        assert evaluation["training_run"] == runs[0]  # so prompted as in training
        assert (evaluation["merge"]["at"], len(evaluation["merge"]["tuned"])) == (at, len(tuned))


def test_no_weights_stay_and_a_share_is_added(added: tuple[Path, Record], task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(added[0], out)
    runs = {f"runs/{arm}/seed-0/model" for arm in ("sft", "dft")}
    assert {str(path.relative_to(out)) for path in out.rglob("*model*") if path.is_dir()} == runs
    for left_behind in ("at-0.5/model", "at-0.9/.model.new"):  # by a kill
        shutil.copytree(out / "runs/sft/seed-0/model", out / "runs/sft/seed-0" / left_behind)
    shutil.rmtree(out / "runs/dft/seed-0/at-0.5/greedy")  # not reached by then
    before = answers(out)
    record = compare_task(task, out, "sft,dft", **HOW, interpolate=[0.25])
    assert {str(path.relative_to(out)) for path in out.rglob("*model*") if path.is_dir()} == runs
    after = answers(out)
    assert {name: after[name] for name in before} == before
    assert all("at-0.25/" in name for name in after.keys() - answers(added[0]).keys())
    assert [p for p in record["points"] if p["at"] != 0.25] == added[1]["points"]
    assert sorted({p["at"] for p in record["points"]}) == [0, 0.25, 0.5, 1]
    again = compare_task(task, out, "sft,dft", **HOW)  # what is there stays
    assert again == record
    assert answers(out) == after


def test_the_plan_counts_their_samples(plain: tuple[Path, Record], task: Task) -> None:
    alone, more, one = (
        compare_task(task, plain[0], "sft,dft", dry_run=True, **HOW, **merged)["samples"]
        for merged in ({}, MERGED, {"interpolate": [0.5], "interpolate_only": ["dft"]})
    )
    assert alone == 12 * 3 * 3  # problems, answers (the greedy one included), models
    assert more == 12 * 3 * (3 + 4)
    assert one == 12 * 3 * (3 + 1)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (
            {"interpolate": [1]},
            "--interpolate: must be between 0 and 1 (got 1); 0 is the base model and 1 the run",
        ),
        ({"interpolate": [-0.5]}, "--interpolate: must be between 0 and 1 (got -0.5)"),
        ({"interpolate_only": ["sft"]}, "--interpolate-only: requires --interpolate"),
        (
            {"interpolate": [0.5], "interpolate_only": ["power"]},
            "--interpolate-only: unknown objective 'power'",
        ),
        ({"soup": ["sft"]}, "--soup: 'sft' is not a mean of several objectives; such as sft+dft"),
        ({"soup": ["sft+sft"]}, "--soup: 'sft+sft' is not a mean of several objectives"),
        ({"soup": ["sft+dpo"]}, "--soup: unknown objective 'dpo'"),
    ],
)
def test_what_is_refused(task: Task, tmp_path: Path, how: Record, line: str) -> None:
    with pytest.raises(UserError) as caught:
        compare_task(task, tmp_path / "out", "sft,dft", **how)
    assert line in str(caught.value)
    assert not (tmp_path / "out").exists()
