"""Diagnose data under a model before any training: one forward pass, one verdict, its evidence.

    OUT/diagnosis.json   everything that was found
    OUT/diagnosis.html   the same to look at, with real rows coloured by probability and by weight

What is measured is in `measure.py`, what each objective would do in `effective_weights.py`, the verdict in
`recommendation.py`, risks in `risks.py`, every line that is drawn in `risks.py`, the page in `page.py`.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rectune.config import DataConfig, TrainConfig
from rectune.data.chat_template import check_template, choose_template
from rectune.data.contamination import find_overlap
from rectune.data.encoded_dataset import EncodedRows
from rectune.data.findings import token_findings
from rectune.data.load import read_rows, row_at
from rectune.data.packing import Batch, collate
from rectune.data.tokenization import token_texts
from rectune.data.trained_prompt import as_trained, run_prompt
from rectune.diagnosis import summary_statistics as figures
from rectune.diagnosis.classes import token_classes
from rectune.diagnosis.effective_weights import (
    DEFAULT,
    describe,
    gradient_norms,
    known_columns,
    learning_rate_factor,
    parse,
)
from rectune.diagnosis.examples import choose, examples
from rectune.diagnosis.measure import Measured, measure
from rectune.diagnosis.page import render_page
from rectune.diagnosis.recommendation import check_goal, decide
from rectune.diagnosis.risks import Found, find_risks
from rectune.errors import UserError
from rectune.models.limits import encode_for
from rectune.models.load import check_model, choose_dtype, fingerprint, load_model
from rectune.models.lora import unfreeze
from rectune.models.scorer import Scorer
from rectune.objectives import Objective
from rectune.pages.render import write_page
from rectune.runtime.distributed import default_device
from rectune.runtime.io import check_writable, write_json
from rectune.runtime.progress import reporter
from rectune.training.metrics import PROBABILITY_BINS

log = logging.getLogger("rectune")

FORMAT = 1
GRADIENT_TOKENS = 512
"""Of the batch that gradient norms are measured on."""
_CAPACITY = 4096  # tokens of a packed batch
_MAX_LENGTH = int(TrainConfig.model_fields["max_length"].default)


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
    max_length: int = _MAX_LENGTH,
    problems: Mapping[str, str] | None = None,
    gradients: bool = True,
    precision: str = "auto",
    memory_budget: int = 256,
    seed: int = 0,
    began: float | None = None,
) -> dict[str, Any]:
    """Say which objective fits `data` under `model`, and why; the content of OUT/diagnosis.json.

    Args:
        model: Hub id, folder, packaged name, or the folder of a training run.
        data: Rows, as `data` of a training run.
        out: Folder of the diagnosis.
        goal: "generalise" from the data, "fit" its distribution, or None: the verdict then names both.
        rows: Measure so many, drawn with the seed, however long it takes; None: as many as fit `seconds`.
        seconds: Of the pass over rows, where `rows` is None; what follows takes the rest of two minutes.
        objectives: Names with settings (`power:alpha=0.5`) or functions of your own; () shows the usual ones.
        options: How the rows are read and written; `holdout` and `limit` are not used.
        max_length: Longest row in tokens.
        problems: Problem id to question, to look for in the rows.
        gradients: Measure gradient norms too: a backward pass for each objective over 512 tokens.
        precision: "auto", "bf16" or "fp32".
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
    check_writable(Path(out))
    check_model(model)
    check_template(options.chat_template)
    dataset = read_rows(data, options=options)
    device = default_device()
    dtype, why = choose_dtype(precision, device)
    loaded, tokenizer = load_model(model, dtype=dtype, device=device)
    template = choose_template(options.chat_template, tokenizer)
    encoded = encode_for(
        loaded, dataset, tokenizer, template, max_length=max_length, skip_bad_rows=options.skip_bad_rows
    )
    log.info("precision: %s (%s)", str(dtype).removeprefix("torch."), why)
    loaded.eval()
    scorer = Scorer(unfreeze(loaded), memory_budget=memory_budget << 20)

    total = len(encoded) if rows is None else min(rows, len(encoded))
    log.info(
        "measuring: %s rows%s", f"{total:,}", f", or as many as fit {seconds:.0f} s" if rows is None else ""
    )
    with reporter(None, 0, total, "measuring") as report:
        measured = measure(
            scorer, encoded, rows=rows, seconds=seconds, seed=seed, capacity=max(_CAPACITY, max_length),
            report=lambda done, expected, left: report(done, expected, 0),
        )  # fmt: skip
    classes_N = token_classes(measured.targets_N, measured.structural_N, measured.row_N, tokenizer)
    columns = measured.columns()
    usable = [phase for phase in chosen if known_columns(phase, columns)]
    for phase in chosen:
        if phase not in usable:
            log.warning("%s: reads columns that a single pass does not give; left out", phase.label)
    weights = {phase.label: phase.weight(columns).numpy() for phase in usable}
    norms: dict[str, float] = {}
    if gradients:
        batch = _gradient_batch(encoded, measured, device)
        log.info("gradient norms: %d objectives on %d tokens", len(usable), sum(batch.row_lengths))
        norms = gradient_norms(scorer, batch, usable)
    overall = figures.figures(measured) | {"mean_p_error": figures.standard_error(measured)}
    sources = _sources(dataset, encoded, measured)
    texts = [
        (_text(dataset, encoded, i), where) for i, (where, _) in zip(measured.rows, sources, strict=True)
    ]
    found = Found(
        measured=measured, classes_N=classes_N, counts=encoded.counts, texts=texts, max_length=max_length,
        tokens=lambda ids: token_texts(ids, tokenizer), overlap=_overlap(dataset, problems),
        duplicates=_duplicates(dataset) if encoded.counts.duplicates else (),
        brought=token_findings(dataset, tokenizer, template),
    )  # fmt: skip
    risks = find_risks(found)
    shown = choose(measured, _rows_of(risks, sources))
    result: dict[str, Any] = {
        "format": FORMAT,
        "rectune": version("rectune"),
        "model": model,
        "fingerprint": fingerprint(loaded),
        "data": data,
        "template": template.name,
        "goal": goal,
        "rows": len(encoded),
        "measured_rows": len(measured.rows),
        "measured_targets": len(measured.logp_N),
        "seconds_measuring": measured.seconds,
        "tokens_per_second": measured.tokens / measured.seconds,
        "bins": list(PROBABILITY_BINS),
        "overall": overall,
        "by_class": figures.by_class(measured, classes_N),
        "by_position": figures.by_place(measured),
        "by_source": figures.by_source(measured, [source for _, source in sources]),
        "objectives": [
            describe(phase, weights[phase.label], measured, classes_N) | _norms(phase.label, norms)
            for phase in usable
        ],
        "verdict": decide(overall, risks, goal, model, data, _flags(options, max_length)),
        "risks": risks,
        "examples": examples(scorer, encoded, measured, classes_N, weights, shown, sources, tokenizer),
    }
    out = Path(out)
    page = render_page(result)
    result["seconds"] = round(time.perf_counter() - began, 3)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "diagnosis.json", result, ensure_ascii=False)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=out) from None
    write_page(out / "diagnosis.html", page)
    return result


