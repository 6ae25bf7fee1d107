"""Sampling: problems in, a resumable file of samples out, whichever engine draws them.

An engine turns requests (prompt ids plus the name of a sample) into completions with log-probs, in any order.
`sample` names the requests, leaves out those that the file already has, and appends a line per completion.
The engines are `sampling/hf/engine.py`, `openai.py` and `vllm.py`; reading and checking the file is in `writer.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rectune.data.chat_template import check_template
from rectune.data.findings import say_findings
from rectune.data.schema import Problem, Sample
from rectune.data.tokenization import prompt_ids
from rectune.data.trained_prompt import run_prompt
from rectune.errors import UserError, unknown_name
from rectune.runtime.distributed import share
from rectune.runtime.io import check_output, translate_disk_errors
from rectune.runtime.progress import reporter
from rectune.runtime.signals import on_interrupt
from rectune.sampling.stop_strings import check_stops, template_stops
from rectune.sampling.writer import shared_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rectune.data.chat_template import Template

log = logging.getLogger("rectune")

ENGINES = ("local", "server", "vllm")


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How tokens are drawn, the same for all requests of a call.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: 1 draws from the whole vocabulary.
        max_new_tokens: Where a completion that does not end by itself is cut.
        seed: First part of every sample's key; the others are its problem and its index.
        stop: Texts at which an answer ends, itself no part of it (`stop_strings.py`).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 4096
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw. Requests that follow each other with the same prompt share its computation.

    Attributes:
        where: Of the problem, `file:line`, for messages to the user.
    """

    problem_id: str
    sample_index: int
    prompt_ids: tuple[int, ...]
    where: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote for one request.

    Attributes:
        token_ids: New tokens, the turn-ending one included where one was drawn; those of a stop text are left out.
        logprobs: Log-probability of each under the model at temperature 1 (before top_p).
        text: The tokens as text, special tokens removed.
        finish_reason: "stop" (the model ended its turn or wrote a stop text) or "length".
        not_taken: Settings that the server refused, so that its own values applied.
    """

    request: Request
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str
    not_taken: tuple[str, ...] = ()


class Engine(Protocol):
    """What draws completions.

    Attributes:
        name, model_name, fingerprint: Written into every sample; the fingerprint names the weights.
        tokenizer, template: Make the prompts.
    """

    name: str
    model_name: str
    tokenizer: PreTrainedTokenizerBase
    template: Template

    @property
    def fingerprint(self) -> str: ...

    def complete(self, requests: Iterable[Request], settings: DrawSettings) -> Iterator[Completion]:
        """Completions in the order in which they finish, each exactly once."""
        ...


def sample(
    model: str,
    problems: Sequence[Problem],
    *,
    out: Path,
    n: int = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 4096,
    seed: int = 0,
    stop: Sequence[str] = (),
    engine: str | Engine = "local",
    batch_size: int | None = None,
    template: str | None = None,
    precision: str = "auto",
    server_url: str | None = None,
    served_name: str | None = None,
    server_logprobs: bool = True,
    progress: Callable[[int, int, int], None] | None = None,
) -> Path:
    """Draw `n` answers to every problem and append them to `out`, one JSON object a line.

    A file that already has some of the samples is gone on with: finished ones are skipped, a torn last line
    is removed first, and a larger `n` adds to them. Several processes (torchrun, accelerate) share the problems.

    Args:
        model: Hub id, folder or packaged name.
        problems: With unique ids.
        stop: Texts at which an answer ends, besides the template's own mark of the next turn (`stop_strings.py`).
        engine: "local", "server", "vllm", or an engine of your own.
        batch_size: Sequences in work at once (local) or requests in flight (server); None: its own choice.
        template: As in training: "auto", "none", the name of one of the tokenizer's, or a file. None: that of the
            training run that the model is of, else "auto".
        precision: Of the local engine: "auto", "bf16" or "fp32".
        server_url: Address of an OpenAI-compatible server, for the server engine.
        served_name: What the server calls the model, where that is not `model`.
        server_logprobs: False takes a server without log-probs; they are then empty in the file.
        progress: Called with (samples done, samples in all, tokens drawn by this call) after every sample; by
            default a bar on stderr where that is a terminal.

    Returns:
        `out`.

    Raises:
        UserError: No problem, duplicate ids, n = 0, a setting out of range, an unknown engine, an unreachable
            server, or a file whose samples were drawn otherwise.
    """
    settings = DrawSettings(temperature, top_p, max_new_tokens, seed, check_stops(stop))
    _check(problems, n, settings)
    if engine == "vllm" and share()[1] > 1:
        raise UserError("vllm starts its own processes", where="engine", hint="start rectune once")
    drawer = engine
    check_output(Path(out))
    if isinstance(drawer, str):
        server = {"url": server_url, "served_name": served_name, "logprobs": server_logprobs}
        if template is None:
            template = run.template if (run := run_prompt(model)) else "auto"
        drawer = _engine(model, drawer, batch_size, template, precision, server)
    settings = replace(settings, stop=all_stops(drawer, settings.stop))
    say_findings(problems, drawer.tokenizer, drawer.template)
    prompts = {p.problem_id: _prompt(drawer, p) for p in problems}
    by_id = {p.problem_id: p for p in problems}

    def line(completion: Completion) -> Sample:
        request = completion.request
        problem = by_id[request.problem_id]
        return Sample(
            problem_id=request.problem_id,
            sample_index=request.sample_index,
            prompt=prompts[request.problem_id][1],
            text=completion.text,
            answer=problem.answer,
            grader=problem.grader,
            token_ids=completion.token_ids,
            logprobs=[round(x, 6) for x in completion.logprobs],
            finish_reason=completion.finish_reason,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            engine=drawer.name,
            model=drawer.model_name,
            fingerprint=drawer.fingerprint,
            extra=problem.extra,
            turns=problem.prompt,
            max_new_tokens=max_new_tokens,
            stop=settings.stop,
            not_taken=completion.not_taken,
        )

    expected = {
        p.problem_id: line(Completion(Request(p.problem_id, 0, ()), [], [], "", "")) for p in problems
    }
    with translate_disk_errors(out), shared_file(Path(out), expected) as file:
        index, of = share()
        mine = problems[index::of]
        todo = [
            Request(p.problem_id, i, prompts[p.problem_id][0], p.where)
            for p in mine
            for i in range(n)
            if (p.problem_id, i) not in file.finished
        ]
        total, done, tokens = len(mine) * n, len(mine) * n - len(todo), 0
        words = "samples are there; run it again, it goes on"
        with (
            on_interrupt(lambda: f"{out}: {done} of {total} {words}"),
            reporter(progress, done, total) as report,
        ):
            for completion in drawer.complete(todo, settings):
                file.append(line(completion))
                done, tokens = done + 1, tokens + len(completion.token_ids)
                report(done, total, tokens)
    return out


def _check(problems: Sequence[Problem], n: int, settings: DrawSettings) -> None:
    if not problems:
        raise UserError("there is no problem to sample answers for", where="problems")
    twice = [i for i, count in Counter(p.problem_id for p in problems).items() if count > 1]
    if twice:
        where = [p.where for p in problems if p.problem_id == twice[0]]
        raise UserError(f"problem id '{twice[0]}' occurs {len(where)} times", where=where[1] or "problems")
    s = settings
    for name, value, right, rule in (
        ("n", n, n >= 1, "at least 1"),
        ("temperature", s.temperature, 0 <= s.temperature < float("inf"), "0 (greedy) or more"),
        ("top_p", s.top_p, 0 < s.top_p <= 1, "more than 0 and at most 1"),
        ("max_new_tokens", s.max_new_tokens, s.max_new_tokens >= 1, "at least 1"),
        ("seed", s.seed, 0 <= s.seed < 2**63, "from 0 to 2**63 - 1"),
    ):
        if not right:
            raise UserError(f"{value} is out of range", where=name, hint=f"must be {rule}")


def all_stops(engine: Engine, stop: Sequence[str]) -> tuple[str, ...]:
    """The stop texts of a run: those given, and the template's own mark of the next turn."""
    return check_stops((*stop, *template_stops(engine.tokenizer, engine.template)))


