"""What the terminal gets: text from data is shown and never obeyed."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path

import pytest

from hostile import ALL, comparison, hostile_diagnosis
from rectune.cli.app import main, run
from rectune.cli.console import print_lines, print_table
from rectune.diagnosis.page import summary
from rectune.errors import UserError, visible
from rectune.records import Diagnosis

ACTING = set("\x00\x07\x08\x0b\x0c\r\x1b\x7f\x85\x9b\u202a\u202e\u2066\u200f\ud800")


def check(text: str) -> None:
    assert not set(text) & ACTING
    text.encode()


def test_what_acts_becomes_visible() -> None:
    assert visible("a\x1b[31m\u202e\x9b\ud800\r") == "a\\u001b[31m\\u202e\\u009b\\ud800\\u000d"
    assert visible("line\n\ttab é 漢 👩‍👩‍👧 [red] {{x}}") == "line\n\ttab é 漢 👩‍👩‍👧 [red] {{x}}"
    for text in (ALL, "\ud800", "\x7f"):
        said = json.dumps({text: [text]}, ensure_ascii=False)
        assert json.loads(visible(said)) == json.loads(said)


def test_tables_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{ALL: ALL, "b": "[red]x[/red] :smile:"}])
    print_table([{ALL: ALL}], as_json=True)
    print_lines(ALL, Path("\udcff"))
    said = capsys.readouterr().out
    check(said)
    assert (
        "[red]x[/red] :smile:" in said and "[bold red]markup[/bold red]" in said and "\\u001b[31mred" in said
    )


def test_errors_and_messages(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        logging.getLogger("rectune").warning("%s: kept", ALL)
        raise UserError(f"unknown role '{ALL}'", where=ALL, hint=ALL)

    assert run(command) == 2
    said = capsys.readouterr().err
    check(said)
    assert "\\u001b[31mred" in said


def test_a_diagnosis(capsys: pytest.CaptureFixture[str]) -> None:
    for part in summary(Diagnosis.model_validate(hostile_diagnosis())):
        print_lines(part) if isinstance(part, str) else print_table(part)
    check(capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore")
def test_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = comparison(tmp_path / "\x1b[31m" / "c", name="\u202e\x1b[31m")
    for more in (["--format", "markdown", "--output", str(tmp_path / "page.md")], ["--json"]):
        assert main(["report", str(folder), *more]) == 0
        said = capsys.readouterr()
        check(said.out)
        check(said.err)
        if more == ["--json"]:
            json.loads(said.out)


ROWS = (
    {"messages": [{"role": ALL, "content": "x"}]},
    {"conversations": [{"from": ALL, "value": "x"}]},
    {ALL: 1},
    {"prompt": "x", ALL: 2},
)


@pytest.mark.parametrize("row", ROWS)
def test_errors_over_rows(row: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rectune.config import DataConfig
    from rectune.data.loading import read_rows

    path = tmp_path / "rows \x1b[31m.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert run(lambda: read_rows(str(path), options=DataConfig(), cache_dir=tmp_path)) == 2
    said = capsys.readouterr().err
    check(said)
    assert said.count("\n") == 1


def test_only_one_module_prints() -> None:
    """A new verb that prints by itself would print what is in data as it is."""
    source = Path(__file__).parents[1] / "src" / "rectune"
    for path in source.rglob("*.py"):
        if path.name in ("console.py", "app.py", "demo.py") or "sandbox" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            )
            assert not called, f"{path.relative_to(source)}:{node.lineno} prints; use rectune.cli.console"


def test_a_decision_is_said_once_and_a_warning_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        log = logging.getLogger("rectune")
        for _ in range(2):
            log.info("loading a")
            log.warning("look out")
        log.info("loading b")

    for _ in range(2):  # each command says it again
        assert run(command) == 0
        assert capsys.readouterr().err.splitlines() == ["loading a", "look out", "look out", "loading b"]
