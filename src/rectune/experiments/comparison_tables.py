"""A comparison as tables for the terminal: the choices made, and one table for each benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from rectune.analysis.summary_text import BASE, DOMAINS, against_base
from rectune.pages.format import interval, number, percent
from rectune.records import ArmResult, BaseDifference, Comparison, RaceResult, SweepResult

Table = list[dict[str, str]]


def tables(comparison: Comparison) -> Iterator[tuple[str, Table]]:
    """Title and rows of each table."""
    if comparison.sweep:
        yield _sweep(comparison.sweep)
    if comparison.race:
        yield from _race(comparison.race)
        dropped = [arm for arm in comparison.arms if arm.dropped]
        if dropped:
            yield "Dropped", [{"arm": arm.label, "why": arm.dropped.reason} for arm in dropped if arm.dropped]
    if any((point.at < 1 and point.arm != BASE) or "+" in point.arm for point in comparison.points):
        yield _points(comparison)
    n = int(str(comparison.settings["n"]))
    for name, numbers in (comparison.verdict.benchmarks if comparison.verdict else {}).items():
        domain = DOMAINS.get(numbers.domain)
        title = f"{name}{f' ({domain})' if domain else ''}, {numbers.problems} problems"
        gains = against_base([("", numbers)])
        yield title, [_row(label, arm, n, gains.get(label, {})) for label, arm in numbers.arms.items()]


def _points(comparison: Comparison) -> tuple[str, Table]:
    """What could be shipped: base model, runs, models between them and means, each over all problems of a domain."""
    rows = []
    for point in comparison.points:
        row = {"model": point.label}
        for domain, score in point.scores.items() if point.step is None else ():
            greedy = point.greedy.get(domain)
            row[DOMAINS.get(domain, "all problems")] = interval(score.mean, score.low, score.high)
            row[f"greedy, {DOMAINS.get(domain, 'all problems')}"] = percent(greedy.mean if greedy else None)
        rows += [row] if len(row) > 1 else []
    return "Models between base and tuned", rows


def _row(label: str, arm: ArmResult, n: int, gains: dict[str, BaseDifference]) -> dict[str, str]:
    return {
        "arm": label,
        f"avg@{n}": interval(arm.mean, arm.low, arm.high),
        "than base": gains[""].verdict if gains else "-",
        "greedy": percent(arm.greedy),
        f"pass@{n}": percent(arm.pass_at.get(str(n))),
        "stopped": percent(arm.stopped, 0),
        "tokens": number(arm.tokens, 0),
        "repeating": percent(arm.repeating, 0),
        "nats a token": number(arm.entropy, 2),
        "seeds": str(arm.seeds),
    }


def _sweep(sweep: SweepResult) -> tuple[str, Table]:
    title = f"Sweep: {sweep.steps} steps, seed {sweep.seed}, {sweep.problems} validation problems"
    rows = []
    for arm in sweep.arms.values():
        for trial in arm.trials:
            taken = "taken, at the edge" if arm.edge else "taken"
            rows.append(
                {
                    "arm": arm.label,
                    "learning rate": f"{trial.learning_rate:g}",
                    "accuracy": interval(trial.accuracy.mean, trial.accuracy.low, trial.accuracy.high),
                    "": taken if trial.learning_rate == arm.learning_rate else "",
                }
            )
    return title, rows


def _race(race: RaceResult) -> Iterator[tuple[str, Table]]:
    for rung in race.rungs:
        rows = [
            {
                "arm": label,
                "accuracy": interval(accuracy.mean, accuracy.low, accuracy.high),
                "": "leads" if label == rung.leader else "dropped" if label in rung.worse else "",
            }
            for label, accuracy in rung.accuracy.items()
        ]
        yield f"Race: step {rung.step}, {rung.problems} validation problems", rows
