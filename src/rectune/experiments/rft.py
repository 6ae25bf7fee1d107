"""An offline run: sample, grade, select, train. Each stage is a file that the next one reads, and goes on after a kill.

    OUT/samples.jsonl   the model's answers                     `rectune sample`
    OUT/graded.jsonl    with a verdict                          `rectune grade`
    OUT/rows.jsonl      correct ones, or OUT/pairs.jsonl        `rectune select`
    OUT/train/          the run folder of training              `rectune train`
    OUT/offline.json    settings, and what became of each stage

The objective decides the method: `sft` on own correct answers is RFT, `dft` the paper's offline DFT, `iw_sft` weights
them by how much more probable they have become, and `dpo` compares correct with wrong ones. What each stage does is
left to the rooms below; what may change when a run goes on is in `record.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rectune.config import RFTConfig, SelectionConfig, dump_config
from rectune.data.load import PACKAGED
from rectune.data.readers import read_jsonl
from rectune.data.schema import Problem
from rectune.data.trained_prompt import as_trained
from rectune.errors import UserError
from rectune.evaluation.prompts import load_problems
from rectune.grading.files import Summary, grade
from rectune.grading.pool import check_item
from rectune.grading.selection import UNJUDGED, select
from rectune.objective_spec import make_phases
from rectune.runtime.io import (
    FORMAT,
    check_format,
    check_writable,
    load_json,
    replace_file,
    translate_disk_errors,
    write_json,
)
from rectune.runtime.locks import lock
from rectune.runtime.progress import reporter
from rectune.runtime.signals import on_interrupt
from rectune.sampling.dated import kept_template
from rectune.sampling.sample import sample
from rectune.training.inputs import check_named
from rectune.training.run_dir import other_settings
from rectune.training.trainer import TrainResult, train

LATER = ("grading_timeout", "per_problem", "balance", "include_unjudged", "include_unfinished", "purpose")
"""Settings that only stages after sampling read."""
_DECIDING = (
    "num_samples", "temperature", "top_p", "max_new_tokens", "stop", "sampling_seed", "grader", "grading_timeout",
    "backend", "per_problem", "balance", "include_unjudged", "include_unfinished",
)  # fmt: skip
"""Settings that decide which rows come out."""


class Record:
    """The record of the run in `config.output_dir`.

    Args:
        paired: Whether the method learns from pairs.
        resume: Go on with what is there.

    Raises:
        UserError: The folder holds a run and `resume` is off, or one with settings that cannot change any more.
    """

    def __init__(self, config: RFTConfig, problems: Sequence[Problem], *, paired: bool, resume: bool) -> None:
        self.path, self.training = (
            config.output_dir / "offline.json",
            config.output_dir / "train" / "config.json",
        )
        self._content: dict[str, Any] = {
            "format": FORMAT,
            "config": config.model_dump(mode="json"),
            "settings": _settings(config, problems, paired=paired),
            "stages": {},
        }
        if self.path.exists():
            if not resume:
                hint = "go on with --resume, or give another --output-dir"
                raise UserError("already holds a run", where=config.output_dir, hint=hint)
            self._go_on(self._read())
        elif (config.output_dir / "samples.jsonl").exists():
            hint = "give another --output-dir, and this file as --samples"
            raise UserError("holds samples of something else", where=config.output_dir, hint=hint)
        self._write()

    def is_done(self, stage: str, file: Path) -> bool:
        done = self._content["stages"].get(stage)
        return done is not None and file.is_file() and file.stat().st_size == done["bytes"]

    def counts(self, stage: str) -> dict[str, Any]:
        counts: dict[str, Any] = self._content["stages"][stage]["counts"]
        return counts

    def done(self, stage: str, file: Path, counts: dict[str, Any]) -> None:
        self._content["stages"][stage] = {"bytes": file.stat().st_size, "counts": counts}
        self._write()

    def _read(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = load_json(self.path)
            check_format(content, self.path)
            if "rows.template" in content["settings"]:
                what = "written by rectune 0.1, whose settings have other names"
                raise UserError(
                    what,
                    where=self.path,
                    hint="give another --output-dir, and its samples.jsonl as --samples",
                )
            if isinstance(content["settings"], dict) and isinstance(content["stages"], dict):
                return content
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError("is no record of an RFT run", where=self.path, hint="give another --output-dir")

    def _go_on(self, before: dict[str, Any]) -> None:
        now = self._content["settings"]
        then = before["settings"]
        changed = [name for name in now if then.get(name) != now[name]]
        fixed = [
            name
            for name in changed
            if self.training.exists()
            or not (name in LATER or (name == "num_samples" and now[name] > then.get(name, 0)))
        ]
        if fixed:
            hint = "; --samples can take these answers over"
            raise other_settings(fixed, then, now, self.path, hint)
        if "grading_timeout" in changed:  # before the record says otherwise
            (self.path.parent / "graded.jsonl").unlink(missing_ok=True)
        if not changed:
            self._content["stages"] = before["stages"]

    def _write(self) -> None:
        write_json(self.path, self._content, indent=2)


def _settings(config: RFTConfig, problems: Sequence[Problem], *, paired: bool) -> dict[str, Any]:
    """What decides the rows: a change of one of these is a change of what is trained on."""
    content = json.dumps(
        [asdict(problem) | {"where": ""} for problem in problems], sort_keys=True, default=str
    )
    return {
        "model": config.model,
        "problems": f"{len(problems)} ({hashlib.blake2b(content.encode(), digest_size=8).hexdigest()})",
        "dtype": config.dtype,
        "chat_template": config.chat_template,
        **{name: value for name, value in json.loads(dump_config(config)).items() if name in _DECIDING},
        "purpose": "pairs" if paired else "rows",
    }


log = logging.getLogger("rectune")

METHODS = {"sft": "RFT", "dft": "offline DFT", "iw_sft": "iw-SFT", "iw_sft_sequence": "iw-SFT", "dpo": "DPO"}
"""What a method is called that trains on own answers, by its objective; others go by the objective's name."""


