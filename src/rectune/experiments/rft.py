"""Rejection sampling fine-tuning (RFT): sample, grade, select, train. Each stage is a file, and resumes after a kill.

    OUT/samples.jsonl   the model's answers                     `rectune sample`
    OUT/graded.jsonl    with a verdict                          `rectune grade`
    OUT/rows.jsonl      correct ones, or OUT/pairs.jsonl        `rectune select`
    OUT/train/          the run folder of training              `rectune train`
    OUT/rft.json        settings, and the counts of each stage

The objective decides the method: `sft` on the model's correct answers is RFT, `dft` the paper's offline DFT, `iw_sft`
weights them by how much more probable they have become, and `dpo` compares correct with wrong ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from rectune.config import RFTConfig, dump_config
from rectune.data.loading import PACKAGED
from rectune.data.readers import read_jsonl
from rectune.data.schema import Problem
from rectune.data.trained_prompt import as_trained
from rectune.errors import UserError
from rectune.evaluation.prompts import load_problems
from rectune.grading.files import UNJUDGED, Summary, grade, select
from rectune.grading.pool import check_item
from rectune.objective_spec import make_phases
from rectune.records import (
    RFTProgress,
    RFTStage,
    SelectionCounts,
    TrainSummary,
    parse_line,
    read_record,
    rft_record,
    write_record,
)
from rectune.runtime.io import check_writable, lock, replace_file, translate_disk_errors
from rectune.runtime.progress import reporter
from rectune.runtime.signals import on_interrupt
from rectune.sampling.sample import frozen_template, prompt_turns, sample
from rectune.sampling.types import EngineSpec, SamplingParams
from rectune.training.dataloader import check_named
from rectune.training.run_dir import other_settings
from rectune.training.trainer import train

log = logging.getLogger("rectune")

METHODS = {"sft": "RFT", "dft": "offline DFT", "iw_sft": "iw-SFT", "iw_sft_sequence": "iw-SFT", "dpo": "DPO"}
"""Name of the method by objective; others go by the name of the objective."""
LATER = ("grading_timeout", "per_problem", "balance", "include_unjudged", "include_unfinished", "purpose")
"""Settings that only stages after sampling read."""
DECIDING = (
    "num_samples", "temperature", "top_p", "max_new_tokens", "stop", "sampling_seed", "grader", "grading_timeout",
    "backend", "per_problem", "balance", "include_unjudged", "include_unfinished",
)  # fmt: skip
"""Settings that decide which rows come out."""


@dataclass(frozen=True)
class RFTResult:
    """The result of a run.

    Attributes:
        out: Folder of the run; the model is in `out/train/model`.
        method: RFT, offline DFT, iw-SFT, DPO, or the name of the objective.
        counts: Of problems, samples, verdicts and what was kept, as `select` gives them.
        train: Of the last stage.
    """

    out: str
    method: str
    counts: SelectionCounts
    train: TrainSummary

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        counts, train = self.counts.to_dict(), self.train.to_dict()
        return {"out": self.out, "method": self.method, "counts": counts, "train": train}


def train_rft(config: RFTConfig, *, resume: bool = False) -> RFTResult:
    """Train a model on its own graded answers; writes the folder `config.output_dir`.

    Args:
        config: All settings.
        resume: Resume the run in the folder; with nothing there, start afresh.

    Raises:
        UserError: Problems, model or settings that cannot be used, a folder that holds another run, a grader that
            judges nothing, or no answer to learn from. What is done so far stays.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "an RFT run is one process",
            hint="for several GPUs run its stages one by one: rectune sample, grade, select, and train by torchrun",
        )
    method, paired = method_of(config)
    config = as_trained(config.model, config)
    problems, out = read(config), config.output_dir
    rows = out / ("pairs.jsonl" if paired else "rows.jsonl")
    with lock(out, "running RFT"), translate_disk_errors(out, "resume with --resume"):
        template = frozen_template(out, config.chat_template, config.model)
        config = config.model_copy(update={"chat_template": template})
        stages = Stages(config, problems, paired=paired, resume=resume)
        with on_interrupt(lambda: f"{out}: interrupted; resume with --resume"):
            counts = _make_rows(config, problems, stages, rows)
    log.info("%s", kept(method, counts))
    result = train(config.training(rows, "auto" if paired else "prompt_completion"), resume=resume)
    return RFTResult(str(out), method, counts, result)


