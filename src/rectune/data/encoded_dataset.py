"""Datasets of rows become datasets of token ids on disk, once for each tokenizer and template.

What a row's ids and labels are is in `tokenization.py`, its text in `chat_template.py`; how rows share a forward pass
is in `packing.py`. What was cut or dropped is counted here and said in the log.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from datasets.table import MemoryMappedTable, concat_tables
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rectune.data.chat_template import Template
from rectune.data.findings import token_findings
from rectune.data.load import count_duplicates, default_cache, row_of
from rectune.data.schema import Faults
from rectune.data.tokenization import IGNORED, Encoded, encode_batch
from rectune.errors import UserError
from rectune.runtime.io import translate_disk_errors
from rectune.runtime.locks import wait_for_lock

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


FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")),
        "structural": datasets.List(datasets.Value("bool")),
        "length": datasets.Value("int32"),
        "supervised": datasets.Value("int32"),
        "truncated": datasets.Value("bool"),
        "row": datasets.Value("int64"),
        "checksum": datasets.Value("uint32"),
    }
)
"""Columns of the encoded rows on disk; `checksum` is the CRC-32 of ids and labels."""

PART = 5_000  # rows of a part
_BATCH = 1000  # rows that are encoded, and memory-mapped, together
_VERSION = 4  # of the cached files; raise it when the same row would encode differently
_WORTH = 4  # parts that a further process has to find before its start pays
_SAY = 10.0  # seconds between two lines about how far it is

_START = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [sys.argv[1]];"
    "sys.modules['torch'] = None;"  # takes longer to import than all else, and no tokenizer needs it
    "from rectune.data.encoded_dataset import main; main()"
)


def cache_key(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
    without: Collection[int] = (),
) -> str:
    """Names the token ids of a dataset of rows: its content, the tokenizer, the template and the cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    specials = sorted((i, str(token)) for i, token in tokenizer.added_tokens_decoder.items())
    parts = (
        _VERSION, PART, dataset._fingerprint, type(tokenizer).__name__, vocabulary, specials,
        tokenizer.special_tokens_map, asdict(template), max_length, *sorted(without),
    )  # fmt: skip
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Job:
    """What is to be encoded, the folder of its parts, and which rows are left out."""

    here: Path
    dataset: datasets.Dataset
    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int
    without: frozenset[int] = frozenset()

    def path(self, part: int) -> Path:
        return self.here / f"part-{part:05d}.arrow"

    def missing(self) -> list[int]:
        return [part for part in range(-(-len(self.dataset) // PART)) if not self.path(part).exists()]


def encoded_parts(
    folder: Path,
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    max_length: int,
    workers: int | None = None,
    skip: bool = False,
) -> datasets.Dataset:
    """The encoded rows of a `read_rows` dataset, memory-mapped; writes the parts that are missing.

    Args:
        folder: Where the cache keeps tokens; a folder named by `cache_key` is made in it.
        workers: Processes; None takes one for each core, but no more than are worth their start.
        skip: Leave out the rows that the template cannot write.

    Raises:
        UserError: The template cannot write a row (all of them are then named in the log), or the folder cannot be
            written.
    """
    try:
        return _encoded(folder, dataset, tokenizer, template, max_length, workers)
    except UserError:
        faults, without = _refused(dataset, tokenizer, template)
        if not without:
            raise
    skip = skip and len(without) < len(dataset)
    faults.settle(len(dataset), skip=skip, hint="mend or remove these rows, or set --skip-bad-rows")
    return _encoded(folder, dataset, tokenizer, template, max_length, workers, without)


def _refused(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, template: Template
) -> tuple[Faults, frozenset[int]]:
    """What is wrong with the rows that cannot be encoded, and their indices."""
    faults, refused = Faults(template.name), set[int]()
    for index, record in enumerate(dataset):
        try:
            encode_batch([row_of(record)], tokenizer, template)
        except UserError as error:
            faults.add(error)
            refused.add(index)
    return faults, frozenset(refused)


def _encoded(
    folder: Path,
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
    workers: int | None,
    without: frozenset[int] = frozenset(),
) -> datasets.Dataset:
    key = cache_key(dataset, tokenizer, template, max_length, without)
    job = _Job(folder / key, dataset, tokenizer, template, max_length, without)
    if job.missing():
        again = "run it again, or set RECTUNE_CACHE"
        with translate_disk_errors(job.here, again), wait_for_lock(job.here, "encoding these rows"):
            _clear(job.here)
            todo = job.missing()
            if workers is None:
                workers = min(len(os.sched_getaffinity(0)), len(todo) // _WORTH)
            with _others(job, todo, workers) as (others, claims):
                _write_parts(job, _claimed(todo, claims))
                for other in others:
                    other.wait()
                _write_parts(job, job.missing())  # of processes that ended early
    tables = [MemoryMappedTable.from_file(str(job.path(part))) for part in range(-(-len(dataset) // PART))]
    filled = [table for table in tables if len(table)] or tables[:1]
    return datasets.Dataset(concat_tables(filled), fingerprint=key)


def _clear(here: Path) -> None:
    """Removes what a killed run was writing."""
    for left in here.glob(".tokenizer-*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in here.glob(".part-*"):
        left.unlink(missing_ok=True)


def _claimed(parts: Sequence[int], claims: Path | None) -> Iterator[int]:
    """Those of the parts that no other process has taken before; each of them is taken when it comes."""
    for part in parts:
        if claims is not None:
            try:
                (claims / f"part-{part:05d}.taken").touch(exist_ok=False)
            except FileExistsError:
                continue
        yield part


def _write_parts(job: _Job, parts: Iterable[int]) -> None:
    said = time.monotonic()
    for part in parts:
        aside = job.here / f".part-{part:05d}.{os.getpid()}"
        end = min((part + 1) * PART, len(job.dataset))
        try:
            with (
                pyarrow.OSFile(str(aside), "wb") as sink,
                pyarrow.ipc.new_stream(sink, FEATURES.arrow_schema) as writer,
            ):
                for first in range(part * PART, end, _BATCH):
                    with _uncollected():
                        writer.write_table(_table(job, first, min(first + _BATCH, end)))
            aside.replace(job.path(part))
        finally:
            aside.unlink(missing_ok=True)
        if time.monotonic() - said > _SAY:
            said, rows = time.monotonic(), len(job.dataset)
            done = min(rows, PART * len(list(job.here.glob("part-*.arrow"))))
            log.info("encoding: %s of %s rows", f"{done:,}", f"{rows:,}")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which would go through every list of token ids while they become more."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _table(job: _Job, first: int, end: int) -> pyarrow.Table:
    """Rows `first` to `end` encoded, without those that have no target or are left out."""
    records = job.dataset[first:end]
    rows = [row_of(dict(zip(records, values, strict=True))) for values in zip(*records.values(), strict=True)]
    indices = [index for index in range(first, end) if index not in job.without]
    rows = [rows[index - first] for index in indices]
    if not rows:
        return FEATURES.arrow_schema.empty_table()
    batch = encode_batch(rows, job.tokenizer, job.template)
    whole = np.diff(batch.ends, prepend=0)
    lengths = np.minimum(whole, job.max_length)
    fits = np.arange(batch.ends[-1]) - (batch.ends - whole).repeat(whole) < job.max_length
    targets = np.cumsum((batch.labels != IGNORED) & fits)[batch.ends - 1]
    supervised = np.diff(targets, prepend=0)
    kept = supervised > 0
    inside = fits & kept.repeat(whole)
    ids, labels = batch.input_ids[inside], batch.labels[inside]
    offsets = np.concatenate([[0], lengths[kept].cumsum()])
    spans = [slice(start, end) for start, end in itertools.pairwise(offsets.tolist())]
    columns = {
        "input_ids": ids,
        "labels": labels,
        "structural": batch.structural[inside],
        "length": lengths[kept],
        "supervised": supervised[kept],
        "truncated": (whole > job.max_length)[kept],
        "row": np.array(indices)[kept],
        "checksum": [zlib.crc32(labels[span], zlib.crc32(ids[span])) for span in spans],
    }
    made = []
    for field in FEATURES.arrow_schema:
        if pyarrow.types.is_list(field.type):
            values = pyarrow.array(columns[field.name], field.type.value_type)
            made.append(pyarrow.ListArray.from_arrays(pyarrow.array(offsets, pyarrow.int32()), values))
        else:
            made.append(pyarrow.array(columns[field.name], field.type))
    return pyarrow.Table.from_arrays(made, schema=FEATURES.arrow_schema)


@contextmanager
def _others(
    job: _Job, todo: Sequence[int], workers: int
) -> Iterator[tuple[list[subprocess.Popen[str]], Path | None]]:
    """Further processes, and where all claim their parts; none where the rows are not one file."""
    files = [file["filename"] for file in job.dataset.cache_files]
    if workers < 2 or len(files) != 1 or job.dataset._indices is not None:
        yield [], None
        return
    root = str(Path(__file__).resolve().parents[2])
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    others = []
    with tempfile.TemporaryDirectory(dir=job.here, prefix=".tokenizer-") as kept:
        job.tokenizer.save_pretrained(kept)
        message = {
            "here": str(job.here), "rows": files[0], "fingerprint": job.dataset._fingerprint, "tokenizer": kept,
            "template": asdict(job.template), "max_length": job.max_length, "parts": todo,
            "without": sorted(job.without),
        }  # fmt: skip
        try:
            for _ in range(1, workers):
                other = subprocess.Popen(
                    [sys.executable, "-c", _START, root],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env={**os.environ, **quiet}, text=True,
                )  # fmt: skip
                others.append(other)
                assert other.stdin is not None
                other.stdin.write(json.dumps(message))
                other.stdin.close()
            yield others, Path(kept)
        finally:
            for other in others:
                other.kill()
                other.wait()


def main() -> None:
    """A further process: writes parts that are still to be had, if it reads the tokenizer as it was."""
    parent = os.getppid()  # if it is killed, so is its lock: end with the part in work
    message = json.loads(sys.stdin.read())
    tokenizer = AutoTokenizer.from_pretrained(message["tokenizer"])
    dataset = datasets.Dataset(
        MemoryMappedTable.from_file(message["rows"]), fingerprint=message["fingerprint"]
    )
    job = _Job(
        Path(message["here"]), dataset, tokenizer, Template(**message["template"]), message["max_length"],
        frozenset(message["without"]),
    )  # fmt: skip
    if cache_key(dataset, tokenizer, job.template, job.max_length, job.without) == job.here.name:
        parts = _claimed(message["parts"], Path(message["tokenizer"]))
        _write_parts(job, itertools.takewhile(lambda _: os.getppid() == parent, parts))
