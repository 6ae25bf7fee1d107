"""Datasets of rows become datasets of token ids on disk, once for each tokenizer and template.

What a row's ids and labels are is in `tokenization.py`, its text in `chat_template.py`, how they are written in
`token_cache.py`; how rows share a forward pass is in `packing.py`. What was cut or dropped is counted here and
said in the log.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from rectune.data.chat_template import Template, choose_template
from rectune.data.findings import token_findings
from rectune.data.load_rows import count_duplicates, default_cache
from rectune.data.token_cache import encoded_parts
from rectune.data.tokenization import Encoded, encode_row, prompt_ids, stop_ids
from rectune.errors import UserError

__all__ = [
    "Encoded", "EncodedRows", "RowCounts", "Template", "choose_template", "encode_row", "encode_rows",
    "prompt_ids", "stop_ids",
]  # fmt: skip

log = logging.getLogger("rectune")


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
            (bool), row (int64, index in the dataset of rows) and checksum.
        counts: Over all of them.
    """

    dataset: datasets.Dataset
    counts: RowCounts

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Encoded:
        record = self.dataset[int(index)]
        return Encoded(record["input_ids"], record["labels"], record["structural"])

    @cached_property
    def lengths(self) -> np.ndarray:
        """(rows,) int32: tokens of each row, read without reading the rows."""
        return _column(self.dataset, "length")

    @cached_property
    def supervised(self) -> np.ndarray:
        """(rows,) int32: targets of each row."""
        return _column(self.dataset, "supervised")

    @cached_property
    def checksums(self) -> np.ndarray:
        """(rows,) uint32: of each row's ids and labels."""
        return _column(self.dataset, "checksum")


def encode_rows(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    max_length: int,
    cache_dir: Path | None = None,
    num_proc: int | None = None,
    skip_bad_rows: bool = False,
) -> EncodedRows:
    """Encode all rows of a `read_rows` dataset to disk, cut at `max_length` tokens; the second time at once.

    The files are found again by the rows' content, the tokenizer, the template and `max_length`, also those of a call
    that was killed. `num_proc` processes take part; None chooses. Rows that the template cannot write are all named in
    the log; `skip_bad_rows` leaves them out. Says in the log ("rectune") what texts bring along of
    tokens and templates, and the counts.

    Raises:
        UserError: The template cannot write a row, or no row has a target left.
    """
    encoded = encoded_parts(
        (cache_dir or default_cache()) / "tokens", dataset, tokenizer, template,
        max_length=max_length, workers=num_proc, skip=skip_bad_rows,
    )  # fmt: skip
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
    for finding in token_findings(dataset, tokenizer, template):
        log.warning("%s", finding)
    (log.warning if counts.truncated or counts.dropped else log.info)("%s", counts)
    return EncodedRows(encoded, counts)


def _column(dataset: datasets.Dataset, name: str) -> np.ndarray:
    values: np.ndarray = dataset.with_format("numpy", columns=[name])[:][name]
    return values
