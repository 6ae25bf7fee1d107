"""The paper's figures are whole, add up where no note says otherwise, and are what ours are put beside."""

from __future__ import annotations

from typing import Any

import pytest

from recipe_runs import RECIPES, module
from rectune.records import ArmResult, PairResult, Verdict

paper = module("paper.figures")
TABLES = sorted(paper.figures()["tables"])


@pytest.mark.parametrize("name", TABLES)
def test_averages_add_up_or_are_noted(name: str) -> None:
    table = paper.paper_table(name)
    for row in table.rows:
        if row.average is None:
            continue
        assert row.average == pytest.approx(sum(row.values.values()) / len(row.values), abs=paper.ROUNDING)
        noted = any(f"{row.model} {row.arm}" in note and "printed" in note for note in table.notes)
        assert noted == (abs(row.printed - row.average) > paper.ROUNDING)


def test_the_three_wrong_averages_are_known() -> None:
    """Two are in the rows that a recipe trains; the third, of the same 0.4, is another row of the LoRA table."""
    wrong = [note for note in paper.paper_table("table9").notes if note.startswith("the average of")]
    assert len(wrong) == 3


def test_every_recipe_has_its_figures() -> None:
    assert list(RECIPES) == TABLES
    for name in TABLES:
        recipe, table = RECIPES[name], paper.paper_table(name)
        labels = {arm.label for arm in recipe.arms}
        assert recipe.against in labels
        if table.rows:
            for model in recipe.model:
                for label in labels | {"base"}:
                    row = table.row(model, label)
                    assert row is not None or label == "base", (name, model, label)
                    if row and name != "natural_questions":
                        assert row.model == model.rpartition("/")[2]
            assert {name for row in table.rows for name in row.values} <= set(recipe.benchmarks)


def test_spread_of_the_papers_own_runs() -> None:
    assert paper.run_spread("amc23") == pytest.approx(1.96 * ((3.91**2 + 4.38**2) / 2 / 2) ** 0.5)
    assert paper.run_spread("humaneval") is None
    assert 1 < paper.run_spread(None) < 2  # about a point between two runs


def arm(mean: float, half: float = 0.01) -> ArmResult:
    return ArmResult(mean=mean, low=mean - half, high=mean + half, seeds=1, by_seed={}, pass_at={})


def verdict(**tasks: dict[str, Any]) -> Verdict:
    return Verdict.model_validate(
        {
            "benchmarks": {name: {"problems": 9, "domain": "in", **t} for name, t in tasks.items()},
            "sentences": [],
        }
    )


def test_beside_at_full_scale() -> None:
    table = paper.paper_table("table2")
    values = table.row("Qwen/Qwen2.5-Math-1.5B", "DFT").values
    tasks = {
        name: {"arms": {"DFT": arm(values[name] / 100 + 0.2)}, "pairs": []}
        for name in paper.figures()["repeated"]["columns"]
    }
    tasks["math500"]["arms"] = {"DFT": arm(values["math500"] / 100 + 0.001)}
    found = paper.compare_full(table, "Qwen/Qwen2.5-Math-1.5B", verdict(**tasks))
    rows = {row["benchmark"]: row for row in found}
    assert rows["math500"]["difference"] == pytest.approx(0.1)
    assert rows["math500"]["within_noise"] and not rows["minerva"]["within_noise"]
    assert rows["average"]["difference"] == pytest.approx((4 * 20 + 0.1) / 5, abs=paper.ROUNDING)
    both = paper.average([arm(0.2, 0.03), arm(0.4, 0.04)])
    assert (both.mean, both.low, both.high) == pytest.approx((0.3, 0.275, 0.325))


def test_beside_at_mini_scale_tells_directions_and_noise() -> None:
    def pair(a: str, b: str, difference: float, shown: bool) -> PairResult:
        low, high = difference - 0.02, difference + 0.02
        return PairResult(
            a=a,
            b=b,
            difference=difference,
            low=low,
            high=high,
            shown=shown,
            p_value=0.5,
            problems=9,
            seeds=1,
            p_holm=0.5,
            verdict="",
            sentence="",
        )

    view = {
        "arms": {"base": arm(0.3), "SFT": arm(0.5), "DFT": arm(0.4), "DPO": arm(0.51)},
        "pairs": [
            pair("SFT", "base", 0.2, True),
            pair("DFT", "SFT", -0.1, True),
            pair("SFT", "DPO", -0.01, False),
        ],
    }
    rows = paper.compare_mini(paper.paper_table("table2"), "Qwen2.5-Math-1.5B", "SFT", verdict(x=view))
    by = {row["arm"]: row for row in rows}
    assert by["base"]["gain"] == pytest.approx(-20) and by["base"]["agrees"]  # below SFT there as well
    assert by["DFT"]["gain"] == pytest.approx(-10) and by["DFT"]["agrees"] is False
    assert by["DPO"]["gain"] == pytest.approx(1) and by["DPO"]["within_noise"] and by["DPO"]["agrees"] is None
    assert by["SFT"]["gain"] is None
    assert paper.order(rows, "in", "ours") == ["DPO", "SFT", "DFT", "base"]
