"""`report` from real runs of a tiny model: what the page says, in what order, and that it holds all it says as data."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diagnosed import diagnosis
from evaluations import ONE, write_evaluation
from rectune.cli.app import main
from rectune.errors import UserError
from rectune.pages.plots import COLOURS
from rectune.records import Evaluation, read_record
from rectune.reporting.figures import draw_figures
from rectune.reporting.grouping import group
from rectune.reporting.load_runs import EvaluationFolder, LoadedFolders, LoadedRun, NoteList
from rectune.reporting.page_model import Opening, Report, Spot, SpotKind, SpotScore
from rectune.reporting.report import markdown, page, report
from rectune.reporting.tradeoff import draw_tradeoff
from rectune.training.metrics import PROBABILITY_BINS
from reported import comparison, edit, read_lines, sweep, trade, write_lines


@pytest.fixture(scope="module")
def data(runs: Path) -> Report:
    return report([runs], benchmarks_in=["sums"])


def labels(found: Report) -> list[str]:
    return [arm.label for arm in found.arms]


def test_seeds_are_put_together_and_the_verdict_is_the_paired_one(data: Report) -> None:
    seeds = {arm.label: arm.seeds for arm in data.arms}
    assert seeds == {"base": [], "sft": [0, 1], "dft": [0, 1]} and list(seeds) == ["base", "sft", "dft"]
    assert data.title == "sft against dft" and data.notes == []
    assert json.loads(json.dumps(data.to_dict())) == data.to_dict()
    assert data.verdict.judged is not None and not data.verdict.open
    sums = data.verdict.judged.benchmarks["sums"]
    assert sums.domain == "in"
    assert {name: round(arm.mean, 3) for name, arm in sums.arms.items()} == {
        "base": 0.0,
        "sft": 0.583,
        "dft": 0.583,
    }
    (pair,) = [p for p in sums.pairs if (p.a, p.b) == ("dft", "sft")]
    assert (pair.difference, pair.problems, pair.seeds) == (0, 6, 2)
    first, second, third = data.verdict.sentences[:3]
    for arm, sentence in (("sft", first), ("dft", second)):
        assert sentence.startswith(
            f"no difference between {arm} and the base model can be shown: +58.3 points ["
        )
    assert third.startswith("In domain (sums): base 0.0 %, sft 58.3 %, dft 58.3 %; no")


def test_without_accuracies_no_winner_is_named(runs: Path, copy: Any) -> None:
    folders = [copy(f"{arm}/seed-0") for arm in ("sft", "dft")]
    for folder in folders:
        shutil.rmtree(folder / "evaluation")
    found = report(folders)
    assert found.verdict.open and found.verdict.judged is None
    (sentence,) = found.verdict.sentences
    assert sentence.startswith("The verdict is open: accuracy was not measured.")
    text = markdown(found)
    assert "beats" not in text and "## Accuracy" not in text
    alone = report([runs / "dft" / "seed-0"])
    assert alone.verdict.open and "only dft was evaluated" in alone.verdict.sentences[0]


def test_what_training_did_is_there(data: Report, runs: Path) -> None:
    assert {(run.label, run.seed) for run in data.curves} == {(a, s) for a in ("sft", "dft") for s in (0, 1)}
    run = data.curves[0]
    assert [point["step"] for point in run.holdout] == [0, 1, 2, 3]
    assert {"nll", "mean_p", "accuracy"} <= set(run.holdout[0])
    assert [point["step"] for point in run.train] == [1, 2, 3]
    assert {"kl", "entropy", "eos_p", "length"} <= set(run.drift[-1])
    summary = json.loads((runs / "sft" / "seed-0" / "summary.json").read_text())
    before, after = data.holdout[0].before, data.holdout[0].after
    assert after["nll"] == pytest.approx(summary["after"]["nll"])
    assert before["nll"] is not None and after["nll"] is not None and after["nll"] < before["nll"]
    assert data.histograms.bins == list(PROBABILITY_BINS)
    counts, shift = summary["after"]["histogram"], data.histograms.arms["sft"]
    assert shift.after == pytest.approx([count / sum(counts) for count in counts])
    assert shift.targets == 2 * sum(counts)


def test_token_changes_come_from_the_probe(data: Report, runs: Path) -> None:
    rows = json.loads((runs / "dft" / "seed-0" / "token_logprobs.json").read_text())["rows"]
    ends = [
        after - before
        for row in rows
        for token, before, after in zip(row["tokens"], row["before"], row["after"], strict=True)
        if token == "<|im_end|>"
    ]
    change = next(change for change in data.tokens["dft"].gain if change.token == "<|im_end|>")
    assert change.change == pytest.approx(sum(ends) / len(ends))
    assert change.count == 2 * len(ends)  # two seeds
    assert all(change.change < 0 for change in data.tokens["dft"].loss_once)


def test_answers_are_of_the_same_problems_and_chosen_by_a_rule(data: Report) -> None:
    (sums,) = data.answers
    assert sums.labels == ["base", "sft", "dft"]
    assert (sums.problems, sums.disagree, sums.all, sums.none) == (6, 5, 0, 1)
    right = [
        tuple(answer.label for answer in problem.answers if answer.verdict == "correct")
        for problem in sums.shown
    ]
    # in turns: only dft, only sft, both; then the one that none has
    assert right == [("dft",), ("sft",), ("sft", "dft"), ("dft",), ("sft",), ()]
    assert sums.shown[2].prompt == "2 and 2?" and sums.shown[2].gold == "4"


def test_settings_environment_and_cost(data: Report, copy: Any) -> None:
    assert data.settings.differ == {
        "objective": {"sft": "sft", "dft": "dft"}, "min_eos_weight": {"sft": "0", "dft": "1"},
    }  # fmt: skip
    assert data.settings.same["batch_size"] == "7"
    assert "torch" in data.environment.same and not data.environment.differ
    assert [(run.label, run.seed, run.state, run.steps) for run in data.cost] == [
        (arm, seed, "finished", 3) for arm in ("sft", "dft") for seed in (0, 1)
    ]
    one, other = copy("sft/seed-0"), copy("dft/seed-0")
    packages = json.loads((one / "environment.json").read_text())["packages"]
    edit(other / "environment.json", packages={**packages, "torch": "1.0"})
    found = report([one, other])
    assert set(found.environment.differ["torch"]) == {packages["torch"], "1.0"}
    assert "can come from that" in markdown(found)


def test_arms_with_one_objective_are_told_apart_by_what_differs(copy: Any) -> None:
    one, other = copy("dft/seed-0"), copy("dft/seed-0", "faster")
    edit(other / "config.json", learning_rate=0.5)
    assert labels(report([one, other])) == ["dft (learning_rate=0.003)", "dft (learning_rate=0.5)"]
    edit(one / "config.json", data="a.jsonl")
    edit(other / "config.json", data="b.jsonl")
    assert labels(report([one, other])) == [
        "dft (data=a.jsonl, learning_rate=0.003)",
        "dft (data=b.jsonl, learning_rate=0.5)",
    ]
    edit(one / "config.json", data="b.jsonl")
    edit(other / "config.json", learning_rate=0.003, objective="power:alpha=0.25")
    assert labels(report([one, other])) == ["dft", "power alpha=0.25"]


@pytest.mark.parametrize(
    ("after", "start"),
    [
        (
            [20, *[4] * 11, 36],
            "dft polarises: both ends grow; targets below p = 0.0001 go from 2.0 % to 20.0 %",
        ),
        ([1, *[4] * 11, 55], "dft only grows at the top"),
    ],
)
def test_polarisation_is_said_where_both_ends_grow(copy: Any, after: list[int], start: str) -> None:
    folder = copy("dft/seed-0")
    summary = json.loads((folder / "summary.json").read_text())
    summary["before"]["histogram"], summary["after"]["histogram"] = [2, *[8] * 11, 10], after
    edit(folder / "summary.json", **summary)
    shift = report([folder]).histograms.arms["dft"]
    assert shift.polarises == ("polarises" in start) and shift.sentence.startswith(start)


def test_a_comparison_names_its_arms_and_domains(runs: Path, tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", runs)
    found = report([folder])
    assert labels(found) == ["base", "the dft", "the sft"]
    assert found.verdict.sentences[2].startswith(
        "Out of domain (sums): base 0.0 %, the dft 58.3 %, the sft 58.3 %"
    )
    assert found.verdict.judged is not None
    kept = {**found.verdict.judged.to_dict(), "sentences": ["As it was judged then"]}
    edit(folder / "comparison.json", verdict=kept)
    assert report([folder]).verdict.sentences == ["As it was judged then."]
    assert report([folder], benchmarks_in=["sums"]).verdict.sentences[2].startswith("In domain (sums)")
    del kept["headline"]  # as older versions wrote it
    edit(folder / "comparison.json", verdict=kept)
    assert report([folder]).verdict == found.verdict
    edit(folder / "comparison.json", verdict={"benchmarks": {"sums": 3}})
    assert any("is not a comparison (" in note.what for note in report([folder]).notes)


def test_trials_of_a_sweep_are_no_arms(runs: Path, tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", runs, sweep=sweep("the dft"))
    shutil.copytree(folder / "runs" / "dft" / "seed-0", folder / "sweep" / "dft" / "lr-0.01")
    found = report([folder])
    assert labels(found) == ["base", "the dft", "the sft"] and len(found.cost) == 4
    assert "learning rate of the dft: 0.01, by accuracy on 9 validation problems" in found.choices[0]


def test_a_diagnosis_is_quoted(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "diagnosis.json").write_text(json.dumps(diagnosis(rows=1)))
    found = report([runs / "dft" / "seed-0", tmp_path])
    (quote,) = found.diagnoses
    assert (quote.where, quote.risks) == (str(tmp_path), "end tokens, odd rows")
    assert quote.sentence + " Risks: end tokens, odd rows." in page(found)


def test_both_formats_hold_the_same_tables(data: Report) -> None:
    html, text = page(data), markdown(data)
    assert html.index("Verdict</h2>") < html.index("Accuracy</h2>") < html.index("Cost</h2>")
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', html)
    assert html.count("<svg") == 1 + 2 + 3 + 2 + 2 + 6
    assert "is -p log p per token" in html  # the caveat beside the objective's own value
    for words in ("What the answers look like", "p of turn ends", "polarises", "settings that are the same"):
        assert words in html and words in text
    assert text.count("<details>") == text.count("</details>")
    assert len(text) < 60_000  # fits a pull request


def test_a_comparison_opens_with_its_decision(runs: Path, tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", runs, **trade(steps=(2, 1)))
    shutil.copytree(
        folder / "runs" / "dft" / "seed-0" / "evaluation", folder / "runs" / "dft" / "seed-0" / "at-0.5" / "x"
    )
    found = report([folder])
    opening = found.opening
    assert opening.sentence.startswith("ship the dft at 0.5: +40.0") and opening.more == []
    assert [(spot.label, spot.kind) for spot in opening.spots] == [
        ("base", "base"), ("base, greedy", "base"), ("the dft", "arm"), ("the sft", "arm"),
        ("mean of dft and sft", "mean"), ("the sft, greedy", "other"), ("the dft at 0.5, greedy", "other"),
        ("the dft at 0.25", "between"), ("the dft at 0.5", "between"),
    ]  # fmt: skip
    assert [(curve.label, curve.steps, curve.scores["out"]) for curve in opening.curves] == [
        ("the dft", [0, 1, 2], [0.2, 0.01, 0.02])
    ]
    assert opening.facts[1:4] == [
        "Chosen on 8 other problems, so these figures do not favour it.",
        "Intervals of the decision's differences are of 90 %: each limit is a test at 5 % by itself.",
        "The base model answers best greedily.",
    ]
    assert "a true gain of 5 points is shown in 80 %" in opening.facts[4]
    assert found.notes == []  # the answers of a model between two are no second evaluation of the run
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    text = markdown(found)
    assert "| the sft (reference) | 60.0 \\[55.0, 65.0\\] | 30.0 \\[25.0, 35.0\\] |" in text
    assert "| **the dft at 0.5 (chosen)** | **58.0 \\[53.0, 63.0\\]** | **70.0 \\[65.0, 75.0\\]** |" in text
    assert "| the dft at 0.5 - the sft | -2.0 \\[-4.0, 1.0\\] | 40.0 \\[30.0, 50.0\\] |" in text
    assert "| both greedily | -20.0 | 25.0 |" in text
    assert text.index("**ship the dft at 0.5") < text.index("(chosen)") < text.index("## Verdict")


@pytest.mark.parametrize(
    ("protected", "words"), [("in", "and in domain at most"), ("out", "and out of domain at most")]
)
def test_the_figure_shades_what_the_margin_allows(
    runs: Path, tmp_path: Path, protected: str, words: str
) -> None:
    choice = trade()
    choice["decision"]["protected"] = protected
    ((drawn, caption),) = draw_figures(report([comparison(tmp_path / "c", runs, **choice)]))["opening"]
    assert (
        f"better than the sft {'out of' if protected == 'in' else 'in'} domain, {words} 5.0 points lower"
        in caption
    )
    assert "var(--good)" in drawn and "Ring: the model chosen" in caption
    choice["decision"] = None
    ((drawn, caption),) = draw_figures(report([comparison(tmp_path / "d", runs, **choice)]))["opening"]
    assert "var(--good)" not in drawn and "Shaded" not in caption and "Ring" not in caption


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
    with pytest.raises(UserError, match="known: html, markdown"):
        report([runs], format="pdf")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "no folder given"),
        (["report", "nowhere"], "nowhere: no such folder"),
        (["report", "file"], "file: this is a file, not a folder"),
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
    assert main([str(runs / "dft") if word == "RUN" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_evaluations_of_other_models_stand_by_themselves(copy: Any) -> None:
    """The demo's layout: evaluations next to the runs they are of; and one of a model that is not among the runs."""
    run, away = copy("dft/seed-0"), copy("sft/seed-0/evaluation", "evaluations/other")
    edit(away / "evaluation.json", training_run=None, model="org/other-model")
    moved = run.parent.parent / "evaluations" / "dft"
    (run / "evaluation").rename(moved)
    edit(moved / "evaluation.json", training_run=str(run))
    found = report([run, moved, away])
    assert [(arm.label, len(arm.evaluations)) for arm in found.arms] == [("dft", 1), ("other-model", 1)]
    assert found.verdict.judged is not None
    assert set(found.verdict.judged.benchmarks["sums"].arms) == {"dft", "other-model"}
    write_lines(moved / "graded.jsonl", read_lines(moved / "graded.jsonl")[:3])  # not finished after all
    found = report([run, moved, away])
    assert found.verdict.open
    assert any("samples of problem" in note.what for note in found.notes)


