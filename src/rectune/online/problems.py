"""The problems of an online run, and their prompts as token ids: what a policy is asked.

What it answers is in `rollout.py`, what the answers earn in `reward.py`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rectune.data.encoding import prompt_ids
from rectune.data.problems import read_problems
from rectune.data.rows import Problem, Turn
from rectune.data.templates import Template, check_template
from rectune.disk import check_writable
from rectune.errors import UserError
from rectune.evaluation.benchmarks import load_benchmark
from rectune.models.limits import embeddings, no_embedding, positions
from rectune.models.loading import check_model
from rectune.online.config import OnlineConfig


def load_problems(source: str, system: str | None = None) -> list[Problem]:
    """The problems of a JSONL file or of a benchmark, each with the system message in front if it has none.

    Raises:
        UserError: No such file or benchmark, or a malformed line.
    """
    path = Path(source).expanduser()
    if path.suffix or path.exists():
        problems = read_problems(path)
        if system is None:
            return problems
        first = Turn("system", system)
        return [
            p if p.prompt[0].role == "system" else replace(p, prompt=(first, *p.prompt)) for p in problems
        ]
    return load_benchmark(source, system=system)


def read_inputs(config: OnlineConfig) -> tuple[list[Problem], list[Problem]]:
    """The problems to learn on and those kept apart, once all other paths of the config were looked at.

    Raises:
        UserError: A path that leads nowhere, or problems that cannot be used.
    """
    check_writable(config.out)
    check_model(config.model)
    check_template(config.template)
    kept = load_problems(config.holdout, config.system) if config.holdout else []
    return load_problems(config.problems, config.system), kept


@dataclass(frozen=True)
class Asked:
    """Problems with their prompts.

    Attributes:
        prompts: Token ids of each, as the policy reads them.
    """

    problems: list[Problem]
    prompts: list[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.problems)

    @property
    def fingerprint(self) -> str:
        """What a run that goes on must find again: how many, and a checksum of prompts and answers."""
        content = [
            (p.problem_id, ids, p.answer, p.grader, p.extra)
            for p, ids in zip(self.problems, self.prompts, strict=True)
        ]
        checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
        return f"{len(self):,} problems, checksum {checksum:08x}"


def check_room(asked: Asked, model: PreTrainedModel, max_new_tokens: int) -> None:
    """Raise `UserError` for a problem with a token or, with its answer, positions that the model does not have."""
    places, known = positions(model), embeddings(model)
    for problem, ids in zip(asked.problems, asked.prompts, strict=True):
        where = problem.where or f"problem '{problem.problem_id}'"
        if max(ids) >= known:
            raise no_embedding(max(ids), known, where=where)
        if places is not None and len(ids) + max_new_tokens > places:
            what = f"{len(ids)} prompt tokens and max_new_tokens = {max_new_tokens} exceed the {places} positions"
            raise UserError(
                f"{what} of the model", where=where, hint="lower max_new_tokens, or shorten the prompt"
            )


def ask(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, template: Template) -> Asked:
    """The problems' prompts, those that `rectune sample` and `rectune eval` make."""
    prompts = []
    for problem in problems:
        ids = tuple(prompt_ids(problem.prompt, tokenizer, template))
        if not ids:
            raise UserError(
                f"problem '{problem.problem_id}' has an empty prompt", where=problem.where or None
            )
        prompts.append(ids)
    return Asked(list(problems), prompts)
