"""Sampling: problems in, a resumable file of samples out, whichever engine generates them.

An engine turns requests (prompt ids and the key of a sample) into completions with log-probs, in any order. `sample`
makes the requests, leaves out those that the file (`SamplesFile`) already has, and appends a line per completion. A
line is written whole or, where a run is killed in the middle of it, removed at the next opening. The protocol is in
`types.py`; the engines are `hf/engine.py`, `openai.py` and `vllm.py`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from transformers import PreTrainedTokenizerBase

from rectune.data.chat_template import Template, check_template, choose_template, without_date
from rectune.data.findings import say_findings
from rectune.data.readers import append_jsonl, read_jsonl
from rectune.data.schema import Problem
from rectune.data.tokenization import prompt_ids
from rectune.data.trained_prompt import TEMPLATE, run_prompt
from rectune.errors import UserError, unknown_name
from rectune.models.load import load_tokenizer
from rectune.records import Sample, SampledTurn, parse_line
from rectune.runtime.distributed import share, wait_for_all
from rectune.runtime.io import check_format, check_output, lock_file, translate_disk_errors, write_text
from rectune.runtime.progress import reporter
from rectune.runtime.signals import on_interrupt
from rectune.sampling.types import (
    Completion,
    Engine,
    EngineSpec,
    Request,
    SamplingParams,
    check_stops,
    template_stops,
)

BACKENDS = ("hf", "openai", "vllm")
SETTINGS = ("fingerprint", "engine", "seed", "temperature", "top_p", "max_new_tokens", "stop")
PROBLEM = ("prompt", "answer", "grader")
"""Fields in which the samples of a file have to agree, and those in which the samples of a problem have to."""
Key = tuple[str, int]
"""Problem id and sample index."""


def sample(
    model: str,
    problems: Sequence[Problem],
    *,
    out: Path,
    num_samples: int = 16,
    params: SamplingParams = SamplingParams(),  # noqa: B008
    engine: Engine | EngineSpec = EngineSpec(),  # noqa: B008
    template: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Path:
    """Sample `num_samples` answers to every problem and append them to `out`, one JSON object a line.

    A file that already has some of the samples is resumed: finished ones are skipped, a torn last line is removed
    first, and a larger `num_samples` adds to them. Several processes (torchrun, accelerate) share the problems.

    Args:
        model: Hub id, folder or packaged name.
        problems: With unique ids.
        params: How tokens are sampled. Its stop texts are used in addition to the template's own start of a user turn.
        engine: The engine to use, or what to load for `model`.
        template: As in training: "auto", "none", the name of one of the tokenizer's, or a file. None: that of the
            training run that the model is of, else "auto". Ignored where `engine` is loaded already.
        progress: Called with (samples done, samples in all, tokens sampled by this call) after every sample; by
            default a bar on stderr if that is a terminal.

    Returns:
        `out`.

    Raises:
        UserError: No problem, duplicate ids, a parameter out of range, an unknown backend, an unreachable server, or a
            file whose samples are of other settings.
    """
    params.check()
    _check_problems(problems, num_samples)
    check_output(Path(out))
    if isinstance(engine, EngineSpec):
        engine = load_engine(model, engine, template)
    params = replace(params, stop=all_stops(engine, params.stop))
    say_findings(problems, engine.tokenizer, engine.template)
    by_id = {problem.problem_id: problem for problem in problems}
    prompts = {
        name: problem_prompt(problem, engine.tokenizer, engine.template) for name, problem in by_id.items()
    }
    texts = {name: str(engine.tokenizer.decode(list(ids))) for name, ids in prompts.items()}
    expected = {name: _outline(problem, texts[name], params, engine) for name, problem in by_id.items()}
    with translate_disk_errors(out), shared_file(Path(out), expected) as file:
        index, of = share()
        mine = problems[index::of]
        todo = [
            Request(problem.problem_id, i, prompts[problem.problem_id], problem.where)
            for problem in mine
            for i in range(num_samples)
            if (problem.problem_id, i) not in file.finished
        ]
        total, tokens = len(mine) * num_samples, 0
        done = total - len(todo)
        with (
            on_interrupt(lambda: f"{out}: {done} of {total} samples are there; run it again to resume"),
            reporter(progress, done, total) as report,
        ):
            for completion in engine.complete(todo, params):
                file.append(_to_sample(completion, expected[completion.request.problem_id]))
                done, tokens = done + 1, tokens + len(completion.token_ids)
                report(done, total, tokens)
    return out


def _check_problems(problems: Sequence[Problem], num_samples: int) -> None:
    if num_samples < 1:
        raise UserError(f"must be at least 1 (got {num_samples})", where="num_samples")
    if not problems:
        raise UserError("no problems to sample answers for", where="problems")
    counts = Counter(p.problem_id for p in problems)
    if repeated := next((name for name, count in counts.items() if count > 1), None):
        where = [p.where for p in problems if p.problem_id == repeated]
        raise UserError(f"problem id '{repeated}' occurs {len(where)} times", where=where[1] or "problems")


def all_stops(engine: Engine, stop: Sequence[str]) -> tuple[str, ...]:
    """The stop texts of a run: those given, and what the template writes before the next user turn."""
    return check_stops((*stop, *template_stops(engine.tokenizer, engine.template)))


def problem_prompt(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, template: Template
) -> tuple[int, ...]:
    """The token ids of a problem's prompt, those of training. `UserError` for an empty one."""
    ids = prompt_ids(problem.prompt, tokenizer, template)
    if not ids:
        raise UserError(f"problem '{problem.problem_id}' has an empty prompt", where=problem.where or None)
    return tuple(ids)


