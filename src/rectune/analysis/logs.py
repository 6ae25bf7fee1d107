"""Scores by problem from the logs of evaluation harnesses; only the files are needed, not the harness.

    lm-evaluation-harness  samples_TASK_DATE.jsonl (--log_samples); doc_id, checked by doc_hash
    lmms-eval              DATE_samples_TASK.jsonl; the same
    Inspect                .eval, a zip of JSON, and .json; sample id, checked by input and target
    lighteval              details_TASK_DATE.parquet (--save-details); doc.id, checked by query and choices
    EvalScope              reviews/MODEL/BENCHMARK_SUBSET.jsonl; group_id or index, checked by input and target
    rectune eval           a folder with evaluation.json; problem_id, checked by prompt
    plain                  CSV or JSONL with problem_id and score; arm, seed, task, domain, sample where it has them

Nothing is matched by position: a problem is the same where task and id are, and is left out where its content
differs. What is left out is counted in `frame.attrs["notes"]`.
"""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple

from rectune.analysis.summary_text import BASE
from rectune.data.readers import read_csv, read_jsonl, read_parquet
from rectune.errors import UserError, unknown_name
from rectune.evaluation.accuracy import read_answers
from rectune.runtime.io import load_json

log = logging.getLogger("rectune")

GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "true": 1.0, "false": 0.0}
"""Inspect's letters, and words of a CSV file, as scores."""
ZSTD = 93
"""Of zip archives; zipfile reads it from Python 3.14 on."""
KEYS = ["arm", "seed", "task", "problem_id"]
_LM_EVAL = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")
_LMMS_EVAL = re.compile(r"(?P<date>\d{8}_\d{6}).*_samples_(?P<task>.+)\.jsonl")
_LIGHTEVAL = re.compile(r"details_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.parquet")
_NO_METRIC = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
    "prompt_hash", "target_hash", "input", "submission",
}  # fmt: skip


class ScoredAnswer(NamedTuple):
    """One answer of a log.

    Attributes:
        where: `file:line`.
        sample: Of several answers to the problem; None: they are counted in the order of the file.
        scores: Metric to value, as it is logged.
        content: What tells whether the problem is the same one, "" where the log does not say.
        fields: What --cluster may name.
    """

    where: str
    task: str
    problem_id: str
    scores: Mapping[str, object]
    sample: int | None = 0
    content: str = ""
    prompt_hash: str = ""
    prompt: str = ""
    target: str = ""
    text: str = ""
    extracted: str | None = None
    fields: Mapping[str, object] = {}
    arm: str = ""
    seed: int | None = None
    domain: str = ""


class Log(NamedTuple):
    """The answers of one log to one task; of several logs of a task in a folder, the newest one counts."""

    path: Path
    task: str
    date: str
    answers: list[ScoredAnswer]


