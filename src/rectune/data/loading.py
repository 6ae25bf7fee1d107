"""Sources become rows in one Arrow file on disk, or a list of problems.

A source is packaged data, a file, a folder or a hub dataset. Of a folder, one split of one configuration is read: of
`Dataset.save_to_disk` and `DatasetDict.save_to_disk`, of a cloned repository of the hub (a `README.md` with `configs`,
or files and folders named by split), or of plain files. Records stream through one at a time, so a million rows never
are in memory; a second reading of the same content with the same settings is the first one's file. What a record means
is in `converters.py`, how a file is taken apart in `readers.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import yaml

from rectune.config import DataConfig
from rectune.data.converters import (
    FORMATS,
    WEIGHT_NAMES,
    ProblemRecord,
    check_columns,
    detect_format,
    to_row,
)
from rectune.data.fields import Notes, Place
from rectune.data.readers import CHUNK, READERS, file_type, jsonl_records, without_nulls
from rectune.data.schema import Faults, Problem, RawRecord, Row, Turn
from rectune.errors import UserError, unknown_name
from rectune.records import RowWeights
from rectune.runtime.io import load_json

if TYPE_CHECKING:
    import datasets  # slow to import

log = logging.getLogger("rectune")

PACKAGED = {
    "gsm8k-calculations": "gsm8k_calculations_train.jsonl",
    "gsm8k-calculations-test": "gsm8k_calculations_test.jsonl",
}
"""Names of data that come with the package."""

SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Words in the names of files and folders, and the split that they mean; those of the `datasets` library."""

_SHARD = re.compile(r"^(?P<split>\w+)-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that describe data and hold none."""
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Records:
    """A source that can be gone through several times.

    Attributes:
        name: As the user wrote it.
        fingerprint: Changes when the content does.
        start: Begins a pass over (where, record), with the error in place of a record that cannot be read.
    """

    name: str
    fingerprint: str
    start: Callable[[], Iterator[tuple[str, RawRecord | UserError]]]

    def __iter__(self) -> Iterator[tuple[str, RawRecord]]:
        """(where, record) of each; raises the first error."""
        for where, record in self.start():
            if isinstance(record, UserError):
                raise record
            yield where, record


def open_source(source: str, *, split: str = "train") -> Records:
    """The records of packaged data, a file, a folder or a hub dataset id.

    Args:
        source: As the user wrote it; a configuration of a folder or a hub dataset is put behind it, as in
            `openai/gsm8k:main`.
        split: Of a hub dataset, or of a folder that has splits; a file is read whole.

    Raises:
        UserError: It is none of them, or lacks the split or configuration.
    """
    if source in PACKAGED:
        return _files(source, [Path(str(files("rectune") / "assets" / PACKAGED[source]))])
    path, config = local_path(source)
    if path.is_dir():
        found = split_files(path, config=config, split=split, source=source)
        return _files(source, found)
    if path.exists():
        if file_type(path) not in READERS:
            raise UserError("this is not a file of rows", where=source, hint=f"known: {', '.join(READERS)}")
        return _files(source, [path])
    if file_type(path) in READERS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source):
        raise UserError("no such file or folder", where=source)
    return from_hub(source, split=split)


def local_path(source: str) -> tuple[Path, str]:
    """The path that a source names, which need not exist, and the configuration behind it; "" for none."""
    path = Path(source).expanduser()
    folder, _, config = source.rpartition(":")
    if folder and not path.exists() and (named := Path(folder).expanduser()).is_dir():
        return named, config
    return path, ""


def from_hub(source: str, *, split: str) -> Records:
    """The records of `datasets.load_dataset`; a config is put behind the id, as in `openai/gsm8k:main`."""
    import datasets

    name, _, config = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).splitlines()[:2]) or type(error).__name__
        raise UserError(
            f"this is not a file or folder, and cannot be loaded from the hub ({reason})",
            where=source,
            hint="a config of a hub dataset is given as owner/name:config",
        ) from None
    return Records(
        source,
        f"{name}:{config}:{split}:{dataset._fingerprint}",
        lambda: ((f"{source}[{i}]", without_nulls(record)) for i, record in enumerate(dataset)),
    )


