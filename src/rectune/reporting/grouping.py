"""Which runs and evaluations belong together: arms (all settings equal but the seed), their labels, their evaluations.

Where a comparison says so itself, its labels and seeds are taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from pydantic import ValidationError

from rectune.analysis.summary_text import merged_label
from rectune.config import ObjectiveConfig
from rectune.errors import UserError, visible
from rectune.objective_spec import label_of, make_phases
from rectune.records import MergedModel
from rectune.reporting.load_runs import EvaluationFolder, LoadedFolders, LoadedRun, NoteList
from rectune.runtime.io import JsonObject
from rectune.training.run_dir import FREE

BASE = "base"
_NOT_COMPARED = FREE | {"output_dir", "seed"}
_LONGEST = 60  # characters of a label


@dataclass
class ReportArm:
    """Runs that differ in nothing but their seed, and their evaluations by role, set of benchmarks and seed."""

    label: str
    runs: dict[int, LoadedRun] = field(default_factory=dict)
    evaluations: dict[str, dict[tuple[str, ...], dict[int, EvaluationFolder]]] = field(default_factory=dict)
    dropped: str = ""

    def add(self, evaluation: EvaluationFolder, seed: int, notes: NoteList) -> None:
        names = tuple(sorted(evaluation.result.benchmarks))
        by_seed = self.evaluations.setdefault(evaluation.role, {}).setdefault(names, {})
        other = by_seed.setdefault(seed, evaluation)
        if other is not evaluation:
            what = f"is a second evaluation of {self.label} like {other.path}, and is left out"
            notes.add(evaluation.path, what)

    def folders(self, role: str, names: tuple[str, ...]) -> dict[int, Path]:
        return {seed: e.path for seed, e in self.evaluations.get(role, {}).get(names, {}).items()}


Owners = dict[Path, tuple[ReportArm, int]]
"""Run folder to its arm and seed."""


def group(loaded: LoadedFolders, notes: NoteList) -> list[ReportArm]:
    """All arms, the base model first, then in the order of the folders."""
    arms, owners = _by_comparison(loaded, notes)
    named = _by_config([run for path, run in loaded.runs.items() if path not in owners], set(arms))
    for label, runs in sorted(
        named.items(), key=lambda arm: not arm[0].startswith("sft")
    ):  # the reference first
        arm = arms[label] = ReportArm(label)
        for run in runs:
            seed = _seed(run, arm, notes)
            arm.runs[seed] = run
            owners[run.path] = (arm, seed)
    base, sharpest = ReportArm(BASE), _sharpest(loaded)
    for evaluation in loaded.evaluations.values():
        stale = sharpest and evaluation.role == "matched" and evaluation.path.name != sharpest
        if stale or evaluation.role == "validation":
            continue
        arm, seed = _owner(evaluation, owners, base, arms, notes)
        arm.add(evaluation, seed, notes)
    grouped = ([base] if base.evaluations else []) + list(arms.values())
    if not any(arm.evaluations.get("main") for arm in grouped):  # then what was sampled greedily is judged
        for arm in grouped:
            arm.evaluations["main"] = arm.evaluations.pop("greedy", {})
    return grouped


def objective_label(config: JsonObject) -> str:
    """An objective as it is shown: `dft`, `power alpha=0.5`, `sft 0.3 then dft 0.7`."""
    objective, least = config.get("objective"), config.get("min_eos_weight")
    if "objective" not in config and isinstance(algorithm := config.get("algorithm"), str):  # rl
        return short(algorithm)
    if not isinstance(objective, str):
        return "unknown objective"
    if ".py:" in objective:  # a function of somebody's own: a page must not run the file that a folder names
        return short(objective)
    try:
        phases = make_phases(ObjectiveConfig(objective=objective))
    except (ValidationError, UserError):  # of another version, or damaged
        return short(objective)
    unusual = f" min_eos_weight={plain(least)}" if least not in (None, phases[0].min_eos_weight) else ""
    return short(label_of(phases) + unusual)


def flatten(config: JsonObject) -> JsonObject:
    """Dotted names of settings, tables opened up one level."""
    flat: JsonObject = {}
    for name, value in config.items():
        if isinstance(value, dict) and name in ("rows", "lora"):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[str(name)] = value
    return flat


def plain(value: object) -> str:
    """A setting's value as text."""
    if isinstance(value, float):
        return f"{value:g}"
    if value is None or value == "":
        return "-"
    return short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 200)


