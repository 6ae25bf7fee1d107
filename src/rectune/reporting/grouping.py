"""Which runs and evaluations belong together: arms (all settings equal but the seed), their labels, their evaluations.

Where a comparison says so itself, its labels and seeds are taken. What is said about arms is left to `collect.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rectune.config import ObjectiveConfig
from rectune.errors import UserError
from rectune.objective_spec import label_of as label_of_phases
from rectune.objective_spec import make_phases
from rectune.reporting.load_runs import Evaluation, Found, Notes, Record, Run
from rectune.runtime.escape import visible
from rectune.training.run_dir import FREE

BASE = "base"
_OWN = FREE | {"output_dir", "seed"}
_LONGEST = 60  # characters of a label


@dataclass
class Arm:
    """Runs that differ in nothing but their seed, and their evaluations by role, set of benchmarks and seed."""

    label: str
    runs: dict[int, Run] = field(default_factory=dict)
    evaluations: dict[str, dict[tuple[str, ...], dict[int, Evaluation]]] = field(default_factory=dict)
    dropped: str = ""

    def add(self, evaluation: Evaluation, seed: int, notes: Notes) -> None:
        names = tuple(sorted(evaluation.result["benchmarks"]))
        of_role = self.evaluations.setdefault(evaluation.role, {}).setdefault(names, {})
        if seed in of_role:
            other = of_role[seed].path
            notes.add(
                evaluation.path, f"is a second evaluation of {self.label} like {other}, and is left out"
            )
            return
        of_role[seed] = evaluation

    def folders(self, role: str, names: tuple[str, ...]) -> dict[int, Path]:
        return {seed: e.path for seed, e in self.evaluations.get(role, {}).get(names, {}).items()}


def group(found: Found, notes: Notes) -> list[Arm]:
    """All arms, the base model first, then in the order of the folders."""
    arms, at = _by_comparison(found, notes)
    rest = [run for run in found.runs if _key(run.path) not in at]
    named = _by_config(rest, {arm.label for arm in arms})
    for label, runs in sorted(
        named.items(), key=lambda one: not one[0].startswith("sft")
    ):  # the reference first
        arms.append(arm := Arm(label))
        for run in runs:
            seed = _seed(run, arm, notes)
            arm.runs[seed] = run
            at[_key(run.path)] = (arm, seed)
    base, sharpest = Arm(BASE), _sharpest(found)
    for evaluation in found.evaluations:
        stale = sharpest and evaluation.role == "matched" and evaluation.path.name != sharpest
        if stale or evaluation.role == "validation":
            continue
        arm, seed = _owner(evaluation, at, base, arms, notes)
        arm.add(evaluation, seed, notes)
    arms = ([base] if base.evaluations else []) + arms
    _settle_roles(arms)
    return arms


def label_of(config: Mapping[str, Any]) -> str:
    """An objective as it is shown: `dft`, `power alpha=0.5`, `sft 0.3 then dft 0.7`."""
    objective, least = config.get("objective"), config.get("min_eos_weight")
    if "objective" not in config and isinstance(config.get("algorithm"), str):  # rl
        return short(config["algorithm"])
    if not isinstance(objective, str):
        return "unknown objective"
    try:
        phases = make_phases(ObjectiveConfig(objective=objective))
    except (ValidationError, UserError):  # of another version, damaged, or a function whose file is gone
        return short(objective)
    unusual = f" min_eos_weight={plain(least)}" if least not in (None, phases[0].min_eos_weight) else ""
    return short(label_of_phases(phases) + unusual)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names of settings, tables opened up one level."""
    opened: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and name in ("rows", "lora"):
            opened |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            opened[str(name)] = value
    return opened


def plain(value: object) -> str:
    """A setting's value as text."""
    if isinstance(value, float):
        return f"{value:g}"
    if value is None or value == "":
        return "-"
    return short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 200)