def _files(source: str, paths: list[Path]) -> Records:
    named = {path: source if source in PACKAGED else str(path) for path in paths}

    def start() -> Iterator[tuple[str, RawRecord | UserError]]:
        for path in paths:
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise UserError(
                        "the file is a Git LFS pointer, not the data", where=path, hint="run git lfs pull"
                    )
            empty = True
            for line, record in READERS[file_type(path)](path):
                empty = False
                yield f"{named[path]}:{line}", record
            if empty:
                raise UserError("the file is empty", where=path)

    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(f"\n{named[path]}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return Records(source, digest.hexdigest(), start)


def split_files(folder: Path, *, config: str, split: str, source: str) -> list[Path]:
    """The files of a folder that make up a split.

    Args:
        folder: It exists.
        config: Name of a configuration; "" for the only one.
        split: Name of the split; a folder whose files are of no split is all of it "train".
        source: What the user wrote, for messages.

    Raises:
        UserError: There is no such split or configuration, several fit, or no file can be read.
    """
    if configs := _readme_configs(folder):
        entry = configs[_choose_config(configs, config, source)]
        folder = folder / str(entry.get("data_dir", "."))
        if "data_files" in entry:
            return _listed(folder, entry["data_files"], split, source)
        return _by_name(folder, split, source)
    if config:
        folder = folder / config
        if not folder.is_dir():
            raise UserError(f"the dataset has no configuration '{config}'", where=source)
    if (folder / "dataset_dict.json").is_file():
        listed = _json_object(folder / "dataset_dict.json").get("splits")
        splits = [str(name) for name in listed] if isinstance(listed, list) else []
        folder = folder / _chosen_split(splits, split, source)
    elif not (folder / "state.json").is_file():
        return _by_name(folder, split, source)
    state = _json_object(folder / "state.json")  # of `Dataset.save_to_disk`, whatever split it says it is
    files = state.get("_data_files")
    found = [folder / str(file.get("filename")) for file in files] if isinstance(files, list) else []
    if not found or not all(path.is_file() for path in found):
        raise UserError("a folder of save_to_disk that lacks files", where=source, hint="save it again")
    return found


def _json_object(path: Path) -> RawRecord:
    try:
        value = load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"the file cannot be read ({error})", where=path) from None
    return value if isinstance(value, dict) else {}


def _chosen_split(splits: Iterable[str], split: str, source: str) -> str:
    if split not in splits:
        names = ", ".join(sorted(splits)) or "none"
        raise UserError(
            f"the dataset has no split '{split}'", where=source, hint=f"choose with --split: {names}"
        )
    return split


def _readme_configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The configurations that the card of a dataset repository declares, by name."""
    path = folder / "README.md"
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    header = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
    try:
        card = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError as error:
        raise UserError(f"the header is not valid YAML ({error})", where=path) from None
    configs = card.get("configs") if isinstance(card, dict) else None
    return {
        str(entry.get("config_name", "default")): entry
        for entry in configs or ()
        if isinstance(entry, dict) and entry.keys() & {"data_files", "data_dir"}
    }


def _choose_config(configs: Mapping[str, Mapping[str, Any]], config: str, source: str) -> str:
    names = ", ".join(sorted(configs))
    if config and config not in configs:
        raise UserError(f"the dataset has no configuration '{config}'", where=source, hint=f"known: {names}")
    default = [name for name, entry in configs.items() if entry.get("default") or name == "default"]
    fit = [config] if config else list(configs) if len(configs) == 1 else default
    if len(fit) != 1:
        hint = f"choose one as {source}:NAME, known: {names}"
        raise UserError("the dataset has several configurations", where=source, hint=hint)
    return fit[0]


def _listed(folder: Path, data_files: Any, split: str, source: str) -> list[Path]:
    """The files that a card lists for a split: a pattern, several, or a pattern or several for each split."""
    if isinstance(data_files, dict):
        patterns = {str(name): given for name, given in data_files.items()}
    elif isinstance(data_files, list) and all(isinstance(item, dict) for item in data_files):
        patterns = {str(item.get("split", "train")): item.get("path", []) for item in data_files}
    else:
        patterns = {"train": data_files}
    given = patterns[_chosen_split(patterns, split, source)]
    found: set[Path] = set()
    for pattern in [given] if isinstance(given, str) else map(str, given):
        if "://" in pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise UserError(f"the dataset card names files outside the folder ({pattern})", where=source)
        matches = {path for path in folder.glob(pattern) if path.is_file()}
        if not matches:
            raise UserError(f"the folder lacks the files of split '{split}' ({pattern})", where=source)
        found |= matches
    for path in found:
        if file_type(path) not in READERS:
            raise UserError(f"files like {path.name} cannot be read", where=source)
    return sorted(found)


def _by_name(folder: Path, split: str, source: str) -> list[Path]:
    """The files whose names, or folders, say the split; all of them where none says any."""
    found = {
        path.relative_to(folder): split_named(path.relative_to(folder))
        for path in sorted(folder.rglob("[!.]*"))
        if path.is_file() and file_type(path) in READERS and path.name not in _ABOUT
    }
    found = {path: name for path, name in found.items() if not any(p.startswith(".") for p in path.parts)}
    if not found:
        raise UserError("the folder has no file of rows", where=source)
    splits = {name for name in found.values() if name is not None}
    if not splits:
        if split != "train":
            raise UserError(f"the dataset has no split '{split}': its files are not split", where=source)
        return [folder / path for path in found]
    split = _chosen_split(splits, SPLITS.get(split, split), source)
    chosen = [path for path, name in found.items() if name == split]
    configs = sorted({_config_named(path) or "." for path in chosen})
    if len(configs) > 1:
        what = f"has split '{split}' in several folders ({', '.join(configs)})"
        raise UserError(what, where=source, hint=f"choose one as {source}:NAME")
    others = ", ".join(sorted(splits - {split})) or "none"
    names = _first([path.name for path in chosen], 3)
    log.info("%s: split %s (%s); other splits, not read: %s", source, split, names, others)
    if left := [path.as_posix() for path, name in found.items() if name is None]:
        log.warning("%s: files of no split, left out: %s", source, _first(left, 5))
    return [folder / path for path in chosen]


def _first(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")


def split_named(relative: Path) -> str | None:
    """The split that a path says: `data/train-00000-of-00001.parquet`, `test.jsonl`, `validation/a.csv`."""
    if shard := _SHARD.match(relative.name.split(".")[0]):
        return SPLITS.get(shard["split"].lower(), shard["split"])
    for part in reversed(relative.parts):
        for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part):
            split = SPLITS.get(re.sub(r"(?<=[a-z])(set|data|split|file)$", "", word.lower()))
            if split is not None:
                return split
    return None


def _config_named(relative: Path) -> str:
    """The folders of a file but those named by a split or `data`: its configuration."""
    return "/".join(
        part for part in relative.parts[:-1] if part.lower() != "data" and split_named(Path(part)) is None
    )


_TEXT = pyarrow.string()
_TURN = {
    "role": _TEXT,
    "content": _TEXT,
    "supervised": pyarrow.bool_(),
    "fields": _TEXT,
    "weight": pyarrow.float64(),
}
_SCHEMA = pyarrow.schema(
    {
        "turns": pyarrow.list_(pyarrow.struct(_TURN.items())),
        "where": _TEXT,
        "source": _TEXT,
        "tools": _TEXT,
        "digest": pyarrow.int64(),
    }
)
"""Columns of the rows on disk: a Row's fields, and 64 bits that equal rows share."""

