"""A rollout: prompts, answers of the policy as it is now, their rewards, and the advantage of each of their tokens.

Every sample is keyed by (seed, step, problem, index), so that a resumed run samples what an uninterrupted one would.
Engines are in `rectune.sampling`, the formulas of advantages in `advantages.py`.

A reward is 1 or 0 by a grader, or what a Python function of the user's returns:

    def reward(prompt: str, text: str, answer: str | list[str], extra: dict) -> float

It is called with these names, once for each answer: `prompt` is the last turn of the question, `text` what the model
wrote (special tokens removed), `answer` and `extra` what the problem's line has (`{}` without extra). It returns a
finite number (or a bool). Its file is run when it is named, and only then.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rectune.config import RLConfig
from rectune.data.chat_template import Template, check_template
from rectune.data.findings import say_findings
from rectune.data.schema import Problem
from rectune.data.tokenization import IGNORED, Encoded
from rectune.errors import UserError, unknown_name
from rectune.evaluation.prompts import load_problems
from rectune.grading.files import UNJUDGED
from rectune.grading.pool import GRADERS, Grader, check_item
from rectune.models.limits import embeddings, no_embedding, positions
from rectune.models.load import check_model
from rectune.models.scorer import Scorer
from rectune.records import Figures, RolloutLine
from rectune.rl.advantages import degenerate_groups, explained_variance, gae, group_advantages, whitened
from rectune.rl.policy import Policy, TokenLimit
from rectune.runtime.io import check_writable, load_function, write_jsonl
from rectune.sampling.sample import all_stops, problem_prompt
from rectune.sampling.types import Completion, Engine, Request, SamplingParams

Function = Callable[..., Any]


class Earned(NamedTuple):
    """What one answer earned.

    Attributes:
        reward: NaN where it could not be judged.
        correct: By a grader; None under a function.
        verdict: The grader's word, or "" under a function.
    """

    reward: float
    correct: bool | None
    verdict: str


class Rewards(ExitStack):
    """Judges answers; a context manager, since graders are processes.

    Args:
        reward: As in the settings: "grader", a grader's name, or FILE.py:FUNCTION.
        timeout: Seconds for one answer, for graders.

    Raises:
        UserError: No such grader, file or function, or a file that cannot be run.
    """

    def __init__(self, reward: str, timeout: float) -> None:
        super().__init__()
        self.name, self.function, self.grader = reward, None, ""
        if ".py" in reward:
            self.function = load_function(reward, where="reward")
        elif reward != "grader":
            if reward not in GRADERS:
                known = ("grader", *GRADERS, "FILE.py:FUNCTION")
                raise unknown_name("reward", reward, known, where="reward")
            self.grader = reward
        self.pool = None if self.function else self.enter_context(Grader(timeout=timeout))

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `UserError` at the first problem that the grader cannot judge by what its line has."""
        for problem in [] if self.function else problems:
            check_item(self.grader or problem.grader, problem.extra, where=problem.where or None)

    def judge(self, answers: Sequence[tuple[Problem, str]]) -> list[Earned]:
        """What each answer (a problem and the model's words) earned, in order.

        Raises:
            UserError: The function raised, or returned no finite number; names the problem.
        """
        if self.function is not None:
            return [Earned(self._call(problem, text), None, "") for problem, text in answers]
        assert self.pool is not None
        items = [(p.answer, text, self.grader or p.grader, p.extra) for p, text in answers]
        verdicts = [verdict for verdict, *_ in self.pool.grade(items)]
        rewards = [math.nan if verdict in UNJUDGED else float(verdict == "correct") for verdict in verdicts]
        return [Earned(r, v == "correct", v) for r, v in zip(rewards, verdicts, strict=True)]

    def _call(self, problem: Problem, text: str) -> float:
        assert self.function is not None
        extra = problem.extra or {}
        given = {"prompt": problem.prompt[-1].content, "text": text, "answer": problem.answer, "extra": extra}
        try:
            value = self.function(**given)
        except (Exception, SystemExit) as error:  # whatever a user's code raises is theirs to correct
            says = f"raised {type(error).__name__}: {error}"
        else:
            try:
                reward = math.nan if isinstance(value, str) else float(value)
            except (TypeError, ValueError, RuntimeError, OverflowError):
                reward = math.nan
            if math.isfinite(reward):
                return reward
            says = f"returned {value!r:.80}, not a finite number"
        hint = "fix it and continue with --resume"
        raise UserError(f"{says} for problem '{problem.problem_id}'", where=self.name, hint=hint)


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
        """What a resumed run must find again: how many, and a checksum of prompts and answers."""
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
    return PromptSet(list(problems), [problem_prompt(problem, tokenizer, template) for problem in problems])


