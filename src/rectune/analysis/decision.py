"""Which model to ship: from the points of a comparison and their evaluations to one sentence.

    candidates   all points but the base model and the reference: runs, interpolations, means of arms
    decoding     each model answers as it does best on validation problems: as the comparison samples, or greedily.
                 At one temperature for all, a model would win by being sharper, which any model is at a lower one
    choice       one candidate, on validation problems: the largest gain out of domain among those that are most likely
                 to be confirmed by the test (`choose`)
    test         only that one, on the verdict's problems: not worse in domain than the reference by more than the
                 margin, and better out of domain. Both have to be shown (an intersection-union test), so each limit
                 has the level `LEVEL` by itself
    base model   tried at more temperatures; a model beats it if it is shown to be better in a domain (Bonferroni's
                 correction for two) and not shown to be worse by more than the margin in any

Against the base model itself the domains change places: better in domain, and not worse out of domain by more than the
margin. `outcome_of` has the rule that makes an outcome of this; docs/statistics.md has its error rates.

Shapes: S seeds, P problems, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from rectune.analysis.power import LEVEL, plan_power
from rectune.analysis.significance import WORTH_SEEING, sample_size
from rectune.analysis.summary_text import BASE, DOMAINS
from rectune.errors import UserError, unknown_name
from rectune.evaluation.accuracy import correct_matrix, read_answers, read_evaluation
from rectune.evaluation.statistics import Chosen, Difference, Estimate, paired_difference, paired_estimate
from rectune.pages.format import points as in_points
from rectune.records import ArmDifference, Candidate, Comparison, Decision, Graded, Point, PointDifference

SAMPLED, GREEDY = ("validation", "evaluation"), ("validation-greedy", "greedy")
"""Folders of a decoding: answers to validation problems, and to those of the verdict."""
NEARLY = 0.9
"""Share of the best chance of being confirmed from which on the larger gain decides."""
TEMPERATURES = (0.25, 0.5, 0.75)
"""At which the base model is also tried on validation problems."""
Matrices = list[np.ndarray]
"""For each seed which answers are correct, (P, N)."""


def tempered(temperature: float) -> tuple[str, str]:
    """Folders of the base model's answers at another temperature; see `SAMPLED`."""
    return f"validation-temperature-{temperature:g}", f"temperature-{temperature:g}"


def decide(
    comparison: Comparison,
    out: Path,
    *,
    margin: float,
    against: str | None = None,
    require: Literal["non-inferior", "superior"] | None = None,
) -> Decision:
    """Choose a point of a comparison on its validation problems, test it on the verdict's, and say what to ship.

    Args:
        comparison: With points and their folders.
        out: Its folder.
        margin: What may be lost, a fraction: 0.01 for one point.
        against: Label of the reference, an arm or "base"; None: sft if it is among the arms, else the base model.
        require: A gate, whose result is `passed`: that the chosen point is not inferior, or that it is to be shipped.

    Raises:
        UserError: A margin outside [0, 1), an arm that is not there, no validation problems of both domains, or an
            evaluation that cannot be read.
    """
    check_margin(margin)
    evaluated = _Evaluated(comparison, out)
    reference = evaluated.points[pick_reference(list(evaluated.points), against)]
    sides = Sides("out", "in") if reference.label == BASE else Sides("in", "out")
    points = [point for label, point in evaluated.points.items() if label not in (BASE, reference.label)]
    candidates = [_candidate(evaluated, point, reference, sides, margin) for point in points]
    chosen = evaluated.points[choose(candidates, sides.improved)] if candidates else None
    among = len({point.arm for point in points})
    tested = _criterion(evaluated, chosen, reference, sides, margin, among) if chosen else None
    over_base = [
        _over_base(evaluated, point, margin, among if point is chosen else 1)
        for point in (chosen, reference)
        if point is not None and point.label != BASE
    ]
    outcome = outcome_of(tested, over_base)
    label = chosen.label if chosen else None
    non_inferior = tested is not None and _of(tested, sides.protected).low > -margin
    problems, validation = (evaluated.problems(validation=validation) for validation in (False, True))
    seeds = len(comparison.seeds)
    samples = evaluated.samples(reference)
    return Decision(
        margin=margin,
        against=reference.label,
        outcome=outcome,
        ship={"ship": label, "keep": reference.label, "base": BASE}.get(outcome),
        chosen=label,
        sentence=_sentence(outcome, tested, over_base, evaluated, sides),
        inside=tested.inside if tested else None,
        outside=tested.outside if tested else None,
        non_inferior=non_inferior,
        superior=tested is not None and _of(tested, sides.improved).low > 0,
        base_temperature=evaluated.temperature(evaluated.points[BASE]),
        protected=sides.protected,
        seeds=seeds,
        problems=problems,
        validation=validation,
        power=plan_power(
            problems,
            validation,
            seeds=seeds,
            samples=samples,
            among=among,
            margin=margin,
            protected=sides.protected,
        ),
        candidates=candidates,
        over_base=over_base,
        temperatures={
            label: temperature
            for label in evaluated.decodings
            if (temperature := evaluated.temperature(evaluated.points[label])) is not None
        },
        require=require,
        passed={None: None, "non-inferior": non_inferior, "superior": outcome == "ship"}[require],
    )


