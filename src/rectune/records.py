"""The file formats that stages write and read: a pydantic model for each JSON file, each line of a JSONL file, and
each part of them.

A record is checked when it is read: types are not converted, and a missing or malformed field is one `UserError` that
names file and field. Fields that a model does not name are kept and written back. A file says its version as `format`;
another version is refused by name. Importing this module loads neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from rectune.config.names import OTHER_VALUES, objective_text, with_new_names
from rectune.errors import UserError, unknown_name
from rectune.runtime.io import FORMAT, check_format, load_json, translate_disk_errors, write_json

AnswerVerdict = Literal["correct", "wrong", "unparsed", "timeout", "error"]
"""unparsed: no answer found, or not readable as one; timeout: over the limit; error: it broke the grader, or its tests
are at fault. The last two are not known to be wrong."""

VERDICTS: tuple[AnswerVerdict, ...] = get_args(AnswerVerdict)
MAX_EXTRACTED = 1000
"""Characters of an extracted answer that are kept."""
ADDED = frozenset({"verdict", "extracted", "verdict_reason"})
"""Fields that grading adds to a line."""


class Grade(NamedTuple):
    """A verdict, the answer that it is about, as found in the text ("" where none was), and why (`error` only)."""

    verdict: AnswerVerdict
    extracted: str
    reason: str = ""

    def fields(self) -> dict[str, str]:
        """The fields that grading adds to a line; see `Graded`."""
        added = {"verdict": self.verdict, "extracted": self.extracted}
        return added | ({"verdict_reason": self.reason} if self.reason else {})


class Record(BaseModel):
    """A JSON object: a line of a JSONL file, or a part of a file. Types are not converted, other fields are kept."""

    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, with the names that it has in files."""
        return self.model_dump(by_alias=True)


def _engine_of_today(name: object) -> object:
    return OTHER_VALUES.get(name, name) if isinstance(name, str) else name


EngineName = Annotated[str, BeforeValidator(_engine_of_today)]
"""hf, openai or vllm; rectune 0.1 wrote local and server."""


class FileRecord(Record):
    """A JSON file. A subclass says what the file is and what to do where it is damaged."""

    WHAT: ClassVar[str] = "a file of rectune"
    HINT: ClassVar[str] = "remove it and run again: it is made anew"
    FORMAT: ClassVar[int] = FORMAT

    format: int = FORMAT


class SampledTurn(Record):
    """One turn of the conversation that a prompt was made of."""

    role: str
    content: str


class Sample(Record):
    """One line of samples.jsonl: one answer of a model to one problem.

    Attributes:
        problem_id, sample_index: The key of the sample; unique within a file.
        prompt: The prompt's text exactly as the model read it.
        text: What the model wrote, without special tokens.
        answer, grader, extra: Copied from the problem, so that the file can be graded alone.
        token_ids, logprobs: The new tokens (the end-of-turn token included, where one was sampled) and the
            log-probability of each under the model at temperature 1. A server may give none.
        finish_reason: "stop" (the model ended its turn or wrote a stop text) or "length".
        seed, temperature, top_p, max_new_tokens, stop, engine, model, fingerprint: How it was sampled, from what.
        turns: The conversation that the prompt was made of, for training on the sample.
        not_taken: Settings that the server refused, so that its own values applied.
    """

    problem_id: str
    sample_index: int
    prompt: str
    text: str
    answer: str | list[str]
    grader: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    seed: int
    temperature: float
    top_p: float
    engine: EngineName
    model: str
    fingerprint: str
    extra: dict[str, object] | None
    turns: list[SampledTurn]
    max_new_tokens: int
    stop: list[str] = []
    not_taken: list[str] = []
    format: int = FORMAT


class Graded(Record):
    """One line of graded.jsonl: a sample (see `Sample`) with its verdict, and a `score` in [0, 1] where it has one."""

    problem_id: str
    sample_index: int = 0
    text: str
    grader: str = "math"
    extra: dict[str, object] | None = None
    prompt: str | None = None
    turns: list[SampledTurn] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    finish_reason: str | None = None
    temperature: float | None = None
    fingerprint: str | None = None
    engine: EngineName | None = None
    not_taken: list[str] = []
    verdict: AnswerVerdict
    score: float | None = None
    extracted: str | None = None
    verdict_reason: str | None = None

    @property
    def value(self) -> float:
        """The score, else 1 for a correct answer and 0 for any other."""
        return float(self.verdict == "correct") if self.score is None else self.score


