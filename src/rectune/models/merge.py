"""Models between a base model and what was tuned from it, without training: theta = base + t (tuned - base).

    OUTPUT_DIR/at-0.5/            a folder that transformers and every verb loads
    OUTPUT_DIR/at-0.5/merge.json  what it was made of

mergekit calls this `task_arithmetic` with `lambda` t, or `linear` with weights 1 - t and t; a mean of several tuned
models is its `linear`. Tensors are read, merged in float32 and written block by block, so the memory does not depend
on the size of the models. t = 0 and t = 1 are the models themselves, bit for bit. An adapter is the difference from
the base model, so only its scale changes, and the result is an adapter.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from rectune.config import MergeConfig
from rectune.data.trained_prompt import MERGE, run_prompt
from rectune.errors import UserError
from rectune.models.folder import TOKENIZER_FILES, adapter_folder, base_of, check_weights, find_folder
from rectune.models.load import load_config, load_outline, load_tokenizer
from rectune.models.lora import check_adapter, need_peft
from rectune.records import MergedModel, read_record, write_record
from rectune.runtime.io import (
    check_writable,
    fsync,
    load_json,
    lock,
    replace_folder,
    translate_disk_errors,
    write_json,
)

log = logging.getLogger("rectune")

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What safetensors calls a dtype."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

BLOCK = 1 << 24
"""Elements of a tensor that are merged at a time, 64 MiB in float32, in whole rows."""

Kind = tuple[torch.dtype, tuple[int, ...]]
"""Dtype and shape of a tensor."""

COPIED = (
    "config.json", "generation_config.json", *TOKENIZER_FILES, "*token*.json", "merges.txt", "*.jinja",
    "additional_chat_templates/*.jinja", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""Files beside the weights that a merged folder gets from the tuned model."""

ADAPTER = "adapter_model.safetensors"
_FACTORS = ("lora_A.weight", "lora_B.weight")

_UNCHECKED = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "tie_word_embeddings", "initializer_range", "max_position_embeddings",
}  # fmt: skip
"""Settings of a config that models may differ in: they do not change what is computed from the same weights."""


def at_folder(at: float) -> str:
    """The name of the folder of a merged model: `at-0.5`."""
    return f"at-{repr(float(at)).removesuffix('.0')}"


def merge(config: MergeConfig) -> list[Path]:
    """Write a merged model for each of `config.at`; those that are there already, of the same models, stay.

    Returns:
        Their folders, OUTPUT_DIR/at-T.

    Raises:
        UserError: Models that cannot be merged (another architecture, shape or vocabulary, quantised, damaged,
            adapters mixed with whole models), t outside [0, 1], folders with other content, or a full disk. Nothing is
            written then but what is complete.
    """
    if not config.at:
        raise UserError(
            "nothing to write", where="--at", hint="give shares of the way, such as 0.25,0.5,0.75"
        )
    for at in config.at:
        if not 0 <= at <= 1:
            hint = "0 is the base model, 1 the tuned one; beyond them (extrapolation) is not supported"
            raise UserError(f"must be from 0 to 1 (got {at:g})", where="--at", hint=hint)
    check_writable(config.output_dir)
    sources = open_sources(config.base, config.tuned, config.weights)
    todo = {
        at: folder
        for at in sorted(set(config.at))
        if not _is_there(folder := config.output_dir / at_folder(at), sources, at)
    }
    _check_space(config.output_dir, sources.bytes * len(todo))
    with lock(config.output_dir, "merging"), translate_disk_errors(config.output_dir):
        for at, folder in todo.items():
            log.info("writing %s (%.2f GiB)", folder, sources.bytes / 2**30)
            sources.write(folder, at)
    return [config.output_dir / at_folder(at) for at in sorted(set(config.at))]


