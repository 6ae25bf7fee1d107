"""Where two models' answers differ in shape, and how much of a difference in accuracy goes with that.

A change that crosses a line of `LINES` is named, and the difference in accuracy is split (Kitagawa 1955, also
Oaxaca-Blinder; s share and r accuracy of a category, bars the mean of both models):

    a - b  =  sum_c (s_a - s_b) * r_bar     with the change of shape ("mix")
           +  sum_c (r_a - r_b) * s_bar     within equal shapes     ("rate")

This says what goes together, not what causes what: harder problems get longer answers, too. What an answer's
category is stands in `shape.py`.

Shapes: P problems, N samples of each, C categories, R bootstrap resamples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rectune.analysis.summary_text import percent, points
from rectune.evaluation.accuracy import REPEATED, Line, operations
from rectune.evaluation.intervals import resamples
from rectune.sampling.types import repetition

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


LINES = {
    "shape": (0.2, "one answer in five has another shape"),
    "length": (1.25, "a quarter longer or shorter (mean tokens)"),
    "stopped": (0.05, "five points more or fewer that end by themselves; a cut answer is mostly a lost one"),
}
"""From where on a change is named, and why there; it must also be twice what chance gives over the problems.

`shape` and `stopped`: total variation distance of the two distributions; `length`: ratio of means."""


class Split(NamedTuple):
    """A difference a - b in accuracy: with the mix (and its 95 % interval over problems), and within categories."""

    mix: float
    low: float
    high: float
    rate: float
    categories: list[dict[str, Any]]


def split_difference(a: Answers, b: Answers, a_PxN: np.ndarray, b_PxN: np.ndarray) -> Split:
    """Kitagawa's split of a's accuracy minus b's by the categories in `a_PxN` and `b_PxN` (any labels).

    A category that one of the two never has counts with the mix: there is no rate to compare. Interval by
    bootstrap over problems.
    """
    names = [*dict.fromkeys([*ORDER, *np.unique(a_PxN), *np.unique(b_PxN)])]
    names = [name for name in names if (a_PxN == name).any() or (b_PxN == name).any()]
    both = ((a_PxN, a.correct), (b_PxN, b.correct))
    shares = [np.stack([(x == name).mean(1) for name in names], 1) for x, _ in both]  # P x C each
    right = [np.stack([((x == name) * correct).mean(1) for name in names], 1) for x, correct in both]
    P, tables = len(a_PxN), (*shares, *right)
    means = [x_PC.mean(0) for x_PC in tables]
    mix = float(_mix(*means))
    parts = [_mix(*(counts_RP @ x_PC / P for x_PC in tables)) for counts_RP in resamples(P)]
    low, high = np.quantile(np.concatenate(parts), (0.025, 0.975))
    table = [
        {"name": str(name), "a": float(sa), "b": float(sb),
         "accuracy_a": float(ca / sa) if sa else None, "accuracy_b": float(cb / sb) if sb else None}
        for name, sa, sb, ca, cb in zip(names, *means, strict=True)
    ]  # fmt: skip
    rate = float(means[2].sum() - means[3].sum()) - mix
    return Split(mix, float(low), float(high), rate, table)


def _mix(s_a: np.ndarray, s_b: np.ndarray, c_a: np.ndarray, c_b: np.ndarray) -> np.ndarray:
    """The part of the difference that goes with the shares s; c is the share that is in the category and correct."""
    with np.errstate(invalid="ignore"):
        r_a, r_b = c_a / s_a, c_b / s_b
    r_a, r_b = np.where(s_a > 0, r_a, r_b), np.where(s_b > 0, r_b, r_a)
    mixed: np.ndarray = np.nansum((s_a - s_b) * (r_a + r_b) / 2, axis=-1)  # NaN: in neither, in a resample
    return mixed


def shape_shift(a: Answers, b: Answers, names: tuple[str, str] = ("a", "b")) -> list[dict[str, Any]]:
    """Where the answers of `a` differ in shape, length or stopping from `b`'s, beyond `LINES`; strongest first.

    Returns, JSON-ready, for each: `kind`, `size` (distance or ratio), `mix`, `low`, `high`, `rate` (of the
    difference in accuracy, see the module), `explains` (the mix has its sign, at least half of its size, and an
    interval without 0: the change could explain the difference), `categories`, `sentence`.
    """
    a_len, b_len = a.numbers["tokens"], b.numbers["tokens"]
    found = []
    if _beyond(size := _distance(a.category, b.category), "shape"):
        split = split_difference(a, b, a.category, b.category)
        found.append(_shift("shape", size[0], split, _change(split, names), names))
    if not (np.isnan(a_len).any() or np.isnan(b_len).any()):
        ratio, d_P = a_len.mean() / max(b_len.mean(), 1e-9), a_len.mean(1) - b_len.mean(1)
        noise = d_P.std(ddof=1) / np.sqrt(len(d_P)) if len(d_P) > 1 else np.inf
        line = LINES["length"][0]
        if not 1 / line < ratio < line and abs(d_P.mean()) >= 2 * noise:
            split = split_difference(a, b, *_length_bins(a_len, b_len))
            what = f"{names[0]}'s answers have {a_len.mean():.0f} tokens on average, {names[1]}'s {b_len.mean():.0f}"
            found.append(_shift("length", float(ratio), split, what, names))
    a_end, b_end = a.numbers["stopped"], b.numbers["stopped"]
    if not (np.isnan(a_end).any() or np.isnan(b_end).any()):
        ends = [np.where(x > 0, "an end", "no end") for x in (a_end, b_end)]
        if _beyond(size := _distance(*ends), "stopped"):
            shares = percent(a_end.mean()), percent(b_end.mean())
            what = f"{names[0]} ends {shares[0]} of its answers by itself, {names[1]} {shares[1]}"
            found.append(_shift("stopped", size[0], split_difference(a, b, *ends), what, names))
    gap = float(a.correct.mean() - b.correct.mean())
    return sorted(found, key=lambda shift: -shift["mix"] * np.sign(gap))


def _distance(a_PxN: np.ndarray, b_PxN: np.ndarray) -> tuple[float, float]:
    """Total variation distance of two distributions of labels, and what chance gives over these problems."""
    names = np.unique(np.concatenate([a_PxN.ravel(), b_PxN.ravel()]))
    d_PC = np.stack([(a_PxN == name).mean(1) - (b_PxN == name).mean(1) for name in names], 1)
    errors = d_PC.std(0, ddof=1) / np.sqrt(len(d_PC)) if len(d_PC) > 1 else np.full(len(names), np.inf)
    return float(abs(d_PC.mean(0)).sum() / 2), float(errors.sum() / np.sqrt(2 * np.pi))


def _beyond(size: tuple[float, float], kind: str) -> bool:
    distance, chance = size
    return distance >= LINES[kind][0] and distance >= 2 * chance


def _length_bins(a_PxN: np.ndarray, b_PxN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each answer's quarter by length, of both models' answers together, as text."""
    pooled = np.concatenate([a_PxN.ravel(), b_PxN.ravel()])
    edges = np.unique(np.quantile(pooled, (0.25, 0.5, 0.75), method="lower"))
    names = np.array([*(f"at most {edge:.0f} tokens" for edge in edges), "more tokens"])
    a_bins, b_bins = (names[np.searchsorted(edges, x)] for x in (a_PxN, b_PxN))
    return a_bins, b_bins


