"""Contamination: which problems' texts occur in the training rows.

Words are compared, lower case and without punctuation. A problem of 13 words or more counts where any 13 of
its words in a row stand in a row of training; one of 5 to 12 words where all of them do; a shorter one where
a turn is that text. A verbatim copy is found, also with another prompt around it; a paraphrase, or other
numbers in the same story, is not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rectune.config import DataConfig

GRAM = 13
_SHORTEST = 5  # words; below that a text may occur in another by chance


@dataclass(frozen=True)
class Overlap:
    """A problem and the first training row that holds its text.

    Attributes:
        problem_id: The problem.
        where: `file:line` of the row.
        text: The words found there.
    """

    problem_id: str
    where: str
    text: str


def words(text: str) -> tuple[str, ...]:
    """The text's words and numbers, lower case, punctuation gone."""
    return tuple(re.findall(r"\d+(?:[.,]\d+)*|\w+", text.lower()))


def find_overlap(questions: Mapping[str, str], turns: Iterable[tuple[str, str]]) -> list[Overlap]:
    """The problems whose text occurs in a turn, in the order of `questions`.

    Args:
        questions: Problem id to question, without the prompt around it.
        turns: (`file:line`, text) of every turn of the training rows.
    """
    grams: dict[tuple[str, ...], list[str]] = defaultdict(list)  # to the problems that hold it
    for problem_id, question in questions.items():
        w = words(question)
        for start in range(max(1, len(w) - GRAM + 1)):
            if w:
                grams[w[start : start + GRAM]].append(problem_id)
    short: dict[str, list[tuple[str, ...]]] = defaultdict(list)  # by their first word
    for gram in grams:
        if len(gram) < GRAM:
            short[gram[0]].append(gram)
    found: dict[str, Overlap] = {}
    for where, text in turns:
        for gram in _occurring(words(text), grams, short):
            for problem_id in grams[gram]:
                found.setdefault(problem_id, Overlap(problem_id, where, " ".join(gram)))
    return [found[problem_id] for problem_id in questions if problem_id in found]


def _occurring(
    w: tuple[str, ...],
    grams: Mapping[tuple[str, ...], list[str]],
    short: Mapping[str, list[tuple[str, ...]]],
) -> Iterable[tuple[str, ...]]:
    for start, word in enumerate(w):
        if (gram := w[start : start + GRAM]) in grams and len(gram) == GRAM:
            yield gram
        for gram in short.get(word, ()):
            if w[start : start + len(gram)] == gram and (len(gram) >= _SHORTEST or w == gram):
                yield gram


def row_turns(source: str, options: DataConfig) -> Iterable[tuple[str, str]]:
    """(`file:line`, text) of every turn of a source of training rows, as `read_rows` reads it."""
    from rectune.data.loading import read_rows, row_at  # brings datasets, slow to import

    dataset = read_rows(source, options=options)
    for index in range(len(dataset)):
        row = row_at(dataset, index)
        for turn in row.turns:
            yield row.where, turn.content