def _is_there(folder: Path, sources: Sources, at: float) -> bool:
    """Whether the folder has this merged model. Raises `UserError` for other content."""
    if not folder.exists():
        return False
    path, hint = folder / MERGE, "remove it, or give another --output-dir"
    if not path.is_file():
        raise UserError("the folder has other content", where=folder, hint=hint)
    there, wanted = read_record(path, MergedModel), sources.record(at)
    if there.model_copy(update={"rectune": wanted.rectune}) != wanted:
        what = f"the folder has another merged model (of {', '.join(there.tuned)} at {there.at:g})"
        raise UserError(what, where=folder, hint=hint)
    if any(file.stat().st_mtime > path.stat().st_mtime for file in sources.files):
        raise UserError("the models have changed since this folder was written", where=folder, hint=hint)
    log.info("%s is already there", folder)
    return True


def _check_space(out: Path, needed: int) -> None:
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        sizes = f"{needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free"
        raise UserError(f"not enough space: {sizes}", where=out, hint="free some space, or give fewer --at")


def open_sources(base: str | None, tuned: Sequence[str], weights: Sequence[float] = ()) -> Sources:
    """The models to merge, checked as far as it shows without reading weights.

    Args:
        base: Name of the base model; None: of an adapter or a run, the model that it was trained from.
        tuned: Names of tuned models, all adapters or all whole models; of several, their mean is the tuned model.
        weights: Of the mean; empty: equal.

    Raises:
        UserError: As `merge`.
    """
    if not tuned:
        raise UserError("no tuned model", where="--tuned", hint="give the folder of a run or of a model")
    if weights and (len(weights) != len(tuned) or any(weight <= 0 for weight in weights)):
        raise UserError(f"needs a positive number for each of {len(tuned)} tuned models", where="--weights")
    shares = tuple(weight / sum(weights) for weight in weights) or (1 / len(tuned),) * len(tuned)
    adapters = [adapter_folder(name) for name in tuned]
    if any(adapters) and not all(adapters):
        whole = tuned[adapters.index(None)]
        hint = "give adapters only, or merge each into its base model first (train with --merge-adapter)"
        raise UserError("is a whole model, the others are adapters", where=whole, hint=hint)
    name = base or _base_of(tuned[0], adapters[0])
    if adapter_folder(name) is not None:
        raise UserError(
            "is an adapter", where=f"--base {name}", hint="give the whole model that it belongs to"
        )
    folders = [folder for folder in adapters if folder is not None]
    sources = (AdapterSources if folders else ModelSources).open(name, tuned, shares)
    _check_tokenizers(name, tuned)
    return sources


def _base_of(tuned: str, adapter: Path | None) -> str:
    if adapter is not None:
        return base_of(adapter)
    if (run := run_prompt(tuned)) is None or not run.base:
        raise UserError("missing; the base model is known of runs and adapters only", where="--base")
    log.info("base model: %s, from which %s was trained", run.base, tuned)
    return run.base


def _check_tokenizers(base: str, tuned: Sequence[str]) -> None:
    """Raise `UserError` for models whose token ids stand for different tokens, or which are prompted differently."""
    first, *others = [load_tokenizer(name) for name in (base, *tuned)]
    ids = first.get_vocab()
    for name, tokenizer in zip(tuned, others, strict=True):
        if (vocabulary := tokenizer.get_vocab()) != ids:
            token = min(vocabulary.items() ^ ids.items(), key=lambda entry: (entry[1], entry[0]))[0]
            what = f"has another vocabulary than {base}: {token!r} is {vocabulary.get(token)}, not {ids.get(token)}"
            raise UserError(
                what, where=name, hint="a model can be merged with the one that it was tuned from"
            )
        if tokenizer.chat_template != others[0].chat_template:
            what = f"has another chat template than {tuned[0]}, so that their mean has none"
            raise UserError(what, where=name, hint="merge models that were trained with the same template")


