"""How the answers of two models differ in shape, and how much of a difference in accuracy goes with that.

A change beyond one of the `THRESHOLDS` is named, and the difference in accuracy is split (Kitagawa 1955, also
Oaxaca-Blinder; s share and r accuracy of a category, bars the mean of both models):

    a - b  =  sum_c (s_a - s_b) * r_bar     with the change of shape ("mix")
           +  sum_c (r_a - r_b) * s_bar     within equal shapes     ("rate")

This is an association, not a cause: harder problems get longer answers, too.

Shapes: P problems, N samples of each, C categories, R bootstrap resamples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rectune.evaluation.accuracy import REPEATED, count_operations
from rectune.evaluation.statistics import resamples
from rectune.pages.format import percent, points
from rectune.records import AnswerShape, CategoryShare, Graded, ShapeChange, TokenLengths
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


@dataclass(frozen=True)
class AnswerFeatures:
    """What one answer looks like; None where the sample does not say.

    Attributes:
        category: One of `ORDER`.
        steps: Lines that are not empty.
        surprisal: Sum of -log p over the answer, in nats.
    """

    category: str
    tokens: int | None
    stopped: bool | None
    repeating: bool | None
    extracted: bool
    boxed: bool
    steps: int
    equations: int
    operations: int | None
    surprisal: float | None


class Answers(NamedTuple):
    """The answers of one model to P problems, N each.

    Attributes:
        correct: float64 P x N, 0 or 1, or a score between them.
        category: str P x N, of `ORDER`.
        numbers: Name of another field of `AnswerFeatures` to float64 P x N, NaN where not known.
    """

    correct: np.ndarray
    category: np.ndarray
    numbers: dict[str, np.ndarray]

    def take(self, rows: Sequence[int]) -> Answers:
        """Of some of the problems, in this order."""
        chosen = np.asarray(rows, int)
        numbers = {name: values[chosen] for name, values in self.numbers.items()}
        return Answers(self.correct[chosen], self.category[chosen], numbers)


def answers_of(samples: Mapping[str, Sequence[Graded]]) -> Answers:
    """The answers in what `read_graded` returns: samples by problem, as many for each."""
    features = [[vars(answer_features(line)) for line in lines] for lines in samples.values()]
    names = [name for name in features[0][0] if name != "category"]
    return Answers(
        np.array([[line.value for line in lines] for lines in samples.values()], float),
        np.array([[answer["category"] for answer in row] for row in features]),
        {name: np.array([[answer[name] for answer in row] for row in features], float) for name in names},
    )


def join_seeds(parts: Sequence[Answers]) -> Answers:
    """Several seeds' answers to the same problems as one model's."""
    return _join(parts, 1)


def join_problems(parts: Sequence[Answers]) -> Answers:
    """Answers to several sets of problems."""
    return _join(parts, 0)


def _join(parts: Sequence[Answers], axis: int) -> Answers:
    names = parts[0].numbers
    return Answers(
        np.concatenate([part.correct for part in parts], axis),
        np.concatenate([part.category for part in parts], axis),
        {name: np.concatenate([part.numbers[name] for part in parts], axis) for name in names},
    )


def answer_features(line: Graded) -> AnswerFeatures:
    """What one graded sample looks like."""
    unread = line.verdict == "unparsed" or not line.extracted
    equations, boxed = len(_EQUATION.findall(line.text)), "\\boxed" in line.text
    is_calculation = line.grader == "expression" and not unread
    operations = count_operations(str(line.extracted)) if is_calculation else None
    return AnswerFeatures(
        category=_category(line, unread, operations, boxed, equations),
        tokens=None if line.token_ids is None else len(line.token_ids),
        stopped=None if line.finish_reason is None else line.finish_reason == "stop",
        repeating=None if line.token_ids is None else repetition(line.token_ids) >= REPEATED,
        extracted=not unread,
        boxed=boxed,
        steps=_text_lines(line.text),
        equations=equations,
        operations=operations,
        surprisal=-sum(line.logprobs) if line.logprobs else None,
    )


def _text_lines(text: str) -> int:
    return sum(bool(row.strip()) for row in text.splitlines())


def _category(line: Graded, unread: bool, operations: int | None, boxed: bool, equations: int) -> str:
    if line.grader == "expression":
        return ORDER[0] if operations is None else ORDER[1 + min(operations, 3)]
    if line.grader == "code":
        lines = _text_lines(line.extracted or line.text)
        return ORDER[5 + (lines > 0) + (lines > 5) + (lines > 15)]
    if unread:
        return "no answer"
    if line.grader == "exact":
        words = len(str(line.extracted).split())
        return ORDER[10 + (words > 1) + (words > 4)]
    return ORDER[14 + (equations > 1) + (equations > 4) + (equations > 9)] if boxed else ORDER[13]


def describe(answers: Answers) -> AnswerShape:
    """The distribution in few numbers: shares of the categories, lengths, and means of the other numbers."""
    shares = {name: float(np.mean(answers.category == name)) for name in ORDER}
    tokens = _known(answers, "tokens")
    quantiles = [float(q) for q in np.quantile(tokens, (0.1, 0.5, 0.9))] if len(tokens) else []
    means = {
        name: mean_of(answers, name) for name in ("extracted", "boxed", "steps", "equations", "operations")
    }
    return AnswerShape(
        categories={name: share for name, share in shares.items() if share},
        tokens=TokenLengths(
            mean=float(tokens.mean()), **dict(zip(("p10", "p50", "p90"), quantiles, strict=True))
        )
        if quantiles
        else None,
        **means,
    )


def _known(answers: Answers, name: str) -> np.ndarray:
    values = answers.numbers[name]
    result: np.ndarray = values[~np.isnan(values)]
    return result


def mean_of(answers: Answers, name: str) -> float | None:
    """Mean of one of the numbers over the answers where it is known; None where it is not known for any."""
    known = _known(answers, name)
    return float(known.mean()) if len(known) else None


def sampled_entropy(answers: Answers) -> float | None:
    """Mean of -log p over the sampled tokens, in nats: for samples at T = 1 and top-p 1 the model's mean entropy.

    None where the samples have no log-probs.
    """
    known = ~np.isnan(answers.numbers["surprisal"] + answers.numbers["tokens"])
    tokens = float(answers.numbers["tokens"][known].sum())
    return float(answers.numbers["surprisal"][known].sum()) / tokens if tokens else None


Kind = Literal["shape", "length", "stopped"]
THRESHOLDS: dict[Kind, float] = {"shape": 0.2, "length": 1.25, "stopped": 0.05}
"""Changes of at least this size are named, if they are also twice what chance gives over the problems.

