"""What the runs of a report logged: curves, held-out probabilities, drift, tokens; their settings and cost.

No judgement here; the verdict is in `verdict.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from math import exp
from pathlib import Path
from typing import TypeVar

from rectune.pages.format import percent
from rectune.records import Comparison, Diagnosis
from rectune.reporting.grouping import ReportArm, flatten, plain, short
from rectune.reporting.load_runs import BINS, LoadedFolders, LoadedRun, Metrics, ProbeRow, number
from rectune.reporting.page_model import (
    DiagnosisQuote,
    DriftWarning,
    EnvironmentTable,
    Histograms,
    HoldoutChange,
    PaperComparison,
    PaperTable,
    Point,
    ProbabilityShift,
    RunCost,
    RunCurves,
    SettingsTable,
    TargetChange,
    TokenChange,
    TokenChanges,
)
from rectune.runtime.io import JsonObject
from rectune.training.metrics import PROBABILITY_BINS
from rectune.training.run_dir import TRACKING

MOST_POINTS = 200
"""Of a curve on the page; longer ones are thinned evenly."""
POLARISED = 0.01
"""A share of targets that moved by less than one in a hundred counts as unmoved."""
HOLDOUT = ("nll", "mean_p", "accuracy", "entropy", "eos_p", "low_p", "high_p")
CURVES = {
    "train": ("objective", "nll", "mean_p", "weight", "grad_norm"),
    "rollouts": ("reward", "length", "entropy", "kl", "clip_share"),
    "holdout": HOLDOUT,
    "drift": ("kl", "entropy", "eos_p", "repetition", "length", "stopped"),
    "log": ("loss", "learning_rate", "eval_loss", "mean_token_accuracy"),
}
"""The numbers that curves show, by kind of line."""

_NOT_SETTINGS = TRACKING | {"output_dir", "seed", "save_steps", "save_total_limit"}
_MEANS = ("change", "before", "after")
_MIN_OCCURRENCES, _SHOWN = 3, 8  # of a token's text that count together; rows of a table
_MOST_ROWS = 200  # of a table of a reproduction


def curves(arms: Iterable[ReportArm]) -> list[RunCurves]:
    """The lines of each run, by kind, with the numbers that the page shows."""
    found = []
    for arm in arms:
        for seed, run in arm.runs.items():
            rollouts = [line for line in run.train if "reward" in line.values]
            lines = {"train": run.train, "rollouts": rollouts, "holdout": run.holdout}
            lines |= {"drift": run.drift, "log": run.log}
            points = {kind: _points(of_kind, CURVES[kind]) for kind, of_kind in lines.items()}
            found.append(RunCurves(arm.label, seed, **points))
    return found


def _points(lines: Iterable[Metrics], names: Iterable[str]) -> list[Point]:
    kept = [{name: line.values[name] for name in ("step", *names) if name in line.values} for line in lines]
    kept = [point for point in kept if len(point) > 1]
    if len(kept) <= MOST_POINTS:
        return kept
    places = {round(i * (len(kept) - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)}
    return [kept[place] for place in sorted(places)]


def before_after(run: LoadedRun) -> tuple[Metrics, Metrics]:
    """The held-out rows under the initial model and under the saved weights; empty where not known."""
    first = next((line for line in run.holdout if line.step == 0), Metrics())
    last = next((line for line in reversed(run.holdout) if line.step > 0), Metrics())
    return run.before if run.before.values else first, run.after if run.after.values else last


def holdout_table(arms: Iterable[ReportArm]) -> list[HoldoutChange]:
    """One entry for each arm that has held-out rows."""
    rows = []
    for arm in arms:
        pairs = [before_after(run) for run in arm.runs.values()]
        before, after = ([pair[i].values for pair in pairs if pair[i].values] for i in (0, 1))
        if before or after:
            means = (
                {name: _mean(line.get(name) for line in lines) for name in HOLDOUT}
                for lines in (before, after)
            )
            rows.append(HoldoutChange(arm.label, len(after) or len(before), *means))
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def histograms(arms: Iterable[ReportArm]) -> Histograms:
    """By arm, over all seeds that have both ends."""
    found = {}
    for arm in arms:
        pairs = [[end.histogram for end in before_after(run)] for run in arm.runs.values()]
        complete = [pair for pair in pairs if all(sum(counts) for counts in pair)]
        if not complete:
            continue
        counts = [[sum(pair[end][b] for pair in complete) for b in range(BINS)] for end in (0, 1)]
        before, after = ([count / sum(of_end) for count in of_end] for of_end in counts)
        lowest, highest = [before[0], after[0]], [before[-1], after[-1]]
        grown = [end[1] - end[0] >= POLARISED for end in (lowest, highest)]
        kind = (
            "polarises: both ends grow"
            if all(grown)
            else "only grows at the top"
            if grown[1]
            else "does not polarise"
        )
        low, high = (" to ".join(map(percent, end)) for end in (lowest, highest))
        sentence = (
            f"{arm.label} {kind}; targets below p = {PROBABILITY_BINS[1]:g} go from {low}, those above "
            f"{PROBABILITY_BINS[-2]:g} from {high}"
        )
        found[arm.label] = ProbabilityShift(
            sum(counts[1]), before, after, lowest, highest, all(grown), sentence
        )
    return Histograms(list(PROBABILITY_BINS), found)


def drift_warnings(arms: Iterable[ReportArm]) -> list[DriftWarning]:
    """Warnings that training gave, each at its first step."""
    found: dict[tuple[str, int, str], DriftWarning] = {}
    for arm in arms:
        for seed, run in arm.runs.items():
            for line in run.drift:
                for name in line.warnings:
                    warning = DriftWarning(arm.label, seed, short(name), line.step)
                    found.setdefault((arm.label, seed, name), warning)
    return list(found.values())


def token_changes(arms: Iterable[ReportArm]) -> dict[str, TokenChanges]:
    """By arm, from the probe rows of all its runs."""
    found = {}
    for arm in arms:
        rows = [row for run in arm.runs.values() for row in run.probe]
        targets = list(chain.from_iterable(map(_target_changes, rows)))
        if not targets:
            continue
        by_text: dict[str, list[TargetChange]] = {}
        for target in targets:
            by_text.setdefault(target.token, []).append(target)
        texts = [
            TokenChange(
                text, len(same), *(sum(getattr(t, name) for t in same) / len(same) for name in _MEANS)
            )
            for text, same in by_text.items()
            if len(same) >= _MIN_OCCURRENCES
        ]
        found[arm.label] = TokenChanges(
            len(rows), len(targets), _lost(texts), _gained(texts), _lost(targets), _gained(targets)
        )
    return found


def _target_changes(row: ProbeRow) -> Iterable[TargetChange]:
    texts = [text for text, _, _ in row.targets]
    for i, (text, before, after) in enumerate(row.targets):
        if before is not None and after is not None:
            left, right = "".join(texts[max(0, i - 8) : i])[-60:], "".join(texts[i + 1 : i + 5])[:30]
            p_before, p_after = exp(min(0.0, before)), exp(min(0.0, after))
            yield TargetChange(text[:60], 1, after - before, p_before, p_after, left, right, row.where)


AnyChange = TypeVar("AnyChange", bound=TokenChange)


def _lost(changes: Iterable[AnyChange]) -> list[AnyChange]:
    return [c for c in sorted(changes, key=lambda c: (c.change, c.token))[:_SHOWN] if c.change < 0]


def _gained(changes: Iterable[AnyChange]) -> list[AnyChange]:
    return [c for c in reversed(sorted(changes, key=lambda c: (c.change, c.token))[-_SHOWN:]) if c.change > 0]


def settings(arms: Iterable[ReportArm]) -> SettingsTable:
    """Of the first run of each arm; runs without a readable config.json are left out."""
    configs = {
        arm.label: flatten(of_arm[0])
        for arm in arms
        if (of_arm := [run.config for run in arm.runs.values() if run.config and not run.foreign])
    }
    table = SettingsTable(
        {}, {}, {arm.label: ", ".join(map(str, sorted(arm.runs))) for arm in arms if arm.label in configs}
    )
    for name in dict.fromkeys(chain.from_iterable(configs.values())):
        values = {label: plain(config.get(name)) for label, config in configs.items()}
        if name in _NOT_SETTINGS:
            continue
        if len(set(values.values())) > 1:
            table.differ[name] = values
        else:
            table.same[name] = next(iter(values.values()))
    return table


def environment(loaded: LoadedFolders) -> EnvironmentTable:
    """Of the runs, and of the evaluations."""
    table = EnvironmentTable({}, {})
    runs = {
        short(str(run.path), 80): _flat(run.environment) for run in loaded.runs.values() if run.environment
    }
    versions = {
        short(str(folder.path), 80): {
            f"evaluated with {k}": v[:80] for k, v in folder.result.versions.items()
        }
        for folder in loaded.evaluations.values()
        if folder.result.versions
    }
    for group in (runs, versions):
        for name in dict.fromkeys(chain.from_iterable(group.values())):
            values: dict[str, list[str]] = {}
            for where, entries in group.items():
                values.setdefault(entries.get(name, "not recorded"), []).append(where)
            if len(values) == 1:
                table.same[name] = next(iter(values))
            else:
                table.differ[name] = values
    return table


def _flat(record: JsonObject) -> dict[str, str]:
    packages = record.get("packages")
    opened = {**record, **(packages if isinstance(packages, dict) else {})}
    return {str(k): plain(v)[:120] for k, v in opened.items() if not isinstance(v, dict | list)}


def cost(arms: Iterable[ReportArm]) -> list[RunCost]:
    """One entry for each run."""
    return [_cost(arm, seed, run) for arm in arms for seed, run in arm.runs.items()]


def _cost(arm: ReportArm, seed: int, run: LoadedRun) -> RunCost:
    summary = run.summary
    logged = {
        name: float(sum(line.values.get(name, 0) for line in run.train)) for name in ("seconds", "tokens")
    }
    step_seconds = summary.get("step_seconds", summary.get("seconds")) or logged["seconds"]
    speed = logged["tokens"] / step_seconds if logged["tokens"] and step_seconds else None
    memory = [line.values["peak_memory_mib"] for line in run.train if "peak_memory_mib" in line.values]
    done = int(max([*(line.step for line in [*run.train, *run.log]), summary.get("steps", 0)], default=0))
    planned = number(run.config.get("max_steps"))
    progress = f"step {done}" + (f" of {planned:.0f}" if planned else "")
    if run.foreign:
        state = "another trainer's"
    elif "steps" in summary:
        state = "finished"
    else:
        state = f"dropped at {progress}" if arm.dropped else f"not finished: {progress}"
    return RunCost(
        label=arm.label,
        seed=None if run.foreign else seed,
        path=str(run.path),
        steps=done,
        state=state,
        seconds=summary.get("seconds") if "step_seconds" in summary else None,
        step_seconds=step_seconds,
        tokens=logged["tokens"] or None,
        tokens_per_second=summary.get("tokens_per_second") or speed,
        peak_memory_mib=summary.get("peak_memory_mib") or max(memory, default=None),
    )


def choices(comparisons: Iterable[Comparison]) -> list[str]:
    """What comparisons chose on validation problems: learning rates, and which arms were dropped when."""
    sentences = []
    for comparison in comparisons:
        if sweep := comparison.sweep:
            for arm in sweep.arms.values():
                tried = ", ".join(f"{t.learning_rate:g}: {percent(t.accuracy.mean)}" for t in arm.trials)
                edge = "; the best lies at the edge of what was tried" if arm.edge else ""
                sentences.append(
                    f"learning rate of {short(arm.label)}: {arm.learning_rate:g}, by accuracy on {sweep.problems} "
                    f"validation problems after {sweep.steps} steps ({tried}){edge}"
                )
        if race := comparison.race:
            sentences += [f"dropped in the race: {short(d.reason, 400)}" for d in race.dropped.values()]
    return sentences


def diagnosis_quotes(diagnoses: Mapping[Path, Diagnosis]) -> list[DiagnosisQuote]:
    """What was said before training, in one line each."""
    return [
        DiagnosisQuote(
            str(place),
            short(diagnosis.verdict.sentence, 600),
            short(", ".join(risk.name for risk in diagnosis.risks), 300),
        )
        for place, diagnosis in diagnoses.items()
    ]


def paper_comparison(comparisons: Iterable[Comparison]) -> PaperComparison:
    """The tables and notes of all reproductions; empty without one."""
    papers = [comparison.paper for comparison in comparisons if comparison.paper]
    tables = [
        PaperTable(
            list(rows[0]), [[short(str(row.get(name, "-"))) for name in rows[0]] for row in rows[:_MOST_ROWS]]
        )
        for paper in papers
        for rows in paper.tables
        if rows and rows[0]
    ]
    return PaperComparison(
        tables, [short(note, 500) for note in dict.fromkeys(chain.from_iterable(p.notes for p in papers))]
    )