def check_margin(margin: float) -> None:
    """Raise `UserError` unless the margin is in [0, 1)."""
    if not 0 <= margin < 1:  # false for NaN as well
        raise UserError(f"must be from 0 to below 100 points (got {100 * margin:g})", where="--margin")


def pick_reference(labels: Sequence[str], against: str | None) -> str:
    """The label of the model that a candidate is compared with.

    Raises:
        UserError: It is none of `labels`.
    """
    if against is None:
        return "sft" if "sft" in labels else BASE
    if against not in labels:
        raise unknown_name("arm", against, labels, where="--against")
    return against


class Sides(NamedTuple):
    """The domain in which nothing may be lost beyond the margin, and the one in which there has to be a gain."""

    protected: Literal["in", "out"]
    improved: Literal["in", "out"]


def choose(candidates: Sequence[Candidate], improved: str) -> str:
    """Label of the candidate to test: of those that are nearly as likely to be confirmed as the likeliest (`NEARLY`),
    the one with the largest gain; of several the first.

    To take the largest gain among all whose loss is within the margin on validation problems would take those whose
    loss came out small by luck: docs/statistics.md compares both.
    """
    best = max(candidate.chance for candidate in candidates)
    likely = [candidate for candidate in candidates if candidate.chance >= NEARLY * best]
    return max(likely, key=lambda found: found.inside if improved == "in" else found.outside).label


def chance_confirmed(loss: Estimate, gain: Estimate, margin: float) -> float:
    """How likely it is, given the validation problems, that the verdict's show a loss within the margin and a gain.

    Args:
        loss, gain: The difference from the reference in the domain that is protected, and in that which has to be
            improved.
        margin: A fraction.
    """
    chance, normal = 1.0, NormalDist()
    for estimate, line in ((loss, -margin), (gain, 0.0)):
        beyond = estimate.mean - line - normal.inv_cdf(LEVEL) * estimate.elsewhere
        chance *= normal.cdf(beyond / math.hypot(estimate.error, estimate.elsewhere))
    return chance


