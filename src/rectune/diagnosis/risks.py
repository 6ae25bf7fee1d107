"""What could go wrong with this data under this model: each risk with its evidence, its remedy and the rows concerned.

A risk is found or not; nothing here changes data. Every threshold of a diagnosis is here, with its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from rectune.data.encoded_dataset import RowCounts
from rectune.data.findings import Finding
from rectune.diagnosis.measure import Measured
from rectune.diagnosis.token_classes import CLASSES
from rectune.records import Risk, RiskRow


class RiskThreshold(NamedTuple):
    """A number that figures are held against, and its source."""

    value: float
    source: str


OWN = "our choice"

STRONG = RiskThreshold(
    0.75, "arXiv:2510.00526: at mean p 0.76 to 0.81 (mathematics) prior-leaning objectives win"
)
INTERMEDIATE = RiskThreshold(0.5, "arXiv:2510.00526: at mean p of about 0.5 (medicine) SFT and -p tie")
WEAK = RiskThreshold(
    0.1, "arXiv:2510.00526: at mean p of about 0.01 (puzzles in figlets) SFT wins, -p learns nothing"
)
NEAR = RiskThreshold(0.05, OWN + ": this close to a threshold the verdict is less sure")

STRUCTURAL_P = RiskThreshold(
    0.05, "the paper's tracker: end tokens with p near 0 get no weight, so DFT never learns to stop"
)
CONTENT_P = RiskThreshold(
    0.1, "the paper, section 4.5: Natural Questions, where DFT falls below the base model"
)
CONTENT_SHARE = RiskThreshold(
    0.3, OWN + ": share of improbable content tokens from which rows look like facts"
)
SHORT_ANSWER = RiskThreshold(
    40, OWN + ": targets in an answer; facts and labels are short, reasoning is long"
)
CERTAIN_ENTROPY = RiskThreshold(0.15, OWN + ": nats a token below which the model is nearly certain")
DETERMINISTIC_ANSWERS = RiskThreshold(
    0.2,
    "the paper's README: DFT is weak on near-deterministic targets; the line is ours: distinct answers per row",
)
FORMAT_ROWS = RiskThreshold(0.5, OWN + ": share of rows in which a token stands that belongs to their format")
FORMAT_P = RiskThreshold(0.05, OWN + ": median p of a format token below which weight p hardly teaches it")
FIRST_TOKEN_P = RiskThreshold(
    0.02, OWN + ": the first token of nearly every answer is improbable while the rest is not"
)
FIRST_TOKEN_REST = RiskThreshold(0.3, OWN + ": mean p of all tokens, where only the first is improbable")
TRUNCATED = RiskThreshold(0.01, OWN + ": share of rows cut at max_length; their answers have no end to learn")
DUPLICATES = RiskThreshold(0.02, OWN + ": share of rows that repeat an earlier one")
ODD_ROW_Z = RiskThreshold(
    5.0, OWN + ": robust z-score of a row's NLL per token, the rest of the set being confident"
)
ODD_ROW_REST = RiskThreshold(0.4, OWN + ": mean p of the set from which on an odd row stands out")
ERRORS_NEAR = RiskThreshold(2.0, OWN + ": so many standard errors (over rows) count as near, too")
FEW_TARGETS = RiskThreshold(2000, OWN + ": targets below which the figures are coarse")
RATE_BOUNDS = (0.5, 10.0)
"""Of a learning-rate factor: beyond ten times nobody has reported a gain (the paper's tracker has one of ten)."""


_MOST_ROWS = 10
_FEW_ROWS = 20  # below that, nothing is said about what most rows are like

Severity = Literal["high", "medium", "low"]
_SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low")
_FINDINGS: dict[str, tuple[str, Severity]] = {
    "template in text": ("markers", "high"), "control tokens": ("control tokens", "high"),
    "special tokens": ("special tokens", "medium"), "today's date": ("date", "low"),
    "own end": ("own end", "low"), "spaces": ("spaces", "low"), "names": ("names", "medium"),
    "own start": ("own start", "low"), "weights": ("weights", "low"),
}  # fmt: skip
"""What texts bring along (`data/findings.py`), as a risk: its name and severity."""


@dataclass(frozen=True)
class RiskInputs:
    """What the risks look at.

    Attributes:
        measured: The pass.
        counts: What became of the rows.
        where: Where each measured row came from.
        tokens: Texts of token ids.
        max_length: Where rows are cut.
        overlap: Problems that occur in the rows: (problem id, where).
        duplicates: `where` of rows that repeat an earlier one, some of them.
        findings: What texts bring along of tokens and templates, in all rows.
    """

    measured: Measured
    counts: RowCounts
    where: Sequence[str]
    tokens: Callable[[Sequence[int]], list[str]]
    max_length: int
    overlap: Sequence[tuple[str, str]] = ()
    duplicates: Sequence[str] = ()
    findings: Sequence[Finding] = ()

    def row(self, row: int) -> RiskRow:
        """Where a measured row is, and its least likely targets."""
        m = self.measured
        places = np.flatnonzero(m.row_N == row)
        least = places[np.argsort(m.logp_N[places])][:3]
        shown = self.tokens(m.targets_N[least].tolist())
        note = ", ".join(f"{text!r} p {p:.1g}" for text, p in zip(shown, m.p_N[least], strict=True))
        return RiskRow(where=self.where[row], note=note)

    def rows(self, rows: Iterable[int]) -> list[RiskRow]:
        return [self.row(int(row)) for row in islice(rows, _MOST_ROWS)]


def find_risks(inputs: RiskInputs) -> list[Risk]:
    """All risks, the gravest first."""
    risks = [risk for check in CHECKS for risk in check(inputs)]
    return sorted(risks, key=lambda risk: _SEVERITIES.index(risk.severity))


def _risk(
    name: str, severity: Severity, evidence: str, remedy: str, threshold: RiskThreshold, value: float,
    rows: Sequence[RiskRow] = (),
) -> Risk:  # fmt: skip
    return Risk(
        name=name, severity=severity, evidence=evidence, remedy=remedy, value=value,
        threshold=threshold.value, source=threshold.source, rows=list(rows[:_MOST_ROWS]),
    )  # fmt: skip


def _never_ends(inputs: RiskInputs) -> Iterator[Risk]:
    """Turn-ending and special tokens that the model does not expect: under DFT they would never be learnt."""
    m = inputs.measured
    ends = m.structural_N
    if not ends.any():
        yield _risk(
            "no end", "high", "no target ends a turn: the rows stop without an end token",
            "check the template: without an end to learn the model will not stop", STRUCTURAL_P, 0.0,
        )  # fmt: skip
    elif (p := float(np.median(m.p_N[ends]))) < STRUCTURAL_P.value:
        yield _risk(
            "end tokens", "high",
            f"the median probability of tokens that end a turn or are special is {p:.2g}",
            "keep min_eos_weight at its default (these tokens keep weight 1), or train some steps with sft first",
            STRUCTURAL_P, p,
        )  # fmt: skip


def _facts(inputs: RiskInputs) -> Iterator[Risk]:
    """Short answers of improbable content words: facts, which DFT does not learn."""
    m = inputs.measured
    content = np.isin(m.classes_N, [CLASSES.index("words"), CLASSES.index("digits")])
    length = len(m.logp_N) / len(m.rows)
    if content.sum() < 20 or length > SHORT_ANSWER.value:
        return
    share = float((m.p_N[content] < CONTENT_P.value).mean())
    if share >= CONTENT_SHARE.value:
        worst = np.argsort(m.per_row(m.logp_N))
        yield _risk(
            "facts", "high",
            f"answers are short ({length:.0f} targets) and {share:.0%} of their words and digits have p below "
            f"{CONTENT_P.value:g}: they look like facts rather than reasoning",
            "use sft: what the model does not say already, dft hardly teaches", CONTENT_P, share,
            inputs.rows(worst),
        )  # fmt: skip


def _format(inputs: RiskInputs) -> Iterator[Risk]:
    """Tokens that most answers have and the model does not expect: the format that is to be learnt."""
    m = inputs.measured
    if len(m.rows) < _FEW_ROWS or m.p_N.mean() < WEAK.value:
        return
    candidate = ~m.structural_N & (m.classes_N != CLASSES.index("digits"))
    if _unexpected_start(m) is not None:  # said by a risk of its own
        candidate[_starts(m)] = False
    pairs = np.unique(
        m.targets_N[candidate] * len(m.rows) + m.row_N[candidate]
    )  # each token once for each row
    ids, rows = np.unique(pairs // len(m.rows), return_counts=True)
    stuck = []
    for token in ids[rows >= FORMAT_ROWS.value * len(m.rows)]:
        places = np.flatnonzero((m.targets_N == token) & candidate)
        if (p := float(np.median(m.p_N[places]))) < FORMAT_P.value:
            stuck.append((p, int(token), places))
    if stuck:
        stuck.sort(key=lambda token: token[0])
        shown = inputs.tokens([token for _, token, _ in stuck[:5]])
        named = ", ".join(f"{text!r} (p {p:.1g})" for text, (p, _, _) in zip(shown, stuck, strict=False))
        yield _risk(
            "format tokens", "medium",
            f"most answers have {named}, which the model does not expect",
            "weight p hardly teaches them: train some steps with sft first (phases), or use floor",
            FORMAT_P, stuck[0][0], inputs.rows(m.row_N[stuck[0][2]][:3]),
        )  # fmt: skip


def _deterministic(inputs: RiskInputs) -> Iterator[Risk]:
    """Targets with one right form: labels, or answers that the model is certain of."""
    m = inputs.measured
    entropy = float(m.entropy_N.mean())
    if entropy < CERTAIN_ENTROPY.value:
        yield _risk(
            "certain", "low", f"the model is nearly certain of its next token (entropy {entropy:.2f} nats)",
            "what it does not expect is noise or news, and only you can tell which: look at the least likely rows",
            CERTAIN_ENTROPY, entropy,
        )  # fmt: skip
    answers = {tuple(m.targets_N[m.row_N == row].tolist()) for row in range(min(len(m.rows), 500))}
    share = len(answers) / min(len(m.rows), 500)
    if len(m.rows) >= _FEW_ROWS and share < DETERMINISTIC_ANSWERS.value:
        yield _risk(
            "deterministic", "medium",
            f"{len(answers)} different answers in {min(len(m.rows), 500)} rows: labels, not prose",
            "use sft: a single right answer is what dft is reported weak on", DETERMINISTIC_ANSWERS, share,
        )  # fmt: skip


def _template(inputs: RiskInputs) -> Iterator[Risk]:
    """Tokens and templates that texts bring along, or answers whose first token nobody expects."""
    for finding in inputs.findings:
        name, severity = _FINDINGS[finding.name]
        tokens = ", ".join(finding.tokens)
        yield _risk(
            name, severity, f"{finding.rows:,} of {finding.of:,} rows {finding.what}" + f" ({tokens})" * bool(tokens),
            finding.remedy, RiskThreshold(0.0, OWN), finding.rows,
            [RiskRow(where=where, note=tokens) for where in finding.where],
        )  # fmt: skip
    m = inputs.measured
    if (p := _unexpected_start(m)) is not None:
        first = _starts(m)
        common = inputs.tokens(m.targets_N[first[:50]].tolist())
        shown = max(set(common), key=common.count)
        worst = first[np.argsort(m.logp_N[first])][:_MOST_ROWS]
        yield _risk(
            "first token", "medium",
            f"the first token of an answer (often {shown!r}) has median p {p:.2g}, "
            f"all tokens a mean of {m.p_N.mean():.2f}",
            "the prompt may end otherwise than the model is used to (a space, a newline, a template): see the rows",
            FIRST_TOKEN_P, p, inputs.rows(m.row_N[worst]),
        )  # fmt: skip


def _starts(m: Measured) -> np.ndarray:
    """Places of the first target of each row."""
    return np.flatnonzero(np.r_[True, m.row_N[1:] != m.row_N[:-1]])


def _unexpected_start(m: Measured) -> float | None:
    """Median p of an answer's first token, where that is improbable and the rest is not."""
    p = float(np.median(m.p_N[_starts(m)]))
    unexpected = p < FIRST_TOKEN_P.value and m.p_N.mean() > FIRST_TOKEN_REST.value
    return p if unexpected else None


def _cut(inputs: RiskInputs) -> Iterator[Risk]:
    """Rows cut at max_length."""
    lost = inputs.counts.truncated + inputs.counts.dropped
    share = lost / max(1, inputs.counts.rows + inputs.counts.dropped)
    if share > TRUNCATED.value:
        yield _risk(
            "truncation", "medium", f"{lost:,} rows ({share:.1%}) are longer than {inputs.max_length} tokens",
            "raise max_length, or leave these rows out: a cut answer teaches not to end", TRUNCATED, share,
        )  # fmt: skip


def _repeats(inputs: RiskInputs) -> Iterator[Risk]:
    """Rows that repeat an earlier one."""
    total = inputs.counts.rows + inputs.counts.dropped
    share = inputs.counts.duplicates / max(1, total)
    if share > DUPLICATES.value:
        yield _risk(
            "duplicates", "medium",
            f"{inputs.counts.duplicates:,} of {total:,} rows ({share:.1%}) repeat an earlier one",
            "remove them: they count several times",
            DUPLICATES, share, [RiskRow(where=where, note="repeats an earlier row") for where in inputs.duplicates],
        )  # fmt: skip


def _contaminated(inputs: RiskInputs) -> Iterator[Risk]:
    """Problems of a benchmark that occur in the rows."""
    if inputs.overlap:
        yield _risk(
            "overlap", "high", f"{len(inputs.overlap)} benchmark problems occur in the rows",
            "remove these rows, or do not evaluate on these problems", RiskThreshold(0, OWN), len(inputs.overlap),
            [RiskRow(where=where, note=f"problem {problem}") for problem, where in inputs.overlap],
        )  # fmt: skip


def _odd_rows(inputs: RiskInputs) -> Iterator[Risk]:
    """Rows far less likely than the rest of a set that the model is confident about: perhaps wrong ones."""
    m = inputs.measured
    if len(m.rows) < _FEW_ROWS or m.p_N.mean() < ODD_ROW_REST.value:
        return
    nll = -m.per_row(m.logp_N)
    middle = float(np.median(nll))
    spread = 1.4826 * float(np.median(abs(nll - middle)))
    if spread <= 0:
        return
    z = (nll - middle) / spread
    odd = [row for row in np.argsort(-z) if z[row] >= ODD_ROW_Z.value]
    if odd:
        yield _risk(
            "odd rows", "low",
            f"{len(odd)} rows are far less likely than the rest ({nll[odd[0]]:.1f} nats a token; median {middle:.2f})",
            "read them: a wrong answer looks like this, a rare topic too", ODD_ROW_Z, float(z[odd[0]]),
            inputs.rows(odd),
        )  # fmt: skip


CHECKS = (_never_ends, _format, _facts, _deterministic, _template, _cut, _repeats, _contaminated, _odd_rows)
