"""Paired comparison of several arms (objectives), each with one training seed or several, on the same problems.

`compare_runs` reads the folders that `evaluate` wrote. The statistics are in `evaluation/statistics.py`, what answers
look like in `decomposition.py`, the sentences in `summary_text.py`. In domain and out of domain are separate: a method
can be better in one and worse in the other. Where greedy evaluations or ones at a matched temperature
(`entropy_matching.py`) are given, the verdict says how much of a difference is left, because sampling at T = 1 rewards
low entropy by itself.

Shapes: P problems, N samples, S seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rectune.analysis.decomposition import (
    Answers,
    answers_of,
    describe,
    find_changes,
    join_problems,
    join_seeds,
    mean_of,
    sampled_entropy,
)
from rectune.analysis.summary_text import (
    BASE,
    DOMAINS,
    against_base,
    contrasts,
    direction,
    domain_sentences,
    headline,
    overlap_sentence,
    pair_sentence,
    sharpening_sentence,
)
from rectune.errors import UserError
from rectune.evaluation.accuracy import powers_of_two, read_answers
from rectune.evaluation.statistics import (
    Difference,
    Interval,
    holm,
    mean_interval,
    paired_difference,
    pass_at_k_by_problem,
    problems_needed,
)
from rectune.records import (
    ArmResult,
    ArmsResult,
    DomainVerdict,
    Evaluation,
    GreedyDifference,
    MatchedDifference,
    PairResult,
    PassDifference,
    SampleSize,
    Sharpening,
    TaskVerdict,
    Verdict,
)

Folders = Mapping[str, Mapping[int, Path]]
"""Label of an arm to training seed to evaluation folder."""
WORTH_SEEING = 0.02
"""The difference that an undecided pair is planned for, unless the one that was found is larger."""
PROTOCOL = ("n", "temperature", "top_p", "max_new_tokens", "stop", "template", "date", "system")
"""Settings whose difference makes two evaluations hard to compare."""


class RunAnswers(NamedTuple):
    """The answers of one run to one task (or to all of a domain), by problem."""

    ids: list[str]
    answers: Answers
    temperature: float | None


Arms = dict[str, dict[int, RunAnswers]]
"""Label to seed to answers."""


@dataclass
class _Comparison:
    """What all tasks of a comparison share; `target` is the arm that the matched ones are as sharp as."""

    level: float
    target: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _TaskArms:
    """All arms on one task or domain: as they were sampled, greedily, and at a matched temperature."""

    name: str
    sampled: Arms
    greedy: Arms
    matched: Arms


def compare_runs(
    arms: Folders,
    domains: Mapping[str, str],
    *,
    greedy: Folders | None = None,
    matched: Folders | None = None,
    matched_to: str | None = None,
    overlap: Collection[str] = (),
    level: float = 0.95,
) -> Verdict:
    """Compare every pair of arms on every task, and say what follows in sentences.

    Args:
        arms: Label to seed to evaluation folder, the reference first: pairs are later minus earlier. An arm called
            "base" with one evaluation is paired with every seed of the others.
        domains: Task to "in" or "out" (of the training rows' domain); others belong to neither.
        greedy: The same at temperature 0.
        matched: Arms sampled at the temperature at which they are as sharp as `matched_to`.
        matched_to: Its label; None: the arm without a matched folder, of several the one of lowest entropy.
        overlap: Ids of problems whose text occurs in the training rows; what follows without them is said, too.
        level: Of the intervals; a difference is *shown* when Holm's adjusted p-value is below 1 - level and the
            interval leaves out 0.

    Returns:
        All fields are fractions, not points; docs/evaluation.md describes them. `warnings` says what was left out or
        was not alike.

    Raises:
        UserError: No evaluation can be read.
    """
    comparison = _Comparison(level)
    sampled, evaluations = read_arms(arms, comparison.warnings)
    if not any(sampled.values()):
        hint = "; ".join(comparison.warnings) or None
        raise UserError("no evaluation can be read", where=", ".join(arms), hint=hint)
    comparison.warnings += protocol_mismatches(evaluations)
    cold, cool = (read_arms(folders or {}, comparison.warnings)[0] for folders in (greedy, matched))
    comparison.target = matched_to or (_sharpest(sampled, cool, comparison) if cool else None)
    by_task = {
        name: _TaskArms(name, runs, cold.get(name, {}), cool.get(name, {})) for name, runs in sampled.items()
    }
    tasks = {
        name: TaskVerdict(domain=domains.get(name, ""), **_compare_arms(task, comparison))
        for name, task in by_task.items()
    }
    pooled: dict[str, DomainVerdict] = {}
    for domain, title in DOMAINS.items():
        members = [task for name, task in by_task.items() if domains.get(name) == domain]
        together = pool_tasks(title, members) if len(members) > 1 else None
        if together and together.sampled:  # none where no run has all of them
            names = [task.name for task in members]
            pooled[domain] = DomainVerdict(benchmarks=names, **_compare_arms(together, comparison))
    pairs = [pair for result in (*tasks.values(), *pooled.values()) for pair in result.pairs]
    _decide(pairs, level)
    without = _without_overlap(by_task, domains, frozenset(overlap), comparison)
    sections = _sections(tasks, pooled)
    against = against_base(_places(sections))
    lines = headline(against)
    return Verdict(
        level=level,
        benchmarks=tasks,
        domains=pooled,
        comparisons=len(pairs),
        against_base=against,
        headline=lines,
        sentences=[line.sentence for line in lines] + _sentences(sections, level),
        warnings=list(dict.fromkeys(comparison.warnings)),
        without_overlap=without,
    )


def _without_overlap(
    by_task: Mapping[str, _TaskArms],
    domains: Mapping[str, str],
    overlap: frozenset[str],
    comparison: _Comparison,
) -> dict[str, TaskVerdict]:
    """The tasks of which problems occur in the training rows, without these; each becomes a warning."""
    found = {}
    for name, task in by_task.items():
        every = {
            problem_id for runs in task.sampled.values() for run in runs.values() for problem_id in run.ids
        }
        if not (shared := overlap & every):
            continue
        warning = f"{len(shared)} of {len(every)} problems of {name} occur in the training rows"
        if shared != every:
            sampled = {
                label: {seed: _except(run, shared) for seed, run in runs.items()}
                for label, runs in task.sampled.items()
            }
            alone = _Comparison(comparison.level)  # its warnings are those of the whole task
            fields = _compare_arms(_TaskArms(name, sampled, {}, {}), alone)
            found[name] = TaskVerdict(domain=domains.get(name, ""), **fields)
            _decide(found[name].pairs, comparison.level)
            warning += f"; without them {overlap_sentence(found[name])}"
        comparison.warnings.append(warning)
    return found


def _except(run: RunAnswers, ids: frozenset[str]) -> RunAnswers:
    """The answers to the other problems."""
    kept = [row for row, problem_id in enumerate(run.ids) if problem_id not in ids]
    return run._replace(ids=[run.ids[row] for row in kept], answers=run.answers.take(kept))


def read_arms(folders: Folders, warnings: list[str]) -> tuple[dict[str, Arms], dict[str, Evaluation]]:
    """Task to arms, and the evaluations by name; what cannot be read becomes a warning."""
    tasks: dict[str, Arms] = {}
    evaluations: dict[str, Evaluation] = {}
    base_first = sorted(folders, key=lambda arm: arm != BASE)  # others are compared with it
    for label, seed, folder in [(arm, *run) for arm in base_first for run in folders[arm].items()]:
        try:
            evaluation, by_task = read_answers(folder)
        except UserError as error:
            warnings.append(f"{label}, seed {seed}, is left out: {error}")
            continue
        evaluations[f"{label}, seed {seed}"] = evaluation
        for name, samples in by_task.items():
            if not samples:
                continue
            answers = answers_of(samples)
            if evaluation.protocol.top_p != 1:  # then it is not that of the distribution sampled from
                answers.numbers["surprisal"][:] = np.nan
            run = RunAnswers(list(samples), answers, evaluation.protocol.temperature)
            tasks.setdefault(name, {}).setdefault(label, {})[seed] = run
    return tasks, evaluations


def protocol_mismatches(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Differences in protocol from the first evaluation, as sentences."""
    (first, reference), *others = evaluations.items()
    return [f"{first} and {name}: {text}" for name, e in others for text in _differences(reference, e)]


def _differences(a: Evaluation, b: Evaluation) -> Iterator[str]:
    for key in PROTOCOL:
        values = getattr(a.protocol, key), getattr(b.protocol, key)
        if values[0] != values[1]:
            yield f"{key} differs: {values[0]!r} and {values[1]!r}"
    refused = sorted(a.protocol.not_taken), sorted(b.protocol.not_taken)
    if refused[0] != refused[1]:
        yield f"the servers refused other settings: {refused[0]} and {refused[1]}"
    for name in a.benchmarks.keys() & b.benchmarks.keys():
        prompts = a.benchmarks[name].prompt, b.benchmarks[name].prompt
        if prompts[0] != prompts[1]:
            yield f"{name} is asked as {prompts[0]!r} and as {prompts[1]!r}"


def _sharpest(sampled: dict[str, Arms], matched: dict[str, Arms], comparison: _Comparison) -> str | None:
    """The arm without a matched folder, of several the one of lowest entropy."""
    done = {label for arms in matched.values() for label in arms}
    left = list(dict.fromkeys(label for arms in sampled.values() for label in arms if label not in done))
    if len(left) > 1:
        nats = {
            label: [e for arms in sampled.values() if (e := entropy_of(arms.get(label, {}))) is not None]
            for label in left
        }
        known = {label: float(np.mean(values)) for label, values in nats.items() if values}
        left = [min(known, key=lambda label: known[label])] if known else []
    if not left:
        comparison.warnings.append(
            "the arm that the temperatures were matched to is not known; they are not compared"
        )
    return left[0] if left else None


def entropy_of(runs: Mapping[int, RunAnswers]) -> float | None:
    """Mean entropy of an arm's own answers in nats a token; None unless they were drawn at T = 1 with log-probs."""
    values = [sampled_entropy(run.answers) for run in runs.values() if run.temperature == 1]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def pool_tasks(title: str, tasks: Sequence[_TaskArms]) -> _TaskArms:
    """All problems of several tasks, for the runs that have all of them."""
    return _TaskArms(
        title,
        _pool([task.sampled for task in tasks]),
        _pool([task.greedy for task in tasks]),
        _pool([task.matched for task in tasks]),
    )


def _pool(tasks: Sequence[Arms]) -> Arms:
    together: Arms = {}
    for label in tasks[0]:
        for seed, first in tasks[0][label].items():
            parts = [arms[label][seed] for arms in tasks if seed in arms.get(label, {})]
            if len(parts) == len(tasks):
                ids = [problem_id for part in parts for problem_id in part.ids]
                answers = join_problems([part.answers for part in parts])
                together.setdefault(label, {})[seed] = RunAnswers(ids, answers, first.temperature)
    return together


def intersect_problems(what: str, runs: Sequence[RunAnswers], comparison: _Comparison) -> list[Answers]:
    """Each run's answers to the problems that all have, in the order of the first."""
    shared = set(runs[0].ids).intersection(*(run.ids for run in runs))
    most = max(len(run.ids) for run in runs)
    if len(shared) < most:
        comparison.warnings.append(
            f"{what}: {len(shared)} of {most} problems are in all evaluations that belong together"
        )
    if all(run.ids == runs[0].ids for run in runs):
        return [run.answers for run in runs]
    order = [problem_id for problem_id in runs[0].ids if problem_id in shared]
    rows = [{problem_id: row for row, problem_id in enumerate(run.ids)} for run in runs]
    return [run.answers.take([at[i] for i in order]) for run, at in zip(runs, rows, strict=True)]


class Aligned(NamedTuple):
    """Answers of two arms, seed by seed, to the problems that all runs have."""

    a: list[Answers]
    b: list[Answers]

    def difference(self, level: float) -> Difference:
        return _paired([run.correct for run in self.a], [run.correct for run in self.b], level)


def align_pairs(
    name: str,
    labels: tuple[str, str],
    a: dict[int, RunAnswers],
    b: dict[int, RunAnswers],
    comparison: _Comparison,
) -> Aligned | None:
    """Pair the runs of two arms by seed, the base model with every seed; None without a problem or run in common."""
    seeds = [(seed, seed) for seed in a if seed in b]
    if len({labels[0]: a, labels[1]: b}.get(BASE, {})) == 1:
        seeds = [(i, j) for i in a for j in b]
    elif not seeds and a and b:
        seeds = list(zip(sorted(a), sorted(b), strict=False))
        comparison.warnings.append(f"{labels[0]} and {labels[1]} have no seed in common: paired in order")
    if not seeds:
        return None
    runs = [*(a[i] for i, _ in seeds), *(b[j] for _, j in seeds)]
    if not set(runs[0].ids).intersection(*(run.ids for run in runs)):
        comparison.warnings.append(f"{name}: {labels[0]} and {labels[1]} have no problem in common")
        return None
    answers = intersect_problems(f"{name}, {labels[0]} and {labels[1]}", runs, comparison)
    return Aligned(answers[: len(seeds)], answers[len(seeds) :])


def _compare_arms(task: _TaskArms, comparison: _Comparison) -> dict[str, Any]:
    """The fields of `ArmsResult`, the pairs without what depends on all of a comparison (see `_decide`)."""
    arms = {label: _arm(task, label, comparison) for label in task.sampled}
    pairs = [_pair(task, (a, b), comparison) for b, a in combinations(task.sampled, 2)]
    problems = max(len(run.ids) for runs in task.sampled.values() for run in runs.values())
    return {"problems": problems, "arms": arms, "pairs": [pair for pair in pairs if pair is not None]}


def _arm(task: _TaskArms, label: str, comparison: _Comparison) -> ArmResult:
    runs = task.sampled[label]
    answers = intersect_problems(f"{task.name}, {label}", list(runs.values()), comparison)
    if not len(answers[0].correct):
        comparison.warnings.append(f"{task.name}, {label}: only the first seed counts")
        runs = dict(list(runs.items())[:1])
        answers = [run.answers for run in runs.values()]
    x_S = [run.correct for run in answers]
    greedy = [run.answers.correct.mean() for run in task.greedy.get(label, {}).values()]
    binary = all(np.all(x % 1 == 0) for x in x_S)
    ks = powers_of_two(min(x.shape[1] for x in x_S)) if binary else []
    together = join_seeds(answers)
    shape = describe(together)
    return ArmResult(
        **mean_accuracy_of(x_S, comparison.level)._asdict(),
        seeds=len(x_S),
        by_seed={str(seed): float(x.mean()) for seed, x in zip(runs, x_S, strict=True)},
        greedy=float(np.mean(greedy)) if greedy else None,
        pass_at={str(k): float(np.mean([pass_at_k_by_problem(x, k).mean() for x in x_S])) for k in ks},
        stopped=mean_of(together, "stopped"),
        tokens=shape.tokens.mean if shape.tokens else None,
        repeating=mean_of(together, "repeating"),
        entropy=entropy_of(runs),
        shape=shape,
    )


def mean_accuracy_of(x_S: Sequence[np.ndarray], level: float = 0.95) -> Interval:
    """Mean over seeds and problems; each limit is the wider of the one over problems alone and the two-way one.

    Args:
        x_S: For each seed the verdicts on the same problems, (P, N).
        level: Of the interval.
    """
    x_SP = np.stack([x.mean(1) for x in x_S])
    over_problems = mean_interval(x_SP.T, level)
    if len(x_S) < 2 or np.ptp(x_SP) == 0 or x_SP.shape[1] < 2:
        return over_problems
    both = paired_difference(list(x_SP[:, :, None]), list(np.zeros_like(x_SP)[:, :, None]), level)
    low, high = min(over_problems.low, both.low), max(over_problems.high, both.high)
    return Interval(over_problems.mean, max(0.0, low), high)


def _pair(task: _TaskArms, labels: tuple[str, str], comparison: _Comparison) -> PairResult | None:
    a, b = (task.sampled[label] for label in labels)
    aligned = align_pairs(task.name, labels, a, b, comparison)
    if aligned is None:
        return None
    difference = aligned.difference(comparison.level)
    changes = find_changes(join_seeds(aligned.a), join_seeds(aligned.b), labels)
    return PairResult(
        a=labels[0],
        b=labels[1],
        **_limits(difference),
        p_value=difference.p_value,
        problems=len(aligned.a[0].correct),
        seeds=len(aligned.a),
        needed=sample_size(_by_seed(aligned.a), _by_seed(aligned.b), difference.mean),
        shape_shift=[change.sentence for change in changes],
        shifts=changes,
        sharpening=_sharpening(task, labels, aligned, comparison),
        p_holm=difference.p_value,  # these four depend on all pairs: `_decide`
        shown=False,
        verdict="no difference",
        sentence="",
    )


def _limits(difference: Difference) -> dict[str, float]:
    return {"difference": difference.mean, "low": difference.low, "high": difference.high}


def _paired(a: Sequence[np.ndarray], b: Sequence[np.ndarray], level: float) -> Difference:
    return paired_difference(a, b, level) if len(a) > 1 else paired_difference(a[0], b[0], level)


def _by_seed(answers: Sequence[Answers]) -> np.ndarray:
    """Share correct, S x P."""
    return np.stack([run.correct.mean(1) for run in answers])


def sample_size(
    a_SP: np.ndarray, b_SP: np.ndarray, difference: float, *, least: float = WORTH_SEEING
) -> SampleSize | None:
    """What it would take to see `least`, or `difference` if larger, with a power of 80 %.

    With seeds, their own variance stays however many problems there are; where it alone hides the difference,
    `problems` is None and `seeds` says how many would be needed. `enough`: the problems at hand would have done.
    None where all problems differ alike, so that there is nothing to plan with, and for a difference of 0.
    """
    goal, (S, P) = max(least, abs(difference)), a_SP.shape
    if not goal:
        return None
    d_SP = a_SP - b_SP
    rest = 0.0
    if S > 1 and P > 1:
        residual = d_SP - d_SP.mean(1)[:, None] - d_SP.mean(0) + d_SP.mean()
        noise = float((residual**2).sum()) / ((S - 1) * (P - 1))
        rest = max(0.0, float(d_SP.mean(1).var(ddof=1)) - noise / P)  # variance among seeds
    z2 = 2.8016**2  # (1.9600 + 0.8416)^2: 5 % two-sided, 80 % power
    if rest / S * z2 >= goal**2:  # half of the variance is left for problems
        seeds = int(np.ceil(2 * rest * z2 / goal**2)) + 1
        return SampleSize(difference=goal, problems=None, seeds=seeds, enough=False)
    try:
        effective = float(np.sqrt(goal**2 - rest / S * z2))
        problems = problems_needed(min(1.0, effective), a_SP.mean(0)[:, None], b_SP.mean(0)[:, None])
    except UserError:  # no spread
        return None
    return SampleSize(difference=goal, problems=problems, seeds=S, enough=problems <= P)


def _sharpening(
    task: _TaskArms, labels: tuple[str, str], sampled: Aligned, comparison: _Comparison
) -> Sharpening | None:
    """The pair when sharpness is taken out: greedy, at a matched temperature, and pass@n, which it hurts."""
    greedy = None
    cold = [task.greedy.get(label, {}) for label in labels]
    if aligned := align_pairs(task.name, labels, cold[0], cold[1], comparison):
        means = [float(_by_seed(runs).mean()) for runs in aligned]
        greedy = GreedyDifference(a=means[0], b=means[1], **_limits(aligned.difference(comparison.level)))
    matched = _matched(task, labels, comparison)
    if greedy is None and matched is None:
        return None
    k = min(run.correct.shape[1] for runs in sampled for run in runs)
    return Sharpening(
        greedy=greedy,
        matched=matched,
        pass_=_pass_difference(sampled, k, comparison.level) if k > 1 else None,
        left=matched.difference if matched else None,
        sentence="",
    )


def _matched(task: _TaskArms, labels: tuple[str, str], comparison: _Comparison) -> MatchedDifference | None:
    cool = [label for label in labels if task.matched.get(label)]
    if not cool or any(label not in (*cool, comparison.target) for label in labels):
        return None
    runs = [task.matched[label] if label in cool else task.sampled[label] for label in labels]
    aligned = align_pairs(task.name, labels, runs[0], runs[1], comparison)
    if aligned is None:
        return None
    temperatures = {
        label: float(np.mean([run.temperature for run in task.matched[label].values()])) for label in cool
    }
    of = labels[1] if labels[1] in cool else labels[0]
    which = aligned[labels.index(of)]
    return MatchedDifference(
        of=" and ".join(cool),
        as_=comparison.target,
        temperature=temperatures[of],
        temperatures=temperatures,
        seeds=len(which),
        mean=float(_by_seed(which).mean()),
        **_limits(aligned.difference(comparison.level)),
    )


def _pass_difference(sampled: Aligned, k: int, level: float) -> PassDifference:
    x, y = ([pass_at_k_by_problem(run.correct, k)[:, None] for run in runs] for runs in sampled)
    means = {"a": float(np.mean(x)), "b": float(np.mean(y))}
    return PassDifference(k=k, **means, **_limits(_paired(x, y, level)))


def _decide(pairs: Sequence[PairResult], level: float) -> None:
    """What depends on all pairs: Holm's correction, whether a difference is shown, and the sentences."""
    for pair, adjusted in zip(pairs, holm([pair.p_value for pair in pairs]), strict=True):
        pair.p_holm = adjusted
        pair.shown = bool(adjusted < 1 - level and pair.low * pair.high > 0)
        pair.verdict = direction(pair.difference, pair.shown)
        pair.sentence = pair_sentence(pair, len(pairs), level)
        if pair.sharpening is not None:
            pair.sharpening.sentence = sharpening_sentence(pair, pair.sharpening)


def _sections(
    tasks: Mapping[str, TaskVerdict], pooled: Mapping[str, DomainVerdict]
) -> list[tuple[str, str, ArmsResult]]:
    """Domain, title and result in the order of the sentences: the tasks of a domain together where they were pooled."""
    sections: list[tuple[str, str, ArmsResult]] = []
    for domain in DOMAINS:
        members = [name for name, task in tasks.items() if task.domain == domain]
        if domain in pooled:
            sections.append((domain, ", ".join(members), pooled[domain]))
        else:
            sections += [(domain, name, tasks[name]) for name in members]
    return sections + [("", name, task) for name, task in tasks.items() if task.domain not in DOMAINS]


def _places(sections: Sequence[tuple[str, str, ArmsResult]]) -> Iterator[tuple[str, ArmsResult]]:
    """Each section as a place in a sentence."""
    count = Counter(domain for domain, _, _ in sections)
    for domain, title, result in sections:
        if domain:
            yield DOMAINS[domain] + (f" ({title})" if count[domain] > 1 else ""), result
        else:
            yield f"on {title}", result


def _sentences(sections: Sequence[tuple[str, str, ArmsResult]], level: float) -> list[str]:
    by_domain: dict[str, list[ArmsResult]] = {}
    sentences: dict[bool, list[str]] = {True: [], False: []}
    for domain, title, result in sections:
        by_domain.setdefault(domain, []).append(result)
        heading = f"{DOMAINS[domain].capitalize()} ({title})" if domain else title
        sentences[bool(domain)] += domain_sentences(heading, result, level)
    inside, outside = (by_domain.get(domain, []) for domain in DOMAINS)
    both = contrasts(inside[0].pairs, outside[0].pairs) if len(inside) == len(outside) == 1 else []
    return sentences[True] + both + sentences[False]
