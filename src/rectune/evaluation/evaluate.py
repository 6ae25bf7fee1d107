"""Evaluate a model: sample, grade, and write the accuracies with their intervals into one folder.

    OUTPUT_DIR/samples.jsonl   every answer, append-only, resumed after a stop
    OUTPUT_DIR/graded.jsonl    the same with a verdict
    OUTPUT_DIR/evaluation.json the whole protocol and the numbers

The default protocol is the paper's: zero-shot, its instruction, T = 1, 16 samples of up to 4096 tokens. A model trained
here gets the prompt that it was trained with, unless told otherwise.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from rectune.config import EvalConfig
from rectune.data.chat_template import check_template, template_date
from rectune.data.trained_prompt import read_merge, run_prompt
from rectune.evaluation.accuracy import read_evaluation, read_graded, score
from rectune.evaluation.prompts import (
    TaskPrompts,
    all_problems,
    build_prompts,
    check_overlap,
    system_prompt,
    warn_of_mismatches,
)
from rectune.evaluation.tasks import TASKS
from rectune.grading.pool import Grader
from rectune.models.load import check_model
from rectune.pages.format import interval, number, percent
from rectune.records import Accuracy, EvalProtocol, Evaluation, Graded, TaskResult, write_record
from rectune.runtime.distributed import share, wait_for_all
from rectune.runtime.io import check_output

if TYPE_CHECKING:
    from rectune.sampling.types import Engine

log = logging.getLogger("rectune")

PACKAGES = ("rectune", "torch", "transformers", "math-verify", "vllm")


def evaluate(
    config: EvalConfig,
    *,
    engine: Engine | None = None,
    grader: Grader | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a model and return what is written to OUTPUT_DIR/evaluation.json.

    Run again after a stop, it resumes; with a larger `num_samples` it adds samples.

    Args:
        config: `chat_template` and `system_prompt`, where not given, are those of the training run that the model is
            of; `prompt`, where not given, too, else each task's own.
        engine: Instead of the backend that `config` names.
        grader: Processes that grade, for many calls; None starts new ones.
        progress: As in `sample`.

    Raises:
        UserError: Nothing to evaluate, an unknown task, a folder that holds another evaluation, and all that `sample`
            and `grade` raise.
    """
    from rectune.grading import grade
    from rectune.runtime.progress import reporter
    from rectune.sampling.sample import frozen_template, sample
    from rectune.sampling.types import EngineSpec, SamplingParams, check_stops

    out, run = config.output_dir, run_prompt(config.model)
    model = str(run.model) if run else config.model
    template = template_used = config.chat_template
    if run and "chat_template" not in config.model_fields_set:
        template, template_used = run.rows.chat_template, run.template
    system = system_prompt(run, config.system_prompt)
    prompts = build_prompts(config, run, prompt=config.prompt, system=system, seed=config.seed)
    warnings = warn_of_mismatches(run, prompts, system, template)
    overlap = check_overlap(config, config.check_overlap, run, config.seed) if config.check_overlap else None

    samples, graded, problems = out / "samples.jsonl", out / "graded.jsonl", all_problems(prompts)
    params = SamplingParams(
        config.temperature, config.top_p, config.max_new_tokens, config.seed, check_stops(config.stop)
    )
    spec: Engine | EngineSpec
    if engine is not None:
        spec = engine
    else:
        spec = EngineSpec.of(config)
        check_output(samples)
        check_template(template_used)
        if config.backend == "hf":
            check_model(model)
        template_used = frozen_template(out, template_used, model)
    sample(
        model,
        problems,
        out=samples,
        num_samples=config.num_samples,
        params=params,
        engine=spec,
        template=template_used,
        progress=progress,
    )

    index, processes = share()
    if index > 0:  # the first of several processes grades what all have sampled
        wait_for_all()
        return read_evaluation(out)
    total = len(problems) * config.num_samples
    with nullcontext(grader) if grader else Grader() as pool:
        with reporter(None if progress is None else lambda *_: None, 0, total, "grading") as report:
            grade(samples, graded, grader=pool, progress=lambda done: report(done, total, 0))
        lines = read_graded(graded, [problem.problem_id for problem in problems], config.num_samples)
        results = {name: _result(name, task, lines, pool) for name, task in prompts.items()}
    first = lines[problems[0].problem_id][0]
    result = Evaluation(
        model=config.model,
        fingerprint=first.fingerprint or "",
        training_run=str(run.run) if run else None,
        merge=read_merge(model),
        protocol=EvalProtocol(
            n=config.num_samples,
            **asdict(params) | {"stop": list(params.stop)},
            precision=config.dtype,
            template=template,
            date=template_date(template_used),
            template_file=template_used if template_used != template else None,
            system=system,
            limit=config.limit,
            engine=first.engine or "",
            not_taken=sorted(
                {name for samples in lines.values() for line in samples for name in line.not_taken}
            ),
        ),
        versions=_versions(),
        warnings=warnings,
        overlap=overlap,
        benchmarks=results,
    )
    write_record(out / "evaluation.json", result)
    if processes > 1:
        wait_for_all()
    return result


def _result(
    name: str, task: TaskPrompts, lines: Mapping[str, Sequence[Graded]], grader: Grader
) -> TaskResult:
    ids = [problem.problem_id for problem in task.problems]
    scores = score({problem_id: lines[problem_id] for problem_id in ids}, grader)
    if unknown := scores.verdicts["timeout"] + scores.verdicts["error"]:
        log.warning("%s: %d answers could not be graded; they count as not correct", name, unknown)
    declared = TASKS.get(name)
    return TaskResult(
        **dict(scores),
        prompt=task.prompt,
        first_prompt=lines[ids[0]][0].prompt,
        origin=declared.origin if declared else "a file of the user's",
        licence=declared.licence if declared else "unknown",
        note=declared.note if declared else "",
        problem_ids=ids,
    )


def table(evaluation: Evaluation) -> list[dict[str, str]]:
    """One row a task: accuracy, pass@n and maj@n with intervals, and what the answers look like."""
    n = evaluation.protocol.n
    return [
        {
            "benchmark": name,
            "problems": str(task.problems),
            f"avg@{n}": _interval(task.avg),
            f"pass@{n}": _interval(task.pass_at[str(n)]),
            f"maj@{n}": _interval(task.maj_at[str(n)]) if task.maj_at else "-",
            "stopped": percent(task.stopped, 0),
            "tokens": number(task.tokens, 0),
            "repeating": percent(task.repeating, 0),
            "not judged": str(task.verdicts["timeout"] + task.verdicts["error"]),
        }
        for name, task in evaluation.benchmarks.items()
    ]


def _interval(accuracy: Accuracy) -> str:
    return interval(accuracy.mean, accuracy.low, accuracy.high)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return versions
