"""Grading: is what the model wrote right? `grade` for files, `Grader` and `grade_answers` in a program.

Verdicts, extraction and limits are on one page in `docs/grading.md`. Reads no model and no tokens; what the
verdicts are used for is in `evaluation/`, `selection.py` and `online.py`.
"""

from rectune.grading.files import Summary, grade
from rectune.grading.pool import GRADERS, Grader, grade_answers
from rectune.grading.verdicts import VERDICTS, Graded, Item, Verdict

__all__ = ["GRADERS", "VERDICTS", "Graded", "Grader", "Item", "Summary", "Verdict", "grade", "grade_answers"]
