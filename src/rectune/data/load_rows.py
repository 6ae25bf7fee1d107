"""Files, folders and hub datasets become rows in one Arrow file on disk; problems become a list.

Records stream through one at a time, so a million rows never are in memory; a second reading of the same
content with the same settings is the first one's file. What a record means is in `converters.py`, how a file
is taken apart in `readers.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable

from rectune.config import DataConfig
from rectune.data.converters import FORMATS, check_columns, detect_format, to_row
from rectune.data.faults import Faults
from rectune.data.readers import Records, open_source
from rectune.data.rows import Row, Turn
from rectune.data.schema import Notes
from rectune.errors import UserError, unknown_name

log = logging.getLogger("rectune")

FEATURES = datasets.Features(
    {
        "turns": [{"role": datasets.Value("string"), "content": datasets.Value("string"),
                   "supervised": datasets.Value("bool"), "fields": datasets.Value("string")}],
        "where": datasets.Value("string"),
        "source": datasets.Value("string"),
        "tools": datasets.Value("string"),
        "digest": datasets.Value("int64"),
    }
)  # fmt: skip
"""Columns of the rows on disk: a Row's fields, and 64 bits that equal rows share."""

_VERSION = 12  # of the cached files; raise it when a converter changes what it writes
_LOOK = 20  # records that the format is told from


def default_cache() -> Path:
    """Where rows and token ids are kept: `$RECTUNE_CACHE`, else `~/.cache/rectune`."""
    return Path(os.environ.get("RECTUNE_CACHE") or Path.home() / ".cache" / "rectune").expanduser()


def read_rows(source: str, *, options: DataConfig, cache_dir: Path | None = None) -> datasets.Dataset:
    """The rows of `source` as a memory-mapped dataset; `row_at` gives one of them as a `Row`.

    Says in the log ("rectune") the format, the number of rows and of duplicates, and what was left unread.

    Args:
        source: A `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` or `.arrow` file (`.gz` too), a folder of them or of
            `save_to_disk`, or a hub dataset id (`owner/name`, or `owner/name:config`; so for folders).
        options: Format, mapped columns, ignored fields, system message and split. `holdout` and `limit` are left to
            the caller, see `sampler.py`.
        cache_dir: Folder for the Arrow files; `default_cache()` where it is None.

    Raises:
        UserError: Anything wrong with the source or one of its records; `where` is `file:line`. All faulty records
            are then named in the log.
    """
    return intake(source, options=options, cache_dir=cache_dir).settle(options)


@dataclass(frozen=True)
class Intake:
    """What came of reading a source: rows on disk, and what there is to say about them.

    Attributes:
        source: As the user wrote it.
        format: Told or given.
        rows: How many records became rows.
        dataset: The rows; None where there is none, or there are faults that are not to be skipped.
        faults: Records that cannot be used.
    """

    source: str
    format: str
    rows: int
    dataset: datasets.Dataset | None
    notes: Notes
    faults: Faults

    def settle(self, options: DataConfig) -> datasets.Dataset:
        """Say it all in the log, and hand over the rows.

        Raises:
            UserError: There are faulty records that are not to be skipped, or no row.
        """
        hint = "mend or remove these rows, or leave them out with --rows.skip-bad-rows"
        self.faults.settle(self.rows + self.faults.count, skip=options.skip_bad_rows, hint=hint)
        self.notes.say(self.source)
        if self.dataset is None:
            raise UserError("has no row with a target", where=self.source)
        told = " (told from its first rows)" if options.format == "auto" and self.format != "mapping" else ""
        log.info("%s: %s rows, format %s%s", self.source, f"{self.rows:,}", self.format, told)
        if duplicates := count_duplicates(self.dataset):
            log.warning("%s: %s rows repeat an earlier one; kept", self.source, f"{duplicates:,}")
        return self.dataset


def intake(source: str, *, options: DataConfig, cache_dir: Path | None = None) -> Intake:
    """Read a source as `read_rows` does, but leave it to the caller what its faulty records mean."""
    records = open_source(source, split=options.split)
    format = _resolve_format(records, options)
    key = _key(_VERSION, records.fingerprint, format, options.columns, options.system, sorted(options.ignore))
    folder = (cache_dir or default_cache()) / "rows" / key
    path, kept = folder / "rows.arrow", folder / "notes.json"
    if not path.exists():
        notes, faults = Notes(), Faults(source)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"rows.arrow.{os.getpid()}"
        try:
            rows = _write(part, records, format, options, notes, faults)
            if not rows or (faults.count and not options.skip_bad_rows):
                return Intake(source, format, rows, None, notes, faults)
            kept.write_text(json.dumps({"notes": vars(notes), "faults": [faults.count, faults.first]}))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    found = json.loads(kept.read_text())
    notes = Notes(**{name: Counter(counts) for name, counts in found["notes"].items()})
    dataset = datasets.Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=key)
    return Intake(source, format, len(dataset), dataset, notes, Faults(source, *found["faults"]))


def row_at(dataset: datasets.Dataset, index: int) -> Row:
    """Row `index` of a dataset that `read_rows` gave."""
    return row_of(dataset[index])


def row_of(record: dict[str, Any]) -> Row:
    """The `Row` in one record of such a dataset."""
    turns = tuple(Turn(t["role"], t["content"], t["supervised"], t["fields"]) for t in record["turns"])
    return Row(turns, record["where"], record["source"], record["tools"])


def count_duplicates(dataset: datasets.Dataset) -> int:
    """How many rows say the same as an earlier one."""
    digests = dataset.with_format("numpy", columns=["digest"])[:]["digest"]
    return len(dataset) - len(np.unique(digests))


def _resolve_format(records: Records, options: DataConfig) -> str:
    first = list(itertools.islice(records.start(), _LOOK))
    look = [(where, record) for where, record in first if not isinstance(record, UserError)]
    if not look:
        wrong = next((record for _, record in first if isinstance(record, UserError)), None)
        raise wrong or UserError("has no rows", where=records.name)
    where, first_record = look[0]
    format = options.format
    if format == "auto" and options.columns:
        format = "mapping"
    elif format == "auto":
        format = detect_format([record for _, record in look], where)
    elif format not in (*FORMATS, "mapping"):
        raise unknown_name("format", format, [*FORMATS, "auto", "mapping"], where="rows.format")
    if options.columns or format == "mapping":
        check_columns(options.columns, first_record, where, format)
    return format


def _write(
    path: Path, records: Records, format: str, options: DataConfig, notes: Notes, faults: Faults
) -> int:
    """Write the rows that can be used, and note the others; returns how many were written."""
    with ArrowWriter(features=FEATURES, path=str(path), writer_batch_size=1000) as writer:
        for where, record in records.start():
            try:
                if isinstance(record, UserError):
                    raise record
                row = to_row(
                    record, where, format=format, columns=options.columns, system=options.system, ignore=options.ignore,
                    notes=notes,
                )  # fmt: skip
                if row is not None:
                    writer.write(_stored(row))
            except UserError as error:
                faults.add(error)
        rows, _ = writer.finalize()
    return int(rows)


def _stored(row: Row) -> dict[str, Any]:
    turns = [asdict(turn) for turn in row.turns]
    try:
        said = json.dumps([turns, row.tools], ensure_ascii=False).encode()
        (row.where + row.source).encode()
    except UnicodeEncodeError:
        raise UserError("a text holds half of a surrogate pair", where=row.where) from None
    digest = int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big", signed=True)
    return {"turns": turns, "where": row.where, "source": row.source, "tools": row.tools, "digest": digest}


def _key(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
