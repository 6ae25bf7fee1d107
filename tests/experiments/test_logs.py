"""A comparison over the logs of other harnesses. tests/cases/logs has logs that the harnesses themselves wrote."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from evaluations import write_evaluation
from rectune.analysis.logs import align, read_logs
from rectune.cli.app import main
from rectune.config import CompareConfig
from rectune.experiments.compare import compare
from rectune.records import Comparison, read_record

CASES = Path(__file__).parent.parent / "cases" / "logs"
LM_EVAL, INSPECT = CASES / "lm-eval-0.4.13", CASES / "inspect-0.3.285"
EXTRACT = ("flexible-extract", "acc")


def scores(frame: Any, arm: str, seed: int, task: str) -> dict[str, float]:
    rows = frame[(frame["arm"] == arm) & (frame["seed"] == seed) & (frame["task"] == task)]
    return dict(zip(rows["problem_id"], rows["score"], strict=True))


def test_lm_evaluation_harness() -> None:
    logs = {"base": [LM_EVAL / "base"], "sft": [LM_EVAL / "sft-0", LM_EVAL / "sft-1"]}
    frame = read_logs(logs, metric=EXTRACT, cluster=None)
    assert frame.attrs["metrics"] == {"toy_choices": "acc", "toy_sums": "exact_match/flexible-extract"}
    right = {str(i) for i in (0, 1, 2, 3, 4, 5, 7, 11)}  # "It is 22." counts with this filter
    assert scores(frame, "sft", 1, "toy_sums") == {str(i): float(str(i) in right) for i in range(12)}
    strict = read_logs(logs, metric=["strict-match", "acc"])
    assert scores(strict, "sft", 1, "toy_sums")["11"] == 0
    assert scores(strict, "sft", 1, "toy_choices") == {str(i): float(str(i) in right) for i in range(10)}
    first = frame[(frame["arm"] == "base") & (frame["task"] == "toy_sums")].iloc[0]
    assert (first.prompt, first.target, first.text, first.extracted) == ("What is 0 + 0?", "0", "0", "0")


@pytest.mark.parametrize(
    ("folder", "task", "metric", "name"),
    [
        (INSPECT, "sums", "match", "add-{}"),  # .eval, whose files are compressed with Zstandard, and .json
        (CASES / "lighteval-0.13.0", "toy_sums|0", "extractive_match", "{}"),
    ],
    ids=["inspect", "lighteval"],
)
def test_inspect_and_lighteval(folder: Path, task: str, metric: str, name: str) -> None:
    logs = {"base": [folder / "base"], "sft": [folder / "sft-0", folder / "sft-1"]}
    frame = read_logs(logs, cluster="family")
    assert frame.attrs["metrics"] == {task: metric}
    for arm, seed, right in (
        ("base", 0, {0, 1, 2}),
        ("sft", 0, set(range(6))),
        ("sft", 1, {0, 1, 2, 3, 4, 6}),
    ):
        assert scores(frame, arm, seed, task) == {name.format(i): float(i in right) for i in range(8)}
    assert align(frame).attrs["notes"] == []
    last = frame[frame["arm"] == "base"].iloc[7]
    assert (last.prompt, last.target, last.text, last.cluster) == ("What is 7 + 7?", "14", "no idea", "3")


def lighteval(path: Path, values: list[float], query: str = "{i}?") -> Path:
    """Columns as in EvaluationTracker.save of lighteval 0.13.0."""
    rows = [
        {
            "doc": {
                "id": str(i),
                "query": query.format(i=i),
                "choices": ["a", "b"],
                "gold_index": 1,
                "task_name": "t",
            },
            "metric": {"extractive_match": value},
            "model_response": {"text": ["b"], "text_post_processed": None},
        }
        for i, value in enumerate(values)
    ]
    folder = path / "details" / "model" / "2026-11-30T10-00-00.123456"
    folder.mkdir(parents=True)
    name = "details_lighteval|t|0_2026-11-30T10-00-00.123456.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / name)
    return path


def test_other_content_is_not_the_same_problem(tmp_path: Path) -> None:
    logs = {
        "base": [lighteval(tmp_path / "a", [0, 1, 0.5])],
        "sft": [lighteval(tmp_path / "b", [1, 1, 0.25])],
    }
    frame = read_logs(logs)
    assert scores(frame, "sft", 0, "lighteval|t|0") == {"0": 1, "1": 1, "2": 0.25}
    assert set(frame["target"]) == {"b"}
    logs["dft"] = [lighteval(tmp_path / "c", [1, 1, 1], query="other {i}")]
    with pytest.raises(Exception, match=r"no problem in common.*3 of 3 problems have other content"):
        align(read_logs(logs))


def evalscope(path: Path, values: list[float]) -> Path:
    """Lines as `ReviewResult` of EvalScope 1."""
    folder = path / "20261130_100000" / "reviews" / "model"
    folder.mkdir(parents=True)
    lines = [
        {
            "index": i,
            "input": f"{i // 2}?",
            "target": "b",
            "sample_score": {
                "score": {"value": {"acc": value}, "extracted_prediction": "b", "prediction": "it is b"},
                "sample_id": i,
                "group_id": i // 2,
                "sample_metadata": {},
            },
        }
        for i, value in enumerate(values)
    ]
    (folder / "gsm8k_main.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_evalscope_and_our_own(tmp_path: Path) -> None:
    frame = read_logs({"sft": [evalscope(tmp_path / "a", [1, 0, 1, 1])]})
    rows = frame[["problem_id", "sample", "score"]].sort_values(["problem_id", "sample"])
    assert rows.values.tolist() == [["0", 0, 1.0], ["0", 1, 0.0], ["1", 0, 1.0], ["1", 1, 1.0]]
    ours = write_evaluation(tmp_path / "ours" / "evaluation", {"gsm8k": [[("1", True)], [("2", False)]]})
    assert scores(read_logs({"sft": [ours.parent]}), "sft", 0, "gsm8k") == {"0": 1, "1": 0}


def table(path: Path, *, seeds: int = 3, problems: int = 200) -> Path:
    """sft gains in domain and loses out of it, dft gains in both."""
    rng, share = random.Random(0), {"base": (0.4, 0.4), "sft": (0.7, 0.2), "dft": (0.7, 0.6)}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["problem_id", "arm", "seed", "score", "task", "domain"])
        for arm, shares in share.items():
            for seed in range(1 if arm == "base" else seeds):
                for task, domain, p in (("gsm", "in", shares[0]), ("svamp", "out", shares[1])):
                    for i in range(problems):
                        writer.writerow([i, arm, seed, int(rng.random() < p), task, domain])
    return path


def test_the_decision_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare",
        "--logs",
        str(table(tmp_path / "s.csv")),
        "--margin",
        "10",
        "--output-dir",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--against", "sft", "--require", "superior"]) == 0
    out = capsys.readouterr().out
    assert "ship dft: +" in out and "against sft; 3 seeds, 150 problems in and 150 out of domain" in out
    page = (tmp_path / "o" / "report.html").read_text()
    assert "ship dft: +" in page and "is missing" not in page
    record = read_record(tmp_path / "o" / "comparison.json", Comparison)
    assert record.decision is not None and record.decision.validation == {"in": 50, "out": 50}
    assert [pair.a for pair in record.verdict.benchmarks["gsm"].pairs] == ["sft", "dft", "dft"]  # type: ignore[union-attr]
    assert main([*words, "--against", "dft", "--require", "superior"]) == 3  # sft is worse
    again = read_record(tmp_path / "o" / "comparison.json", Comparison)
    assert again.decision is not None and again.decision.validation == record.decision.validation


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """A problem that an arm lacks, and one with another doc_hash; another prompt is only said."""
    shutil.copytree(LM_EVAL, tmp_path / "logs")
    path = next((tmp_path / "logs" / "sft-1").rglob("samples_toy_choices_*"))
    lines = [json.loads(line) for line in path.read_text().splitlines()][:-1]
    lines[0]["doc_hash"], lines[1]["prompt_hash"] = "0", "0"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    older = path.with_name("samples_toy_choices_2020-01-01T00-00-00.000000.jsonl")
    older.write_text(json.dumps(lines[2]) + "\n")
    logs = [f"base={tmp_path}/logs/base", f"sft={tmp_path}/logs/sft-0,{tmp_path}/logs/sft-1"]
    result = compare(CompareConfig(logs=logs, metric=EXTRACT, output_dir=tmp_path / "o"))
    assert result.problems == {"toy_choices": 8, "toy_sums": 12}
    assert result.verdict is not None
    said = "\n".join(result.verdict.warnings)
    assert "has 2 logs of toy_choices; the newest is read" in said
    assert "toy_choices: 1 of 10 problems are not in the log of sft, seed 1" in said
    assert "toy_choices: 1 of 9 problems have other content in some logs: they are left out" in said
    assert "toy_choices: 1 of 8 problems have another prompt in some logs" in said


def test_clusters_graded_scores_and_several_answers(tmp_path: Path) -> None:
    logs = [f"base={LM_EVAL}/base", f"sft={LM_EVAL}/sft-0"]
    config = CompareConfig(
        logs=logs, metric=["strict-match"], tasks_in=["*_sums"], cluster="family", output_dir=tmp_path / "o"
    )
    with pytest.raises(Exception, match=r"unknown metric 'strict-match'; known: acc"):
        compare(config)
    config = config.model_copy(update={"metric": ("strict-match", "acc")})
    with pytest.raises(Exception, match="unknown field 'family'"):
        compare(config)
    lone = [next((LM_EVAL / arm).rglob("samples_toy_sums_*")) for arm in ("base", "sft-0")]
    config = config.model_copy(update={"logs": (f"base={lone[0]}", f"sft={lone[1]}")})
    result = compare(config)
    assert result.problems == {"toy_sums": 6} and result.benchmarks == {"toy_sums": "in"}
    sft = result.verdict.benchmarks["toy_sums"].arms["sft"]  # type: ignore[union-attr]
    assert sft.mean == pytest.approx(7 / 12) and sft.pass_at == {}  # 0 to 5 are pairs, 6 is half of one
    scored = tmp_path / "s.csv"
    scored.write_text("problem_id,arm,score\n" + "".join(f"{i},base,0.{i}\n{i},sft,0.9\n" for i in range(8)))
    scored.write_text(scored.read_text() + "0,sft,0.3\n")  # a second answer to one problem
    result = compare(CompareConfig(logs=[str(scored)], output_dir=tmp_path / "graded"))
    arms = result.verdict.benchmarks["s"].arms  # type: ignore[union-attr]
    assert arms["sft"].mean == pytest.approx((7 * 0.9 + 0.6) / 8)
    assert "different numbers of answers" in result.verdict.warnings[0]  # type: ignore[union-attr]


def test_the_base_models_logs_are_answers_of_one_model(tmp_path: Path) -> None:
    frame = read_logs({"base": [LM_EVAL / "base", LM_EVAL / "sft-0"]}, metric=EXTRACT)
    assert set(frame["seed"]) == {0} and set(frame["sample"]) == {0, 1}


GOOD = f"base={INSPECT}/base", f"sft={INSPECT}/sft-0"
BAD = [
    (["base=EMPTY", GOOD[1]], [], "EMPTY: no log with scores by problem"),
    (["base=AGGREGATED", GOOD[1]], [], "AGGREGATED: only aggregated results, no scores by problem"),
    ([GOOD[0], GOOD[0]], [], "--logs: 'base' is given twice"),
    (["base=MISSING", GOOD[1]], [], "MISSING: no such file or folder"),
    (["base=DAMAGED", GOOD[1]], [], "x.eval: the .eval file is damaged"),
    (["base=PARQUET", GOOD[1]], [], "the Parquet file is broken"),
    (
        [GOOD[0], f"sft={LM_EVAL}/sft-0"],
        ["--metric", "match,acc"],
        "--metric, toy_sums: unknown metric 'match'",
    ),
    ([GOOD[0], f"sft={LM_EVAL}/sft-0"], ["--metric", "match,acc,strict-match"], "no problem in common"),
    (
        [f"base={LM_EVAL}/base"],
        [],
        "toy_sums has several scores; give one of exact_match/strict-match, exact_match/fl",
    ),
    (["base=PERCENT", GOOD[1]], [], "scores.csv:2: score of scores is 55.0; scores must be from 0 to 1"),
    ([GOOD[0]], [], "there is nothing to compare: one arm"),
    (["a/b=x"], [], "'a/b' is not a name for an arm"),
    (GOOD, ["--sweep", "1e-5"], "--sweep: not with --logs: nothing is trained"),
    (GOOD, ["--dry-run"], "--dry-run: not with --logs"),
    (GOOD, ["--tasks-in", "gsm8k"], "unknown task 'gsm8k'; known: sums"),
    (GOOD, ["--margin", "1"], "--margin: requires tasks in domain; give --tasks-in"),
    (GOOD, ["--require", "superior"], "--require: requires --margin"),
]


@pytest.mark.parametrize(("logs", "more", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], logs: list[str], more: list[str], message: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "AGGREGATED").mkdir()
    (tmp_path / "AGGREGATED" / "results_2026-11-30T10-00-00.000000.json").write_text("{}")
    (tmp_path / "DAMAGED").mkdir()
    whole = next((INSPECT / "base").glob("*.eval")).read_bytes()
    (tmp_path / "DAMAGED" / "x.eval").write_bytes(whole[:3000] + b"damaged" + whole[3007:])
    (tmp_path / "PARQUET").mkdir()
    (tmp_path / "PARQUET" / "details_t_2026-11-30T10-00-00.123456.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "PERCENT").mkdir()
    (tmp_path / "PERCENT" / "scores.csv").write_text("problem_id,score\n1,55.0\n")
    places = [text.replace("base=", f"base={tmp_path}/") if text[5:].isupper() else text for text in logs]
    words = [word for place in places for word in ("--logs", place)]
    assert main(["compare", *words, *more, "--output-dir", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "out").exists()