def _make_rows(config: RFTConfig, problems: Sequence[Problem], stages: Stages, rows: Path) -> SelectionCounts:
    """All stages before training, as far as they are not done; returns the counts of the selection."""
    samples, graded = config.output_dir / "samples.jsonl", config.output_dir / "graded.jsonl"
    total = len(problems) * config.num_samples

    def sample_all() -> dict[str, JsonValue]:
        sample_answers(config, problems, samples)
        return {"samples": total}

    def grade_all() -> dict[str, JsonValue]:
        with reporter(None, 0, total, "grading") as report:
            summary = grade(
                samples, graded, grading_workers=config.grading_workers, grading_timeout=config.grading_timeout,
                progress=lambda done: report(done, total, 0),
            )  # fmt: skip
        return dict(summary.counts)

    def select_all() -> dict[str, JsonValue]:
        purpose: Literal["sft", "dpo"] = "dpo" if rows.stem == "pairs" else "sft"
        counts = select(
            graded, rows, purpose=purpose, per_problem=config.per_problem, balance=config.balance,
            include_unjudged=config.include_unjudged, include_unfinished=config.include_unfinished,
            seed=config.sampling_seed,
        )  # fmt: skip
        return dict(counts.to_dict())

    stages.do("sample", samples, sample_all)
    each = f"{config.num_samples} each at temperature {config.temperature:g}"
    log.info("sampled: %s answers to %s problems, %s", f"{total:,}", f"{len(problems):,}", each)
    verdicts = stages.do("grade", graded, grade_all)
    _check_judged({name: count for name, count in verdicts.items() if isinstance(count, int)}, graded)
    counts = stages.do("select", rows, select_all)
    return parse_line(
        SelectionCounts, counts, SelectionCounts.WHAT, str(stages.path), "give another --output-dir"
    )


class Stages:
    """The record of the run in `config.output_dir`: its settings, and which stages are done.

    Args:
        paired: Whether the method learns from pairs.
        resume: Resume what is there.

    Raises:
        UserError: The folder holds a run and `resume` is off, or one with settings that cannot change any more.
    """

    def __init__(self, config: RFTConfig, problems: Sequence[Problem], *, paired: bool, resume: bool) -> None:
        self.out = config.output_dir
        self.path = rft_record(self.out) or self.out / "rft.json"
        self.record = RFTProgress(
            config=config.model_dump(mode="json"),
            settings=_settings(config, problems, paired=paired),
            stages={},
        )
        if self.path.exists():
            if not resume:
                hint = "continue with --resume, or give another --output-dir"
                raise UserError("the folder already has a run", where=self.out, hint=hint)
            self._take_over(read_record(self.path, RFTProgress))
        elif (self.out / "samples.jsonl").exists():
            hint = "give another --output-dir, and this file as --samples"
            raise UserError("the folder has samples of another run", where=self.out, hint=hint)
        self._write()

    def do(self, stage: str, file: Path, work: Callable[[], dict[str, JsonValue]]) -> dict[str, JsonValue]:
        """Do a stage, which writes `file`, unless it is done; returns its counts."""
        done = self.record.stages.get(stage)
        if done is None or not file.is_file() or file.stat().st_size != done.bytes:
            counts = work()
            done = RFTStage(bytes=file.stat().st_size, counts=counts)
            self.record.stages[stage] = done
            self._write()
        return done.counts

    def _take_over(self, begun: RFTProgress) -> None:
        """Take over the stages of the run that is there, as far as its settings allow."""
        now, then = self.record.settings, begun.settings
        if "rows.template" in then:
            hint = "give another --output-dir, and its samples.jsonl as --samples"
            raise UserError(
                "the run was written by rectune 0.1, whose settings have other names",
                where=self.path,
                hint=hint,
            )
        changed = [name for name in now if then.get(name) != now[name]]
        trained = (self.out / "train" / "config.json").exists()
        number, before = now["num_samples"], then.get("num_samples", 0)
        more = isinstance(number, int) and isinstance(before, int) and number > before
        later = (*LATER, "num_samples") if more else LATER
        fixed = [name for name in changed if trained or name not in later]
        if fixed:
            hint = "; --samples can take these answers over"
            raise other_settings(fixed, then, now, self.path, hint)
        if "grading_timeout" in changed:  # before the record says otherwise
            (self.out / "graded.jsonl").unlink(missing_ok=True)
        if not changed:
            self.record.stages = begun.stages

    def _write(self) -> None:
        write_record(self.path, self.record)


def _settings(config: RFTConfig, problems: Sequence[Problem], *, paired: bool) -> dict[str, JsonValue]:
    """What decides the rows: a change of one of these is a change of what is trained on."""
    listed = [asdict(problem) | {"where": "", "prompt": prompt_turns(problem)} for problem in problems]
    content = json.dumps(listed, sort_keys=True, default=str)
    return {
        "model": config.model,
        "problems": f"{len(problems)} ({hashlib.blake2b(content.encode(), digest_size=8).hexdigest()})",
        "dtype": config.dtype,
        "chat_template": config.chat_template,
        **{name: value for name, value in json.loads(dump_config(config)).items() if name in DECIDING},
        "purpose": "pairs" if paired else "rows",
    }


def read(config: RFTConfig) -> list[Problem]:
    """The problems, with the grader and the system message of the settings; checks them and every path."""
    check_writable(config.output_dir)
    check_named(config)
    for key, path in (("samples", config.samples), ("eval_data", config.eval_data)):
        if path is not None and path not in PACKAGED and not Path(path).expanduser().exists():
            raise UserError(f"no such file: {path}", where=key)
    problems = []
    for problem in load_problems(
        config.problems, system=config.system_prompt, include_path=config.include_path
    ):
        problems.append(replace(problem, grader=config.grader or problem.grader))
        check_item(problems[-1].grader, problem.extra, where=problem.where)
    return problems


