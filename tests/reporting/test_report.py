"""`report` from real runs of a tiny model: what the page says, in what order, and that it holds all it says as data."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from rectune.cli.app import main
from rectune.errors import UserError
from rectune.reporting.report import markdown, page, report
from rectune.training.metrics import PROBABILITY_BINS
from reported import comparison, edit, read_lines, write_lines


@pytest.fixture(scope="module")
def data(runs: Path) -> dict[str, Any]:
    return report([runs], benchmarks_in=["sums"])


def test_seeds_are_put_together_and_the_base_is_told(data: Any) -> None:
    assert [(arm["label"], arm["seeds"]) for arm in data["arms"]] == [
        ("base", []),
        ("sft", [0, 1]),
        ("dft", [0, 1]),
    ]
    assert data["title"] == "sft against dft"
    assert data["notes"] == []
    assert json.loads(json.dumps(data)) == data


def test_the_verdict_is_the_paired_one(data: Any) -> None:
    judged = data["verdict"]["judged"]["benchmarks"]["sums"]
    assert not data["verdict"]["open"]
    assert judged["domain"] == "in"
    assert {name: round(arm["mean"], 3) for name, arm in judged["arms"].items()} == {
        "base": 0.0, "sft": 0.583, "dft": 0.583
    }  # fmt: skip
    (pair,) = [p for p in judged["pairs"] if (p["a"], p["b"]) == ("dft", "sft")]
    assert (pair["difference"], pair["problems"], pair["seeds"]) == (0, 6, 2)
    for arm, sentence in zip(("sft", "dft"), data["verdict"]["sentences"], strict=False):
        assert sentence.startswith(
            f"no difference between {arm} and the base model can be shown: +58.3 points ["
        )
    assert data["verdict"]["sentences"][2].startswith(
        "In domain (sums): base 0.0 %, sft 58.3 %, dft 58.3 %; no"
    )


def test_without_accuracies_no_winner_is_named(runs: Path, copy: Any) -> None:
    folders = [copy(f"{arm}/seed-0") for arm in ("sft", "dft")]
    for folder in folders:
        for path in (folder / "evaluation").iterdir():
            path.unlink()
    found = report(folders)
    assert found["verdict"]["open"] and found["verdict"]["judged"] is None
    assert found["verdict"]["sentences"] == [
        "The verdict is open: accuracy was not measured. A falling loss does not say which model solves more "
        "problems, and neither does NLL, which DFT may raise while its answers get better."
    ]
    text = markdown(found)
    assert "beats" not in text and "## Accuracy" not in text
    alone = report([runs / "dft" / "seed-0"])
    assert alone["verdict"]["open"]
    assert "only dft was evaluated" in alone["verdict"]["sentences"][0]


def test_what_training_did_is_there(data: Any, runs: Path) -> None:
    assert {(one["label"], one["seed"]) for one in data["curves"]} == {
        (a, s) for a in ("sft", "dft") for s in (0, 1)
    }
    one = data["curves"][0]
    assert [line["step"] for line in one["holdout"]] == [0, 1, 2, 3]
    assert {"nll", "mean_p", "accuracy"} <= set(one["holdout"][0])
    assert [line["step"] for line in one["train"]] == [1, 2, 3]
    assert {"kl", "entropy", "eos_p", "length"} <= set(one["drift"][-1])
    before, after = data["holdout"][0]["before"], data["holdout"][0]["after"]
    summary = json.loads((runs / "sft" / "seed-0" / "summary.json").read_text())
    assert after["nll"] == pytest.approx(summary["after"]["nll"])
    assert after["nll"] < before["nll"]
    histogram = data["histograms"]["arms"]["sft"]
    assert data["histograms"]["bins"] == list(PROBABILITY_BINS)
    counts = summary["after"]["histogram"]
    assert histogram["after"] == pytest.approx([count / sum(counts) for count in counts])
    assert histogram["targets"] == 2 * sum(counts)


def test_token_changes_come_from_the_probe(data: Any, runs: Path) -> None:
    rows = json.loads((runs / "dft" / "seed-0" / "probe.json").read_text())["rows"]
    ends = [
        after - before
        for row in rows
        for token, before, after in zip(row["tokens"], row["before"], row["after"], strict=True)
        if token == "<|im_end|>"
    ]
    change = next(one for one in data["tokens"]["dft"]["gain"] if one["token"] == "<|im_end|>")
    assert change["change"] == pytest.approx(sum(ends) / len(ends))
    assert change["count"] == 2 * len(ends)  # two seeds
    assert all(one["change"] < 0 for one in data["tokens"]["dft"]["loss_once"])


def test_answers_are_of_the_same_problems_and_chosen_by_a_rule(data: Any) -> None:
    (sums,) = data["answers"]
    assert sums["labels"] == ["base", "sft", "dft"]
    assert (sums["problems"], sums["disagree"], sums["all"], sums["none"]) == (6, 5, 0, 1)
    right = [
        tuple(answer["label"] for answer in problem["answers"] if answer["verdict"] == "correct")
        for problem in sums["shown"]
    ]
    # in turns: only dft, only sft, both; then the one that none has
    assert right == [("dft",), ("sft",), ("sft", "dft"), ("dft",), ("sft",), ()]
    assert sums["shown"][2]["prompt"] == "2 and 2?" and sums["shown"][2]["gold"] == "4"


def test_settings_environment_and_cost(data: Any) -> None:
    assert data["settings"]["differ"] == {
        "objective": {"sft": "sft", "dft": "dft"}, "min_eos_weight": {"sft": "0", "dft": "1"},
    }  # fmt: skip
    assert data["settings"]["same"]["batch_size"] == "7"
    assert "torch" in data["environment"]["same"] and not data["environment"]["differ"]
    assert [(one["label"], one["seed"], one["state"], one["steps"]) for one in data["cost"]] == [
        (arm, seed, "finished", 3) for arm in ("sft", "dft") for seed in (0, 1)
    ]


def test_an_environment_that_differs_is_flagged(copy: Any) -> None:
    one, other = copy("sft/seed-0"), copy("dft/seed-0")
    packages = json.loads((one / "environment.json").read_text())["packages"]
    edit(other / "environment.json", packages={**packages, "torch": "1.0"})
    found = report([one, other])
    assert set(found["environment"]["differ"]["torch"]) == {packages["torch"], "1.0"}
    assert "can come from that" in markdown(found)


def test_arms_with_one_objective_are_told_apart_by_what_differs(copy: Any) -> None:
    one, other = copy("dft/seed-0"), copy("dft/seed-0", "faster")
    edit(other / "config.json", learning_rate=0.5)
    assert [arm["label"] for arm in report([one, other])["arms"]] == [
        "dft (learning_rate=0.003)", "dft (learning_rate=0.5)",
    ]  # fmt: skip
    edit(other / "config.json", learning_rate=0.003, objective="power:alpha=0.25")
    assert [arm["label"] for arm in report([one, other])["arms"]] == ["dft", "power alpha=0.25"]


def test_polarisation_is_said_where_both_ends_grow(copy: Any) -> None:
    folder = copy("dft/seed-0")
    summary = json.loads((folder / "summary.json").read_text())
    summary["before"]["histogram"] = [2, *[8] * 11, 10]
    summary["after"]["histogram"] = [20, *[4] * 11, 36]
    edit(folder / "summary.json", **summary)
    one = report([folder])["histograms"]["arms"]["dft"]
    assert one["polarises"]
    assert one["sentence"].startswith(
        "dft polarises: both ends grow; targets below p = 0.0001 go from 2.0 % to 20.0 %"
    )
    summary["after"]["histogram"] = [1, *[4] * 11, 55]
    edit(folder / "summary.json", **summary)
    one = report([folder])["histograms"]["arms"]["dft"]
    assert not one["polarises"]
    assert one["sentence"].startswith("dft only grows at the top")


def test_a_comparison_names_its_arms_and_domains(runs: Path, tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", runs)
    found = report([folder])
    assert [arm["label"] for arm in found["arms"]] == ["base", "the dft", "the sft"]
    assert found["verdict"]["sentences"][2].startswith(
        "Out of domain (sums): base 0.0 %, the dft 58.3 %, the sft 58.3 %"
    )
    kept = {**found["verdict"]["judged"], "sentences": ["As it was judged then"]}
    edit(folder / "comparison.json", verdict=kept)
    assert report([folder])["verdict"]["sentences"] == ["As it was judged then."]
    assert report([folder], benchmarks_in=["sums"])["verdict"]["sentences"][2].startswith("In domain (sums)")
    del kept["headline"]  # as older versions wrote it
    edit(folder / "comparison.json", verdict=kept)
    assert report([folder])["verdict"] == found["verdict"]
    edit(folder / "comparison.json", verdict={"benchmarks": {"sums": 3}})
    assert report([folder])["verdict"] == found["verdict"]


def test_trials_of_a_sweep_are_no_arms(runs: Path, tmp_path: Path) -> None:
    sweep = {
        "max_steps": 2, "problems": 9,
        "arms": {"dft": {"label": "the dft", "learning_rate": 0.01, "edge": True, "trials": [
            {"learning_rate": 0.01, "accuracy": {"mean": 0.5, "low": 0.1, "high": 0.9}}]}},
    }  # fmt: skip
    folder = comparison(tmp_path / "c", runs, sweep=sweep)
    shutil.copytree(folder / "runs" / "dft" / "seed-0", folder / "sweep" / "dft" / "lr-0.01")
    found = report([folder])
    assert [arm["label"] for arm in found["arms"]] == ["base", "the dft", "the sft"]
    assert len(found["cost"]) == 4
    assert "learning rate of the dft: 0.01, by accuracy on 9 validation problems" in found["choices"][0]


def test_a_diagnosis_is_quoted(runs: Path, tmp_path: Path) -> None:
    record = {"format": 1, "verdict": {"sentence": "DFT fits."}, "risks": [{"name": "duplicates"}]}
    (tmp_path / "diagnosis.json").write_text(json.dumps(record))
    found = report([runs / "dft" / "seed-0", tmp_path])
    assert found["diagnoses"] == [{"where": str(tmp_path), "sentence": "DFT fits.", "risks": "duplicates"}]
    assert "DFT fits. Risks: duplicates." in page(found)


def test_the_page_loads_nothing_and_starts_with_the_verdict(data: Any) -> None:
    html = page(data)
    assert html.index("Verdict</h2>") < html.index("Accuracy</h2>") < html.index("Cost</h2>")
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', html)
    assert html.count("<svg") == 2 + 3 + 2 + 2 + 6
    assert "is -p log p per token" in html  # the caveat beside the objective's own value


def test_both_formats_hold_the_same_tables(data: Any) -> None:
    html, text = page(data), markdown(data)
    for words in ("What the answers look like", "p of turn ends", "polarises", "settings that are the same"):
        assert words in html and words in text
    assert text.count("<details>") == text.count("</details>")
    assert len(text) < 60_000  # fits a pull request


def test_from_the_command_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(runs / "sft" / "seed-0"), str(runs / "dft" / "seed-0")]
    assert main(["report", *folders]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "report.html" and shown[0].startswith("sums: ")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert main(["report", *folders, "--format", "markdown", "--output", "a/b.md"]) == 0
    assert (tmp_path / "a" / "b.md").read_text().startswith("# sft against dft\n")
    capsys.readouterr()
    assert main(["report", *folders, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "sft against dft"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "report.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "no folder given"),
        (["report", "nowhere"], "nowhere: no such folder"),
        (["report", "file"], "file: is a file, not a folder"),
        (["report", "."], "nothing to report"),
        (["report", "RUN", "--tasks-in", "gsm9"], "unknown benchmark 'gsm9'; known: sums"),
        (["report", "RUN", "--output", "file/x.html"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([str(runs / "dft") if one == "RUN" else one for one in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_unknown_format_lists_the_known_ones(runs: Path) -> None:
    with pytest.raises(UserError, match="known: html, markdown"):
        report([runs], format="pdf")  # type: ignore[arg-type]


def test_evaluations_of_other_models_stand_by_themselves(runs: Path, copy: Any) -> None:
    """The demo's layout: evaluations beside the runs they are of; and one of a model that is not among the runs."""
    run, away = copy("dft/seed-0"), copy("sft/seed-0/evaluation", "evaluations/other")
    edit(away / "evaluation.json", training_run=None, model="org/other-model")
    beside = run.parent.parent / "evaluations" / "dft"
    (run / "evaluation").rename(beside)
    edit(beside / "evaluation.json", training_run=str(run))
    found = report([run, beside, away])
    assert [(arm["label"], len(arm["evaluations"])) for arm in found["arms"]] == [
        ("dft", 1),
        ("other-model", 1),
    ]
    assert set(found["verdict"]["judged"]["benchmarks"]["sums"]["arms"]) == {"dft", "other-model"}
    write_lines(beside / "graded.jsonl", read_lines(beside / "graded.jsonl")[:3])  # not finished after all
    found = report([run, beside, away])
    assert found["verdict"]["open"]
    assert any("samples of problem" in note["what"] for note in found["notes"])
