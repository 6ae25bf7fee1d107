"""Evaluate a model: sample, grade, and put the accuracies with their intervals into one folder.

    OUT/samples.jsonl   every answer, append-only, gone on with after a stop
    OUT/graded.jsonl    the same with a verdict
    OUT/evaluation.json the whole protocol and the numbers

The default protocol is the paper's: zero-shot, its instruction, T = 1, 16 samples of up to 4096 tokens. A
model trained here is asked as it was trained, unless told otherwise. Sampling is in `sampling/`, grading in
`grading/`, the numbers in `accuracy.py`, comparing two evaluations in `results.py`.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectune.data.chat_template import check_template, template_date
from rectune.data.trained_prompt import run_prompt
from rectune.evaluation.accuracy import Line, read_graded, score
from rectune.evaluation.prompts import Asked, Wanted, ask, mismatches, overlapping
from rectune.evaluation.tasks import BENCHMARKS
from rectune.models.load import check_model
from rectune.runtime.distributed import share, wait_for_all
from rectune.runtime.io import FORMAT, check_output, translate_disk_errors, write_json

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
) -> dict[str, Any]:
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
    from rectune.sampling.dated import kept_template
    from rectune.sampling.sample import sample
    from rectune.sampling.stop_strings import check_stops

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
    drawn = {
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "stop": list(check_stops(stop)),
        "precision": precision,
    }
    if isinstance(engine, str):
        check_output(samples)
        check_template(asks)
        if engine == "hf":
            check_model(name)
        asks = kept_template(Path(out), asks, name)
    sample(
        name,
        problems,
        out=samples,
        template=asks,
        engine=engine,
        batch_size=batch_size,
        server_url=server_url,
        served_name=served_name,
        server_logprobs=server_logprobs,
        progress=progress,
        **drawn,  # type: ignore[arg-type]
    )
    index, of = share()
    if index > 0:  # the first of several processes grades what all have drawn
        wait_for_all()
        result: dict[str, Any] = json.loads((Path(out) / "evaluation.json").read_text("utf-8"))
        return result
    total = len(problems) * n
    with reporter(None if progress is None else lambda *_: None, 0, total, "grading") as report:
        grade(samples, graded, progress=lambda done: report(done, total, 0))
    lines = read_graded(graded, [problem.problem_id for problem in problems], n)
    first = lines[problems[0].problem_id][0]
    result = {
        "format": FORMAT,
        "model": model,
        "fingerprint": first["fingerprint"],
        "training_run": str(run.run) if run else None,
        "protocol": drawn
        | {
            "template": template,
            "date": template_date(asks),
            "template_file": asks if asks != template else None,
        }
        | {"shots": 0, "system": system, "limit": limit, "engine": first["engine"]}
        | {
            "not_taken": sorted(
                {name for one in lines.values() for line in one for name in line.get("not_taken", ())}
            )
        },
        "versions": _versions(),
        "warnings": warnings,
        "overlap": overlap,
        "benchmarks": {name: _numbers(name, one, lines) for name, one in asked.items()},
    }
    with translate_disk_errors(out):
        write_json(Path(out) / "evaluation.json", result, indent=2, ensure_ascii=False)
    if of > 1:
        wait_for_all()
    return result


def _numbers(name: str, asked: Asked, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
    ids = [problem.problem_id for problem in asked.problems]
    numbers = score({problem_id: lines[problem_id] for problem_id in ids})
    if unknown := numbers["verdicts"]["timeout"] + numbers["verdicts"]["error"]:
        log.warning("%s: %d answers could not be judged; they are not counted correct", name, unknown)
    benchmark = BENCHMARKS.get(name)
    return {
        **numbers,
        "prompt": asked.prompt,
        "first_prompt": lines[ids[0]][0]["prompt"],
        "origin": benchmark.origin if benchmark else "a file of the user's",
        "licence": benchmark.licence if benchmark else "unknown",
        "note": benchmark.note if benchmark else "",
        "problem_ids": ids,
    }


def table(evaluation: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows to print: per benchmark accuracy, pass@n, maj@n with intervals, and the answers'
    looks."""
    n = evaluation["protocol"]["n"]
    header = [
        "benchmark",
        "problems",
        f"avg@{n}",
        f"pass@{n}",
        f"maj@{n}",
        "stopped",
        "tokens",
        "repeating",
        "not judged",
    ]
    rows = []
    for name, numbers in evaluation["benchmarks"].items():
        verdicts = numbers["verdicts"]
        rows.append(
            [
                name,
                str(numbers["problems"]),
                _percent(numbers["avg"]),
                _percent(numbers["pass_at"][str(n)]),
                _percent(numbers["maj_at"][str(n)]) if "maj_at" in numbers else "-",
                f"{numbers['stopped']:.0%}" if "stopped" in numbers else "-",
                f"{numbers['tokens']:.0f}" if "tokens" in numbers else "-",
                f"{numbers['repeating']:.0%}" if "repeating" in numbers else "-",
                str(verdicts["timeout"] + verdicts["error"]),
            ]
        )
    return header, rows


def _percent(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return found