def sample_answers(config: RFTConfig, problems: Sequence[Problem], out: Path) -> None:
    """Sample the answers of the base model to `out`; those in `samples` are taken over first."""
    if config.samples is not None and not out.exists():
        _take_over(Path(config.samples), out, problems, config.num_samples)
    sample(
        config.model, problems, out=out, num_samples=config.num_samples,
        params=SamplingParams.of(config, config.sampling_seed), engine=EngineSpec.of(config),
        template=config.chat_template,
    )  # fmt: skip


def _take_over(samples: Path, out: Path, problems: Sequence[Problem], n: int) -> None:
    """Begin with the answers to these problems in another file; `sample` then refuses what was sampled otherwise.

    The gold answer and what the grader needs are those of the problems as they are now.
    """
    by_id = {problem.problem_id: problem for problem in problems}
    taken = 0
    with replace_file(out) as aside, aside.open("w", encoding="utf-8") as file:
        for number, line in read_jsonl(samples, torn_last=True):
            index, problem = line.get("sample_index"), by_id.get(str(line.get("problem_id")))
            if not isinstance(index, int):
                raise UserError("this is not a line of samples", where=f"{samples}:{number}")
            if problem is not None and index < n:
                judged = {"answer": problem.answer, "grader": problem.grader, "extra": problem.extra}
                file.write(json.dumps(line | judged, ensure_ascii=False) + "\n")
                taken += 1
    log.info("sampled: %s answers are taken from %s", f"{taken:,}", samples)


def _check_judged(counts: dict[str, int], graded: Path) -> None:
    """Stop if the grader judged nothing: that says something about it, not about the model."""
    log.info("%s", Summary(counts))
    failed = {name: counts[name] for name in UNJUDGED}
    if sum(failed.values()) == sum(counts.values()):
        how = " and ".join(f"{count:,} times {name}" for name, count in failed.items() if count)
        raise UserError(
            f"the grader graded none of the {sum(counts.values()):,} answers ({how})",
            where=graded,
            hint="raise grading_timeout and --resume, or correct the problems and give samples.jsonl to another "
            "--output-dir as --samples",
        )


def plan(config: RFTConfig) -> dict[str, object]:
    """The upper limits of a run; reads the problems, loads no model and writes nothing."""
    method, paired = method_of(config)
    config = as_trained(config.model, config)
    problems, n = len(read(config)), config.num_samples
    most = min(n // 2 if paired else n, config.per_problem or n)
    return {
        "config": config.model_dump(mode="json"),
        "method": method,
        "problems": problems,
        "samples": problems * n,
        "sampled_tokens_at_most": problems * n * config.max_new_tokens,
        "pairs_at_most" if paired else "rows_at_most": problems * most,
        "found": [path.name for path in sorted(config.output_dir.glob("*.json*"))],
    }


def method_of(config: RFTConfig) -> tuple[str, bool]:
    """The name of the method, and whether it learns from pairs. `UserError` for an unknown objective."""
    phases = make_phases(config)
    names = [phase.label if phase.is_fixed else METHODS.get(phase.name, phase.name) for phase in phases]
    return ", then ".join(names), "pair" in phases[0].columns


def kept(method: str, counts: SelectionCounts) -> str:
    """One line on what the selection kept, and why not more."""
    of = f"of {counts.samples:,} samples"
    without = f"{counts.without_correct:,} of {counts.problems:,} problems have no correct answer"
    cut = [f"{counts.cut_off:,} of the correct are cut at the token limit"] * bool(counts.cut_off)
    if counts.pairs is not None:
        none = f"{counts.without_wrong:,} no wrong one"
        return "; ".join([f"{method} makes {counts.pairs:,} pairs {of}", f"{without}, {none}", *cut])
    assert counts.kept is not None
    more = counts.correct - counts.cut_off - counts.kept
    limited = counts.settings.per_problem is not None
    why = "repeat another or exceed per_problem" if limited else "repeat another"
    rest = [f"{more:,} of the correct {why}"] * bool(more)
    return "; ".join([f"{method} keeps {counts.kept:,} {of}", without, *rest, *cut])


def table(result: RFTResult) -> dict[str, object]:
    """The row that the command line prints."""
    counts, before, after = result.counts, result.train.before, result.train.after
    figure = "margin" if "margin" in after else "nll"
    moments = {"before": before, "after": after}
    shown = {f"{figure} {when}": f"{of[figure]:.3f}" for when, of in moments.items() if of}
    return {
        "method": result.method,
        "samples": counts.samples,
        "correct": f"{counts.correct / counts.samples:.1%}",
        **({"pairs": counts.pairs} if counts.pairs is not None else {"rows": counts.kept}),
        "problems used": f"{counts.used_problems} of {counts.problems}",
        "steps": result.train.steps,
        **shown,
    }
