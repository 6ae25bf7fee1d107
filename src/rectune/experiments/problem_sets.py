"""The problems of an experiment: those of the verdict and, apart from them, those that choices are judged on.

Both are written to OUT/problems with the prompt of the training rows, so that the base model and every trained one read
the same words. A choice (of a learning rate, of the survivors of a race) is never judged on the verdict's problems: the
best of several would look better there than it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from rectune.config import TaskConfig, TrainConfig
from rectune.data.schema import Problem
from rectune.data.trained_prompt import RunPrompt
from rectune.errors import UserError
from rectune.evaluation.prompts import build_prompts
from rectune.evaluation.tasks import task_name
from rectune.runtime.io import write_text

Problems = dict[str, list[Problem]]
AnyProblem = TypeVar("AnyProblem")

VALIDATION_SHARE = 0.25
"""Share of the problems that is set aside if no other validation problems are given."""


class ProblemFiles(NamedTuple):
    """Files of problems: of the verdict, of sweep and race (in domain), and of the choice of a model (of both)."""

    verdict: list[Path]
    choices: list[Path]
    validation: list[Path]


def name_domains(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Name of each benchmark to its domain, "in", "out" or "", in the order given.

    Args:
        groups: Domain to names of benchmarks or JSONL files.

    Raises:
        UserError: None at all, or one given twice.
    """
    domains: dict[str, str] = {}
    for domain, benchmarks in groups.items():
        for name in map(task_name, benchmarks):
            if name in domains:
                raise UserError(f"'{name}' is given twice", where="--tasks")
            domains[name] = domain
    if not domains:
        raise UserError("nothing to compare on", hint="give --tasks-in, --tasks-out or --tasks")
    return domains


def load_problems(
    wanted: Sequence[str], config: TrainConfig, *, benchmark_dir: Path | None = None, limit: int | None = None
) -> Problems:
    """The problems by benchmark, with the prompt of the training rows.

    Args:
        wanted: Names of benchmarks, or JSONL files of problems (which bring their own prompt).
        config: What is trained on, and with which system message.
        benchmark_dir, limit: As in `evaluate`; the limit subsamples with the config's seed.

    Raises:
        UserError: An unknown benchmark, or problems that cannot be read.
    """
    run = RunPrompt(Path(), Path(), config.data, config)
    tasks = TaskConfig(tasks=wanted, include_path=benchmark_dir, limit=limit)
    prompts = build_prompts(tasks, run, system=config.system_prompt, seed=config.seed)
    return {name: task.problems for name, task in prompts.items()}


def set_aside(
    problems: Mapping[str, Sequence[AnyProblem]], domains: Mapping[str, str], seed: int, domain: str = "in"
) -> tuple[dict[str, list[AnyProblem]], dict[str, list[AnyProblem]]]:
    """A random quarter of the problems of a domain to judge choices on, and all others.

    Args:
        problems: By benchmark; or their ids.
        domains: Benchmark to "in", "out" or "".

    Raises:
        UserError: No benchmark is of the domain, or one has a single problem.
    """
    members = [name for name in problems if domains[name] == domain]
    if not members:
        raise UserError(
            "sweep and race need other problems than the verdict",
            where="--sweep, --race",
            hint="give --validation, or --tasks-in, a quarter of which is then held out",
        )
    chosen: dict[str, list[AnyProblem]] = {}
    rest = {name: list(every) for name, every in problems.items()}
    for name in members:
        every = problems[name]
        if len(every) < 2:
            raise UserError(
                f"{name} has only one problem, so none can be held out",
                hint=f"give {'--validation' if domain == 'in' else '--validation-out'}",
            )
        count = max(1, round(VALIDATION_SHARE * len(every)))
        places = set(random.Random(f"{seed}/{name}").sample(range(len(every)), count))
        chosen[name] = [problem for place, problem in enumerate(every) if place in places]
        rest[name] = [problem for place, problem in enumerate(every) if place not in places]
    return chosen, rest


def check_apart(validation: Problems, verdict: Problems, where: str = "--validation") -> None:
    """Raise `UserError` if a problem to judge choices on is one of the verdict's, too."""
    judged = {problem.prompt for problems in verdict.values() for problem in problems}
    for name, problems in validation.items():
        shared = sum(problem.prompt in judged for problem in problems)
        if shared:
            raise UserError(
                f"{shared} of the {len(problems)} problems of {name} are also used for the verdict",
                where=where,
                hint="a choice made on them would favour the winner; give other problems",
            )


def write_problems(folder: Path, problems: Problems) -> list[Path]:
    """A JSONL file for each benchmark, named by it; what is there already has to be the same.

    Raises:
        UserError: The folder has other problems of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, asked in problems.items():
        path = folder / f"{name}.jsonl"
        text = "".join(json.dumps(_record(name, one), ensure_ascii=False) + "\n" for one in asked)
        if not path.exists():
            write_text(path, text)
        elif path.read_text("utf-8") != text:
            raise UserError(
                f"the problems of {name} have changed since this folder was created",
                where=path,
                hint="restore them, or give another --output-dir",
            )
        paths.append(path)
    return paths


def _record(name: str, problem: Problem) -> dict[str, object]:
    return {
        "problem_id": problem.problem_id.removeprefix(f"{name}/"),  # reading puts it in front again
        "prompt": [{"role": turn.role, "content": turn.content} for turn in problem.prompt],
        "answer": problem.answer,
        "grader": problem.grader,
        **({"extra": problem.extra} if problem.extra else {}),
    }