@dataclass(frozen=True)
class Sources:
    """Models to merge.

    Attributes:
        base: Name of the base model.
        tuned: Names of the tuned models.
        weights: Of their mean; they add up to 1.
    """

    base: str
    tuned: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def bytes(self) -> int:
        """Size of a merged folder's weights."""
        raise NotImplementedError

    @property
    def files(self) -> list[Path]:
        """The weights that are read."""
        raise NotImplementedError

    def record(self, at: float) -> MergedModel:
        """The content of merge.json."""
        return MergedModel(
            rectune=version("rectune"),
            base=_place(self.base),
            tuned=[_place(name) for name in self.tuned],
            weights=list(self.weights),
            at=at,
        )

    def write(self, folder: Path, at: float) -> None:
        """Write the merged model, all of it or nothing. Integer tensors that differ are a `UserError`."""
        with replace_folder(folder) as aside:
            self.write_into(aside, at)
            write_record(aside / MERGE, self.record(at))

    def write_into(self, folder: Path, at: float) -> None:
        raise NotImplementedError


def _place(name: str) -> str:
    """A folder's absolute path; other names as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def copy_files(source: Path, target: Path) -> None:
    """Copy config, tokenizer, templates and licence."""
    for pattern in dict.fromkeys(COPIED):
        for file in source.glob(pattern):
            place = target / file.relative_to(source)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)


# Whole models


@dataclass(frozen=True)
class StoredModel:
    """The tensors in the folder of a model, read when they are needed.

    Attributes:
        name: For messages.
        folder: Where it lies.
        config: Of the model.
        files: Name of a tensor to its file.
        kinds: Name of a tensor to dtype and shape.
    """

    name: str
    folder: Path
    config: PreTrainedConfig
    files: Mapping[str, Path]
    kinds: Mapping[str, Kind]

    @classmethod
    def open(cls, name: str) -> StoredModel:
        """Read the headers of the weights. Raises `UserError` for a model that could not be loaded."""
        folder = find_folder(name) or _download(name)
        config = load_config(folder)
        whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        shards = [whole] if whole.is_file() else [folder / file for file in _weight_map(index).values()]
        files, kinds = {}, {}
        for file in sorted(set(shards)):
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(key)
                    if (dtype := DTYPES.get(part.get_dtype())) is None:
                        raise UserError(f"{key} is {part.get_dtype()}, which cannot be merged", where=file)
                    files[key], kinds[key] = file, (dtype, tuple(part.get_shape()))
        if absent := [] if whole.is_file() else sorted(_weight_map(index).keys() - files.keys()):
            raise UserError(
                f"{absent[0]} is in the index but not in its file", where=index, hint="copy it again"
            )
        return cls(name, folder, config, files, kinds)

    def read(self, key: str, rows: slice = slice(None)) -> Tensor:
        """Rows of a tensor, as they are stored."""
        with safe_open(self.files[key], "pt") as tensors:
            if not self.kinds[key][1]:  # a single number
                return tensors.get_tensor(key)  # type: ignore[no-any-return]
            return tensors.get_slice(key)[rows]  # type: ignore[no-any-return]


def _weight_map(index: Path) -> dict[str, str]:
    return dict(load_json(index)["weight_map"])


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.safetensors", "*.safetensors.index.json", *COPIED])
        )
    except (OSError, ValueError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        what, hint = (
            f"no folder, and it cannot be downloaded ({line})",
            "give its folder, as --base or --tuned",
        )
        raise UserError(what, where=name, hint=hint) from None


@dataclass(frozen=True)
class ModelSources(Sources):
    """Whole models.

    Attributes:
        models: The base model and the tuned ones.
        keys: For each of `models`, a tensor's name in the merged folder to its name there.
    """

    models: tuple[StoredModel, ...] = ()
    keys: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def open(cls, base: str, tuned: Sequence[str], weights: Sequence[float]) -> ModelSources:
        """Raises `UserError` for models of another architecture or shape, or that lack tensors."""
        models = [StoredModel.open(name) for name in (base, *tuned)]
        for model in models[1:]:
            _check_configs(models[0], model)
        like = models[1]
        keys = [_keys(model, like) for model in models]
        for model, of in zip(models, keys, strict=True):
            for key, there in of.items():
                (here_dtype, here), (dtype, shape) = like.kinds[key], model.kinds[there]
                if shape != here:
                    what = f"{there} is {list(shape)}, but {list(here)} in {like.name}"
                    raise UserError(what, where=model.name, hint="the models are of different sizes")
                if dtype.is_floating_point != here_dtype.is_floating_point:
                    raise UserError(f"{there} is {dtype}, but {here_dtype} in {like.name}", where=model.name)
        return cls(base, tuple(tuned), tuple(weights), tuple(models), tuple(keys))

    @property
    def kinds(self) -> dict[str, Kind]:
        """Name of each tensor of the merged folder to the widest dtype that it is stored in, and its shape."""
        kinds = {}
        for key, (_, shape) in self.models[1].kinds.items():
            if all(key in keys for keys in self.keys):  # else a buffer that is no longer read
                stored = [
                    model.kinds[keys[key]][0] for model, keys in zip(self.models, self.keys, strict=True)
                ]
                kinds[key] = (reduce(torch.promote_types, stored), shape)
        return kinds

    @property
    def bytes(self) -> int:
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.kinds.values())

    @property
    def files(self) -> list[Path]:
        return [file for model in self.models for file in set(model.files.values())]

    def merged(self, key: str, rows: slice, dtype: torch.dtype, at: float) -> Tensor:
        """Rows of a tensor of the merged model."""
        if not dtype.is_floating_point:
            return self._equal(key, rows)
        base, *tuned = zip(self.models, self.keys, strict=True)
        if at == 0:
            return base[0].read(base[1][key], rows).to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        mean, total = torch.empty(0), 0.0
        for (model, keys), weight in zip(tuned, self.weights, strict=True):
            tensor, total = model.read(keys[key], rows).to(wide), total + weight
            mean = torch.lerp(mean, tensor, weight / total) if mean.numel() else tensor
        if at == 1:
            return mean.to(dtype)
        return torch.lerp(base[0].read(base[1][key], rows).to(wide), mean, at).to(dtype)

    def _equal(self, key: str, rows: slice) -> Tensor:
        """Rows of a tensor of whole numbers, which have to be the same in all models."""
        first, *others = zip(self.models, self.keys, strict=True)
        tensor = first[0].read(first[1][key], rows)
        for model, keys in others:
            if not torch.equal(tensor, model.read(keys[key], rows)):
                what = f"{key} has whole numbers, which cannot be merged, and others than {self.base}"
                raise UserError(what, where=model.name)
        return tensor

    def write_into(self, folder: Path, at: float) -> None:
        """Weights in the files of the first tuned model, and its config and tokenizer."""
        like, kinds = self.models[1], self.kinds
        copy_files(like.folder, folder)
        files = {key: like.files[key].name for key in kinds}
        for file in sorted(set(files.values())):
            here = {key: kind for key, kind in kinds.items() if files[key] == file}
            write_tensors(folder / file, here, lambda key, rows: self.merged(key, rows, kinds[key][0], at))
        if set(files.values()) != {"model.safetensors"}:
            index = {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(files.items()))}
            write_json(folder / "model.safetensors.index.json", index, indent=2)
        _write_dtype(folder / "config.json", (dtype for dtype, _ in kinds.values()))


def _write_dtype(path: Path, dtypes: Iterable[torch.dtype]) -> None:
    """Name the dtype of the weights in config.json, where it says another one."""
    widest = max((d for d in dtypes if d.is_floating_point), key=lambda d: d.itemsize, default=None)
    content = load_json(path)
    named = str(widest).removeprefix("torch.")
    for entry in ("dtype", "torch_dtype"):
        if widest is not None and content.get(entry) not in (None, named):
            write_json(path, content | {entry: named}, indent=2)


def write_tensors(path: Path, kinds: Mapping[str, Kind], value: Callable[[str, slice], Tensor]) -> None:
    """Write a safetensors file block by block: its header says beforehand where each tensor lies.

    Args:
        path: The file.
        kinds: Name to dtype and shape.
        value: Rows of the tensor of a name.
    """
    order = sorted(kinds, key=lambda key: (-kinds[key][0].itemsize, key))  # so that each is aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in order:
        dtype, shape = kinds[key]
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            for rows in _blocks(kinds[key][1]):
                file.write(value(key, rows).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    fsync(path)


def _blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Rows of a tensor in blocks of `BLOCK` elements, or of one row."""
    if math.prod(shape) <= BLOCK:
        yield slice(None)
        return
    step = max(1, BLOCK // math.prod(shape[1:]))
    for begin in range(0, shape[0], step):
        yield slice(begin, begin + step)


def _check_configs(base: StoredModel, model: StoredModel) -> None:
    """Raise `UserError` for models that compute something else from the same weights; names the first setting."""
    here, there = (_settings(stored.config) for stored in (model, base))
    for key in ("model_type", *sorted(here.keys() | there.keys())):
        if here.get(key) != there.get(key):
            what = f"is another model than {base.name}: {key} is {here.get(key)!r}, not {there.get(key)!r}"
            raise UserError(
                what, where=model.name, hint="a model can be merged with the one that it was tuned from"
            )


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    dropped = ("dropout", "pdrop")
    return {k: v for k, v in config.to_dict().items() if k not in _UNCHECKED and not k.endswith(dropped)}


def _keys(model: StoredModel, like: StoredModel) -> dict[str, str]:
    """Name of each tensor of `like` to its name in `model`.

    They are the same but where one of them stores a tied head apart from the embedding, leaves out the prefix of the
    body, or has a buffer that transformers no longer reads.

    Raises:
        UserError: A tensor has no counterpart.
    """
    if model.kinds.keys() == like.kinds.keys():
        return {key: key for key in like.kinds}
    outline: Any = load_outline(model.folder)[0]
    tied = dict(getattr(outline, "all_tied_weights_keys", None) or {})
    prefix, known = f"{outline.base_model_prefix}.", outline.state_dict().keys()
    keys: dict[str, str] = {}
    for key in like.kinds:
        names = [key, tied.get(key, key)]
        names += [name.removeprefix(prefix) for name in names] + [prefix + name for name in names]
        if (there := next((name for name in names if name in model.kinds), None)) is not None:
            keys[key] = there
        elif key in known or prefix + key in known:
            raise UserError(f"the weights lack {key}, which {like.name} has", where=model.name)
        else:
            log.info("%s: %s is not a tensor of the model, and is left out", like.name, key)
    for there in model.kinds.keys() - set(keys.values()):
        place = there if there in known else prefix + there
        if place in tied and _is_same(model, there, (tied[place], tied[place].removeprefix(prefix))):
            continue
        if place in known:
            hint = "copy it again; or are input and output embeddings tied in one of the models only?"
            raise UserError(f"the weights lack {there}, which {model.name} has", where=like.name, hint=hint)
        log.info("%s: %s is not a tensor of the model, and is left out", model.name, there)
    return keys


def _is_same(model: StoredModel, key: str, others: Sequence[str]) -> bool:
    return any(other in model.kinds and torch.equal(model.read(key), model.read(other)) for other in others)


# Adapters

_LINEAR_INITS = (None, True, False, "gaussian", "true", "false")
"""Initial weights that leave the base model as it is; others (PiSSA, OLoRA, ...) take their part out of it."""


@dataclass(frozen=True)
class AdapterSources(Sources):
    """LoRA adapters of one base model. Of one, lora_alpha is scaled by t, and its tensors stay as they are; the mean of
    several is an adapter whose rank is the sum of theirs.

    Attributes:
        folders: Of the adapters.
        settings: Their adapter_config.json.
    """

    folders: tuple[Path, ...] = ()
    settings: tuple[dict[str, Any], ...] = ()

    @classmethod
    def open(cls, base: str, tuned: Sequence[str], weights: Sequence[float]) -> AdapterSources:
        """Raises `UserError` for adapters that do not fit the base model, or of which a share has no meaning."""
        need_peft()
        config = load_config(base)
        folders = [folder for name in tuned if (folder := adapter_folder(name)) is not None]
        settings: list[dict[str, Any]] = []
        for folder in folders:
            if not (folder / ADAPTER).is_file():
                raise UserError(f"the folder has adapter_config.json, but no {ADAPTER}", where=folder)
            check_weights(folder / ADAPTER)
            check_adapter(folder, base, config, trust_remote_code=False)
            settings.append(load_json(folder / "adapter_config.json"))
            _check_linear(settings[-1], folder, alone=len(folders) == 1)
        first, *others = [_keys_in(folder / ADAPTER) for folder in folders]
        for keys, folder in zip(others, folders[1:], strict=True):
            if differing := sorted(keys ^ first):
                what = f"is an adapter on other modules than {folders[0]}: one of them lacks {differing[0]}"
                raise UserError(what, where=folder, hint="merge each into its base model first")
        return cls(base, tuple(tuned), tuple(weights), tuple(folders), tuple(settings))

    @property
    def files(self) -> list[Path]:
        return [folder / ADAPTER for folder in self.folders]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def write_into(self, folder: Path, at: float) -> None:
        first, settings = self.folders[0], dict(self.settings[0])
        copy_files(first, folder)
        if len(self.folders) == 1:
            shutil.copyfile(first / ADAPTER, folder / ADAPTER)
            fsync(folder / ADAPTER)
            settings["lora_alpha"] = _scaled(settings["lora_alpha"], at)
            patterns = settings.get("alpha_pattern") or {}
            settings["alpha_pattern"] = {name: _scaled(alpha, at) for name, alpha in patterns.items()}
        else:
            rank = sum(given["r"] for given in self.settings)
            settings |= {"r": rank, "lora_alpha": _scaled(rank, at), "use_rslora": False}
            self._write_mean(folder / ADAPTER)
        settings["base_model_name_or_path"] = _place(self.base)
        write_json(folder / "adapter_config.json", settings, indent=2)

    def _write_mean(self, path: Path) -> None:
        """The adapters side by side: A below each other, and B, times its scale and weight, next to each other."""
        tensors = [load_file(file) for file in self.files]  # small
        scales = [
            weight * given["lora_alpha"] / (math.sqrt(given["r"]) if given.get("use_rslora") else given["r"])
            for given, weight in zip(self.settings, self.weights, strict=True)
        ]
        joined = {}
        for key, first in tensors[0].items():
            if "lora_A" in key:
                joined[key] = torch.cat([of[key] for of in tensors], dim=0)
            else:
                scaled = [of[key].float() * scale for of, scale in zip(tensors, scales, strict=True)]
                joined[key] = torch.cat(scaled, dim=1).to(first.dtype)
        kinds = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in joined.items()}
        write_tensors(path, kinds, lambda key, rows: joined[key][rows])