_SEEDS = 1_000_003
"""Seeds of samples are seed * this + step, as training seeds its dropout."""


@dataclass
class Rollout:
    """Answers in the order of problems, `n` to each; what is known of each token is a tensor per answer.

    Attributes:
        problems: Index in `PromptSet` of each answer's problem.
        rows: Prompt and answer as token ids; the answer is what is trained on.
        used: Which answers take part in the loss: those that could be judged.
        columns: Of each answer `advantage`, and where they are needed `old_logp`, `ref_logp`, `old_value`, `returns`.
    """

    answers: list[Completion]
    problems: list[int]
    rows: list[Encoded]
    earned: list[Earned]
    n: int
    seconds: dict[str, float]
    columns: list[dict[str, Tensor]] = field(default_factory=list)
    figures: Figures = field(default_factory=dict)

    @property
    def used(self) -> list[int]:
        pairs = enumerate(zip(self.answers, self.earned, strict=True))
        return [i for i, (answer, earned) in pairs if answer.token_ids and not math.isnan(earned.reward)]

    @property
    def lengths(self) -> list[int]:
        return [len(answer.token_ids) for answer in self.answers]

    @property
    def rewards_Gn(self) -> Tensor:
        pairs = zip(self.answers, self.earned, strict=True)
        rewards = [e.reward if a.token_ids else math.nan for a, e in pairs]
        return torch.tensor(rewards, dtype=torch.float64).view(-1, self.n)

    def cat(self, name: str, rows: Sequence[int], device: torch.device) -> Tensor:
        """A column of some answers, one behind the other."""
        return torch.cat([self.columns[row][name] for row in rows]).to(device)


def generate_rollouts(
    engine: Engine, rewards: Rewards, prompts: PromptSet, places: Sequence[int], config: RLConfig, step: int
) -> Rollout:
    """Sample `config.num_samples` answers to each of the problems at `places` and judge them."""
    return _sample(engine, rewards, prompts, places, config.num_samples, config, config.seed * _SEEDS + step)


def evaluate_policy(engine: Engine, rewards: Rewards, prompts: PromptSet, config: RLConfig) -> Figures:
    """Figures of answers to hold-out problems; the same seeds at every step."""
    return rollout_figures(
        _sample(engine, rewards, prompts, range(len(prompts)), config.eval_num_samples, config, config.seed)
    )


def _sample(
    engine: Engine,
    rewards: Rewards,
    prompts: PromptSet,
    places: Sequence[int],
    n: int,
    config: RLConfig,
    seed: int,
) -> Rollout:
    began = time.perf_counter()
    seen: Counter[int] = Counter()
    requests, problems = [], []
    for place in places:
        # a problem twice in a step has other samples
        name, first = prompts.problems[place].problem_id, n * seen[place]
        requests += [Request(name, first + i, prompts.prompts[place]) for i in range(n)]
        problems += [place] * n
        seen[place] += 1
    stop = all_stops(engine, config.stop)
    settings = SamplingParams(config.temperature, 1.0, config.max_new_tokens, seed, stop)
    found = {(c.request.problem_id, c.request.sample_index): c for c in engine.complete(requests, settings)}
    answers = [found[r.problem_id, r.sample_index] for r in requests]
    sampled = time.perf_counter()
    earned = rewards.judge([(prompts.problems[p], a.text) for p, a in zip(problems, answers, strict=True)])
    seconds = {"sampling": sampled - began, "grading": time.perf_counter() - sampled}
    return Rollout(answers, problems, [encoded(answer) for answer in answers], earned, n, seconds)


def encoded(answer: Completion) -> Encoded:
    """Prompt and answer as a row whose targets are the answer's tokens."""
    prompt, tokens = list(answer.request.prompt_ids), list(answer.token_ids)
    nowhere = [False] * (len(prompt) + len(tokens))
    return Encoded(prompt + tokens, [IGNORED] * len(prompt) + tokens, nowhere)


