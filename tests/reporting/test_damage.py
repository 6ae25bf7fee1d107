"""Partial, foreign and damaged folders: the page is made as far as it goes, and says what is missing."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from diagnosed import diagnosis
from rectune.cli.app import main
from rectune.errors import UserError
from rectune.reporting.page_model import Report
from rectune.reporting.report import markdown, page, report
from rectune.reporting.sample_table import LONGEST
from reported import comparison, edit, race, read_lines, sweep, write_lines

CASE = Path(__file__).parent.parent / "cases" / "36-foreign-run-nan" / "trl"  # LlamaFactory#2916


def notes(found: Report) -> str:
    return "\n".join(f"{note.where} {note.what}" for note in found.notes)


def written(folders: list[Path]) -> Report:
    """A report that is JSON and could be written as text."""
    found = report(folders)
    assert markdown(found).startswith("# ")
    json.dumps(found.to_dict(), allow_nan=False)
    return found


def drawn(folders: list[Path]) -> Report:
    """The same, of which a page could be made, too, with all notes on it."""
    found = written(folders)
    html = page(found)
    assert all(str(escape(note.what)) in html for note in found.notes)
    return found


def test_a_run_that_was_killed(copy: Any) -> None:
    run = copy("dft/seed-0")
    for name in ("summary.json", "token_logprobs.json"):
        (run / name).unlink()
    shutil.rmtree(run / "evaluation")
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[: text.rindex("{") + 30])
    found = drawn([run])
    assert "summary.json is missing: the run has not finished" in notes(found)
    assert "1 of 11 lines cannot be read, the last one cut off" in notes(found)
    assert found.cost[0].state.startswith("not finished: step 3 of 3")
    assert found.curves[0].holdout[-1]["step"] == 3
    assert not found.tokens


FILES = ("config.json", "environment.json", "summary.json", "metrics.jsonl", "token_logprobs.json")
EVALUATION = ("evaluation/evaluation.json", "evaluation/graded.jsonl")


CONTENTS = {
    "empty": b"", "binary": b"\x00\xff\xfe\x80" * 40, "list": b"[1, 2]", "text": b'"text"', "deep": b"{" * 100_000,
    "nothing": b"{}", "format": b'{"format": 1}', "nan": b'{"a": NaN}\n',
}  # fmt: skip


@pytest.mark.parametrize("name", FILES + EVALUATION)
def test_any_file_may_be_junk_or_missing(copy: Any, name: str) -> None:
    run, other = copy("dft/seed-0"), copy("sft/seed-0")
    for content, junk in CONTENTS.items():
        (run / name).write_bytes(junk)
        found = written([run, other])
        assert len(found.arms) == 2
        if content not in ("nothing", "format", "nan"):
            assert str(run / name) in notes(found), content
    page(found)
    (run / name).unlink()
    assert len(written([run, other]).arms) == 2
    (run / name).mkdir()
    assert len(written([run, other]).arms) == 2


JUNK: list[Any] = [
    None, True, -1, 1e400, 10**400, "x", "", [], [None], {}, {"a": {"b": 1}}, [["x"]], "\ud800", -0.5,
]  # fmt: skip


def spoilt(value: Any, rng: random.Random) -> Any:
    """The value with one part of it replaced by something of another kind."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        copied = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copied) if isinstance(value, dict) else range(len(copied)))
        copied[key] = spoilt(copied[key], rng)  # type: ignore[index]
        return copied
    return rng.choice(JUNK)


@pytest.mark.slow
def test_values_of_another_kind_raise_nothing(runs: Path, tmp_path: Path) -> None:
    """Sixty folders, each with some values of its JSON files replaced."""
    rng = random.Random(0)
    chosen = {"sweep": sweep("the dft"), "race": race("too weak"), "matched_to": "the dft"}
    folder = comparison(tmp_path / "c", runs, **chosen)
    judged = report([folder]).verdict.judged
    assert judged is not None
    edit(folder / "comparison.json", verdict=judged.to_dict())
    (folder / "diagnosis.json").write_text(json.dumps(diagnosis(rows=1)))
    files = sorted(path for path in folder.rglob("*.json*") if path.name != "samples.jsonl")
    whole = {path: path.read_text() for path in files}
    for _ in range(60):
        path = rng.choice(files)
        if path.suffix == ".json":
            path.write_text(json.dumps(spoilt(json.loads(whole[path]), rng)))
        else:
            lines = [json.loads(line) for line in whole[path].splitlines()]
            at = rng.randrange(len(lines))
            lines[at] = spoilt(lines[at], rng)
            write_lines(path, lines)
        try:
            found = report([folder])
            markdown(found)
            if rng.random() < 0.1:
                page(found)
            json.dumps(found.to_dict(), allow_nan=False)
        except Exception as error:
            raise AssertionError(f"{path.relative_to(folder)}: {path.read_text()[:3000]}") from error
        path.write_text(whole[path])