def parse_logs(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Arm to a folder or file for each seed, from `NAME=PATH,PATH`; "" to files that name their arms themselves.

    Raises:
        UserError: An arm is given twice, without a path, or has a name that no folder could have.
    """
    arms: dict[str, list[Path]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals:
            name, rest = "", text
        elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
            hint = "letters, digits, '.', '-' and '_'"
            raise UserError(f"'{name}' is not a name for an arm", where="--logs", hint=hint)
        if name in arms:
            raise UserError(
                f"'{name}' is given twice" if name else "two files without an arm", where="--logs"
            )
        arms[name] = [Path(part.strip()).expanduser() for part in rest.split(",") if part.strip()]
        if not arms[name]:
            raise UserError(f"'{name}' has no folder", where="--logs", hint="NAME=FOLDER,FOLDER")
        if len({path.resolve() for path in arms[name]}) < len(arms[name]):
            raise UserError(f"'{name}' has a folder twice", where="--logs")
    return arms


def read_logs(
    logs: Mapping[str, Sequence[Path | str]], *, metric: Sequence[str] = (), cluster: str | None = None
) -> Any:
    """Read the logs of several arms.

    Args:
        logs: Arm to a folder or file for each seed. Several of "base" are answers of one model. "" has files that name
            their arms in a column.
        metric: Names of the scores to take; each task takes the first that it has. Not needed where it has one.
        cluster: Field of the problems that is kept as `cluster`.

    Returns:
        A pandas data frame with a row for each answer: arm, seed (from 0 in the order given), task, problem_id, sample,
        score (in [0, 1]), metric, content, prompt_hash, prompt, target, text, extracted, domain and cluster.
        `attrs["notes"]` says what was left out, `attrs["metrics"]` which score each task takes.

    Raises:
        UserError: No logs, none by problem, a damaged file, an unknown or ambiguous metric, or a score outside [0, 1].
    """
    import pandas

    notes: list[str] = []
    found: list[tuple[str, int, ScoredAnswer]] = []
    for arm, paths in logs.items():
        for seed, path in enumerate(map(Path, paths)):
            for answer in _newest(read_log(path), path, notes):
                if arm and answer.arm not in ("", arm):
                    hint = "give the file without a name: it names the arms itself"
                    raise UserError(f"is of arm '{answer.arm}', not '{arm}'", where=answer.where, hint=hint)
                if not arm and not answer.arm:
                    raise UserError("has no column 'arm'", where=answer.where, hint="--logs NAME=FILE")
                found.append((arm or answer.arm, seed if answer.seed is None else answer.seed, answer))
    metrics = {
        task: choose_metric(task, [answer for *_, answer in found if answer.task == task], metric)
        for task in dict.fromkeys(answer.task for *_, answer in found)
    }
    rows, unscored = [], dict.fromkeys(metrics, 0)
    for arm, seed, answer in found:
        score = _score(answer, metrics[answer.task])
        unscored[answer.task] += score is None
        if score is not None:
            row = answer._asdict() | {
                "arm": arm,
                "seed": seed,
                "score": score,
                "metric": metrics[answer.task],
            }
            rows.append(row | {"cluster": _cluster(answer, cluster) if cluster else None})
    notes += [
        f"{task}: {count} answers without a score are left out" for task, count in unscored.items() if count
    ]
    frame = pandas.DataFrame(rows, columns=[*KEYS, "sample", "score", "metric", *_KEPT, "where"])
    frame = _numbered(frame)
    frame.attrs = {"notes": notes, "metrics": metrics}
    return frame


_KEPT = ["content", "prompt_hash", "prompt", "target", "text", "extracted", "domain", "cluster"]


def _numbered(frame: Any) -> Any:
    """With a number for each answer to a problem; the base model's seeds become answers of one model."""
    counted = frame.groupby(KEYS, sort=False).cumcount()
    frame["sample"] = frame["sample"].where(frame["sample"].notna(), counted).astype(int)
    twice = frame[frame.duplicated([*KEYS, "sample"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(f"problem {first.problem_id} of {first.task} is there twice", where=first["where"])
    base = frame["arm"] == BASE
    frame.loc[base, "sample"] += frame.loc[base, "seed"] * (frame["sample"].max() + 1 if len(frame) else 1)
    frame.loc[base, "seed"] = 0
    return frame.drop(columns="where").sort_values("sample", kind="stable", ignore_index=True)


def choose_metric(task: str, answers: Sequence[ScoredAnswer], wanted: Sequence[str]) -> str:
    """The score that a task takes: `wanted`, by its whole name or a part of it between slashes, else the only one.

    Raises:
        UserError: No score, none of `wanted`, or several.
    """
    names = list(
        dict.fromkeys(name for a in answers for name, v in a.scores.items() if _number(v) is not None)
    )
    if not names:
        where = answers[0].where.rpartition(":")[0]
        raise UserError(
            f"{task} has no score by problem", where=where, hint="only aggregated metrics cannot be compared"
        )
    if not wanted and len(names) == 1:
        return names[0]
    for name in wanted:
        fits = [known for known in names if known == name]
        fits = fits or [known for known in names if name in known.split("/")]
        if len(fits) == 1:
            return fits[0]
        if fits:
            names = fits
            break
    else:
        if wanted:
            raise unknown_name("metric", wanted[0], names, where=f"--metric, {task}")
    raise UserError(f"{task} has several scores", where="--metric", hint=f"give one of {', '.join(names)}")


def _number(value: object) -> float | None:
    """A logged score as a number; None where it is none, or not finite."""
    if isinstance(value, str):
        if value in GRADES:
            return GRADES[value]
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, bool | int | float) and math.isfinite(value) else None


def _score(answer: ScoredAnswer, metric: str) -> float | None:
    value = answer.scores.get(metric)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        shown = f"{value if number is None else number!r}"[:60]
        hint = "scores must be from 0 to 1; choose another with --metric"
        raise UserError(f"{metric} of {answer.task} is {shown}", where=answer.where, hint=hint)
    return number


def _cluster(answer: ScoredAnswer, name: str) -> str:
    if name not in answer.fields:
        raise unknown_name("field", name, answer.fields, where=f"--cluster, {answer.where}")
    return str(answer.fields[name])


def _newest(logs: Sequence[Log], path: Path, notes: list[str]) -> Iterator[ScoredAnswer]:
    by_task: dict[str, list[Log]] = {}
    for each in logs:
        by_task.setdefault(each.task, []).append(each)
    for task, several in by_task.items():
        newest = max(several, key=lambda each: (each.date, str(each.path)))
        if len(several) > 1:
            notes.append(f"{path} has {len(several)} logs of {task}; the newest is read, {newest.path.name}")
        yield from newest.answers


def read_log(path: Path) -> list[Log]:
    """The logs in a file or folder.

    Raises:
        UserError: There are none (says if there are aggregated results), or one is damaged.
    """
    if not path.exists():
        raise UserError("no such file or folder", where=path)
    if path.is_file():
        reader = _reader(path) or _plain
        logs = reader(path)
    elif folder := next((f for f in (path, path / "evaluation") if (f / "evaluation.json").is_file()), None):
        logs = _rectune(folder)
    else:
        files = sorted(file for file in path.rglob("*") if file.is_file())
        logs = [each for file in files if (reader_of := _reader(file)) for each in reader_of(file)]
        if not logs:
            tables = [file for file in files if file.suffix in (".csv", ".tsv")]
            logs = [each for file in tables for each in _plain(file)]
        if not logs and any(re.search(r"results?\b|results_", file.name) for file in files):
            what = "only aggregated results, no scores by problem"
            hint = "run lm_eval with --log_samples, lighteval with --save-details"
            raise UserError(what, where=path, hint=hint)
    if not any(each.answers for each in logs):
        hint = (
            "of lm-evaluation-harness, Inspect, lighteval, EvalScope, lmms-eval, rectune eval, or a CSV file"
        )
        raise UserError("no log with scores by problem", where=path, hint=hint)
    return logs


def _reader(path: Path) -> Callable[[Path], list[Log]] | None:
    """The reader of a file by its name; None for other files."""
    if _LM_EVAL.fullmatch(path.name) or _LMMS_EVAL.fullmatch(path.name):
        return _lm_eval
    if _LIGHTEVAL.fullmatch(path.name):
        return _lighteval
    if path.suffix == ".eval":
        return _inspect_zip
    if (
        path.suffix == ".json"
        and not path.name.startswith("results")
        and not path.name.endswith("_results.json")
    ):
        return _inspect_json
    if path.suffix == ".jsonl" and path.parent.parent.name == "reviews":
        return _evalscope
    return None


def _lm_eval(path: Path) -> list[Log]:
    named = _LM_EVAL.fullmatch(path.name) or _LMMS_EVAL.fullmatch(path.name)
    assert named is not None
    by_id: dict[str, ScoredAnswer] = {}
    seen: set[tuple[str, str]] = set()
    for number, line in read_jsonl(path):
        where = f"{path}:{number}"
        if "doc_id" not in line:
            raise UserError("has no doc_id", where=where, hint="it is no log of lm-evaluation-harness")
        problem_id, by = str(line["doc_id"]), str(line.get("filter", "none"))
        if (problem_id, by) in seen:
            raise UserError(f"doc_id {problem_id} is there twice", where=where)
        seen.add((problem_id, by))
        logged = line.get("metrics")
        metrics = logged if isinstance(logged, list) else [name for name in line if name not in _NO_METRIC]
        ending = "" if by == "none" else f"/{by}"
        scores = {f"{name}{ending}": line.get(name) for name in metrics}
        if problem_id in by_id:
            first = by_id[problem_id]
            by_id[problem_id] = first._replace(scores={**first.scores, **scores})
            continue
        extracted = _first(line.get("filtered_resps"))
        by_id[problem_id] = ScoredAnswer(
            where, named["task"], problem_id, scores,
            content=str(line.get("doc_hash", "")),
            prompt_hash=str(line.get("prompt_hash", "")),
            prompt=_lm_eval_prompt(line.get("arguments")) or _text(line.get("input")),
            target=str(line.get("target", "")),
            text=_first(line.get("resps")) or extracted or "",
            extracted=None if extracted == "[invalid]" else extracted,
            fields=_object(line.get("doc")),
        )  # fmt: skip
    return [Log(path, named["task"], named["date"], list(by_id.values()))]


def _first(value: object) -> str | None:
    """The text of the first answer; None for log-likelihoods."""
    while isinstance(value, list) and value:
        value = value[0] if not (len(value) == 2 and value[1] in ("True", "False", True, False)) else None
    return value if isinstance(value, str) else None


def _lm_eval_prompt(arguments: object) -> str:
    return _text(_object(_object(arguments).get("gen_args_0")).get("arg_0"))


def _inspect_json(path: Path) -> list[Log]:
    try:
        content = load_json(path)
    except ValueError as error:
        raise UserError(f"not JSON ({error})", where=path) from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror})", where=path) from None
    if not isinstance(content, dict) or not isinstance(content.get("eval"), dict):
        return []
    samples = content.get("samples") or []
    return [_inspect(path, content, ((f"{path}: sample {i + 1}", s) for i, s in enumerate(samples)))]


def _inspect_zip(path: Path) -> list[Log]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "header.json" not in names:
                raise UserError(
                    "is not finished: it has no header.json", where=path, hint="inspect eval-retry"
                )
            header = json.loads(_entry(archive, "header.json"))
            samples = [name for name in names if name.startswith("samples/") and name.endswith(".json")]
            return [
                _inspect(
                    path, header, ((f"{path}:{name}", json.loads(_entry(archive, name))) for name in samples)
                )
            ]
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, struct.error) as error:
        raise UserError(f"the .eval file is damaged ({error})", where=path) from None


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip archive, of Zstandard compression, too, which Inspect writes."""
    entry = archive.getinfo(name)
    if entry.compress_type != ZSTD:
        return archive.read(name)
    import pyarrow

    source: IO[bytes] = archive.fp  # type: ignore[assignment]
    source.seek(entry.header_offset)
    header = source.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    source.seek(name_length + extra_length, 1)
    packed = source.read(entry.compress_size)
    content: bytes = pyarrow.CompressedInputStream(pyarrow.BufferReader(packed), "zstd").read()
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise zipfile.BadZipFile(f"bad CRC-32 for file '{name}'")
    return content


def _inspect(path: Path, header: Mapping[str, Any], samples: Iterator[tuple[str, Any]]) -> Log:
    task, date = str(header["eval"].get("task", path.stem)), str(header["eval"].get("created", ""))
    answers = []
    for where, sample in samples:
        if not isinstance(sample, dict) or "id" not in sample:
            raise UserError("is not a sample of Inspect (no id)", where=where)
        scores: dict[str, object] = {}
        extracted = None
        for scorer, score in _object(sample.get("scores")).items():
            value = score.get("value") if isinstance(score, dict) else score
            extracted = extracted or (score.get("answer") if isinstance(score, dict) else None)
            parts = value if isinstance(value, dict) else {"": value}
            scores |= {f"{scorer}/{key}" if key else scorer: part for key, part in parts.items()}
        output = _object(sample.get("output"))
        answers.append(
            ScoredAnswer(
                where, task, str(sample["id"]), scores or {"": None},
                sample=int(sample.get("epoch", 1)) - 1,
                content=_hash(sample.get("input"), sample.get("target")),
                prompt=_text(sample.get("input")),
                target=_text(sample.get("target")),
                text=_text(output.get("completion")),
                extracted=extracted if isinstance(extracted, str) else None,
                fields=_object(sample.get("metadata")),
            )
        )  # fmt: skip
    return Log(path, task, date, answers)


def _lighteval(path: Path) -> list[Log]:
    named = _LIGHTEVAL.fullmatch(path.name)
    assert named is not None
    answers = []
    for number, row in read_parquet(path):
        doc, metric, where = _object(row.get("doc")), _object(row.get("metric")), f"{path}:{number}"
        if not metric or not str(doc.get("id", "")):
            what = "has no doc.id and metric"
            raise UserError(what, where=where, hint="details of lighteval 0.13 are read")
        response = _object(row.get("model_response"))
        choices, gold = doc.get("choices") or [], doc.get("gold_index")
        places = gold if isinstance(gold, list) else [gold]
        golds = [str(choices[i]) for i in places if isinstance(i, int) and 0 <= i < len(choices)]
        text = _first(response.get("text")) or ""
        answers.append(
            ScoredAnswer(
                where, named["task"], str(doc["id"]), metric,
                content=_hash(doc.get("query"), choices, gold),
                prompt=_text(doc.get("query")),
                target=" or ".join(golds),
                text=text,
                extracted=_first(response.get("text_post_processed")) or text or None,
                fields=_object(doc.get("specific")),
            )
        )  # fmt: skip
    return [Log(path, named["task"], named["date"], answers)]


def _evalscope(path: Path) -> list[Log]:
    answers = []
    for number, line in read_jsonl(path):
        where = f"{path}:{number}"
        scored = _object(line.get("sample_score"))
        score = _object(scored.get("score"))
        if not score or "index" not in line:
            raise UserError(
                "has no index and sample_score", where=where, hint="reviews of EvalScope 1 are read"
            )
        group = scored.get("group_id")
        extracted = score.get("extracted_prediction")
        answers.append(
            ScoredAnswer(
                where, path.stem, str(line["index"] if group is None else group), _object(score.get("value")),
                sample=0 if group is None else None,
                content=_hash(line.get("input"), line.get("target")),
                prompt=_text(line.get("input")),
                target=_text(line.get("target")),
                text=_text(score.get("prediction")),
                extracted=extracted if isinstance(extracted, str) else None,
                fields=_object(scored.get("sample_metadata")),
            )
        )  # fmt: skip
    run = path.parents[2].name  # outputs/DATE/reviews/MODEL/FILE
    return [Log(path, path.stem, run, answers)]


def _rectune(folder: Path) -> list[Log]:
    logs = []
    for task, samples in read_answers(folder)[1].items():
        answers = [
            ScoredAnswer(
                f"{folder}/graded.jsonl: {name}", task, name.removeprefix(f"{task}/"), {"correct": line.value},
                sample=line.sample_index,
                content=_hash([turn.content for turn in line.turns] if line.turns else line.prompt),
                prompt=line.turns[-1].content if line.turns else line.prompt or "",
                target=_text(line.to_dict().get("answer")),
                text=line.text,
                extracted=line.extracted,
                fields=line.extra or {},
            )
            for name, lines in samples.items()
            for line in lines
        ]  # fmt: skip
        logs.append(Log(folder, task, "", answers))
    return logs


def _plain(path: Path) -> list[Log]:
    if path.suffix not in (".csv", ".tsv", ".jsonl"):
        hint = "a harness's log under its own name, or .csv, .tsv, .jsonl with problem_id and score"
        raise UserError("not a log", where=path, hint=hint)
    by_task: dict[str, list[ScoredAnswer]] = {}
    for number, line in read_jsonl(path) if path.suffix == ".jsonl" else read_csv(path):
        where = f"{path}:{number}"
        if isinstance(line, UserError):
            raise line
        for name in ("problem_id", "score"):
            if line.get(name) in (None, ""):
                raise UserError(f"has no {name}", where=where, hint="a row has problem_id and score")
        task = str(line.get("task") or path.stem)
        by_task.setdefault(task, []).append(
            ScoredAnswer(
                where, task, str(line["problem_id"]), {"score": line["score"]},
                sample=_whole(line, "sample", where),
                text=_text(line.get("text")),
                fields=line,
                arm=str(line.get("arm") or ""),
                seed=_whole(line, "seed", where),
                domain=_domain(line, where),
            )
        )  # fmt: skip
    return [Log(path, task, "", answers) for task, answers in by_task.items()]


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(line: Mapping[str, Any], name: str, where: str) -> int | None:
    value = line.get(name)
    if value in (None, ""):
        return None
    if not re.fullmatch(r"\d{1,9}", str(value)):
        raise UserError(f"{name} must be a whole number (got {value!r})", where=where)
    return int(str(value))


def _domain(line: Mapping[str, Any], where: str) -> str:
    domain = str(line.get("domain") or "")
    if domain not in ("", "in", "out"):
        raise UserError(f"domain must be in or out (got {domain!r})", where=where)
    return domain


def _text(value: object) -> str:
    """Text as it is, messages as that of the last one, anything else as JSON."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)


