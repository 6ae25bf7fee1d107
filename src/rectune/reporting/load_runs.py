"""Run, evaluation, comparison, diagnosis and foreign folders, read without trust.

What cannot be read becomes a note on the page, never an error: a file is used whole or left out, a log line by line. A
number that is not finite counts as not known. What the page says about the folders is left to the other modules.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from rectune.config.names import with_new_names
from rectune.errors import UserError
from rectune.records import Comparison, Diagnosis, Evaluation, FileRecord, parse_line, rft_record
from rectune.reporting.page_model import Note
from rectune.runtime.io import JsonObject
from rectune.training.metrics import PROBABILITY_BINS

FORMAT = 1
"""Version of the files that are read, and of the report's data."""
BINS = len(PROBABILITY_BINS) - 1

_SKIPPED = {"checkpoints", "model", "adapter", "sandbox"}
_DEEPEST, _MOST_FOLDERS, _LARGEST, _MOST_METRICS = 6, 5000, 1 << 25, 1 << 27
AnyFile = TypeVar("AnyFile", bound=FileRecord)


@dataclass
class NoteList:
    """What a reader of the page should know about the folders: missing, damaged, guessed."""

    notes: list[Note] = field(default_factory=list)

    def add(self, where: object, what: str) -> None:
        note = Note(str(where), what)
        if note not in self.notes:
            self.notes.append(note)


@dataclass
class Metrics:
    """A line of metrics: finite numbers by name, `step` among them; counts of the histogram, texts of warnings."""

    values: dict[str, float] = field(default_factory=dict)
    histogram: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def step(self) -> float:
        return self.values["step"]


@dataclass
class ProbeRow:
    """A row of the probe: text and log-probability before and after training of each target."""

    where: str
    targets: list[tuple[str, float | None, float | None]]


@dataclass
class LoadedRun:
    """A training run. Lines are in the order of steps, one for each step; `foreign` ones have a `log` instead."""

    path: Path
    config: JsonObject = field(default_factory=dict)
    environment: JsonObject = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    before: Metrics = field(default_factory=Metrics)
    after: Metrics = field(default_factory=Metrics)
    train: list[Metrics] = field(default_factory=list)
    holdout: list[Metrics] = field(default_factory=list)
    drift: list[Metrics] = field(default_factory=list)
    probe: list[ProbeRow] = field(default_factory=list)
    foreign: bool = False
    log: list[Metrics] = field(default_factory=list)


@dataclass
class EvaluationFolder:
    """A folder with an evaluation.json."""

    path: Path
    result: Evaluation

    @property
    def role(self) -> str:
        """main, greedy, matched (sampled at another model's sharpness), or validation (what choices were judged by)."""
        for role in ("greedy", "matched", "validation"):
            if self.path.name.startswith(role):
                return role
        if self.path.name.startswith("temperature-"):  # of the base model, for the choice of a model to ship
            return "validation"
        return "greedy" if self.result.protocol.temperature == 0 else "main"


@dataclass
class LoadedFolders:
    """All that was found in the folders given, by its place."""

    runs: dict[Path, LoadedRun] = field(default_factory=dict)
    evaluations: dict[Path, EvaluationFolder] = field(default_factory=dict)
    comparisons: dict[Path, Comparison] = field(default_factory=dict)
    diagnoses: dict[Path, Diagnosis] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.runs) + len(self.evaluations) + len(self.comparisons) + len(self.diagnoses)


