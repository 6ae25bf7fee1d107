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
from pathlib import Path

import datasets
import numpy as np
import torch

from rectune.config import DataConfig
from rectune.data.chat_template import check_template, choose_template
from rectune.data.contamination import find_overlap
from rectune.data.encoded_dataset import EncodedRows
from rectune.data.findings import token_findings
from rectune.data.load import read_rows, row_at
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
from rectune.diagnosis.recommendation import check_goal, recommend
from rectune.diagnosis.risks import RiskInputs, find_risks
from rectune.errors import UserError
from rectune.models.limits import encode_for
from rectune.models.load import check_model, choose_dtype, fingerprint, load_model
from rectune.models.lora import unfreeze
from rectune.models.scorer import Scorer
from rectune.objectives import Objective
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
    model: str,
    data: str,
    *,
    out: Path,
    goal: str | None = None,
    rows: int | None = None,
    seconds: float = 90.0,
    objectives: Sequence[str | Objective] = (),
    options: DataConfig | None = None,
    problems: Mapping[str, str] | None = None,
    gradients: bool = True,
    precision: str = "auto",
    memory_budget: int = 256,
    seed: int = 0,
    began: float | None = None,
) -> Diagnosis:
    """Say which objective fits `data` under `model`, and why; the content of OUT/diagnosis.json.

    Args:
        model: Hub id, folder, packaged name, or the folder of a training run.
        data: Rows, as `data` of a training run.
        out: Folder of the diagnosis.
        goal: "generalise" from the data, "fit" its distribution, or None: the verdict then names both.
        rows: Measure so many, sampled with the seed, however long it takes; None: as many as fit `seconds`.
        seconds: Time for the pass over rows, where `rows` is None; the rest takes about half a minute.
        objectives: Names with settings (`power:alpha=0.5`) or functions of your own; () shows the usual ones.
        options: How the rows are read, written and cut.
        problems: Problem id to question, to look for in the rows.
        gradients: Measure gradient norms too: a backward pass for each objective over 512 tokens.
        precision: "auto", "bfloat16" or "float32".
        memory_budget: MiB for the logits of the head.
        seed: Of the sample of rows.
        began: `time.perf_counter()` as the command began, for `seconds`; None: now.

    Raises:
        UserError: Data, model or settings that cannot be used, or a folder that cannot be written.
    """
    began = time.perf_counter() if began is None else began
    check_goal(goal)
    chosen = parse(objectives or DEFAULT)
    if (rows is not None and rows < 1) or seconds <= 0:
        raise UserError("nothing to measure", where="rows and seconds", hint="1 or more, and above 0")
    options = as_trained(model, options or DataConfig())
    model = str(run.model) if (run := run_prompt(model)) else model
    out = Path(out)
    check_writable(out)
    check_model(model)
    check_template(options.chat_template)

    dataset = read_rows(data, options=options)
    device = default_device()
    dtype, why = choose_dtype(precision, device)
    loaded, tokenizer = load_model(model, dtype=dtype, device=device)
    template = choose_template(options.chat_template, tokenizer)
    encoded = encode_for(
        loaded,
        dataset,
        tokenizer,
        template,
        max_length=options.max_length,
        skip_bad_rows=options.skip_bad_rows,
    )
    log.info("precision: %s (%s)", str(dtype).removeprefix("torch."), why)
    loaded.eval()
    scorer = Scorer(unfreeze(loaded), memory_budget=memory_budget << 20)

    total = len(encoded) if rows is None else min(rows, len(encoded))
    limit = f", or as many as fit {seconds:.0f} s" if rows is None else ""
    log.info("measuring: %s rows%s", f"{total:,}", limit)
    with progress(total, label="measuring") as report:
        measured = measure(
            scorer, encoded, tokenizer, rows=rows, seconds=seconds, seed=seed,
            capacity=max(_CAPACITY, options.max_length), report=lambda done, expected: report(done, total=expected),
        )  # fmt: skip

    weights = effective_weights(chosen, measured)
    chosen = [phase for phase in chosen if phase.label in weights]
    norms: dict[str, float] = {}
    if gradients:
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
            max_length=options.max_length,
            overlap=_overlap(dataset, problems or {}),
            duplicates=_duplicates(dataset) if encoded.counts.duplicates else (),
            findings=token_findings(dataset, tokenizer, template),
        )
    )
    overall = overall_figures(measured)
    result = Diagnosis(
        rectune=version("rectune"),
        model=model,
        fingerprint=fingerprint(loaded),
        data=data,
        template=template.name,
        goal=goal,
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
        verdict=recommend(overall, risks, goal, model, data, _flags(options)),
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


def _flags(options: DataConfig) -> str:
    """The settings of rows that differ from the default, as flags of `rectune train`."""
    changed = options.model_dump(exclude_defaults=True, include=set(DataConfig.model_fields))
    flags = ""
    for name, value in changed.items():
        text = ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        flags += f" --{name.replace('_', '-')} {shlex.quote(text)}"
    return flags
