"""What to do with a vector set, in one sentence, from what inspection measured."""

from __future__ import annotations

from features.vectors.inspection import Inspection, Interval, SetReport

# A set earns its place when the 10 nearest hold what is clicked next this many times as often as 10 random items,
# beyond its interval: below that, ids and tags say as much.
USEFUL = 2.0
# Of anisotropic vectors all cosines are alike: from here on the mean vector outweighs what tells items apart.
ANISOTROPIC = 0.3
# Below this share of clicks a model sees the presence flag more often than it can learn from the vector.
LOW_COVERAGE = 0.5
FULL_COVERAGE = 0.98
# Two sets that agree on half of the nearest items say nearly the same.
REDUNDANT = 0.5
NARROW = 0.25  # effective over nominal dimensions: the rest is noise that a projection must learn to leave out
LONG_TAILED = 3.0  # 95 % over 5 % quantile of lengths


def advise(inspection: Inspection) -> dict[str, str]:
    """One sentence a set, and one on all of them under the name ``."""
    advice = {report.name: _of_one(report, inspection) for report in inspection.sets}
    worthy = [report for report in inspection.sets if is_useful(report, inspection)]
    best = sorted(worthy, key=lambda report: -best_recall(report).value)
    kept: list[str] = []
    for report in best:
        twin = next((name for name in kept if _overlap(inspection, name, report.name) >= REDUNDANT), None)
        if twin is None:
            kept.append(report.name)
        else:
            advice[report.name] += f" It agrees with {twin!r} on most neighbours: one of the two is enough."
    if kept:
        advice[""] = f"Use {' and '.join(map(repr, kept))}" + (
            "." if len(kept) == len(inspection.sets) else "; the others have not shown that they help."
        )
    else:
        advice[""] = "No set finds what is clicked next better than chance does: expect little of vectors here."
    return advice


def is_useful(report: SetReport, inspection: Inspection) -> bool:
    """Whether near items are clicked together more often than chance and the interval explain."""
    return best_recall(report).low > USEFUL * inspection.random_recall


def best_recall(report: SetReport) -> Interval:
    """As it is, or centred where that finds more."""
    found = [one for one in (report.recall, report.centred_recall) if one is not None]
    return max(found, key=lambda one: one.value, default=Interval(0.0, 0.0, 0.0))


def _of_one(report: SetReport, inspection: Inspection) -> str:
    best = best_recall(report)
    times = best.value / inspection.random_recall
    if not is_useful(report, inspection):
        return (
            "Leave it out, or show that it helps: its nearest items are clicked next only "
            f"{times:.1f} times as often as random ones."
        )
    does = [f"Use it ({times:.0f} times as good as chance)"]
    if report.recall and best.low > report.recall.high:
        does.append("with `normalize: centre`, which finds clearly more")
    elif report.anisotropy > ANISOTROPIC:
        does.append("perhaps with `normalize: centre`, since all its vectors point one way")
    elif report.norms[3] > LONG_TAILED * max(report.norms[1], 1e-12):
        does.append("with `normalize: l2`, since lengths differ widely")
    if report.dead_dimensions or report.effective_dimension < NARROW * report.width:
        does.append(f"reduced to about {max(8, round(2 * report.effective_dimension))} dimensions")
    if report.clicks_covered < LOW_COVERAGE:
        does.append(f"filled for the {1 - report.clicks_covered:.0%} of clicks without one (`missing: {{by: clicks}}`)")
    elif report.clicks_covered < FULL_COVERAGE:
        does.append(f"knowing that {1 - report.clicks_covered:.0%} of clicks have none")
    text = ", ".join(does) + "."
    if report.duplicates > 0.01:
        text += f" {report.duplicates:.0%} of items share their vector with another: look at its source."
    return text


def _overlap(inspection: Inspection, one: str, other: str) -> float:
    return max(inspection.overlap.get((one, other), 0.0), inspection.overlap.get((other, one), 0.0))
