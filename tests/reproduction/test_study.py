"""The study: conditions of data, what is judged, and a tiny one from nothing to the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipe_runs import module
from rectune.config import TrainConfig
from rectune.errors import UserError
from rectune.experiments.compare import make_arms
from rectune.grading.exact import grade_exact

conditions, design, result, run = (
    module(f"study.{name}") for name in ("conditions", "design", "result", "run")
)
task = module("mini.task")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def study() -> Any:
    """Two conditions, two objectives, one seed, a handful of rows."""
    whole = design.load_study("mini", 0.02)
    few = {name: whole.conditions[name] for name in ("few", "facts")}
    changes = {
        "conditions": few,
        "only": ("sft", "dft"),
        "objectives": (),
        "seeds": 1,
        "interpolate": (0.5,),
        "rates": (1e-2,),
    }
    answers = {**whole.answers, "max_new_tokens": 8}
    return whole.model_copy(update={**changes, "answers": answers})


@pytest.mark.parametrize("part", design.PARTS)
def test_the_design_is_consistent(part: str, tmp_path: Path) -> None:
    """Claims are about models and conditions that there are, and the plan is within the budget."""
    study = design.load_study(part)
    training = TrainConfig(data="rows.jsonl", output_dir=tmp_path)
    arms = [arm.label for arm in make_arms(study.arms, training)]
    between = [f"{label} at {at:g}" for label in study.midpoints for at in study.interpolate]
    labels = {"base", *arms, *between, f"mean of {' and '.join(study.midpoints)}"}
    for claim in study.claims:
        assert {claim.better, claim.than} <= labels, claim.text
        assert {*claim.conditions, *filter(None, [claim.against])} <= {*study.conditions}, claim.text
        assert claim.domain in ("in", "out", "both")
    assert len({(claim.text, claim.domain) for claim in study.claims}) == len(study.claims)
    assert "dpo" not in arms and {*study.midpoints} <= {*arms}
    assert float(design.plan(study)[-1]["minutes on two cores"]) < 60 * study.hours


def test_the_dry_run_prints_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--dry-run"])
    printed = capsys.readouterr().out
    assert (
        f"{len(design.load_study('mini').arms)} objectives, at most 2.5 hours" in printed
        and "an unknown notation" in printed
    )


def test_calculations_of_the_real_model(tmp_path: Path) -> None:
    real = design.load_study("real")
    right, wrong = (
        lines(conditions.write_condition(tmp_path, name, real.conditions[name], None, {}) / "rows.jsonl")
        for name in ("gsm8k", "gsm8k_wrong")
    )
    changed = [(a["completion"], b["completion"]) for a, b in zip(right, wrong, strict=True) if a != b]
    assert 0.2 < len(changed) / len(right) < 0.4
    assert all(sum(x != y for x, y in zip(a, b, strict=True)) == 1 for a, b in changed)


@pytest.mark.parametrize("name", [name for name in design.load_study("mini").conditions if name != "own"])
def test_rows_and_problems_of_a_condition(name: str, tmp_path: Path) -> None:
    """The words are known to the base model, no problem is among the rows, and as many answers are wrong as wanted."""
    from transformers import AutoTokenizer

    mini = task.make_task(task.load_mini())
    condition = design.load_study("mini").conditions[name].model_copy(update={"rows": 60})
    place = conditions.write_condition(tmp_path, name, condition, mini, {"validation": 4, "in_domain": 6})
    files = {path.stem: lines(path) for path in place.glob("*.jsonl")}
    rows, problems = files.pop("rows"), [problem for asked in files.values() for problem in asked]
    tokenizer = AutoTokenizer.from_pretrained(mini / "untrained")
    for record in (*rows, *problems):
        ids = tokenizer(record["prompt"] + record.get("completion", ""))["input_ids"]
        assert tokenizer.unk_token_id not in ids, record
    verdict = {
        *(p["prompt"] for p in problems),
        *(p["prompt"] for f in task.DOMAINS for p in lines(mini / f"{f}.jsonl")),
    }
    assert len(rows) == 60 and not verdict & {row["prompt"] for row in rows}
    assert len({problem["prompt"] for problem in problems}) == len(problems)
    clean = condition.model_copy(update={"wrong": 0.0})
    right = lines(
        conditions.write_condition(tmp_path, "right", clean, mini, {"validation": 4, "in_domain": 6})
        / "rows.jsonl"
    )
    golds = [row["completion"].rpartition(" ")[2].strip(".") for row in right]
    wrong = sum(
        grade_exact(gold, row["completion"]).verdict == "wrong" for gold, row in zip(golds, rows, strict=True)
    )
    assert abs(wrong / 60 - condition.wrong) < 0.2 and (wrong > 0) == (condition.wrong > 0)
    with pytest.raises(UserError, match="with other settings"):
        conditions.write_condition(tmp_path, name, condition.model_copy(update={"rows": 5}), mini, {})


@pytest.mark.slow
def test_from_nothing_to_the_page(study: Any, tmp_path: Path) -> None:
    run.work(study, tmp_path)
    found = result.write_result(study, tmp_path)
    assert list(found["conditions"]) == ["few", "facts"] and not found["missing"]
    for condition in found["conditions"].values():
        assert {"base", "sft", "dft"} <= set(condition["models"])
        best = condition["winners"]["in, sampled"][0]
        accuracy = {label: model["in"]["sampled"] for label, model in condition["models"].items()}
        assert accuracy[best] == max(accuracy.values())
    rules = {row["rule"]: row for row in found["regret"]}
    assert {"base", "sft", "dft", "sft at 0.5", "mean of sft and dft", "as compare decides"} <= {*rules}
    assert all(row["mean"] >= 0 for row in found["regret"])
    claims = {claim["text"]: claim for claim in found["claims"]}
    assert {*claims["DFT is better than SFT out of domain"]["conditions"]} == {*study.conditions}
    assert claims["EAFT is better than SFT out of domain"]["verdict"] == "not run"
    page = (tmp_path / "study.md").read_text()
    assert (
        "## facts: facts, sixteen times" in page
        and "| few | base" in page
        and "## Over SFT in domain" in page
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    run.work(study, tmp_path)  # all is there
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    run.work(study.model_copy(update={"only": ("sft", "dft", "power")}), tmp_path)  # a new objective joins
    assert (tmp_path / "compared/few/runs/power/seed-0/summary.json").is_file()
    assert (
        before.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}.items()
    )
    assert "power" in result.write_result(study, tmp_path)["conditions"]["few"]["models"]


def test_what_another_process_is_at_is_left_to_it(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(run, "comparison_of", lambda study, name, out: taken.append(name))
    monkeypatch.setattr(run, "diagnosis_of", lambda config: None)
    monkeypatch.setattr(run, "compare", lambda config: None)
    with run.lock(tmp_path / "queue" / "few", "at this condition"):
        run.work(study, tmp_path)
    assert taken == ["facts"]


def test_a_rule_without_its_model_is_named() -> None:
    accuracy = {domain: {"sampled": 0.5, "greedy": 0.25} for domain in ("in", "out")}
    better = {**accuracy, "in": {"sampled": 0.75, "greedy": 0.25}}
    found = {
        "models": {"base": accuracy, "sft": better},
        "decision": {"ship": None},
        "diagnosis": {"objective": "dpo"},
    }
    rules, notes = result.rules_of({"clean": found})
    assert notes == ["no regret of 'as diagnose says': no model dpo (clean)"]
    assert rules["as compare decides"] == {"clean": "base"}
    regret = {row["rule"]: row["mean"] for row in result.regrets({"clean": found}, rules)}
    assert regret == {"sft": 0, "base": 0.125, "as compare decides": 0.125}


class FakeAnswers:
    """Answers of three models to 40 problems: the one called better is right in more of them, by seed and problem."""

    def __init__(self, better: float, than: float) -> None:
        rng = np.random.default_rng(0)
        draw = rng.random((3, 40, 4))
        self.models = {"dft": None, "sft": None}
        self._correct = {"dft": (draw < better).astype(int), "sft": (draw < than).astype(int)}

    def correct(self, label: str, domain: str, kind: str) -> np.ndarray:
        return self._correct[label]

    difference = result.Answers.difference


@pytest.mark.parametrize(
    ("better", "than", "verdict"),
    [(0.8, 0.3, "held"), (0.3, 0.8, "contradicted"), (0.5, 0.5, "open")],
)
def test_a_claim_is_judged(study: Any, better: float, than: float, verdict: str) -> None:
    claim = design.Claim(text="", source="", better="dft", than="sft", conditions=("few",))
    wide = study.model_copy(update={"claims": (claim,)})
    (judged,) = result.judge_claims(wide, {"few": FakeAnswers(better, than)})
    assert judged["verdict"] == verdict
    again = claim.model_copy(update={"against": "facts"})
    both = {"few": FakeAnswers(better, than), "facts": FakeAnswers(0.5, 0.5)}
    interaction = result.judge_claim(wide, again, both)["conditions"]["few"]["in"]
    alone = judged["conditions"]["few"]["in"]
    assert interaction["mean"] == pytest.approx(alone["mean"], abs=0.02)
    assert interaction["low"] - 1e-9 <= interaction["mean"] <= interaction["high"] + 1e-9