def load_folders(folders: Iterable[Path], notes: NoteList) -> LoadedFolders:
    """All that lies in the folders and below them.

    Raises:
        UserError: One does not exist, or nothing in any of them can be used.
    """
    loaded = LoadedFolders()
    for folder in dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders):
        if not folder.exists():
            raise UserError("no such folder", where=folder)
        if not folder.is_dir():
            hint = "give the run folder that contains it"
            raise UserError("this is a file, not a folder", where=folder, hint=hint)
        before = len(loaded)
        places = [_load_place(place, loaded, notes) for place in _walk(folder, notes)]
        if len(loaded) == before and not any(places):
            notes.add(
                folder, "nothing in it can be used: no run, evaluation, comparison or diagnosis was found"
            )
    if not len(loaded):
        reasons = "; ".join(f"{note.where}: {note.what}" for note in notes.notes[:3])
        raise UserError(
            f"nothing to report ({reasons})" if reasons else "nothing to report",
            hint="give folders that rectune train, eval, compare or diagnose wrote, or of a transformers Trainer",
        )
    return loaded


def _load_place(place: Path, loaded: LoadedFolders, notes: NoteList) -> bool:
    """Load what lies in one folder, not below it; whether it was loaded now or before."""
    known = place in loaded.runs or place in loaded.evaluations or place in loaded.comparisons
    if known or place in loaded.diagnoses:
        return True
    names = {path.name for path in _inside(place)}
    if "comparison.json" in names and (comparison := _record(place, Comparison, notes)):
        loaded.comparisons[place] = comparison
    if "diagnosis.json" in names and (diagnosis := _record(place, Diagnosis, notes)):
        loaded.diagnoses[place] = diagnosis
    if names & {"evaluation.json", "graded.jsonl"} and rft_record(place) is None:
        if evaluation := _record(place, Evaluation, notes):
            loaded.evaluations[place] = EvaluationFolder(place, evaluation)
    elif _is_run(place, names):
        loaded.runs[place] = _run(place, notes)
    elif (states := _trainer_states(place)) and (run := _foreign(place, states, notes)):
        loaded.runs[place] = run
    return False


def _record(place: Path, kind: type[AnyFile], notes: NoteList) -> AnyFile | None:
    """The record that a folder holds; None, with a note, where it is missing or damaged."""
    path = place / f"{kind.__name__.lower()}.json"
    content = read_object(path, notes, f"is missing: the {kind.__name__.lower()} has not finished")
    if not content:
        return None
    try:
        return parse_line(kind, content, kind.WHAT, str(path), "")
    except UserError as error:
        notes.add(path, f"{error.what}, so it is left out")
        return None


def read_object(path: Path, notes: NoteList, missing: str = "") -> JsonObject:
    """A JSON object from a file; {} with a note where it is damaged, or where it is missing and `missing` says so."""
    content: object = {}
    try:
        if not _is_ordinary(path, notes):
            return {}
        if path.stat().st_size > _LARGEST:
            notes.add(path, "is too large to be what its name says, and is not read")
            return {}
        content = _loads(path.read_bytes())
    except FileNotFoundError:
        pass
    except OSError as error:
        notes.add(path, f"cannot be read ({error.strerror})")
        return {}
    if not isinstance(content, dict):
        notes.add(path, "is damaged (no JSON object), so what it holds is missing here")
        return {}
    if not content and missing:
        notes.add(path, missing)
    if (version := content.get("format", FORMAT)) != FORMAT:
        notes.add(path, f"is of format {str(version)[:20]}; this version reads {FORMAT}, so it is left out")
        return {}
    return content


def read_lines(path: Path, notes: NoteList, most: float = math.inf) -> Iterator[JsonObject]:
    """The JSON objects of a JSONL file, up to `most` bytes of it; a note counts the lines that are none."""
    bad: list[int] = []
    number = 0
    try:
        if not _is_ordinary(path, notes):
            return
        with path.open("rb") as file:
            for number, line in enumerate(_bounded_lines(file), 1):
                if not line.strip():
                    continue
                if file.tell() > most:
                    notes.add(path, f"is larger than {most / 2**20:.0f} MiB; the rest of it is left out")
                    break
                if isinstance(record := _loads(line), dict):
                    yield record
                else:
                    bad.append(number)
    except FileNotFoundError:
        pass
    except OSError as error:
        notes.add(path, f"cannot be read ({error.strerror})")
    if bad:
        last = ", the last one cut off" if bad == [number] else f", first line {bad[0]}"
        notes.add(path, f"{len(bad)} of {number} lines cannot be read{last}; they are left out")