def prompt_turns(problem: Problem) -> list[dict[str, Any]]:
    """The turns of a problem's prompt as they are written, without the weight, which training alone reads."""
    turns = [asdict(turn) for turn in problem.prompt]
    return [{name: value for name, value in turn.items() if name != "weight"} for turn in turns]


def _outline(problem: Problem, prompt: str, params: SamplingParams, engine: Engine) -> Sample:
    """What all samples of a problem share; without tokens."""
    return Sample(
        problem_id=problem.problem_id,
        sample_index=0,
        prompt=prompt,
        text="",
        answer=problem.answer,
        grader=problem.grader,
        token_ids=[],
        logprobs=[],
        finish_reason="",
        seed=params.seed,
        temperature=params.temperature,
        top_p=params.top_p,
        engine=engine.name,
        model=engine.model_name,
        fingerprint=engine.fingerprint,
        extra=problem.extra,
        turns=[SampledTurn(**turn) for turn in prompt_turns(problem)],
        max_new_tokens=params.max_new_tokens,
        stop=list(params.stop),
        not_taken=[],
    )


def _to_sample(completion: Completion, outline: Sample) -> Sample:
    """`outline` with what was sampled."""
    sampled = {
        "sample_index": completion.request.sample_index,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "logprobs": [round(x, 6) for x in completion.logprobs],
        "finish_reason": completion.finish_reason,
        "not_taken": list(completion.not_taken),
    }
    return outline.model_copy(update=sampled)


def load_engine(model: str, spec: EngineSpec, template: str | None) -> Engine:
    """The engine of a backend for a model by name. Imports the backend only, so that a server needs no torch model.

    Raises:
        UserError: An unknown backend, no address for a server, and all that loading raises.
    """
    if template is None:
        template = run.template if (run := run_prompt(model)) else "auto"
    check_template(template)
    if spec.backend == "hf":
        from rectune.sampling.hf.engine import HFEngine

        return HFEngine.load(model, template=template, dtype=spec.dtype, batch_size=spec.batch_size)
    if spec.backend == "openai":
        from rectune.sampling.openai import OpenAIEngine

        if spec.base_url is None:
            what = "the openai backend needs the address of a server"
            raise UserError(what, where="base_url", hint="http://HOST:PORT/v1")
        return OpenAIEngine(
            model,
            spec.base_url,
            served_model_name=spec.served_model_name,
            template=template,
            concurrency=spec.batch_size,
            logprobs=spec.logprobs,
        )
    if spec.backend == "vllm":
        from rectune.sampling.vllm import VLLMEngine

        if share()[1] > 1:
            raise UserError("vllm starts its own processes", where="backend", hint="start rectune once")
        return VLLMEngine(model, template=template, dtype=spec.dtype)
    raise unknown_name("backend", spec.backend, BACKENDS)


def frozen_template(folder: Path, name: str, model: str) -> str:
    """`name`; for a template that writes today's date, a file in `folder` that writes the date of the first call.

    A run resumed on another day then reads the same prompts.

    Args:
        model: Whose tokenizer it is for.

    Raises:
        UserError: The template cannot be used, or the folder cannot be written.
    """
    template = choose_template(name, load_tokenizer(model)) if name != "none" else None
    if template is None or not template.today:
        return name
    path = folder / TEMPLATE
    with translate_disk_errors(folder):
        if not path.is_file() or without_date(path.read_text("utf-8")) != template.saved():
            write_text(path, template.kept())
    return str(path)


log = logging.getLogger("rectune")