@dataclass(frozen=True)
class OfflineResult:
    """What an offline run comes to.

    Attributes:
        out: Folder of the run; the model is in `out/train/model`.
        method: RFT, offline DFT, iw-SFT, DPO, or the objective's name.
        counts: Of problems, samples, verdicts and what was kept, as `select` gives them.
        train: Of the last stage.
    """

    out: str
    method: str
    counts: dict[str, Any]
    train: TrainResult


def train_rft(config: RFTConfig, *, resume: bool = False) -> OfflineResult:
    """Let a model learn from its own judged answers; writes the folder `config.output_dir`.

    Args:
        config: All settings.
        resume: Go on where a run in the folder stopped; with nothing there, start afresh.

    Raises:
        UserError: Problems, model or settings that cannot be used, a folder that holds another run, a verifier that
            judges nothing, or no answer to learn from. What is done so far stays.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "an offline run is one process",
            hint="for several GPUs run its stages one by one: rectune sample, grade, select, and train by torchrun",
        )
    method, paired = method_of(config)
    config = as_trained(config.model, config)
    problems = read(config)
    chosen = config.output_dir / ("pairs.jsonl" if paired else "rows.jsonl")
    with (
        lock(config.output_dir, "running an offline method"),
        translate_disk_errors(config.output_dir, "go on with --resume"),
    ):
        template = kept_template(config.output_dir, config.chat_template, config.model)
        config = config.model_copy(update={"chat_template": template})
        record = Record(config, problems, paired=paired, resume=resume)
        with on_interrupt(lambda: f"{config.output_dir}: interrupted; go on with --resume"):
            counts = _prepare(config, problems, record, chosen)
    log.info("%s", kept(method, counts))
    result = train(config.training(chosen, "auto" if paired else "prompt_completion"), resume=resume)
    return OfflineResult(str(config.output_dir), method, counts, result)


def _prepare(config: RFTConfig, problems: Sequence[Problem], record: Record, chosen: Path) -> dict[str, Any]:
    """All stages before training, as far as they are not done; returns the counts of the selection."""
    samples, graded = config.output_dir / "samples.jsonl", config.output_dir / "graded.jsonl"
    n, total = config.num_samples, len(problems) * config.num_samples
    if not record.is_done("sample", samples):
        _sample(config, problems, samples)
        record.done("sample", samples, {"samples": total})
    drawn = f"{n} each at temperature {config.temperature:g}"
    log.info("sampled: %s answers to %s problems, %s", f"{total:,}", f"{len(problems):,}", drawn)
    if not record.is_done("grade", graded):
        with reporter(None, 0, total, "grading") as report:
            summary = grade(
                samples, graded, workers=config.grading_workers, timeout=config.grading_timeout,
                progress=lambda done: report(done, total, 0),
            )  # fmt: skip
        record.done("grade", graded, summary.counts)
    _check_judged(record.counts("grade"), graded)
    if not record.is_done("select", chosen):
        purpose: Literal["sft", "dpo"] = "dpo" if chosen.stem == "pairs" else "sft"
        kept = {name: getattr(config, name) for name in SelectionConfig.model_fields}
        record.done(
            "select", chosen, select(graded, chosen, purpose=purpose, seed=config.sampling_seed, **kept)
        )
    return record.counts("select")


def plan(config: RFTConfig) -> dict[str, Any]:
    """What a run would do at most; reads the problems, loads no model and writes nothing."""
    method, paired = method_of(config)
    config = as_trained(config.model, config)
    problems, n = read(config), config.num_samples
    most = n // 2 if paired else n
    return {
        "config": config.model_dump(mode="json"),
        "method": method,
        "problems": len(problems),
        "samples": len(problems) * n,
        "sampled_tokens_at_most": len(problems) * n * config.max_new_tokens,
        "pairs_at_most" if paired else "rows_at_most": len(problems) * min(most, config.per_problem or n),
        "found": [path.name for path in sorted(config.output_dir.glob("*.json*"))],
    }


def method_of(config: RFTConfig) -> tuple[str, bool]:
    """The method's name, and whether it learns from pairs. `UserError` for an unknown objective."""
    phases = make_phases(config)
    names = [METHODS.get(phase.name, phase.name) for phase in phases]
    return ", then ".join(names), "pair" in phases[0].columns


