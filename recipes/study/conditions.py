"""Conditions of data: what the rows are like, and the problems of their domain. Everything is a function of a seed.

    FOLDER/<condition>/rows.jsonl, in_domain.jsonl, validation.jsonl, validation_out.jsonl
    FOLDER/own/sampled/              answers of the base model that the rows of "own" are taken from

A condition differs from "clean" in the settings that study.toml gives it. The problems out of domain are those of the
mini scale (other stories, more steps), the same in every condition, and in none of the rows.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from rectune.config import RFTConfig, load_config
from rectune.data.loading import PACKAGED
from rectune.errors import UserError
from rectune.experiments.rft import read, sample_answers
from rectune.grading.files import grade, select
from rectune.runtime.io import load_json, wait_for_lock, write_json, write_jsonl

from ..mini.stories import ITEMS, LARGEST, NAMES, SIGNS, Story, spoil, stories
from ..mini.task import DEMONSTRATED, OTHERS, problem_of, row_of
from .design import Condition

PLACES = ("", " on the bus", " on the shelf")
ASKED = (
    "How many {items} does {name} have{place}?",
    "{name} has {items}{place}. How many?",
    "How many of the {items} does {name} have{place}?",
    "How many {items} are with {name}{place}?",
    "{name} holds {items}{place}. How many {items}?",
)
"""Wordings of a fact: three for the rows, one for validation, one for the verdict."""


def write_condition(
    folder: Path, name: str, condition: Condition, mini: Path | None, problems: Mapping[str, int]
) -> Path:
    """Write the files of a condition that are not there yet; returns their folder.

    Args:
        folder: Of all conditions.
        mini: Of the mini scale's task, with its problems and base model; None: a real model, with packaged problems.
        problems: How many of `validation` and `in_domain`.

    Raises:
        UserError: The folder has the condition with other settings.
    """
    place, settings = folder / name, condition.model_dump()
    with wait_for_lock(place, "writing the rows of this condition"):
        if (path := place / "condition.json").is_file():
            if load_json(path)["settings"] != settings:
                raise UserError(
                    "the folder has this condition with other settings",
                    where=path,
                    hint="give another --output-dir",
                )
        else:
            rows, asked = _records(place, condition, mini, problems)
            for file, records in {"rows": rows, **asked}.items():
                write_jsonl(place / f"{file}.jsonl", records)
            write_json(path, {"format": 1, "rows": len(rows), "settings": settings}, indent=2)
    return place


Records = list[dict[str, str]]


def _records(
    place: Path, condition: Condition, mini: Path | None, problems: Mapping[str, int]
) -> tuple[Records, dict[str, Records]]:
    """Rows, and problems by the name of their file."""
    if mini is None:
        return _calculations(condition), {}
    if condition.source == "base":
        rows, asked = _own_rows(place / "sampled", condition, mini), _mini_problems(mini, problems)
    elif condition.source == "facts":
        rows, asked = _facts(condition.rows)
    else:
        rows, asked = _story_rows(condition, mini, problems)
    elsewhere = _elsewhere(problems["validation"], mini)
    return rows, {**asked, "validation_out": [problem_of(story) for story in elsewhere]}


def _calculations(condition: Condition) -> Records:
    """Packaged GSM8K calculations; in wrong ones an operation has become another."""
    rng, rows = random.Random("calculations"), []
    path = Path(str(files("rectune") / "assets" / PACKAGED["gsm8k-calculations"]))
    for row in itertools.islice(_lines(path), condition.rows):
        text = row["completion"]
        if rng.random() < condition.wrong:
            at = rng.choice(
                [place for place, sign in enumerate(text) if sign in "+-*/" and text[place - 1] == " "]
            )
            text = text[:at] + rng.choice([sign for sign in "+-*/" if sign != text[at]]) + text[at + 1 :]
        rows.append({"prompt": row["prompt"], "completion": text})
    return rows


def _elsewhere(count: int, mini: Path) -> Iterator[Story]:
    """Stories out of domain that are no problems of the verdict: half are other stories, half have more steps."""
    seen = _texts(mini)
    yield from itertools.islice(stories("validation, others", OTHERS, (2,), seen), count // 2)
    yield from itertools.islice(stories("validation, more", DEMONSTRATED, (3,), seen), count - count // 2)


def _story_rows(
    condition: Condition, mini: Path, problems: Mapping[str, int]
) -> tuple[Records, dict[str, Records]]:
    seen = _texts(mini)
    if condition.twice:  # each story has the new change, and problems of its own
        signs = {"++": 4, **SIGNS}
        endless: Iterator[Story] = (
            story
            for story in stories("twice", DEMONSTRATED, (2,), seen, signs)
            if "++" in [sign for sign, _, _ in story.steps]
        )
        asked = {
            name: [problem_of(story) for story in itertools.islice(endless, n)]
            for name, n in problems.items()
        }
    else:
        endless = stories("study", DEMONSTRATED, (2,), seen)
        asked = _mini_problems(mini, problems)
    rng = random.Random("wrong")
    rows = [
        row_of(spoil(rng, story) if rng.random() < condition.wrong else story, condition.way)
        for story in itertools.islice(endless, condition.rows)
    ]
    return rows, asked


def _own_rows(folder: Path, condition: Condition, mini: Path) -> Records:
    """Answers of the base model to the mini scale's training questions that are correct, one a question."""
    given = {
        "model": mini / "base" / "model", "problems": mini / "problems.jsonl", "output_dir": folder,
        "num_samples": 4, "temperature": 1.0, "max_new_tokens": 48, "chat_template": "none", "dtype": "float32",
    }  # fmt: skip
    config = load_config(None, given, RFTConfig)
    samples, graded, rows = (folder / f"{name}.jsonl" for name in ("samples", "graded", "rows"))
    sample_answers(config, read(config), samples)
    grade(samples, graded)
    select(graded, rows, purpose="sft", per_problem=1)
    chosen = itertools.islice(_lines(rows), condition.rows)
    return [{"prompt": row["prompt"][0]["content"], "completion": row["completion"]} for row in chosen]


def _facts(count: int) -> tuple[Records, dict[str, Records]]:
    """Rows of facts in three wordings, and problems that ask for the same facts in two others."""
    rng = random.Random("facts")
    whose = list(itertools.product(NAMES, ITEMS, PLACES))
    facts = [
        (*parts, rng.randint(0, LARGEST)) for parts in rng.sample(whose, min(max(4, count // 3), len(whose)))
    ]
    texts = [
        [
            Story(asked.format(name=name, items=items, place=place), n, (("+", 0, n),))
            for name, items, place, n in facts
        ]
        for asked in ASKED
    ]
    rows = [row_of(story, "short") for of_wording in texts[:3] for story in of_wording]
    validation, in_domain = ([problem_of(story) for story in of_wording] for of_wording in texts[3:])
    return rows, {"validation": validation, "in_domain": in_domain}


def _texts(mini: Path) -> set[str]:
    """Every story of the mini scale but for the base model's rows: what rows and validation problems leave out."""
    return {row["prompt"] for file in mini.glob("*.jsonl") if file.stem != "base" for row in _lines(file)}


def _mini_problems(mini: Path, problems: Mapping[str, int]) -> dict[str, Records]:
    return {
        name: list(itertools.islice(_lines(mini / f"{name}.jsonl"), count))
        for name, count in problems.items()
    }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
