"""Folders as they lie on the disk, read without trust: what cannot be read becomes a note, never an error.

Finds run, evaluation, comparison, diagnosis and foreign (transformers, TRL) folders in and below a folder. Values that
are passed on have the type they should have; what the page says about them is left to `collect.py`.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rectune.config.renamed import with_new_names
from rectune.training.metrics import PROBABILITY_BINS

FORMAT = 1
"""Of the files that this version writes and reads."""
BINS = len(PROBABILITY_BINS) - 1

_SKIP = {"checkpoints", "model", "adapter", "sandbox"}
_DEEPEST, _MOST_FOLDERS, _LARGEST, _MOST_METRICS = 6, 5000, 1 << 25, 1 << 27
Record = dict[str, Any]


@dataclass
class Notes:
    """What a reader of the page should know about the folders: missing, damaged, guessed."""

    found: list[dict[str, str]] = field(default_factory=list)

    def add(self, where: object, what: str) -> None:
        note = {"where": str(where), "what": what}
        if note not in self.found:
            self.found.append(note)


@dataclass
class Run:
    """A training run. Lines are in the order of steps, one for each step; `foreign` ones have a `log` instead."""

    path: Path
    config: Record = field(default_factory=dict)
    environment: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    train: list[Record] = field(default_factory=list)
    holdout: list[Record] = field(default_factory=list)
    drift: list[Record] = field(default_factory=list)
    probe: list[Record] = field(default_factory=list)
    foreign: bool = False
    log: list[Record] = field(default_factory=list)


@dataclass
class Evaluation:
    """An evaluation folder; `result` is its evaluation.json with the benchmarks that can be used."""

    path: Path
    result: Record

    @property
    def role(self) -> str:
        """main, greedy, matched (sampled at another model's sharpness), or validation (what choices were judged by)."""
        named = [role for role in ("greedy", "matched", "validation") if self.path.name.startswith(role)]
        cold = number(self.result["protocol"].get("temperature")) == 0
        return named[0] if named else "greedy" if cold else "main"


@dataclass
class Found:
    """All that was found in the folders given."""

    runs: list[Run] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    comparisons: list[tuple[Path, Record]] = field(default_factory=list)
    diagnoses: list[tuple[Path, Record]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.runs or self.evaluations or self.comparisons or self.diagnoses)


def read_folder(folder: Path, found: Found, notes: Notes) -> None:
    """Add what is in `folder` and below it to `found`; a note if there is nothing to use."""
    before = _count(found)
    for place in _walk(folder, notes):
        names = {path.name for path in _inside(place)}
        if "comparison.json" in names and (content := read_object(place / "comparison.json", notes)):
            found.comparisons.append((place, content))
        if "diagnosis.json" in names and (content := read_object(place / "diagnosis.json", notes)):
            found.diagnoses.append((place, content))
        if names & {"evaluation.json", "graded.jsonl"} and "offline.json" not in names:
            evaluation = _evaluation(place, notes)
            found.evaluations += [evaluation] if evaluation else []
        elif _is_run(place, names):
            found.runs.append(_run(place, notes))
        elif states := _trainer_states(place):
            run = _foreign(place, states, notes)
            found.runs += [run] if run else []
    if _count(found) == before:
        notes.add(folder, "nothing in it can be used: no run, evaluation, comparison or diagnosis was found")


def read_object(path: Path, notes: Notes) -> Record:
    """A JSON object from a file; {} where there is none, with a note unless the file is simply missing."""
    try:
        if not _readable(path, notes):
            return {}
        if path.stat().st_size > _LARGEST:
            notes.add(path, "is too large to be what its name says, and is not read")
            return {}
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        notes.add(path, f"cannot be read ({error.strerror})")
        return {}
    except (ValueError, RecursionError):
        notes.add(path, "is damaged (not JSON), so what it holds is missing here")
        return {}
    if not isinstance(content, dict):
        notes.add(path, "is damaged (no JSON object), so what it holds is missing here")
        return {}
    version = content.get("format", FORMAT)
    if version != FORMAT:
        notes.add(path, f"is of format {str(version)[:20]}; this version reads {FORMAT}, so it is left out")
        return {}
    return content


def read_lines(path: Path, notes: Notes, most: float = math.inf) -> Iterator[Record]:
    """The JSON objects of a JSONL file; lines that are none are passed over and counted in a note.

    Reading ends after `most` bytes, with a note.
    """
    bad: list[int] = []
    number_ = 0
    try:
        if not _readable(path, notes):
            return
        with path.open("rb") as file:
            for number_, line in enumerate(_whole_lines(file), 1):
                if not line.strip():
                    continue
                if file.tell() > most:
                    notes.add(path, f"is larger than {most / 2**20:.0f} MiB; the rest of it is left out")
                    break
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                if isinstance(record, dict):
                    yield record
                else:
                    bad.append(number_)
    except FileNotFoundError:
        pass
    except OSError as error:
        notes.add(path, f"cannot be read ({error.strerror})")
    if bad:
        last = ", the last one cut off" if bad == [number_] else f", first line {bad[0]}"
        notes.add(path, f"{len(bad)} of {number_} lines cannot be read{last}; they are left out")


def _readable(path: Path, notes: Notes) -> bool:
    """Whether it is an ordinary file. A link may lead out of the folder, a pipe never ends. OSError as `lstat`."""
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # a folder says itself, when it is opened, what is wrong
        return True
    notes.add(path, "is no ordinary file but a link, a pipe or a device, and is not read")
    return False


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines; of one that is too long only the first part, which is then no JSON."""
    while line := file.readline(_LARGEST):
        part = line
        while len(part) == _LARGEST and not part.endswith(b"\n"):
            part = file.readline(_LARGEST)
        yield line if len(line) < _LARGEST else b"?"


def number(value: object) -> float | None:
    """A finite number as it is, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def odd_steps(lines: Sequence[tuple[float, Record]], names: Sequence[str], loss: str) -> Iterator[str]:
    """What to know about a run's log: steps with figures that are not finite, and a loss of exactly 0.

    Args:
        lines: Steps and what was logged, in order.
        names: Figures that have to be finite where they are logged.
        loss: The one that is never exactly 0 while there is something to learn.
    """
    broken = [any(name in line and number(line[name]) is None for name in names) for _, line in lines]
    steps = [step for (step, _), bad in zip(lines, broken, strict=True) if bad]
    if steps and all(broken[broken.index(True) :]):
        yield f"is not finite from step {steps[0]:g} on ({_listed(names)})"
    elif steps:
        which = f"{len(steps)} of {len(lines)} logged steps, the first is {steps[0]:g}"
        yield f"is not finite in {which} ({_listed(names)})"
    zero = [step for step, line in lines if number(line.get(loss)) == 0]
    if zero:
        which = (
            f"step {zero[0]:g}" if len(zero) == 1 else f"{len(zero)} logged steps, the first is {zero[0]:g}"
        )
        yield f"the {loss} is exactly 0.0 at {which}: nothing was learnt there, or the figure is broken"


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names)


