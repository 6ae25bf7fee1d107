"""Datasets of rows become datasets of token ids on disk, once for each tokenizer and template.

What a row's ids and labels are is in `tokenization.py`, its text in `chat_template.py`; how rows share a forward pass
is in `packing.py`. `datasets.Dataset.map` does the work, in several processes where there are many rows. What was cut
or dropped is counted here and said in the log.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import itertools
import json
import logging
import os
import signal
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from transformers import PreTrainedTokenizerBase

from rectune.data.chat_template import Template
from rectune.data.findings import token_findings
from rectune.data.loading import count_duplicates, default_cache, row_of
from rectune.data.schema import Faults, Row
from rectune.data.tokenization import IGNORED, Encoded, EncodedBatch, encode_batch
from rectune.errors import UserError
from rectune.runtime.io import translate_disk_errors, wait_for_lock

log = logging.getLogger("rectune")

_IDS, _INT32 = pyarrow.list_(pyarrow.int32()), pyarrow.int32()
_SCHEMA = pyarrow.schema(
    {
        "input_ids": _IDS,
        "labels": _IDS,
        "structural": pyarrow.list_(pyarrow.bool_()),
        "weight": pyarrow.list_(pyarrow.float64()),
        "weight_sum": pyarrow.float64(),
        "length": _INT32,
        "supervised": _INT32,
        "truncated": pyarrow.bool_(),
        "row": pyarrow.int64(),
        "checksum": pyarrow.uint32(),
        "fault": pyarrow.string(),
    }
)
"""Columns of the encoded rows on disk: `weight` is empty where it is 1 throughout, `checksum` is the CRC-32 of ids,
labels and weight, `fault` says why a row has none."""
_NO_TOKENS: dict[str, list[int] | int] = {
    "input_ids": [], "labels": [], "structural": [], "weight": [], "weight_sum": 0, "length": 0, "supervised": 0,
    "truncated": False, "checksum": 0,
}  # fmt: skip

_VERSION = 6  # of the cached files; raise it when the same row would encode differently
_BATCH = 1000  # rows that are encoded together
_WORTH = 20_000  # rows that a further process has to find before its start pays


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
        dataset: Columns input_ids, labels (int32), structural (bool), weight (float64), weight_sum (float64, over
            targets), length, supervised (int32), truncated (bool), row (int64, index in the dataset of rows) and
            checksum.
        counts: Over all of them.
    """

    dataset: datasets.Dataset
    counts: RowCounts

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Encoded:
        return self.take([int(index)])[0]

    def take(self, indices: Sequence[int]) -> list[Encoded]:
        """These rows, read at once."""
        if not indices:
            return []
        table = self._arrow[list(indices)]
        names = ("input_ids", "labels", "structural", "weight")
        rows = zip(*(table.column(name).to_pylist() for name in names), strict=True)
        return [Encoded(ids, labels, structural, weight or ()) for ids, labels, structural, weight in rows]

    @cached_property
    def _arrow(self) -> datasets.Dataset:
        return self.dataset.with_format("arrow")

    @cached_property
    def lengths(self) -> np.ndarray:
        """(rows,) int32: tokens of each row, read without reading the rows."""
        return _column(self.dataset, "length")

    @cached_property
    def supervised(self) -> np.ndarray:
        """(rows,) int32: targets of each row."""
        return _column(self.dataset, "supervised")

    @cached_property
    def weight_sums(self) -> np.ndarray:
        """(rows,) float64: sum of the weights of each row's targets."""
        return _column(self.dataset, "weight_sum")

    @cached_property
    def checksums(self) -> np.ndarray:
        """(rows,) uint32: of each row's ids, labels and weights."""
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
    encoder = _Encoder(tokenizer, template, max_length, os.getpid())
    encoded = _encoded((cache_dir or default_cache()) / "tokens", dataset, encoder, num_proc)
    encoded = _without_faults(encoded, len(dataset), template.name, skip=skip_bad_rows)
    counts = RowCounts(
        rows=len(encoded),
        tokens=int(_column(encoded, "length").sum(dtype=np.int64)),
        supervised=int(_column(encoded, "supervised").sum(dtype=np.int64)),
        truncated=int(_column(encoded, "truncated").sum()),
        dropped=len(dataset) - len(encoded),
        duplicates=count_duplicates(dataset),
    )
    if not len(encoded):
        what = f"no row has a target within its first {max_length} tokens"
        raise UserError(what, where="max_length", hint="make it larger")
    for finding in token_findings(dataset, tokenizer, template):
        log.warning("%s", finding)
    (log.warning if counts.truncated or counts.dropped else log.info)("%s", counts)
    return EncodedRows(encoded, counts)


def _without_faults(encoded: datasets.Dataset, rows: int, source: str, *, skip: bool) -> datasets.Dataset:
    """The rows that could be encoded; UserError where others are not to be skipped, or there is none."""
    fault = _column(encoded, "fault")
    if (fault == "").all():
        return encoded
    faults = Faults(source)
    for text in fault[fault != ""]:
        faults.add(UserError(str(text)))
    hint = "fix or remove these rows, or set --skip-bad-rows"
    faults.settle(rows, skip=skip and faults.count < rows, hint=hint)
    return encoded.select(np.flatnonzero(fault == ""))


def _column(dataset: datasets.Dataset, name: str) -> np.ndarray:
    values: np.ndarray = dataset.with_format("numpy", columns=[name])[:][name]
    return values