def _norms(label: str, norms: Mapping[str, float]) -> dict[str, float | None]:
    """Norm of an objective's gradient relative to SFT's, and the learning-rate hint that follows."""
    if not norms or not norms["sft"]:
        return {"gradient_norm_ratio": None, "learning_rate_factor": None}
    ratio = norms[label] / norms["sft"]
    return {"gradient_norm_ratio": ratio, "learning_rate_factor": learning_rate_factor(ratio)}


def _gradient_batch(encoded: EncodedRows, measured: Measured, device: torch.device) -> Batch:
    """The first measured rows that fit; at least one."""
    rows, tokens = [encoded[measured.rows[0]]], int(encoded.lengths[measured.rows[0]])
    for index in measured.rows[1:]:
        tokens += int(encoded.lengths[index])
        if tokens > GRADIENT_TOKENS:
            break
        rows.append(encoded[index])
    return collate(rows, device)


def _sources(dataset: Any, encoded: EncodedRows, measured: Measured) -> list[tuple[str, str]]:
    """Where each measured row came from, and its `source`."""
    origin = encoded.dataset.select(measured.rows)["row"]
    records = dataset.select_columns(["where", "source"]).select(origin)
    return list(zip(records["where"], records["source"], strict=True))


def _text(dataset: Any, encoded: EncodedRows, index: int) -> str:
    row = row_at(dataset, encoded.dataset[index]["row"])
    return "\n".join(turn.content for turn in row.turns)


def _duplicates(dataset: Any) -> list[str]:
    """Some rows that repeat an earlier one."""
    digests = np.asarray(dataset.with_format("numpy", columns=["digest"])[:]["digest"])
    _, first = np.unique(digests, return_index=True)
    repeated = np.setdiff1d(np.arange(len(digests)), first)[:10]
    return [str(dataset[int(i)]["where"]) for i in repeated]


def _overlap(dataset: Any, problems: Mapping[str, str] | None) -> list[tuple[str, str]] | None:
    if problems is None:
        return None
    rows = (row_at(dataset, i) for i in range(len(dataset)))
    found = find_overlap(problems, ((row.where, turn.content) for row in rows for turn in row.turns))
    return [(one.problem_id, one.where) for one in found]


def _rows_of(risks: Sequence[Mapping[str, Any]], sources: Sequence[tuple[str, str]]) -> list[int]:
    """The measured rows that risks point at."""
    place = {where: row for row, (where, _) in enumerate(sources)}
    named = [row["where"] for risk in risks for row in risk["rows"][:2]]
    return [place[where] for where in named if where in place]


def _flags(options: DataConfig, max_length: int) -> str:
    """The settings of rows that differ from the default, as flags of `rectune train`."""
    changed = options.model_dump(exclude_defaults=True, exclude={"holdout", "limit"})
    flags = ""
    for name, value in changed.items():
        text = ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        flags += f" --rows.{name} {shlex.quote(text)}"
    return flags + (f" --max-length {max_length}" if max_length != _MAX_LENGTH else "")
