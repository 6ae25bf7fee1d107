"""Grading: is what the model wrote right? `grade` for files, `Grader` and `grade_answers` in a program.

Verdicts, extraction and limits are described in `docs/grading.md`. Reads no model and no tokens.
"""

from rectune.grading.files import Summary, grade
from rectune.grading.pool import GRADERS, Grader, Item, grade_answers
from rectune.records import VERDICTS, Grade, Verdict

__all__ = ["GRADERS", "VERDICTS", "Grade", "Grader", "Item", "Summary", "Verdict", "grade", "grade_answers"]
