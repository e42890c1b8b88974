"""What to do with a vector set, from what inspection measured: a verdict, and the settings that a contract needs.

The reasons are in docs/vectors.md, beside the numbers.
"""

from __future__ import annotations

from collections.abc import Collection

from features.vectors.inspection.next_clicks import Interval
from features.vectors.inspection.report import Inspection, SetReport

# A set earns its place when its 10 nearest hold what is clicked next twice as often as 10 random items, beyond the
# interval: popular items lie near popular ones in most sets, which alone makes more than chance and which ids say too.
USEFUL = 2.0
# From this mean cosine on, the mean vector outweighs what tells items apart: 0.3 of every squared length is shared.
ANISOTROPIC = 0.3
# Below this share of clicks a model sees the presence flag more often than the vector.
LOW_COVERAGE = 0.5
# Two sets that agree on half of the nearest items say nearly the same.
REDUNDANT = 0.5
NARROW = 0.25  # effective over nominal dimensions: the rest is noise that a projection must learn to leave out
LEAST_DIMENSIONS = 8  # that a reduction is advised to: below, a projection saves nothing
LONG_TAILED = 3.0  # 95 % over 5 % quantile of lengths: lengths then drown directions in a product
LEARNED = "Learned from these very clicks, which therefore cannot judge it: compare validation with and without it."
NONE_IS_USEFUL = "No set finds what is clicked next better than chance: expect little of vectors here."
MANY_TWINS = 0.01  # share of items: more is a placeholder or an encoder's fault, and no accident


def advise(inspection: Inspection, learned: Collection[str] = ()) -> dict[str, str]:
    """A line of advice by set, and which sets to use under the name ``.

    Args:
        inspection: what was measured.
        learned: sets that were learned from the pasts of the same users, whose next clicks are no test of them.
    """
    advice = {report.name: LEARNED if report.name in learned else _of_one(report) for report in inspection.sets}
    judged = [report for report in inspection.sets if report.name not in learned]
    useful = sorted((report for report in judged if is_useful(report)), key=lambda report: -_worth(report))
    kept: list[str] = []
    for report in useful:
        twin = next((name for name in kept if _overlap(inspection, name, report.name) >= REDUNDANT), None)
        if twin is None:
            kept.append(report.name)
        else:
            advice[report.name] += f" Shares most neighbours with {twin!r}: one of the two is enough."
    weak = [report.name for report in judged if is_weak(report)]
    advice[""] = _of_all(kept, weak, len(judged)) if judged else LEARNED
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
    times = f"{times_random(report):.1f} times as good as chance"
    if best_recall(report) is None:
        text = f"Cannot be judged by {report.pairs:,} next clicks on {report.candidates:,} items."
    elif is_useful(report):
        text = f"Use it ({times})" + "".join(f", `{setting}`" for setting in _settings(report)) + "."
    elif is_weak(report):
        text = f"Weak ({times}): keep it only if validation improves with it."
    else:
        text = f"Leave it out ({times})."
    twins = max(report.duplicates, report.near_duplicates)
    return text + (f" {twins:.0%} of items have a twin: look at its source." if twins > MANY_TWINS else "")


def _settings(report: SetReport) -> list[str]:
    """What to declare in the contract, most important first."""
    settings = []
    best = best_recall(report)
    centre_finds_more = best is not None and report.recall is not None and best.low > report.recall.high
    if centre_finds_more or report.anisotropy > ANISOTROPIC:
        settings.append("normalize: centre")
    elif report.norms[5] > LONG_TAILED * report.norms[3]:
        settings.append("normalize: l2")
    dim = max(LEAST_DIMENSIONS, round(2 * report.effective_dimension))
    if report.effective_dimension < NARROW * report.width and dim < report.width:
        settings.append(f"reduce: {{method: pca, dim: {dim}}}")
    if report.clicks_covered < LOW_COVERAGE:
        settings.append("missing: {by: clicks}")
    return settings


def _of_all(kept: list[str], weak: list[str], sets: int) -> str:
    if not kept:
        return f"No set is clearly better than chance; if any, try {_listed(weak)}." if weak else NONE_IS_USEFUL
    if weak:
        return f"Use {_listed(kept)}; try {_listed(weak)} after."
    return f"Use {_listed(kept)}." if len(kept) == sets else f"Use {_listed(kept)} alone."


def _listed(names: list[str]) -> str:
    return " and ".join(map(repr, names))


def _overlap(inspection: Inspection, name: str, other: str) -> float:
    return max(inspection.overlap.get((name, other), 0.0), inspection.overlap.get((other, name), 0.0))
