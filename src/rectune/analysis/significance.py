"""The paired verdict: several arms (objectives), each with a training seed or several, on the same problems.

The folders that `evaluate.py` writes are read in `runs.py`; the statistics are in `statistics.py`, what answers
look like in `decomposition.py` and `decomposition.py`, the sentences in `summary_text.py`. In domain and out of
domain are told apart: a method can win one and lose the other. Where greedy evaluations or ones at a matched
temperature (`entropy_matching.py`) are given, the verdict says how much of a difference is left, because
sampling at T = 1 rewards sharpness by itself.

Shapes: P problems, N samples, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rectune.analysis.decomposition import Answers, answers_of, describe, joined, sampled_entropy, shape_shift
from rectune.analysis.summary_text import (
    BASE,
    DOMAINS,
    against_base,
    contrasts,
    direction,
    domain_sentences,
    headline,
    pair_sentence,
    sharpening_sentence,
)
from rectune.errors import UserError
from rectune.evaluation.accuracy import read_graded
from rectune.evaluation.results import protocol_differences, read_evaluation
from rectune.evaluation.statistics import (
    Difference,
    Interval,
    holm,
    mean_interval,
    paired_difference,
    pass_at_k_by_problem,
    problems_needed,
)

Folders = Mapping[str, Mapping[int, Path]]


class Held(NamedTuple):
    """The answers of one run to one benchmark (or to all of a domain), by problem."""

    ids: list[str]
    answers: Answers
    temperature: float


Arms = dict[str, dict[int, Held]]  # label -> seed -> answers


def read_arms(folders: Folders, warnings: list[str]) -> tuple[dict[str, Arms], dict[str, dict[str, Any]]]:
    """Benchmark to arms, and the evaluations by name; what cannot be read becomes a warning."""
    found: dict[str, Arms] = {}
    evaluations: dict[str, dict[str, Any]] = {}
    order = sorted(
        folders, key=lambda label: label != BASE
    )  # the base model is what others are compared with
    for label, seed in [(arm, number) for arm in order for number in folders[arm]]:
        folder = Path(folders[label][seed])
        try:
            evaluation = read_evaluation(folder)
            n, temperature = evaluation["protocol"]["n"], float(evaluation["protocol"]["temperature"])
            wanted = {name: list(one["problem_ids"]) for name, one in evaluation["benchmarks"].items()}
            lines = read_graded(folder / "graded.jsonl", [i for ids in wanted.values() for i in ids], n)
            held = {name: answers_of({i: lines[i] for i in ids}) for name, ids in wanted.items() if ids}
            for answers in held.values() if evaluation["protocol"].get("top_p", 1) != 1 else ():
                answers.numbers["surprisal"][:] = (
                    np.nan
                )  # then it is not that of the distribution sampled from
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            why = (
                str(error) if isinstance(error, UserError) else f"{folder}: is not an evaluation ({error!r})"
            )
            warnings.append(f"{label}, seed {seed}, is left out: {why}")
            continue
        evaluations[f"{label}, seed {seed}"] = evaluation
        for name, answers in held.items():
            found.setdefault(name, {}).setdefault(label, {})[seed] = Held(wanted[name], answers, temperature)
    return found, evaluations


def unlike(evaluations: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Differences in protocol from the first evaluation."""
    (first, reference), *others = evaluations.items()
    return [f"{first} and {name}: {w}" for name, e in others for w in protocol_differences(reference, e)]


def target_of(
    plain: dict[str, Arms], cool: dict[str, Arms], named: str | None, warnings: list[str]
) -> str | None:
    """The arm that the matched ones are as sharp as."""
    if named is not None or not cool:
        return named
    done = {label for arms in cool.values() for label in arms}
    left = dict.fromkeys(label for arms in plain.values() for label in arms if label not in done)
    if len(left) > 1:
        nats = {
            label: [e for arms in plain.values() if (e := entropy_of(arms.get(label, {})))] for label in left
        }
        known = {label: float(np.mean(values)) for label, values in nats.items() if values}
        left = {min(known, key=lambda label: known[label]): None} if known else {}
    if not left:
        warnings.append("which arm the temperatures were matched to cannot be told; they are not compared")
    return next(iter(left), None)