class Accuracy(Record):
    """A mean over problems and its interval, as fractions."""

    mean: float
    low: float
    high: float


class EvalProtocol(Record):
    """How the answers of an evaluation were sampled."""

    n: int = Field(gt=0)
    temperature: float | None
    """None: the logs of another harness do not say."""
    top_p: float = 1.0
    max_new_tokens: int | None = None
    seed: int = 0
    stop: list[str] = []
    precision: str = "auto"
    template: str = "auto"
    date: str | None = None
    """The date that the chat template wrote into the prompts."""
    template_file: str | None = None
    """The template as it was kept in the folder, where it depends on the date."""
    shots: int = 0
    system: str | None = None
    limit: int | None = None
    engine: EngineName = "hf"
    not_taken: list[str] = []
    """Settings that a server refused, so that its own values applied."""


def _unique(ids: list[str]) -> list[str]:
    if len(set(ids)) < len(ids):
        raise ValueError("a problem is listed twice")
    return ids


class TaskScore(Record):
    """The numbers of one task. A field is None where the samples do not say."""

    problems: int
    samples: int
    avg: Accuracy
    pass_at: dict[str, Accuracy]
    verdicts: dict[str, int]
    maj_at: dict[str, Accuracy] | None = None
    stopped: float | None = None
    tokens: float | None = None
    repeating: float | None = None
    operations: dict[str, int] | None = None


class TaskResult(TaskScore):
    """One task of an evaluation: its numbers, prompt and source."""

    prompt: str
    first_prompt: str | None = None
    """The first prompt as the model read it."""
    origin: str = ""
    licence: str = ""
    note: str = ""
    problem_ids: Annotated[list[str], AfterValidator(_unique)]


class OverlappingProblem(Record):
    """A problem whose text occurs in a training row."""

    problem_id: str
    where: str
    text: str


class OverlapResult(Record):
    """Of `problems`, those whose text occurs in training rows."""

    rows: str
    problems: int
    found: list[OverlappingProblem]


class MergedModel(FileRecord):
    """merge.json: what a merged model was made of, base + t (tuned - base).

    Attributes:
        rectune: Version that wrote it.
        base: The base model: a folder, or a name.
        tuned: The tuned models.
        weights: Of each in their mean.
        at: t, the share of the way from the base model to that mean.
    """

    WHAT = "the record of a merged model"

    rectune: str
    base: str
    tuned: list[str] = Field(min_length=1)
    weights: list[float]
    at: float


class Evaluation(FileRecord):
    """evaluation.json: the protocol and the numbers of one model; `merge` is what it was made of, if it was merged."""

    WHAT = "an evaluation"
    HINT = "remove it and run the evaluation again: it resumes"

    model: str = ""
    fingerprint: str = ""
    training_run: str | None = None
    merge: MergedModel | None = None
    protocol: EvalProtocol
    versions: dict[str, str] = {}
    warnings: list[str] = []
    overlap: OverlapResult | None = None
    benchmarks: dict[str, TaskResult]


class TemperatureMatch(Record):
    """The temperature at which one model's answers have the entropy of another's; entropies in nats a token."""

    temperature: float
    entropy: float
    """At this temperature, at the states of T = 1."""
    reached: bool
    """False: the target is out of reach, the temperature is the end of the range that was searched."""
    target: float
    own: float
    """At T = 1."""
    tokens: int
    """Tokens that the entropies are means over."""
    sentence: str


class AnswerEntropy(FileRecord):
    """entropy.json: mean entropy of a model's answers, in nats a token."""

    WHAT: ClassVar[str] = "the entropy of answers"

    entropy: float


class MatchPilot(Record):
    """A few answers sampled at the first temperature, and their entropy."""

    temperature: float
    answers: int
    drawn: float


class MatchFile(FileRecord, TemperatureMatch):
    """match.json: how a model was sampled as sharply as the arm `to`.

    Attributes:
        pilot: None where the first temperature was close enough to 1, out of reach, or the pilot too expensive.
        drawn: Entropy of the answers sampled at `temperature`; None before they are sampled.
    """

    WHAT: ClassVar[str] = "a matched temperature"

    to: str
    pilot: MatchPilot | None
    drawn: float | None = None