def short(text: str, longest: int = _LONGEST) -> str:
    text = visible(" ".join(text.split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _by_comparison(found: Found, notes: Notes) -> tuple[list[Arm], dict[Path, tuple[Arm, int]]]:
    """Arms as comparison.json names them; runs of its sweep and other leftovers are taken out of `found`."""
    arms: dict[str, Arm] = {}
    at: dict[Path, tuple[Arm, int]] = {}
    by_path = {_key(run.path): run for run in found.runs}
    for place, record in found.comparisons:
        for one in _dicts(record.get("arms")):
            label = short(str(one.get("label") or one.get("slug") or "unnamed"))
            arm = arms.setdefault(label, Arm(label))
            dropped = one.get("dropped")
            arm.dropped = short(str(dropped.get("reason", "yes")), 400) if isinstance(dropped, dict) else ""
            runs = one.get("runs")
            for seed, relative in runs.items() if isinstance(runs, dict) else ():
                key = _key(place / str(relative))
                if key in by_path and str(seed).isdecimal() and int(seed) not in arm.runs:
                    arm.runs[int(seed)] = by_path[key]
                    at[key] = (arm, int(seed))
                elif key not in by_path:
                    notes.add(place / str(relative), f"is missing: a run of {label}, seed {seed}")
        inside = _key(place)
        trials = [run for run in found.runs if inside in _key(run.path).parents and _key(run.path) not in at]
        found.runs = [run for run in found.runs if run not in trials]
        gone = {_key(run.path) for run in trials}
        found.evaluations = [e for e in found.evaluations if not gone & set(_key(e.path).parents)]
    return list(arms.values()), at


def _sharpest(found: Found) -> str:
    """Folder name of the matched evaluations that a comparison's verdict is about; "" where it does not say."""
    for _, record in found.comparisons:
        for arm in _dicts(record.get("arms")):
            if arm.get("label") == record.get("matched_to"):
                return f"matched-{arm.get('slug')}"
    return ""


def _by_config(runs: Iterable[Run], taken: set[str]) -> dict[str, list[Run]]:
    """Label to runs; where two arms have the same objective, what else differs is in the label."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        readable = bool(run.config) and not run.foreign
        settings = {k: v for k, v in run.config.items() if k not in _OWN}
        key = json.dumps(settings, sort_keys=True, default=str) if readable else str(run.path)
        groups.setdefault(key, []).append(run)
    by_label: dict[str, list[list[Run]]] = {}
    for members in groups.values():
        first = members[0]
        label = (
            label_of(first.config) if first.config and not first.foreign else short(first.path.name or "run")
        )
        by_label.setdefault(label, []).append(members)
    named: dict[str, list[Run]] = {}
    for label, same in by_label.items():
        owns = [flat(members[0].config) for members in same]
        names = [n for n in dict.fromkeys(k for own in owns for k in own) if n not in _OWN]
        differ = [n for n in names if len({json.dumps(own.get(n), default=str) for own in owns}) > 1]
        for members, own in zip(same, owns, strict=True):
            extra = ", ".join(f"{n}={plain(own.get(n))}" for n in differ[:3])
            if len(same) > 1 and not extra:
                extra = members[0].path.parent.name
            wanted = short(f"{label} ({extra})" if len(same) > 1 else label)
            if wanted in taken:  # by an arm of a comparison: the folder tells them apart
                wanted = short(f"{wanted} ({members[0].path.name})")
            name, number = wanted, 1
            while name in named or name in taken or name == BASE:
                number += 1
                name = f"{wanted} #{number}"
            named[name] = members
    return named


def _seed(run: Run, arm: Arm, notes: Notes) -> int:
    seed = run.config.get("seed", 0)
    seed = seed if isinstance(seed, int) else 0
    if seed in arm.runs:
        notes.add(
            run.path, f"has the settings and the seed of {arm.runs[seed].path}; it counts as another seed"
        )
        seed = max(arm.runs) + 1
    return seed


def _owner(
    evaluation: Evaluation, at: dict[Path, tuple[Arm, int]], base: Arm, arms: list[Arm], notes: Notes
) -> tuple[Arm, int]:
    """Whose evaluation it is: of the run it lies in or names, of the base model, or of a model of its own."""
    for folder in _key(evaluation.path).parents:
        if folder in at:
            return at[folder]
    said = evaluation.result.get("training_run")
    model = str(evaluation.result.get("model", ""))
    for name in (said, model):
        if isinstance(name, str) and name and _key(Path(name)) in at:
            return at[_key(Path(name))]
    # Before the run it names: a base model may have been trained here itself.
    bases = {str(arm.runs[seed].config.get("model")) for arm in arms for seed in arm.runs}
    if BASE in evaluation.path.parts[-3:] or model in bases:
        return base, 0
    if isinstance(said, str):
        shared = {key: _alike(Path(said).parts, key.parts) for key in at}
        best = [key for key, count in shared.items() if count and count == max(shared.values())]
        if len(best) == 1:
            notes.add(
                evaluation.path, f"was made of {said}; taken as the evaluation of {best[0].name} by its name"
            )
            return at[best[0]]
        return _other(short(Path(said).name), arms)
    path = Path(model)
    name = path.parent.name if path.name in ("model", "adapter") else path.name
    return _other(short(name or evaluation.path.name), arms)


def _other(label: str, arms: list[Arm]) -> tuple[Arm, int]:
    """The arm of a model whose run is not there, and the next seed in it."""
    label = (
        f"{label} (evaluation only)"
        if label == BASE or any(a.label == label and a.runs for a in arms)
        else label
    )
    arm = next((arm for arm in arms if arm.label == label), None)
    if arm is None:
        arms.append(arm := Arm(label))
    return arm, 0


def _settle_roles(arms: list[Arm]) -> None:
    """Where nothing was sampled but at temperature 0, that is what is judged."""
    if not any(arm.evaluations.get("main") for arm in arms):
        for arm in arms:
            arm.evaluations["main"] = arm.evaluations.pop("greedy", {})


def _alike(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """How many parts at the end of two paths are the same."""
    count = 0
    for one, other in zip(reversed(a), reversed(b), strict=False):
        if one != other:
            break
        count += 1
    return count


def _dicts(value: object) -> list[Record]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _key(path: Path) -> Path:
    return path.expanduser().resolve()
