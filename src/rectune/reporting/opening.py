"""What the page opens with: the sentence, the models in and out of domain, and accuracy over steps.

A comparison's own points and decision, else the accuracies of the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from rectune.analysis.power import power_sentences
from rectune.analysis.summary_text import DOMAINS
from rectune.records import ArmsResult, Comparison, Decision, PointScore, Verdict
from rectune.reporting.grouping import BASE, short
from rectune.reporting.load_runs import LoadedFolders
from rectune.reporting.page_model import Opening, PageVerdict, Spot, SpotKind, SpotScore, StepCurve

OTHER = "{}, {}"
"""Label of a model with the decoding that is not its main one: "greedy" or "sampled"."""


def make_opening(loaded: LoadedFolders, verdict: PageVerdict) -> Opening:
    """The opening of a page with this verdict."""
    comparison = next(iter(loaded.comparisons.values())) if len(loaded.comparisons) == 1 else None
    results = _by_domain(verdict.judged) if verdict.judged else {}
    facts = [_measured_on(results)] if results else []
    sentence, *rest = verdict.sentences
    more = rest[: len(verdict.judged.headline) - 1] if verdict.judged and verdict.judged.headline else []
    if comparison is None or not comparison.points:
        spots = _of_verdict({domain: result for domain, (_, result) in results.items()})
        return Opening(sentence, more, spots, [], facts)
    if decision := comparison.decision:
        sentence, more = short(decision.sentence, 600).rstrip(".") + ".", []
        samples = comparison.settings.get("n")
        facts += _about(decision, samples if isinstance(samples, int) else 1)
    return Opening(sentence, more, _of_points(comparison), _over_steps(comparison), facts, decision)


def _by_domain(verdict: Verdict) -> dict[str, tuple[list[str], ArmsResult]]:
    """Domain to its benchmarks and the result over all of them."""
    found: dict[str, tuple[list[str], ArmsResult]] = {}
    for domain in DOMAINS:
        members = {name: task for name, task in verdict.benchmarks.items() if task.domain == domain}
        if pooled := verdict.domains.get(domain):
            found[domain] = (pooled.benchmarks, pooled)
        elif len(members) == 1:
            found[domain] = next(([name], task) for name, task in members.items())
    return found


def _measured_on(results: Mapping[str, tuple[list[str], ArmsResult]]) -> str:
    parts = [
        f"{result.problems:,} problems {DOMAINS[domain]} ({short(', '.join(names), 80)})"
        for domain, (names, result) in results.items()
    ]
    seeds = max(arm.seeds for _, result in results.values() for arm in result.arms.values())
    runs = f"{seeds} seeds" if seeds > 1 else "one seed"
    return f"Measured on {' and '.join(parts)}, {runs}. Brackets are 95 % intervals."


def _about(decision: Decision, samples: int) -> list[str]:
    """What a decision rests on: the choice, the base model's temperature, power.

    Args:
        samples: Answers to each problem.
    """
    facts = []
    if decision.chosen and decision.validation:
        facts.append(
            f"Chosen on {sum(decision.validation.values()):,} other problems, so these figures do not favour it."
        )
    if decision.inside:
        facts.append(
            "Intervals of the decision's differences are of 90 %: each limit is a test at 5 % by itself."
        )
    if (temperature := decision.base_temperature) is not None:
        how = f"at temperature {temperature:g}" if temperature else "greedily"
        facts.append(f"The base model answers best {how}.")
    gains = [power for power in decision.power if power.difference]
    whole = len(gains) == len(decision.power) - 1 > 0  # and not damaged
    said = power_sentences(decision.power, decision.margin, samples) if whole else []
    return [*facts, *(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in said)]


def _of_verdict(results: Mapping[str, ArmsResult]) -> list[Spot]:
    spots: dict[str, Spot] = {}
    for domain, result in results.items():
        for label, arm in result.arms.items():
            spot = spots.setdefault(label, Spot(label, label, "base" if label == BASE else "arm", 1.0, {}))
            spot.scores[domain] = SpotScore(arm.mean, arm.low, arm.high, arm.by_seed)
            if arm.greedy is not None:
                name = OTHER.format(label, "greedy")
                kind: SpotKind = "base" if label == BASE else "other"
                spot = spots.setdefault(name, Spot(name, label, kind, 1.0, {}, "greedy"))
                spot.scores[domain] = SpotScore(arm.greedy)
    return sorted(spots.values(), key=_place)


def _of_points(comparison: Comparison) -> list[Spot]:
    """The models of a comparison at the end of training, with the decoding of the decision, else as sampled.

    Base model, arms and the chosen model are there with the other decoding, too.
    """
    slugs, spots = {arm.slug for arm in comparison.arms}, []
    chosen = comparison.decision.chosen if comparison.decision else None
    temperatures = comparison.decision.temperatures if comparison.decision else {}
    for point in comparison.points:
        if point.step is not None:
            continue
        kind: SpotKind = "between" if point.at != 1 else "arm" if point.arm in slugs else "mean"
        kind = "base" if point.arm == BASE else kind
        label, arm = short(point.label), short(point.arm)
        answers = [("sampled", point.scores), ("greedy", point.greedy)]
        if temperatures.get(point.label) == 0:
            answers.reverse()
        (how, scores), (other, other_scores) = answers
        if scores:
            spots.append(Spot(label, arm, kind, point.at, _scores(scores), how))
        if other_scores and (kind in ("base", "arm") or point.label == chosen):
            kind = "base" if kind == "base" else "other"
            spots.append(Spot(OTHER.format(label, other), arm, kind, point.at, _scores(other_scores), other))
    return sorted(spots, key=_place)


def _place(spot: Spot) -> int:
    """The order of kinds; within a kind spots stay as they are."""
    return get_args(SpotKind).index(spot.kind)


def _scores(scores: Mapping[str, PointScore]) -> dict[str, SpotScore]:
    return {domain: SpotScore(s.mean, s.low, s.high, s.by_seed) for domain, s in scores.items() if domain}


def _over_steps(comparison: Comparison) -> list[StepCurve]:
    """The arms that were also evaluated during training, from the base model to the end."""
    base = next((point for point in comparison.points if point.arm == BASE and point.validation), None)
    curves = []
    for arm in comparison.arms:
        own = [
            point
            for point in comparison.points
            if point.arm == arm.slug and point.at == 1 and point.validation
        ]
        during = sorted((point for point in own if point.step is not None), key=lambda point: point.step or 0)
        if not during:
            continue
        path = [*([base.model_copy(update={"step": 0})] if base else []), *during]
        scores: dict[str, list[float | None]] = {
            domain: [point.validation[domain].mean if domain in point.validation else None for point in path]
            for domain in DOMAINS
        }
        curves.append(StepCurve(short(arm.label), [point.step or 0 for point in path], scores))
    return curves
