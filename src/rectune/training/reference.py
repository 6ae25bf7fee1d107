"""`ref_logp` and other columns of the rows' targets under a frozen model, computed once before the first step.

iw-SFT and DPO compare the model with a reference, and `signal=base` takes a rule's weights from it: the weights that
training starts from, or another model. Its columns do not change, so one pass computes them, and a file in the cache
keeps them for runs on the same rows and for resumed ones; no second model is in memory while training. Objectives that
need the reference's whole distribution (`kl`) get it as a frozen model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rectune.config import TrainConfig
from rectune.data.encoded_dataset import EncodedRows
from rectune.data.loading import default_cache
from rectune.data.packing import collate, pack_for
from rectune.errors import UserError
from rectune.models.load import fingerprint, load_model
from rectune.models.lora import starts_from_adapter
from rectune.models.scorer import Scorer
from rectune.runtime.io import replace_file, translate_disk_errors
from rectune.runtime.progress import reporter
from rectune.training.dataloader import LOGPROBS, Split, TrainingData

log = logging.getLogger("rectune")

FORMAT = "1"
CAPACITY = (
    4096  # tokens of a forward pass; not the run's, so that the file does not depend on how a run packs
)
_BELONGS = {"rows": "other rows", "fingerprint": "another model", "vocabulary": "another tokenizer"}


class Damaged(UserError):
    """A file whose content is not what was written."""


def cached_file(source: str, belongs: Mapping[str, str]) -> Path:
    """The file in the cache folder for the data `source` and what it belongs to: rows, model, tokenizer, precision."""
    key = hashlib.blake2b(json.dumps(dict(belongs), sort_keys=True).encode(), digest_size=6).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", Path(source).name)
    return default_cache() / "reference_logprobs" / f"{name}-{key}{LOGPROBS}"


def read(
    path: Path, belongs: Mapping[str, str], names: Sequence[str] = ("ref_logp",)
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The columns by name, each (targets,), and the whole header.

    Args:
        belongs: What the header has to say.
        names: Columns that the file has to have.

    Raises:
        UserError: No such file, another format, one of other rows, another model or another tokenizer, or without a
            column.
        Damaged: It is not whole.
    """
    try:
        with safe_open(path, "pt") as file:
            header, kept = dict(file.metadata() or {}), file.keys()
            if lacking := [name for name in names if name not in kept or "format" not in header]:
                hint = "it was written for another objective, or not by rectune"
                raise UserError(f"the file has no {' and no '.join(lacking)}", where=path, hint=hint)
            columns = {name: file.get_tensor(name) for name in kept}
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror or error})", where=path) from None
    except SafetensorError as error:
        raise Damaged(f"is damaged ({error})", where=path) from None
    if header["format"] != FORMAT:
        raise UserError(f"the file has format {header['format']}, this version reads {FORMAT}", where=path)
    for name, now in belongs.items():
        if header.get(name) != now:
            what = _BELONGS.get(name, f"another {name}")
            raise UserError(
                f"the file belongs to {what}: {header.get(name)}, not {now}", where=path, hint="remove it"
            )
    if header.get("checksum") != _checksum(columns):
        raise Damaged("the file is damaged (its checksum has changed)", where=path)
    return columns, header