def _hash(*parts: object) -> str:
    text = json.dumps([_without_ids(part) for part in parts], sort_keys=True, default=str)
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _without_ids(value: object) -> object:
    """Without the ids that Inspect gives messages anew in each run."""
    if isinstance(value, dict):
        return {key: _without_ids(inner) for key, inner in value.items() if key != "id"}
    return [_without_ids(inner) for inner in value] if isinstance(value, list) else value


def align(frame: Any) -> Any:
    """The problems that all arms and seeds have, with the same content; `attrs["notes"]` counts the others.

    An arm that answered some problems more often than others has one answer for each: the mean of its scores.

    Raises:
        UserError: No problem is left.
    """
    notes = list(frame.attrs["notes"])
    runs = frame[["arm", "seed"]].drop_duplicates().itertuples(index=False)
    names = [f"{arm}, seed {seed}" if arm != BASE else BASE for arm, seed in runs]
    of_run = [group for _, group in frame.groupby(["arm", "seed"], sort=False)]
    kept = []
    for task, answers in frame.groupby("task", sort=False):
        ids = [set(run.loc[run["task"] == task, "problem_id"]) for run in of_run]
        without = [name for name, of_one in zip(names, ids, strict=True) if not of_one]
        if without:
            notes.append(f"{task} is left out: it is not in the logs of {'; '.join(without)}")
            continue
        every, shared = set().union(*ids), set.intersection(*ids)
        notes += [
            f"{task}: {len(every) - len(of_one)} of {len(every)} problems are not in the log of {name}"
            for name, of_one in zip(names, ids, strict=True)
            if len(of_one) < len(every)
        ]
        known = answers[answers["problem_id"].isin(shared)]
        for column, what in (("content", "have other content"), ("prompt_hash", "have another prompt")):
            values = known[known[column] != ""].groupby("problem_id")[column].nunique()
            differ = set(values[values > 1].index)
            if differ:
                end = ": they are left out" if column == "content" else ", as with another template or shots"
                notes.append(f"{task}: {len(differ)} of {len(shared)} problems {what} in some logs{end}")
            if column == "content":
                shared -= differ
        kept.append(known[known["problem_id"].isin(shared)])
    left = frame.loc[sorted(index for part in kept for index in part.index)]
    if left.empty:
        hint = "; ".join(notes[-4:]) or None
        raise UserError("the arms have no problem in common", where="--logs", hint=hint)
    left.attrs = {**frame.attrs, "notes": notes}
    return left


def one_score_each(frame: Any, by: str) -> Any:
    """Each arm's mean score for each value of a column: "problem_id" or "cluster", which becomes the problem."""
    first = dict.fromkeys(("metric", "prompt", "target", "domain"), "first")
    means = frame.groupby(["arm", "seed", "task", by], sort=False, as_index=False).agg(
        {"score": "mean", **first}
    )
    means = means.rename(columns={by: "problem_id"}).assign(sample=0, text="", extracted=None)
    means.attrs = dict(frame.attrs)
    return means