class _Evaluated:
    """The points of a comparison and what they answered; an evaluation is read once."""

    def __init__(self, comparison: Comparison, out: Path) -> None:
        self.out, self.comparison = out, comparison
        self.points = {point.label: point for point in comparison.points if point.step is None}
        if BASE not in self.points:
            raise UserError("the comparison has no points", where=out, hint="run rectune compare again")
        self.decodings: dict[str, tuple[str, str]] = {}
        self._read: dict[Path, dict[str, tuple[list[str], np.ndarray]]] = {}
        self._ids: dict[tuple[bool, str], list[str]] = {}

    def answers(self, point: Point, kind: str, domain: str) -> dict[str, np.ndarray]:
        """Seed to which answers are correct, (P, N), the problems of all tasks of a domain below each other."""
        validation = kind.startswith("validation")
        found = {}
        for seed, folder in point.folders.items():
            path = self.out / folder / kind
            if path not in self._read:
                own = self.comparison.validation_domains if validation else {}
                self._read[path] = _by_domain(path, {**self.comparison.benchmarks, **own})
            if domain not in self._read[path]:
                what = "validation problems" if validation else "problems"
                hint = "a decision needs both domains, and a comparison that was begun with --margin"
                raise UserError(f"no answers to {what} {DOMAINS[domain]}", where=path, hint=hint)
            ids, found[seed] = self._read[path][domain]
            if self._ids.setdefault((validation, domain), ids) != ids:
                raise UserError("the problems are not those of the other evaluations", where=path)
        return found

    def pair(self, a: Point, b: Point, domain: str, kinds: tuple[str, str]) -> tuple[Matrices, Matrices]:
        """Answers of two points, seed by seed; the base model, which has one, goes with each seed of the other."""
        x, y = self.answers(a, kinds[0], domain), self.answers(b, kinds[1], domain)
        seeds = [(i, j) for i in x for j in y if i == j or BASE in (a.label, b.label)]
        if not seeds:
            raise UserError(f"{a.label} and {b.label} have no seed in common", where=self.out)
        return [x[i] for i, _ in seeds], [y[j] for _, j in seeds]

    def difference(
        self, a: Point, b: Point, domain: str, kinds: tuple[str, str], *, among: int, level: float = LEVEL
    ) -> Difference:
        """a minus b on a domain's problems of the verdict, where a was chosen among several trained arms.

        Args:
            kinds: Folders of their answers.
            level: Of each limit by itself.
        """
        chosen = Chosen(among, self.problems(validation=True).get(domain, 0))
        x, y = _alone(*self.pair(a, b, domain, kinds))
        return paired_difference(x, y, level=2 * level - 1, chosen=chosen)

    def problems(self, *, validation: bool) -> dict[str, int]:
        """How many each domain has, of the evaluations that were read."""
        return {domain: len(ids) for (of, domain), ids in self._ids.items() if of == validation}

    def decoding(self, point: Point) -> tuple[str, str]:
        """Folders of the decoding that is best on validation problems, each domain counting alike."""
        if point.label not in self.decodings:
            accuracy = {
                kinds: np.mean([_mean(self.answers(point, kinds[0], domain)) for domain in DOMAINS])
                for kinds in (SAMPLED, GREEDY, *map(tempered, TEMPERATURES))
                if all(
                    (self.out / folder / kinds[0] / "evaluation.json").is_file()
                    for folder in point.folders.values()
                )
            }
            self.decodings[point.label] = max(accuracy, key=lambda kinds: accuracy[kinds], default=SAMPLED)
        return self.decodings[point.label]

    def samples(self, point: Point) -> int:
        """Answers to each problem of the verdict."""
        return read_evaluation(self.out / next(iter(point.folders.values())) / SAMPLED[1]).protocol.n

    def temperature(self, point: Point) -> float | None:
        """Of the best decoding; None where logs do not say."""
        folder = self.out / next(iter(point.folders.values())) / self.decoding(point)[0]
        return read_evaluation(folder).protocol.temperature


def _by_domain(folder: Path, domains: Mapping[str, str]) -> dict[str, tuple[list[str], np.ndarray]]:
    """Domain to the ids of its problems and which answers to them are correct, (P, N)."""
    by_domain: dict[str, dict[str, list[Graded]]] = {}
    for task, samples in read_answers(folder)[1].items():
        by_domain.setdefault(domains.get(task, ""), {}).update(samples)
    return {domain: (list(samples), correct_matrix(samples)) for domain, samples in by_domain.items()}


def best_decoding(comparison: Comparison, out: Path) -> tuple[str, str]:
    """Folders of the base model's best decoding: its answers to validation problems, and to those of the verdict.

    Of equally good ones the first of: as sampled, greedily, at the lowest temperature.
    """
    evaluated = _Evaluated(comparison, out)
    return evaluated.decoding(evaluated.points[BASE])


def _mean(answers: Mapping[str, np.ndarray]) -> float:
    return float(np.mean(list(answers.values())))


def _alone(x: Matrices, y: Matrices) -> tuple[Matrices | np.ndarray, Matrices | np.ndarray]:
    """One seed without the dimension of seeds."""
    return (x, y) if len(x) > 1 else (x[0], y[0])