class TokenLengths(Record):
    """Mean and quantiles of the answers' lengths, in tokens."""

    mean: float
    p10: float
    p50: float
    p90: float


class AnswerShape(Record):
    """What an arm's answers look like; None where not known."""

    categories: dict[str, float] = {}
    """Name of a category to the share of answers in it."""
    tokens: TokenLengths | None = None
    extracted: float | None = None
    boxed: float | None = None
    steps: float | None = None
    equations: float | None = None
    operations: float | None = None


class ArmResult(Accuracy):
    """The accuracy of one arm on a task or a domain."""

    seeds: int
    by_seed: dict[str, float]
    greedy: float | None = None
    pass_at: dict[str, float]
    stopped: float | None = None
    tokens: float | None = None
    repeating: float | None = None
    entropy: float | None = None
    """In nats a token, estimated from the samples."""
    shape: AnswerShape = AnswerShape()


class CategoryShare(Record):
    """Shares and accuracies of one category of answers in both arms of a pair."""

    name: str
    a: float
    b: float
    accuracy_a: float | None
    accuracy_b: float | None


class ShapeChange(Record):
    """A change in the answers between the arms of a pair, and the part of the difference that goes with it."""

    kind: Literal["shape", "length", "stopped"]
    size: float
    """Total variation distance; for "length" the ratio of mean tokens."""
    mix: float
    low: float
    high: float
    rate: float
    explains: bool
    categories: list[CategoryShare] = []
    sentence: str


class SampleSize(Record):
    """What it would take to see a difference: problems, or seeds where their spread alone hides it."""

    difference: float
    problems: int | None
    seeds: int
    enough: bool


class ArmDifference(Record):
    """Accuracy of a minus that of b, with its interval."""

    difference: float
    low: float
    high: float


class GreedyDifference(ArmDifference):
    """At temperature 0."""

    a: float
    b: float


class PassDifference(GreedyDifference):
    """Of pass@k."""

    k: int


class MatchedDifference(ArmDifference):
    """With one arm sampled at the temperature at which it is as sharp as the other."""

    of: str
    as_: str | None = Field(alias="as")
    temperature: float
    temperatures: dict[str, float]
    seeds: int
    mean: float


class Sharpening(Record):
    """A pair when sharpness is taken out."""

    greedy: GreedyDifference | None
    matched: MatchedDifference | None
    pass_: PassDifference | None = Field(alias="pass")
    left: float | None
    """Difference that is left at equal entropy."""
    sentence: str = ""


class PairResult(ArmDifference):
    """Two arms on a task or a domain: a minus b."""

    a: str
    b: str
    p_value: float
    problems: int
    seeds: int
    needed: SampleSize | None = None
    shape_shift: list[str] = []
    shifts: list[ShapeChange] = []
    sharpening: Sharpening | None = None
    p_holm: float
    shown: bool
    verdict: str
    sentence: str


class ArmsResult(Record):
    """All arms on the problems of a task or a domain, and all pairs of them."""

    problems: int
    arms: dict[str, ArmResult]
    pairs: list[PairResult]


class TaskVerdict(ArmsResult):
    """Of one task; `domain` is "in", "out" or "" (neither)."""

    domain: str


class DomainVerdict(ArmsResult):
    """Of all problems of a domain's tasks."""

    benchmarks: list[str]


class BaseDifference(ArmDifference):
    """Accuracy of a trained arm minus that of the base model."""

    verdict: str


class Headline(Record):
    """A first line of a verdict."""

    verdict: str
    sentence: str


class Verdict(Record):
    """The comparison of several arms on the same problems. docs/evaluation.md describes every field."""

    level: float = 0.95
    benchmarks: dict[str, TaskVerdict]
    domains: dict[str, DomainVerdict] = {}
    comparisons: int = 0
    against_base: dict[str, dict[str, BaseDifference]] = {}
    headline: list[Headline] = []
    sentences: list[str]
    warnings: list[str] = []
    without_overlap: dict[str, TaskVerdict] = {}
    """Tasks of which problems occur in the training rows, without these problems."""


class SweepTrial(Record):
    """One learning rate of one arm."""

    learning_rate: float
    accuracy: Accuracy
    run: str | None = None