def test_another_format_is_named(copy: Any) -> None:
    run, other = copy("dft/seed-0"), copy("sft/seed-0")
    edit(run / "token_logprobs.json", format=2)
    edit(run / "evaluation" / "evaluation.json", format=7)
    found = drawn([run, other])
    assert "token_logprobs.json is of format 2; this version reads 1" in notes(found)
    assert "evaluation.json is of format 7" in notes(found)
    assert found.verdict.open


def test_an_empty_folder_beside_a_run_is_a_note_and_alone_an_error(copy: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = drawn([copy("dft/seed-0"), tmp_path / "empty"])
    assert "empty nothing in it can be used" in notes(found)
    with pytest.raises(UserError, match="nothing to report"):
        report([tmp_path / "empty"])
    (tmp_path / "empty" / "config.json").write_text('{"architectures": ["Llama"]}')  # a model, not a run
    with pytest.raises(UserError, match="nothing to report"):
        report([tmp_path / "empty"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(copy: Any) -> None:
    run, other = copy("dft/seed-0"), copy("sft/seed-0")
    (run / "metrics.jsonl").chmod(0)
    assert "cannot be read" in notes(drawn([run, other]))


def test_a_huge_answer_is_cut(copy: Any) -> None:
    run = copy("dft/seed-0")
    path = run / "evaluation" / "graded.jsonl"
    write_lines(
        path, [{**line, "text": "x" * 1_000_000, "prompt": "y" * 1_000_000} for line in read_lines(path)]
    )
    found = drawn([run])
    answer = found.answers[0].shown[0].answers[0].text
    assert answer.startswith("x" * LONGEST) and answer.endswith(" … (996,000 more characters)")
    assert len(page(found)) < 1_000_000


def test_links_that_go_round_are_not_followed(copy: Any) -> None:
    run = copy("dft/seed-0")
    (run / "again").symlink_to(run, target_is_directory=True)
    assert len(report([run]).cost) == 1


def test_a_folder_given_twice_counts_once(copy: Any) -> None:
    run = copy("dft/seed-0")
    found = report([run, run, run.parent, Path(f"{run}/../seed-0")])
    assert len(found.cost) == 1 and found.notes == []


def test_two_runs_with_one_seed_are_both_shown(copy: Any) -> None:
    found = report([copy("dft/seed-0"), copy("dft/seed-0", "again")])
    assert found.arms[0].seeds == [0, 1]
    assert "it counts as another seed" in notes(found)


@pytest.mark.slow
def test_fifty_runs(copy: Any, tmp_path: Path) -> None:
    first = copy("dft/seed-0", "run-00")
    for number in range(1, 50):
        shutil.copytree(first, tmp_path / f"run-{number:02}")
        edit(tmp_path / f"run-{number:02}" / "config.json", objective=f"power:alpha={number / 100}")
    found = report([tmp_path])
    html = page(found)
    assert len(found.arms) == 50 and found.title == "50 arms compared"
    assert len(html) < 6_000_000
    assert "of 50 arms the first 6 are shown side by side" in notes(found)
    assert "of 50 arms only the first 12 are compared" in notes(found)
    assert len(found.verdict.judged.benchmarks["sums"].pairs) == 66


Trainer = Callable[..., Path]


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """A folder as transformers' Trainer leaves it."""

    def make(name: str = "output", state: Any = None) -> Path:
        log = [
            {"step": n, "loss": 2.0 / n, "learning_rate": 1e-5, "epoch": n / 9, "grad_norm": 1.0}
            for n in (1, 2, 3)
        ]
        log.append({"step": 3, "train_runtime": 9.0, "train_loss": 1.2})  # type: ignore[dict-item]
        for steps in (2, 10):
            folder = tmp_path / name / f"checkpoint-{steps}"
            folder.mkdir(parents=True)
            content = {"global_step": steps, "log_history": log[:steps]} if state is None else state
            (folder / "trainer_state.json").write_text(json.dumps(content))
        return tmp_path / name

    return make


def test_a_run_of_another_trainer(trainer: Trainer, copy: Any) -> None:
    found = drawn([trainer(), copy("dft/seed-0")])
    assert [arm.label for arm in found.arms] == ["output", "dft"]
    assert [line["loss"] for line in found.curves[0].log if "loss" in line] == [2.0, 1.0, 2 / 3]
    assert 'TRL\'s loss_type="dft") is -p log p and says nothing about NLL' in notes(found)
    html = page(found)
    assert "Runs of other trainers" in html and "Loss as logged" in html
    assert found.cost[0].state == "another trainer's"
    assert report([trainer("other") / "checkpoint-2"]).cost[0].steps == 2


@pytest.mark.parametrize("state", [{}, {"log_history": 3}, {"log_history": [None, {"loss": 1}]}, []])
def test_a_trainer_without_a_log(trainer: Trainer, copy: Any, state: Any) -> None:
    found = drawn([trainer(state=state), copy("dft/seed-0")])
    assert "nothing to show of this run" in notes(found)


def whats(folder: Path) -> list[str]:
    return [note.what for note in report([folder]).notes]


def test_another_trainers_loss_that_breaks_down(tmp_path: Path) -> None:
    found = whats(CASE)
    assert "is not finite from step 2 on (loss or grad_norm or eval_loss)" in found
    assert any(what.startswith("the loss is exactly 0.0 at step 2: ") for what in found)
    page = tmp_path / "r.html"
    assert main(["report", str(CASE), "--output", str(page)]) == 0
    assert "is not finite from step 2 on" in page.read_text()


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0, 1.5, 1.0], []),
        ([2.0, math.nan, 1.0], ["is not finite in 1 of 3 logged steps, the first is 2"]),
        ([2.0, math.inf, math.nan], ["is not finite from step 2 on"]),
        ([2.0, None, None], ["is not finite from step 2 on"]),
        ([2.0, "nan", "nan"], ["is not finite from step 2 on"]),
        ([0.0, 0.0, 0.0], ["the loss is exactly 0.0 at 3 logged steps, the first is 1"]),
        ([0, 1.0, 1.0], ["the loss is exactly 0.0 at step 1"]),
        ([1e-9, 1e-9, 1e-9], []),
    ],
)
def test_a_foreign_log(tmp_path: Path, losses: list[Any], expected: list[str]) -> None:
    history = [{"step": i + 1, "loss": loss, "learning_rate": 1e-5} for i, loss in enumerate(losses)]
    history.append({"step": 3, "eval_runtime": 1.0})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    found = [what for what in whats(tmp_path) if "transformers" not in what]
    assert len(found) == len(expected)
    assert all(what.startswith(start) for what, start in zip(found, expected, strict=True))


def test_a_run_of_ours(copy: Any) -> None:
    folder = copy("sft/seed-0")
    assert not any("finite" in what or "exactly" in what for what in whats(folder))
    lines = read_lines(folder / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    train[1]["grad_norm"] = None
    write_lines(folder / "metrics.jsonl", lines)
    assert "is not finite in 1 of 3 logged steps, the first is 2 (grad_norm)" in whats(folder)
    for line in train:
        line["objective"], line["grad_norm"] = 0.0, None
    write_lines(folder / "metrics.jsonl", lines)
    found = whats(folder)
    assert "is not finite from step 1 on (grad_norm)" in found
    assert any(what.startswith("the objective is exactly 0.0 at 3 logged steps") for what in found)
    for line in train:  # online: no update, so no gradient
        line["updates"], line["objective"] = 0, None
    write_lines(folder / "metrics.jsonl", lines)
    assert not any("finite" in what or "exactly" in what for what in whats(folder))
