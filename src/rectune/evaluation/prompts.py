"""What is asked, and how: the problems of an evaluation in the prompt that the model was trained with.

Where problems come from is in `tasks.py`, how a training run asked in `data/trained_prompt.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rectune.config import DataConfig
from rectune.data.contamination import find_overlap, row_turns
from rectune.data.load import read_problems
from rectune.data.schema import Problem, Turn
from rectune.data.trained_prompt import RunPrompt, run_prompt, shared_wrapping
from rectune.errors import UserError
from rectune.evaluation.tasks import (
    AS_IS,
    BENCHMARKS,
    is_problem_file,
    load_benchmark,
    load_benchmark_file,
)
from rectune.records import OverlappingProblem, OverlapResult

log = logging.getLogger("rectune")


@dataclass(frozen=True)
class Wanted:
    """Which problems: benchmarks (names, or JSONL files), files, a folder of benchmarks, a limit for each."""

    benchmarks: Sequence[str]
    files: Sequence[Path]
    folder: Path | None
    limit: int | None
    seed: int


@dataclass(frozen=True)
class Asked:
    """One benchmark as it is asked: the prompt with {question} in it, and the problems."""

    prompt: str
    problems: list[Problem]


def ask(wanted: Wanted, run: RunPrompt | None, prompt: str | None, system: str | None) -> dict[str, Asked]:
    """The problems by benchmark, asked as told (`prompt`), else as in training, else the benchmark's way.

    A benchmark whose problems bring their prompt with them (`AS_IS`) is not wrapped a second time.

    Raises:
        UserError: No benchmark, two of one name, and what loading raises.
    """
    asked: dict[str, Asked] = {}
    for name in wanted.benchmarks:
        if is_problem_file(name):
            continue
        chosen = prompt or _prompt(name, run)
        problems = load_benchmark(
            name,
            benchmark_dir=wanted.folder,
            limit=wanted.limit,
            seed=wanted.seed,
            prompt=chosen,
            system=system,
        )
        asked[name] = Asked(chosen, problems)
    for path in [*map(Path, filter(is_problem_file, wanted.benchmarks)), *map(Path, wanted.files)]:
        if path.stem in asked:
            raise UserError(
                f"there are two benchmarks named '{path.stem}'", where=path, hint="rename the file"
            )
        problems = load_benchmark_file(
            path, limit=wanted.limit, seed=wanted.seed, prompt=prompt, system=system
        )
        asked[path.stem] = Asked(prompt or AS_IS, problems)
    if not asked:
        raise UserError("nothing to evaluate on", hint="give --tasks")
    return asked


def _prompt(name: str, run: RunPrompt | None) -> str:
    """How a benchmark is asked: as the run's rows ask, else its own way."""
    declared = BENCHMARKS[name].prompt if name in BENCHMARKS else AS_IS
    return (run.wrapping if run and declared != AS_IS else None) or declared


def load_problems(
    source: str, *, run: RunPrompt | None = None, system: str | None = None, benchmark_dir: Path | None = None
) -> list[Problem]:
    """The problems of a JSONL file, or of a benchmark asked as `run` asked, under the ids that they have there.

    Args:
        system: System message in front of problems that have none.

    Raises:
        UserError: No such file or benchmark, or a malformed line.
    """
    path = Path(source).expanduser()
    if not (path.suffix or path.exists()):
        prompt = _prompt(source, run)
        return load_benchmark(source, benchmark_dir=benchmark_dir, prompt=prompt, system=system)
    problems = read_problems(path)
    if system is None:
        return problems
    first = Turn("system", system)
    return [
        one if one.prompt[0].role in ("system", "developer") else replace(one, prompt=(first, *one.prompt))
        for one in problems
    ]


def problems_for(
    model: str,
    source: str,
    *,
    system: str | None = None,
    template: str | None = None,
    benchmark_dir: Path | None = None,
) -> list[Problem]:
    """The problems as `model` was trained to be asked; says in the log what is not as in training.

    Args:
        system, template: Instead of the training run's; "" is no system message.
    """
    run = run_prompt(model)
    system = (run.rows.system_prompt if run else None) if system is None else system or None
    problems = load_problems(source, run=run, system=system, benchmark_dir=benchmark_dir)
    if run:
        asked = {source: Asked(_prompt(source, run) if source in BENCHMARKS else AS_IS, problems)}
        for warning in mismatches(run, asked, system, template or run.rows.chat_template):
            log.warning("PROMPT MISMATCH: %s", warning)
    return problems


def mismatches(
    run: RunPrompt | None, asked: dict[str, Asked], system: str | None, template: str
) -> list[str]:
    """How the prompts differ from those of training, as sentences."""
    if run is None:
        return []
    found = []
    if template not in (run.rows.chat_template, run.template):
        found.append(f"trained with template {run.rows.chat_template}, evaluated with {template}")
    if system != run.rows.system_prompt:
        found.append(f"trained with system message {run.rows.system_prompt!r}, evaluated with {system!r}")
    if run.wrapping is None:
        found.append(
            "how training asked cannot be told (its rows are gone or few); compare the prompts yourself"
        )
        return found
    before, _, after = run.wrapping.partition("{question}")
    for name, one in asked.items():
        used = one.prompt
        if used == AS_IS:
            texts = [problem.prompt[-1].content for problem in one.problems]
            fits = all(text.startswith(before) and text.endswith(after) for text in texts)
            used = run.wrapping if fits else shared_wrapping(texts) or used
        if used != run.wrapping:
            found.append(f"{name} asks {used!r}, the training rows {run.wrapping!r}")
    return found


def overlapping(wanted: Wanted, rows: str, run: RunPrompt | None) -> OverlapResult:
    """Which problems' texts occur in training rows; also logged.

    Rows that the run was trained on are read as it read them, others in the format that they look like.
    """
    options = run.rows if run and rows == run.data else DataConfig()
    texts = _texts(wanted)
    found = [
        OverlappingProblem(**asdict(overlap)) for overlap in find_overlap(texts, row_turns(rows, options))
    ]
    (log.warning if found else log.info)("%d of %d problems occur in %s", len(found), len(texts), rows)
    return OverlapResult(rows=rows, problems=len(texts), found=found)


def questions(benchmarks: Sequence[str], folder: Path | None = None) -> dict[str, str]:
    """Problem id to text of all problems of some benchmarks, without the prompt around it."""
    return _texts(Wanted(benchmarks, (), folder, None, 0))


def _texts(wanted: Wanted) -> dict[str, str]:
    bare = ask(wanted, None, AS_IS, None)
    return {p.problem_id: p.prompt[-1].content for one in bare.values() for p in one.problems}
