"""Folders of data: which of their files are the asked split, of the asked configuration.

Known are folders of `datasets.Dataset.save_to_disk` and `DatasetDict.save_to_disk`, repositories of the hub that were
cloned (a `README.md` with `configs`, or files and folders named by split), and plain folders of files. What files
hold is left to `sources.py`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rectune.errors import UserError

log = logging.getLogger("rectune")

SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Words in the names of files and folders, and the split that they mean; those of the `datasets` library."""

_SHARD = re.compile(r"^(?P<split>\w+)-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that describe data and hold none."""


def split_files(
    folder: Path, *, config: str, split: str, source: str, is_data: Callable[[Path], bool]
) -> list[Path]:
    """The files of a folder that make up a split.

    Args:
        folder: It exists.
        config: Name of a configuration; "" for the only one.
        split: Name of the split; a folder whose files are of no split is all of it "train".
        source: What the user wrote, for messages.
        is_data: Whether a file can be read.

    Raises:
        UserError: There is no such split or configuration, several fit, or no file can be read.
    """
    configs = _readme_configs(folder, source)
    if configs:
        name = _choose_config(configs, config, source)
        entry = configs[name]
        if "data_files" not in entry:
            return _by_name(folder / str(entry.get("data_dir", ".")), split, source, is_data)
        return _listed(folder / str(entry.get("data_dir", ".")), entry["data_files"], split, source, is_data)
    if config:
        folder = folder / config
        if not folder.is_dir():
            raise UserError(f"has no configuration '{config}'", where=source)
    if (folder / "dataset_dict.json").is_file():
        return _saved(folder / _chosen_split(_splits_of(folder / "dataset_dict.json"), split, source), source)
    if (folder / "state.json").is_file():
        return _saved(folder, source)
    return _by_name(folder, split, source, is_data)


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


def _listed(
    folder: Path, data_files: Any, split: str, source: str, is_data: Callable[[Path], bool]
) -> list[Path]:
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
    return _readable(sorted(found), source, is_data)


def _readable(paths: list[Path], source: str, is_data: Callable[[Path], bool]) -> list[Path]:
    other = next((path for path in paths if not is_data(path)), None)
    if other is not None:
        raise UserError(f"its file {other.name} is of a kind that is not read", where=source)
    return paths


def _by_name(folder: Path, split: str, source: str, is_data: Callable[[Path], bool]) -> list[Path]:
    """The files whose names, or folders, say the split; all of them where none says any."""
    found = [
        path
        for path in sorted(folder.rglob("[!.]*"))
        if path.is_file()
        and is_data(path)
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