class SweptArm(Record):
    """The learning rate chosen for an arm; `edge`: it is the lowest or highest of several."""

    label: str
    learning_rate: float
    edge: bool
    trials: list[SweepTrial]


class SweepResult(Record):
    """Learning rates chosen on validation problems, by the arm's slug."""

    steps: int
    seed: int
    problems: int
    arms: dict[str, SweptArm]


class BehindLeader(Record):
    """The leader's accuracy minus an arm's, with its interval."""

    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float


class Standing(Record):
    """Who leads at a rung and who is clearly worse, by label."""

    leader: str
    accuracy: dict[str, Accuracy]
    behind: dict[str, BehindLeader]
    worse: list[str]


class Rung(Standing):
    """A rung of a race, and the steps and seconds spent up to it."""

    step: int
    problems: int
    steps: int
    seconds: float


class Dropped(BehindLeader):
    """Why an arm left the race."""

    step: int
    reason: str
    leader: str
    accuracy: float
    leader_accuracy: float


class RaceResult(Record):
    """A race; `ended` is "all rungs", "one left" or "budget". Survivors and dropped arms are slugs."""

    budget: str
    rungs: list[Rung]
    ended: str
    survivors: list[str]
    dropped: dict[str, Dropped]


class RaceProgress(FileRecord):
    """race.json: the rungs that are done."""

    WHAT = "the progress of a race"

    rungs: list[Rung]


class ComparedArm(Record):
    """An arm of a comparison; `runs` maps seeds to run folders, or to those of its answers, if it is of logs."""

    objective: str
    label: str
    slug: str
    learning_rate: float | None
    runs: dict[str, str]
    dropped: Dropped | None

    @model_validator(mode="before")
    @classmethod
    def _of_version_0_1(cls, arm: Any) -> Any:
        if not isinstance(arm, dict) or "objective" in arm or "spec" not in arm:
            return arm
        table = {"name": arm.get("name"), "phases": arm.get("phases"), **(arm.get("settings") or {})}
        kept = {key: value for key, value in arm.items() if key not in ("spec", "name", "phases", "settings")}
        return {**kept, "objective": objective_text(table)}


class PaperTables(Record):
    """Tables of a reproduction, each a list of rows, and notes, for the report."""

    tables: list[list[dict[str, JsonValue]]]
    notes: list[str]


class PointScore(Accuracy):
    """Accuracy of a point on one domain's problems: mean over seeds and problems, and of each seed."""

    by_seed: dict[str, float]


class Point(Record):
    """A model that could be shipped: a run, a place on the line from the base model to it, or a mean of models.

    Attributes:
        arm: Slug of its arm: "base", "dft", or "sft+dft" for the mean of two arms' models.
        label: As it is shown: "base", "dft", "dft at 0.5", "mean of sft and dft".
        at: Share of the way from the base model (0) to the tuned one (1).
        step: Optimizer step, for a point of accuracy over steps; None: the end of training.
        folders: Seed to the folder, below OUT, whose `evaluation`, `greedy` and `validation` are this point's.
        scores: "in" and "out" ("" for tasks of neither) to accuracy on the verdict's problems, as they were sampled.
        greedy: The same at temperature 0.
        validation: The same on the problems that choices are judged on.
    """

    arm: str
    label: str
    at: float = 1.0
    step: int | None = None
    folders: dict[str, str] = {}
    scores: dict[str, PointScore] = {}
    greedy: dict[str, PointScore] = {}
    validation: dict[str, PointScore] = {}


class Power(Record):
    """How likely a true difference is to be shown, said before training.

    Attributes:
        domain: "in" (shown not to lose more than the margin) or "out" (shown to be better).
        difference: The true difference, a fraction.
        chance: That it is shown, a fraction.
        shown: The gain, or the margin, that is shown in 80 %.
        needed_problems, needed_seeds: With which this one is shown in 80 %; None where it would take too many.
    """

    domain: str
    problems: int
    seeds: int
    difference: float
    chance: float
    shown: float
    needed_problems: int | None = None
    needed_seeds: int | None = None


class Candidate(Record):
    """A point as the choice saw it: minus the reference, on validation problems, as fractions.

    Attributes:
        chance: That the verdict's problems confirm it, as the validation problems suggest.
    """

    label: str
    inside: float
    outside: float
    chance: float


