"""Tasks as small declarations: where the problems come from, how they are asked, how they are graded.

A task is read from a folder of the user's (`--include-path`), from the package, or from the hub, in this order. Users
add their own as a JSONL file of problems (`data/loading.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from rectune.data.loading import read_problems
from rectune.data.schema import Problem, RawRecord, Turn
from rectune.errors import UserError, unknown_name
from rectune.grading.final_answer import extract_answer
from rectune.grading.pool import GRADERS

QUESTION = ("question", "problem", "input", "prompt")
ANSWER = ("answer", "target", "final_ans", "gold", "solution_number")
ID = ("problem_id", "unique_id", "task_id", "ID", "id")
Records = Iterable[tuple[str, RawRecord]]


@dataclass(frozen=True)
class TaskDoc:
    """The question of one record, its gold answer, and what else the grader needs."""

    question: str
    answer: str | list[str]
    id: str | None = None
    extra: dict[str, object] = field(default_factory=dict)


def plain(record: RawRecord, where: str) -> TaskDoc:
    """A question and its answer, under any of the usual names; without one, the last box of its solution."""
    return TaskDoc(_text(record, QUESTION, where), _answer(record, where), _id(record))


def gsm8k(record: RawRecord, where: str) -> TaskDoc:
    """The gold answer stands behind `####`."""
    solution = _text(record, ("answer",), where)
    answer = solution.rpartition("####")[2].strip().replace(",", "") if "####" in solution else ""
    if not answer:
        raise UserError("no answer after '####'", where=where)
    return TaskDoc(_text(record, ("question",), where), answer, _id(record))


def svamp(record: RawRecord, where: str) -> TaskDoc:
    """Body and question are two fields."""
    question = f"{_text(record, ('Body',), where).strip()} {_text(record, ('Question',), where).strip()}"
    return TaskDoc(question, _written(_first(record, ("Answer",), where), "Answer", where), _id(record))


def olympiadbench(record: RawRecord, where: str) -> TaskDoc:
    """Extras for the math grader: `multiple` (several values asked for), `tolerance` (absolute), `unit`."""
    question = _text(record, ("question",), where)
    if record.get("context"):
        question = f"{record['context']}\n{question}"
    answers = _first(record, ("final_answer",), where)
    if not isinstance(answers, list) or not answers:
        raise UserError("field 'final_answer' is not a list of answers", where=where)
    extra: dict[str, object] = {}
    if record.get("is_multiple_answer"):
        extra["multiple"] = True
    if record.get("error"):
        extra["tolerance"] = str(record["error"])
    if record.get("unit"):
        extra["unit"] = str(record["unit"])
    return TaskDoc(
        question, answers[0] if len(answers) == 1 else [str(a) for a in answers], _id(record), extra
    )


def humaneval(record: RawRecord, where: str) -> TaskDoc:
    """The function's head is the question; the code grader takes `prompt`, `test` and `entry_point`."""
    extra: dict[str, object] = {
        name: _text(record, (name,), where) for name in ("prompt", "test", "entry_point")
    }
    question = f"Complete this Python function.\n\n```python\n{str(extra['prompt']).rstrip()}\n```"
    return TaskDoc(question, _text(record, ("canonical_solution",), where), _id(record), extra)


def mbpp(record: RawRecord, where: str) -> TaskDoc | None:
    """Tasks 11 to 510, the test split; the tests are shown, since they give the function its name."""
    number = _first(record, ("task_id",), where)
    if not isinstance(number, int) or not 11 <= number <= 510:
        return None
    tests = _first(record, ("test_list",), where)
    if not isinstance(tests, list) or not tests:
        raise UserError("field 'test_list' is not a list of tests", where=where)
    shown = "\n".join(map(str, tests))
    extra: dict[str, object] = {
        "test_list": tests,
        "test_setup_code": str(record.get("test_setup_code") or ""),
    }
    if record.get("test_imports"):  # of the sanitized version
        extra["test_imports"] = record["test_imports"]
    question = f"{_text(record, ('text', 'prompt'), where)}\nYour code has to pass these tests:\n\n{shown}"
    return TaskDoc(question, _text(record, ("code",), where), str(number), extra)


def _first(record: RawRecord, names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if name in record:
            return record[name]
    has = ", ".join(map(str, record)) or "nothing"
    raise UserError(f"no field '{names[0]}'", where=where, hint=f"has: {has}")


def _text(record: RawRecord, names: tuple[str, ...], where: str) -> str:
    value = _first(record, names, where)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"field '{names[0]}' is empty or not text", where=where)
    return value


def _answer(record: RawRecord, where: str) -> str | list[str]:
    solution = record.get("solution")
    if isinstance(solution, str) and not any(record.get(name) not in (None, "") for name in ANSWER):
        if boxed := extract_answer(solution, ["boxed"]):  # MATH's and Minerva's own files
            return boxed
        raise UserError("the problem has no answer, and its solution has no box", where=where)
    value = _first(record, ANSWER, where)
    if isinstance(value, list) and value:
        return [_written(answer, "answer", where) for answer in value]
    return _written(value, "answer", where)


