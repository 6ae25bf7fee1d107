"""The commands. Each imports its dependencies when it is called."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rectune.cli.console import print_lines, print_table
from rectune.cli.options import Switch, Whole, takes
from rectune.config import (
    CheckConfig,
    CompareConfig,
    DiagnoseConfig,
    EvalConfig,
    MergeConfig,
    ReproduceConfig,
    RFTConfig,
    RLConfig,
    SampleConfig,
    TaskConfig,
    TrainConfig,
    WeighConfig,
)
from rectune.errors import GateError, UserError


@takes(TrainConfig, "data")
def train_(config: TrainConfig, *, resume: Switch = False, dry_run: Switch = False) -> None:
    """Fine-tune a model on demonstrations.
    Args:
        resume: Resume from the last checkpoint in the run folder, if there is one.
        dry_run: Print the settings, rows, tokens, steps and memory estimate, and stop.
    """
    began = time.perf_counter()
    if dry_run:
        from rectune.training.dry_run import plan

        print_lines(to_text(plan(config)))
        return
    from rectune.training.trainer import train

    result = train(config, resume=resume, began=began)
    if os.environ.get("RANK", "0") == "0":  # only the first process prints
        print_lines(to_text(result.to_dict()))


@takes(RLConfig, "problems")
def rl_(config: RLConfig, *, resume: Switch = False, dry_run: Switch = False, json: Switch = False) -> None:
    """Train a model with rewards on answers that it samples during training: GRPO or PPO.
    Args:
        resume: Resume from the last checkpoint in the run folder, if there is one.
        dry_run: Print the settings, problems, answers, updates and memory estimate, and stop.
        json: Print summary.json instead of a table.
    """
    began = time.perf_counter()
    if dry_run:
        from rectune.rl.rl_trainer import dry_run as plan

        print_lines(to_text(plan(config)))
        return
    from rectune.rl.rl_trainer import summary_table, train_rl

    result = train_rl(config, resume=resume, began=began)
    if json:
        print_lines(to_text(result.to_dict()))
        return
    print_table(summary_table(result))
    folders = (config.output_dir / name for name in ("adapter", "model"))
    print_lines(f"Model: {next(folder for folder in folders if folder.is_dir())}")


@takes(CompareConfig, "data", without=("objective",), recipe=TrainConfig)
def compare_(config: CompareConfig, *, dry_run: Switch = False, json: Switch = False) -> None:
    """Train with several objectives and compare them in pairs, over problems and seeds; run again, it resumes.

    All runs share rows, order and the settings below.

    Args:
        dry_run: Print runs, steps, tokens and samples, and stop.
        json: Print all of comparison.json.
    """
    from rectune.experiments.compare import compare, plan
    from rectune.experiments.comparison_tables import tables

    if dry_run:
        print_lines(to_text(plan(config)))
        return
    result = compare(config)
    decision = result.decision
    if json:
        print_lines(to_text(result.to_dict()))
    else:
        for title, rows in tables(result):
            print_lines(title)
            print_table(rows)
        print_lines(*([decision.sentence] if decision else ()))
        print_lines(*(result.verdict.sentences if result.verdict else ()))
        print_lines(f"\nPage: {config.output_dir / 'report.html'}")
    if decision and decision.passed is False:
        raise GateError(f"--require {decision.require} does not hold: {decision.sentence}")


@takes(RFTConfig, "problems")
def rft_(config: RFTConfig, *, resume: Switch = False, dry_run: Switch = False, json: Switch = False) -> None:
    """Train a model on its own graded answers: sample, grade, select, train.

    The objective decides the method: sft is RFT, dft the paper's offline DFT, iw_sft iw-SFT, dpo DPO.

    Args:
        resume: Resume a run in the folder where it stopped, at any stage.
        dry_run: Print settings, problems, and the maximum number of samples and rows, and stop.
        json: Print counts and figures as JSON instead of a table.
    """
    from rectune.experiments.rft import plan, table, train_rft

    if dry_run:
        print_lines(to_text(plan(config)))
        return
    result = train_rft(config, resume=resume)
    if json:
        print_lines(to_text(result.to_dict()))
        return
    print_table([table(result)])
    print_lines(f"Run: {result.train.out}")


@takes(DiagnoseConfig, "model", "data", recipe=TrainConfig)
def diagnose_(config: DiagnoseConfig, *, json: Switch = False) -> None:
    """Suggest an objective for the data and a model before training: one forward pass, a verdict, a page.

    A recipe for `rectune train` may be given; its settings of model and data are used.

    Args:
        json: Print diagnosis.json instead of a summary.
    """
    began = time.perf_counter()
    from rectune.diagnosis.diagnose import diagnose
    from rectune.diagnosis.page import summary
    from rectune.evaluation.prompts import question_texts

    tasks = TaskConfig(tasks=config.check_overlap, include_path=config.include_path)
    result = diagnose(config, problems=question_texts(tasks) if tasks.tasks else None, began=began)
    if json:
        print_lines(to_text(result.to_dict()))
        return
    print_parts(summary(result))
    print_lines(f"\nPage: {config.output_dir / 'diagnosis.html'}")


@takes(CheckConfig, "data", "model")
def check_(config: CheckConfig, *, json: Switch = False) -> None:
    """Check how data is read: format, fields, faulty rows, and a row as a model reads it.

    The exit code is 2 if training or sampling would stop at the data.

    Args:
        json: Print all of it as JSON.
    """
    from rectune.diagnosis.check import check, summary

    result = check(
        config.data, kind=config.kind, options=config, model=config.model, max_length=config.max_length
    )
    print_lines(*([to_text(result.to_dict())] if json else summary(result)))
    if result.errors:
        first = result.errors[0]
        raise UserError(first, where=None if first.startswith(config.data) else config.data)


@takes(SampleConfig, "problems")
def sample_(config: SampleConfig) -> None:
    """Sample answers to problems from a model, as JSON lines; run again, it resumes.

    A model that was trained here is prompted as in training, as in `rectune eval`.
    """
    from rectune.evaluation.prompts import problems_for
    from rectune.sampling.sample import sample
    from rectune.sampling.types import EngineSpec, SamplingParams

    given = config.model_dump(include=config.model_fields_set)
    template = given.get("chat_template")
    problems = problems_for(
        config.model, config.problems, system=given.get("system_prompt"), template=template,
        include_path=config.include_path,
    )  # fmt: skip
    sample(
        config.model, problems, out=config.output, num_samples=config.num_samples,
        params=SamplingParams.of(config, config.seed), engine=EngineSpec.of(config), template=template,
    )  # fmt: skip
    print_lines(config.output)


@takes(EvalConfig, "model", "tasks")
def eval_(config: EvalConfig, *, json: Switch = False) -> None:
    """Measure accuracy on benchmarks, with confidence intervals. The paper's protocol is the default.

    Args:
        json: Print all figures as JSON.
    """
    from rectune.evaluation.evaluate import evaluate, table

    result = evaluate(config)
    if json:
        print_table([result.to_dict()], as_json=True)
        return
    print_table(table(result))


def grade_(
    samples: Path, /, *, output: Path, grading_workers: Whole | None = None, grading_timeout: float = 5.0
) -> None:
    """Add a verdict to every answer of a JSONL file; run again, it resumes.

    Args:
        samples: Lines with `answer` (gold), `text` (the model's answer) and optionally `grader` (default: math).
        output: The same lines with `verdict` and `extracted`, and with `verdict_reason` for an `error`.
        grading_workers: Processes that grade answers; unset: one for each core.
        grading_timeout: Seconds that grading one answer may take.
    """
    from rectune.grading import grade

    print_lines(grade(samples, output, grading_workers=grading_workers, grading_timeout=grading_timeout))


def select_(
    graded: Path,
    /,
    *,
    output: Path,
    purpose: Annotated[Literal["sft", "dpo"], Parameter(name="--for")],
    per_problem: Whole = 4,
    balance: Switch = False,
    include_unjudged: Switch = False,
    include_unfinished: Switch = False,
    seed: Whole = 0,
) -> None:
    """Turn graded answers into training rows, or into pairs of a better and a worse one.

    Args:
        graded: Output of `rectune grade`.
        output: Rows or pairs, JSONL; the counts go to OUTPUT.counts.json.
        purpose: sft keeps correct answers (RFT, offline DFT), dpo pairs correct and wrong ones.
        per_problem: Maximum number of rows or pairs per problem.
        balance: Repeat rows until every problem has as many as the one with the most.
        include_unjudged: For pairs, count answers whose grading timed out or failed as wrong.
        include_unfinished: Also use correct answers that reached the token limit.
        seed: Random seed of the choice of answers, if there are more than per_problem.
    """
    from rectune.grading.files import select

    counts = select(
        graded, output, purpose=purpose, per_problem=per_problem, balance=balance,
        include_unjudged=include_unjudged, include_unfinished=include_unfinished, seed=seed,
    )  # fmt: skip
    print_table([counts.to_dict()])


@takes(WeighConfig, "data", without=("chat_template", "system_prompt", "skip_bad_rows", "max_length"))
def weigh_(config: WeighConfig) -> None:
    """Weigh training rows by 1 minus the share of a model's graded answers to their problem that is correct.

    Training multiplies the loss of a row's targets with its weight over the mean weight. Rows that match no graded
    problem get no weight, which is 1.
    """
    from rectune.grading.row_weights import weigh

    counts = weigh(config)
    shown = counts.model_dump(exclude={"format", "data", "graded", "shuffle_weights", "weights"})
    print_table([{**shown, "weights": counts.weights}])


@takes(MergeConfig)
def merge_(config: MergeConfig) -> None:
    """Write models on the way from a base model to a tuned one: base + t (tuned - base); run again, it resumes.

    The folders that are written are printed. Models are merged block by block, in little memory whatever their size.
    """
    from rectune.models.merge import merge

    print_lines(*merge(config))


def report_(
    *runs: Path,
    output: Path | None = None,
    format: Literal["html", "markdown"] = "html",
    tasks_in: str = "",
    tasks_out: str = "",
    json: Switch = False,
) -> None:
    """Show runs on one self-contained page: verdict, accuracies, curves, answers, settings and cost.

    Args:
        runs: Folders of runs, evaluations, comparisons, diagnoses or a transformers Trainer, or their parent folders.
        output: File to write; by default report.html, or report.md for markdown, and none with --json.
        format: A page, or text with tables for a pull request.
        tasks_in: Benchmarks of the training rows' domain, separated by commas, if no comparison names them.
        tasks_out: Benchmarks of another domain.
        json: Print the content of the page as JSON.
    """
    from rectune.reporting.report import report

    if output is None and not json:
        output = Path("report.html" if format == "html" else "report.md")
    page = report(
        runs, out=output, format=format, benchmarks_in=names(tasks_in), benchmarks_out=names(tasks_out)
    )
    if json:
        print_lines(to_text(page.to_dict()))
        return
    decision = page.opening.decision
    print_lines(*([decision.sentence] if decision else ()), *page.verdict.sentences, output)


@takes(ReproduceConfig, "recipe")
def reproduce_(config: ReproduceConfig, *, dry_run: Switch = False, json: Switch = False) -> None:
    """Reproduce a table or figure of the paper, and compare its figures with ours; run again, it resumes.

    Args:
        dry_run: Print runs, steps, tokens and expected cost, and stop.
        json: Print all of it as JSON.
    """
    from rectune.experiments.reproduce import plan, prepare, reproduce

    result = plan(config) if dry_run else reproduce(config)
    if json:
        print_lines(to_text(result))
        return
    print_parts(prepare(config).code("paper.estimate" if dry_run else "paper.result").parts(result))
    if not dry_run:
        print_lines(f"\nPage: {result['page']}")


def list_(
    what: Literal["objectives", "columns", "tasks", "models", "recipes"] | None = None,
    /,
    *,
    json: Switch = False,
) -> None:
    """List objectives, columns, tasks, models or recipes.

    Args:
        what: The list to print; all if unset.
        json: Print JSON instead of tables.
    """
    from rectune.cli.catalog import LISTS

    if what is not None:
        print_table(list(LISTS[what]()), as_json=json)
        return
    lists = {name: list(rows()) for name, rows in LISTS.items()}
    if json:
        print_lines(to_text(lists))
        return
    for name, rows in lists.items():
        print_lines(f"{name}:")
        print_table(rows)


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def print_parts(parts: Iterable[str | Sequence[Mapping[str, object]]]) -> None:
    """Print lines and tables."""
    for part in parts:
        if isinstance(part, str):
            print_lines(part)
        else:
            print_table(part)


def to_text(result: object) -> str:
    """JSON; a number that is not finite is null."""
    from rectune.runtime.io import to_json

    return to_json(result, indent=2, ensure_ascii=False)
