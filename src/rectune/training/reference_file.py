"""The file of `ref_logp`: where it lies, what it belongs to, and that it is whole.

One column of a run's rows as safetensors, whose header names rows, model, tokenizer and precision. What it is for, and
how the column is computed, is in `reference.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rectune.data.reading import default_cache
from rectune.data.sources import PACKAGED
from rectune.errors import UserError

log = logging.getLogger("rectune")

FORMAT = "1"
SUFFIX = ".safetensors"
_BELONGS = {"rows": "other rows", "fingerprint": "another model", "vocabulary": "another tokenizer"}


class Damaged(UserError):
    """A file whose content is not what was written."""


def place(source: str, belongs: Mapping[str, str]) -> Path:
    """Beside the data; in the cache folder for data of the package or the hub, and where beside is read-only.

    Args:
        source: The data, as the user named it.
        belongs: What the file belongs to. Its name has a digest of this, so that files of several models lie side by
            side.
    """
    key = hashlib.blake2b(json.dumps(dict(belongs), sort_keys=True).encode(), digest_size=6).hexdigest()
    path = Path(source).expanduser()
    name = f"{path.name}.ref_logp-{key}{SUFFIX}"
    if source not in PACKAGED and path.exists():
        beside = path.absolute().with_name(name)
        if beside.exists() or os.access(beside.parent, os.W_OK):
            return beside
        log.info("ref_logp: %s is read-only, so it is kept in the cache folder", beside.parent)
    return default_cache() / "ref_logp" / name


def read(path: Path, belongs: Mapping[str, str]) -> tuple[Tensor, dict[str, str]]:
    """The column (targets,) and the whole header.

    Args:
        belongs: What the header has to say.

    Raises:
        UserError: No such file, another format, or one of other rows, another model or another tokenizer.
        Damaged: It is not whole.
    """
    try:
        with safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
            if "ref_logp" not in file.keys() or "format" not in header:  # noqa: SIM118
                raise UserError("holds no ref_logp", where=path, hint="it is no file that rectune has kept")
            values: Tensor = file.get_tensor("ref_logp")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None
    except SafetensorError as error:
        raise Damaged(f"is damaged ({error})", where=path) from None
    if header["format"] != FORMAT:
        raise UserError(f"is of format {header['format']}, this version reads {FORMAT}", where=path)
    for name, now in belongs.items():
        if header.get(name) != now:
            what = _BELONGS.get(name, f"another {name}")
            raise UserError(f"belongs to {what}: {header.get(name)}, not {now}", where=path, hint="remove it")
    if header.get("checksum") != _checksum(values):
        raise Damaged("is damaged (another checksum than when it was written)", where=path)
    return values, header


def write(path: Path, values: Tensor, header: Mapping[str, str]) -> None:
    """Write the file whole or not at all; of two writers at a time the last one stays, which wrote the same."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": FORMAT, **header, "checksum": _checksum(values)}
        save_file({"ref_logp": values}, aside, metadata=metadata)
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be written ({error})", where=path) from None
    finally:
        aside.unlink(missing_ok=True)


def _checksum(values: Tensor) -> str:
    return f"{zlib.crc32(values.numpy().data):08x}"
