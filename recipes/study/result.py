"""OUT/study.json and study.md: who wins where, what always taking one rule costs, and which claim held.

Everything is computed from the comparisons that are finished. How each of it is judged was fixed before the objectives
were run, see docs/study.md.

Shapes: P problems, N answers, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rectune.evaluation.statistics import Difference, holm, paired_difference, t_quantile, t_two_sided
from rectune.experiments.evaluator import correct
from rectune.experiments.grid import BASE
from rectune.experiments.runner import read_comparison
from rectune.pages.format import points
from rectune.records import Comparison, Diagnosis, Point, read_record
from rectune.runtime.io import load_json, write_json, write_text

from .design import Claim, Study

Rows = list[dict[str, Any]]
DOMAINS = {"in": "in domain", "out": "out of domain"}
KINDS = {"sampled": "evaluation", "greedy": "greedy"}
JUDGED = "study.json"
"""What was found in one condition, in its folder."""
FEWEST_CONDITIONS = 4
"""From so many on, a claim is judged by its mean over conditions; below, it has to hold in each of them."""


@dataclass(frozen=True)
class Answers:
    """The answers of all models of one condition, read when they are needed."""

    folder: Path
    comparison: Comparison

    @cached_property
    def models(self) -> dict[str, Point]:
        """By label: the base model, runs, and what lies between."""
        return {point.label: point for point in self.comparison.points if point.step is None}

    @cached_property
    def _read(self) -> dict[tuple[str, str, str], np.ndarray]:
        return {}

    def correct(self, label: str, domain: str, kind: str) -> np.ndarray:
        """Which answers are right, (S, P, N); those of the base model for every seed."""
        key = label, domain, kind
        if key not in self._read:
            tasks = [Path(name) for name, of in self.comparison.benchmarks.items() if of == domain]
            folders = [self.folder / folder / KINDS[kind] for folder in self.models[label].folders.values()]
            answers_SxPxN = np.stack([correct(folder, tasks) for folder in folders])
            seeds = len(self.comparison.seeds)
            self._read[key] = np.repeat(answers_SxPxN, seeds, 0) if len(folders) < seeds else answers_SxPxN
        return self._read[key]

    def difference(self, better: str, than: str, domain: str, kind: str) -> Difference:
        return _paired(self.correct(better, domain, kind), self.correct(than, domain, kind))


def _paired(a_SxPxN: np.ndarray, b_SxPxN: np.ndarray) -> Difference:
    """One seed says nothing about others: then over problems alone."""
    return (
        paired_difference(a_SxPxN, b_SxPxN) if len(a_SxPxN) > 1 else paired_difference(a_SxPxN[0], b_SxPxN[0])
    )


def open_answers(out: Path, name: str) -> Answers | None:
    """The answers of a condition; None where its comparison is not finished."""
    comparison = read_comparison(out / "compared" / name)
    return Answers(out / "compared" / name, comparison) if comparison and comparison.verdict else None


def judge_condition(study: Study, answers: Answers) -> dict[str, Any]:
    """Accuracies of all models, who wins, and the differences that the claims are about."""
    comparison = answers.comparison
    arms = {label: _model(answers, label) for label in answers.models}
    for against in {"sft", BASE} & set(arms):
        _margin_rule(study, answers, arms, against)
    diagnosed = answers.folder / "diagnosis" / "diagnosis.json"
    said = read_record(diagnosed, Diagnosis) if diagnosed.is_file() else None
    decision = comparison.decision
    return {
        "models": arms,
        "winners": {
            f"{domain}, {kind}": _winners(answers, arms, domain, kind) for domain in DOMAINS for kind in KINDS
        },
        "diagnosis": said and _diagnosed(said, arms),
        "decision": decision
        and {"ship": decision.ship, "outcome": decision.outcome, "sentence": decision.sentence},
    }


def _diagnosed(said: Diagnosis, models: Mapping[str, object]) -> dict[str, Any]:
    verdict = said.verdict
    objective = (
        verdict.label if verdict.label in models else verdict.name
    )  # an arm at its defaults has no settings
    return {"objective": objective, "mean_p": said.overall.mean_p, "position": verdict.position}


def _model(answers: Answers, label: str) -> dict[str, Any]:
    point = answers.models[label]
    rates = {arm.label: arm.learning_rate for arm in answers.comparison.arms}
    swept = answers.comparison.sweep.arms if answers.comparison.sweep else {}
    accuracy = {
        domain: {kind: float(answers.correct(label, domain, kind).mean()) for kind in KINDS}
        for domain in DOMAINS
    }
    edge = swept[point.arm].edge if point.arm in swept else False
    return {"at": point.at, "rate": rates.get(label), "edge": edge, **accuracy}


def _margin_rule(study: Study, answers: Answers, models: dict[str, dict[str, Any]], against: str) -> None:
    """Not worse in domain by more than the margin, and better out of it (Holm over the models of the condition)."""
    others = [label for label in models if label != against]
    inside = {label: answers.difference(label, against, "in", "sampled") for label in others}
    outside = {label: answers.difference(label, against, "out", "sampled") for label in others}
    adjusted = dict(zip(others, holm([outside[label].p_value for label in others]), strict=True))
    for label in others:
        models[label][f"against {against}"] = {
            "in": inside[label]._asdict(),
            "out": outside[label]._asdict(),
            "non_inferior": inside[label].low > -study.margin,
            "superior": outside[label].low > 0 and adjusted[label] < 0.05,
        }


def _winners(answers: Answers, models: Mapping[str, dict[str, Any]], domain: str, kind: str) -> list[str]:
    """The most accurate model, and those that are not shown to be worse than it (Holm over the models)."""
    ranked = sorted(models, key=lambda label: -models[label][domain][kind])
    differences = [answers.difference(ranked[0], label, domain, kind) for label in ranked[1:]]
    adjusted = holm([difference.p_value for difference in differences])
    worse = [difference.low > 0 and p < 0.05 for difference, p in zip(differences, adjusted, strict=True)]
    return ranked[:1] + [label for label, is_worse in zip(ranked[1:], worse, strict=True) if not is_worse]


class Test(NamedTuple):
    """One difference of a claim: where, and what was found."""

    condition: str
    domain: str
    found: Difference


def judge_claim(study: Study, claim: Claim, answers: Mapping[str, Answers]) -> dict[str, Any]:
    """Whether a claim held in each condition (Holm over its tests), and its mean over conditions."""
    domains = list(DOMAINS) if claim.domain == "both" else [claim.domain]
    wanted = claim.conditions or tuple(study.conditions)
    tests = [
        Test(name, domain, found)
        for name in wanted
        for domain in domains
        if name in answers and (found := _claimed(claim, domain, answers, name)) is not None
    ]
    result: dict[str, Any] = {
        **claim.model_dump(exclude={"conditions"}), "conditions": {}, "over_conditions": {}, "verdict": "not run",
    }  # fmt: skip
    if not tests:
        return result
    adjusted = holm([test.found.p_value for test in tests])
    shown = [_sign(test.found, p) for test, p in zip(tests, adjusted, strict=True)]
    for test, sign, p in zip(tests, shown, adjusted, strict=True):
        difference = {**test.found._asdict(), "adjusted_p": p, "shown": sign}
        result["conditions"].setdefault(test.condition, {})[test.domain] = difference
    for domain in domains:
        means = [test.found.mean for test in tests if test.domain == domain]
        if len(means) >= FEWEST_CONDITIONS:
            result["over_conditions"][domain] = over_conditions(means)._asdict()
    return result


def _claimed(claim: Claim, domain: str, answers: Mapping[str, Answers], name: str) -> Difference | None:
    """The difference that a claim is about, in one condition; None where a model or condition is not there."""
    kind, labels = "greedy" if claim.greedy else "sampled", (claim.better, claim.than)
    here, there = answers[name], answers.get(claim.against)
    if not all(label in here.models for label in labels):
        return None
    if not claim.against:
        return here.difference(*labels, domain, kind)
    if there is None or not all(label in there.models for label in labels):
        return None
    a, b = (here.correct(label, domain, kind) for label in labels)
    c, d = (there.correct(label, domain, kind) for label in labels)
    # half of (a - b) - (c - d), as a difference of two figures between 0 and 1
    halved = _paired((a + (1.0 - b)) / 2, (c + (1.0 - d)) / 2)
    return Difference(2 * halved.mean, max(-1.0, 2 * halved.low), min(1.0, 2 * halved.high), halved.p_value)


def _sign(found: Difference, adjusted: float) -> int:
    """1: shown to be better, -1: shown to be worse, 0: neither."""
    if adjusted >= 0.05:
        return 0
    return 1 if found.low > 0 else -1 if found.high < 0 else 0


def over_conditions(differences: Sequence[float]) -> Difference:
    """Mean difference with Student's interval and p-value, the conditions being the sample."""
    count, mean = len(differences), float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    half = t_quantile(0.975, count - 1) * error
    return Difference(mean, mean - half, mean + half, t_two_sided(abs(mean) / max(error, 1e-12), count - 1))


