"""Datasets of rows become datasets of token ids on disk, once for each tokenizer and template.

What a row's ids and labels are is in `tokens.py`, its text in `templates.py`; how rows share a forward pass
is in `packing.py`. What was cut or dropped is counted here and said in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from rectune.data.reading import count_duplicates, default_cache, row_of
from rectune.data.templates import Template, choose_template
from rectune.data.tokens import IGNORED, Encoded, encode_batch, encode_row, prompt_ids, stop_ids
from rectune.errors import UserError

__all__ = [
    "Encoded", "EncodedRows", "RowCounts", "Template", "choose_template", "encode_row", "encode_rows",
    "prompt_ids", "stop_ids",
]  # fmt: skip

log = logging.getLogger("rectune")

_VERSION = 1  # of the cached files; raise it when the same row would encode differently


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows: numbers of rows and of tokens.

    Attributes:
        rows: Rows to train on.
        tokens: Their tokens, prompts included.
        supervised: Their targets.
        truncated: Rows of them that were cut at `max_length`.
        dropped: Rows left out because the cut took all their targets.
        duplicates: Rows (before any were dropped) that repeat an earlier one; kept.
    """

    rows: int
    tokens: int
    supervised: int
    truncated: int
    dropped: int
    duplicates: int

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, {self.tokens:,} tokens of which {self.supervised:,} supervised; "
            f"{self.truncated:,} truncated, {self.dropped:,} dropped, {self.duplicates:,} duplicates"
        )


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows on disk.

    Attributes:
        dataset: Columns input_ids, labels (int32), structural (bool), length, supervised (int32), truncated
            (bool) and row (int64, index in the dataset of rows).
        counts: Over all of them.
    """

    dataset: datasets.Dataset
    counts: RowCounts

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Encoded:
        record = self.dataset[index]
        return Encoded(record["input_ids"], record["labels"], record["structural"])

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int32: tokens of each row, read without reading the rows."""
        return _column(self.dataset, "length")


def encode_rows(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    max_length: int,
    cache_dir: Path | None = None,
    num_proc: int | None = None,
) -> EncodedRows:
    """Encode all rows of a `read_rows` dataset to disk, cut at `max_length` tokens; the second time at once.

    The file is found again by the rows' content, the tokenizer, the template and `max_length`. Says the
    counts in the log ("rectune").

    Raises:
        UserError: The template cannot write a row, or no row has a target left.
    """
    key = _key(dataset, tokenizer, template, max_length)
    folder = (cache_dir or default_cache()) / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    encoded = dataset.map(
        _encode_batch,
        with_indices=True,
        batched=True,
        remove_columns=dataset.column_names,
        features=FEATURES,
        cache_file_name=str(folder / f"{key}.arrow"),
        load_from_cache_file=True,
        new_fingerprint=key,
        num_proc=num_proc,
        fn_kwargs={"tokenizer": tokenizer, "template": template, "max_length": max_length},
        desc="tokens",
    )
    counts = RowCounts(
        rows=len(encoded),
        tokens=int(_column(encoded, "length").sum(dtype=np.int64)),
        supervised=int(_column(encoded, "supervised").sum(dtype=np.int64)),
        truncated=int(_column(encoded, "truncated").sum()),
        dropped=len(dataset) - len(encoded),
        duplicates=count_duplicates(dataset),
    )
    if not len(encoded):
        raise UserError(
            f"no row has a target within its first {max_length} tokens",
            where="max_length",
            hint="make it larger",
        )
    (log.warning if counts.truncated or counts.dropped else log.info)("%s", counts)
    return EncodedRows(encoded, counts)


FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")),
        "structural": datasets.List(datasets.Value("bool")),
        "length": datasets.Value("int32"),
        "supervised": datasets.Value("int32"),
        "truncated": datasets.Value("bool"),
        "row": datasets.Value("int64"),
    }
)
"""Columns of the encoded rows on disk."""


def _encode_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
) -> dict[str, list[Any]]:
    rows = [row_of(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)]
    out: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for index, encoded in zip(indices, encode_batch(rows, tokenizer, template), strict=True):
        labels = encoded.labels[:max_length]
        supervised = sum(label != IGNORED for label in labels)
        if supervised:
            ids, structural = encoded.input_ids[:max_length], encoded.structural[:max_length]
            values = (ids, labels, structural, len(ids), supervised, len(encoded) > max_length, index)
            for name, value in zip(out, values, strict=True):
                out[name].append(value)
    return out


def _column(dataset: datasets.Dataset, name: str) -> np.ndarray:
    values: np.ndarray = dataset.with_format("numpy", columns=[name])[:][name]
    return values


def _key(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int
) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    specials = sorted((i, str(token)) for i, token in tokenizer.added_tokens_decoder.items())
    parts = (
        _VERSION, dataset._fingerprint, type(tokenizer).__name__, vocabulary, specials,
        tokenizer.special_tokens_map, asdict(template), max_length,
    )  # fmt: skip
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()
