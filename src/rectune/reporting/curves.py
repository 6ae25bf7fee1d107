"""What happened during training: curves, hold-out figures, histograms of target probability, drift, token changes.

Everything is plain data per run or per arm; drawing it is left to `figures.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rectune.reporting.grouping import Arm, short
from rectune.reporting.load_runs import BINS, Record, Run
from rectune.training.metrics import PROBABILITY_BINS

MOST_POINTS = 200
"""Of a curve on the page; longer ones are thinned evenly."""
POLARISED = 0.01
"""A share of targets that moved by less than one in a hundred counts as unmoved."""
ROLLOUTS = ("reward", "length", "entropy", "kl", "clip_share")
HOLDOUT = ("nll", "mean_p", "accuracy", "entropy", "eos_p", "low_p", "high_p")
TRAIN = ("objective", "nll", "mean_p", "weight", "grad_norm")
DRIFT = ("kl", "entropy", "eos_p", "repetition", "length", "stopped")
LOG = ("loss", "learning_rate", "eval_loss", "mean_token_accuracy")

_FEWEST, _SHOWN = 3, 8  # occurrences of a token text that count together; rows of a table


def curves(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A record for each run: `label`, `seed`, and its lines by kind with the figures that the page draws."""
    return [
        {
            "label": arm.label,
            "seed": seed,
            "train": _points(run.train, TRAIN),
            "rollouts": _points([line for line in run.train if "reward" in line], ROLLOUTS),
            "holdout": _points(run.holdout, HOLDOUT),
            "drift": _points(run.drift, DRIFT),
            "log": _points(run.log, LOG),
        }
        for arm in arms
        for seed, run in arm.runs.items()
    ]


def _points(lines: Sequence[Record], names: Iterable[str]) -> list[Record]:
    wanted = ("step", *names)
    kept = [{name: line[name] for name in wanted if name in line} for line in lines]
    kept = [line for line in kept if len(line) > 1]
    if len(kept) <= MOST_POINTS:
        return kept
    at = {round(i * (len(kept) - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)}
    return [kept[i] for i in sorted(at)]


def before_after(run: Run) -> tuple[Record, Record]:
    """Hold-out figures of the model as it was and of the weights that were saved; {} where not known."""
    first = next((line for line in run.holdout if line["step"] == 0), {})
    last = next((line for line in reversed(run.holdout) if line["step"] > 0), {})
    return run.summary.get("before") or first, run.summary.get("after") or last


def holdout_table(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Means over seeds, before and after: one record for each arm that has hold-out figures."""
    rows = []
    for arm in arms:
        pairs = [before_after(run) for run in arm.runs.values()]
        ends = [[pair[i] for pair in pairs if pair[i]] for i in (0, 1)]
        if not any(ends):
            continue
        before, after = ({name: _mean(line.get(name) for line in end) for name in HOLDOUT} for end in ends)
        rows.append(
            {"label": arm.label, "seeds": len(ends[1]) or len(ends[0]), "before": before, "after": after}
        )
    return rows


def histograms(arms: Sequence[Arm]) -> dict[str, Any]:
    """`bins` (edges), and by arm `before` and `after` as shares of the hold-out targets, all seeds together.

    `lowest` and `highest` are the shares in the first and last bin, `polarises` is True where both rose by
    `POLARISED`, and `sentence` says it.
    """
    found = {}
    for arm in arms:
        pairs = [[line.get("histogram", []) for line in before_after(run)] for run in arm.runs.values()]
        whole = [pair for pair in pairs if all(sum(counts) for counts in pair)]
        if not whole:
            continue
        before, after = ([sum(pair[i][b] for pair in whole) for b in range(BINS)] for i in (0, 1))
        shares = [[count / sum(counts) for count in counts] for counts in (before, after)]
        found[arm.label] = {
            "targets": sum(after),
            "before": shares[0],
            "after": shares[1],
            **_polarised(*shares),
        }
        found[arm.label]["sentence"] = _says(arm.label, found[arm.label])
    return {"bins": list(PROBABILITY_BINS), "arms": found}


def _polarised(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    ends = {"lowest": [before[0], after[0]], "highest": [before[-1], after[-1]]}
    moved = {name: b - a for name, (a, b) in ends.items()}
    return {**ends, "polarises": all(change >= POLARISED for change in moved.values())}


def _says(label: str, one: Record) -> str:
    low, high = one["lowest"], one["highest"]
    numbers = (
        f"targets below p = {PROBABILITY_BINS[1]:g} go from {100 * low[0]:.1f} % to {100 * low[1]:.1f} %, "
        f"those above {PROBABILITY_BINS[-2]:g} from {100 * high[0]:.1f} % to {100 * high[1]:.1f} %"
    )
    if one["polarises"]:
        return f"{label} polarises: both ends grow; {numbers}"
    grown = high[1] - high[0] >= POLARISED
    return f"{label} {'only grows at the top' if grown else 'does not polarise'}; {numbers}"


def token_changes(arms: Sequence[Arm]) -> dict[str, Any]:
    """By arm, from the probe rows: `gain` and `loss` of token texts that occur three times or more, with mean change
    of log p in nats; `gain_once` and `loss_once` of single targets, with the tokens around them."""
    found = {}
    for arm in arms:
        rows = [row for run in arm.runs.values() for row in run.probe]
        by_text: dict[str, list[tuple[float, float]]] = {}
        once = []
        for row in rows:
            texts = [text for text, _, _ in row["targets"]]
            for i, (text, before, after) in enumerate(row["targets"]):
                if before is None or after is None:
                    continue
                by_text.setdefault(text, []).append((before, after))
                around = {
                    "left": "".join(texts[max(0, i - 8) : i])[-60:],
                    "right": "".join(texts[i + 1 : i + 5])[:30],
                }
                once.append({**_change(text, [(before, after)]), **around, "where": row["where"]})
        several = [_change(text, pairs) for text, pairs in by_text.items() if len(pairs) >= _FEWEST]
        if not once:
            continue
        mine: dict[str, Any] = {"rows": len(rows), "targets": len(once)}
        found[arm.label] = mine
        for name, changes in (("", several), ("_once", once)):
            ordered = sorted(changes, key=lambda c: (c["change"], c["token"]))
            mine["loss" + name] = [c for c in ordered[:_SHOWN] if c["change"] < 0]
            mine["gain" + name] = [c for c in reversed(ordered[-_SHOWN:]) if c["change"] > 0]
    return found


def _change(text: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    from math import exp

    count = len(pairs)
    return {
        "token": text[:60],
        "count": count,
        "change": sum(after - before for before, after in pairs) / count,
        "before": sum(exp(min(0.0, before)) for before, _ in pairs) / count,
        "after": sum(exp(min(0.0, after)) for _, after in pairs) / count,
    }


def warnings(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Drift warnings that training gave: which figure of which run, from which step on."""
    found: dict[tuple[str, int, str], Record] = {}
    for arm in arms:
        for seed, run in arm.runs.items():
            for line in run.drift:
                for name in line.get("warnings", []):
                    new = {"label": arm.label, "seed": seed, "figure": short(name), "step": line["step"]}
                    found.setdefault((arm.label, seed, name), new)
    return list(found.values())


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