def rollout_figures(rollout: Rollout) -> Figures:
    """Reward, length and the like over all answers; `correct` is None under a user's function.

    `sample_nll` is that of the sampled tokens by the model itself, at temperature 1: an estimate of its entropy.
    """
    rewards = rollout.rewards_Gn[~rollout.rewards_Gn.isnan()]
    judged = [earned.correct for earned in rollout.earned if earned.correct is not None]
    count = max(1, len(rollout.answers))
    logprobs = [logp for answer in rollout.answers for logp in answer.logprobs]
    return {
        "reward": float(rewards.mean()) if len(rewards) else None,
        "reward_std": float(rewards.std(correction=0)) if len(rewards) else None,
        "correct": sum(judged) / len(judged) if judged else None,
        "length": sum(rollout.lengths) / count,
        "stopped": sum(answer.finish_reason == "stop" for answer in rollout.answers) / count,
        "unjudged": len(rollout.answers) - len(rollout.used),
        "sample_nll": -sum(logprobs) / len(logprobs) if logprobs else None,
    }


def save_rollout(rollout: Rollout, prompts: PromptSet, path: Path, step: int) -> None:
    """A rollout as JSON lines, for people to read."""
    lines = []
    for i, (answer, earned) in enumerate(zip(rollout.answers, rollout.earned, strict=True)):
        problem = prompts.problems[rollout.problems[i]]
        advantage = rollout.columns[i].get("advantage")
        line = RolloutLine(
            step=step + 1,
            problem_id=problem.problem_id,
            sample_index=answer.request.sample_index,
            question=problem.prompt[-1].content,
            text=answer.text,
            answer=problem.answer,
            reward=earned.reward,
            verdict=earned.verdict,
            advantage=None if advantage is None else float(advantage.mean()),
            tokens=len(answer.token_ids),
            finish_reason=answer.finish_reason,
        )
        lines.append(line.to_dict())
    write_jsonl(path, lines)


def compute_advantages(
    rollout: Rollout, policy: Policy, reference: Scorer | None, config: RLConfig, limit: TokenLimit
) -> None:
    """Fill in `columns` (the advantage of each token, and what the loss refers to) and `figures`."""
    began = time.perf_counter()
    ppo = config.algorithm == "ppo"
    # with a single update the policy is the old one, whose log-probs need no pass
    once = config.num_iterations * config.num_mini_batches == 1
    rollout.columns = [{} for _ in rollout.rows]
    if ppo or reference is not None or not once:
        used = rollout.used
        rows = [rollout.rows[i] for i in used]
        scored = limit.fit(
            lambda capacity: policy.score(rows, capacity, reference=reference), [len(row) for row in rows]
        )
        for i, columns in zip(used, scored, strict=True):
            rollout.columns[i] = {"old_logp": columns["logp"]}
            if "ref_logp" in columns:
                rollout.columns[i]["ref_logp"] = columns["ref_logp"]
            if ppo:
                rollout.columns[i]["old_value"] = columns["value"]
    rollout.figures = rollout_figures(rollout)
    rollout.figures["degenerate"] = degenerate_groups(rollout.rewards_Gn)
    rollout.figures["groups"] = len(rollout.rewards_Gn)
    if ppo:
        _compute_gae(rollout, config)
    else:
        of_answers = group_advantages(rollout.rewards_Gn, config.scale_rewards).flatten().float()
        for columns, advantage, length in zip(rollout.columns, of_answers, rollout.lengths, strict=True):
            columns["advantage"] = advantage.expand(length)
    rollout.seconds["credit"] = time.perf_counter() - began


def _compute_gae(rollout: Rollout, config: RLConfig) -> None:
    """GAE with the reward at the last token, and against the reference a penalty at each."""
    used, cpu = rollout.used, torch.device("cpu")
    if not used:
        return
    lengths = [rollout.lengths[i] for i in used]
    value = rollout.cat("old_value", used, cpu)
    reward = torch.zeros_like(value)
    if config.beta:
        reward -= config.beta * (rollout.cat("old_logp", used, cpu) - rollout.cat("ref_logp", used, cpu))
    last = torch.tensor(lengths).cumsum(0) - 1
    reward[last] += torch.tensor([rollout.earned[i].reward for i in used], dtype=reward.dtype)
    advantage, returns = gae(reward, value, lengths, gamma=config.gamma, lam=config.lam)
    rollout.figures["explained_variance"] = explained_variance(value, returns)
    rollout.figures["value"] = float(value.mean())
    advantage = whitened(advantage) if config.whiten_advantages else advantage
    for i, a, r in zip(used, advantage.split(lengths), returns.split(lengths), strict=True):
        rollout.columns[i] |= {"advantage": a, "returns": r}