def entropy_of(runs: Mapping[int, Held]) -> float | None:
    """Mean entropy of an arm's own answers in nats a token; None unless they were drawn at T = 1 with log-probs."""
    values = [sampled_entropy(held.answers) for held in runs.values() if held.temperature == 1]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def pooled(benchmarks: Sequence[Arms]) -> Arms:
    """All problems of several benchmarks, for the runs that have all of them."""
    together: Arms = {}
    for label in benchmarks[0]:
        for seed, first in benchmarks[0][label].items():
            parts = [arms.get(label, {}).get(seed) for arms in benchmarks]
            whole = [part for part in parts if part is not None]
            if len(whole) == len(benchmarks):
                ids = [i for part in whole for i in part.ids]
                answers = joined([part.answers for part in whole], problems=True)
                together.setdefault(label, {})[seed] = Held(ids, answers, first.temperature)
    return together


def common(what: str, held: Sequence[Held], warnings: list[str]) -> list[Answers]:
    """Each one's answers to the problems that all have, in the order of the first."""
    shared = set(held[0].ids).intersection(*(one.ids for one in held))
    most = max(len(one.ids) for one in held)
    if len(shared) < most:
        warnings.append(
            f"{what}: {len(shared)} of {most} problems are in all evaluations that belong together"
        )
    if all(one.ids == held[0].ids for one in held):
        return [one.answers for one in held]
    rows = [{i: row for row, i in enumerate(one.ids)} for one in held]
    order = [i for i in held[0].ids if i in shared]
    return [one.answers.take([at[i] for i in order]) for one, at in zip(held, rows, strict=True)]


def paired(
    name: str, labels: tuple[str, str], a: dict[int, Held], b: dict[int, Held], warnings: list[str]
) -> tuple[list[Answers], list[Answers]] | None:
    """Answers of a and b, seed by seed, to the problems that all have; None without a problem or a run in common."""
    seeds = [(seed, seed) for seed in a if seed in b]
    if len({labels[0]: a, labels[1]: b}.get(BASE, "")) == 1:
        seeds = [(i, j) for i in a for j in b]
    elif not seeds and a and b:
        seeds = list(zip(sorted(a), sorted(b), strict=False))
        warnings.append(f"{labels[0]} and {labels[1]} have no seed in common: paired in order")
    if not seeds:
        return None
    held = [*(a[i] for i, _ in seeds), *(b[j] for _, j in seeds)]
    if not set(held[0].ids).intersection(*(one.ids for one in held)):
        warnings.append(f"{name}: {labels[0]} and {labels[1]} have no problem in common")
        return None
    answers = common(f"{name}, {labels[0]} and {labels[1]}", held, warnings)
    return answers[: len(seeds)], answers[len(seeds) :]


WORTH_SEEING = 0.02
"""The difference that an undecided pair is planned for, unless the one that was found is larger."""


