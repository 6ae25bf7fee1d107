"""The plain facts of the runs: settings that differ and are the same, environments, cost, and what was chosen.

No judgement here; the verdict is in `verdict.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rectune.reporting.grouping import Arm, flat, plain, short
from rectune.reporting.load_runs import Found, Record, Run, number
from rectune.reporting.sections import Data, Section, Table
from rectune.training.run_dir import TRACKING

_MOST = 200  # rows of a table


def beside(found: Found) -> dict[str, Any]:
    """`tables`, each `header` and `rows` of text, and `notes`, of all reproductions; empty without one."""
    tables, notes = [], dict[str, None]()
    for _, record in found.comparisons:
        said = record.get("paper")
        said = said if isinstance(said, dict) else {}
        tables += [table for rows in _list(said.get("tables")) if (table := _table(rows))]
        notes |= dict.fromkeys(short(str(note), 500) for note in _list(said.get("notes")))
    return {"tables": tables, "notes": list(notes)}


def section(data: Data) -> Section:
    """The part of the page."""
    found = data["paper"]
    tables = [Table(one["header"], one["rows"], text=2) for one in found["tables"]]
    return Section("paper", "Beside the paper", "Beside the paper", tables=tables, caveats=found["notes"])


def _table(rows: object) -> dict[str, Any] | None:
    records = [row for row in _list(rows) if isinstance(row, dict)][:_MOST]
    header = [str(name) for name in records[0]] if records else []
    if not header:
        return None
    return {
        "header": header,
        "rows": [[short(str(row.get(name, "-"))) for name in header] for row in records],
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


_NOT_SETTINGS = TRACKING | {"output_dir", "seed", "save_steps", "save_total_limit"}


def settings(arms: Sequence[Arm]) -> dict[str, Any]:
    """`differ`: name to label to value; `same`: name to value; runs without a readable config are left out."""
    owns = {arm.label: flat(next(iter(configs))) for arm in arms
            if (configs := [run.config for run in arm.runs.values() if run.config and not run.foreign])}  # fmt: skip
    names = [
        n for n in dict.fromkeys(name for own in owns.values() for name in own) if n not in _NOT_SETTINGS
    ]
    differ, same = {}, {}
    for name in names:
        values = {label: plain(own.get(name)) for label, own in owns.items()}
        if len(set(values.values())) > 1:
            differ[name] = values
        else:
            same[name] = next(iter(values.values()))
    seeds = {arm.label: ", ".join(map(str, sorted(arm.runs))) for arm in arms if arm.label in owns}
    return {"differ": differ, "same": same, "seeds": seeds}


def environment(found: Found) -> dict[str, Any]:
    """`same`: name to value; `differ`: name to value to the runs (or evaluations) that have it."""
    runs = {short(str(run.path), 80): _flat(run.environment) for run in found.runs if run.environment}
    versions = {
        short(str(e.path), 80): {f"evaluated with {k}": str(v)[:80] for k, v in e.result["versions"].items()}
        for e in found.evaluations
        if isinstance(e.result.get("versions"), dict)
    }
    same: dict[str, str] = {}
    differ: dict[str, dict[str, list[str]]] = {}
    for group in (runs, versions):
        for name in dict.fromkeys(name for own in group.values() for name in own):
            values: dict[str, list[str]] = {}
            for where, own in group.items():
                values.setdefault(own.get(name, "not recorded"), []).append(where)
            if len(values) == 1:
                same[name] = next(iter(values))
            else:
                differ[name] = values
    return {"same": same, "differ": differ}


def _flat(record: Record) -> dict[str, str]:
    packages = record.get("packages")
    opened = {**record, **(packages if isinstance(packages, dict) else {})}
    return {str(k): plain(v)[:120] for k, v in opened.items() if not isinstance(v, (dict, list))}


def cost(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A record for each run: steps done and planned, seconds in all and of its steps, tokens, speed, peak memory.

    `seconds` are None where the run has not finished, or is of a version that counted its steps' alone.
    """
    return [_cost(arm, seed, run) for arm in arms for seed, run in arm.runs.items()]


def _cost(arm: Arm, seed: int, run: Run) -> dict[str, Any]:
    own = run.summary
    whole = own.get("seconds") if "step_seconds" in own else None
    steps, tokens = _total(run.train, "seconds"), _total(run.train, "tokens")
    steps = own.get("step_seconds", own.get("seconds")) or steps
    memory = [line["peak_memory_mib"] for line in run.train if "peak_memory_mib" in line]
    done = max([*(line["step"] for line in [*run.train, *run.log]), run.summary.get("steps", 0)], default=0)
    planned = number(run.config.get("max_steps"))
    finished = "steps" in run.summary
    return {
        "label": arm.label,
        "seed": None if run.foreign else seed,
        "path": str(run.path),
        "steps": int(done),
        "state": _state(run, arm, finished, int(done), planned),
        "seconds": whole,
        "step_seconds": steps,
        "tokens": tokens or None,
        "tokens_per_second": run.summary.get("tokens_per_second")
        or (tokens / steps if tokens and steps else None),
        "peak_memory_mib": run.summary.get("peak_memory_mib") or max(memory, default=None),
    }


def _state(run: Run, arm: Arm, finished: bool, done: int, planned: float | None) -> str:
    if run.foreign:
        return "another trainer's"
    if finished:
        return "finished"
    of = f" of {planned:.0f}" if planned else ""
    return f"dropped at step {done}{of}" if arm.dropped else f"not finished: step {done}{of}"


def _total(lines: Iterable[Record], name: str) -> float:
    return float(sum(line.get(name, 0) for line in lines))


def choices(found: Found) -> list[str]:
    """What comparisons chose by validation problems, as sentences: learning rates, and who was dropped when."""
    said = []
    for _, record in found.comparisons:
        sweep, race = record.get("sweep"), record.get("race")
        if isinstance(sweep, dict) and isinstance(sweep.get("arms"), dict):
            said += [line for arm in sweep["arms"].values() if (line := _rate(arm, sweep))]
        if isinstance(race, dict) and isinstance(race.get("dropped"), dict):
            said += [
                f"dropped in the race: {short(str(one.get('reason')), 400)}"
                for one in race["dropped"].values()
                if isinstance(one, dict)
            ]
    return said


def _rate(arm: Any, sweep: Mapping[str, Any]) -> str:
    """How a learning rate was chosen; nothing where a record is not what it should be."""
    try:
        tried = ", ".join(
            f"{one['learning_rate']:g}: {100 * one['accuracy']['mean']:.1f} %" for one in arm["trials"]
        )
        edge = "; the best lies at the edge of what was tried" if arm.get("edge") else ""
        return (
            f"learning rate of {short(str(arm['label']))}: {arm['learning_rate']:g}, by accuracy on "
            f"{sweep['problems']} validation problems after {sweep['steps']} steps ({tried}){edge}"
        )
    except (KeyError, TypeError, ValueError):
        return ""


def diagnoses(found: Found) -> list[dict[str, str]]:
    """What was said before training: `where`, `sentence`, and `risks` in one line."""
    said = []
    for place, record in found.diagnoses:
        verdict, risks = record.get("verdict"), record.get("risks")
        sentence = verdict.get("sentence") if isinstance(verdict, dict) else None
        names = [str(r.get("name")) for r in risks if isinstance(r, dict)] if isinstance(risks, list) else []
        said.append(
            {
                "where": str(place),
                "sentence": short(str(sentence or "no verdict in it"), 600),
                "risks": short(", ".join(names), 300),
            }
        )
    return said
