"""A whole comparison on a task that can be learnt in twelve steps: what is written, skipped, added and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from comparisons import Task, compare_task
from rectune.errors import UserError
from rectune.experiments.comparison_tables import tables
from rectune.experiments.evaluator import Evaluator
from rectune.records import Comparison
from rectune.runtime.io import lock
from training_runs import metrics, weights

Record = dict[str, Any]
Run = Callable[..., Record]


@pytest.fixture(scope="module")
def compared(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, compare_task(task, out, "sft,dft")


def evaluation(folder: Path) -> Record:
    return dict(json.loads((folder / "evaluation.json").read_text()))


def stamps(out: Path) -> dict[Path, int]:
    kept = {"comparison.json", "report.html", ".lock"}
    return {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name not in kept}


def test_the_record(compared: tuple[Path, Record], task: Task) -> None:
    out, record = compared
    assert json.loads((out / "comparison.json").read_text()) == record
    assert (record["format"], record["model"], record["seeds"]) == (1, task["model"], [0])
    assert [(arm["label"], arm["objective"], arm["dropped"]) for arm in record["arms"]] == [
        ("sft", "sft", None),
        ("dft", "dft", None),
    ]
    assert record["benchmarks"] == {"inside": "in", "outside": "out"}
    assert record["problems"] == {"inside": 32, "outside": 6}  # nothing is chosen, so nothing is set aside
    assert record["validation"] == {}
    for arm in record["arms"]:
        assert (out / arm["runs"]["0"] / "summary.json").is_file()
    verdict = record["verdict"]["benchmarks"]
    assert {name: one["domain"] for name, one in verdict.items()} == record["benchmarks"]
    assert list(verdict["inside"]["arms"]) == ["base", "sft", "dft"]
    assert verdict["inside"]["arms"]["sft"]["mean"] > verdict["inside"]["arms"]["base"]["mean"]
    pairs = {(pair["a"], pair["b"]): pair for pair in verdict["inside"]["pairs"]}
    assert set(pairs) == {("sft", "base"), ("dft", "base"), ("dft", "sft")}
    points = {point["label"]: point for point in record["points"]}
    assert {label: point["at"] for label, point in points.items()} == {"base": 0.0, "sft": 1.0, "dft": 1.0}
    for label, point in points.items():  # the figures of the verdict
        assert (out / point["folders"]["0"] / "evaluation").is_dir()
        for task, domain in record["benchmarks"].items():
            arm = verdict[task]["arms"][label]
            assert {name: point["scores"][domain][name] for name in ("mean", "low", "high", "by_seed")} == {
                name: arm[name] for name in ("mean", "low", "high", "by_seed")
            }
            assert point["greedy"][domain]["mean"] == arm["greedy"]
        assert point["validation"] == {}
    assert record["verdict"]["sentences"]
    assert (out / "report.html").stat().st_size > 10_000


def test_arms_differ_in_the_objective_only(compared: tuple[Path, Record]) -> None:
    out, record = compared
    configs = [json.loads((out / arm["runs"]["0"] / "config.json").read_text()) for arm in record["arms"]]
    differing = {name for name in configs[0] if configs[0][name] != configs[1][name]}
    assert differing == {"objective", "min_eos_weight", "output_dir", "run_name"}
    lines = [metrics(out / arm["runs"]["0"], "train") for arm in record["arms"]]
    assert [line["tokens"] for line in lines[0]] == [line["tokens"] for line in lines[1]]
    assert lines[0][0]["nll"] == lines[1][0]["nll"]  # the same rows, in the same order


def test_all_models_are_asked_the_same(compared: tuple[Path, Record]) -> None:
    out, record = compared
    folders = [out / record["base"], *(out / arm["runs"]["0"] for arm in record["arms"])]
    for kind, drawn in (("evaluation", (2, 1.0)), ("greedy", (1, 0.0))):
        asked = [evaluation(folder / kind) for folder in folders]
        for one in asked:
            assert (one["protocol"]["n"], one["protocol"]["temperature"]) == drawn
            for name in ("inside", "outside"):
                same = one["benchmarks"][name], asked[0]["benchmarks"][name]
                assert same[0]["first_prompt"] == same[1]["first_prompt"]
                assert same[0]["problem_ids"] == same[1]["problem_ids"]


def test_the_sharpening_control(compared: tuple[Path, Record]) -> None:
    """Base and sft are sampled as sharp as dft, whose own answers are the target."""
    out, record = compared
    assert record["matched_to"] == "dft"
    target = json.loads((out / "runs/dft/seed-0/entropy.json").read_text())["entropy"]
    for folder in (out / "runs/base", out / "runs/sft/seed-0"):
        match = json.loads((folder / "matched-dft/match.json").read_text())
        assert match["target"] == target
        assert evaluation(folder / "matched-dft")["protocol"]["temperature"] == match["temperature"] != 1
        assert 0 < match["drawn"] != match["entropy"]
    assert not list((out / "runs/dft").rglob("matched-*"))
    pair = record["verdict"]["benchmarks"]["inside"]["pairs"][-1]
    assert pair["sharpening"]["matched"] is not None
    assert pair["sharpening"]["greedy"] is not None


def test_checkpoints_of_finished_runs_are_put_away(compared: tuple[Path, Record]) -> None:
    assert not list(compared[0].rglob("checkpoints"))


def test_again_nothing_is_done_and_the_verdict_is_the_same(compared: tuple[Path, Record], task: Task) -> None:
    out, record = compared
    before = stamps(out)
    assert compare_task(task, out, "dft") == record  # what is there stays
    assert stamps(out) == before


def test_the_tables(compared: tuple[Path, Record]) -> None:
    shown = dict(tables(Comparison.model_validate(compared[1])))
    assert list(shown) == ["inside (in domain), 32 problems", "outside (out of domain), 6 problems"]
    rows = shown["inside (in domain), 32 problems"]
    assert [row["arm"] for row in rows] == ["base", "sft", "dft"]
    assert all("[" in row["avg@2"] and row["greedy"].endswith("%") for row in rows)


@pytest.mark.slow
def test_seeds_and_objectives_are_added(run: Run, tmp_path: Path) -> None:
    few = {"settings": {"max_steps": 4}, "tasks_out": [], "match_entropy": False}
    first = run("sft", **few)
    before = stamps(tmp_path / "out")
    record = run("power:alpha=0.5", seeds=2, **few)
    assert all(stamps(tmp_path / "out")[path] == stamp for path, stamp in before.items())
    assert [arm["label"] for arm in record["arms"]] == ["sft", "power alpha=0.5"]
    assert record["seeds"] == [0, 1]
    assert record["matched_to"] is None
    seeds = record["verdict"]["benchmarks"]["inside"]["arms"]["sft"]["by_seed"]
    assert seeds["0"] == first["verdict"]["benchmarks"]["inside"]["arms"]["sft"]["by_seed"]["0"]
    assert len(seeds) == 2
    pair = record["verdict"]["benchmarks"]["inside"]["pairs"][-1]
    assert (pair["a"], pair["b"], pair["seeds"]) == ("power alpha=0.5", "sft", 2)


@pytest.mark.slow
def test_phases_and_adapters(run: Run, tmp_path: Path) -> None:
    record = run("sft@0.5+dft@0.5", settings={"lora_r": 2}, match_entropy=False, tasks_out=[])
    (arm,) = record["arms"]
    folder = tmp_path / "out" / arm["runs"]["0"]
    assert {line["phase"] for line in metrics(folder, "train")} == {"sft", "dft"}
    assert (folder / "model" / "model.safetensors").is_file()  # merged, so that it can be asked


def test_a_comparison_begun_before_some_settings_were_there_is_the_same(
    compared: tuple[Path, Record], task: Task, tmp_path: Path
) -> None:
    out, record = compared
    settings = {
        key: value
        for key, value in record["settings"].items()
        if key not in ("stop", "project", "ignore_fields")
    }
    shutil.copytree(out, tmp_path / "old")
    (tmp_path / "old" / "comparison.json").write_text(json.dumps({**record, "settings": settings}))
    compare_task(task, tmp_path / "old", dry_run=True)
    with pytest.raises(UserError, match=r"stop was \[\], is \['Q:'\]"):
        compare_task(task, tmp_path / "old", stop=["Q:"], dry_run=True)


@pytest.mark.parametrize(
    ("objectives", "how", "settings", "line"),
    [
        ("sft,dft", {"num_samples": 3}, {}, "cannot be resumed with other settings: n was 2, is 3; restore them"),
        ("sft,dft", {"limit": 5}, {}, "limit was None, is 5"),
        ("sft,dft", {}, {"batch_size": 4, "seed": 1}, "batch_size was 8, is 4, seed was 0, is 1"),
        ("sft,dft", {"tasks_out": []}, {}, "benchmarks was {'inside': 'in', 'outside': 'out'}, is"),
        ("sft,dft", {"sweep": [1e-3]}, {}, "sweep was [], is [0.001]"),
    ],
)  # fmt: skip
def test_another_comparison_in_the_folder_is_refused(
    compared: tuple[Path, Record], task: Task, objectives: str, how: Record, settings: Record, line: str
) -> None:
    out, record = compared
    with pytest.raises(UserError) as caught:
        compare_task(task, out, objectives, settings=settings, **how)
    assert line in str(caught.value)
    assert json.loads((out / "comparison.json").read_text()) == record


@pytest.mark.parametrize(
    ("objectives", "how", "line"),
    [
        ("sft,dftt", {}, "unknown objective 'dftt'; did you mean 'dft'? known: asft, "),
        ("power:beta=1", {}, "'beta'"),
        ("sft,sft", {}, "--objectives: 'sft' is given twice"),
        ("sft,dft", {"seeds": 0}, "--seeds: must be at least 1 (got 0)"),
        ("sft", {"tasks_in": [], "tasks_out": []}, "nothing to compare on; give --tasks-in"),
        ("sft", {"tasks_in": ["gsm9k"]}, "unknown task or file 'gsm9k'"),
        ("sft,dft", {"race": "10"}, "--race: '10' is not a budget"),
        ("sft", {"race": "1h"}, "--race: requires at least two objectives"),
        (
            "sft,dft",
            {"race": "14steps"},
            "--race: 14steps is too little: 2 arms to step 3 and one of them to step 12",
        ),
        ("sft,dft", {"sweep": [0.0]}, "--sweep: learning rates must be between 0 and 1"),
        ("sft,dft", {"sweep_steps": 3}, "--sweep-steps: requires --sweep"),
        (
            "sft,dft",
            {"validation": "gsm8k"},
            "--validation: requires --sweep, --race, --margin or --eval-steps",
        ),
        ("sft,dft", {"margin": -1}, "--margin: must be at least 0 (got -1)"),
        ("sft,dft", {"margin": 100}, "--margin: must be below 100 (got 100)"),
        ("sft,dft", {"margin": float("nan")}, "--margin: must be a finite number (got nan)"),
        ("sft,dft", {"margin": 1, "tasks_out": []}, "--margin: requires --tasks-in and --tasks-out"),
        ("sft,dft", {"margin": 1, "limit": 1}, "inside has only one problem, so none can be held out"),
        ("sft,dft", {"margin": 1, "limit": 2}, "--tasks: needs two or more problems in domain, besides"),
        ("sft,dft", {"margin": 1, "against": "dpo"}, "--against: unknown arm 'dpo'; known: base, dft, sft"),
        ("sft,dft", {"against": "sft"}, "--against: requires --margin"),
        ("sft,dft", {"require": "superior"}, "--require: requires --margin"),
        (
            "sft,dft",
            {"margin": 1, "require": "superior"},
            "--require: requires --seeds 2 or more: one run says",
        ),
        (
            "sft,dft",
            {"sweep": [1e-3], "tasks_in": []},
            "sweep and race need other problems than the verdict",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_done(
    run: Run, tmp_path: Path, objectives: str, how: Record, line: str
) -> None:
    with pytest.raises(UserError) as caught:
        run(objectives, **how)
    assert line in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match="WORLD_SIZE: a comparison runs in one process; train each objective with acc"
    ):
        run()


def test_a_mistake_that_shows_when_asking_leaves_the_folder_free(run: Run, tmp_path: Path) -> None:
    """The base model is asked first, so too many new tokens are refused before any training."""
    with pytest.raises(UserError, match=r"max_new_tokens.*the model has 512"):
        run(max_new_tokens=4096)
    assert not (tmp_path / "out" / "comparison.json").exists()
    assert not (tmp_path / "out" / "runs" / "sft").exists()
    assert run(max_new_tokens=6, limit=3, dry_run=True)["problems"] == {"inside": 3, "outside": 3}


def test_two_at_once_are_refused(run: Run, tmp_path: Path) -> None:
    with (
        lock(tmp_path / "out", "comparing"),
        pytest.raises(UserError, match=r"another process .*is comparing in this folder"),
    ):
        run()


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    plan = run("sft,dft,power:alpha=0.5", seeds=2, sweep=[1e-3, 1e-2], race="1h", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert [(one["objective"], one["seed"], one["state"]) for one in plan["runs"]] == [
        (label, seed, "to do") for label in ("sft", "dft", "power alpha=0.5") for seed in (0, 1)
    ]
    assert (plan["steps_per_run"], plan["sweep"]) == (12, {"trials": 6, "steps": 18})
    assert plan["race"] == {"budget": "1h", "rungs": [3, 6]}
    assert plan["problems"] == {"inside": 24, "outside": 6}
    assert plan["validation"] == {"inside": 8}
    assert plan["tokens_to_train_on"] == pytest.approx(plan["tokens_per_run"] / 12 * (6 * 12 + 18), rel=0.05)
    assert plan["samples"] == 30 * (7 * (2 + 1) + 5 * 2)
    assert plan["validation_samples"] == 8 * 2 * (6 + 2 * 6)
    assert plan["seconds_of_training"] is None


def test_a_dry_run_counts_what_the_comparison_then_does(
    compared: tuple[Path, Record], task: Task, tmp_path: Path
) -> None:
    plan = compare_task(task, tmp_path / "out", "sft,dft", dry_run=True)
    drawn = 0
    for place in compared[0].rglob("evaluation.json"):
        if not place.parent.name.startswith("validation"):
            drawn += len((place.parent / "samples.jsonl").read_text().splitlines())
    assert plan["samples"] == drawn
    trained = [line["tokens"] for run in compared[0].glob("runs/*/seed-0") for line in metrics(run, "train")]
    assert plan["tokens_to_train_on"] == sum(trained) == 2 * plan["tokens_per_run"]


def test_a_dry_run_tells_the_time_from_finished_runs(compared: tuple[Path, Record], task: Task) -> None:
    plan = compare_task(task, compared[0], seeds=2, dry_run=True)
    assert [one["state"] for one in plan["runs"]] == ["finished", "to do"] * 2
    assert plan["seconds_of_training"] >= 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "comparison.json: the file is not JSON"),
        ("[]", "comparison.json: is not a comparison"),
        ('{"format": 1}', "comparison.json: is not a comparison"),
        (
            '{"format": 9, "settings": {}, "arms": [], "seeds": []}',
            "the file has format 9, this version reads 1",
        ),
    ],
)
def test_a_damaged_record_is_said_to_be(run: Run, tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.json").write_text(text)
    with pytest.raises(UserError) as caught:
        run()
    assert line in str(caught.value)


@pytest.mark.slow
def test_accuracy_over_steps(
    compared: tuple[Path, Record], task: Task, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training pauses for it, also on the way to a rung of a race, and ends with the bits of a run without pauses."""
    how = {"eval_steps": 5, "race": "50steps", "match_entropy": False}
    evaluate = Evaluator.evaluate

    def killed(self: Evaluator, folder: Path, *args: Any) -> None:
        if folder.parent.name == "step-10":
            raise RuntimeError("killed")
        evaluate(self, folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run("sft,dft", **how)
    record = run("sft,dft", **how)
    paths: dict[str, list[int]] = {}
    for point in record["points"]:
        assert set(point["validation"]) == {"in", "out"}
        if point["step"] is not None:
            paths.setdefault(point["arm"], []).append(point["step"])
            assert point["scores"] == {}
    assert paths == {"sft": [5, 10, 12], "dft": [5, 10, 12]}
    folder = tmp_path / "out" / "runs" / "sft" / "seed-0"
    assert [evaluation(folder / f"step-{step}" / "validation")["protocol"]["n"] for step in (5, 10)] == [2, 2]
    assert record["validation"] == {"inside": 8, "outside": 2} and record["problems"] == {
        "inside": 24,
        "outside": 4,
    }
    one, other = weights(folder), weights(compared[0] / "runs" / "sft" / "seed-0")
    assert all(torch.equal(one[name], other[name]) for name in one)
    (folder / "step-5" / "validation").rename(folder / "validation-step-0005")  # as version 0.2 had it
    assert run("sft,dft", **how)["points"] == record["points"]


def test_without_both_domains_there_is_no_accuracy_over_steps(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rectune")
    plan = run(eval_steps=5, tasks_out=[], dry_run=True)
    assert plan["validation"] == {} and "it needs --tasks-in and --tasks-out" in caplog.text
    assert run(eval_steps=5, dry_run=True)["validation_samples"] > 0