def _change(split: Split, names: tuple[str, str]) -> str:
    """The category whose share changed most; of two, the one that grew."""
    one = max(split.categories, key=lambda c: (round(abs(c["a"] - c["b"]), 9), c["a"] - c["b"]))
    return (
        f"{percent(one['a'])} of {names[0]}'s answers have {one['name']}, {percent(one['b'])} of {names[1]}'s"
    )


_EQUAL = {
    "shape": "answers of equal shape",
    "length": "answers of equal length",
    "stopped": "answers that end alike",
}


def _shift(kind: str, size: float, split: Split, what: str, names: tuple[str, str]) -> dict[str, Any]:
    gap = split.mix + split.rate
    explains = split.mix * gap > 0 and abs(split.mix) >= abs(gap) / 2 and split.low * split.high > 0
    sign = 1 if gap >= 0 else -1
    low, high = sorted((sign * split.low, sign * split.high))
    mix, rate = sign * split.mix, sign * split.rate
    ahead, behind = names if sign > 0 else names[::-1]
    if points(mix) == points(rate) == "0.0":
        words = "accuracy does not go with this"
    elif gap and mix >= 0 and rate >= 0:
        words = (
            f"of the {points(abs(gap))} points between them {points(mix)} (interval {points(low)} to "
            f"{points(high)}) go with this change, {points(rate)} are left within {_EQUAL[kind]}"
        )
    else:
        words = (
            f"this change alone goes with {points(mix)} points for {ahead} over {behind} (interval {points(low)} to "
            f"{points(high)}), within {_EQUAL[kind]} it is {points(rate)}"
        )
    note = " (they go together; that is no proof of a cause)" if explains else ""
    return {
        "kind": kind,
        "size": size,
        "mix": split.mix,
        "low": split.low,
        "high": split.high,
        "rate": split.rate,
        "explains": bool(explains),
        "categories": split.categories,
        "sentence": f"{what}: {words}{note}",
    }