def judge_claims(study: Study, answers: Mapping[str, Answers]) -> Rows:
    """Every claim with its verdict: held, contradicted, mixed, open or not run."""
    claims = [judge_claim(study, claim, answers) for claim in study.claims]
    means = [(claim, domain, mean) for claim in claims for domain, mean in claim["over_conditions"].items()]
    adjusted = holm([mean["p_value"] for _, _, mean in means])
    for (_, _, mean), p in zip(means, adjusted, strict=True):
        mean["adjusted_p"] = p
        mean["shown"] = _sign(Difference(*(mean[name] for name in Difference._fields)), p)
    for claim in claims:
        if claim["conditions"]:
            claim["verdict"] = _verdict(claim)
    return claims


def _verdict(claim: Mapping[str, Any]) -> str:
    by_condition = [[test["shown"] for test in domains.values()] for domains in claim["conditions"].values()]
    over = [mean["shown"] for mean in claim["over_conditions"].values()]
    decisive = [over] if over else by_condition
    if all(min(signs) > 0 for signs in decisive):
        return "held"
    if all(min(signs) < 0 for signs in decisive):
        return "contradicted"
    held = any(min(signs) > 0 for signs in by_condition)
    against = any(min(signs) < 0 for signs in by_condition)
    return (
        "mixed"
        if held and against
        else "held in some"
        if held
        else "contradicted in some"
        if against
        else "open"
    )