class PointDifference(Record):
    """A point minus another model on the verdict's problems.

    Attributes:
        a, b: Labels.
        inside, outside: By domain; each limit has a level of 95 % by itself.
        needed_inside, needed_outside: What it would take to show what was to be shown there; None where it is shown,
            where the other domain will do, or where there is nothing to plan with.
        seeds: Pairs of runs.
        beats: Whether a beats b: shown, excluded, or neither.
    """

    a: str
    b: str
    inside: ArmDifference
    outside: ArmDifference
    needed_inside: SampleSize | None = None
    needed_outside: SampleSize | None = None
    seeds: int
    beats: Literal["yes", "no", "open"]


class Decision(Record):
    """Which model to ship: not worse in domain by more than the margin, and better out of domain.

    Attributes:
        margin: What may be lost in domain, a fraction.
        against: Label of the model that it is compared with.
        outcome: "ship" (the chosen point), "keep" (the reference), "base" (do not train) or "undecided".
        ship: Label of the model to ship; None where undecided.
        chosen: Label of the point that was chosen on validation problems, and confirmed or not; None without any.
        sentence: The outcome in one sentence, with figures in points.
        inside, outside: The chosen point minus the reference on the verdict's problems; each limit has a level of 95 %
            by itself.
        non_inferior, superior: What was shown of it: in domain not worse by more than the margin, and out of domain
            better; against the base model the domains change places.
        base_temperature: Temperature at which the base model is best on validation problems; 0 is greedy.
        protected: The domain in which nothing may be lost beyond the margin; "out" against the base model.
        seeds, problems, validation: What it is over; problems by domain.
        candidates: What the choice was made from.
        over_base: The chosen point and the reference minus the base model, each with its best decoding.
        temperatures: Label to the temperature of that decoding.
        require, passed: The gate that was asked for, and whether it holds.
    """

    margin: float
    against: str
    outcome: Literal["ship", "keep", "base", "undecided"]
    ship: str | None
    chosen: str | None
    sentence: str
    inside: ArmDifference | None = None
    outside: ArmDifference | None = None
    non_inferior: bool = False
    superior: bool = False
    base_temperature: float | None = None
    power: list[Power] = []
    protected: Literal["in", "out"] = "in"
    seeds: int = 1
    problems: dict[str, int] = {}
    validation: dict[str, int] = {}
    candidates: list[Candidate] = []
    over_base: list[PointDifference] = []
    temperatures: dict[str, float] = {}
    require: Literal["non-inferior", "superior"] | None = None
    passed: bool | None = None


class Comparison(FileRecord):
    """comparison.json: what an experiment is, what was chosen, and its verdict. docs/comparison.md describes it."""

    WHAT = "a comparison"
    HINT = "give another --output-dir"

    rectune: str
    model: str
    data: str
    seeds: list[int]
    arms: list[ComparedArm]
    base: str
    benchmarks: dict[str, str]
    problems: dict[str, int]
    validation: dict[str, int]
    validation_domains: dict[str, str] = {}
    """Validation task to domain, where they are not the verdict's tasks."""
    settings: dict[str, JsonValue]
    sweep: SweepResult | None = None
    race: RaceResult | None = None
    matched_to: str | None = None
    points: list[Point] = []
    decision: Decision | None = None
    overlap: OverlapResult | None = None
    """Problems whose text occurs in the training rows."""
    verdict: Verdict | None = None
    paper: PaperTables | None = None

    @field_validator("settings", mode="before")
    @classmethod
    def _of_version_0_1(cls, settings: Any) -> Any:
        return with_new_names(settings) if isinstance(settings, dict) else settings


class SelectionSettings(Record):
    """How rows or pairs were selected; `temperature` is that of the samples."""

    graded: str
    purpose: str
    per_problem: int | None
    balance: bool
    temperature: float | None
    samples_per_problem: float
    unjudged: bool
    unfinished: bool
    seed: int


class RowWeights(Record):
    """Weights of the answers to learn from; `mean` by targets once they are encoded, `zero` the share that is 0."""

    mean: float
    min: float
    max: float
    zero: float

    def __str__(self) -> str:
        return f"mean {self.mean:.4g}, from {self.min:.4g} to {self.max:.4g}, {self.zero:.1%} are 0"