def write(path: Path, columns: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write the file whole or not at all; of two writers at a time the last one stays, which wrote the same."""
    metadata = {"format": FORMAT, **header, "checksum": _checksum(columns)}
    with translate_disk_errors(path), replace_file(path, shared=True) as aside:
        save_file(dict(columns), aside, metadata=metadata)


def _checksum(columns: Mapping[str, Tensor]) -> str:
    checksum = 0
    for name in sorted(columns):
        checksum = zlib.crc32(columns[name].numpy().data, checksum)
    return f"{checksum:08x}"


@dataclass(frozen=True)
class ReferenceColumns:
    """Columns of a run's rows under the reference.

    Attributes:
        identity: Fingerprint of the reference's weights.
        path: The file they are kept in.
    """

    identity: str
    path: Path
    _columns: dict[str, Tensor]
    _starts: list[tuple[EncodedRows, np.ndarray]]

    def of(self, split: Split, rows: list[int], device: object = None) -> dict[str, Tensor]:
        """The columns of the batch `split.batch(rows)`, each (N,): float32, `ref_top1` bool."""
        starts = next(starts for encoded, starts in self._starts if encoded is split.encoded)
        spans = [(starts[index], starts[index + 1]) for row in rows for index in split.members[row]]
        return {
            name: torch.cat([column[:0], *(column[a:b] for a, b in spans)]).to(device)  # type: ignore[call-overload]
            for name, column in self._columns.items()
        }


def reference_columns(
    config: TrainConfig,
    data: TrainingData,
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    identity: str,
    accelerator: Accelerator,
    names: Sequence[str] = ("ref_logp",),
) -> ReferenceColumns:
    """Columns of all rows that a run reads: from the file of an earlier run, or computed now and kept.

    Args:
        data: Rows to train on; those kept aside are included where they are pairs or of the same source.
        scorer, tokenizer: Of the model that will be trained, as it was loaded.
        identity: Its `fingerprint`, adapters not yet on it.
        names: Columns of the source `reference`.

    Raises:
        UserError: The reference has another tokenizer or cannot be loaded, or a file belongs to other rows or another
            model.
    """
    rows = _Rows(data)
    words, shown = vocabulary(tokenizer), ", ".join(names)
    given = config.reference_model or ""
    if given.endswith(LOGPROBS):
        path = Path(given).expanduser()
        columns, header = read(path, {"rows": rows.name, "vocabulary": words}, names)
        log.info("%s: from %s, of %s (%s)", shown, path, header["reference"], header["fingerprint"])
        return ReferenceColumns(header["fingerprint"], path, columns, rows.starts)
    reference = scorer.without_adapter() if _is_base(config) else scorer
    if given:
        reference, identity = load_reference(config, scorer, tokenizer)
    belongs = {
        "rows": rows.name,
        "fingerprint": identity,
        "vocabulary": words,
        "precision": str(scorer.dtype).removeprefix("torch."),
        "memory_budget": str(config.logits_memory_mb),
        **({"columns": shown} if set(names) != {"ref_logp"} else {}),
    }
    path = cached_file(config.data, belongs)
    found = _kept(path, belongs, names, accelerator)
    if found is None:
        log.info("%s: computing it for %s with %s", shown, rows.name, given or "the initial weights")
        found = _compute(reference, rows, names, accelerator)
        if accelerator.is_local_main_process:
            whose = {"reference": given or config.model, "template": data.template.name}
            write(path, found, belongs | whose)
        accelerator.wait_for_everyone()
    log.info("%s: kept in %s", shown, path)
    return ReferenceColumns(identity, path, found, rows.starts)


def frozen_reference(config: TrainConfig, scorer: Scorer, tokenizer: PreTrainedTokenizerBase) -> Scorer:
    """What `kl` refers to: the named model, or the one that is about to be trained, without gradients.

    Raises:
        UserError: The named model has another tokenizer, or is a file of log-probs.
    """
    if config.reference_model is None:
        return scorer.without_adapter() if _is_base(config) else scorer.frozen()
    if config.reference_model.endswith(LOGPROBS):
        raise UserError("the objective needs the model itself, not its log-probs", where="reference_model")
    return load_reference(config, scorer, tokenizer)[0]


def _is_base(config: TrainConfig) -> bool:
    """Whether the model without its adapter is the one that training starts from."""
    return bool(config.lora_r) and not starts_from_adapter(config)


def load_reference(
    config: TrainConfig, scorer: Scorer, tokenizer: PreTrainedTokenizerBase
) -> tuple[Scorer, str]:
    """The named reference in the precision of the model to train, and its fingerprint.

    Raises:
        UserError: It cannot be loaded, or has another tokenizer than the model.
    """
    assert config.reference_model is not None
    weight = scorer.head().weight
    model, other = load_model(config.reference_model, dtype=scorer.dtype, device=weight.device)
    if vocabulary(other) != vocabulary(tokenizer):
        sizes = f"{len(other):,} words, the model's {len(tokenizer):,}"
        raise UserError(
            f"{config.reference_model} has another tokenizer than the model ({sizes})",
            where="reference_model",
            hint="its token ids differ; use a model with the same tokenizer",
        )
    identity = fingerprint(model.requires_grad_(False), dtype=torch.float32)
    return Scorer(model, memory_budget=scorer.memory_budget, implementation=scorer.implementation), identity


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of what each token id stands for."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()


class _Rows:
    """Encoded rows whose columns are needed, in the order of their source, whichever seed splits them.

    Attributes:
        name: How many they are, with a digest of their token ids and labels.
        chosen: Source and index of every row.
        lengths, supervised: Tokens and targets of every row.
        starts: For each source, where the targets of its rows begin in the column, and behind them the end.
    """

    def __init__(self, data: TrainingData) -> None:
        sources = [(data.train.encoded, data.train.indices)]
        if data.holdout.encoded is data.train.encoded:
            sources[0][1].extend(data.holdout.indices)
        elif data.paired:
            sources.append((data.holdout.encoded, data.holdout.indices))
        self.chosen: list[tuple[EncodedRows, int]] = []
        self.lengths: list[int] = []
        self.supervised: list[int] = []
        self.starts: list[tuple[EncodedRows, np.ndarray]] = []
        digest, end = hashlib.blake2b(digest_size=8), 0
        for encoded, indices in sources:
            used = sorted(set(indices))
            sizes = encoded.dataset.with_format("numpy", columns=["length", "supervised"])[:]
            self.chosen += [(encoded, index) for index in used]
            self.lengths += sizes["length"][used].tolist()
            self.supervised += sizes["supervised"][used].tolist()
            counts = np.zeros(len(encoded), dtype=np.int64)
            counts[used] = sizes["supervised"][used]
            starts = end + np.concatenate([[0], np.cumsum(counts)])
            self.starts.append((encoded, starts))
            end = int(starts[-1])
            for part in encoded.dataset.select(used).with_format("arrow").iter(batch_size=1000):
                digest.update(part["length"].combine_chunks().to_numpy().tobytes())
                for name in ("input_ids", "labels"):
                    digest.update(part[name].combine_chunks().flatten().to_numpy().tobytes())
        self.name = f"{len(self.chosen):,} rows with {end:,} targets ({digest.hexdigest()})"


@torch.no_grad()
def _compute(
    scorer: Scorer, rows: _Rows, names: Sequence[str], accelerator: Accelerator
) -> dict[str, Tensor]:
    """The columns of all rows; each process takes its share of the forward passes, as many as any other."""
    of = accelerator.num_processes
    packs = pack_for(of, rows.lengths, max(CAPACITY, *rows.lengths))
    of_head = [name.removeprefix("ref_") for name in names]
    training = scorer.model.training
    scorer.model.eval()
    parts: list[tuple[int, tuple[Tensor, ...]]] = []
    tokens = 0
    with reporter(
        None if accelerator.is_main_process else lambda *_: None, 0, len(packs), "reference"
    ) as report:
        for first in range(0, len(packs), of):
            number = first + accelerator.process_index
            mine = packs[number] if number < len(packs) else []
            encoded = [source[index] for source, index in (rows.chosen[row] for row in mine)]
            batch = collate(encoded, accelerator.device)
            columns = scorer.columns(batch, of_head)
            sizes = [rows.supervised[row] for row in mine]
            by_row = zip(*(_plain(columns[name]).split(sizes) for name in of_head), strict=True)
            parts += zip(mine, by_row, strict=True)
            tokens += sum(batch.row_lengths) * of
            report(min(first + of, len(packs)), len(packs), tokens)
    scorer.model.train(training)
    if of > 1:
        parts = gather_object(parts)
    ordered = [columns for _, columns in sorted(parts, key=lambda part: part[0])]
    return dict(zip(names, map(torch.cat, zip(*ordered, strict=True)), strict=True))


def _plain(column: Tensor) -> Tensor:
    return column.cpu() if column.dtype == torch.bool else column.to("cpu", torch.float32)


def _kept(
    path: Path, belongs: dict[str, str], names: Sequence[str], accelerator: Accelerator
) -> dict[str, Tensor] | None:
    """What an earlier run kept, where all processes find it; a damaged file is passed over."""
    found = None
    if path.exists():
        try:
            found, _ = read(path, belongs, names)
        except Damaged as error:
            log.warning("%s: it is computed again", error)
    everywhere = gather_object([found is not None]) if accelerator.num_processes > 1 else [found is not None]
    return found if all(everywhere) else None
