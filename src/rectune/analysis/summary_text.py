"""The plain sentences of a verdict: who beats whom by how much, how sure that is, and what it would take.

Numbers come from `significance.py`; a sentence claims a difference only where it is shown (see `judge` there), and says
otherwise what could have been seen. Fractions come in, points and per cent go out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOMAINS = {"in": "in domain", "out": "out of domain"}
BASE = "base"


def points(fraction: float) -> str:
    """Hundredths, with one decimal and no negative zero."""
    return f"{round(100 * fraction, 1) + 0.0:.1f}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def direction(pair: Mapping[str, Any]) -> str:
    """What a is beside b: "worse", "no difference" (none is shown) or "better"."""
    if not pair["shown"]:
        return "no difference"
    return "better" if pair["difference"] > 0 else "worse"


def against_base(
    views: Sequence[tuple[str, Mapping[str, Any]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Of every trained arm by place ("in domain"): `verdict` as in `direction`, arm minus base, and its interval."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for place, view in views:
        for pair in view["pairs"]:
            if BASE not in (pair["a"], pair["b"]):
                continue
            label, sign = (pair["a"], 1) if pair["b"] == BASE else (pair["b"], -1)
            low, high = sorted((sign * pair["low"], sign * pair["high"]))
            one = {"difference": sign * pair["difference"], "low": low, "high": high}
            verdict = direction({**one, "shown": pair["shown"]})
            found.setdefault(label, {})[place] = {"verdict": verdict, **one}
    return found


def headline(against: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, str]]:
    """What training did to the model, the harm first: `verdict` and `sentence`; nothing without the base model."""
    verdicts = {label: {one["verdict"] for one in places.values()} for label, places in against.items()}
    lines = [
        {"verdict": next(v for v in _ORDER if v in verdicts[label]), "sentence": _beside_base(label, places)}
        for label, places in against.items()
    ]
    lines.sort(key=lambda line: _ORDER.index(line["verdict"]))
    if verdicts and all("worse" in found and "better" not in found for found in verdicts.values()):
        arms = "every arm" if len(verdicts) > 1 else next(iter(verdicts))
        partly = any(found != {"worse"} for found in verdicts.values())
        rest = " somewhere, and better nowhere" if partly else ""
        lines.insert(0, {"verdict": "worse", "sentence": f"Keep the base model: {arms} is worse{rest}"})
    return lines


_ORDER = ("worse", "better", "no difference")


def _beside_base(label: str, places: Mapping[str, Mapping[str, Any]]) -> str:
    by_verdict = {v: [p for p, one in places.items() if one["verdict"] == v] for v in _ORDER}
    changes = [(v, where) for v in ("worse", "better") if (where := by_verdict[v])]
    figures = {
        place: f"{_signed(one['difference'])} points [{_signed(one['low'])}, {_signed(one['high'])}] {place}"
        for place, one in places.items()
    }
    unseen = ", ".join(figures[place] for place in by_verdict["no difference"])
    if not changes:
        return f"no difference between {label} and the base model can be shown: {unseen}"
    everywhere = len(changes[0][1]) == len(places)
    made = " and ".join(v if everywhere else f"{v} {' and '.join(where)}" for v, where in changes)
    seen = ", ".join(figures[place] for _, where in changes for place in where)
    rest = f"; no difference can be shown: {unseen}" if unseen else ""
    return f"{label} made the model {made}: {seen}{rest}"


def _signed(fraction: float) -> str:
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def pair_sentence(pair: Mapping[str, Any], comparisons: int, level: float) -> str:
    """One pair on one benchmark: direction, difference, interval, problems and seeds, and p where it matters."""
    evidence = f"{pair['problems']} problems" + (f", {pair['seeds']} seeds" if pair["seeds"] > 1 else "")
    alone = "" if pair["seeds"] > 1 else "; one seed says nothing about other seeds"
    correction = f"Holm's correction over {comparisons} comparisons"
    if pair["shown"]:
        after = f" after {correction}" if comparisons > 1 else ""
        return f"{_beats(pair, level)}, {evidence}, p {_p(pair['p_holm'])}{after}{alone}"
    if pair["p_value"] < 1 - level and pair["low"] * pair["high"] > 0:
        return (
            f"{_beats(pair, level, 'is ahead of')}, {evidence}, but not after {correction} "
            f"(p {_p(pair['p_value'])}, corrected {_p(pair['p_holm']).removeprefix('= ')}){alone}"
        )
    a, b = pair["a"], pair["b"]
    interval = f"interval {points(pair['low'])} to {points(pair['high'])}"
    return (
        f"no difference between {a} and {b} can be shown with {evidence.replace(', ', ' and ')} "
        f"({a} minus {b}: {points(pair['difference'])} points, {interval}){_needed(pair)}{alone}"
    )


def _beats(pair: Mapping[str, Any], level: float, verb: str = "beats") -> str:
    low, high = sorted((abs(pair["low"]), abs(pair["high"])))
    first, second = (pair["a"], pair["b"]) if pair["difference"] > 0 else (pair["b"], pair["a"])
    return (
        f"{first} {verb} {second} by {points(abs(pair['difference']))} points ({100 * level:g} % interval "
        f"{points(low)} to {points(high)}"
    ) + ")"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _needed(pair: Mapping[str, Any]) -> str:
    needed = pair["needed"]
    if needed is None:
        return ""
    gap = f"{points(needed['difference']).removesuffix('.0')} points"
    if needed["problems"] is None:
        seeds = f"about {needed['seeds']} of them would be needed"
        return f"; no number of problems shows {gap}, the seeds differ too much: {seeds}"
    if not needed["enough"]:
        return f"; about {needed['problems']:,} problems would be needed to see {gap}"
    if abs(pair["difference"]) >= needed["difference"]:  # it is the one that was not seen
        few = (
            f"; {pair['seeds']} seeds say little about how far seeds differ: one more would narrow this most"
        )
        return few if pair["seeds"] > 1 else ""
    return f"; a difference of {gap} would have been seen (with a chance of 80 %)"


def sharpening_sentence(pair: Mapping[str, Any], block: Mapping[str, Any]) -> str:
    """How much of a difference is left when both are as sharp; all figures are the leading arm minus the other."""
    sign = 1 if pair["difference"] >= 0 else -1
    first, second = (pair["a"], pair["b"]) if sign > 0 else (pair["b"], pair["a"])
    gap, matched, parts = points(abs(pair["difference"])), block["matched"], []
    between = (
        f"{gap} points of {first} over {second}" if gap != "0.0" else f"no points of {first} over {second}"
    )
    if matched is not None:
        low, high = sorted((sign * matched["low"], sign * matched["high"]))
        left, interval = sign * matched["difference"], f"interval {points(low)} to {points(high)}"
        if matched["seeds"] < pair["seeds"]:  # a comparison that is not finished
            interval += f", {matched['seeds']} of {pair['seeds']} seeds"
        verb = "are" if len(matched["temperatures"]) > 1 else "is"
        at = " and ".join(f"{temperature:.2f}" for temperature in matched["temperatures"].values())
        how = f"when {matched['of']} {verb} sampled as sharply as {matched['as']} (T = {at})"
        if pair["shown"] and first == matched["as"]:
            are = f"{points(left)} are" if left > 0 else f"none is ({points(left)})"
            parts.append(f"of {between} {are} left {how} ({interval})")
        else:
            parts.append(f"{between} become {points(left)} {how} ({interval})")
    else:
        parts.append(between)
    others = {"greedy": block["greedy"]}
    if block["pass"] is not None:
        others[f"pass@{block['pass']['k']}"] = block["pass"]
    parts += [f"{name} {points(sign * one['difference'])}" for name, one in others.items() if one is not None]
    return "; ".join(parts)


def domain_sentences(
    title: str, arms: Mapping[str, Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]], level: float
) -> list[str]:
    """The verdict on one domain: all accuracies, what is shown among the trained arms, what goes with it."""
    among = [pair for pair in pairs if BASE not in (pair["a"], pair["b"])] or list(pairs)
    accuracies = ", ".join(f"{label} {points(arms[label]['mean'])} %" for label in arms)
    if len(among) == 1:
        said = among[0]["sentence"]
    else:
        shown = sorted((p for p in among if p["shown"]), key=lambda p: -abs(p["difference"]))
        said = "; ".join(_beats(pair, level) for pair in shown)
        rest = len(among) - len(shown)
        alone = "; one seed says nothing about other seeds" if all(p["seeds"] == 1 for p in among) else ""
        if rest:
            said += ("; " if said else "") + f"no difference can be shown for {rest} of {len(among)} pairs"
        said += alone if among else ""
    found = [f"{title}: {accuracies}" + (f"; {said}" if said else "")]
    for pair in among:
        if not pair["shown"]:
            continue
        by_kind = sorted(pair["shifts"], key=lambda shift: list(_KINDS).index(shift["kind"]))
        changes = [s for s in by_kind if s["explains"]][:1] or by_kind[: len(among) == 1]
        found += [f"{title}, {_could(change)}: {change['sentence']}" for change in changes]
        if pair["sharpening"] is not None:
            found.append(
                f"{title}, sharpness ({pair['a']} and {pair['b']}): {pair['sharpening']['sentence']}"
            )
    return found


_KINDS = {"shape": "the shape of the answers", "stopped": "where they end", "length": "their length"}
"""Of several shifts that go with the same difference, the first says most: they overlap, shape is often length, too."""


def _could(change: Mapping[str, Any]) -> str:
    return f"{_KINDS[change['kind']]} {'could explain it' if change['explains'] else 'changed too'}"


def contrasts(inside: Sequence[Mapping[str, Any]], outside: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is shown in one domain and not, or the other way round, in the other: one sentence a pair of arms."""
    found = []
    by_pair = {(p["a"], p["b"]): p for p in outside}
    for one in inside:
        other = by_pair.get((one["a"], one["b"]))
        if other is None or BASE in (one["a"], one["b"]) or not (one["shown"] or other["shown"]):
            continue
        if one["shown"] and other["shown"]:
            if one["difference"] * other["difference"] < 0:
                winner, loser = (one["a"], one["b"]) if other["difference"] > 0 else (one["b"], one["a"])
                found.append(
                    f"{winner} beats {loser} out of domain by {points(abs(other['difference']))} points and loses "
                    f"to it in domain by {points(abs(one['difference']))}: neither figure is the verdict alone"
                )
            continue
        clear, open_, words = (
            (one, other, ("in", "out of")) if one["shown"] else (other, one, ("out of", "in"))
        )
        winner, loser = (one["a"], one["b"]) if clear["difference"] > 0 else (one["b"], one["a"])
        sign = 1 if clear["difference"] > 0 else -1
        found.append(
            f"{winner} beats {loser} {words[0]} domain by {points(abs(clear['difference']))} points; {words[1]} "
            f"domain no difference can be shown ({points(sign * open_['difference'])})"
        )
    return found
