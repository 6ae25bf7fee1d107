"""The problems of an online run, and their prompts as token ids: what a policy is prompts.

What it answers is in `rollout.py`, what the answers earn in `reward.py`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rectune.config import RLConfig
from rectune.data.chat_template import Template, check_template
from rectune.data.findings import say_findings
from rectune.data.schema import Problem
from rectune.data.tokenization import prompt_ids
from rectune.errors import UserError
from rectune.evaluation.prompts import load_problems
from rectune.models.limits import embeddings, no_embedding, positions
from rectune.models.load import check_model
from rectune.runtime.io import check_writable


def read_inputs(config: RLConfig) -> tuple[list[Problem], list[Problem]]:
    """The problems to learn on and those kept apart, once all other paths of the config were looked at.

    Raises:
        UserError: A path that leads nowhere, or problems that cannot be used.
    """
    check_writable(config.output_dir)
    check_model(config.model)
    check_template(config.chat_template)
    kept = load_problems(config.eval_problems, system=config.system_prompt) if config.eval_problems else []
    return load_problems(config.problems, system=config.system_prompt), kept


@dataclass(frozen=True)
class PromptSet:
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


def check_room(
    prompts: PromptSet, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> None:
    """Raise `UserError` for a problem with a token or, with its answer, positions that the model does not have."""
    places, known = positions(model), embeddings(model)
    for problem, ids in zip(prompts.problems, prompts.prompts, strict=True):
        where = problem.where or f"problem '{problem.problem_id}'"
        if max(ids) >= known:
            raise no_embedding(max(ids), known, tokenizer, where)
        if places is not None and len(ids) + max_new_tokens > places:
            what = f"{len(ids)} prompt tokens and max_new_tokens = {max_new_tokens} exceed the {places} positions"
            raise UserError(
                f"{what} of the model", where=where, hint="lower max_new_tokens, or shorten the prompt"
            )


def load_prompts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, template: Template
) -> PromptSet:
    """The problems' prompts, those that `rectune sample` and `rectune eval` make."""
    say_findings(problems, tokenizer, template)
    prompts = []
    for problem in problems:
        ids = tuple(prompt_ids(problem.prompt, tokenizer, template))
        if not ids:
            raise UserError(
                f"problem '{problem.problem_id}' has an empty prompt", where=problem.where or None
            )
        prompts.append(ids)
    return PromptSet(list(problems), prompts)
