"""The sentences of a verdict: which arm is better by how much, how certain that is, and what it would take to know.

Numbers come from `significance.py`. A sentence claims a difference only where it is shown (see `compare_runs` there),
and says otherwise what could have been seen. Fractions come in; points and per cent go out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rectune.pages.format import percent, points
from rectune.records import (
    ArmDifference,
    ArmsResult,
    BaseDifference,
    Headline,
    PairResult,
    ShapeChange,
    Sharpening,
)

DOMAINS = {"in": "in domain", "out": "out of domain"}
BASE = "base"
_ORDER = ("worse", "better", "no difference")
_ONE_SEED = "; one seed says nothing about other seeds"


def direction(difference: float, shown: bool) -> str:
    """What a is compared with b: "worse", "no difference" (none is shown) or "better"."""
    if not shown:
        return "no difference"
    return "better" if difference > 0 else "worse"


def merged_label(tuned: Sequence[str], at: float) -> str:
    """What a merged model is called: "dft at 0.5", "mean of sft and dft"."""
    whole = tuned[0] if len(tuned) == 1 else f"mean of {', '.join(tuned[:-1])} and {tuned[-1]}"
    return whole if at == 1 and len(tuned) > 1 else f"{whole} at {at:g}"


def against_base(places: Iterable[tuple[str, ArmsResult]]) -> dict[str, dict[str, BaseDifference]]:
    """Each trained arm minus the base model, by label and place ("in domain")."""
    differences: dict[str, dict[str, BaseDifference]] = {}
    for place, result in places:
        for pair in result.pairs:
            if BASE not in (pair.a, pair.b):
                continue
            label, sign = (pair.a, 1) if pair.b == BASE else (pair.b, -1)
            low, high = sorted((sign * pair.low, sign * pair.high))
            difference = sign * pair.difference
            differences.setdefault(label, {})[place] = BaseDifference(
                verdict=direction(difference, pair.shown), difference=difference, low=low, high=high
            )
    return differences


def headline(against: Mapping[str, Mapping[str, BaseDifference]]) -> list[Headline]:
    """What training did to the model, the harm first; nothing without the base model."""
    verdicts = {label: {change.verdict for change in places.values()} for label, places in against.items()}
    lines = [
        Headline(
            verdict=next(v for v in _ORDER if v in verdicts[label]), sentence=_base_sentence(label, places)
        )
        for label, places in against.items()
    ]
    lines.sort(key=lambda line: _ORDER.index(line.verdict))
    if verdicts and all("worse" in arm and "better" not in arm for arm in verdicts.values()):
        arms = "every arm" if len(verdicts) > 1 else next(iter(verdicts))
        partly = any(arm != {"worse"} for arm in verdicts.values())
        rest = " somewhere, and better nowhere" if partly else ""
        lines.insert(0, Headline(verdict="worse", sentence=f"Keep the base model: {arms} is worse{rest}"))
    return lines


def _base_sentence(label: str, places: Mapping[str, BaseDifference]) -> str:
    by_verdict = {v: [place for place, change in places.items() if change.verdict == v] for v in _ORDER}
    changes = [(v, where) for v in ("worse", "better") if (where := by_verdict[v])]
    figures = {
        place: f"{_signed(change.difference)} points [{_signed(change.low)}, {_signed(change.high)}] {place}"
        for place, change in places.items()
    }
    unseen = ", ".join(figures[place] for place in by_verdict["no difference"])
    if not changes:
        return f"no difference between {label} and the base model can be shown: {unseen}"
    everywhere = len(changes[0][1]) == len(places)
    made = " and ".join(v if everywhere else f"{v} {' and '.join(where)}" for v, where in changes)
    seen = ", ".join(figures[place] for _, where in changes for place in where)
    rest = f"; no difference can be shown: {unseen}" if unseen else ""
    return f"{label} made the model {made}: {seen}{rest}"


def _signed(fraction: float) -> str:
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def _winner(pair: PairResult) -> tuple[str, str]:
    return (pair.a, pair.b) if pair.difference > 0 else (pair.b, pair.a)


def pair_sentence(pair: PairResult, comparisons: int, level: float) -> str:
    """One pair on one task: direction, difference, interval, problems and seeds, and p where it matters."""
    evidence = f"{pair.problems} problems" + (f", {pair.seeds} seeds" if pair.seeds > 1 else "")
    alone = "" if pair.seeds > 1 else _ONE_SEED
    correction = f"Holm's correction over {comparisons} comparisons"
    if pair.shown:
        after = f" after {correction}" if comparisons > 1 else ""
        return f"{_beats(pair, level)}, {evidence}, p {_p(pair.p_holm)}{after}{alone}"
    if pair.p_value < 1 - level and pair.low * pair.high > 0:
        return (
            f"{_beats(pair, level, 'is ahead of')}, {evidence}, but not after {correction} "
            f"(p {_p(pair.p_value)}, corrected {_p(pair.p_holm).removeprefix('= ')}){alone}"
        )
    interval = f"interval {points(pair.low)} to {points(pair.high)}"
    return (
        f"no difference between {pair.a} and {pair.b} can be shown with {evidence.replace(', ', ' and ')} "
        f"({pair.a} minus {pair.b}: {points(pair.difference)} points, {interval}){_needed(pair)}{alone}"
    )


def overlap_sentence(result: ArmsResult) -> str:
    """Accuracies and differences on a task without the problems that the training rows have."""
    arms = [f"{label} has {percent(arm.mean)}" for label, arm in result.arms.items()]
    pairs = [
        f"{pair.a} minus {pair.b} is {points(pair.difference)} ({points(pair.low)} to {points(pair.high)}) points"
        for pair in result.pairs
    ]
    return ", ".join(arms + pairs)


def _beats(pair: PairResult, level: float, verb: str = "beats") -> str:
    low, high = sorted((abs(pair.low), abs(pair.high)))
    winner, loser = _winner(pair)
    return (
        f"{winner} {verb} {loser} by {points(abs(pair.difference))} points ({100 * level:g} % interval "
        f"{points(low)} to {points(high)})"
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _needed(pair: PairResult) -> str:
    plan = pair.needed
    if plan is None:
        return ""
    gap = f"{points(plan.difference).removesuffix('.0')} points"
    if plan.problems is None:
        seeds = f"about {plan.seeds} of them would be needed"
        return f"; no number of problems shows {gap}, the seeds differ too much: {seeds}"
    if not plan.enough:
        return f"; about {plan.problems:,} problems would be needed to see {gap}"
    if abs(pair.difference) >= plan.difference:  # it is the one that was not seen
        few = f"; {pair.seeds} seeds say little about how far seeds differ: one more would narrow this most"
        return few if pair.seeds > 1 else ""
    return f"; a difference of {gap} would have been seen (with a chance of 80 %)"


def sharpening_sentence(pair: PairResult, block: Sharpening) -> str:
    """How much of a difference is left when both are as sharp; all figures are the leading arm minus the other."""
    sign = 1 if pair.difference >= 0 else -1
    first, second = (pair.a, pair.b) if sign > 0 else (pair.b, pair.a)
    gap = points(abs(pair.difference))
    between = (
        f"{gap} points of {first} over {second}" if gap != "0.0" else f"no points of {first} over {second}"
    )
    parts = [between]
    if (matched := block.matched) is not None:
        low, high = sorted((sign * matched.low, sign * matched.high))
        left, interval = sign * matched.difference, f"interval {points(low)} to {points(high)}"
        if matched.seeds < pair.seeds:  # a comparison that is not finished
            interval += f", {matched.seeds} of {pair.seeds} seeds"
        verb = "are" if len(matched.temperatures) > 1 else "is"
        at = " and ".join(f"{temperature:.2f}" for temperature in matched.temperatures.values())
        how = f"when {matched.of} {verb} sampled as sharply as {matched.as_} (T = {at})"
        if pair.shown and first == matched.as_:
            are = f"{points(left)} are" if left > 0 else f"none is ({points(left)})"
            parts = [f"of {between} {are} left {how} ({interval})"]
        else:
            parts = [f"{between} become {points(left)} {how} ({interval})"]
    others: dict[str, ArmDifference | None] = {"greedy": block.greedy}
    if block.pass_ is not None:
        others[f"pass@{block.pass_.k}"] = block.pass_
    parts += [
        f"{name} {points(sign * other.difference)}" for name, other in others.items() if other is not None
    ]
    return "; ".join(parts)


def domain_sentences(title: str, result: ArmsResult, level: float) -> list[str]:
    """The verdict on one domain or task: all accuracies, what is shown among the trained arms, what goes with it."""
    pairs = [pair for pair in result.pairs if BASE not in (pair.a, pair.b)] or result.pairs
    accuracies = ", ".join(f"{label} {points(arm.mean)} %" for label, arm in result.arms.items())
    sentence = pairs[0].sentence if len(pairs) == 1 else _pairs_sentence(pairs, level)
    sentences = [f"{title}: {accuracies}" + (f"; {sentence}" if sentence else "")]
    for pair in pairs:
        if not pair.shown:
            continue
        by_kind = sorted(pair.shifts, key=lambda change: list(_KINDS).index(change.kind))
        changes = [change for change in by_kind if change.explains][:1] or by_kind[: len(pairs) == 1]
        sentences += [f"{title}, {_could(change)}: {change.sentence}" for change in changes]
        if pair.sharpening is not None:
            sentences.append(f"{title}, sharpness ({pair.a} and {pair.b}): {pair.sharpening.sentence}")
    return sentences


def _pairs_sentence(pairs: Sequence[PairResult], level: float) -> str:
    shown = sorted((pair for pair in pairs if pair.shown), key=lambda pair: -abs(pair.difference))
    parts = [_beats(pair, level) for pair in shown]
    if rest := len(pairs) - len(shown):
        parts.append(f"no difference can be shown for {rest} of {len(pairs)} pairs")
    alone = _ONE_SEED if pairs and all(pair.seeds == 1 for pair in pairs) else ""
    return "; ".join(parts) + alone


_KINDS = {"shape": "the shape of the answers", "stopped": "where they end", "length": "their length"}
"""Of several changes that go with the same difference, the first says most: they overlap, and shape often is length."""


def _could(change: ShapeChange) -> str:
    return f"{_KINDS[change.kind]} {'could explain it' if change.explains else 'changed too'}"


def contrasts(inside: Sequence[PairResult], outside: Sequence[PairResult]) -> list[str]:
    """What is shown in one domain and not, or the other way round, in the other: one sentence a pair of arms."""
    sentences = []
    out_of = {(pair.a, pair.b): pair for pair in outside}
    for pair in inside:
        other = out_of.get((pair.a, pair.b))
        if other is None or BASE in (pair.a, pair.b) or not (pair.shown or other.shown):
            continue
        if pair.shown and other.shown:
            if pair.difference * other.difference < 0:
                winner, loser = _winner(other)
                sentences.append(
                    f"{winner} beats {loser} out of domain by {points(abs(other.difference))} points and loses "
                    f"to it in domain by {points(abs(pair.difference))}: neither figure is the verdict alone"
                )
            continue
        clear, unclear, (where, elsewhere) = (
            (pair, other, ("in", "out of")) if pair.shown else (other, pair, ("out of", "in"))
        )
        winner, loser = _winner(clear)
        sign = 1 if clear.difference > 0 else -1
        sentences.append(
            f"{winner} beats {loser} {where} domain by {points(abs(clear.difference))} points; {elsewhere} "
            f"domain no difference can be shown ({points(sign * unclear.difference)})"
        )
    return sentences
