"""Where records come from: JSONL, JSON, CSV, Parquet and Arrow files, folders of them, and hub datasets.

Gives (where, record) one at a time, where `where` is `file:line`, and names what is broken. Of a folder, the asked
split of the asked configuration is read: of `Dataset.save_to_disk` and `DatasetDict.save_to_disk`, of a cloned
repository of the hub (a `README.md` with `configs`, or files and folders named by split), or of plain files. What a
record means is left to `converters.py`.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import yaml

from rectune.data.jsonl import LONGEST, check_text, jsonl_records, open_bytes, text_lines, unique_keys
from rectune.errors import UserError

log = logging.getLogger("rectune")

Record = dict[str, Any]
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

_CHUNK = 1 << 20  # bytes read at a time
_POINTER = b"version https://git-lfs"
_GAP = re.compile(r"[\s,]*")  # between two records of an array


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
    start: Callable[[], Iterator[tuple[str, Record | UserError]]]

    def __iter__(self) -> Iterator[tuple[str, Record]]:
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
        if _suffix(path) not in READERS:
            raise UserError("is not a file of rows", where=source, hint=f"known: {', '.join(READERS)}")
        return _files(source, [path])
    if _suffix(path) in READERS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source):
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
    name, _, config = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).splitlines()[:2]) or type(error).__name__
        raise UserError(
            f"is no file or folder, and cannot be loaded from the hub ({reason})",
            where=source,
            hint="a config of a hub dataset is given as owner/name:config",
        ) from None
    return Records(
        source,
        f"{name}:{config}:{split}:{dataset._fingerprint}",
        lambda: ((f"{source}[{i}]", _without_nulls(record)) for i, record in enumerate(dataset)),
    )


def _without_nulls(record: Record) -> Record:
    """A record of a columnar file, in which every object has the keys of all: without those that say nothing."""
    return {
        name: _pruned(value) if isinstance(value, dict | list) else value for name, value in record.items()
    }


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(inner) for key, inner in value.items() if inner is not None}
    return [_pruned(inner) for inner in value] if isinstance(value, list) else value


def _files(source: str, paths: list[Path]) -> Records:
    named = {path: source if source in PACKAGED else str(path) for path in paths}

    def start() -> Iterator[tuple[str, Record | UserError]]:
        for path in paths:
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise UserError("is a Git LFS pointer, not the data", where=path, hint="run git lfs pull")
            empty = True
            for line, record in READERS[_suffix(path)](path):
                empty = False
                yield f"{named[path]}:{line}", record
            if empty:
                raise UserError("is empty", where=path)

    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(f"\n{named[path]}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return Records(source, digest.hexdigest(), start)


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def read_csv(path: Path) -> Iterator[tuple[int, Record | UserError]]:
    """Lines below a header line, which says whether commas, tabs or semicolons separate; every field is text."""
    csv.field_size_limit(LONGEST)
    lines = (line for _, line in text_lines(path))
    first = next(lines, "")
    separator = next((mark for mark in ",\t;" if mark in first), ",")
    reader = csv.reader(itertools.chain([first], lines), strict=True, delimiter=separator)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None:
                header = fields
                if twice := [name for name in header if header.count(name) > 1]:
                    raise UserError(f"has two columns named '{twice[0]}'", where=f"{path}:{line}")
            elif fields:
                if len(fields) == len(header):
                    yield line, dict(zip(header, fields, strict=True))
                else:
                    what = f"has {len(fields)} fields, the header {len(header)}"
                    yield line, UserError(what, where=f"{path}:{line}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"malformed CSV ({error})", where=f"{path}:{line}") from None


def read_parquet(path: Path) -> Iterator[tuple[int, Record]]:
    """Rows, counted from 1."""
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, _without_nulls(record)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"is broken Parquet ({error})", where=f"{path}:{number + 1}") from None


def read_arrow(path: Path) -> Iterator[tuple[int, Record]]:
    """Rows of an Arrow stream (as the `datasets` library writes) or file, counted from 1."""
    number = 0
    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                batches: Any = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
            for batch in batches:
                for record in batch.to_pylist():
                    number += 1
                    yield number, _without_nulls(record)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"is broken Arrow ({error})", where=f"{path}:{number + 1}") from None


def read_json(path: Path) -> Iterator[tuple[int, Record | UserError]]:
    """Objects of one array, or of the array `data` of one object; JSON Lines under this name is read too."""
    chunks = _text_chunks(path)
    text = next(chunks, "")
    opening = re.match(r'\s*(\[|\{\s*"data"\s*:\s*\[)', text)
    if opening is None:
        for number, found in jsonl_records(path):
            if isinstance(found, UserError) and re.search(r"^\s*\{\s*$", text.partition("\n")[0]):
                what = 'is neither an array of objects, nor {"data": [...]}, nor one object a line'
                raise UserError(what, where=path, hint="write the rows as one array")
            yield number, found
        return
    at, line, decode = 0, 1, json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode
    between = opening.end()
    while True:
        between = _GAP.match(text, between).end()  # type: ignore[union-attr]  # matches always
        line += text.count("\n", at, between)
        at = between
        if text.startswith("]", at):
            _check_end(text[at + 1 :], chunks, opening[1] != "[", f"{path}:{line}")
            return
        try:
            record, between = decode(text, at)
        except UserError as error:
            raise UserError(error.what, where=f"{path}:{line}") from None
        except (ValueError, RecursionError) as error:
            if len(text) - at > LONGEST:
                raise UserError(
                    f"no record ends within {LONGEST >> 20} MiB", where=f"{path}:{line}"
                ) from None
            more = "".join(_some(chunks, len(text) - at))
            if not more:  # not cut off by the chunk, but wrong
                wrong_line = line + text.count("\n", at, getattr(error, "pos", at))
                reason = getattr(error, "msg", error)
                raise UserError(
                    f"malformed JSON ({reason}); nothing behind it in this file can be read",
                    where=f"{path}:{wrong_line}",
                    hint="mend the file, or write one object a line to a .jsonl file",
                ) from None
            text, at, between = text[at:] + more, 0, 0
            continue
        yield line, _object(record, text[at:between], f"{path}:{line}")


def _check_end(text: str, chunks: Iterator[str], in_object: bool, where: str) -> None:
    """UserError where something follows an array of records besides the end of the object that it is in."""
    rest = text.strip()
    for chunk in chunks:
        if len(rest) > 1:
            break
        rest = (rest + chunk).strip()
    if rest != "}" * in_object:
        shown = f"{rest[:40]}..." if len(rest) > 40 else rest
        what = f"has more behind its array of records ({shown})" if rest else "ends before its last }"
        raise UserError(what, where=where, hint="keep the array alone in the file")


def _object(record: object, text: str, where: str) -> Record | UserError:
    if not isinstance(record, dict):
        return UserError("the array holds something else than objects", where=where)
    try:
        check_text(text, record, where)
    except UserError as error:
        return error
    return record


def _some(chunks: Iterator[str], size: int) -> Iterator[str]:
    """Chunks of at least `size` characters in all, so that a long record is decoded few times over."""
    got = 0
    for chunk in chunks:
        got += len(chunk)
        yield chunk
        if got >= size:
            return


def _text_chunks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    with open_bytes(path) as file:
        while True:
            chunk = file.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise UserError("is not UTF-8", where=f"{path}:{line}", hint="convert the file") from None
            line += text.count("\n")
            yield text
            if not chunk:
                return


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Record | UserError]]]] = {
    ".jsonl": jsonl_records,
    ".jsonl.gz": jsonl_records,
    ".json": read_json,
    ".json.gz": read_json,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".tsv": read_csv,
    ".tsv.gz": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""Which reader takes which file, by the end of its name."""


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
    configs = _readme_configs(folder, source)
    if configs:
        name = _choose_config(configs, config, source)
        entry = configs[name]
        if "data_files" not in entry:
            return _by_name(folder / str(entry.get("data_dir", ".")), split, source)
        return _listed(folder / str(entry.get("data_dir", ".")), entry["data_files"], split, source)
    if config:
        folder = folder / config
        if not folder.is_dir():
            raise UserError(f"has no configuration '{config}'", where=source)
    if (folder / "dataset_dict.json").is_file():
        return _saved(folder / _chosen_split(_splits_of(folder / "dataset_dict.json"), split, source), source)
    if (folder / "state.json").is_file():
        return _saved(folder, source)
    return _by_name(folder, split, source)


