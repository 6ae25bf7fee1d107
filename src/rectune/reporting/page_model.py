"""All that a report says, as data: what its templates are filled with, and what `rectune report --json` prints.

Fractions, nats and seconds; a number that is not known is None. docs/report.md describes the parts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from rectune.analysis.summary_text import DOMAINS
from rectune.records import Decision, Verdict

Point: TypeAlias = dict[str, float]
"""`step`, and what was measured there, by name."""
SpotKind = Literal["base", "arm", "mean", "other", "between"]
"""The base model, a trained one, a mean of trained ones, a trained one with the decoding that is not its main one, or
one between the base and a trained one."""


@dataclass
class Note:
    """Something about a folder that a reader should know."""

    where: str
    what: str


@dataclass
class PageVerdict:
    """`open` where nothing is compared; `judged` is None without evaluations."""

    open: bool
    sentences: list[str]
    judged: Verdict | None = None


@dataclass
class SpotScore:
    """Accuracy in one domain; the interval is None where none was computed."""

    mean: float
    low: float | None = None
    high: float | None = None
    by_seed: dict[str, float] = field(default_factory=dict)


@dataclass
class Spot:
    """A model on the first figure.

    Attributes:
        label: As it is shown.
        arm: Its arm; spots of one arm lie on the line from the base model to the trained one.
        at: Share of the way from the base model to the trained one.
        decoding: "greedy" or "sampled".
        scores: "in" and "out" to accuracy.
    """

    label: str
    arm: str
    kind: SpotKind
    at: float
    scores: dict[str, SpotScore]
    decoding: str = "sampled"


@dataclass
class StepCurve:
    """Accuracy of an arm on validation problems over steps, mean over seeds.

    Attributes:
        scores: "in" and "out" to accuracy at each of `steps`; None where it was not measured.
    """

    label: str
    steps: list[int]
    scores: dict[str, list[float | None]]


@dataclass
class Opening:
    """What the page opens with: one sentence and one figure.

    Attributes:
        sentence: The decision, else the first sentence of the verdict.
        more: Without a decision, what else training did to the model.
        facts: Sentences on problems, seeds, choice and power.
        decision: None where no margin was given.
    """

    sentence: str
    more: list[str]
    spots: list[Spot]
    curves: list[StepCurve]
    facts: list[str]
    decision: Decision | None = None

    @property
    def domains(self) -> dict[str, str]:
        """The domains that a spot has an accuracy in, with their names."""
        return {k: words for k, words in DOMAINS.items() if any(k in spot.scores for spot in self.spots)}

    def find(self, label: str | None) -> Spot | None:
        return next((spot for spot in self.spots if spot.label == label), None)


@dataclass
class PaperTable:
    """A table of a reproduction: its numbers and the paper's, as text."""

    header: list[str]
    rows: list[list[str]]


@dataclass
class PaperComparison:
    tables: list[PaperTable]
    notes: list[str]


@dataclass
class DiagnosisQuote:
    """What was said before training."""

    where: str
    sentence: str
    risks: str


@dataclass
class ArmEvaluation:
    path: str
    role: str
    seed: int
    benchmarks: list[str]
    warnings: list[str]


@dataclass
class ArmEntry:
    """Runs that differ in nothing but their seed, and their evaluations."""

    label: str
    seeds: list[int]
    runs: dict[str, str]
    evaluations: list[ArmEvaluation]
    dropped: str


@dataclass
class HoldoutChange:
    """Means over the seeds of an arm of what was measured on held-out rows."""

    label: str
    seeds: int
    before: dict[str, float | None]
    after: dict[str, float | None]


@dataclass
class RunCurves:
    """What one run logged, by kind of line."""

    label: str
    seed: int
    train: list[Point]
    rollouts: list[Point]
    holdout: list[Point]
    drift: list[Point]
    log: list[Point]


@dataclass
class ProbabilityShift:
    """Shares of an arm's held-out targets by probability, all seeds together.

    `lowest` and `highest` are the shares in the first and last bin before and after; `polarises` where both grow.
    """

    targets: float
    before: list[float]
    after: list[float]
    lowest: list[float]
    highest: list[float]
    polarises: bool
    sentence: str


@dataclass
class Histograms:
    """`bins` are the edges."""

    bins: list[float]
    arms: dict[str, ProbabilityShift]


@dataclass
class DriftWarning:
    """A figure of a run that crossed its threshold, and the first step at which it did."""

    label: str
    seed: int
    figure: str
    step: float


@dataclass
class TokenChange:
    """How much log p of a token's text changed, in nats, over `count` targets; mean p before and after."""

    token: str
    count: int
    change: float
    before: float
    after: float


@dataclass
class TargetChange(TokenChange):
    """Of a single target, with the text around it."""

    left: str
    right: str
    where: str


@dataclass
class TokenChanges:
    """The largest changes on the probe rows of an arm: of texts that occur several times, and of single targets."""

    rows: int
    targets: int
    loss: list[TokenChange]
    gain: list[TokenChange]
    loss_once: list[TargetChange]
    gain_once: list[TargetChange]


@dataclass
class ShownAnswer:
    label: str
    text: str
    extracted: str | None
    verdict: str
    finished: bool


@dataclass
class ShownProblem:
    problem: str
    prompt: str
    gold: str
    answers: list[ShownAnswer]


@dataclass
class AnswerTable:
    """Answers to the same problems of a benchmark: how many problems all arms have, on how many they disagree, how many
    all or none solve, and those that are shown."""

    benchmark: str
    labels: list[str]
    problems: int
    disagree: int
    all: int
    none: int
    shown: list[ShownProblem]


@dataclass
class SettingsTable:
    """`differ`: name to label to value; `same`: name to value; `seeds`: label to seeds."""

    differ: dict[str, dict[str, str]]
    same: dict[str, str]
    seeds: dict[str, str]


@dataclass
class EnvironmentTable:
    """`differ`: name to value to the runs or evaluations that have it."""

    same: dict[str, str]
    differ: dict[str, dict[str, list[str]]]


@dataclass
class RunCost:
    """`seconds` is None where the run has not finished, or is of a version that did not log it."""

    label: str
    seed: int | None
    path: str
    steps: int
    state: str
    seconds: float | None
    step_seconds: float | None
    tokens: float | None
    tokens_per_second: float | None
    peak_memory_mib: float | None


@dataclass
class Report:
    """The whole page. `choices` are sentences on what comparisons chose on validation problems."""

    format: int
    rectune: str
    title: str
    folders: list[str]
    model: str
    data: str
    opening: Opening
    verdict: PageVerdict
    paper: PaperComparison
    diagnoses: list[DiagnosisQuote]
    arms: list[ArmEntry]
    choices: list[str]
    holdout: list[HoldoutChange]
    curves: list[RunCurves]
    histograms: Histograms
    warnings: list[DriftWarning]
    tokens: dict[str, TokenChanges]
    answers: list[AnswerTable]
    settings: SettingsTable
    environment: EnvironmentTable
    cost: list[RunCost]
    notes: list[Note] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        judged, decision = self.verdict.judged, self.opening.decision
        content = asdict(self)
        content["verdict"]["judged"] = judged and judged.to_dict()
        content["opening"]["decision"] = decision and decision.to_dict()
        return content