def _loads(text: bytes) -> object:
    """What a JSON text holds, with None for a number that is not finite; None where it is no JSON."""
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_small)
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None


def _small(text: str) -> int | None:
    return int(text) if len(text) < 300 else None  # what a float can hold


def _is_ordinary(path: Path, notes: NoteList) -> bool:
    """Whether it is an ordinary file. A link may lead out of the folder, a pipe never ends. OSError as `lstat`."""
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # opening a folder says what is wrong
        return True
    notes.add(path, "is not a regular file (a link, a pipe or a device), and is not read")
    return False


def _bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines; one that is too long becomes something that is no JSON."""
    while line := file.readline(_LARGEST):
        part = line
        while len(part) == _LARGEST and not part.endswith(b"\n"):
            part = file.readline(_LARGEST)
        yield line if len(line) < _LARGEST else b"?"


def _inside(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []


def _walk(top: Path, notes: NoteList) -> Iterator[Path]:
    """The folder and those below it, in order; not into models, checkpoints, hidden folders or links."""
    for seen, (place, below, _) in enumerate(os.walk(top)):
        if seen == _MOST_FOLDERS:
            notes.add(top, f"holds more than {_MOST_FOLDERS} folders; the rest are not looked at")
            return
        yield Path(place)
        deep = len(Path(place).relative_to(top).parts) >= _DEEPEST
        hidden = (".", "checkpoint-")
        below[:] = (
            [] if deep else [n for n in sorted(below) if n not in _SKIPPED and not n.startswith(hidden)]
        )


def number(value: object) -> float | None:
    """A number as it is, None for anything else."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _metrics(line: object) -> Metrics:
    """The numbers, the histogram and the texts of warnings in a line of metrics; empty where it is no object."""
    if not isinstance(line, dict):
        return Metrics()
    counts, warnings = line.get("histogram"), line.get("warnings")
    whole = isinstance(counts, list) and len(counts) == BINS and all((number(c) or 0) >= 0 for c in counts)
    return Metrics(
        {str(name): value for name, raw in line.items() if (value := number(raw)) is not None},
        [number(count) or 0 for count in counts] if whole and isinstance(counts, list) else [],
        [str(warning) for warning in warnings] if isinstance(warnings, list) else [],
    )


def odd_steps(lines: Sequence[tuple[float, JsonObject]], names: Sequence[str], loss: str) -> Iterator[str]:
    """Steps with numbers that are not finite, and with a loss of exactly 0, as sentences.

    Args:
        lines: Steps and what was logged, in order.
        names: Numbers that have to be finite where they are logged.
        loss: The one that is never exactly 0 while there is something to learn.
    """
    broken = [any(name in line and number(line[name]) is None for name in names) for _, line in lines]
    steps = [step for (step, _), bad in zip(lines, broken, strict=True) if bad]
    if steps and all(broken[broken.index(True) :]):
        yield f"is not finite from step {steps[0]:g} on ({' or '.join(names)})"
    elif steps:
        which = f"{len(steps)} of {len(lines)} logged steps, the first is {steps[0]:g}"
        yield f"is not finite in {which} ({' or '.join(names)})"
    if zero := [step for step, line in lines if number(line.get(loss)) == 0]:
        several = f"{len(zero)} logged steps, the first is {zero[0]:g}"
        which = f"step {zero[0]:g}" if len(zero) == 1 else several
        yield f"the {loss} is exactly 0.0 at {which}: nothing was learnt there, or the figure is broken"


_LOGPROBS = ("token_logprobs.json", "probe.json")
"""Of the watched rows, before and after; the second name is that of version 0.1."""


