"""The prompts of an evaluation: the problems of its tasks, asked as the model was trained.

Where problems come from is in `tasks.py`, the prompt of a training run in `data/trained_prompt.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rectune.config import DataConfig, TaskConfig
from rectune.data.contamination import find_overlap, row_turns
from rectune.data.loading import read_problems
from rectune.data.schema import Problem, Turn
from rectune.data.trained_prompt import RunPrompt, run_prompt, shared_wrapping, without_wrapping
from rectune.errors import UserError
from rectune.evaluation.tasks import AS_IS, TASKS, is_task_file, load_task, task_name
from rectune.records import OverlappingProblem, OverlapResult

log = logging.getLogger("rectune")


@dataclass(frozen=True)
class TaskPrompts:
    """The problems of one task, and the prompt around their questions, with {question} in it."""

    prompt: str
    problems: list[Problem]


def build_prompts(
    tasks: TaskConfig,
    run: RunPrompt | None = None,
    *,
    prompt: str | None = None,
    system: str | None = None,
    seed: int = 0,
) -> dict[str, TaskPrompts]:
    """The problems of each task, with `prompt` if given, else with the prompt of training, else with the task's own.

    Problems that bring their prompt with them (`AS_IS`, files) are not wrapped a second time.

    Raises:
        UserError: No task, two of one name, and what `load_task` raises.
    """
    built: dict[str, TaskPrompts] = {}
    for source in tasks.tasks:
        name = task_name(source)
        if name in built:
            hint = "rename the file" if is_task_file(source) else "give it once"
            raise UserError(f"there are two tasks named '{name}'", where=source, hint=hint)
        chosen = prompt or _task_prompt(source, run)
        wrapped = prompt if is_task_file(source) else chosen
        problems = load_task(
            source,
            include_path=tasks.include_path,
            limit=tasks.limit,
            seed=seed,
            prompt=wrapped,
            system=system,
        )
        built[name] = TaskPrompts(chosen, problems)
    if not built:
        raise UserError("nothing to evaluate on", hint="give --tasks")
    return built


def _task_prompt(source: str, run: RunPrompt | None) -> str:
    """The prompt of the run's rows, else the task's own."""
    declared = AS_IS if is_task_file(source) or source not in TASKS else TASKS[source].prompt
    return (run.wrapping if run and declared != AS_IS else None) or declared


def load_problems(
    source: str, *, run: RunPrompt | None = None, system: str | None = None, include_path: Path | None = None
) -> list[Problem]:
    """The problems of a JSONL file with its own ids, or of a task with the prompt of `run`.

    Args:
        system: System message in front of problems that have none.

    Raises:
        UserError: No such file or task, or a malformed line.
    """
    path = Path(source).expanduser()
    if not (path.suffix or path.exists()):
        return load_task(source, include_path=include_path, prompt=_task_prompt(source, run), system=system)
    problems = read_problems(path)
    if system is None:
        return problems
    first = Turn("system", system)
    return [
        problem
        if problem.prompt[0].role in ("system", "developer")
        else replace(problem, prompt=(first, *problem.prompt))
        for problem in problems
    ]


def problems_for(
    model: str,
    source: str,
    *,
    system: str | None = None,
    template: str | None = None,
    include_path: Path | None = None,
) -> list[Problem]:
    """The problems with the prompt that `model` was trained with; logs what is not as in training.

    Args:
        system, template: Instead of the training run's; "" is no system message.
    """
    run = run_prompt(model)
    system = system_prompt(run, system)
    problems = load_problems(source, run=run, system=system, include_path=include_path)
    if run:
        prompts = {source: TaskPrompts(_task_prompt(source, run), problems)}
        warn_of_mismatches(run, prompts, system, template or run.rows.chat_template)
    return problems


def system_prompt(run: RunPrompt | None, given: str | None) -> str | None:
    """The system message that is given ("" for none), else that of the training run."""
    return (run.rows.system_prompt if run else None) if given is None else given or None


def warn_of_mismatches(
    run: RunPrompt | None, prompts: Mapping[str, TaskPrompts], system: str | None, template: str
) -> list[str]:
    """How the prompts differ from those of training, as sentences; also logged."""
    if run is None:
        return []
    warnings = []
    if template not in (run.rows.chat_template, run.template):
        warnings.append(f"trained with template {run.rows.chat_template}, evaluated with {template}")
    if system != run.rows.system_prompt:
        warnings.append(f"trained with system message {run.rows.system_prompt!r}, evaluated with {system!r}")
    if run.wrapping is None:
        warnings.append("the prompt of training is not known (its rows are gone or few); compare the prompts")
    else:
        for name, task in prompts.items():
            used = _wrapping_of(task, run.wrapping)
            if used != run.wrapping:
                warnings.append(
                    f"the prompt of {name} is {used!r}, that of the training rows {run.wrapping!r}"
                )
    for warning in warnings:
        log.warning("PROMPT MISMATCH: %s", warning)
    return warnings


def _wrapping_of(task: TaskPrompts, trained: str) -> str:
    """The prompt of a task; of problems that bring their own, what they share: that of training if all fit it."""
    if task.prompt != AS_IS:
        return task.prompt
    texts = [problem.prompt[-1].content for problem in task.problems]
    before, _, after = trained.partition("{question}")
    if all(text.startswith(before) and text.endswith(after) for text in texts):
        return trained
    return shared_wrapping(texts) or AS_IS


def check_overlap(tasks: TaskConfig, rows: str, run: RunPrompt | None, seed: int = 0) -> OverlapResult:
    """Which problems' texts occur in training rows; also logged.

    Rows that the run was trained on are read as it read them, others in the format that they look like.
    """
    options = run.rows if run and rows == run.data else DataConfig()
    texts = question_texts(tasks, seed)
    found = [
        OverlappingProblem(**asdict(overlap)) for overlap in find_overlap(texts, row_turns(rows, options))
    ]
    (log.warning if found else log.info)("%d of %d problems occur in %s", len(found), len(texts), rows)
    return OverlapResult(rows=rows, problems=len(texts), found=found)


def question_texts(tasks: TaskConfig, seed: int = 0) -> dict[str, str]:
    """Problem id to the question without the prompt around it, also where the problems of a file bring one."""
    texts: dict[str, str] = {}
    for task in build_prompts(tasks, prompt=AS_IS, seed=seed).values():
        questions = without_wrapping([problem.prompt[-1].content for problem in task.problems])
        texts |= zip((problem.problem_id for problem in task.problems), questions, strict=True)
    return texts


def all_problems(prompts: Mapping[str, TaskPrompts]) -> Sequence[Problem]:
    """The problems of all tasks, in their order."""
    return [problem for task in prompts.values() for problem in task.problems]
