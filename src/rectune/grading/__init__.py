"""Grading: is what the model wrote right? `grade` for files, `Grader` and `grade_answers` in a program.

Verdicts, extraction and limits are described in `docs/grading.md`. Reads no model and no tokens.
"""

from rectune.grading.files import Summary, grade
from rectune.grading.pool import GRADERS, Grader, Item, grade_answers
from rectune.records import VERDICTS, AnswerVerdict, Grade

__all__ = [
    "GRADERS",
    "VERDICTS",
    "AnswerVerdict",
    "Grade",
    "Grader",
    "Item",
    "Summary",
    "grade",
    "grade_answers",
]
