"""The file of samples while it is written: which samples it has, whether it may be resumed, and appending to it.

A line is written whole or, where a run is killed in the middle of it, removed at the next opening. Samples are made in
`sample.py` and read for grading in `grading/`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from rectune.data.readers import append_jsonl, read_jsonl
from rectune.errors import UserError
from rectune.records import Sample, parse_line
from rectune.runtime.distributed import share, wait_for_all
from rectune.runtime.io import check_format
from rectune.runtime.locks import lock_file

log = logging.getLogger("rectune")

SETTINGS = ("fingerprint", "engine", "seed", "temperature", "top_p", "max_new_tokens", "stop")
PROBLEM = ("prompt", "answer", "grader")
"""Fields in which the samples of a file have to agree, and those in which the samples of a problem have to."""

Key = tuple[str, int]
"""Problem id and sample index."""


class SamplesFile:
    """A samples file opened for appending; a context manager.

    Args:
        path: Created, with its folder, if it is missing.
        expected: For each problem id a sample as it would be now; text, tokens and index do not matter.

    Attributes:
        finished: Keys of the samples that the file has.

    Raises:
        UserError: A line is not a sample, occurs twice, or is of another model, other settings or another prompt; or
            another process is writing to the file.
    """

    def __init__(self, path: Path, expected: Mapping[str, Sample]) -> None:
        self.path, self.finished = Path(path), set[Key]()
        self._expected = expected
        self._file: IO[bytes] | None = None

    def __enter__(self) -> SamplesFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab")
        try:
            lock_file(file, self.path)
            append_jsonl(self.path, ())  # removes a torn last line
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
        line = json.dumps(sample.to_dict(), ensure_ascii=False).encode() + b"\n"
        self.append_line(line, (sample.problem_id, sample.sample_index))

    def append_line(self, line: bytes, key: Key) -> None:
        """As `append`, a line as another file has it."""
        assert self._file is not None
        self._file.write(line)
        self._file.flush()
        self.finished.add(key)

    def read(self) -> set[Key]:
        """Check all lines; returns `finished`. The file need not be opened for it."""
        for number, content in read_jsonl(self.path):
            where = f"{self.path}:{number}"
            check_format(content, where)
            hint = "write to another file, or remove this one"
            sample = parse_line(Sample, content, "a line of samples", where, hint)
            key = (sample.problem_id, sample.sample_index)
            if key in self.finished:
                raise UserError(f"sample {key[1]} of problem '{key[0]}' occurs twice", where=where)
            if difference := self._difference(sample):
                raise UserError(difference, where=where, hint=hint)
            self.finished.add(key)
        return self.finished

    def _difference(self, sample: Sample) -> str:
        """What a sample differs in from one as it would be now; "" for nothing that matters."""
        now = self._expected.get(sample.problem_id) or next(iter(self._expected.values()))
        fields = SETTINGS + PROBLEM if sample.problem_id in self._expected else SETTINGS
        name = next((name for name in fields if getattr(sample, name) != getattr(now, name)), None)
        if name is None:
            return ""
        if name == "fingerprint":
            then = f"{sample.model}, {sample.fingerprint}"
            return f"was sampled from another model ({then}; now {now.model}, {now.fingerprint})"
        if name in PROBLEM:
            return f"problem '{sample.problem_id}' had another {name} when this file was sampled"
        return f"was sampled with {name} = {getattr(sample, name)}, now {getattr(now, name)}"


@contextmanager
def shared_file(out: Path, expected: Mapping[str, Sample]) -> Iterator[SamplesFile]:
    """The file to append to, opened: `out` in a single process, else a part of it, which is merged into it afterwards.

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
        log.setLevel(logging.WARNING)  # only the first process logs
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
    """Append the samples of all parts to `out`, by problem and index, and remove the parts."""
    place = {problem_id: number for number, problem_id in enumerate(expected)}
    lines: dict[Key, bytes] = {}
    parts = _parts(out)
    for part in parts:
        with SamplesFile(part, expected):  # removes a torn last line and checks every other
            for line in part.read_bytes().splitlines(keepends=True):
                content = json.loads(line)
                lines[content["problem_id"], content["sample_index"]] = line
    with SamplesFile(out, expected) as file:
        for key in sorted(lines, key=lambda key: (place.get(key[0], len(place)), key)):
            if key not in file.finished:
                file.append_line(lines[key], key)
    for part in parts:
        part.unlink()
