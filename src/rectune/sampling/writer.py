"""The file of samples while it is written: what it has, whether one may go on with it, and appending to it.

A sample is one line and the line is written whole or, where a run is killed in the middle of it, mended away
at the next opening. Drawing the samples is in `sample.py`; reading them to grade them is in `grading/`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rectune.data.readers import append_jsonl, read_jsonl
from rectune.data.schema import Sample
from rectune.errors import UserError
from rectune.runtime.distributed import share, wait_for_all
from rectune.runtime.io import check_format
from rectune.runtime.locks import lock_file

log = logging.getLogger("rectune")


@contextmanager
def shared_file(out: Path, expected: Mapping[str, Sample]) -> Iterator[SamplesFile]:
    """The file to append to, opened: `out` of one process, else a part of it that is merged into it behind this.

    Args:
        out: File of samples.
        expected: As in `SamplesFile`, in the order of the problems.

    Raises:
        UserError: As `SamplesFile`, or another process has ended early.
    """
    index, of = share()
    if of == 1:
        if _parts(out):
            _merge(out, expected)
        with SamplesFile(out, expected) as file:
            yield file
        return
    if index == 0:
        _merge(out, expected)
    else:
        log.setLevel(logging.WARNING)  # the first process speaks for all
    wait_for_all()
    finished = SamplesFile(out, expected).read()
    wait_for_all()  # all have read it before the first one appends
    with SamplesFile(out.with_name(f".{out.name}.{index}-of-{of}.part"), expected) as file:
        file.finished |= finished
        yield file
    wait_for_all()
    if index == 0:
        _merge(out, expected)
    wait_for_all()


def _parts(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f".{out.name}.*-of-*.part"))


def _merge(out: Path, expected: Mapping[str, Sample]) -> None:
    """Append what the parts hold to `out`, by problem and index, and remove them."""
    place = {problem_id: number for number, problem_id in enumerate(expected)}
    lines: dict[tuple[str, int], bytes] = {}
    parts = _parts(out)
    for part in parts:
        with SamplesFile(part, expected):  # mends a torn end and checks every line
            for line in part.read_bytes().splitlines(keepends=True):
                record = json.loads(line)
                lines[record["problem_id"], record["sample_index"]] = line
    with SamplesFile(out, expected) as file:
        for key in sorted(lines, key=lambda key: (place.get(key[0], len(place)), key)):
            if key not in file.finished:
                file.copy(lines[key], key)
    for part in parts:
        part.unlink()


SETTINGS = ("fingerprint", "engine", "seed", "temperature", "top_p", "max_new_tokens", "stop")
PROBLEM = ("prompt", "answer", "grader")


class SamplesFile:
    """A samples file opened for appending; a context manager.

    Args:
        path: Made, with its folder, if it is missing.
        expected: For each problem id a sample as it would be drawn now; text, tokens and index do not matter.

    Attributes:
        finished: The (problem_id, sample_index) pairs that the file has.

    Raises:
        UserError: A line is not a sample, is there twice, or was drawn from another model, under other
            settings or from another prompt; or another process is writing to the file.
    """

    def __init__(self, path: Path, expected: Mapping[str, Sample]) -> None:
        self.path, self.finished = Path(path), set[tuple[str, int]]()
        self._expected = expected
        self._file: IO[bytes] | None = None

    def __enter__(self) -> SamplesFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab")
        try:
            lock_file(file, self.path)
            append_jsonl(self.path, ())  # mends a torn end
            self.read()
        except UserError:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def append(self, sample: Sample) -> None:
        """Write one line; it has reached the operating system when this returns."""
        assert self._file is not None
        self._file.write(json.dumps(asdict(sample), ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self.finished.add((sample.problem_id, sample.sample_index))

    def copy(self, line: bytes, key: tuple[str, int]) -> None:
        """Write the line of a sample from another file."""
        assert self._file is not None
        self._file.write(line)
        self._file.flush()
        self.finished.add(key)

    def read(self) -> set[tuple[str, int]]:
        """Check all lines; gives what is `finished`. The file need not be opened for it."""
        for number, record in read_jsonl(self.path):
            self._accept(record, f"{self.path}:{number}")
        return self.finished

    def _accept(self, record: dict[str, Any], where: str) -> None:
        check_format(record, where)
        record = {"stop": [], **record}  # older files have none, and were drawn without
        missing = [f.name for f in fields(Sample) if f.name not in record and f.name != "format"]
        if missing:
            raise UserError(f"is not a line of samples ({', '.join(missing)} missing)", where=where)
        if not isinstance(record["problem_id"], str) or not isinstance(record["sample_index"], int):
            raise UserError("is not a line of samples (its key is no text and number)", where=where)
        key = (record["problem_id"], record["sample_index"])
        if key in self.finished:
            raise UserError(f"sample {key[1]} of problem '{key[0]}' is there twice", where=where)
        now = self._expected.get(key[0]) or next(iter(self._expected.values()))
        same = SETTINGS + PROBLEM if key[0] in self._expected else SETTINGS
        for name in same:
            if record[name] != _as_read(getattr(now, name)):
                raise _drawn_otherwise(name, record, now, where)
        self.finished.add(key)


def _as_read(value: object) -> object:
    """A value of a sample as it comes back from JSON."""
    return list(value) if isinstance(value, tuple) else value


def _drawn_otherwise(name: str, record: dict[str, Any], now: Sample, where: str) -> UserError:
    hint = "write to another file, or remove this one"
    if name == "fingerprint":
        then = f"{record['model']}, {record[name]}"
        what = f"was drawn from another model ({then}; now {now.model}, {now.fingerprint})"
    elif name in PROBLEM:
        what = f"problem '{record['problem_id']}' had another {name} when this file was drawn"
    else:
        what = f"was drawn with {name} = {record[name]}, now {_as_read(getattr(now, name))}"
    return UserError(what, where=where, hint=hint)