def _is_run(place: Path, names: set[str]) -> bool:
    """Whether these files are a training run's: a model's folder has a config.json, too."""
    if "comparison.json" in names:
        return False
    content = read_object(place / "config.json", NoteList()) if "config.json" in names else {}
    return bool(names & {"metrics.jsonl", "summary.json", *_LOGPROBS}) or {"objective", "data"} <= set(
        content
    )


def _run(place: Path, notes: NoteList) -> LoadedRun:
    lost = "is missing: what it holds is missing here"
    run = LoadedRun(place, with_new_names(read_object(place / "config.json", notes, lost)))
    run.environment = read_object(place / "environment.json", notes, lost)
    summary = read_object(place / "summary.json", notes, "is missing: the run has not finished")
    run.summary = _metrics(summary).values
    run.before, run.after = _metrics(summary.get("before")), _metrics(summary.get("after"))
    lines: dict[str, dict[float, JsonObject]] = {"train": {}, "holdout": {}, "drift": {}}
    for line in read_lines(place / "metrics.jsonl", notes, _MOST_METRICS):
        step, kind = number(line.get("step")), line.get("kind")
        if step is not None and isinstance(kind, str) and kind in lines:
            lines[kind][step] = line
    for kind, by_step in lines.items():
        setattr(run, kind, [_metrics(line) for _, line in sorted(by_step.items())])
    # Online, a step without updates has no gradient.
    updated = [
        (step, line if "updates" not in line or line.get("skipped") else {})
        for step, line in sorted(lines["train"].items())
    ]
    for odd in odd_steps(updated, ("grad_norm",), "objective"):
        notes.add(place / "metrics.jsonl", odd)
    if not any(lines.values()):
        notes.add(place / "metrics.jsonl", "has no readable lines, so this run has no curves")
    named = next((name for name in _LOGPROBS if (place / name).exists()), _LOGPROBS[0])
    rows = read_object(place / named, notes).get("rows")
    run.probe = [row for row in map(_probe_row, rows if isinstance(rows, list) else []) if row]
    return run


def _probe_row(row: object) -> ProbeRow | None:
    if not isinstance(row, dict):
        return None
    columns = [row.get(name) for name in ("tokens", "before", "after")]
    if not all(isinstance(column, list) for column in columns):
        return None
    targets = [
        (str(text), number(before), number(after)) for text, before, after in zip(*columns, strict=False)
    ]
    return ProbeRow(str(row.get("where", "")), targets)


def _trainer_states(place: Path) -> list[Path]:
    """Where transformers' Trainer kept its log: here, or in its newest checkpoint."""
    numbered = [
        (int(path.name[11:]), path / "trainer_state.json")
        for path in _inside(place)
        if path.name.startswith("checkpoint-") and path.name[11:].isdecimal()
    ]
    states = [place / "trainer_state.json", *(state for _, state in sorted(numbered, reverse=True))]
    return [state for state in states if state.is_file()]


def _foreign(place: Path, states: Sequence[Path], notes: NoteList) -> LoadedRun | None:
    for state in states:
        history = read_object(state, notes).get("log_history")
        lines = [line for line in (history if isinstance(history, list) else []) if isinstance(line, dict)]
        by_step: dict[float, JsonObject] = {}
        for line in lines:
            if (step := number(line.get("step"))) is not None:
                by_step[step] = {**by_step.get(step, {}), **line}
        if not by_step:
            continue
        notes.add(
            place,
            "is a run of transformers' Trainer: its loss and learning rate are shown. Whether that loss is NLL is "
            'not recorded; a DFT loss (TRL\'s loss_type="dft") is -p log p and says nothing about NLL',
        )
        for odd in odd_steps(sorted(by_step.items()), ("loss", "grad_norm", "eval_loss"), "loss"):
            notes.add(state, odd)
        log = [metrics for line in lines if "step" in (metrics := _metrics(line)).values]
        return LoadedRun(place, foreign=True, log=sorted(log, key=lambda metrics: metrics.step))
    notes.add(states[0], "has no log_history, so there is nothing to show of this run")
    return None
