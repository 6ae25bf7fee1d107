"""Every verb once, as a user would type it, on a tiny model; and the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rectune.cli import main
from rectune.demo import main as demo
from toys import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_from_rows_to_selected_answers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, problems, run = tmp_path / "rows.jsonl", tmp_path / "problems.jsonl", tmp_path / "run"
    rows.write_text(
        "".join(json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(20))
    )
    problems.write_text(
        "".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(3))
    )

    assert main(["list", "objectives"]) == 0
    settings = ["--model", str(model), "--data", str(rows), "--batch-size", "4", "--max-length", "128"]
    assert main(["train", *settings, "--out", str(run), "--steps", "3", "--objective.name", "dft"]) == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 3

    samples, graded = tmp_path / "samples.jsonl", tmp_path / "graded.jsonl"
    drawn = ["--model", str(run / "model"), "-n", "2", "--max-new-tokens", "4"]
    assert main(["sample", *drawn, "--problems", str(problems), "--out", str(samples)]) == 0
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == 6
    lines[0]["text"] = lines[0]["answer"]  # a model this small is never right by itself
    lines[0]["finish_reason"] = "stop"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert main(["grade", str(samples), "--out", str(graded), "--workers", "1"]) == 0
    assert "correct 1" in capsys.readouterr().out
    chosen = tmp_path / "chosen.jsonl"
    assert main(["select", str(graded), "--for", "sft", "--out", str(chosen)]) == 0
    assert len(chosen.read_text().splitlines()) == 1

    evaluated = [
        "eval",
        "--model",
        str(run),
        "--benchmark-file",
        str(problems),
        "-n",
        "2",
        "--max-new-tokens",
        "4",
    ]
    assert main([*evaluated, "--out", str(tmp_path / "evaluation")]) == 0
    assert "avg@2" in capsys.readouterr().out


def test_the_demo_ends_in_one_page(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", str(model), "--out", str(tmp_path), "--steps", "2", "--limit", "3", "-n", "2"]
    assert demo([*given, "--seconds", "1"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "Mean target probability",
        "in domain",
        "out of domain",
        "greedy",
        str(tmp_path / "report.html"),
    ):
        assert words in shown, shown
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<svg" in page and "diagnosis" in page.lower()
    assert (tmp_path / "diagnosis/diagnosis.html").exists()
    assert demo([*given, "--seconds", "1"]) == 0  # again: all is there already