class SelectionCounts(FileRecord):
    """FILE.counts.json beside selected rows or pairs.

    Attributes:
        samples: All of them; the five verdicts add up to it.
        cut_off: Correct ones left out because they reached the token limit.
        duplicates: Answers that repeat another answer to the same problem.
        without_correct, without_wrong: Problems that lack such an answer.
        kept: Rows; None for pairs.
        pairs: Pairs; None for rows.
        used_problems: Problems that rows or pairs are of.
        written: Lines, those that balancing repeats included.
    """

    WHAT: ClassVar[str] = "the counts of a selection"

    samples: int
    correct: int
    wrong: int
    unparsed: int
    timeout: int
    error: int
    cut_off: int
    duplicates: int
    problems: int
    without_correct: int
    without_wrong: int
    kept: int | None = None
    pairs: int | None = None
    used_problems: int
    written: int
    settings: SelectionSettings

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, with `kept` or `pairs`."""
        return self.model_dump(exclude={"pairs" if self.pairs is None else "kept"})


class WeighCounts(FileRecord):
    """FILE.counts.json beside rows that `rectune weigh` wrote.

    Attributes:
        graded: The answers; None where the rows brought weights.
        shuffle_weights: Seed of the permutation; None for none.
        weighted: Rows with a weight.
        by_question, by_problem_id: How they found their problem.
        unmatched, unjudged: Rows without a weight: of no problem, or of one without a judged answer.
        problems, samples, correct: Of the graded file.
        weights: Of the weighted rows.
    """

    WHAT: ClassVar[str] = "the counts of weighed rows"

    data: str
    graded: str | None
    shuffle_weights: int | None
    rows: int
    weighted: int
    by_question: int = 0
    by_problem_id: int = 0
    unmatched: int = 0
    unjudged: int = 0
    problems: int = 0
    samples: int = 0
    correct: int = 0
    weights: RowWeights


class RFTStage(Record):
    """A stage that is done: the size of its file and its counts."""

    bytes: int
    counts: dict[str, JsonValue]


class RFTProgress(FileRecord):
    """rft.json."""

    WHAT = "the record of an RFT run"
    HINT = "give another --output-dir"

    config: dict[str, JsonValue] = {}
    settings: dict[str, JsonValue]
    stages: dict[str, RFTStage]


def rft_record(folder: Path) -> Path | None:
    """The record of the RFT run in a folder: rft.json, or offline.json as earlier versions wrote; None without one."""
    paths = (folder / "rft.json", folder / "offline.json")
    return next((path for path in paths if path.is_file()), None)


class TargetFigures(Record):
    """Means over target tokens under the model before training."""

    targets: int
    mean_p: float
    nll: float
    """In nats."""
    entropy: float
    """In nats."""
    top1: float
    histogram: list[int]
    """How many have a probability in each of the paper's 13 bins."""


class OverallFigures(TargetFigures):
    """Of all measured targets; `mean_p_error` is the standard error over rows, None for a single row."""

    mean_p_error: float | None


class GroupFigures(TargetFigures):
    """Of a class of tokens, a part of the answers, or a source of rows."""

    name: str


class ObjectiveEffect(Record):
    """What an objective would do to the data; shares add up to 1. docs/diagnosis.md describes the fields."""

    label: str
    name: str
    settings: dict[str, float]
    mean_weight: float
    share_by_bin: list[float]
    share_by_class: dict[str, float]
    effective_sample_size: float
    gradient_norm_ratio: float | None
    """Norm of the gradient over that of SFT; None where it was not measured."""
    learning_rate_factor: float | None


class Reason(Record):
    """A reason of a recommendation: the number behind it, and the threshold and source that it is held against."""

    text: str
    value: float
    threshold: float | None
    source: str


class Recommendation(Record):
    """Which objective fits the data; `next` are commands to run."""

    position: Literal["strong", "intermediate", "weak"]
    objective: str
    """As `--objective` takes it."""
    label: str
    name: str
    settings: dict[str, float]
    alternatives: list[str]
    confidence: Literal["high", "medium", "low"]
    sentence: str
    reasons: list[Reason]
    next: list[str]

    @model_validator(mode="before")
    @classmethod
    def _of_version_0_1(cls, verdict: Any) -> Any:
        if not isinstance(verdict, dict) or "objective" in verdict or "name" not in verdict:
            return verdict
        return {
            **verdict,
            "objective": objective_text({"name": verdict["name"], **(verdict.get("settings") or {})}),
        }