def test_a_base_model_that_was_trained_itself_is_the_base(tmp_path: Path) -> None:
    tuned, run = tmp_path / "tuned", tmp_path / "comparison/runs/dft/seed-0"
    config: dict[str, object] = {"model": str(tuned / "model"), "objective": "dft", "seed": 0}

    def evaluation(folder: Path, model: Path, of_run: Path) -> EvaluationFolder:
        write_evaluation(folder, {"b": [[(ONE, True)]]})
        edit(folder / "evaluation.json", model=str(model), training_run=str(of_run))
        return EvaluationFolder(folder, read_record(folder / "evaluation.json", Evaluation))

    base, own = tmp_path / "comparison/runs/base/evaluation", run / "evaluation"
    loaded = LoadedFolders(
        runs={run: LoadedRun(run, config=config)},
        evaluations={base: evaluation(base, tuned / "model", tuned), own: evaluation(own, run, run)},
    )
    notes = NoteList()
    assert [arm.label for arm in group(loaded, notes)] == ["base", "dft"]
    assert not notes.notes


DOMAINS = ["--tasks-in", "sums", "--tasks-out", "words"]


def evaluations(folder: Path, benchmarks: tuple[str, ...], **rates: tuple[float, ...]) -> list[str]:
    """One evaluation of each arm, with such shares of right answers on each benchmark."""
    rng = np.random.default_rng(0)
    for name, of_arm in rates.items():
        answers = {
            benchmark: [[(ONE, bool(right)) for right in row] for row in rng.random((150, 4)) < rate]
            for benchmark, rate in zip(benchmarks, of_arm, strict=True)
        }
        write_evaluation(folder / name, answers)
        edit(folder / name / "evaluation.json", model=name)
    return [str(folder / name) for name in rates]


