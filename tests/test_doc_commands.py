"""What the documentation tells a reader to type works: commands are parsed and run, Python runs, recipes are read.

A tiny model and small files stand in for those that are named; what takes long is run with --dry-run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from cyclopts import CycloptsError, MissingArgumentError

from rectune.cli.app import app, main
from rectune.config import RFTConfig, RLConfig, TrainConfig, load_config
from reported import write_lines
from toys import save_toy

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STARTS = re.compile(r"^(?:\S*/)?rectune\s|-m rectune(?:\.cli)?\s")
"""How a command line of rectune begins, behind what starts processes."""
SHELL = ("", "bash", "sh", "console")


def place_of(text: str) -> str:
    """The page and line, as a test's name."""
    return text if ".md:" in text[:60] else ""


def blocks(languages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Page with line, and text, of every fenced block in one of the languages."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in BLOCK.finditer(text):
            if found[1] in languages and page.name != "cli.md":
                yield f"{page.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 2}", found[2]


def lines() -> Iterator[tuple[str, str]]:
    """Every line of a fenced block for the shell, those that go on with a backslash joined."""
    for where, text in blocks(SHELL):
        for line in text.replace("\\\n", " ").splitlines():
            if line.strip():
                yield where, line.strip()


def words(line: str) -> list[str]:
    """The words behind `rectune`, up to a comment or a pipe."""
    found = list(shlex.split(STARTS.split(line, maxsplit=1)[1], comments=True))
    return found[: found.index("|")] if "|" in found else found


COMMANDS = [(where, line) for where, line in lines() if STARTS.search(line)]
SPANS = sorted({
    (str(page.relative_to(ROOT)), found[1])
    for page in PAGES if page.name not in ("cli.md", "CHANGELOG.md")  # the changelog tells of flags that there were
    for found in re.finditer(r"`(?:\S*/)?rectune ([a-z][^`]*)`", page.read_text("utf-8"))
})  # fmt: skip


def parse(given: list[str]) -> None:
    app.parse_args(given, exit_on_error=False, print_error=False)


@pytest.mark.parametrize(("where", "line"), COMMANDS, ids=lambda text: text[:60])
def test_a_command_has_no_stale_flag(where: str, line: str) -> None:
    parse(words(line))


@pytest.mark.parametrize(("where", "text"), SPANS, ids=lambda text: text[:60])
def test_a_command_within_a_sentence_has_no_stale_flag(where: str, text: str) -> None:
    """It may lack what a whole command needs: it is named, not typed."""
    given = [word for word in shlex.split(text) if not word.endswith("...")]
    if given[-1].startswith("-") and given[-1] not in ("--help", "--dry-run", "--resume"):
        given.append("1")
    if "--help" not in given:
        with suppress(MissingArgumentError):
            parse(given)


def test_a_stale_flag_is_seen() -> None:
    with pytest.raises(CycloptsError):
        parse(words(".venv/bin/rectune train --data rows.jsonl --output-dir x --bach-size 3  # a comment"))
    with pytest.raises(CycloptsError):
        parse(["trane"])
    assert len(COMMANDS) > 20 and len(SPANS) > 20


def test_what_else_a_block_names_is_there() -> None:
    """Targets of make, and files of this repository."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for where, line in lines():
        for target in re.findall(r"(?:^|;\s+)make ([\w-]+)", line):
            assert target in targets, f"{where}: make {target}"
        for path in re.findall(r"\b(?:examples|scripts|benchmarks|tests)/[\w./-]+", line):
            assert (ROOT / path).exists(), f"{where}: {path}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the commands name: rows, problems, recipes, answers, runs and their evaluations."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RECTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        save_toy("M", max_position_embeddings=4096)
        rows = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(40)]
        write_lines(Path("rows.jsonl"), rows)
        problems = [{"prompt": f"{i}+2=", "answer": str(i + 2)} for i in range(8)]
        for name in ("problems.jsonl", "mine.jsonl"):
            write_lines(Path(name), problems)
        Path("DATA").mkdir()
        answer = {"problem_id": "1", "sample_index": 0, "answer": "3", "text": "3", "finish_reason": "stop"}
        turns = [{"role": "user", "content": "2+1=", "supervised": False}]
        write_lines(Path("samples.jsonl"), [{**answer, "prompt": "2+1=", "turns": turns}])
        assert main(["grade", "samples.jsonl", "--output", "graded.jsonl", "--grading-workers", "1"]) == 0
        recipe = 'model = "M"\ndata = "rows.jsonl"\noutput_dir = "runs/recipe"\n'
        Path("recipe.toml").write_text(recipe)
        Path("problems.toml").write_text(recipe.replace("data", "problems").replace("rows", "problems"))
        short = ["--model", "M", "--data", "rows.jsonl", "--max-steps", "1", "--batch-size", "4"]
        for name in ("sft", "dft"):
            assert main(["train", *short, "--objective", name, "--output-dir", f"runs/{name}"]) == 0
        for log in ("base", *(f"{arm}-{seed}" for arm in ("sft", "dft") for seed in range(3))):
            for task in ("gsm8k", "svamp", "mmlu_law"):
                scores = [{"doc_id": i, "acc": (i + len(log)) % 2} for i in range(12)]
                Path("logs", log).mkdir(parents=True, exist_ok=True)
                write_lines(Path("logs", log, f"samples_{task}_2026-11-30T10-00-00.000000.jsonl"), scores)
        yield folder


STANDS_IN = {
    "P": "problems.jsonl", "D": "rows.jsonl", "smollm2-135m": "M", "gsm8k,math500": "svamp-calculations",
    "svamp": "svamp-calculations", "runs/comparison": "runs",
    "runs/merged/at-0.5": "M", "trl/dft": "M", "trl": "runs",
}  # fmt: skip
SHORT = {
    "train": ["--dry-run"], "compare": ["--dry-run", "--limit", "4"], "rft": ["--dry-run"], "rl": ["--dry-run"],
    "reproduce": ["--dry-run"], "diagnose": ["--rows", "4", "--no-gradients"],
    "eval": ["--limit", "2", "--max-new-tokens", "2"], "sample": ["--max-new-tokens", "2"],
}  # fmt: skip
"""What makes a command short, by verb."""


@pytest.mark.parametrize(("where", "line"), COMMANDS, ids=lambda text: text[:60])
def test_a_command_runs(place: Path, where: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb, *rest = words(line)
    given = [STANDS_IN.get(word, word) for word in rest]
    problems = verb in ("rft", "rl")
    if problems and "recipe.toml" in given:
        given[given.index("recipe.toml")] = "problems.toml"
    if verb == "report" and "--output" not in given and "--json" not in given:
        given += ["--output", "page.html"]
    logs = "--logs" in given  # of another harness: nothing is trained
    if not {"recipe.toml", "--model", "--logs"} & set(given) and verb in ("train", "compare", "diagnose"):
        given += ["--model", "M"]
    for out in {"--output", "--output-dir"} & set(
        given
    ):  # nothing that another command reads is written over
        at = given.index(out) + 1
        given[at] = f"out-{COMMANDS.index((where, line))}/{given[at]}"
    code = main([verb, *given, *(word for word in SHORT.get(verb, []) if word not in given and not logs)])
    assert code == 0, capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL passes arguments that transformers has renamed
@pytest.mark.parametrize(
    ("where", "text"), [*blocks(("python", "py"))], ids=lambda text: text[:40] if ".md:" in text else ""
)
def test_python_runs(place: Path, where: str, text: str) -> None:
    """A block of a page may use `columns`, which it says it is given."""
    if "from trl import" in text:
        pytest.importorskip("trl")
    names: dict[str, Any] = {
        "columns": {
            "logp": torch.full((3,), -1.0, requires_grad=True), "entropy": torch.ones(3),
            "structural": torch.zeros(3, dtype=torch.bool),
        }
    }  # fmt: skip
    exec(compile(text.replace('"smollm2-135m"', '"M"'), where, "exec"), names)


@pytest.mark.parametrize(
    ("where", "text"), [*blocks(("toml",))], ids=lambda text: text[:40] if ".md:" in text else ""
)
def test_a_recipe_is_read(tmp_path: Path, where: str, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    kinds = {"docs/rft.md": RFTConfig, "docs/rl.md": RLConfig}
    load_config(path, {}, kinds.get(where.partition(":")[0], TrainConfig))