class RiskRow(Record):
    """A row that a risk is about: `file:line`, and its least likely targets or another note."""

    where: str
    note: str


class Risk(Record):
    """What could go wrong with the data, by which evidence, and what to do."""

    name: str
    severity: Literal["high", "medium", "low"]
    evidence: str
    remedy: str
    value: float
    threshold: float
    source: str
    rows: list[RiskRow]


class ExampleRow(Record):
    """A real row, a value for each token; None for tokens of the prompt."""

    where: str
    source: str
    tokens: list[str]
    supervised: list[bool]
    p: list[float | None]
    class_: list[str | None] = Field(alias="class")
    entropy: list[float | None]
    top: list[str | None]
    """The model's most probable token."""
    weights: dict[str, list[float | None]]
    """By label of the objective."""


class Diagnosis(FileRecord):
    """diagnosis.json: where the data lies under the model, what each objective would do, and what could go wrong."""

    WHAT = "a diagnosis"
    HINT = "remove it and run rectune diagnose again"

    rectune: str
    model: str
    fingerprint: str
    data: str
    template: str
    goal: str | None
    rows: int
    measured_rows: int
    measured_targets: int
    seconds_measuring: float
    tokens_per_second: float
    bins: list[float]
    overall: OverallFigures
    by_class: list[GroupFigures]
    by_position: list[GroupFigures]
    by_source: list[GroupFigures]
    objectives: list[ObjectiveEffect]
    verdict: Recommendation
    risks: list[Risk]
    examples: list[ExampleRow]
    seconds: float = 0.0
    """Of the whole command."""


Figures = dict[str, float | int | str | list[int] | None]
"""Named figures of an evaluation; None where there was nothing to measure."""


class MetricsLine(Record):
    """One line of metrics.jsonl; the further figures of each kind are kept as other fields.

    `train`: a step. `holdout`: an evaluation on held-out rows, see `training.metrics.Monitor`. `drift`: see
    `training.drift.Probe`. `validation`: an evaluation on held-out problems, see `rl.rollout`.
    """

    step: int
    kind: Literal["train", "holdout", "drift", "validation"]
    seconds: float = 0.0
    tokens: int = 0
    """Of the step, prompts included."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    """Before clipping; None where it was not finite and the step was skipped."""
    peak_memory_mib: float = 0.0
    reward: float | None = None
    warnings: list[str] = []
    """Names of the drift figures that are past their threshold."""

    @classmethod
    def of(
        cls,
        step: int,
        kind: Literal["train", "holdout", "drift", "validation"],
        figures: Mapping[str, object],
    ) -> MetricsLine:
        """A line with these figures; some are fields, the others are kept as they are."""
        return cls.model_validate({"step": step, "kind": kind, **figures})

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, without the fields that a line of this kind does not have."""
        return self.model_dump(exclude_unset=True)


class Environment(FileRecord):
    """environment.json: what a run's figures depend on besides its config. No machine or user names, no secrets."""

    WHAT: ClassVar[str] = "the environment of a run"

    python: str
    platform: str
    processor: str
    cores: int | None
    threads: int
    packages: dict[str, str]
    """Versions by name."""


class CheckpointState(FileRecord):
    """state.json of a checkpoint: what a run needs besides its tensors.

    Attributes:
        step: Steps done.
        data: Fingerprint of the rows or problems.
        before: Figures of the model before training.
        limit: Most tokens of a micro-batch, once more did not fit into memory.
        updates: Steps of the optimizer; fewer than `step` where some were skipped.
        checksums: CRC-32 of each file, by name, this one included.
        seconds: How long the run took up to here.
    """

    WHAT: ClassVar[str] = "the state of a checkpoint"
    HINT: ClassVar[str] = "remove the checkpoint, and the run resumes from the one before"

    step: int
    data: str
    before: Figures
    limit: int | None = None
    updates: int = 0
    checksums: dict[str, int] = {}
    seconds: float = 0.0


class TrainState(CheckpointState):
    """Of a training run; `best` has the figures of the best model so far, `reference` is a model's fingerprint."""

    skipped: int
    best: Figures
    reference: str | None = None


class RLState(CheckpointState):
    """Of a run of reinforcement learning; `idle` counts the last steps that changed nothing."""

    idle: int


