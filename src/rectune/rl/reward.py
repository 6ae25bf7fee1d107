"""What an answer earns: 1 or 0 by a grader, or what a Python function of the user's says.

A user's function is

    def reward(prompt: str, text: str, answer: str | list[str], extra: dict) -> float

and is called with these names, once for each answer: `prompt` is the last turn of the question, `text` what the model
wrote (special tokens removed), `answer` and `extra` what the problem's line has (`{}` without extra). It returns a
finite number (or a bool). Its file is run when it is named, and only then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from rectune.data.schema import Problem
from rectune.errors import UserError, unknown_name
from rectune.grading.pool import GRADERS, Grader, check_item
from rectune.runtime.user_code import load_function

Function = Callable[..., Any]

UNJUDGED = ("timeout", "error")
"""Verdicts that say nothing about the answer: it is left out of the loss, and counted."""


class Earned(NamedTuple):
    """What one answer earned.

    Attributes:
        reward: NaN where it could not be judged.
        correct: By a grader; None under a function.
        verdict: The grader's word, or "" under a function.
    """

    reward: float
    correct: bool | None
    verdict: str


class Rewards(ExitStack):
    """Judges answers; a context manager, since graders are processes.

    Args:
        reward: As in the settings: "grader", a grader's name, or FILE.py:FUNCTION.
        timeout: Seconds for one answer, for graders.

    Raises:
        UserError: No such grader, file or function, or a file that cannot be run.
    """

    def __init__(self, reward: str, timeout: float) -> None:
        super().__init__()
        self.name, self.function, self.grader = reward, None, ""
        if ".py" in reward:
            self.function = load_function(reward, where="reward")
        elif reward != "grader":
            if reward not in GRADERS:
                known = ("grader", *GRADERS, "FILE.py:FUNCTION")
                raise unknown_name("reward", reward, known, where="reward")
            self.grader = reward
        self.pool = None if self.function else self.enter_context(Grader(timeout=timeout))

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `UserError` at the first problem that the grader cannot judge by what its line has."""
        for problem in [] if self.function else problems:
            check_item(self.grader or problem.grader, problem.extra, where=problem.where or None)

    def judge(self, answers: Sequence[tuple[Problem, str]]) -> list[Earned]:
        """What each answer (a problem and the model's words) earned, in order.

        Raises:
            UserError: The function raised, or returned no finite number; names the problem.
        """
        if self.function is not None:
            return [Earned(self._call(problem, text), None, "") for problem, text in answers]
        assert self.pool is not None
        items = [(p.answer, text, self.grader or p.grader, p.extra) for p, text in answers]
        return [
            Earned(
                math.nan if verdict in UNJUDGED else float(verdict == "correct"),
                verdict == "correct",
                verdict,
            )
            for verdict, *_ in self.pool.grade(items)
        ]

    def _call(self, problem: Problem, text: str) -> float:
        assert self.function is not None
        extra = problem.extra or {}
        given = {"prompt": problem.prompt[-1].content, "text": text, "answer": problem.answer, "extra": extra}
        try:
            value = self.function(**given)
        except (Exception, SystemExit) as error:  # whatever a user's code raises is theirs to mend
            says = f"raised {type(error).__name__}: {error}"
        else:
            try:
                reward = math.nan if isinstance(value, str) else float(value)
            except (TypeError, ValueError, RuntimeError, OverflowError):
                reward = math.nan
            if math.isfinite(reward):
                return reward
            says = f"returned {value!r:.80}, not a finite number"
        hint = "fix it and continue with --resume"
        raise UserError(f"{says} for problem '{problem.problem_id}'", where=self.name, hint=hint)