def _saved(folder: Path, source: str) -> list[Path]:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote, whatever split it says it is."""
    state = _load(folder / "state.json")
    names = [str(file.get("filename")) for file in state.get("_data_files") or ()]
    found = [folder / name for name in names]
    if not found or not all(path.is_file() for path in found):
        raise UserError("a folder of save_to_disk that lacks files", where=source, hint="save it again")
    return found


def _splits_of(path: Path) -> list[str]:
    return [str(name) for name in _load(path).get("splits") or ()]


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=path) from None
    return value if isinstance(value, dict) else {}


def _chosen_split(splits: Sequence[str], split: str, source: str) -> str:
    if split not in splits:
        names = ", ".join(sorted(splits)) or "none"
        raise UserError(f"has no split '{split}'", where=source, hint=f"choose with --rows.split: {names}")
    return split


def _readme_configs(folder: Path, source: str) -> dict[str, Mapping[str, Any]]:
    """The configurations that the card of a dataset repository declares, by name."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    text = path.read_text("utf-8", "replace")
    found = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
    if found is None:
        return {}
    try:
        card = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise UserError(f"its header is no YAML ({error})", where=path) from None
    configs = card.get("configs") if isinstance(card, dict) else None
    return {
        str(entry.get("config_name", "default")): entry
        for entry in configs or ()
        if isinstance(entry, dict) and ("data_files" in entry or "data_dir" in entry)
    }


