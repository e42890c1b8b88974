"""Stage 3: the metrics of a split with intervals, beside the controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from ctr.data.columns import column, row_weights, training_rate
from ctr.evaluation.baselines import optimum_scores, popularity_scores
from ctr.evaluation.catalog_coverage import top_lists
from ctr.evaluation.checks import require_both_classes
from ctr.evaluation.evaluate import evaluate
from ctr.evaluation.ranking_metrics import judged_lists, ranking_metrics, requests_of
from ctr.evaluation.slices import slice_metrics
from ctr.export.ranker_as_of import RankerAsOf, ranker_as_of
from ctr.serving.ranker import Ranker
from ctr.training.calibrate import Method, cross_fitted, recalibrated
from ctr.training.loop import predict
from features.contract.contract import LABEL_PREFIX
from features.errors import ConfigError, DataError, error_prefix
from features.progress import progress
from features.store.feature_set import SPLITS, FeatureSet, SplitName
from pipelines.job.summary import Metrics, Summary, lists_table, print_results, slices_table
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Scored:
    """Scores of the rows of one split, and the other inputs of the metrics; arrays are [N].

    Args:
        labels: 0 or 1.
        scores: probabilities.
        groups: user of each row: the groups of GAUC, and the units that intervals resample.
        base_rate: weighted share of positives in training.
        weights: of the rows; 1 if the log has none.
        requests: request of each row, if the log names it.
    """

    labels: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    base_rate: float
    weights: np.ndarray
    requests: np.ndarray | None = None

    def metrics(self, intervals: bool = True) -> Metrics:
        """Every metric that exists; those of ranked lists if some request has both labels and a weight.

        95 % intervals resample users.

        Args:
            intervals: whether the interval of AUC is computed too.
        """
        found = evaluate(self.labels, self.scores, self.groups, self.base_rate, self.weights, intervals)
        if self.requests is not None and judged_lists(self.labels, self.requests, self.weights)[1].sum() > 0:
            found |= ranking_metrics(self.labels, self.scores, self.requests, self.weights, clusters=self.groups)
        return found


def scored(feature_set: FeatureSet, split: SplitName, scores: np.ndarray) -> Scored:
    """Join scores in row order of `split` with its labels; users are the groups of GAUC."""
    return Scored(
        labels=column(feature_set, split, "label"),
        scores=scores,
        groups=column(feature_set, split, "user"),
        base_rate=training_rate(feature_set),
        weights=row_weights(feature_set, split),
        requests=requests_of(feature_set, split),
    )


def require_both_labels(feature_set: FeatureSet, split: SplitName) -> None:
    """Raise DataError unless rows of the split that have a weight have both labels: nothing is learned of others."""
    labels, weights = column(feature_set, split, "label"), row_weights(feature_set, split)
    counts = weights > 0
    if not len(labels):
        raise DataError(
            f"{feature_set.path}, {split} rows: there are none. Widen the split, or in a sweep raise screen.share."
        )
    if not counts.any():
        raise DataError(
            f"{feature_set.path}, {split} rows: the weight {feature_set.contract.interactions.weight!r} of all "
            f"{len(labels):,} is 0, so that none of them counts. Correct interactions.weight, or widen the split."
        )
    of = "rows" if counts.all() else "rows of a weight above 0"
    with error_prefix(f"{feature_set.path}, {split} {of}"):
        require_both_classes(labels[counts], weights[counts])


def score_split(model: torch.nn.Module, feature_set: FeatureSet, split: SplitName) -> Scored:
    """Score a split with a torch model in evaluation mode."""
    return scored(feature_set, split, predict(model, feature_set, split))


def task_labels(feature_set: FeatureSet, split: SplitName, name: str) -> np.ndarray:
    """A further label of a split's rows, float32, NaN where unknown."""
    return column(feature_set, split, LABEL_PREFIX + name)


def has_both_classes(labels: np.ndarray, weights: np.ndarray) -> bool:
    """Whether rows [N] of positive weight have both labels; NaN is an unknown one."""
    return len(np.unique(labels[~np.isnan(labels) & (weights > 0)])) == 2


def task_metrics(feature_set: FeatureSet, split: SplitName, scores: Mapping[str, np.ndarray]) -> dict[str, Metrics]:
    """Weighted metrics of each further label that a model predicts, over the rows with a known label.

    A label is left out that has one class among the known rows with a weight, of the split or of training.

    Args:
        scores: probabilities by label, [rows of the split].
    """
    found = {}
    train_weights, weights = row_weights(feature_set, "train"), row_weights(feature_set, split)
    users = column(feature_set, split, "user")
    for name, predicted in scores.items():
        labels = task_labels(feature_set, split, name)
        train = task_labels(feature_set, "train", name).astype(np.float64)
        if not (has_both_classes(labels, weights) and has_both_classes(train, train_weights)):
            continue  # nothing to rank, or nothing was learned
        known, learned = ~np.isnan(labels), ~np.isnan(train)
        base_rate = float(np.average(train[learned], weights=train_weights[learned]))
        found[name] = evaluate(labels[known], predicted[known], users[known], base_rate, weights[known])
    return found