def _written(value: object, name: str, where: str) -> str:
    """A gold answer as text; 51.0 is written 51."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise UserError(f"no answer (field '{name}' is {value!r})", where=where)
    return str(value).strip()


def _id(record: RawRecord) -> str | None:
    for name in ID:
        if isinstance(record.get(name), (str, int)):
            return str(record[name]).removeprefix("HumanEval/")
    return None


BOXED = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The paper's instruction, below the question, in one user turn."""
SHORT = "{question}\nAnswer in a few words, and put your final answer within \\boxed{}."
CODE = "{question}\n\nAnswer with the complete Python code in one ```python block."
AS_IS = "{question}"


@dataclass(frozen=True)
class Task:
    """One task (benchmark).

    Attributes:
        name: As on the command line.
        read: Turns a record and its place into a document; None for a record of another split.
        files: Relative to `--include-path`; `NAME.jsonl` is looked for as well.
        hub: Data set on the hub as owner/name or owner/name:config; None where we know none.
        split: Split on the hub.
        origin: Who published the problems.
        licence: As stated there.
        prompt: The user turn, with {question} in it.
        grader: Name of the grader.
        packaged: File in the package's assets; None where it is not packaged.
        note: What to know before quoting a number.
    """

    name: str
    read: Callable[[RawRecord, str], TaskDoc | None]
    files: tuple[str, ...]
    hub: str | None
    split: str
    origin: str
    licence: str
    prompt: str = BOXED
    grader: str = "math"
    packaged: str | None = None
    note: str = ""


_MATH_NOTE = "the problems are of public competitions, whose owners have given no licence"