def short(text: str, longest: int = _LONGEST) -> str:
    """On one line, cut with an ellipsis."""
    text = visible(" ".join(text.split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _by_comparison(loaded: LoadedFolders, notes: NoteList) -> tuple[dict[str, ReportArm], Owners]:
    """Arms as comparisons name them.

    Taken out of `loaded`: runs of a sweep and other leftovers, and evaluations of models between runs or during
    training, which a comparison's points are about.
    """
    arms: dict[str, ReportArm] = {}
    owners: Owners = {}
    for place, comparison in loaded.comparisons.items():
        for compared in comparison.arms:
            arm = arms.setdefault(label := short(compared.label), ReportArm(label))
            arm.dropped = short(compared.dropped.reason, 400) if compared.dropped else ""
            for seed, relative in compared.runs.items():
                path = (place / relative).resolve()
                if "logs" in comparison.settings and seed.isdecimal():
                    owners[path] = (arm, int(seed))
                elif path not in loaded.runs:
                    notes.add(place / relative, f"is missing: a run of {label}, seed {seed}")
                elif seed.isdecimal() and int(seed) not in arm.runs:
                    arm.runs[int(seed)] = loaded.runs[path]
                    owners[path] = (arm, int(seed))
        trials = {path for path in loaded.runs if place in path.parents and path not in owners}
        loaded.runs = {path: run for path, run in loaded.runs.items() if path not in trials}
        models = {(place / name).resolve() for arm in comparison.arms for name in arm.runs.values()}
        models.add((place / comparison.base).resolve())
        loaded.evaluations = {
            path: evaluation
            for path, evaluation in loaded.evaluations.items()
            if trials.isdisjoint(path.parents)
            and (path.parent in models or place / "runs" not in path.parents)
        }
    return arms, owners


def _sharpest(loaded: LoadedFolders) -> str:
    """Folder name of the matched evaluations that a comparison's verdict is about; "" where it does not say."""
    for comparison in loaded.comparisons.values():
        for arm in comparison.arms:
            if arm.label == comparison.matched_to:
                return f"matched-{arm.slug}"
    return ""


def _by_config(runs: Iterable[LoadedRun], taken: set[str]) -> dict[str, list[LoadedRun]]:
    """Label to runs; where two arms have the same objective, what else differs is in the label."""
    groups: dict[str, list[LoadedRun]] = {}
    for run in runs:
        readable = bool(run.config) and not run.foreign
        settings = {k: v for k, v in run.config.items() if k not in _NOT_COMPARED}
        key = json.dumps(settings, sort_keys=True, default=str) if readable else str(run.path)
        groups.setdefault(key, []).append(run)
    by_label: dict[str, list[list[LoadedRun]]] = {}
    for members in groups.values():
        first = members[0]
        readable = bool(first.config) and not first.foreign
        label = objective_label(first.config) if readable else short(first.path.name or "run")
        by_label.setdefault(label, []).append(members)
    named: dict[str, list[LoadedRun]] = {}
    for label, same in by_label.items():
        for members, differs in zip(same, _differences([flatten(m[0].config) for m in same]), strict=True):
            place = members[0].path
            wanted = short(f"{label} ({differs or place.parent.name})" if len(same) > 1 else label)
            if wanted in taken:  # by an arm of a comparison
                wanted = short(f"{wanted} ({place.name})")
            name, number = wanted, 1
            while name in named or name in taken or name == BASE:
                number += 1
                name = f"{wanted} #{number}"
            named[name] = members
    return named


def _differences(configs: list[JsonObject]) -> list[str]:
    """For each config what sets it apart from the others: three settings at most, model and data first."""
    names = [
        name for name in dict.fromkeys(n for config in configs for n in config) if name not in _NOT_COMPARED
    ]
    differ = [n for n in names if len({json.dumps(config.get(n), default=str) for config in configs}) > 1]
    differ.sort(key=lambda name: name not in ("model", "reference_model", "data"))
    return [", ".join(f"{name}={plain(config.get(name))}" for name in differ[:3]) for config in configs]


def _seed(run: LoadedRun, arm: ReportArm, notes: NoteList) -> int:
    seed = run.config.get("seed", 0)
    seed = seed if isinstance(seed, int) else 0
    if seed in arm.runs:
        other = arm.runs[seed].path
        notes.add(run.path, f"has the settings and the seed of {other}; it counts as another seed")
        seed = max(arm.runs) + 1
    return seed


def _owner(
    evaluation: EvaluationFolder, owners: Owners, base: ReportArm, arms: dict[str, ReportArm], notes: NoteList
) -> tuple[ReportArm, int]:
    """Whose evaluation it is: of the run it lies in or names, of the base model, or of a model of its own."""
    if merged := evaluation.result.merge:
        return _merged(merged, owners, arms)
    model, trained_by = evaluation.result.model, evaluation.result.training_run
    named = [Path(name).expanduser().resolve() for name in (trained_by, model) if name]
    for folder in (*evaluation.path.parents, *named):
        if folder in owners:
            return owners[folder]
    # Before a run with a similar path: a base model may have been trained here itself.
    bases = {str(run.config.get("model")) for arm in arms.values() for run in arm.runs.values()}
    if BASE in evaluation.path.parts[-3:] or model in bases:
        return base, 0
    if trained_by is not None:
        shared = {path: _shared_end(Path(trained_by), path) for path in owners}
        best = [path for path, count in shared.items() if count and count == max(shared.values())]
        if len(best) == 1:
            what = f"was made of {trained_by}; taken as the evaluation of {best[0].name} by its name"
            notes.add(evaluation.path, what)
            return owners[best[0]]
        return _without_run(short(Path(trained_by).name), arms)
    path = Path(model)
    name = path.parent.name if path.name in ("model", "adapter") else path.name
    return _without_run(short(name or evaluation.path.name), arms)


def _merged(merged: MergedModel, owners: Owners, arms: dict[str, ReportArm]) -> tuple[ReportArm, int]:
    """The arm of a merged model, named after those of the runs that it is made of, and the seed of the first."""
    labels, seeds = [], []
    for name in merged.tuned:
        folder = Path(name)
        owner = next((owners[place] for place in (folder, folder.parent) if place in owners), None)
        labels.append(owner[0].label if owner else short(folder.name))
        seeds.append(owner[1] if owner else 0)
    label = short(merged_label(labels, merged.at))
    return arms.setdefault(label, ReportArm(label)), seeds[0]


def _without_run(label: str, arms: dict[str, ReportArm]) -> tuple[ReportArm, int]:
    """The arm of a model whose run is not there."""
    if label == BASE or (label in arms and arms[label].runs):
        label = f"{label} (evaluation only)"
    return arms.setdefault(label, ReportArm(label)), 0


def _shared_end(one: Path, other: Path) -> int:
    """How many parts at the end of two paths are the same."""
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
