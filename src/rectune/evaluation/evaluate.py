"""Evaluate a model: sample, grade, and put the accuracies with their intervals into one folder.

    OUT/samples.jsonl   every answer, append-only, gone on with after a stop
    OUT/graded.jsonl    the same with a verdict
    OUT/evaluation.json the whole protocol and the numbers

The default protocol is the paper's: zero-shot, its instruction, T = 1, 16 samples of up to 4096 tokens. A
model trained here is asked as it was trained, unless told otherwise. Sampling is in `sampling/`, grading in
`grading/`, the numbers in `metrics.py`, the comparison of several evaluations in `analysis/`.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rectune.data.chat_template import check_template, template_date
from rectune.data.trained_prompt import run_prompt
from rectune.evaluation.metrics import read_evaluation, read_graded, score
from rectune.evaluation.prompts import Asked, Wanted, ask, mismatches, overlapping
from rectune.evaluation.tasks import BENCHMARKS
from rectune.models.load import check_model
from rectune.records import Accuracy, EvalProtocol, Evaluation, Graded, TaskResult, write_record
from rectune.runtime.distributed import share, wait_for_all
from rectune.runtime.io import check_output

if TYPE_CHECKING:
    from rectune.sampling.types import Engine

log = logging.getLogger("rectune")

PACKAGES = ("rectune", "torch", "transformers", "math-verify", "vllm")


def evaluate(
    model: str,
    benchmarks: Sequence[str] = (),
    *,
    out: Path,
    benchmark_files: Sequence[Path] = (),
    benchmark_dir: Path | None = None,
    n: int = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 4096,
    seed: int = 0,
    stop: Sequence[str] = (),
    limit: int | None = None,
    prompt: str | None = None,
    system: str | None = None,
    template: str | None = None,
    check_overlap: str | None = None,
    engine: str | Engine = "hf",
    server_url: str | None = None,
    served_name: str | None = None,
    server_logprobs: bool = True,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: Callable[[int, int, int], None] | None = None,
) -> Evaluation:
    """Evaluate `model` and return what is written to OUT/evaluation.json.

    Run again after a stop, it goes on; with a larger `n` it adds samples.

    Args:
        model: Hub id, folder, packaged name, or the folder of a training run; for a server what has its
            tokenizer.
        benchmarks: Names, see `BENCHMARKS`, or JSONL files as in `benchmark_files`.
        out: Folder of this evaluation; one model and one protocol each.
        benchmark_files: JSONL files of one's own with `prompt` and `answer`; named by the file's stem.
        benchmark_dir: A folder that has the benchmarks' files; else they are packaged or loaded from the hub.
        n, temperature, top_p, max_new_tokens, seed, stop: How answers are drawn.
        limit: Only so many problems of each benchmark, drawn with the seed.
        prompt: The user turn with {question} in it, for all benchmarks. None: as in the model's training run,
            else each benchmark's own.
        system: System message; "" for none. None: as in the training run, else none.
        template: "auto", "none" or a file. None: as in the training run, else "auto".
        check_overlap: Training rows (as `data` of a recipe) to look for the problems' texts in.
        engine, server_url, served_name, server_logprobs, batch_size, precision, progress: As in `sample`.

    Raises:
        UserError: Nothing to evaluate, an unknown benchmark, a folder that holds another evaluation, and all
            that `sample` and `grade` raise.
    """
    from rectune.grading import grade
    from rectune.runtime.progress import reporter
    from rectune.sampling.sample import frozen_template, sample
    from rectune.sampling.stop_strings import check_stops
    from rectune.sampling.types import EngineSpec, SamplingParams

    run, wanted = run_prompt(model), Wanted(benchmarks, benchmark_files, benchmark_dir, limit, seed)
    asks, name = template or (run.template if run else "auto"), str(run.model) if run else model
    if template is None:
        template = run.rows.chat_template if run else "auto"
    system = (run.rows.system_prompt if run else None) if system is None else system or None
    asked = ask(wanted, run, prompt, system)
    warnings = mismatches(run, asked, system, template)
    for warning in warnings:
        log.warning("PROMPT MISMATCH: %s", warning)
    overlap = overlapping(wanted, check_overlap, run) if check_overlap is not None else None

    samples, graded = Path(out) / "samples.jsonl", Path(out) / "graded.jsonl"
    problems = [problem for one in asked.values() for problem in one.problems]
    params = SamplingParams(temperature, top_p, max_new_tokens, seed, check_stops(stop))
    drawn = {
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "stop": list(params.stop),
        "precision": precision,
    }
    if isinstance(engine, str):
        spec: Engine | EngineSpec = EngineSpec(
            engine, batch_size, precision, server_url, served_name, server_logprobs
        )
        check_output(samples)
        check_template(asks)
        if engine == "hf":
            check_model(name)
        asks = frozen_template(Path(out), asks, name)
    else:
        spec = engine
    sample(
        name,
        problems,
        out=samples,
        num_samples=n,
        params=params,
        engine=spec,
        template=asks,
        progress=progress,
    )
    index, of = share()
    if index > 0:  # the first of several processes grades what all have drawn
        wait_for_all()
        return read_evaluation(Path(out))
    total = len(problems) * n
    with reporter(None if progress is None else lambda *_: None, 0, total, "grading") as report:
        grade(samples, graded, progress=lambda done: report(done, total, 0))
    lines = read_graded(graded, [problem.problem_id for problem in problems], n)
    first = lines[problems[0].problem_id][0]
    refused = {name for samples in lines.values() for line in samples for name in line.not_taken}
    result = Evaluation(
        model=model,
        fingerprint=first.fingerprint or "",
        training_run=str(run.run) if run else None,
        protocol=EvalProtocol(
            **drawn,  # type: ignore[arg-type]
            template=template,
            date=template_date(asks),
            template_file=asks if asks != template else None,
            system=system,
            limit=limit,
            engine=first.engine or "",
            not_taken=sorted(refused),
        ),
        versions=_versions(),
        warnings=warnings,
        overlap=overlap,
        benchmarks={name: _result(name, one, lines) for name, one in asked.items()},
    )
    write_record(Path(out) / "evaluation.json", result)
    if of > 1:
        wait_for_all()
    return result


def _result(name: str, asked: Asked, lines: Mapping[str, Sequence[Graded]]) -> TaskResult:
    ids = [problem.problem_id for problem in asked.problems]
    scores = score({problem_id: lines[problem_id] for problem_id in ids})
    if unknown := scores.verdicts["timeout"] + scores.verdicts["error"]:
        log.warning("%s: %d answers could not be judged; they are not counted correct", name, unknown)
    task = BENCHMARKS.get(name)
    return TaskResult(
        **dict(scores),
        prompt=asked.prompt,
        first_prompt=lines[ids[0]][0].prompt,
        origin=task.origin if task else "a file of the user's",
        licence=task.licence if task else "unknown",
        note=task.note if task else "",
        problem_ids=ids,
    )


def table(evaluation: Evaluation) -> list[dict[str, str]]:
    """One row a task: accuracy, pass@n and maj@n with intervals, and what the answers look like."""
    n = evaluation.protocol.n
    return [
        {
            "benchmark": name,
            "problems": str(task.problems),
            f"avg@{n}": _percent(task.avg),
            f"pass@{n}": _percent(task.pass_at[str(n)]),
            f"maj@{n}": _percent(task.maj_at[str(n)]) if task.maj_at else "-",
            "stopped": "-" if task.stopped is None else f"{task.stopped:.0%}",
            "tokens": "-" if task.tokens is None else f"{task.tokens:.0f}",
            "repeating": "-" if task.repeating is None else f"{task.repeating:.0%}",
            "not judged": str(task.verdicts["timeout"] + task.verdicts["error"]),
        }
        for name, task in evaluation.benchmarks.items()
    ]


def _percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.mean:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return found
