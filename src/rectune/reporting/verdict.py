"""The verdict of a page: a comparison's own, else judged from the evaluations that are there, else open.

The paired statistics are in `analysis/significance.py`. Without accuracies no winner is named: neither an
objective's value nor NLL says which model solves more problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rectune.analysis.significance import compare_runs
from rectune.analysis.summary_text import headline
from rectune.errors import UserError
from rectune.records import Verdict
from rectune.reporting.grouping import BASE, Arm
from rectune.reporting.load_runs import Found, Notes, Record, number

OPEN = (
    "The verdict is open: accuracy was not measured. A falling loss does not say which model solves more problems, and "
    "neither does NLL, which DFT may raise while its answers get better."
)
MOST = 12
"""Arms beside the base model that are judged in pairs: 50 would be 1,225 pairs, too many for any correction."""
ALONE = "The verdict is open: only {label} was evaluated, so there is nothing to compare it with."


def make_verdict(found: Found, arms: list[Arm], domains: Mapping[str, str], notes: Notes) -> dict[str, Any]:
    """`sentences`; `open` (nothing is compared); `judged`: what `compare_runs` returns, None without evaluations."""
    kept = [record["verdict"] for _, record in found.comparisons if _whole(record.get("verdict"))]
    own = len(kept) == 1 and len(found.comparisons) == 1 and not domains and _only_its_own(found, arms)
    judged = kept[0] if own and "headline" in kept[0] else None
    if judged is None:  # an older comparison does not say what training did to the model
        judged = _judge_all(arms, {**_domains_of(found, arms), **domains}, found, notes)
    if judged is None and own:
        judged = kept[0]
    if judged is None:
        return {"open": True, "sentences": [OPEN], "judged": None}
    labels = list(dict.fromkeys(label for one in judged["benchmarks"].values() for label in one["arms"]))
    for warning in judged.get("warnings", []):
        notes.add("evaluations", str(warning))
    said = [sentence.rstrip(".") + "." for sentence in judged["sentences"]]
    if len(labels) < 2:
        alone = ALONE.format(label=labels[0] if labels else "nothing")
        return {"open": True, "sentences": [alone, *said], "judged": judged}
    return {"open": False, "sentences": said, "judged": judged}


def _whole(verdict: object) -> bool:
    """Whether a comparison's verdict has all that the page reads, each of its kind."""
    try:
        every = list(verdict["benchmarks"].values())  # type: ignore[index]
        lines = verdict.get("headline", [])  # type: ignore[attr-defined]
        texts = [*verdict["sentences"], *verdict.get("warnings", [])]  # type: ignore[index, attr-defined]
        texts += [line[name] for line in lines for name in ("verdict", "sentence")]
        return (
            all(isinstance(text, str) for text in [*texts, *(one["domain"] for one in every)])
            and all(_whole_arm(arm) for one in every for arm in one["arms"].values())
            and all(_whole_pair(pair) for one in every for pair in one["pairs"])
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _whole_arm(arm: Record) -> bool:
    shape, looks = arm.get("shape") or {}, ("greedy", "stopped", "tokens", "repeating")
    shares = [
        *arm.get("pass_at", {}).values(),
        *arm.get("by_seed", {}).values(),
        *shape.get("categories", {}).values(),
    ]
    return (
        None not in map(number, [arm["mean"], arm["low"], arm["high"], *shares])
        and all(arm.get(name) is None or number(arm[name]) is not None for name in looks)
        and all(k.isdecimal() for k in arm.get("pass_at", {}))
    )


def _whole_pair(pair: Record) -> bool:
    block = pair.get("sharpening") or {}
    figures = [
        one[name] for one in (pair, block.get("matched")) if one for name in ("difference", "low", "high")
    ]
    return None not in map(number, [*figures, pair["p_value"], pair["p_holm"]]) and all(
        isinstance(pair[name], str) for name in ("a", "b", "sentence")
    )


def _only_its_own(found: Found, arms: list[Arm]) -> bool:
    """Whether all that was evaluated belongs to the one comparison, so that its verdict covers the page."""
    place = found.comparisons[0][0].resolve()
    return all(place in e.path.resolve().parents for e in found.evaluations) and bool(arms)


def _domains_of(found: Found, arms: list[Arm]) -> dict[str, str]:
    """What comparisons say; else a benchmark with the name of the training data is in domain."""
    domains: dict[str, str] = {}
    data = {str(run.config.get("data")) for arm in arms for run in arm.runs.values()}
    for evaluation in found.evaluations:
        domains |= {name: "in" for name in evaluation.result["benchmarks"] if name in data}
    for _, record in found.comparisons:
        said = record.get("benchmarks")
        if isinstance(said, dict):
            domains |= {str(name): where for name, where in said.items() if where in ("in", "out", "")}
    return domains


def _judge_all(arms: list[Arm], domains: Mapping[str, str], found: Found, notes: Notes) -> Record | None:
    """One verdict over all evaluations; those on other sets of benchmarks are judged by themselves."""
    evaluated = [arm for arm in arms if arm.evaluations.get("main")]
    trained = [arm for arm in evaluated if arm.label != BASE]
    if len(trained) > MOST:
        notes.add(
            "evaluations",
            f"of {len(trained)} arms the first {MOST} are judged; give fewer folders to see others",
        )
        evaluated = [arm for arm in evaluated if arm.label == BASE or arm in trained[:MOST]]
    slots = dict.fromkeys(names for arm in evaluated for names in arm.evaluations["main"])
    whole: Verdict | None = None
    for names in slots:
        folders = {
            role: {arm.label: paths for arm in evaluated if (paths := arm.folders(role, names))}
            for role in ("main", "greedy", "matched")
        }
        try:
            judged = compare_runs(
                folders["main"], domains, greedy=folders["greedy"], matched=folders["matched"],
                matched_to=_matched_to(found),
            )  # fmt: skip
        except UserError as error:
            notes.add("evaluations", f"cannot be judged: {error}")
            continue
        if whole is None:
            whole = judged
            continue
        notes.add(
            "evaluations", f"{', '.join(names)}: judged apart, so Holm's correction is over these alone"
        )
        whole.benchmarks |= judged.benchmarks
        whole.domains |= judged.domains
        whole.warnings += judged.warnings
        _join_headlines(whole, judged, names)
    return whole.to_dict() if whole else None


def _join_headlines(whole: Verdict, judged: Verdict, names: Sequence[str]) -> None:
    """Add what was judged apart: whether to keep the base model is said over both."""
    for label, places in judged.against_base.items():
        mine = whole.against_base.setdefault(label, {})
        mine |= {f"{at} ({', '.join(names)})" if at in mine else at: one for at, one in places.items()}
    rest = [text for one in (whole, judged) for text in one.sentences[len(one.headline) :]]
    whole.headline = headline(whole.against_base)
    whole.sentences = [line.sentence for line in whole.headline] + rest


def _matched_to(found: Found) -> str | None:
    named = [record.get("matched_to") for _, record in found.comparisons]
    return named[0] if len(named) == 1 and isinstance(named[0], str) else None