def judge(
    arms: Folders,
    domains: Mapping[str, str],
    *,
    greedy: Folders | None = None,
    matched: Folders | None = None,
    matched_to: str | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """Every pair of arms on every benchmark, and the verdict in sentences.

    Args:
        arms: Label to seed to evaluation folder, the reference first: pairs are later minus earlier. An arm called
            "base" with one evaluation is paired with every seed of the others.
        domains: Benchmark to "in" or "out" (of the training rows' domain); others belong to neither.
        greedy: The same at temperature 0.
        matched: Arms sampled at the temperature at which they are as sharp as `matched_to`.
        matched_to: Its label; None: the arm without a matched folder, of several the one of lowest entropy.
        level: Of the intervals; a difference is *shown* when Holm's adjusted p-value is below 1 - level and the
            interval leaves out 0.

    Returns:
        JSON-ready; fractions, not points. `benchmarks`: name to `domain`, `arms`, `pairs`; `domains`: the same over
        all problems of a domain with two benchmarks or more; `comparisons`: tests that Holm's correction is over;
        `against_base` and `headline`: what training did to the model (see `summary_text.py`); `sentences`, the
        headline's first; `warnings`: what was left out or was not alike. docs/evaluation.md describes every
        field.

    Raises:
        UserError: Nothing can be read.
    """
    warnings: list[str] = []
    plain, protocols = read_arms(arms, warnings)
    if not any(plain.values()):
        raise UserError("no evaluation can be read", where=", ".join(arms), hint="; ".join(warnings) or None)
    warnings += unlike(protocols)
    cold, cool = (read_arms(folders or {}, warnings)[0] for folders in (greedy, matched))
    target = target_of(plain, cool, matched_to, warnings)
    result: dict[str, Any] = {"level": level, "benchmarks": {}, "domains": {}}
    for name in plain:
        views = [views.get(name, {}) for views in (plain, cold, cool)]
        where = domains.get(name, "")
        result["benchmarks"][name] = {"domain": where, **_view(name, views, target, level, warnings)}
    for where in DOMAINS:
        names = [name for name in plain if domains.get(name) == where]
        if len(names) > 1:
            views = [pooled([views.get(name, {}) for name in names]) for views in (plain, cold, cool)]
            if views[0]:  # none where no run has all of them
                whole = _view(DOMAINS[where], views, target, level, warnings)
                result["domains"][where] = {"benchmarks": names, **whole}
    _finish(result)
    result["against_base"] = against_base(list(_places(result)))
    result["headline"] = headline(result["against_base"])
    return {**result, "sentences": _sentences(result), "warnings": list(dict.fromkeys(warnings))}


def _view(
    name: str, views: Sequence[Arms], target: str | None, level: float, warnings: list[str]
) -> dict[str, Any]:
    """One benchmark: its arms, and its pairs but for what depends on all of them."""
    plain, cold, _ = views
    arms = {
        label: _arm(name, label, runs, cold.get(label, {}), level, warnings) for label, runs in plain.items()
    }
    pairs = []
    for b, a in combinations(plain, 2):
        pair = _pair(name, (a, b), plain, level, warnings)
        if pair is not None:
            pairs.append({**pair, "sharpening": _sharpening(name, (a, b), views, target, level, warnings)})
    return {
        "problems": max(len(h.ids) for runs in plain.values() for h in runs.values()),
        "arms": arms,
        "pairs": pairs,
    }


def _arm(
    name: str, label: str, runs: dict[int, Held], cold: dict[int, Held], level: float, warnings: list[str]
) -> dict[str, Any]:
    held = common(f"{name}, {label}", list(runs.values()), warnings)
    if not len(held[0].correct):
        warnings.append(f"{name}, {label}: only the first seed counts")
        held, runs = [next(iter(runs.values())).answers], dict(list(runs.items())[:1])
    x_S = [one.correct for one in held]
    greedy = [one.answers.correct.mean() for one in cold.values()]
    n = min(x.shape[1] for x in x_S)
    ks = sorted({1 << i for i in range(n.bit_length()) if 1 << i <= n} | {n})
    together = joined(held)
    looks = describe(together)
    return {
        **_accuracy(x_S, level)._asdict(),
        "seeds": len(x_S),
        "by_seed": {str(seed): float(x.mean()) for seed, x in zip(runs, x_S, strict=True)},
        "greedy": float(np.mean(greedy)) if greedy else None,
        "pass_at": {str(k): float(np.mean([pass_at_k_by_problem(x, k).mean() for x in x_S])) for k in ks},
        "stopped": looks.pop("stopped", None),
        "tokens": looks["tokens"]["mean"] if "tokens" in looks else None,
        "repeating": looks.pop("repeating", None),
        "entropy": entropy_of(runs),
        "shape": looks,
    }


def _accuracy(x_S: Sequence[np.ndarray], level: float) -> Interval:
    """Mean over seeds and problems; each limit is the wider of the one over problems alone and the two-way one."""
    x_SP = np.stack([x.mean(1) for x in x_S])
    over_problems = mean_interval(x_SP.T, level)
    if len(x_S) < 2 or np.ptp(x_SP) == 0 or x_SP.shape[1] < 2:
        return over_problems
    both = paired_difference(list(x_SP[:, :, None]), list(np.zeros_like(x_SP)[:, :, None]), level)
    return Interval(
        over_problems.mean, max(0.0, min(over_problems.low, both.low)), max(over_problems.high, both.high)
    )


def _pair(
    name: str, labels: tuple[str, str], arms: Arms, level: float, warnings: list[str]
) -> dict[str, Any] | None:
    both = paired(name, labels, arms[labels[0]], arms[labels[1]], warnings)
    if both is None:
        return None
    a, b = both
    found, shifts = _difference(a, b, level), shape_shift(joined(a), joined(b), labels)
    return {
        "a": labels[0],
        "b": labels[1],
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
        "problems": len(a[0].correct),
        "seeds": len(a),
        "needed": needed(_by_seed(a), _by_seed(b), found.mean),
        "shape_shift": [shift["sentence"] for shift in shifts],
        "shifts": shifts,
    }


def _difference(a: Sequence[Answers], b: Sequence[Answers], level: float) -> Difference:
    x, y = ([one.correct for one in answers] for answers in (a, b))
    return paired_difference(x, y, level) if len(x) > 1 else paired_difference(x[0], y[0], level)


def _by_seed(answers: Sequence[Answers]) -> np.ndarray:
    """Share correct, S x P."""
    return np.stack([one.correct.mean(1) for one in answers])


def needed(a_SP: np.ndarray, b_SP: np.ndarray, found: float) -> dict[str, Any] | None:
    """What it would take to see 2 points, or the difference that was found if larger, with a power of 80 %.

    With seeds, their own variance stays however many problems there are; where it alone hides the difference,
    `problems` is None and `seeds` says how many would be needed. `enough`: the problems at hand would have done.
    None where all problems differ alike, so that there is nothing to plan with.
    """
    goal, (S, P) = max(WORTH_SEEING, abs(found)), a_SP.shape
    d_SP = a_SP - b_SP
    rest = 0.0
    if S > 1 and P > 1:
        residual = d_SP - d_SP.mean(1)[:, None] - d_SP.mean(0) + d_SP.mean()
        noise = float((residual**2).sum()) / ((S - 1) * (P - 1))
        rest = max(0.0, float(d_SP.mean(1).var(ddof=1)) - noise / P)  # variance among seeds
    z2 = 2.8016**2  # (1.9600 + 0.8416)^2: 5 % two-sided, 80 % power
    plan = {"difference": goal, "problems": None, "seeds": S, "enough": False}
    if rest / S * z2 >= goal**2:
        return plan | {
            "seeds": int(np.ceil(2 * rest * z2 / goal**2)) + 1
        }  # half of the variance is left for problems
    try:
        effective = float(np.sqrt(goal**2 - rest / S * z2))
        problems = problems_needed(min(1.0, effective), a_SP.mean(0)[:, None], b_SP.mean(0)[:, None])
    except UserError:  # no spread
        return None
    return plan | {"problems": problems, "enough": problems <= P}


def _sharpening(
    name: str,
    labels: tuple[str, str],
    views: Sequence[Arms],
    target: str | None,
    level: float,
    warnings: list[str],
) -> dict[str, Any] | None:
    """The pair when sharpness is taken out: greedy, at a matched temperature, and pass@n, which it hurts."""
    plain, cold, cool = views
    block: dict[str, Any] = {"greedy": None, "matched": None, "pass": None, "left": None}
    if both := paired(name, labels, cold.get(labels[0], {}), cold.get(labels[1], {}), warnings):
        means = [float(_by_seed(answers).mean()) for answers in both]
        block["greedy"] = {"a": means[0], "b": means[1], **_numbers(_difference(*both, level))}
    sampled = [label for label in labels if cool.get(label)]
    if sampled and all(label in (*sampled, target) for label in labels):
        a, b = (cool[label] if label in sampled else plain[label] for label in labels)
        if both := paired(name, labels, a, b, warnings):
            at = {
                label: float(np.mean([held.temperature for held in cool[label].values()]))
                for label in sampled
            }
            of = labels[1] if labels[1] in sampled else labels[0]
            which = both[labels.index(of)]
            block["matched"] = {
                "of": " and ".join(sampled), "as": target, "temperature": at[of], "temperatures": at,
                "seeds": len(which), "mean": float(_by_seed(which).mean()),
                **_numbers(_difference(*both, level)),
            }  # fmt: skip
            block["left"] = block["matched"]["difference"]
    if block["greedy"] is None and block["matched"] is None:
        return None
    if both := paired(name, labels, plain[labels[0]], plain[labels[1]], warnings):
        k = min(one.correct.shape[1] for answers in both for one in answers)
        if k > 1:
            x, y = ([pass_at_k_by_problem(one.correct, k)[:, None] for one in answers] for answers in both)
            gap = paired_difference(x, y, level) if len(x) > 1 else paired_difference(x[0], y[0], level)
            block["pass"] = {"k": k, "a": float(np.mean(x)), "b": float(np.mean(y)), **_numbers(gap)}
    return block


def _numbers(found: Difference) -> dict[str, float]:
    return {"difference": found.mean, "low": found.low, "high": found.high}


def _finish(result: dict[str, Any]) -> None:
    """What depends on all pairs: Holm's correction, whether a difference is shown, and the sentences."""
    level = result["level"]
    pairs = [
        pair for kind in ("benchmarks", "domains") for one in result[kind].values() for pair in one["pairs"]
    ]
    result["comparisons"] = len(pairs)
    for pair, adjusted in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_holm"] = adjusted
        pair["shown"] = bool(adjusted < 1 - level and pair["low"] * pair["high"] > 0)
        pair["verdict"] = direction(pair)
        pair["sentence"] = pair_sentence(pair, len(pairs), level)
        if pair["sharpening"] is not None:
            pair["sharpening"]["sentence"] = sharpening_sentence(pair, pair["sharpening"])


def _views_of(result: dict[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    """The benchmarks of a domain with their names: all together where they were pooled, else each."""
    names = [name for name, one in result["benchmarks"].items() if one["domain"] == where]
    whole = result["domains"].get(where)
    return [(", ".join(names), whole)] if whole else [(name, result["benchmarks"][name]) for name in names]


def _others(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, one) for name, one in result["benchmarks"].items() if one["domain"] not in DOMAINS]


def _places(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, words in DOMAINS.items():
        views = _views_of(result, where)
        for title, view in views:
            yield words + (f" ({title})" if len(views) > 1 else ""), view
    for name, one in _others(result):
        yield f"on {name}", one


def _sentences(result: dict[str, Any]) -> list[str]:
    found: list[str] = [line["sentence"] for line in result["headline"]]
    heads: dict[str, dict[str, Any]] = {}
    for where, words in DOMAINS.items():
        views = _views_of(result, where)
        for title, view in views:
            found += domain_sentences(
                f"{words.capitalize()} ({title})", view["arms"], view["pairs"], result["level"]
            )
        if len(views) == 1:
            heads[where] = views[0][1]
    if len(heads) == 2:
        found += contrasts(heads["in"]["pairs"], heads["out"]["pairs"])
    for name, one in _others(result):
        found += domain_sentences(name, one["arms"], one["pairs"], result["level"])
    return found