`shape` and `stopped`: total variation distance of the two distributions, so one answer in five, and one in twenty (a
cut answer is mostly a lost one); `length`: ratio of the mean numbers of tokens.
"""


class MixRate(NamedTuple):
    """A difference a - b in accuracy: with the mix (and its 95 % interval over problems), and within categories."""

    mix: float
    low: float
    high: float
    rate: float
    categories: list[CategoryShare]


def split_difference(a: Answers, b: Answers, a_PxN: np.ndarray, b_PxN: np.ndarray) -> MixRate:
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
    categories = [
        CategoryShare(
            name=str(name),
            a=float(share_a),
            b=float(share_b),
            accuracy_a=float(right_a / share_a) if share_a else None,
            accuracy_b=float(right_b / share_b) if share_b else None,
        )
        for name, share_a, share_b, right_a, right_b in zip(names, *means, strict=True)
    ]
    rate = float(means[2].sum() - means[3].sum()) - mix
    return MixRate(mix, float(low), float(high), rate, categories)


def _mix(s_a: np.ndarray, s_b: np.ndarray, c_a: np.ndarray, c_b: np.ndarray) -> np.ndarray:
    """The part of the difference that goes with the shares s; c is the share that is in the category and correct."""
    with np.errstate(invalid="ignore"):
        r_a, r_b = c_a / s_a, c_b / s_b
    r_a, r_b = np.where(s_a > 0, r_a, r_b), np.where(s_b > 0, r_b, r_a)
    mixed: np.ndarray = np.nansum((s_a - s_b) * (r_a + r_b) / 2, axis=-1)  # NaN: in neither, in a resample
    return mixed


def find_changes(a: Answers, b: Answers, names: tuple[str, str] = ("a", "b")) -> list[ShapeChange]:
    """Where the answers of `a` differ in shape, length or stopping from `b`'s, beyond `THRESHOLDS`; strongest first.

    A change `explains` the difference if its mix has the sign of the difference, at least half of its size, and an
    interval without 0: it could, which is no proof.
    """
    a_len, b_len = a.numbers["tokens"], b.numbers["tokens"]
    changes = []
    if _beyond(size := _distance(a.category, b.category), "shape"):
        split = split_difference(a, b, a.category, b.category)
        changes.append(_change("shape", size[0], split, _largest_change(split, names), names))
    if not (np.isnan(a_len).any() or np.isnan(b_len).any()):
        ratio, d_P = a_len.mean() / max(b_len.mean(), 1e-9), a_len.mean(1) - b_len.mean(1)
        noise = d_P.std(ddof=1) / np.sqrt(len(d_P)) if len(d_P) > 1 else np.inf
        threshold = THRESHOLDS["length"]
        if not 1 / threshold < ratio < threshold and abs(d_P.mean()) >= 2 * noise:
            split = split_difference(a, b, *_length_bins(a_len, b_len))
            what = f"{names[0]}'s answers have {a_len.mean():.0f} tokens on average, {names[1]}'s {b_len.mean():.0f}"
            changes.append(_change("length", float(ratio), split, what, names))
    a_end, b_end = a.numbers["stopped"], b.numbers["stopped"]
    if not (np.isnan(a_end).any() or np.isnan(b_end).any()):
        ends = [np.where(x > 0, "an end", "no end") for x in (a_end, b_end)]
        if _beyond(size := _distance(*ends), "stopped"):
            shares = percent(a_end.mean(), 0), percent(b_end.mean(), 0)
            what = f"{names[0]} ends {shares[0]} of its answers by itself, {names[1]} {shares[1]}"
            changes.append(_change("stopped", size[0], split_difference(a, b, *ends), what, names))
    gap = float(a.correct.mean() - b.correct.mean())
    return sorted(changes, key=lambda change: -change.mix * np.sign(gap))


def _distance(a_PxN: np.ndarray, b_PxN: np.ndarray) -> tuple[float, float]:
    """Total variation distance of two distributions of labels, and what chance gives over these problems."""
    names = np.unique(np.concatenate([a_PxN.ravel(), b_PxN.ravel()]))
    d_PC = np.stack([(a_PxN == name).mean(1) - (b_PxN == name).mean(1) for name in names], 1)
    errors = d_PC.std(0, ddof=1) / np.sqrt(len(d_PC)) if len(d_PC) > 1 else np.full(len(names), np.inf)
    return float(abs(d_PC.mean(0)).sum() / 2), float(errors.sum() / np.sqrt(2 * np.pi))


def _beyond(size: tuple[float, float], kind: Kind) -> bool:
    distance, chance = size
    return distance >= THRESHOLDS[kind] and distance >= 2 * chance


def _length_bins(a_PxN: np.ndarray, b_PxN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each answer's quarter by length, of both models' answers together, as text."""
    pooled = np.concatenate([a_PxN.ravel(), b_PxN.ravel()])
    edges = np.unique(np.quantile(pooled, (0.25, 0.5, 0.75), method="lower"))
    names = np.array([*(f"at most {edge:.0f} tokens" for edge in edges), "more tokens"])
    a_bins, b_bins = (names[np.searchsorted(edges, x)] for x in (a_PxN, b_PxN))
    return a_bins, b_bins