def _candidate(
    evaluated: _Evaluated, point: Point, reference: Point, sides: Sides, margin: float
) -> Candidate:
    kinds = evaluated.decoding(point)[0], evaluated.decoding(reference)[0]
    found, comparison = {}, evaluated.comparison
    for domain in DOMAINS:
        problems = sum(n for name, n in comparison.problems.items() if comparison.benchmarks[name] == domain)
        found[domain] = paired_estimate(*_alone(*evaluated.pair(point, reference, domain, kinds)), problems)
    chance = chance_confirmed(found[sides.protected], found[sides.improved], margin)
    return Candidate(label=point.label, inside=found["in"].mean, outside=found["out"].mean, chance=chance)


def _criterion(
    evaluated: _Evaluated, chosen: Point, reference: Point, sides: Sides, margin: float, among: int
) -> PointDifference:
    """The chosen point and the reference: whether it loses nothing in one domain and gains in the other.

    That it does is excluded where a loss of more than the margin is shown, or a gain of `WORTH_SEEING` excluded.
    """
    kinds = evaluated.decoding(chosen)[1], evaluated.decoding(reference)[1]
    found = {
        domain: evaluated.difference(chosen, reference, domain, kinds, among=among) for domain in DOMAINS
    }
    kept, gained = found[sides.protected], found[sides.improved]
    met = kept.low > -margin and gained.low > 0
    excluded = kept.high < -margin or gained.high < WORTH_SEEING
    goals: dict[str, float] = {  # 0: it is shown
        sides.protected: 0.0 if kept.low > -margin else margin,
        sides.improved: 0.0 if gained.low > 0 else max(gained.mean, WORTH_SEEING),
    }
    return _point_difference(evaluated, (chosen, reference), kinds, found, goals, _said(met, excluded))


def _over_base(evaluated: _Evaluated, point: Point, margin: float, among: int) -> PointDifference:
    """A trained model and the base model.

    That it beats the base model is excluded where it is shown to be worse by more than the margin in a domain, or to be
    worse at all in one and better in none, or where a gain of `WORTH_SEEING` is excluded in both.
    """
    base = evaluated.points[BASE]
    kinds = evaluated.decoding(point)[1], evaluated.decoding(base)[1]
    found = {domain: evaluated.difference(point, base, domain, kinds, among=among) for domain in DOMAINS}
    strict = 1 - (1 - LEVEL) / len(DOMAINS)  # Bonferroni: it has to be better in one of two
    better = any(
        evaluated.difference(point, base, domain, kinds, among=among, level=strict).low > 0
        for domain in DOMAINS
    )
    highs = [difference.high for difference in found.values()]
    harmed = min(highs) < -margin
    excluded = harmed or min(highs) < 0 or max(highs) < WORTH_SEEING
    likelier = max(found, key=lambda domain: found[domain].mean)  # one domain will do
    goals = {**dict.fromkeys(DOMAINS, 0.0), likelier: max(found[likelier].mean, WORTH_SEEING)}
    beats = _said(better and not harmed, excluded)
    return _point_difference(evaluated, (point, base), kinds, found, goals, beats)


def _said(shown: bool, excluded: bool) -> Literal["yes", "no", "open"]:
    return "yes" if shown else "no" if excluded else "open"


def _point_difference(
    evaluated: _Evaluated,
    points: tuple[Point, Point],
    kinds: tuple[str, str],
    found: Mapping[str, Difference],
    goals: Mapping[str, float],
    beats: Literal["yes", "no", "open"],
) -> PointDifference:
    """The record; `goals` are the differences that it would take some number of problems or seeds to show."""
    needed, limits, seeds = {}, {}, 0
    for domain, difference in found.items():
        runs = evaluated.pair(*points, domain, kinds)
        shares = [np.stack([seed.mean(1) for seed in of_point]) for of_point in runs]
        needed[domain] = sample_size(shares[0], shares[1], goals[domain], least=0.0)
        limits[domain] = ArmDifference(difference=difference.mean, low=difference.low, high=difference.high)
        seeds = len(runs[0])
    return PointDifference(
        a=points[0].label,
        b=points[1].label,
        inside=limits["in"],
        outside=limits["out"],
        needed_inside=needed["in"],
        needed_outside=needed["out"],
        seeds=seeds,
        beats=beats,
    )


