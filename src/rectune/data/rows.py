"""What the stages of rectune hand to each other: rows, problems and samples.

Plain frozen dataclasses without behaviour beyond reading and writing one JSON object. How foreign
formats become rows is in `converters.py`; how rows become token ids is in `encoded_dataset.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. `supervised` turns are the targets of training.

    Attributes:
        fields: JSON object of what else the chat template may read of the message (`reasoning_content`,
            `tool_calls`, `name`, `tool_call_id`); "" for none.
    """

    role: str
    content: str
    supervised: bool = False
    fields: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One demonstration: a conversation of which at least one turn is supervised.

    Attributes:
        turns: In order; a plain prompt/completion row is a user turn and a supervised assistant turn.
        where: `file:line` (or `dataset[index]`) that the row came from, for messages to the user.
        source: The row's own `source` field where it has one (NuminaMath, OpenR1), else "".
        tools: JSON list of the tools that the chat template is given; "" for none.
    """

    turns: tuple[Turn, ...]
    where: str
    source: str = ""
    tools: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a gold answer, to sample answers for and to grade them.

    Attributes:
        problem_id: Unique within its file or benchmark.
        prompt: The conversation up to the turn that the model has to write.
        answer: The gold answer, as its source prints it (several: a list).
        grader: Name of the grader: "math", "expression", "code", "exact".
        where: `file:line` or `benchmark[index]`.
        extra: What the grader needs beyond the answer (tolerance, tests, entry point).
    """

    problem_id: str
    prompt: tuple[Turn, ...]
    answer: str | list[str]
    grader: str = "math"
    where: str = ""
    extra: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of a model to one problem. One line of `samples.jsonl`.

    Attributes:
        problem_id, sample_index: The key of the sample; unique within a file.
        prompt: The prompt's text exactly as the model read it.
        text: What the model wrote, special tokens removed.
        answer, grader, extra: Copied from the problem, so that the file can be graded alone.
        token_ids, logprobs: The new tokens (the turn-ending one included, where one was sampled) and the
            log-probability of each under the sampled-from model at temperature 1.
        finish_reason: "stop" (the model ended its turn or wrote a stop text) or "length".
        seed, temperature, top_p, max_new_tokens, stop, engine, model, fingerprint: How the sample was drawn, from what.
        turns: The conversation that the prompt was made of, for training on the sample.
        not_taken: Settings that the server refused, so that its own values applied.
        format: Of the line; a later version may write another.
    """

    problem_id: str
    sample_index: int
    prompt: str
    text: str
    answer: str | list[str]
    grader: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    seed: int
    temperature: float
    top_p: float
    engine: str
    model: str
    fingerprint: str
    extra: dict[str, object] | None = None
    turns: tuple[Turn, ...] = ()
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    not_taken: tuple[str, ...] = ()
    format: int = 1