_ALL = (
    Task("gsm8k", gsm8k, ("gsm8k/test.jsonl",), "openai/gsm8k:main", "test",
              "github.com/openai/grade-school-math", "MIT"),
    Task("svamp", svamp, ("svamp/SVAMP.json", "svamp/test.jsonl"), "ChilleD/SVAMP", "train+test",
              "github.com/arkilpatel/SVAMP", "MIT"),
    Task("multiarith", plain, ("mawps/multiarith.jsonl",), "ChilleD/MultiArith", "train+test",
              "MAWPS (University of Washington), github.com/ZubinGou/math-evaluation-harness",
              "none by its authors; redistributed under MIT"),
    Task("singleop", plain, ("mawps/singleop.jsonl",), None, "",
              "MAWPS (University of Washington), github.com/ZubinGou/math-evaluation-harness, data/mawps",
              "none by its authors; redistributed under MIT",
              note="some gold answers are rounded, such as 3.33333"),
    Task("math500", plain, ("math500/test.jsonl", "math_oai/test.jsonl"), "HuggingFaceH4/MATH-500", "test",
              "github.com/openai/prm800k", "MIT", note=_MATH_NOTE),
    Task("minerva", plain, ("minerva_math/test.jsonl", "minerva/test.jsonl"),
              "math-ai/minervamath", "test", "MIT OpenCourseWare, by way of Minerva (Lewkowycz et al. 2022)",
              "CC BY-NC-SA"),
    Task("olympiadbench", olympiadbench, ("olympiadbench/test.jsonl",),
              "Hothan/OlympiadBench:OE_TO_maths_en_COMP", "train", "github.com/OpenBMB/OlympiadBench", "MIT",
              note="text only, English, open-ended, mathematics; " + _MATH_NOTE),
    Task("aime24", plain, ("aime24/test.jsonl",), "HuggingFaceH4/aime_2024", "train",
              "American Invitational Mathematics Examination 2024", "none stated", note=_MATH_NOTE),
    Task("aime25", plain, ("aime25/test.jsonl",), "math-ai/aime25", "test",
              "American Invitational Mathematics Examination 2025", "none stated", note=_MATH_NOTE),
    Task("amc23", plain, ("amc23/test.jsonl",), "math-ai/amc23", "test",
              "American Mathematics Competitions 2023", "none stated", note=_MATH_NOTE),
    Task("humaneval", humaneval, ("humaneval/HumanEval.jsonl.gz",), "openai/openai_humaneval",
              "test", "github.com/openai/human-eval", "MIT", prompt=CODE, grader="code"),
    Task("mbpp", mbpp, ("mbpp/mbpp.jsonl",), "google-research-datasets/mbpp:full", "test",
              "Google Research (Austin et al. 2021)", "CC BY 4.0", prompt=CODE, grader="code",
              note="tasks 11 to 510, the test split"),
    Task("natural_questions", plain, ("natural_questions/test.jsonl",),
              "google-research-datasets/nq_open", "validation", "Google Research (NQ-Open)", "CC BY-SA 3.0",
              prompt=SHORT, grader="exact", note="closed book; any of several answers counts"),
    Task("gsm8k-calculations", plain, (), None, "", "made from GSM8K's test split", "MIT",
              prompt=AS_IS, grader="expression", packaged="gsm8k_calculations_test.jsonl",
              note="the model writes a calculation, which is evaluated"),
    Task("svamp-calculations", plain, (), None, "", "the first 400 of SVAMP", "MIT",
              prompt=AS_IS, grader="expression", packaged="svamp_excerpt.jsonl",
              note="out of domain for a model trained on gsm8k-calculations"),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def is_task_file(source: str | Path) -> bool:
    """Whether a JSONL file of problems is meant, and not a task's name."""
    return Path(source).suffix == ".jsonl" or (str(source) not in TASKS and Path(source).is_file())


def task_name(source: str | Path) -> str:
    """The name of a task, or the stem of a file of problems."""
    return Path(source).stem if is_task_file(source) else str(source)


def load_task(
    source: str | Path,
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    prompt: str | None = None,
    system: str | None = None,
) -> list[Problem]:
    """The problems of a task or of a user's JSONL file; their ids become `NAME/id`.

    Args:
        source: One of `TASKS`, or a file as `read_problems` reads it.
        include_path: A folder that has the task's file; nothing is then loaded from the hub.
        limit: Maximum number of problems, a random subset with `seed`, in the file's order.
        prompt: The user turn with {question} in it, instead of the task's own; in a file, around questions that are a
            single text.
        system: A system message in front.

    Raises:
        UserError: Unknown task; not to be found (says where it comes from and its licence); a record lacks its question
            or answer, names an unknown grader, or repeats an id.
    """
    name = task_name(source)
    if is_task_file(source):
        problems = read_problems(source)
        for problem in problems:
            if problem.grader not in GRADERS:
                raise unknown_name("grader", problem.grader, GRADERS, where=problem.where)
        problems = [_named(name, problem, prompt, system) for problem in problems]
    elif name not in TASKS:
        raise unknown_name("task or file", name, TASKS)
    else:
        task = TASKS[name]
        path = _local_file(task, include_path)
        if path is None and task.packaged is not None:
            packaged = read_problems(Path(str(files("rectune") / "assets" / task.packaged)))
            problems = [_named(name, problem, prompt, system) for problem in packaged]
        else:
            records = _from_hub(task) if path is None else _from_file(path)
            problems = _problems(task, records, task.prompt if prompt is None else prompt, system)
    return _subset(problems, limit, seed)


def _named(name: str, problem: Problem, prompt: str | None, system: str | None) -> Problem:
    turns = problem.prompt
    if prompt is not None and len(turns) == 1:
        turns = (_user_turn(prompt, turns[0].content),)
    return replace(problem, problem_id=f"{name}/{problem.problem_id}", prompt=_with_system(turns, system))


def _local_file(task: Task, folder: Path | None) -> Path | None:
    """The task's file in a folder; None without a folder, and for a packaged one that is not in it."""
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise UserError("no such folder", where=f"--include-path {folder}")
    names = (*task.files, f"{task.name}.jsonl")
    paths = [path for name in names if (path := Path(folder) / name).is_file()]
    if not paths and task.packaged is None:
        raise _missing(task, f"not in {folder} (looked for {', '.join(names)})")
    return paths[0] if paths else None


def _from_file(path: Path) -> Records:
    from rectune.data.loading import open_source

    return open_source(str(path))


def _from_hub(task: Task) -> Records:
    from rectune.data.loading import from_hub

    if task.hub is None:
        raise _missing(task, "not packaged, and on no hub that we know")
    try:
        return from_hub(task.hub, split=task.split)
    except UserError as error:
        raise _missing(task, f"not packaged; {task.hub}: {error.what}") from None


def _missing(task: Task, why: str) -> UserError:
    return UserError(
        f"{why}; it comes from {task.origin}, licence: {task.licence}",
        where=f"task {task.name}",
        hint=f"get it from there and give its folder with --include-path, as {task.name}.jsonl",
    )


def _problems(task: Task, records: Records, prompt: str, system: str | None) -> list[Problem]:
    problems, places = [], dict[str, str]()
    for index, (where, record) in enumerate(records):
        doc = task.read(record, where)
        if doc is None:  # not of the split that is evaluated
            continue
        id = f"{task.name}/{index if doc.id is None else doc.id}"
        if id in places:
            raise UserError(f"problem id {id} is used in {places[id]} too", where=where)
        places[id] = where
        turns = _with_system((_user_turn(prompt, doc.question),), system)
        problems.append(Problem(id, turns, doc.answer, task.grader, where, doc.extra or None))
    return problems


def _user_turn(prompt: str, question: str) -> Turn:
    if "{question}" not in prompt:
        raise UserError("the prompt must contain {question}", where="--prompt")
    return Turn("user", prompt.replace("{question}", question))


def _with_system(turns: tuple[Turn, ...], system: str | None) -> tuple[Turn, ...]:
    return turns if system is None or turns[0].role == "system" else (Turn("system", system), *turns)


def _subset(problems: list[Problem], limit: int | None, seed: int) -> list[Problem]:
    if limit is None:
        return problems
    if limit < 1:
        raise UserError(f"must be at least 1 (got {limit})", where="--limit")
    chosen = random.Random(seed).sample(range(len(problems)), min(limit, len(problems)))
    return [problems[i] for i in sorted(chosen)]