def rules_of(conditions: Mapping[str, dict[str, Any]]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Ways to choose a model: rule to condition to label; and which rule is left out, since a model is not there."""
    first, *others = (found["models"] for found in conditions.values())
    labels = [label for label in first if all(label in models for models in others)]
    rules: dict[str, dict[str, str]] = {label: dict.fromkeys(conditions, label) for label in labels}
    notes = []
    for rule, source, choice in (
        ("as compare decides", "decision", "ship"),
        ("as diagnose says", "diagnosis", "objective"),
    ):
        chosen = {name: (found[source] or {}).get(choice) or BASE for name, found in conditions.items()}
        absent = [
            f"{label} ({name})" for name, label in chosen.items() if label not in conditions[name]["models"]
        ]
        if absent:
            notes.append(f"no regret of '{rule}': no model {', '.join(absent)}")
        else:
            rules[rule] = chosen
    return rules, notes


def regrets(conditions: Mapping[str, dict[str, Any]], rules: Mapping[str, Mapping[str, str]]) -> Rows:
    """What a rule costs against the best model of each condition, mean over conditions; the smallest first."""
    rows = []
    for rule, chosen in rules.items():
        row: dict[str, Any] = {"rule": rule}
        for domain in DOMAINS:
            for kind in KINDS:
                lost = [
                    max(model[domain][kind] for model in found["models"].values())
                    - found["models"][chosen[name]][domain][kind]
                    for name, found in conditions.items()
                ]
                row[f"{domain}, {kind}"] = float(np.mean(lost))
        row["mean"] = float(np.mean([row[f"{domain}, sampled"] for domain in DOMAINS]))
        rows.append(row)
    return sorted(rows, key=lambda row: row["mean"])


def write_condition_result(study: Study, out: Path, name: str) -> None:
    """Judge a finished comparison once, in OUT/compared/<name>/study.json."""
    answers = open_answers(out, name)
    if answers:
        write_json(answers.folder / JUDGED, {"format": 1, **judge_condition(study, answers)}, indent=2)


def write_result(study: Study, out: Path) -> dict[str, Any]:
    """Write study.json and study.md from the conditions that are finished; returns the content of the former."""
    answers = {name: found for name in study.conditions if (found := open_answers(out, name))}
    conditions = {
        name: {"title": study.conditions[name].title, **load_json(found.folder / JUDGED)}
        for name, found in answers.items()
        if (found.folder / JUDGED).is_file()
    }
    rules, notes = rules_of(conditions) if conditions else ({}, [])
    claims, regret = judge_claims(study, answers), regrets(conditions, rules)
    result = {
        "format": 1, "rectune": version("rectune"), "title": study.title, "margin": study.margin, "seeds": study.seeds,
        "conditions": conditions, "regret": regret, "claims": claims, "notes": notes,
        "missing": [name for name in study.conditions if name not in conditions],
    }  # fmt: skip
    result["sentences"] = list(_sentences(result))
    write_json(out / "study.json", result, indent=2)
    write_text(out / "study.md", page(result))
    return result


def _sentences(result: Mapping[str, Any]) -> Iterator[str]:
    done, regret = len(result["conditions"]), result["regret"]
    missing = f"; not yet: {', '.join(result['missing'])}" if result["missing"] else ""
    yield f"{done} of {done + len(result['missing'])} conditions are finished{missing}"
    if regret:
        best, lost = regret[0], {row["rule"]: row["mean"] for row in regret}
        others = ", ".join(f"{rule} {points(lost[rule])}" for rule in (BASE, "sft", "dft") if rule in lost)
        loses = f"loses least to the best of each condition, {points(best['mean'])} points"
        yield f"always {best['rule']} {loses} on average in and out of domain ({others})"
    verdicts = [claim["verdict"] for claim in result["claims"]]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    yield f"{len(verdicts)} claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    yield from result["notes"]


def page(result: Mapping[str, Any]) -> str:
    """study.md."""
    conditions = result["conditions"]
    parts = [f"# {result['title']}", "\n".join(f"- {line}" for line in result["sentences"])]
    parts += ["## Who wins where", *map(_table, _winner_tables(result))]
    gained = "of each model minus SFT at T = 1, in points; * where the 95 % interval, for itself alone, leaves out 0"
    for domain, words in DOMAINS.items():
        parts += [f"## Over SFT {words}", f"Accuracy {gained}.", _table(list(_over_sft(conditions, domain)))]
    parts += [
        "## What always taking one rule costs",
        "Points below the best model of each condition, mean over conditions.",
    ]
    parts += [_table([{name: _shown(value) for name, value in row.items()} for row in result["regret"]])]
    parts += ["## Between the base model and the tuned one", _table(list(_between(conditions)))]
    parts += ["## Claims", _table(list(_claim_rows(result["claims"])))]
    for name, found in conditions.items():
        parts += [f"## {name}: {found['title']}", "\n".join(f"- {line}" for line in _said(found))]
        parts += [_table(list(_accuracies(found["models"])))]
    return "\n\n".join(parts) + "\n"


def _said(found: Mapping[str, Any]) -> Iterator[str]:
    """What was said of a condition before training, and what to ship after it."""
    if said := found["diagnosis"]:
        yield f"diagnose, before training: {said['objective']} (mean p {said['mean_p']:.2f}, {said['position']})"
    if decision := found["decision"]:
        yield f"compare --margin: {decision['sentence']}"


def _shown(value: object) -> str:
    return f"{100 * value:.1f}" if isinstance(value, float) else str(value)


def _table(rows: Rows) -> str:
    if not rows:
        return "(nothing yet)"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _winner_tables(result: Mapping[str, Any]) -> Iterator[Rows]:
    """The best of each condition; then the models that pass the margin rule."""
    for kind in KINDS:
        yield [
            {
                "condition": name,
                **{f"{words}, {kind}": _best(found, domain, kind) for domain, words in DOMAINS.items()},
            }
            for name, found in result["conditions"].items()
        ]
    yield [
        {"condition": name, **{f"passes against {other}": _passing(found, other) for other in ("sft", BASE)}}
        for name, found in result["conditions"].items()
    ]


def _best(found: Mapping[str, Any], domain: str, kind: str) -> str:
    first, *level = found["winners"][f"{domain}, {kind}"]
    return f"{first} {_shown(found['models'][first][domain][kind])}" + (
        f" (level with it: {len(level)})" if level else ""
    )


def _passing(found: Mapping[str, Any], other: str) -> str:
    rule = f"against {other}"
    passing = [
        label for label, model in found["models"].items()
        if rule in model and model[rule]["non_inferior"] and model[rule]["superior"]
    ]  # fmt: skip
    passing.sort(key=lambda label: -found["models"][label]["out"]["sampled"])
    return ", ".join(passing) or "none"


def _over_sft(conditions: Mapping[str, dict[str, Any]], domain: str) -> Iterator[dict[str, str]]:
    """A row for each model, a column for each condition."""
    for label in dict.fromkeys(label for found in conditions.values() for label in found["models"]):
        row = {"model": label}
        for name, found in conditions.items():
            gain = found["models"].get(label, {}).get("against sft", {}).get(domain)
            row[name] = "-"
            if gain:
                row[name] = f"{100 * gain['mean']:+.1f}" + (
                    "*" if gain["low"] > 0 or gain["high"] < 0 else ""
                )
        if set(row.values()) != {label, "-"}:
            yield row


def _between(conditions: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, str]]:
    """In and out of domain of every model that is a place on the line to a run, or a mean of runs, and of its ends."""
    for name, found in conditions.items():
        models = found["models"]
        between = [label for label in models if " at " in label or label.startswith("mean of ")]
        for label in [label for label in (BASE, "sft", "dft") if label in models] + between:
            cells = {
                f"{words}, {kind}": _shown(models[label][domain][kind])
                for domain, words in DOMAINS.items()
                for kind in KINDS
            }
            yield {"condition": name, "model": label, **cells}


def _claim_rows(claims: Rows) -> Iterator[dict[str, str]]:
    for claim in claims:
        signs = [min(test["shown"] for test in domains.values()) for domains in claim["conditions"].values()]
        means = [
            f"{domain} {points(mean['mean'])} [{_shown(mean['low'])}, {_shown(mean['high'])}]"
            for domain, mean in claim["over_conditions"].items()
        ]
        yield {
            "claim": claim["text"], "source": claim["source"], "verdict": claim["verdict"],
            "shown in": f"{signs.count(1)} of {len(signs)}", "contradicted in": str(signs.count(-1)),
            "mean over conditions": "; ".join(means) or "-",
        }  # fmt: skip


def _accuracies(models: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, str]]:
    for label, model in models.items():
        cells = {
            f"{words}, {kind}": _shown(model[domain][kind])
            for domain, words in DOMAINS.items()
            for kind in KINDS
        }
        rate = f"{model['rate']:g}{' (edge)' if model['edge'] else ''}" if model["rate"] else "-"
        yield {"model": label, "learning rate": rate, **cells}