def cache_key(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
) -> str:
    """Names the token ids of a dataset of rows: its content, the tokenizer, the template and the cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    specials = sorted((i, str(token)) for i, token in tokenizer.added_tokens_decoder.items())
    parts = (
        _VERSION, dataset._fingerprint, type(tokenizer).__name__, vocabulary, specials,
        tokenizer.special_tokens_map, asdict(template), max_length,
    )  # fmt: skip
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()


def _encoded(
    folder: Path, dataset: datasets.Dataset, encoder: _Encoder, num_proc: int | None
) -> datasets.Dataset:
    """The encoded rows that have a target, and those that cannot be encoded; FOLDER/KEY appears when it is whole."""
    key = cache_key(dataset, encoder.tokenizer, encoder.template, encoder.max_length)
    done, part = folder / key, folder / f"{key}.part"
    if not done.exists():
        processes = num_proc or min(len(os.sched_getaffinity(0)), len(dataset) // _WORTH)
        again = "run it again, or set RECTUNE_CACHE"
        with translate_disk_errors(part, again), wait_for_lock(part, "encoding these rows"):
            if not done.exists():  # another process may have written it meanwhile
                for left in part.glob("tmp*"):  # of a run that was killed
                    left.unlink()
                with _bar_on_terminals():
                    dataset.with_format("arrow").map(
                        encoder, with_indices=True, batched=True, batch_size=_BATCH, desc="encoding rows",
                        remove_columns=dataset.column_names, features=datasets.Features.from_arrow_schema(_SCHEMA),
                        cache_file_name=str(part / "tokens.arrow"), new_fingerprint=key,
                        num_proc=processes if processes > 1 else None,
                    )  # fmt: skip
                part.replace(done)
    return datasets.concatenate_datasets(
        [datasets.Dataset.from_file(str(path)) for path in sorted(done.glob("*.arrow"))]
    )


@contextmanager
def _bar_on_terminals() -> Iterator[None]:
    """Where stderr is a file, `datasets` writes no progress bar into it."""
    shown = not datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@dataclass(frozen=True)
class _Encoder:
    """What `Dataset.map` calls for each batch of rows, in `parent` or a process that was forked from it."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int
    parent: int

    def __call__(self, table: pyarrow.Table, indices: Sequence[int]) -> pyarrow.Table:
        """Rows encoded and cut, without those that have no target; one that cannot be encoded has its fault alone."""
        self._end_with_parent()
        rows = {index: row_of(record) for index, record in zip(indices, table.to_pylist(), strict=True)}
        faults = dict[int, str]()
        with _uncollected():
            try:
                batch = self._encode(rows.values())
            except UserError:
                faults = {index: fault for index, row in rows.items() if (fault := self._fault(row))}
                rows = {index: row for index, row in rows.items() if index not in faults}
                batch = self._encode(rows.values())
        refused = [{**_NO_TOKENS, "row": index, "fault": fault} for index, fault in faults.items()]
        encoded = _table(batch, np.array([*rows], np.int64), self.max_length)
        return pyarrow.concat_tables([encoded, pyarrow.Table.from_pylist(refused, schema=_SCHEMA)])

    def _encode(self, rows: Iterable[Row]) -> EncodedBatch:
        return encode_batch([*rows], self.tokenizer, self.template)

    def _fault(self, row: Row) -> str:
        """What is wrong with a row; "" for nothing."""
        try:
            self._encode([row])
        except UserError as error:
            return str(error)
        return ""

    def _end_with_parent(self) -> None:
        """End this process when its parent is killed: the pool's queue would let it wait for work for ever."""
        if os.getpid() == self.parent:
            return
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != self.parent:
            os._exit(1)


def _table(batch: EncodedBatch, indices: np.ndarray, max_length: int) -> pyarrow.Table:
    """The rows of a batch, cut at `max_length`, that have a target; `indices` are theirs in the dataset of rows."""
    whole = np.diff(batch.ends, prepend=0)
    lengths = np.minimum(whole, max_length)
    fits = np.arange(len(batch.labels)) - (batch.ends - whole).repeat(whole) < max_length
    supervised = np.diff(np.cumsum((batch.labels != IGNORED) & fits)[batch.ends - 1], prepend=0)
    kept = supervised > 0
    inside = fits & kept.repeat(whole)
    ids, labels = batch.input_ids[inside], batch.labels[inside]
    offsets = np.concatenate([[0], lengths[kept].cumsum()]).astype(np.int32)
    spans = [slice(start, end) for start, end in itertools.pairwise(offsets.tolist())]
    flat = {"input_ids": ids, "labels": labels, "structural": batch.structural[inside]}
    weight, sizes, starts = batch.weight[inside], lengths[kept], offsets[:-1]
    weighted = np.logical_or.reduceat(weight != 1, starts)
    ends = np.concatenate([[0], (sizes * weighted).cumsum()]).astype(np.int32)
    columns = {name: pyarrow.ListArray.from_arrays(offsets, values) for name, values in flat.items()} | {
        "weight": pyarrow.ListArray.from_arrays(ends, weight[weighted.repeat(sizes)]),
        "weight_sum": np.add.reduceat(np.where(labels != IGNORED, weight, 0.0), starts),
        "length": sizes,
        "supervised": supervised[kept],
        "truncated": (whole > max_length)[kept],
        "row": indices[kept],
        "checksum": [
            zlib.crc32(weight[span] if uneven else b"", zlib.crc32(labels[span], zlib.crc32(ids[span])))
            for span, uneven in zip(spans, weighted, strict=True)
        ],
        "fault": [""] * len(spans),
    }
    return pyarrow.table(columns, schema=_SCHEMA)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which would go through every list of token ids: a seventh of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