class RolloutLine(Record):
    """One line of rollouts/step-N.jsonl: an answer, and what it earned.

    Attributes:
        step: From 1.
        question: The last turn of the prompt.
        reward: NaN (null in the file) where the answer could not be judged.
        advantage: Mean over its tokens; None for an answer that takes no part in the loss.
        tokens: Number of them.
    """

    format: int = FORMAT
    step: int
    problem_id: str
    sample_index: int
    question: str
    text: str
    answer: str | list[str]
    reward: float
    verdict: str
    advantage: float | None
    tokens: int
    finish_reason: str


class RunSummary(FileRecord):
    """summary.json of a finished run."""

    WHAT: ClassVar[str] = "the summary of a run"
    HINT: ClassVar[str] = "remove it, and the run resumes from its last checkpoint"

    out: str
    """The run folder."""
    steps: int
    """Optimizer steps, or rollouts."""
    tokens_per_second: float
    """Tokens of the rows, prompts included, or sampled tokens, per second of steps."""
    peak_memory_mib: float
    """Of the process, or of the GPU where there is one."""
    seconds: float
    """From the command's start to its end; of a resumed run, with those up to its checkpoint."""
    step_seconds: float | None = None
    """Of the steps alone; None in summaries of older versions, whose `seconds` they are."""


class TrainSummary(RunSummary):
    """summary.json of a finished training run.

    Attributes:
        before, after: Figures on the held-out rows (see `Monitor.figures`) of the model as it was and of the one saved;
            empty without held-out rows.
        skipped: Steps without a finite loss or gradient, which changed nothing.
    """

    before: Figures
    after: Figures
    skipped: int = 0


class RLSummary(RunSummary):
    """summary.json of a finished run of reinforcement learning.

    Attributes:
        validation: `before` and `after`: figures on the held-out problems (`reward`, `correct`, `length`, ...) of the
            model as it was and of the one saved; empty without held-out problems.
        reward: Mean reward of the `first` and of the `last` tenth of the steps, each of rollouts of the policy then.
    """

    validation: dict[str, Figures]
    reward: dict[str, float | None]


AnyRecord = TypeVar("AnyRecord", bound=Record)
AnyFile = TypeVar("AnyFile", bound=FileRecord)
AnyState = TypeVar("AnyState", bound=CheckpointState)


def parse_line(kind: type[AnyRecord], content: object, what: str, where: str, hint: str) -> AnyRecord:
    """`content` as a record of `kind`.

    Args:
        what: What it should be, such as "a graded sample".
        where: `file:line`.
        hint: What to do where it is something else.

    Raises:
        UserError: It does not fit; says the first field that is missing or of another type.
    """
    if not isinstance(content, dict):
        raise UserError(f"is not {what} (not a JSON object)", where=where, hint=hint)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    field = _field_path(content, first["loc"])
    if field == "verdict" and isinstance(first["input"], str):
        raise unknown_name("verdict", first["input"], VERDICTS, where=where)
    reason = f"field '{field}': {first['msg'][:1].lower()}{first['msg'][1:]}"
    if first["type"] == "missing":
        reason = f"no field '{field}'"
    raise UserError(f"is not {what} ({reason})", where=where, hint=hint)


def _field_path(content: Any, loc: tuple[int | str, ...]) -> str:
    """The place of an error as FIELD.FIELD, without the names that pydantic adds for the branches of a union."""
    names = []
    for part in loc:
        if isinstance(content, dict):
            names.append(str(part))
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int):
            names.append(str(part))
            content = content[part]
    return ".".join(names)


def read_record(path: Path, kind: type[AnyFile]) -> AnyFile:
    """The content of a JSON file.

    Raises:
        UserError: It cannot be read, is not JSON, is of another version, or lacks a field; the message names the field.
    """
    try:
        content = load_json(path)
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror or error})", where=path) from None
    except ValueError as error:
        raise UserError(f"the file is not JSON ({error})", where=path, hint=kind.HINT) from None
    if isinstance(content, dict):
        check_format(content, path, kind.FORMAT)
    return parse_line(kind, content, kind.WHAT, str(path), kind.HINT)


def write_record(path: Path, record: FileRecord) -> None:
    """Write a JSON file as a whole: after a crash it has its old content or the new one.

    Raises:
        UserError: The disk is full or read-only.
    """
    with translate_disk_errors(path):
        write_json(path, record.to_dict(), indent=2, ensure_ascii=False)
