"""The page in parts: titles, sentences and tables that HTML and Markdown share. Texts are plain, escaped where shown.

What is said beside each part is the caveat that it needs; figures are added by `report.py`, for HTML only. What closes
the page is in `closing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rectune.analysis.summary_text import direction
from rectune.reporting import run_info as paper
from rectune.training.drift import LINES


def closing(data: Data) -> list[Section]:
    """The parts behind the answers."""
    return [_settings(data), _environment(data), _cost(data)]


def _settings(data: Data) -> Section:
    found = data["settings"]
    labels = list(found["seeds"])
    tables = []
    if len(labels) > 1:
        rows = [[name, *(values[label] for label in labels)] for name, values in found["differ"].items()]
        tables.append(
            Table(["setting", *labels], [*rows, ["seeds", *found["seeds"].values()]], text=1 + len(labels))
        )
    if found["same"]:
        same = [[name, value] for name, value in found["same"].items()]
        tables.append(
            Table(["setting", "value"], same, text=2, folded=f"{len(same)} settings that are the same")
        )
    text = [
        "All runs have the same settings." if len(labels) > 1 and not found["differ"] else "",
        *data["choices"],
    ]
    return Section(
        "settings", "Settings", "Settings that differ", text=[line for line in text if line], tables=tables
    )


def _environment(data: Data) -> Section:
    found = data["environment"]
    tables = []
    if found["differ"]:
        rows = [
            [name, value, _some(where)]
            for name, values in found["differ"].items()
            for value, where in values.items()
        ]
        tables.append(Table(["differs", "value", "in"], rows, text=3))
    if found["same"]:
        same = [[name, value] for name, value in found["same"].items()]
        tables.append(Table(["what", "value"], same, text=2, folded=f"{len(same)} entries that are the same"))
    text = ["Not all runs had the same environment; a difference between them can come from that too."]
    return Section(
        "environment", "Environment", "Environment", text=text if found["differ"] else [], tables=tables
    )


def _some(where: Sequence[str]) -> str:
    return ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")


def _cost(data: Data) -> Section:
    rows = [
        [
            one["label"], "-" if one["seed"] is None else str(one["seed"]), one["state"], f"{one['steps']:,}",
            _time(one["seconds"]), _time(one["step_seconds"]), "-" if not one["tokens"] else f"{one['tokens']:,.0f}",
            "-" if not one["tokens_per_second"] else f"{one['tokens_per_second']:,.0f}",
            "-" if not one["peak_memory_mib"] else f"{one['peak_memory_mib'] / 1024:.2f} GiB",
        ]
        for one in data["cost"]
    ]  # fmt: skip
    bold = set()
    if len(rows) > 1:
        bold = {len(rows)}
        costs = data["cost"]
        whole = [one["seconds"] for one in costs]
        steps, step_seconds, tokens = (
            sum(one[name] or 0 for one in costs) for name in ("steps", "step_seconds", "tokens")
        )
        most = max(one["peak_memory_mib"] or 0 for one in costs)
        rows.append([
            "all", "", "", f"{steps:,}", _time(None if None in whole else sum(whole)), _time(step_seconds),
            f"{tokens:,.0f}", "", f"{most / 1024:.2f} GiB",
        ])  # fmt: skip
    head = ["model", "seed", "state", "steps", "time", "time of steps", "tokens", "tokens/s", "peak memory"]
    return Section(
        "cost",
        "Cost",
        "Cost",
        tables=[Table(head, rows, text=3, bold=bold)] if rows else [],
        caveats=[
            "Time is from a run's beginning to its end, with loading, hold-out passes and saving; a finished run that "
            "went on from a checkpoint has the time up to it in it. Sampling and grading of evaluations come on top."
        ],
    )


def _time(seconds: float | None) -> str:
    if not seconds:
        return "-"
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


Data = Mapping[str, Any]


@dataclass
class Table:
    """Rows of text. `text` leading columns are words, the others numbers; `bold` rows stand out; `folded` is a summary
    behind which the table is hidden at first."""

    header: list[str]
    rows: list[list[str]]
    text: int = 1
    bold: set[int] = field(default_factory=set)
    folded: str = ""


@dataclass
class Section:
    """A part of the page. `figures` are pairs of SVG and caption, `legend` says whether lines need one,
    `wide` whether figures and tables stand two in a row instead of three and one."""

    key: str
    name: str  # in the list of parts
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    figures: list[Any] = field(default_factory=list)
    legend: bool = False
    wide: bool = False

    def __bool__(self) -> bool:
        return bool(self.text or self.tables or self.figures)


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def sections(data: Data) -> list[Section]:
    """All parts between the verdict and the answers; those without content are left out by the caller."""
    return [
        paper.section(data), _accuracy(data), _course(data), _polarisation(data), _losses(data), _rollouts(),
        _drift(data), _tokens(data), _foreign(data),
    ]  # fmt: skip


def _interval(one: Data, name: str = "mean") -> str:
    return f"{100 * one[name]:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def domain(where: str) -> str:
    return {"in": " (in domain)", "out": " (out of domain)"}.get(where, "")


def _accuracy(data: Data) -> Section:
    section = Section("accuracy", "Accuracy", "Accuracy", wide=True)
    judged = data["verdict"]["judged"]
    if not judged:
        return section
    named = {name: name + domain(one["domain"]) for name, one in judged["benchmarks"].items()}
    labels = list(dict.fromkeys(label for one in judged["benchmarks"].values() for label in one["arms"]))
    matrix = [
        [
            label,
            *(
                _interval(one["arms"][label]) if label in one["arms"] else "-"
                for one in judged["benchmarks"].values()
            ),
        ]
        for label in labels
    ]
    pairs: list[list[str]] = []
    looks: list[list[str]] = []
    bold: set[int] = set()
    for name, one in judged["benchmarks"].items():
        for label, arm in one["arms"].items():
            looks.append([
                named[name], label, _shape(arm.get("shape")), percent(arm.get("greedy")), _best(arm),
                percent(arm.get("stopped"), 0), number(arm.get("tokens"), 0), percent(arm.get("repeating"), 0),
            ])  # fmt: skip
        for pair in one["pairs"]:
            if pair.get("shown"):
                bold.add(len(pairs))
            left = (pair.get("sharpening") or {}).get("matched") or {}
            pairs.append([
                named[name], f"{pair['a']} - {pair['b']}", _verdict(pair), _interval(pair, "difference"),
                _p(pair.get("p_value")),
                _p(pair.get("p_holm")), _interval(left, "difference") if left else "-",
                f"{pair.get('problems', '-')} × {pair.get('seeds', '-')}",
            ])  # fmt: skip
    section.tables = [Table(["accuracy in %", *named.values()], matrix)]
    if pairs:
        head = [
            "problems",
            "difference",
            "verdict",
            "points",
            "p",
            "p (Holm)",
            "equally sharp",
            "problems × seeds",
        ]
        section.tables.append(Table(head, pairs, text=3, bold=bold))
    head = ["problems", "model", "most frequent shape", "greedy", "pass@k", "stopped", "tokens", "repeating"]
    section.tables.append(
        Table(head, looks, text=3, folded="What the answers look like: shape, length, stopping")
    )
    section.caveats = [
        "Brackets are 95 % intervals: over problems, and over seeds where there are several. Differences are paired "
        "problem by problem; bold: shown after Holm's correction; equally sharp: the difference that is left when both "
        "are sampled at the same entropy."
    ]
    return section


def _verdict(pair: Data) -> str:
    found = direction(pair["difference"], bool(pair.get("shown")))
    return found if found == "no difference" else f"{pair['a']} is {found}"


def _best(arm: Data) -> str:
    """pass@k at the largest k that was measured."""
    if not arm.get("pass_at"):
        return "-"
    k = max(arm["pass_at"], key=int)
    return f"{percent(arm['pass_at'][k])} (k = {k})"


def _shape(shape: Data | None) -> str:
    shares = (shape or {}).get("categories") or {}
    if not shares:
        return "-"
    name = max(shares, key=lambda one: shares[one])
    return f"{name} ({percent(shares[name], 0)})"


def _course(data: Data) -> Section:
    rows = []
    for one in data["holdout"]:
        for when in ("before", "after"):
            line = one[when]
            rows.append([
                one["label"], when, number(line["nll"]), number(line["mean_p"]), percent(line["accuracy"]),
                percent(line["low_p"]), percent(line["high_p"]), number(line["eos_p"]),
            ])  # fmt: skip
    head = ["model", "training", "NLL", "mean p", "top-1", "p < 0.01", "p > 0.9", "p of turn ends"]
    return Section(
        "course",
        "Training",
        "Training, step by step",
        tables=[Table(head, rows, text=2)] if rows else [],
        caveats=[
            "Rows kept aside. NLL is no accuracy: under DFT it may rise while mean p rises too, because the model "
            "gives up on tokens that it finds unlikely. Who solves more problems is in the verdict."
        ],
        legend=True,
    )


def _polarisation(data: Data) -> Section:
    found = data["histograms"]["arms"]
    rows = []
    for label, one in found.items():
        ends = [percent(share, 2) for end in ("lowest", "highest") for share in one[end]]
        moved = sum(after - before for before, after in (one["lowest"], one["highest"]))
        rows.append([label, *ends, f"{100 * moved:+.1f}", "yes" if one["polarises"] else "no"])
    head = ["model", "p < 0.0001 before", "after", "p ≥ 0.9 before", "after", "both, points", "polarises"]
    return Section(
        "probabilities",
        "Probabilities",
        "Probability of the targets, before and after",
        text=[one["sentence"] + "." for one in found.values()],
        tables=[Table(head, rows)] if rows else [],
        caveats=[
            "Hold-out targets in the bins of the paper's Figure 2, logarithmic scale; grey area before, line after "
            "training. A model polarises where the lowest and the highest bin both grow by a point or more."
        ],
    )


def _losses(data: Data) -> Section:
    return Section(
        "losses",
        "Objective and NLL",
        "The objective next to NLL",
        caveats=[
            "The objective's value chooses nothing: DFT's is -p log p per token, which is largest at p = 0.37 and "
            "falls to 0 as p goes to 0, so it can fall while the model gets worse. Values of two objectives are on "
            "different scales. Running means over a twentieth of the steps."
        ],
        legend=True,
    )


def _rollouts() -> Section:
    return Section(
        "rollouts",
        "Rollouts",
        "Reward and length of the answers that were drawn during training",
        caveats=[
            "The reward is on the problems trained on, and may have a loophole: a rise is no proof of a better model. "
            "Running means over a twentieth of the steps."
        ],
        legend=True,
    )


def _drift(data: Data) -> Section:
    warned: dict[tuple[str, str], list[Data]] = {}
    for one in data["warnings"]:
        warned.setdefault((one["label"], one["figure"]), []).append(one)
    text = []
    for (label, figure), which in warned.items():
        seeds = ", ".join(str(one["seed"]) for one in which)
        means = LINES[figure].means if figure in LINES else "past its line"
        first = min(one["step"] for one in which)
        whose = f"{label}, seed{'s' if len(which) > 1 else ''} {seeds}"
        text.append(f"Warning for {whose}, from step {first:.0f} on ({figure}): {means}.")
    return Section(
        "drift",
        "Drift",
        "Drift from the base model",
        text=text,
        caveats=["A fixed set of hold-out rows, and a few answers sampled to their prompts."],
        legend=True,
    )


def _tokens(data: Data) -> Section:
    tables = []
    for label, one in data["tokens"].items():
        for name, words in (("gain", "gained most"), ("loss", "lost most")):
            if one[name]:
                rows = [
                    [
                        _visible(c["token"]),
                        str(c["count"]),
                        f"{c['change']:+.2f}",
                        number(c["before"]),
                        number(c["after"]),
                    ]
                    for c in one[name]
                ]
                head = [f"{label}: {words}", "times", "log p", "p before", "p after"]
                tables.append(Table(head, rows))
        once = [
            [f"{_visible(c['left'])}▸{_visible(c['token'])}◂{_visible(c['right'])}", f"{c['change']:+.2f}",
             number(c["before"]), number(c["after"])]
            for name in ("gain_once", "loss_once") for c in one[name]
        ]  # fmt: skip
        if once:
            tables.append(Table(["target in its place", "log p", "p before", "p after"], once,
                                folded=f"{label}: single targets that changed most"))  # fmt: skip
    return Section(
        "tokens",
        "Tokens",
        "Tokens with the largest gain and loss",
        tables=tables,
        caveats=[
            "Targets of the probe rows: mean change of log p in nats of texts that occur three times or more."
        ],
    )


def _visible(text: str) -> str:
    """Spaces and line ends that can be seen."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣" if not text.strip() else " ")


def _foreign(data: Data) -> Section:
    return Section(
        "foreign",
        "Other trainers",
        "Runs of other trainers",
        caveats=[
            "As their trainer logged it. A DFT loss is no NLL, and losses of two objectives cannot be compared."
        ],
        legend=True,
    )