def test_every_form_names_the_harm_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = evaluations(tmp_path, ("sums", "words"), base=(0.6, 0.6), sft=(0.3, 0.2), dft=(0.6, 0.4))
    html, text = tmp_path / "r.html", tmp_path / "r.md"
    assert main(["report", *folders, *DOMAINS, "--output", str(html)]) == 0
    first, second, third = capsys.readouterr().out.splitlines()[:3]
    keep = "every arm is worse somewhere, and better nowhere."
    assert first == f"Keep the base model: {keep}"
    assert second.startswith("sft made the model worse: -") and " out of domain" in second
    assert third.startswith("dft made the model worse out of domain: -")
    assert f'<p class="sentence bad">Keep the base model: {keep}</p>' in html.read_text()
    assert '<p class="bad"><strong>sft made the model worse:</strong> -' in html.read_text()
    assert main(["report", *folders, *DOMAINS, "--format", "markdown", "--output", str(text)]) == 0
    assert f"\n**Keep the base model: {keep}**\n" in text.read_text()
    assert "\n- sft made the model worse: " in text.read_text()
    assert "| **sft - base** | **sft is worse** |" in text.read_text()


def test_good_is_marked_and_no_difference_is_not(tmp_path: Path) -> None:
    folders = evaluations(tmp_path, ("sums", "words"), base=(0.3, 0.3), sft=(0.3, 0.3), dft=(0.6, 0.6))
    html = page(
        report([Path(folder) for folder in folders], benchmarks_in=["sums"], benchmarks_out=["words"])
    )
    assert '<p class="sentence good">dft made the model better: +' in html
    assert "<p><strong>no difference between sft and the base model can be shown:</strong>" in html
    assert "Keep the base" not in html and 'class="bad"><strong>' not in html


