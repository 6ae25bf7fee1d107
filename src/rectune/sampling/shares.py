"""Sampling in several processes: each draws for its share of the problems into a file of its own; then they are merged.

A sample is named by seed, problem and index, not by who draws it, so the merged file has the lines that one process
would have written, in the order of the problems. What a killed call left in the parts is merged first by the next one,
whichever number of processes that has. Reading and checking a file is in `samples_file.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rectune.data.rows import Sample
from rectune.processes import share, wait_for_all
from rectune.sampling.samples_file import SamplesFile

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