def _choose_config(configs: Mapping[str, Mapping[str, Any]], config: str, source: str) -> str:
    names = ", ".join(sorted(configs))
    if config:
        if config not in configs:
            raise UserError(f"has no configuration '{config}'", where=source, hint=f"known: {names}")
        return config
    if len(configs) == 1:
        return next(iter(configs))
    default = [name for name, entry in configs.items() if entry.get("default") or name == "default"]
    if len(default) != 1:
        hint = f"choose one as {source}:NAME, known: {names}"
        raise UserError("has several configurations", where=source, hint=hint)
    return default[0]


def _listed(folder: Path, data_files: Any, split: str, source: str) -> list[Path]:
    """The files that a card lists for a split: a pattern, several, or a pattern or several for each split."""
    if isinstance(data_files, dict):
        patterns = {str(name): given for name, given in data_files.items()}
    elif isinstance(data_files, list) and all(isinstance(item, dict) for item in data_files):
        patterns = {str(item.get("split", "train")): item.get("path", []) for item in data_files}
    else:
        patterns = {"train": data_files}
    given = patterns[_chosen_split(list(patterns), split, source)]
    texts = [given] if isinstance(given, str) else [str(item) for item in given]
    found: set[Path] = set()
    for pattern in texts:
        if "://" in pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise UserError(f"its card names files outside of it ({pattern})", where=source)
        matches = {path for path in folder.glob(pattern) if path.is_file()}
        if not matches:
            raise UserError(f"lacks the files of its split '{split}' ({pattern})", where=source)
        found |= matches
    return _readable(sorted(found), source)


def _readable(paths: list[Path], source: str) -> list[Path]:
    other = next((path for path in paths if _suffix(path) not in READERS), None)
    if other is not None:
        raise UserError(f"its file {other.name} is of a kind that is not read", where=source)
    return paths


def _by_name(folder: Path, split: str, source: str) -> list[Path]:
    """The files whose names, or folders, say the split; all of them where none says any."""
    found = [
        path
        for path in sorted(folder.rglob("[!.]*"))
        if path.is_file()
        and _suffix(path) in READERS
        and path.name not in _ABOUT
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise UserError("has no file of rows", where=source)
    named = {path: split_named(path.relative_to(folder)) for path in found}
    splits = {name for name in named.values() if name is not None}
    if not splits:
        if split != "train":
            raise UserError(f"has no split '{split}': its files are of none", where=source)
        return found
    split = _chosen_split(sorted(splits), SPLITS.get(split, split), source)
    chosen = [path for path in found if named[path] == split]
    homes = {_home(path.relative_to(folder)) for path in chosen}
    if len(homes) > 1:
        names = ", ".join(sorted(home or "." for home in homes))
        raise UserError(
            f"has split '{split}' in several folders ({names})",
            where=source,
            hint=f"choose one as {source}:NAME",
        )
    others = ", ".join(sorted(splits - {split})) or "none"
    names = ", ".join(path.name for path in chosen[:3]) + (" ..." if len(chosen) > 3 else "")
    log.info("%s: split %s (%s); other splits, not read: %s", source, split, names, others)
    left = [path.relative_to(folder).as_posix() for path in found if named[path] is None]
    if left:
        shown = ", ".join(left[:5]) + (" ..." if len(left) > 5 else "")
        log.warning("%s: files of no split, left out: %s", source, shown)
    return chosen


def split_named(relative: Path) -> str | None:
    """The split that a path says: `data/train-00000-of-00001.parquet`, `test.jsonl`, `validation/a.csv`."""
    if shard := _SHARD.match(relative.name.split(".")[0]):
        word = shard["split"]
        return SPLITS.get(word.lower(), word)
    for part in reversed(relative.parts):
        for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part):
            split = SPLITS.get(re.sub(r"(?<=[a-z])(set|data|split|file)$", "", word.lower()))
            if split is not None:
                return split
    return None


def _home(relative: Path) -> str:
    """The folder of a file without those named by a split or `data`: its configuration."""
    parts = [
        part for part in relative.parts[:-1] if part.lower() != "data" and split_named(Path(part)) is None
    ]
    return "/".join(parts)