def _prompt(engine: Engine, problem: Problem) -> tuple[tuple[int, ...], str]:
    """The prompt's token ids, those of training, and its text as the model reads it."""
    ids = prompt_ids(problem.prompt, engine.tokenizer, engine.template)
    if not ids:
        raise UserError(f"problem '{problem.problem_id}' has an empty prompt", where=problem.where or None)
    return tuple(ids), str(engine.tokenizer.decode(ids))


def _engine(
    model: str, name: str, batch_size: int | None, template: str, precision: str, server: dict[str, Any]
) -> Engine:
    """The engine of that name. Imported here, so that a server needs no weights in this process."""
    check_template(template)
    if name == "local":
        from rectune.sampling.hf.engine import LocalEngine

        return LocalEngine.load(model, template=template, precision=precision, batch_size=batch_size)
    if name == "server":
        from rectune.sampling.openai import ServerEngine

        if server["url"] is None:
            raise UserError(
                "the server engine needs an address", where="server_url", hint="http://HOST:PORT/v1"
            )
        return ServerEngine(model, **server, template=template, concurrency=batch_size)
    if name == "vllm":
        from rectune.sampling.vllm import VllmEngine

        return VllmEngine(model, template=template, precision=precision)
    raise unknown_name("engine", name, ENGINES)
