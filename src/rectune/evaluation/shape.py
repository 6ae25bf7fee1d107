"""What answers look like: a category (the *shape*), length, whether they ended by themselves, and more.

One number is no verdict: a model can win a benchmark only because it writes shorter calculations, and the
benchmark happens to ask for those. Where two models differ in this, and how much of a difference in accuracy
goes with it, is in `shift.py`; reading folders and comparing arms in `arms.py`.

Shapes: P problems, N samples of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rectune.evaluation.scoring import REPEATED, Line, operations
from rectune.sampling.repetition import repetition

ORDER = (
    "no calculation", "no operation", "1 operation", "2 operations", "3 or more operations",
    "no code", "1 to 5 lines", "6 to 15 lines", "16 or more lines",
    "no answer", "1 word", "2 to 4 words", "5 or more words",
    "an answer without a box", "a box and at most 1 equation", "a box and 2 to 4 equations",
    "a box and 5 to 9 equations", "a box and 10 or more equations",
)  # fmt: skip
"""All categories, as they are listed and drawn; each reads behind "answers that have"."""

_EQUATION = re.compile(r"(?<![<>=!:])=(?!=)")


class Answers(NamedTuple):
    """The answers of one model to P problems, N each.

    Attributes:
        correct: float64 P x N, 0 or 1.
        category: str P x N, of `ORDER`.
        numbers: Name to float64 P x N, NaN where not known: tokens, stopped, repeating, extracted, boxed,
            steps, equations, operations, surprisal (sum of -log p over the answer, in nats).
    """

    correct: np.ndarray
    category: np.ndarray
    numbers: dict[str, np.ndarray]

    def take(self, rows: Sequence[int]) -> Answers:
        """Of some of the problems, in this order."""
        chosen = np.asarray(rows, int)
        numbers = {name: values[chosen] for name, values in self.numbers.items()}
        return Answers(self.correct[chosen], self.category[chosen], numbers)


def answers_of(samples: Mapping[str, Sequence[Line]]) -> Answers:
    """Read off what `read_graded` gives: samples by problem, as many for each."""
    looks = [[answer_shape(line) for line in lines] for lines in samples.values()]
    names = [name for name in looks[0][0] if name != "category"]
    return Answers(
        np.array([[line["verdict"] == "correct" for line in lines] for lines in samples.values()], float),
        np.array([[look["category"] for look in row] for row in looks]),
        {name: np.array([[look[name] for look in row] for row in looks], float) for name in names},
    )


def joined(parts: Sequence[Answers], *, problems: bool = False) -> Answers:
    """Several seeds' answers to the same problems as one, or (`problems`) answers to several sets of problems."""
    axis = 0 if problems else 1
    numbers = {n: np.concatenate([p.numbers[n] for p in parts], axis) for n in parts[0].numbers}
    return Answers(
        np.concatenate([part.correct for part in parts], axis),
        np.concatenate([part.category for part in parts], axis),
        numbers,
    )


def answer_shape(line: Line) -> dict[str, Any]:
    """What one graded sample looks like: its category and the numbers that `Answers` names."""
    text, unread = str(line["text"]), line["verdict"] == "unparsed" or not line.get("extracted")
    grader, ids, logps = line.get("grader"), line.get("token_ids"), line.get("logprobs")
    steps = sum(bool(row.strip()) for row in text.splitlines())
    equations = len(_EQUATION.findall(text))
    calculations = operations(str(line.get("extracted"))) if grader == "expression" and not unread else None
    boxed = "\\boxed" in text
    return {
        "category": _category(line, unread, calculations, boxed, equations),
        "tokens": None if ids is None else len(ids),
        "stopped": line["finish_reason"] == "stop" if "finish_reason" in line else None,
        "repeating": None if ids is None else repetition(ids) >= REPEATED,
        "extracted": not unread,
        "boxed": boxed,
        "steps": steps,
        "equations": equations,
        "operations": calculations,
        "surprisal": -sum(logps) if logps else None,
    }


def _category(line: Line, unread: bool, calculations: int | None, boxed: bool, equations: int) -> str:
    grader = line.get("grader")
    if grader == "expression":
        return ORDER[0] if calculations is None else ORDER[1 + min(calculations, 3)]
    if grader == "code":
        lines = sum(bool(row.strip()) for row in str(line.get("extracted") or line["text"]).splitlines())
        return ORDER[5 + (lines > 0) + (lines > 5) + (lines > 15)]
    if unread:
        return "no answer"
    if grader == "exact":
        words = len(str(line["extracted"]).split())
        return ORDER[10 + (words > 1) + (words > 4)]
    return ORDER[14 + (equations > 1) + (equations > 4) + (equations > 9)] if boxed else ORDER[13]


def describe(answers: Answers) -> dict[str, Any]:
    """The distribution in few numbers, JSON-ready: `categories` (name to share), `tokens` (mean, p10, p50,
    p90), and means of the other numbers; what is not known for any answer is left out."""
    known = {name: x[~np.isnan(x)] for name, x in answers.numbers.items()}
    shares = {name: float(np.mean(answers.category == name)) for name in ORDER}
    looks: dict[str, Any] = {"categories": {name: share for name, share in shares.items() if share}}
    if len(tokens := known["tokens"]):
        p10, p50, p90 = (float(q) for q in np.quantile(tokens, (0.1, 0.5, 0.9)))
        looks["tokens"] = {"mean": float(tokens.mean()), "p10": p10, "p50": p50, "p90": p90}
    others = ("stopped", "repeating", "extracted", "boxed", "steps", "equations", "operations")
    return looks | {name: float(known[name].mean()) for name in others if len(known[name])}


def sampled_entropy(answers: Answers) -> float | None:
    """Mean of -log p over the sampled tokens, in nats: for samples at T = 1 and top-p 1 the model's mean entropy.

    None where the samples have no log-probs.
    """
    known = ~np.isnan(answers.numbers["surprisal"] + answers.numbers["tokens"])
    tokens = float(answers.numbers["tokens"][known].sum())
    return float(answers.numbers["surprisal"][known].sum()) / tokens if tokens else None
