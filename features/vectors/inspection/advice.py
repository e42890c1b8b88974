"""What to do with a vector set, in one sentence, from what inspection measured."""

from __future__ import annotations

from features.vectors.inspection.next_clicks import NEAREST, Interval
from features.vectors.inspection.report import Inspection, SetReport

# A set earns its place when its 10 nearest hold what is clicked next twice as often as 10 random items, beyond the
# interval: popular items lie near popular ones in most sets, which alone makes more than chance and which ids say too.
USEFUL = 2.0
# From this mean cosine on, the mean vector outweighs what tells items apart: 0.3 of every squared length is shared.
ANISOTROPIC = 0.3
# Below this share of clicks a model sees the presence flag more often than the vector.
LOW_COVERAGE = 0.5
FULL_COVERAGE = 0.98  # the rest is too rare to be worth a word
# Two sets that agree on half of the nearest items say nearly the same.
REDUNDANT = 0.5
NARROW = 0.25  # effective over nominal dimensions: the rest is noise that a projection must learn to leave out
LEAST_DIMENSIONS = 8  # that a reduction is advised to: below, a projection saves nothing
LONG_TAILED = 3.0  # 95 % over 5 % quantile of lengths: lengths then drown directions in a product
MANY_TWINS = 0.01  # share of items: more is a placeholder or an encoder's fault, and no accident
TOLD = 0.7  # AUC of the tag probe from which on a set clearly knows a column


def advise(inspection: Inspection) -> dict[str, str]:
    """Advice by set, in one sentence or two, and on all of them under the name ``."""
    advice = {report.name: _of_one(report) for report in inspection.sets}
    useful = sorted((report for report in inspection.sets if is_useful(report)), key=lambda report: -_worth(report))
    kept: list[str] = []
    for report in useful:
        twin = next((name for name in kept if _overlap(inspection, name, report.name) >= REDUNDANT), None)
        if twin is None:
            kept.append(report.name)
        else:
            advice[report.name] += f" It agrees with {twin!r} on most neighbours: one of the two is enough."
    weak = [report.name for report in inspection.sets if is_weak(report)]
    advice[""] = _of_all(kept, weak, len(inspection.sets))
    return advice


def is_useful(report: SetReport) -> bool:
    """Whether near items are clicked together clearly more often than chance."""
    best = best_recall(report)
    return best is not None and best.low > USEFUL * report.random_recall


def is_weak(report: SetReport) -> bool:
    """Whether near items are clicked together more often than chance, but not by much, or not surely."""
    best = best_recall(report)
    return best is not None and not is_useful(report) and best.low > report.random_recall


def best_recall(report: SetReport) -> Interval | None:
    """As the vectors are, or centred where that finds more; None where no pair could be looked up."""
    found = [report for report in (report.recall, report.centred_recall) if report is not None]
    return max(found, key=lambda report: report.value, default=None)


def times_random(report: SetReport) -> float:
    """How many times as often as chance the item clicked next is among the nearest; 0 where nobody knows."""
    best = best_recall(report)
    return best.value / report.random_recall if best else 0.0


def _worth(report: SetReport) -> float:
    """Recall beyond chance, over all clicks: a set that finds much for few items is worth less than its recall."""
    best = best_recall(report)
    return (best.value - report.random_recall) * report.clicks_covered if best else 0.0


def _of_one(report: SetReport) -> str:
    if best_recall(report) is None:
        return (
            f"Cannot be judged by {report.pairs:,} next clicks on {report.candidates:,} items in training with a "
            f"vector: that takes at least one, and more than {NEAREST + 1} items."
        )
    if is_useful(report):
        text = ", ".join([f"Use it ({times_random(report):.1f} times as good as chance)", *_treatment(report)]) + "."
    elif is_weak(report):
        text = (
            f"Weak ({times_random(report):.1f} times as good as chance): keep it only if validation improves with it."
            + _tells(report)
        )
    else:
        text = "Leave it out: its nearest items are clicked next no more often than random ones." + _tells(report)
    twins = max(report.duplicates, report.near_duplicates)
    if twins > MANY_TWINS:
        what = "the very vector of another" if report.duplicates == twins else "nearly the vector of another"
        text += f" {twins:.0%} of items have {what}: look at its source."
    return text


def _treatment(report: SetReport) -> list[str]:
    """What to declare in the contract, most important first."""
    does = []
    best = best_recall(report)
    if best and report.recall and best.low > report.recall.high:
        does.append("with `normalize: centre`, which finds clearly more")
    elif report.anisotropy > ANISOTROPIC:
        does.append("with `normalize: centre`, since all its vectors point one way")
    elif report.norms[5] > LONG_TAILED * report.norms[3]:
        does.append("with `normalize: l2`, since lengths differ widely")
    dim = max(LEAST_DIMENSIONS, round(2 * report.effective_dimension))
    if report.effective_dimension < NARROW * report.width and dim < report.width:
        dead = f", {report.dead_dimensions} of them dead" if report.dead_dimensions else ""
        does.append(
            f"with `reduce: {{method: pca, dim: {dim}}}`, since it fills {report.effective_dimension:.0f} of its "
            f"{report.width} dimensions{dead}"
        )
    missing = 1 - report.clicks_covered
    if report.clicks_covered < LOW_COVERAGE:
        does.append(f"with `missing: {{by: clicks}}` for the {missing:.0%} of clicks without a vector")
    elif report.clicks_covered < FULL_COVERAGE:
        does.append(f"knowing that {missing:.0%} of clicks have none")
    return does


def _tells(report: SetReport) -> str:
    column = max(report.probe, key=lambda name: report.probe[name], default=None)
    if column is None or report.probe[column] < TOLD:
        return ""
    return f" It does tell {column!r} (AUC {report.probe[column]:.2f}), which that column says as well."


def _of_all(kept: list[str], weak: list[str], sets: int) -> str:
    names, doubtful = _listed(kept), _listed(weak)
    if not kept and not weak:
        return "No set finds what is clicked next better than chance: expect little of vectors here."
    if not kept:
        return f"No set is clearly better than chance; if any, try {doubtful}."
    if weak:
        return f"Use {names}; try {doubtful} after."
    return f"Use {names}." if len(kept) == sets else f"Use {names}; the others have not shown that they add to it."


def _listed(names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _overlap(inspection: Inspection, name: str, other: str) -> float:
    return max(inspection.overlap.get((name, other), 0.0), inspection.overlap.get((other, name), 0.0))