def outcome_of(
    tested: PointDifference | None, over_base: Sequence[PointDifference]
) -> Literal["ship", "keep", "base", "undecided"]:
    """What follows.

        ship       the chosen point meets the criterion, and it or the reference beats the base model
        base       that a model beats the base model is excluded for both
        keep       the reference beats the base model; the chosen point does not, or its failing the criterion is shown
        undecided  all else: what was to be shown is neither shown nor excluded, or each has what the other lacks

    Args:
        tested: The chosen point against the reference; None without a candidate.
        over_base: The chosen point and the reference against the base model, without one that is missing or is the base
            model itself.
    """
    beats = {difference.a: difference.beats for difference in over_base}
    if tested is not None and tested.beats == "yes" and "yes" in beats.values():
        return "ship"
    if all(verdict == "no" for verdict in beats.values()):
        return "base"
    chosen = beats.pop(tested.a) if tested is not None else None
    reference = next(iter(beats.values()), None)
    if reference == "yes" and (tested is None or chosen != "yes" or tested.beats == "no"):
        return "keep"
    return "undecided"


def _of(found: PointDifference, domain: str) -> ArmDifference:
    return found.inside if domain == "in" else found.outside


def _sentence(
    outcome: str,
    tested: PointDifference | None,
    over_base: Sequence[PointDifference],
    evaluated: _Evaluated,
    sides: Sides,
) -> str:
    """The outcome with the figures that it rests on, against whom, and over how many seeds and problems."""

    def figures(found: PointDifference) -> str:
        return f"{_figures(found, sides)}, {_evidence(found, evaluated)}"

    if not over_base:
        return "nothing beats base: don't train (there is no other model)"
    first, last = over_base[0], over_base[-1]  # of the chosen point, if there is one, and of the reference
    if outcome == "base":
        return f"nothing beats base: don't train (best: {first.a}, {figures(first)})"
    if tested is None:
        return f"keep {last.a}: {figures(last)}" if outcome == "keep" else _open(first, figures(first))
    if outcome == "ship":
        return f"ship {tested.a}: {figures(tested)}"
    if outcome == "keep":
        return f"keep {tested.b} (best: {tested.a}, {figures(tested)})"
    if first.beats != "yes":
        return _open(first, figures(first))
    if tested.beats == "no":
        return f"undecided: {tested.a} beats base but not {tested.b}, which does not beat base: {figures(tested)}"
    return f"undecided between {tested.a} and {tested.b}: {figures(tested)}{_needed(tested)}"


def _open(found: PointDifference, figures: str) -> str:
    return f"undecided whether {found.a} beats base: {figures}{_needed(found)}"


def _figures(found: PointDifference, sides: Sides) -> str:
    def text(domain: str) -> str:
        difference = _of(found, domain)
        mean = f"{round(100 * difference.difference, 1) + 0.0:+.1f}"
        return f"{mean} ({in_points(difference.low)} to {in_points(difference.high)})"

    return f"{text(sides.improved)} {DOMAINS[sides.improved]}, {DOMAINS[sides.protected]} {text(sides.protected)}"


def _evidence(found: PointDifference, evaluated: _Evaluated) -> str:
    """Against whom, with which decoding where it is not that of the comparison, over how many seeds and problems."""
    points = [evaluated.points[found.a], evaluated.points[found.b]]
    how = [_decoded(evaluated.temperature(point)) for point in points]
    if all(evaluated.decoding(point) == SAMPLED for point in points):
        against = found.b
    elif how[0] == how[1]:
        against = f"{found.b}, both {how[0]}"
    else:
        against = f"{found.b}, {found.a} {how[0]} and {found.b} {how[1]}"
    seeds = f"{found.seeds} seeds" if found.seeds > 1 else "one seed, which says nothing about others"
    problems = evaluated.problems(validation=False)
    return f"against {against}; {seeds}, {problems['in']} problems in and {problems['out']} out of domain"


def _decoded(temperature: float | None) -> str:
    return f"at temperature {temperature:g}" if temperature else "greedily"


def _needed(found: PointDifference) -> str:
    """What it would take to show what is not shown: seeds where their spread alone hides it, else problems."""
    parts = []
    for domain, size in (("in", found.needed_inside), ("out", found.needed_outside)):
        if size is not None and size.problems is None:
            parts.append(f"{size.seeds} seeds")
        elif size is not None and not size.enough:
            parts.append(f"about {int(float(f'{size.problems:.2g}')):,} problems {DOMAINS[domain]}")
    return f"; it would take {' and '.join(dict.fromkeys(parts))}" if parts else ""
