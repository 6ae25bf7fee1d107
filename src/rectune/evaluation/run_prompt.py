"""The prompt that a model was trained with, found in its run folder, so that it is evaluated with the same.

A model trained here lies in `RUN/model` beside `RUN/config.json`: its chat template and system message are
read there, and what stands around each question (such as `Question: ` and `Calculation: `) from the rows
themselves. Using it, or warning that it is not used, is left to `evaluate.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from rectune.config import DataConfig
from rectune.data.problems import read_problems
from rectune.disk import load_json
from rectune.errors import UserError

_LOOK = 200  # rows that the wrapping is told from
_FEWEST = 20  # below that, what they share may be chance


@dataclass(frozen=True)
class RunPrompt:
    """How a run's rows were written.

    Attributes:
        model: Folder of the trained model.
        data: What it was trained on.
        rows: How that was read; its template and system message are the run's.
        wrapping: What stands around every question, with {question} in it; None where the rows cannot be
            read any more, or are too few to tell.
    """

    model: Path
    data: str
    rows: DataConfig
    wrapping: str | None


def run_prompt(model: str) -> RunPrompt | None:
    """The training prompt of `model`, a run folder or the `model` folder in it; None for any other model.

    Raises:
        UserError: A run folder without a model, or whose config cannot be read.
    """
    folder = Path(model).expanduser()
    run = folder.parent if folder.name == "model" else folder
    path = run / "config.json"
    config = _read(path) if folder.is_dir() and path.is_file() else {}
    online = {"algorithm", "problems"} <= set(config)
    if not online and not {"objective", "data"} <= set(config):
        return None
    if not (run / "model").is_dir():
        raise UserError("the run has no model yet", where=run, hint="train it to the end")
    table = (
        {k: config[k] for k in ("template", "system") if k in config} if online else config.get("rows", {})
    )
    try:
        rows = DataConfig.model_validate(table)
    except ValidationError:
        raise UserError("its table 'rows' is not one of this version", where=path) from None
    if online:
        problems = str(config["problems"])
        return RunPrompt(run / "model", problems, rows, _problem_wrapping(problems))
    data = str(config["data"])
    return RunPrompt(run / "model", data, rows, row_wrapping(data, rows))


def shared_wrapping(questions: Sequence[str]) -> str | None:
    """What stands around every question, as PREFIX{question}SUFFIX; None for fewer than 20 questions.

    The suffix starts behind the question's own last mark, the prefix ends at a space, so that questions which
    happen to begin or end alike are not cut.
    """
    if len(questions) < _FEWEST:
        return None
    prefix = _common_start(questions)
    suffix = _common_start([question[::-1] for question in questions])[::-1]
    prefix = prefix[: max((m.end() for m in re.finditer(r"[:\n]\s*", prefix)), default=0)]
    start = re.search(r"\n|(?<=[?.!])\s", suffix)
    suffix = suffix[start.start() :] if start else ""
    return f"{prefix}{{question}}{suffix}"


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((i for i, char in enumerate(first) if char != last[i : i + 1]), len(first))]


def row_wrapping(data: str, rows: DataConfig) -> str | None:
    """What stands around the question of every training row or pair; None where they cannot be read, or are few."""
    from rectune.data.reading import read_rows, row_at  # brings datasets, slow to import

    for options in (rows, rows.model_copy(update={"format": "chosen", "columns": {}})):
        with suppress(
            UserError
        ):  # neither rows nor pairs, or gone: said by the caller, who knows what it means
            dataset = read_rows(data, options=options)
            some = [row_at(dataset, i) for i in range(min(_LOOK, len(dataset)))]
            return shared_wrapping(
                [next((t.content for t in row.turns if t.role == "user"), "") for row in some]
            )
    return None


def _problem_wrapping(problems: str) -> str | None:
    """What stands around the question of every problem of an online run's file; None where that cannot be told."""
    try:
        return shared_wrapping([p.prompt[-1].content for p in read_problems(problems)])
    except UserError:
        return None


def _read(path: Path) -> dict[str, object]:
    try:
        config = load_json(path)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot be read ({error})", where=path) from None
    return config if isinstance(config, dict) else {}
