"""The verdict of a page: a comparison's own, else judged from the evaluations that are there, else open.

The paired statistics are in `analysis/significance.py`. Without accuracies no winner is named: neither an
objective's value nor NLL says which model solves more problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rectune.analysis.significance import compare_runs
from rectune.analysis.summary_text import headline
from rectune.errors import UserError
from rectune.records import Verdict
from rectune.reporting.grouping import BASE, ReportArm
from rectune.reporting.load_runs import LoadedFolders, NoteList
from rectune.reporting.page_model import PageVerdict

OPEN = (
    "The verdict is open: accuracy was not measured. A falling loss does not say which model solves more problems, and "
    "neither does NLL, which DFT may raise while its answers get better."
)
ALONE = "The verdict is open: only {label} was evaluated, so there is nothing to compare it with."
MOST = 12
"""Arms beside the base model that are judged in pairs: 50 would be 1,225 pairs, too many for any correction."""


def page_verdict(
    loaded: LoadedFolders, arms: Sequence[ReportArm], domains: Mapping[str, str], notes: NoteList
) -> PageVerdict:
    """The verdict over all that was evaluated.

    Args:
        domains: Benchmark to "in" or "out", in place of what comparisons say.
    """
    kept = None if domains else _kept(loaded, arms)
    # A comparison of an older version does not say what training did to the model.
    judged = kept if kept and "headline" in kept.model_fields_set else None
    judged = judged or _judge_all(arms, {**_domains_of(loaded, arms), **domains}, loaded, notes) or kept
    if judged is None:
        return PageVerdict(True, [OPEN])
    for warning in judged.warnings:
        notes.add("evaluations", warning)
    sentences = [sentence.rstrip(".") + "." for sentence in judged.sentences]
    labels = {label: None for task in judged.benchmarks.values() for label in task.arms}
    if len(labels) < 2:
        sentences.insert(0, ALONE.format(label=next(iter(labels), "nothing")))
    return PageVerdict(len(labels) < 2, sentences, judged)


def _kept(loaded: LoadedFolders, arms: Sequence[ReportArm]) -> Verdict | None:
    """The verdict of the one comparison, where all that was evaluated belongs to it."""
    if len(loaded.comparisons) != 1 or not arms:
        return None
    place, comparison = next(iter(loaded.comparisons.items()))
    return comparison.verdict if all(place in path.parents for path in loaded.evaluations) else None


def _domains_of(loaded: LoadedFolders, arms: Sequence[ReportArm]) -> dict[str, str]:
    """What comparisons say; else a benchmark with the name of the training data is in domain."""
    data = {str(run.config.get("data")) for arm in arms for run in arm.runs.values()}
    names = {name for folder in loaded.evaluations.values() for name in folder.result.benchmarks}
    domains = dict.fromkeys(names & data, "in")
    for comparison in loaded.comparisons.values():
        domains |= comparison.benchmarks
    return domains


def _judge_all(
    arms: Sequence[ReportArm], domains: Mapping[str, str], loaded: LoadedFolders, notes: NoteList
) -> Verdict | None:
    """One verdict over all evaluations; those on other sets of benchmarks are judged by themselves."""
    evaluated = [arm for arm in arms if arm.evaluations.get("main")]
    trained = [arm.label for arm in evaluated if arm.label != BASE]
    if len(trained) > MOST:
        what = f"of {len(trained)} arms only the first {MOST} are compared; give fewer folders to see others"
        notes.add("evaluations", what)
        evaluated = [arm for arm in evaluated if arm.label not in trained[MOST:]]
    matched = [comparison.matched_to for comparison in loaded.comparisons.values()]
    overlaps = [comparison.overlap for comparison in loaded.comparisons.values() if comparison.overlap]
    overlap = [problem.problem_id for of_one in overlaps for problem in of_one.found]
    whole: Verdict | None = None
    for names in dict.fromkeys(names for arm in evaluated for names in arm.evaluations["main"]):
        main, greedy, sharp = (
            {arm.label: paths for arm in evaluated if (paths := arm.folders(role, names))}
            for role in ("main", "greedy", "matched")
        )
        matched_to = matched[0] if len(matched) == 1 else None
        try:
            verdict = compare_runs(
                main, domains, greedy=greedy, matched=sharp, matched_to=matched_to, overlap=overlap
            )
        except UserError as error:
            notes.add("evaluations", f"cannot be judged: {error}")
            continue
        if whole is None:
            whole = verdict
        else:
            what = f"{', '.join(names)}: compared separately, so Holm's correction is over these alone"
            notes.add("evaluations", what)
            _join(whole, verdict, names)
    return whole


def _join(whole: Verdict, apart: Verdict, names: Sequence[str]) -> None:
    """Add what was judged apart: whether to keep the base model is said over both."""
    rest = [text for one in (whole, apart) for text in one.sentences[len(one.headline) :]]
    whole.benchmarks |= apart.benchmarks
    whole.domains |= apart.domains
    whole.warnings += apart.warnings
    whole.without_overlap |= apart.without_overlap
    for label, places in apart.against_base.items():
        known = whole.against_base.setdefault(label, {})
        known |= {
            f"{place} ({', '.join(names)})" if place in known else place: d for place, d in places.items()
        }
    whole.headline = headline(whole.against_base)
    whole.sentences = [line.sentence for line in whole.headline] + rest