def _largest_change(split: MixRate, names: tuple[str, str]) -> str:
    """The category whose share changed most; of two, the one that grew."""
    most = max(split.categories, key=lambda c: (round(abs(c.a - c.b), 9), c.a - c.b))
    return (
        f"{percent(most.a, 0)} of {names[0]}'s answers have {most.name}, {percent(most.b, 0)} of {names[1]}'s"
    )


_EQUAL: dict[Kind, str] = {
    "shape": "answers of equal shape",
    "length": "answers of equal length",
    "stopped": "answers that end alike",
}


def _change(kind: Kind, size: float, split: MixRate, what: str, names: tuple[str, str]) -> ShapeChange:
    gap = split.mix + split.rate
    explains = split.mix * gap > 0 and abs(split.mix) >= abs(gap) / 2 and split.low * split.high > 0
    note = " (they go together; that is no proof of a cause)" if explains else ""
    return ShapeChange(
        kind=kind,
        size=size,
        mix=split.mix,
        low=split.low,
        high=split.high,
        rate=split.rate,
        explains=bool(explains),
        categories=split.categories,
        sentence=f"{what}: {_split_text(kind, split, names)}{note}",
    )


def _split_text(kind: Kind, split: MixRate, names: tuple[str, str]) -> str:
    gap = split.mix + split.rate
    sign = 1 if gap >= 0 else -1
    low, high = sorted((sign * split.low, sign * split.high))
    mix, rate = sign * split.mix, sign * split.rate
    ahead, behind = names if sign > 0 else names[::-1]
    if points(mix) == points(rate) == "0.0":
        return "accuracy does not go with this"
    if gap and mix >= 0 and rate >= 0:
        return (
            f"of the {points(abs(gap))} points between them {points(mix)} (interval {points(low)} to "
            f"{points(high)}) go with this change, {points(rate)} are left within {_EQUAL[kind]}"
        )
    return (
        f"this change alone goes with {points(mix)} points for {ahead} over {behind} (interval {points(low)} to "
        f"{points(high)}), within {_EQUAL[kind]} it is {points(rate)}"
    )