class SamplesFile:
    """A samples file opened for appending; a context manager.

    Args:
        path: Created, with its folder, if it is missing.
        expected: For each problem id a sample as it would be now; text, tokens and index do not matter.

    Attributes:
        finished: Keys of the samples that the file has.

    Raises:
        UserError: A line is not a sample, occurs twice, or is of another model, other settings or another prompt; or
            another process is writing to the file.
    """

    def __init__(self, path: Path, expected: Mapping[str, Sample]) -> None:
        self.path, self.finished = Path(path), set[Key]()
        self._expected = expected
        self._file: IO[bytes] | None = None

    def __enter__(self) -> SamplesFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab")
        try:
            lock_file(file, self.path)
            append_jsonl(self.path, ())  # removes a torn last line
            self.read()
        except UserError:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def append(self, sample: Sample) -> None:
        """Write one line; it has reached the operating system when this returns."""
        line = json.dumps(sample.to_dict(), ensure_ascii=False).encode() + b"\n"
        self.append_line(line, (sample.problem_id, sample.sample_index))

    def append_line(self, line: bytes, key: Key) -> None:
        """As `append`, a line as another file has it."""
        assert self._file is not None
        self._file.write(line)
        self._file.flush()
        self.finished.add(key)

    def read(self) -> set[Key]:
        """Check all lines; returns `finished`. The file need not be opened for it."""
        for number, content in read_jsonl(self.path):
            where = f"{self.path}:{number}"
            check_format(content, where)
            hint = "write to another file, or remove this one"
            sample = parse_line(Sample, content, "a line of samples", where, hint)
            key = (sample.problem_id, sample.sample_index)
            if key in self.finished:
                raise UserError(f"sample {key[1]} of problem '{key[0]}' occurs twice", where=where)
            if difference := self._difference(sample):
                raise UserError(difference, where=where, hint=hint)
            self.finished.add(key)
        return self.finished

    def _difference(self, sample: Sample) -> str:
        """What a sample differs in from one as it would be now; "" for nothing that matters."""
        now = self._expected.get(sample.problem_id) or next(iter(self._expected.values()))
        fields = SETTINGS + PROBLEM if sample.problem_id in self._expected else SETTINGS
        name = next((name for name in fields if getattr(sample, name) != getattr(now, name)), None)
        if name is None:
            return ""
        if name == "fingerprint":
            then = f"{sample.model}, {sample.fingerprint}"
            return f"was sampled from another model ({then}; now {now.model}, {now.fingerprint})"
        if name in PROBLEM:
            return f"problem '{sample.problem_id}' had another {name} when this file was sampled"
        return f"was sampled with {name} = {getattr(sample, name)}, now {getattr(now, name)}"


@contextmanager
def shared_file(out: Path, expected: Mapping[str, Sample]) -> Iterator[SamplesFile]:
    """The file to append to, opened: `out` in a single process, else a part of it, which is merged into it afterwards.

    Args:
        out: File of samples.
        expected: As in `SamplesFile`, in the order of the problems.

    Raises:
        UserError: As `SamplesFile`, or another process has ended early.
    """
    index, of = share()
    if of == 1:
        if _parts(out):
            _merge(out, expected)
        with SamplesFile(out, expected) as file:
            yield file
        return
    if index == 0:
        _merge(out, expected)
    else:
        log.setLevel(logging.WARNING)  # only the first process logs
    wait_for_all()
    finished = SamplesFile(out, expected).read()
    wait_for_all()  # all have read it before the first one appends
    with SamplesFile(out.with_name(f".{out.name}.{index}-of-{of}.part"), expected) as file:
        file.finished |= finished
        yield file
    wait_for_all()
    if index == 0:
        _merge(out, expected)
    wait_for_all()


def _parts(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f".{out.name}.*-of-*.part"))


def _merge(out: Path, expected: Mapping[str, Sample]) -> None:
    """Append the samples of all parts to `out`, by problem and index, and remove the parts."""
    place = {problem_id: number for number, problem_id in enumerate(expected)}
    lines: dict[Key, bytes] = {}
    parts = _parts(out)
    for part in parts:
        with SamplesFile(part, expected):  # removes a torn last line and checks every other
            for line in part.read_bytes().splitlines(keepends=True):
                content = json.loads(line)
                lines[content["problem_id"], content["sample_index"]] = line
    with SamplesFile(out, expected) as file:
        for key in sorted(lines, key=lambda key: (place.get(key[0], len(place)), key)):
            if key not in file.finished:
                file.append_line(lines[key], key)
    for part in parts:
        part.unlink()