def controls(feature_set: FeatureSet, split: SplitName, calibration: Method = "platt") -> dict[str, Metrics]:
    """Metrics of popularity, and of the optimum if the log is simulated and its true probabilities are there.

    Args:
        feature_set: whose rows are scored.
        split: which of them.
        calibration: method for popularity, on validation rows like the model's; the optimum needs none.
    """
    result = {"popularity": scored(feature_set, split, _popularity(feature_set, split, calibration)).metrics()}
    optimum = optimum_scores(feature_set, split)
    if optimum is not None:
        result["optimum"] = scored(feature_set, split, optimum).metrics()
    return result


def _popularity(feature_set: FeatureSet, split: SplitName, calibration: Method) -> np.ndarray:
    """Scores calibrated on validation rows; of the validation split, each user on the rows of other users, if any."""
    scores, valid = popularity_scores(feature_set, split), popularity_scores(feature_set, "valid")
    labels, weights = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    if split != "valid":
        return recalibrated(calibration, valid, labels, weights, scores)
    apart = cross_fitted(calibration, valid, labels, column(feature_set, "valid", "user"), weights)
    return scores if apart is None else apart


def evaluate_bundle(path: Path, split_name: str, workspace: Workspace, console: Console) -> Summary:
    """Score a split through the ONNX graph, as a server does, and print its metrics beside the controls.

    Items and users that change are read as of each row's time.

    Raises:
        ConfigError: no such split, its rows have no labels, or the feature set that the bundle was trained on is not in
            the workspace.
        DataError: all rows of the split have one label.
    """
    if split_name not in SPLITS:
        raise ConfigError(f"--split {split_name}: choose one of {', '.join(SPLITS)}.")
    split = next(name for name in SPLITS if name == split_name)
    ranker = Ranker.load(path)
    manifest = ranker.bundle.manifest
    folder = workspace.feature_sets / manifest.name / manifest.feature_set
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: the bundle was trained on this feature set, which is not here. Build it again with "
            f"`quadrank features`, or name the folder that holds it with --work."
        )
    feature_set = FeatureSet.open(folder)
    if not feature_set.manifest.windows[split].labelled:
        raise ConfigError(
            f"--split {split}: no row of it has a label in {folder}, so that nothing can be measured. Choose --split "
            f"{feature_set.judged_by}."
        )
    require_both_labels(feature_set, split)
    with ranker_as_of(ranker, feature_set) as then:
        served = np.stack(list(_served_scores(then, feature_set, split)))
    scores, tasks = served[:, 0], dict(zip(ranker.tasks, served[:, 1:].T, strict=True))
    sampling = feature_set.manifest.sampling
    if sampling is not None and sampling.rate is not None:
        # Served probabilities are those of all possible negatives; these rows hold the drawn ones alone.
        scores = scores / (scores + (1 - scores) * sampling.rate)
    summary = Summary(run_id=manifest.model_version, feature_set=str(folder), bundle=str(path))
    summary.rows = {split: len(scores)}
    summary.metrics = {split: scored(feature_set, split, scores).metrics()}
    summary.tasks = {split: task_metrics(feature_set, split, tasks)}
    summary.controls = controls(feature_set, split)
    if split == "test" and "target_only" in manifest.controls:
        summary.controls = {"target_only": manifest.controls["target_only"], **summary.controls}
    print_results(console, f"{manifest.name}, {split} window, as served", summary, split, manifest.architecture)
    found = slice_metrics(feature_set, split, scores)
    console.print(slices_table(f"slices of the {split} window", found))
    summary.slices = [asdict(result) for result in found]
    lists = top_lists(feature_set, split, scores)
    console.print(lists_table(lists))
    summary.top_lists = asdict(lists)
    return summary


def _served_scores(then: RankerAsOf, feature_set: FeatureSet, split: SplitName) -> Iterator[np.ndarray]:
    """Probabilities of all rows, float32 [1 + tasks] each."""
    total = feature_set.manifest.windows[split].rows
    with progress(f"scoring {split} through ONNX", total=total, unit="rows") as bar:
        for part, rows in enumerate(feature_set.rows(split)):
            for scores in then.row_scores(feature_set, split, part, range(len(rows["item"]))):
                yield scores
                bar.advance(1)