_VERSION = 13  # of the cached files; raise it when a converter changes what it writes
_LOOK = 20  # records that the format is inferred from
_BATCH = 1000  # rows that are written together


def default_cache() -> Path:
    """Where rows and token ids are kept: `$RECTUNE_CACHE`, else `~/.cache/rectune`."""
    return Path(os.environ.get("RECTUNE_CACHE") or Path.home() / ".cache" / "rectune").expanduser()


def read_rows(source: str, *, options: DataConfig, cache_dir: Path | None = None) -> datasets.Dataset:
    """The rows of `source` as a memory-mapped dataset; `row_at` gives one of them as a `Row`.

    Says in the log ("rectune") the format, the number of rows and of duplicates, and what was left unread.

    Args:
        source: A `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` or `.arrow` file (`.gz` too), a folder of them or of
            `save_to_disk`, or a hub dataset id (`owner/name`, or `owner/name:config`; so for folders).
        options: Format, mapped columns, ignored fields, system message and split. How many rows are used, and which of
            them are kept aside, is left to the caller, see `sampler.py`.
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
        format: Inferred or given.
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
        hint = "fix or remove these rows, or leave them out with --skip-bad-rows"
        self.faults.settle(self.rows + self.faults.count, skip=options.skip_bad_rows, hint=hint)
        self.notes.say(self.source)
        if self.dataset is None:
            raise UserError("no row has a target", where=self.source)
        inferred = options.data_format == "auto" and self.format != "mapping"
        how = " (inferred from its first rows)" if inferred else ""
        log.info("%s: %s rows, format %s%s", self.source, f"{self.rows:,}", self.format, how)
        given = sum(self.notes.read[name] for name in WEIGHT_NAMES)
        if 0 < given < self.rows:
            log.warning("%s: %s rows have no weight; it is 1", self.source, f"{self.rows - given:,}")
        if duplicates := count_duplicates(self.dataset):
            log.warning("%s: %s rows repeat an earlier one; kept", self.source, f"{duplicates:,}")
        return self.dataset


def intake(source: str, *, options: DataConfig, cache_dir: Path | None = None) -> Intake:
    """Read a source as `read_rows` does, but leave it to the caller what its faulty records mean."""
    import datasets
    from datasets.table import MemoryMappedTable

    records = open_source(source, split=options.split)
    format = resolve_format(records, options)
    settings = (options.columns, options.system_prompt, sorted(options.ignore_fields))
    parts = json.dumps([_VERSION, records.fingerprint, format, *settings], sort_keys=True)
    key = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
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


def row_of(record: Mapping[str, Any]) -> Row:
    """The `Row` in one record of such a dataset."""
    turns = tuple(
        Turn(t["role"], t["content"], t["supervised"], t["fields"], t["weight"]) for t in record["turns"]
    )
    return Row(turns, record["where"], record["source"], record["tools"])


def count_duplicates(dataset: datasets.Dataset) -> int:
    """How many rows say the same as an earlier one."""
    digests = dataset.with_format("numpy", columns=["digest"])[:]["digest"]
    return len(dataset) - len(np.unique(digests))


def weights_of(dataset: datasets.Dataset) -> RowWeights | None:
    """The weights of all answers to learn from; None where all are 1."""
    parts = []
    for batch in dataset.select_columns(["turns"]).with_format("arrow").iter(1000):
        turns = batch["turns"].combine_chunks().flatten()
        parts.append(turns.field("weight").filter(turns.field("supervised")).to_numpy())
    weight = np.concatenate([np.empty(0), *parts])
    if (weight == 1).all():
        return None
    return RowWeights(
        mean=float(weight.mean()),
        min=float(weight.min()),
        max=float(weight.max()),
        zero=float((weight == 0).mean()),
    )


def resolve_format(records: Records, options: DataConfig) -> str:
    """The format of a source: given, or inferred from its first records.

    Raises:
        UserError: No format fits, or the settings name one or a column that is not there.
    """
    first = list(itertools.islice(records.start(), _LOOK))
    look = [(where, record) for where, record in first if not isinstance(record, UserError)]
    if not look:
        wrong = next((record for _, record in first if isinstance(record, UserError)), None)
        raise wrong or UserError("the file has no rows", where=records.name)
    where, first_record = look[0]
    format = options.data_format
    if format == "auto" and options.columns:
        format = "mapping"
    elif format == "auto":
        format = detect_format([record for _, record in look], where)
    elif format not in (*FORMATS, "mapping"):
        raise unknown_name("format", format, [*FORMATS, "auto", "mapping"], where="data_format")
    if options.columns or format == "mapping":
        check_columns(options.columns, first_record, where, format)
    return format


def _write(
    path: Path, records: Records, format: str, options: DataConfig, notes: Notes, faults: Faults
) -> int:
    """Write the rows that can be used, and note the others; returns how many were written."""

    def usable() -> Iterator[RawRecord]:
        for where, record in records.start():
            try:
                if isinstance(record, UserError):
                    raise record
                row = to_row(record, where, format, options, notes)
                if row is not None:
                    yield _stored(row)
            except UserError as error:
                faults.add(error)

    count, rows = 0, usable()
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, _SCHEMA) as writer:
        while batch := list(itertools.islice(rows, _BATCH)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=_SCHEMA))
            count += len(batch)
    return count


def _stored(row: Row) -> RawRecord:
    turns = [asdict(turn) for turn in row.turns]
    try:
        texts = [{name: turn[name] for name in turn if name != "weight"} for turn in turns]
        said = json.dumps([texts, row.tools], ensure_ascii=False).encode()
        (row.where + row.source).encode()
    except UnicodeEncodeError:
        raise UserError("a text contains half of a surrogate pair", where=row.where) from None
    digest = int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big", signed=True)
    return {"turns": turns, "where": row.where, "source": row.source, "tools": row.tools, "digest": digest}


def read_problems(path: Path | str) -> list[Problem]:
    """The problems of a `.jsonl` file, one object a line; the fields are those of `ProblemRecord`.

    Says in the log ("rectune") which fields were left unread, and each faulty line.

    Raises:
        UserError: A line is malformed, lacks a field, or repeats a problem_id; or the file has no problem.
    """
    notes, faults = Notes(), Faults(str(path))
    problems = [
        found for found in problems_of(path, notes) if isinstance(found, Problem) or faults.add(found)
    ]
    faults.settle(len(problems) + faults.count)
    if not problems:
        raise UserError("the file has no problems", where=path)
    notes.say(str(path))
    return problems


def problems_of(path: Path | str, notes: Notes) -> Iterator[Problem | UserError]:
    """Each problem of a file, or what is wrong with it."""
    seen: dict[str, str] = {}
    for number, record in jsonl_records(path):
        if isinstance(record, UserError):
            yield record
            continue
        place = Place(f"{path}:{number}")
        try:
            problem = ProblemRecord.read(record, place).problem(str(number), record, place)
            if problem.problem_id in seen:
                first = seen[problem.problem_id]
                raise place.error(f"repeats the problem_id '{problem.problem_id}' of {first}")
        except UserError as error:
            notes.refused.update(place.refused)
            yield error
            continue
        seen[problem.problem_id] = place.where
        notes.add(place)
        yield problem
