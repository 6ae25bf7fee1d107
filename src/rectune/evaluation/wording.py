"""The plain sentences of a verdict: who beats whom by how much, how sure that is, and what it would take.

Numbers come from `arms.py`; a sentence claims a difference only where it is shown (see `judge` there), and says
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
    trained = [label for label in arms if label != BASE]
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
    against = {p["a"]: p for p in pairs if p["b"] == BASE} if len(trained) > 1 else {}
    flat = [label for label, pair in against.items() if not (pair["shown"] and pair["difference"] > 0)]
    flat_words = f"; no gain over the base model can be shown for {' or '.join(flat)}" if flat else ""
    found = [f"{title}: {accuracies}" + (f"; {said}" if said else "") + flat_words]
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