def _scaled(alpha: float, at: float) -> float:
    """t times alpha, a whole number where it is one, as peft has it."""
    return int(alpha * at) if float(alpha * at).is_integer() else alpha * at


def _keys_in(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return set(tensors.keys())


def _check_linear(settings: Mapping[str, Any], folder: Path, *, alone: bool) -> None:
    """Raise `UserError` for an adapter whose difference from the base model is not lora_alpha times its tensors."""
    other = {
        "kind": None if settings.get("peft_type") == "LORA" else settings.get("peft_type"),
        "use_dora": settings.get("use_dora"),
        "modules_to_save": settings.get("modules_to_save"),
        "trainable_token_indices": settings.get("trainable_token_indices"),
        "bias": None if settings.get("bias") == "none" else settings.get("bias"),
        "init_lora_weights": None
        if settings.get("init_lora_weights") in _LINEAR_INITS
        else settings["init_lora_weights"],
    }
    if not alone:
        other |= {name: settings.get(name) for name in ("rank_pattern", "alpha_pattern", "lora_bias")}
        names = sorted(key for key in _keys_in(folder / ADAPTER) if not key.endswith(_FACTORS))
        other["tensors"] = next(iter(names), None)
    for name, value in other.items():
        if value:
            what = f"the adapter cannot be scaled: it has {name} = {value!r}"
            raise UserError(what, where=folder, hint="merge it into its base model, and give both models")