def kept(method: str, counts: dict[str, Any]) -> str:
    """One line on what the selection kept, and why not more."""
    of = f"of {counts['samples']:,} samples"
    without = f"{counts['without_correct']:,} of {counts['problems']:,} problems have no correct answer"
    cut = [f"{counts['cut_off']:,} of the correct are cut at the token limit"] * bool(counts["cut_off"])
    if "pairs" in counts:
        none = f"{counts['without_wrong']:,} no wrong one"
        return "; ".join([f"{method} makes {counts['pairs']:,} pairs {of}", f"{without}, {none}", *cut])
    more = counts["correct"] - counts["cut_off"] - counts["kept"]
    why = (
        "repeat another"
        if counts["settings"]["per_problem"] is None
        else "repeat another or exceed per_problem"
    )
    rest = [f"{more:,} of the correct {why}"] * bool(more)
    return "; ".join([f"{method} keeps {counts['kept']:,} {of}", without, *rest, *cut])


def table(result: OfflineResult) -> dict[str, Any]:
    """The row that the command line prints."""
    counts, before, after = result.counts, result.train.before, result.train.after
    unit = "pairs" if "pairs" in counts else "rows"
    figure = "margin" if "margin" in after else "nll"
    shown = {
        f"{figure} {when}": f"{of[figure]:.3f}" for when, of in (("before", before), ("after", after)) if of
    }
    return {
        "method": result.method,
        "samples": counts["samples"],
        "correct": f"{counts['correct'] / counts['samples']:.1%}",
        unit: counts["pairs" if unit == "pairs" else "kept"],
        "problems used": f"{counts['used_problems']} of {counts['problems']}",
        "steps": result.train.steps,
        **shown,
    }


def read(config: RFTConfig) -> list[Problem]:
    """The problems, with the verifier and the system message that the settings ask for, and checked for both."""
    check_writable(config.output_dir)
    check_named(config)
    for key, path in (("samples", config.samples), ("eval_data", config.eval_data)):
        if path is not None and path not in PACKAGED and not Path(path).expanduser().exists():
            raise UserError(f"no such file: {path}", where=key)
    problems = load_problems(config.problems, system=config.system_prompt, benchmark_dir=config.include_path)
    ready = []
    for problem in problems:
        ready.append(replace(problem, grader=config.grader or problem.grader))
        check_item(ready[-1].grader, problem.extra, where=problem.where)
    return ready


def _sample(config: RFTConfig, problems: Sequence[Problem], out: Path) -> None:
    if config.samples is not None and not out.exists():
        _take_over(Path(config.samples), out, problems, config.num_samples)
    sample(
        config.model, problems, out=out, n=config.num_samples, temperature=config.temperature, top_p=config.top_p,
        max_new_tokens=config.max_new_tokens, stop=config.stop, seed=config.sampling_seed, engine=config.backend,
        batch_size=config.sampling_batch_size, template=config.chat_template, precision=config.dtype,
        server_url=config.base_url, served_name=config.served_model_name,
    )  # fmt: skip


def _take_over(samples: Path, out: Path, problems: Sequence[Problem], n: int) -> None:
    """Begin with what an earlier run drew for these problems; `sample` then refuses what was drawn otherwise.

    The gold answer and what the verifier needs are those of the problems as they are now.
    """
    asked = {problem.problem_id: problem for problem in problems}
    taken = 0
    with replace_file(out) as aside, aside.open("w", encoding="utf-8") as file:
        for number, line in read_jsonl(samples, torn_last=True):
            index, problem = line.get("sample_index"), asked.get(str(line.get("problem_id")))
            if not isinstance(index, int):
                raise UserError("is not a line of samples", where=f"{samples}:{number}")
            if problem is not None and index < n:
                judged = {"answer": problem.answer, "grader": problem.grader, "extra": problem.extra}
                file.write(json.dumps(line | judged, ensure_ascii=False) + "\n")
                taken += 1
    log.info("sampled: %s answers are taken from %s", f"{taken:,}", samples)


def _check_judged(counts: dict[str, int], graded: Path) -> None:
    """Refuse to go on where the verifier judged nothing: that says something about it, not about the model."""
    log.info("%s", Summary(counts))
    failed = {name: counts[name] for name in UNJUDGED}
    if sum(failed.values()) == sum(counts.values()):
        how = " and ".join(f"{count:,} times {name}" for name, count in failed.items() if count)
        raise UserError(
            f"the verifier judged none of the {sum(counts.values()):,} answers ({how})",
            where=graded,
            hint="raise grading_timeout and --resume, or mend the problems and give samples.jsonl to another "
            "--output-dir as --samples",
        )