def test_what_is_judged_apart_has_one_headline(tmp_path: Path) -> None:
    """Evaluations on other sets of benchmarks: the base model is kept only if no arm is better on any."""
    folders = evaluations(tmp_path / "a", ("sums", "words"), base=(0.6, 0.6), sft=(0.3, 0.3))
    folders += evaluations(tmp_path / "b", ("lists",), base=(0.2,), sft=(0.7,))
    sentences = report([Path(folder) for folder in folders]).verdict.sentences
    assert not any("Keep the base model" in sentence for sentence in sentences)
    assert sentences[0].startswith("sft made the model worse on sums and on words and better on lists: ")


def test_the_figure_has_more_arms_than_colours() -> None:
    def spot(label: str, kind: SpotKind, place: int) -> Spot:
        accuracy = SpotScore(place / 40, place / 50, place / 30)
        return Spot(label, label, kind, 1.0, {"in": accuracy, "out": accuracy})

    arms = [f"arm {number}" for number in range(30)]
    spots = [spot("base", "base", 0), *(spot(arm, "arm", place) for place, arm in enumerate(arms))]
    opening = Opening("s", [], [*spots, spot("mean of arm 0 and arm 1", "mean", 9)], [], [])
    looks = {arm: {"color": COLOURS[place % len(COLOURS)]} for place, arm in enumerate(arms)}
    assert draw_tradeoff(opening, looks) is not None
