"""Diagnose data under a model before any training: one forward pass, one verdict, its evidence.

    OUT/diagnosis.json   everything that was found: `rectune.records.Diagnosis`
    OUT/diagnosis.html   the same to look at, with real rows coloured by probability and by weight

What is measured is in `measure.py`, what each objective would do in `effective_weights.py`, risks and thresholds in
`risks.py`, the verdict in `recommendation.py`, the page in `page.py`.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

import datasets
import numpy as np
import torch

from rectune.config import DataConfig, DiagnoseConfig, as_flags
from rectune.data.chat_template import check_template, choose_template
from rectune.data.contamination import find_overlap
from rectune.data.encoded_dataset import EncodedRows
from rectune.data.findings import Finding, token_findings
from rectune.data.loading import read_rows, row_at, weights_of
from rectune.data.packing import Batch, collate
from rectune.data.tokenization import token_texts
from rectune.data.trained_prompt import as_trained, run_prompt
from rectune.diagnosis.effective_weights import DEFAULT, describe, effective_weights, gradient_norms, parse
from rectune.diagnosis.measure import (
    Measured,
    by_class,
    by_position,
    by_source,
    choose_examples,
    example_row,
    measure,
    overall_figures,
)
from rectune.diagnosis.page import render_page
from rectune.diagnosis.recommendation import recommend
from rectune.diagnosis.risks import RiskInputs, find_risks
from rectune.errors import UserError
from rectune.models.limits import encode_for
from rectune.models.load import check_model, choose_dtype, fingerprint, load_model
from rectune.models.lora import unfreeze
from rectune.models.scorer import Scorer
from rectune.pages.render import write_page
from rectune.records import Diagnosis, Risk
from rectune.runtime.distributed import default_device
from rectune.runtime.io import check_writable, translate_disk_errors, write_json
from rectune.runtime.progress import progress
from rectune.training.metrics import PROBABILITY_BINS

log = logging.getLogger("rectune")

GRADIENT_TOKENS = 512
"""Of the batch that gradient norms are measured on."""
_CAPACITY = 4096  # tokens of a packed batch


def diagnose(
    config: DiagnoseConfig, *, problems: Mapping[str, str] | None = None, began: float | None = None
) -> Diagnosis:
    """Say which objective fits the data under the model, and why; the content of OUT/diagnosis.json.

    Args:
        config: All settings; `objectives` may be functions of your own.
        problems: Problem id to question, to look for in the rows.
        began: `time.perf_counter()` as the command began, for the duration; None: now.

    Raises:
        UserError: Data, model or settings that cannot be used, or a folder that cannot be written.
    """
    began = time.perf_counter() if began is None else began
    chosen = parse(config.objectives or DEFAULT)
    config = as_trained(config.model, config)
    model = str(run.model) if (run := run_prompt(config.model)) else config.model
    out = config.output_dir
    check_writable(out)
    if (out / "config.json").is_file():
        hint = "give another --output-dir"
        raise UserError("the folder is that of a run or a model, not of a diagnosis", where=out, hint=hint)
    check_model(model)
    check_template(config.chat_template)

    dataset = read_rows(config.data, options=config)
    device = default_device()
    dtype, why = choose_dtype(config.dtype, device)
    loaded, tokenizer = load_model(model, dtype=dtype, device=device)
    template = choose_template(config.chat_template, tokenizer)
    encoded = encode_for(
        loaded,
        dataset,
        tokenizer,
        template,
        max_length=config.max_length,
        skip_bad_rows=config.skip_bad_rows,
    )
    log.info("precision: %s (%s)", str(dtype).removeprefix("torch."), why)
    loaded.eval()
    scorer = Scorer(unfreeze(loaded), memory_budget=config.logits_memory_mb << 20)

    total = min(config.rows or len(encoded), len(encoded))
    limit = "" if config.rows else f", or as many as fit {config.seconds:.0f} s"
    log.info("measuring: %s rows%s", f"{total:,}", limit)
    with progress(total, label="measuring") as report:
        measured = measure(
            scorer, encoded, tokenizer, rows=config.rows, seconds=config.seconds, seed=config.seed,
            capacity=max(_CAPACITY, config.max_length), report=lambda done, expected: report(done, total=expected),
        )  # fmt: skip

    weights = effective_weights(chosen, measured)
    chosen = [phase for phase in chosen if phase.label in weights]
    norms: dict[str, float] = {}
    if config.gradients:
        batch = _gradient_batch(encoded, measured, device)
        log.info("gradient norms: %d objectives on %d tokens", len(chosen), sum(batch.row_lengths))
        norms = gradient_norms(scorer, batch, chosen)

    origins = _origins(dataset, encoded, measured)
    risks = find_risks(
        RiskInputs(
            measured=measured,
            counts=encoded.counts,
            where=[where for where, _ in origins],
            tokens=lambda ids: token_texts(ids, tokenizer),
            max_length=config.max_length,
            overlap=_overlap(dataset, problems or {}),
            duplicates=_duplicates(dataset) if encoded.counts.duplicates else (),
            findings=[*_weights(dataset), *token_findings(dataset, tokenizer, template)],
        )
    )
    overall = overall_figures(measured)
    result = Diagnosis(
        rectune=version("rectune"),
        model=model,
        fingerprint=fingerprint(loaded),
        data=config.data,
        template=template.name,
        goal=config.goal,
        rows=len(encoded),
        measured_rows=len(measured.rows),
        measured_targets=len(measured.logp_N),
        seconds_measuring=measured.seconds,
        tokens_per_second=measured.tokens / measured.seconds,
        bins=list(PROBABILITY_BINS),
        overall=overall,
        by_class=by_class(measured),
        by_position=by_position(measured),
        by_source=by_source(measured, [source for _, source in origins]),
        objectives=[describe(phase, weights[phase.label], measured, norms) for phase in chosen],
        verdict=recommend(overall, risks, config.goal, model, config.data, _flags(config)),
        risks=risks,
        examples=[
            example_row(scorer, encoded, measured, row, origins[row], weights, tokenizer)
            for row in choose_examples(measured, _rows_of(risks, origins))
        ],
    )
    page = render_page(result)
    result.seconds = round(time.perf_counter() - began, 3)
    with translate_disk_errors(out):
        write_json(out / "diagnosis.json", result.to_dict(), ensure_ascii=False)
    write_page(out / "diagnosis.html", page)
    return result


def _gradient_batch(encoded: EncodedRows, measured: Measured, device: torch.device) -> Batch:
    """The first measured rows that fit; at least one."""
    lengths = np.cumsum([encoded.lengths[index] for index in measured.rows])
    fitting = max(1, int(np.searchsorted(lengths, GRADIENT_TOKENS, side="right")))
    return collate([encoded[index] for index in measured.rows[:fitting]], device)


def _origins(dataset: datasets.Dataset, encoded: EncodedRows, measured: Measured) -> list[tuple[str, str]]:
    """Where each measured row came from, and its `source`."""
    indices = encoded.dataset.select(measured.rows)["row"]
    records = dataset.select_columns(["where", "source"]).select(indices)
    return list(zip(records["where"], records["source"], strict=True))


def _duplicates(dataset: datasets.Dataset) -> list[str]:
    """Some rows that repeat an earlier one."""
    digests = np.asarray(dataset.with_format("numpy", columns=["digest"])[:]["digest"])
    _, first = np.unique(digests, return_index=True)
    repeated = np.setdiff1d(np.arange(len(digests)), first)[:10]
    return [str(dataset[int(i)]["where"]) for i in repeated]


def _weights(dataset: datasets.Dataset) -> Iterable[Finding]:
    """That rows have weights, which the figures do not count."""
    if weights := weights_of(dataset):
        remedy = "training multiplies losses with them; the diagnosis counts each target once"
        finding = Finding("weights", f"are read with weights ({weights})", remedy, len(dataset), len(dataset))
        log.warning("%s", finding)
        yield finding


def _overlap(dataset: datasets.Dataset, problems: Mapping[str, str]) -> list[tuple[str, str]]:
    """Problems that occur in the rows, and where."""
    if not problems:
        return []
    rows = (row_at(dataset, i) for i in range(len(dataset)))
    found = find_overlap(problems, ((row.where, turn.content) for row in rows for turn in row.turns))
    return [(overlap.problem_id, overlap.where) for overlap in found]


def _rows_of(risks: Iterable[Risk], origins: Sequence[tuple[str, str]]) -> list[int]:
    """The measured rows that risks name."""
    places = {where: row for row, (where, _) in enumerate(origins)}
    return [places[row.where] for risk in risks for row in risk.rows[:2] if row.where in places]


def _flags(config: DataConfig) -> str:
    """The settings of rows that differ from the default, as flags of `rectune train`."""
    changed = config.model_dump(exclude_defaults=True, include=set(DataConfig.model_fields))
    return "".join(f" {shlex.quote(word)}" for word in as_flags(config, changed))