def figures(line: object) -> Record:
    """What is a figure in a line of metrics: finite numbers, the histogram, and texts of warnings."""
    if not isinstance(line, dict):
        return {}
    kept: Record = {str(k): v for k, v in line.items() if number(v) is not None}
    counts = line.get("histogram")
    if isinstance(counts, list) and len(counts) == BINS and all((number(c) or 0) >= 0 for c in counts):
        kept["histogram"] = [number(c) or 0 for c in counts]
    if isinstance(line.get("warnings"), list):
        kept["warnings"] = [str(w) for w in line["warnings"]]
    return kept


def _count(found: Found) -> int:
    return len(found.runs) + len(found.evaluations) + len(found.comparisons) + len(found.diagnoses)


def _inside(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []


def _walk(top: Path, notes: Notes) -> Iterator[Path]:
    """The folder and those below it, in order; not into models, checkpoints, hidden folders or links."""
    waiting, seen = [(top, 0)], 0
    while waiting:
        place, depth = waiting.pop()
        seen += 1
        if seen > _MOST_FOLDERS:
            notes.add(top, f"holds more than {_MOST_FOLDERS} folders; the rest are not looked at")
            return
        yield place
        if depth == _DEEPEST:
            continue
        below = [
            path
            for path in _inside(place)
            if path.name not in _SKIP and not path.name.startswith((".", "checkpoint-"))
        ]
        waiting += [(p, depth + 1) for p in reversed(below) if p.is_dir() and not p.is_symlink()]


def _is_run(place: Path, names: set[str]) -> bool:
    """Whether these files are a training run's: a model's folder has a config.json, too."""
    if "comparison.json" in names:
        return False
    content = read_object(place / "config.json", Notes()) if "config.json" in names else {}
    return bool(names & {"metrics.jsonl", "summary.json", "probe.json"}) or {"objective", "data"} <= set(
        content
    )


def _run(place: Path, notes: Notes) -> Run:
    run = Run(place)
    for name in ("config", "environment", "summary"):
        before = len(notes.found)
        setattr(run, name, read_object(place / f"{name}.json", notes))
        if not getattr(run, name) and len(notes.found) == before:
            lost = "the run has not finished" if name == "summary" else "what it holds is missing here"
            notes.add(place / f"{name}.json", f"is missing: {lost}")
    run.config = with_new_names(run.config)
    run.summary = {**figures(run.summary), **{k: figures(run.summary.get(k)) for k in ("before", "after")}}
    lines: dict[str, dict[float, Record]] = {"train": {}, "holdout": {}, "drift": {}}
    raw: dict[float, Record] = {}
    for line in read_lines(place / "metrics.jsonl", notes, _MOST_METRICS):
        step, kind = number(line.get("step")), line.get("kind")
        if step is not None and isinstance(kind, str) and kind in lines:
            lines[kind][step] = figures(line)
            if kind == "train":  # online, a step without updates has no gradient
                raw[step] = line if "updates" not in line or line.get("skipped") else {}
    for kind, by_step in lines.items():
        setattr(run, kind, [by_step[step] for step in sorted(by_step)])
    for odd in odd_steps(sorted(raw.items()), ("grad_norm",), "objective"):
        notes.add(place / "metrics.jsonl", odd)
    if not any(lines.values()):
        notes.add(
            place / "metrics.jsonl", "has no lines that can be read, so there are no curves of this run"
        )
    rows = read_object(place / "probe.json", notes).get("rows")
    run.probe = [row for row in map(_probe_row, rows if isinstance(rows, list) else []) if row]
    return run


def _probe_row(row: object) -> Record | None:
    if not isinstance(row, dict):
        return None
    columns = [row.get(name) for name in ("tokens", "before", "after")]
    if not all(isinstance(column, list) for column in columns):
        return None
    triples = list(zip(*columns, strict=False))  # type: ignore[arg-type]
    return {
        "where": str(row.get("where", "")),
        "targets": [(str(t), number(b), number(a)) for t, b, a in triples],
    }


def _evaluation(place: Path, notes: Notes) -> Evaluation | None:
    before = len(notes.found)
    result = read_object(place / "evaluation.json", notes)
    if not result:
        if len(notes.found) == before:
            notes.add(place / "evaluation.json", "is missing: the evaluation has not finished")
        return None
    benchmarks = result.get("benchmarks")
    usable = {
        str(name): numbers
        for name, numbers in (benchmarks.items() if isinstance(benchmarks, dict) else ())
        if isinstance(numbers, dict)
        and isinstance(ids := numbers.get("problem_ids"), list)
        and ids
        and all(isinstance(one, str) for one in ids)
    }
    if not isinstance(result.get("protocol"), dict) or not usable:
        notes.add(place / "evaluation.json", "is damaged (no protocol or no benchmark), so it is left out")
        return None
    return Evaluation(place, {**result, "benchmarks": usable})


def _trainer_states(place: Path) -> list[Path]:
    """Where transformers' Trainer kept its log: here, or in its newest checkpoint."""
    numbered = [
        (int(path.name[11:]), path / "trainer_state.json")
        for path in _inside(place)
        if path.name.startswith("checkpoint-") and path.name[11:].isdecimal()
    ]
    states = [place / "trainer_state.json", *(state for _, state in sorted(numbered, reverse=True))]
    return [state for state in states if state.is_file()]


def _foreign(place: Path, states: list[Path], notes: Notes) -> Run | None:
    for state in states:
        history = read_object(state, notes).get("log_history")
        raw = [line for line in (history if isinstance(history, list) else []) if isinstance(line, dict)]
        log = [f for f in map(figures, raw) if "step" in f]
        if log:
            notes.add(
                place,
                "is a run of transformers' Trainer: its loss and learning rate are shown. Whether that loss is NLL is "
                'not recorded; a DFT loss (TRL\'s loss_type="dft") is -p log p and says nothing about NLL',
            )
            by_step: dict[float, Record] = {}
            for line in raw:
                if (step := number(line.get("step"))) is not None:
                    by_step[step] = {**by_step.get(step, {}), **line}
            for odd in odd_steps(sorted(by_step.items()), ("loss", "grad_norm", "eval_loss"), "loss"):
                notes.add(state, odd)
            return Run(place, foreign=True, log=sorted(log, key=lambda line: line["step"]))
    notes.add(states[0], "has no log_history, so there is nothing to show of this run")
    return None
