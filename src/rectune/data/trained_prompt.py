"""The prompt that a model was trained with, found in its run folder, so that every verb asks it as it was trained.

A model trained here lies in `RUN/model`, an adapter in `RUN/adapter`, beside `RUN/config.json`; a merged model names
its run in `merge.json`. The system message is read there, the template in `RUN/template.jinja`, and what stands around
each question (such as `Question: ` and `Calculation: `) from the rows themselves. Warning of what is asked otherwise is
left to `evaluation/prompts.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from rectune.config import DataConfig, PromptConfig
from rectune.config.names import with_new_names
from rectune.data.loading import read_problems
from rectune.errors import UserError
from rectune.records import MergedModel, read_record, rft_record
from rectune.runtime.io import load_json

log = logging.getLogger("rectune")

TEMPLATE = "template.jinja"
"""In a run's folder: how the run writes conversations, the date included where the template writes it."""
MERGE = "merge.json"
"""In the folder of a merged model: what it was made of."""
WEIGHTS = ("model", "adapter")
"""Folders of a run that answer for it, the first before the second."""

_LOOK = 200  # rows that the wrapping is inferred from
_FEWEST = 20  # below that, what they share may be chance


@dataclass(frozen=True)
class RunPrompt:
    """How a run's rows were written.

    Attributes:
        run: Its folder.
        model: Folder of the trained model or adapter.
        data: What it was trained on: rows, pairs, or an online run's problems.
        rows: How that was read; its template and system message are the run's.
        online: Whether `data` are problems.
        base: The model that the run began with.
    """

    run: Path
    model: Path
    data: str
    rows: DataConfig
    online: bool = False
    base: str = ""

    @property
    def template(self) -> str:
        """The template to ask with: the file that the run kept, else as it was given."""
        kept = self.run / TEMPLATE
        return str(kept) if self.rows.chat_template != "none" and kept.is_file() else self.rows.chat_template

    @cached_property
    def wrapping(self) -> str | None:
        """What stands around every question, with {question} in it; None where that cannot be told any more."""
        return _problem_wrapping(self.data) if self.online else row_wrapping(self.data, self.rows)


def run_prompt(model: str) -> RunPrompt | None:
    """The training prompt of `model`: a run, the folder of an RFT run, a model in one, or a model that was merged
    from one; None for any other model.

    Raises:
        UserError: A run without a model, a folder of it that is none, or whose config cannot be read.
    """
    try:
        folder = Path(model).expanduser()
        if not folder.is_dir() or (found := _find(folder)) is None:
            return None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such home: no name of a folder
        return None
    run, config = found
    online = "problems" in config
    try:
        rows = DataConfig.model_validate({k: config[k] for k in DataConfig.model_fields if k in config})
    except ValidationError:
        raise UserError("the settings are of another version", where=run / "config.json") from None
    data = str(config["problems" if online else "data"])
    return RunPrompt(run, answering(folder), data, rows, online, str(config.get("model") or ""))


def answering(folder: Path) -> Path:
    """The model of a run, where `folder` is one or that of an RFT run; else the folder itself.

    Raises:
        UserError: A run without a model, or a folder of a run that holds none.
    """
    found = _find(folder)
    if found is None and rft_record(folder) is None:
        return folder
    run = found[0] if found else folder
    if run == folder or run.parent == folder:
        there = [run / name for name in WEIGHTS if (run / name).is_dir()]
        if not there:
            raise UserError("the run has no model yet", where=run, hint="finish training first")
        return there[0]
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(
            "this is a part of a run, not a model", where=folder, hint=f"give the run itself: {run}"
        )
    return folder


def _find(folder: Path, *, merges: int = 8) -> tuple[Path, dict[str, object]] | None:
    """The run that a folder is or belongs to, and its config; of a merged model, that of the first tuned one.

    A model may be merged from merged ones, `merges` times at most.
    """
    if merged := read_merge(folder):
        run = Path(merged.tuned[0])
        if run.is_dir() and merges:
            return _find(run, merges=merges - 1)
        log.warning("%s: %s is no folder, so the prompt of training is not known", folder / MERGE, run)
        return None
    inside = folder.resolve()  # a link to a run's model is the run's
    near = [inside.parent] if inside.name in WEIGHTS else []
    of_rft = [folder / "train"] if rft_record(folder) else []
    for run in (folder, *of_rft, *near, inside.parent, inside.parent.parent):
        path = run / "config.json"
        try:
            config = load_json(path) if path.is_file() else None
        except (ValueError, OSError) as error:
            if run in (folder, *near):
                raise UserError(f"the file cannot be read ({error})", where=path) from None
            continue
        if isinstance(config, dict) and (
            {"algorithm", "problems"} <= set(config) or {"objective", "data"} <= set(config)
        ):
            return run, with_new_names(config)
    return None


def read_merge(folder: Path | str) -> MergedModel | None:
    """What the merged model in a folder was made of; None for another folder. Raises `UserError` for a damaged file."""
    path = Path(folder).expanduser() / MERGE
    return read_record(path, MergedModel) if path.is_file() else None


Asking = TypeVar("Asking", bound=PromptConfig)


def as_trained(model: str, settings: Asking) -> Asking:
    """`settings`, with the chat template and system prompt, where not given, of the run that `model` is of."""
    run = run_prompt(model)
    if run is None:
        return settings
    own: dict[str, str | None] = {"chat_template": run.template, "system_prompt": run.rows.system_prompt}
    changes = {name: value for name, value in own.items() if name not in settings.model_fields_set}
    changes = {name: value for name, value in changes.items() if value != getattr(settings, name)}
    for name, value in changes.items():
        log.info("%s: %s, as %s was trained", name, value, model)
    return settings.model_copy(update=changes)


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


def without_wrapping(questions: Sequence[str]) -> list[str]:
    """The questions without what stands around every one."""
    before, _, after = (shared_wrapping(questions) or "{question}").partition("{question}")
    return [question.removeprefix(before).removesuffix(after) for question in questions]


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((i for i, char in enumerate(first) if char != last[i : i + 1]), len(first))]


def row_wrapping(data: str, rows: DataConfig) -> str | None:
    """What stands around the question of every training row or pair; None where they cannot be read, or are few."""
    from rectune.data.loading import intake, row_at  # brings datasets, slow to import

    for options in (rows, rows.model_copy(update={"data_format": "chosen"})):
        with suppress(
            UserError
        ):  # gone, or neither rows nor pairs: said by the caller, who knows what it means
            if (dataset := intake(data, options=options).dataset) is None:  # says nothing: training did
                continue
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
