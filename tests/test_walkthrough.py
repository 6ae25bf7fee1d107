"""Every verb once, as a user would type it, on a tiny model; and the demo."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from rectune.cli import VERBS
from rectune.cli.app import main
from rectune.demo import main as demo
from toys import save_toy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_toy(tmp_path_factory.mktemp("model")))


def write(path: Path, records: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_from_rows_to_selected_answers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, problems, run = tmp_path / "rows.jsonl", tmp_path / "problems.jsonl", tmp_path / "run"
    write(rows, ({"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(20)))
    write(problems, ({"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(3)))

    assert main(["list", "objectives"]) == 0
    settings = ["--model", str(model), "--data", str(rows), "--batch-size", "4", "--max-length", "128"]
    assert main(["train", *settings, "--output-dir", str(run), "--max-steps", "3", "--objective", "dft"]) == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    assert main(["merge", "--tuned", str(run), "--at", "0.5", "--output-dir", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "at-0.5" / "config.json").is_file()

    samples, graded = tmp_path / "samples.jsonl", tmp_path / "graded.jsonl"
    short = ["--model", str(run / "model"), "-n", "2", "--max-new-tokens", "4"]
    assert main(["sample", *short, "--problems", str(problems), "--output", str(samples)]) == 0
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == 6
    lines[0]["text"] = lines[0]["answer"]  # a model this small is never right by itself
    lines[0]["finish_reason"] = "stop"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert main(["grade", str(samples), "--output", str(graded), "--grading-workers", "1"]) == 0
    assert "correct 1" in capsys.readouterr().out
    chosen = tmp_path / "chosen.jsonl"
    assert main(["select", str(graded), "--for", "sft", "--output", str(chosen)]) == 0
    assert len(chosen.read_text().splitlines()) == 1
    weighed = tmp_path / "weighed.jsonl"
    assert main(["weigh", str(rows), "--graded", str(graded), "--output", str(weighed)]) == 0
    weights = [json.loads(line).get("weight") for line in weighed.read_text().splitlines()]
    assert weights == [0.5, 1, 1, *[None] * 17]

    few = ["-n", "2", "--max-new-tokens", "4", "--output-dir", str(tmp_path / "evaluation")]
    assert main(["eval", "--model", str(run), "--tasks", str(problems), *few]) == 0
    assert "avg@2" in capsys.readouterr().out


def test_every_other_verb(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, problems = tmp_path / "rows.jsonl", tmp_path / "problems.jsonl"
    write(rows, ({"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(8)))
    write(problems, ({"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(2)))
    data = ["--model", str(model), "--data", str(rows), "--max-length", "64"]

    def out(name: str) -> list[str]:
        return ["--output-dir", str(tmp_path / name)]

    assert main(["check", str(rows), "--model", str(model), "--max-length", "64"]) == 0
    assert "targets in «»" in capsys.readouterr().out
    assert main(["diagnose", *data, *out("diagnosis"), "--rows", "4", "--objectives", "sft,dft"]) == 0
    assert "Mean target probability" in capsys.readouterr().out
    few = ["--max-steps", "1", "--max-new-tokens", "2", "-n", "1"]
    asked = ["--objectives", "sft", "--tasks-in", str(problems)]
    assert main(["compare", *data, *out("comparison"), *asked, *few]) == 0
    assert "problems (in domain), 2 problems" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "comparison"), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000

    reward = tmp_path / "reward.py"
    reward.write_text("def short(prompt, text, answer, extra):\n    return -len(text)\n")
    live = ["--model", str(model), "--problems", str(problems), "--reward", f"{reward}:short"]
    assert main(["rl", *live, *out("rl"), *few[:-1], "2", "--problems-per-step", "2"]) == 0
    assert json.loads((tmp_path / "rl" / "summary.json").read_text())["steps"] == 1
    own = ["--model", str(model), "--problems", str(problems), "--num-samples", "1", "--dry-run"]
    assert main(["rft", *own, *out("rft")]) == 0
    assert main(["reproduce", "table2", "--dry-run", *out("table2")]) == 0
    assert "DFT-offline" in capsys.readouterr().out


def test_no_verb_is_left_out() -> None:
    walked = set(re.findall(r'main\(\s*\["(\w+)"', Path(__file__).read_text("utf-8")))
    assert walked == set(VERBS)


def test_the_demo_ends_in_one_page(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--model",
        str(model),
        "--output-dir",
        str(tmp_path),
        *["--max-steps", "2", "--limit", "3", "-n", "2"],
    ]
    assert demo([*given, "--seconds", "1"]) == 0
    shown = capsys.readouterr().out
    page = tmp_path / "report.html"
    for words in ("Mean target probability", "in domain", "out of domain", "greedy", str(page)):
        assert words in shown, shown
    assert "<svg" in page.read_text("utf-8") and "diagnosis" in page.read_text("utf-8").lower()
    assert (tmp_path / "diagnosis/diagnosis.html").exists()
    assert demo([*given, "--seconds", "1"]) == 0  # again: all is there already
