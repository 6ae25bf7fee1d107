"""Files, folders and hub datasets become rows in one Arrow file on disk; problems become a list.

Records stream through one at a time, so a million rows never are in memory; a second reading of the same
content with the same settings is the first one's file. What a record means is in `formats.py`, how a file
is taken apart in `sources.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable

from rectune.config import DataConfig
from rectune.data.formats import FORMATS, check_columns, detect_format, to_row
from rectune.data.rows import Row, Turn
from rectune.data.sources import Records, open_source
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

_VERSION = 2  # of the cached files; raise it when a converter changes what it writes
_LOOK = 20  # records that the format is told from


def default_cache() -> Path:
    """Where rows and token ids are kept: `$RECTUNE_CACHE`, else `~/.cache/rectune`."""
    return Path(os.environ.get("RECTUNE_CACHE") or Path.home() / ".cache" / "rectune").expanduser()


def read_rows(source: str, *, options: DataConfig, cache_dir: Path | None = None) -> datasets.Dataset:
    """The rows of `source` as a memory-mapped dataset; `row_at` gives one of them as a `Row`.

    Says the format, the number of rows and of duplicates in the log ("rectune").

    Args:
        source: A `.jsonl`, `.json`, `.csv` or `.parquet` file (`.gz` too), a folder of them, or a hub dataset
            id (`owner/name`, or `owner/name:config`).
        options: Format, mapped columns, system message and split. `holdout` and `limit` are left to the
            caller, see `order.py`.
        cache_dir: Folder for the Arrow files; `default_cache()` where it is None.

    Raises:
        UserError: Anything wrong with the source or one of its records; `where` is `file:line`.
    """
    records = open_source(source, split=options.split)
    format = _resolve_format(records, options)
    columns = {} if format != "mapping" else options.columns
    key = _key(_VERSION, records.fingerprint, format, columns, options.system)
    folder = (cache_dir or default_cache()) / "rows" / key
    path, notes = folder / "rows.arrow", folder / "notes.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"rows.arrow.{os.getpid()}"
        try:
            skipped = _write(part, records, format, columns, options.system)
            notes.write_text(json.dumps({"skipped": skipped}))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    dataset = datasets.Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=key)
    _say(source, format, options, len(dataset), count_duplicates(dataset), json.loads(notes.read_text()))
    return dataset


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
    look = list(itertools.islice(records, _LOOK))
    if not look:
        raise UserError("has no rows", where=records.name)
    where, first = look[0]
    if options.format == "mapping" or (options.format == "auto" and options.columns):
        check_columns(options.columns, first, where)
        return "mapping"
    if options.columns:
        raise UserError(
            f"says how columns map, but the format is {options.format}",
            where="rows.columns",
            hint="drop one of the two",
        )
    if options.format == "auto":
        return detect_format([record for _, record in look], where)
    if options.format not in FORMATS:
        raise unknown_name("format", options.format, [*FORMATS, "auto", "mapping"], where="rows.format")
    return options.format


def _write(path: Path, records: Records, format: str, columns: dict[str, str], system: str | None) -> int:
    """Write all rows; returns how many records were left out because nothing in them is a target."""
    skipped = 0
    with ArrowWriter(features=FEATURES, path=str(path), writer_batch_size=1000) as writer:
        for where, record in records:
            row = to_row(record, where, format=format, columns=columns, system=system)
            if row is None:
                skipped += 1
            else:
                writer.write(_stored(row))
        rows, _ = writer.finalize()
    if rows == 0:
        raise UserError("has no row with a target", where=records.name)
    return skipped


def _stored(row: Row) -> dict[str, Any]:
    turns = [asdict(turn) for turn in row.turns]
    try:
        said = json.dumps([turns, row.tools], ensure_ascii=False).encode()
        (row.where + row.source).encode()
    except UnicodeEncodeError:
        raise UserError("a text holds half of a surrogate pair", where=row.where) from None
    digest = int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big", signed=True)
    return {"turns": turns, "where": row.where, "source": row.source, "tools": row.tools, "digest": digest}


def _say(
    source: str, format: str, options: DataConfig, rows: int, duplicates: int, notes: dict[str, int]
) -> None:
    how = " (told from its first rows)" if options.format == "auto" and format != "mapping" else ""
    log.info("%s: %s rows, format %s%s", source, f"{rows:,}", format, how)
    if duplicates:
        log.warning("%s: %s rows repeat an earlier one; kept", source, f"{duplicates:,}")
    if notes["skipped"]:
        log.warning(
            "%s: %s rows without a generation marked correct; left out", source, f"{notes['skipped']:,}"
        )


def _key(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
