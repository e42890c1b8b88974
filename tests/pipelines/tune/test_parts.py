"""Parts of a sweep on the toy feature set: a share of the users, the metric in resamples, finalists, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from sklearn.utils._openmp_helpers import _openmp_effective_n_threads as threads_of_trees
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

from ctr.config import ModelConfig, Preset, TrainConfig
from ctr.data.columns import column
from ctr.evaluation.bootstrap import Interval
from ctr.evaluation.metrics import auc, gauc_by_samples, log_loss
from ctr.evaluation.watched import WatchedRows
from ctr.training.loop import StopTraining
from ctr.trees.tabular_features import TabularFeatures
from features.errors import ConfigError, DataError
from features.store.feature_set import FeatureSet
from pipelines.job.evaluate import require_both_labels
from pipelines.tune.finals import OF, chosen_finalists, judged, plan_finals
from pipelines.tune.measure import ValidationRows, save_scores
from pipelines.tune.outcome import Outcome, lines_of, outcome_of
from pipelines.tune.search.space import Metric, SearchSpace
from pipelines.tune.share import TrainingShare, of_share
from pipelines.tune.trial import FIRST, RUN, SEED, Trials
from pipelines.tune.workers.host import (
    GIB,
    cores,
    estimated_bytes,
    explaining_memory,
    free_bytes,
    require_memory,
    sharing_cores,
    threads_of,
)
from tests.listed import built_lists
from tests.toy import toy_feature_set


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=3000)


@pytest.fixture(scope="module")
def half(feature_set: FeatureSet) -> TrainingShare:
    return TrainingShare(feature_set, 0.5)


def test_a_share_of_the_users_is_about_that_share() -> None:
    users = np.arange(10_000, dtype=np.int32)
    assert of_share(users, 0.25).mean() == pytest.approx(0.25, abs=0.01)
    assert of_share(users, 1.0).all()
    # A larger share has the users of a smaller one: more rows are the same rows and others.
    assert (of_share(users, 0.5) >= of_share(users, 0.25)).all()


def test_a_user_is_kept_with_all_training_rows_or_none(feature_set: FeatureSet, half: TrainingShare) -> None:
    before, after = column(feature_set, "train", "user"), column(half, "train", "user")
    assert 0 < len(after) < len(before)
    kept = np.unique(after)
    assert np.array_equal(after, before[np.isin(before, kept)])
    assert np.array_equal(column(half, "train", "label"), column(feature_set, "train", "label")[np.isin(before, kept)])


def test_a_share_without_rows_is_told_as_one(feature_set: FeatureSet) -> None:
    with pytest.raises(
        DataError, match=r"train rows: there are none\. Widen the split, or in a sweep raise screen\.share"
    ):
        require_both_labels(TrainingShare(feature_set, 1e-9), "train")


def test_other_splits_and_events_stay_whole(feature_set: FeatureSet, half: TrainingShare) -> None:
    for split in ("valid", "test"):
        assert np.array_equal(column(half, split, "user"), column(feature_set, split, "user"))
    ours, theirs = half.events("train"), feature_set.events("train")
    assert all(np.array_equal(a["item"], b["item"]) for a, b in zip(ours, theirs, strict=True))


def test_the_window_says_how_many_rows_there_are(half: TrainingShare) -> None:
    window = half.manifest.windows["train"]
    assert (window.rows, window.positives) == (
        len(column(half, "train", "label")),
        int(column(half, "train", "label").sum()),
    )


METRICS = {
    "auc": lambda labels, scores, users, weights: auc(labels, scores, weights),
    "log_loss": lambda labels, scores, users, weights: log_loss(labels, scores, weights),
    "gauc_by_samples": gauc_by_samples,
}


def scored(feature_set: FeatureSet, folder: Path, seed: int, skill: float) -> Path:
    """A training whose validation scores know the label to a degree."""
    labels = column(feature_set, "valid", "label")
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    save_scores(folder, np.clip(0.3 + skill * (labels - 0.3) + 0.15 * draw.standard_normal(len(labels)), 0.01, 0.99))
    return folder


@pytest.mark.parametrize("metric", METRICS)
def test_the_metric_of_the_rows_is_the_metric(feature_set: FeatureSet, tmp_path: Path, metric: Metric) -> None:
    folders = [scored(feature_set, tmp_path / str(seed), seed, 0.3) for seed in (1, 2)]
    rows = ValidationRows(feature_set, metric)
    found = rows.measured(folders)
    assert found is not None
    scores = [np.load(one / "scores-valid.npy").astype(np.float64) for one in folders]
    wanted = [METRICS[metric](rows.labels, one, rows.users, rows.weights) for one in scores]
    assert found.by_seed == pytest.approx(wanted)
    assert found.interval().value == pytest.approx(np.mean(wanted))
    # Resamples of users scatter around the value of all rows.
    assert found.drawn.mean() == pytest.approx(np.mean(wanted), abs=3 * found.drawn.std())


def test_the_metric_within_requests_is_that_of_the_lists(tmp_path: Path) -> None:
    lists = built_lists(tmp_path)
    folders = [scored(lists, tmp_path / f"run_{seed}", seed, 0.3) for seed in (1, 2)]
    found = ValidationRows(lists, "group_auc").measured(folders)
    assert found is not None
    rows = WatchedRows.of(lists)
    wanted = [rows.metrics(np.load(one / "scores-valid.npy").astype(np.float64))["group_auc"] for one in folders]
    assert found.by_seed == pytest.approx(wanted)
    assert found.drawn.mean() == pytest.approx(np.mean(wanted), abs=3 * found.drawn.std())


def test_without_requests_the_metric_within_them_is_refused(feature_set: FeatureSet) -> None:
    with pytest.raises(DataError, match=r"^metric group_auc: the log does not name the request"):
        ValidationRows(feature_set, "group_auc")


@pytest.mark.parametrize("metric", METRICS)
def test_a_gain_is_above_0_where_it_is_better(feature_set: FeatureSet, tmp_path: Path, metric: Metric) -> None:
    rows = ValidationRows(feature_set, metric)
    good, poor = (rows.measured([scored(feature_set, tmp_path / str(s), 1, s)]) for s in (0.5, 0.1))
    assert good is not None and poor is not None
    gain = rows.gain(good, poor)
    assert 0 < gain.low < gain.value < gain.high
    assert rows.gain(poor, good).value == pytest.approx(-gain.value)


def test_scores_that_are_not_here_give_no_interval(feature_set: FeatureSet, tmp_path: Path) -> None:
    rows = ValidationRows(feature_set, "auc")
    assert rows.measured([]) is None and rows.measured([tmp_path / "elsewhere"]) is None
    (tmp_path / "other").mkdir()
    save_scores(tmp_path / "other", np.full(3, 0.5))
    assert rows.measured([tmp_path / "other"]) is None


SEARCH = SearchSpace.model_validate(
    {"screen": {"best": 2, "seeds": 2}, "space": {"model.dropout": {"low": 0.0, "high": 0.4}}}
)


def study(values: list[float], first: int = 0) -> optuna.Study:
    found = optuna.create_study(direction="maximize")
    for number, value in enumerate(values):
        found.add_trial(
            optuna.create_trial(
                value=value,
                params={"model.dropout": number / 100},
                distributions={"model.dropout": optuna.distributions.FloatDistribution(0.0, 0.4)},
                user_attrs={RUN: "nowhere"} | ({FIRST: True} if number == first else {}),
            )
        )
    return found


@pytest.mark.parametrize(
    ("values", "metric", "chosen"),
    [
        ([0.5, 0.7, 0.6, 0.8], "auc", [0, 3, 1]),
        ([0.9, 0.7, 0.6, 0.8], "auc", [0, 3]),
        ([0.5, 0.7, 0.6, 0.8], "log_loss", [0, 2]),
        ([0.8, 0.7, 0.7], "auc", [0, 1]),  # of equal ones the first, whichever worker plans
    ],
)
def test_finalists_are_the_best_and_the_current_settings(values: list[float], metric: str, chosen: list[int]) -> None:
    search = SEARCH.model_copy(update={"metric": metric})
    assert [one.number for one in chosen_finalists(study(values).trials, search)] == chosen


def test_settings_that_two_trials_have_are_one_finalist() -> None:
    """Trained twice with the same seeds they would only cost twice as much, and keep another one out."""
    found = study([0.5, 0.8, 0.6])
    best = found.trials[1]
    found.add_trial(optuna.create_trial(value=0.8, params=best.params, distributions=best.distributions))
    assert [one.number for one in chosen_finalists(found.trials, SEARCH)] == [0, 1, 2]


def test_of_equal_settings_the_current_ones_are_the_finalist() -> None:
    """They come later where their worker died and they were tried again: all gains are over them."""
    found = study([0.5, 0.8, 0.6], first=-1)
    again = found.trials[0]
    found.add_trial(
        optuna.create_trial(value=0.5, params=again.params, distributions=again.distributions, user_attrs={FIRST: True})
    )
    assert [one.number for one in chosen_finalists(found.trials, SEARCH)] == [3, 1, 2]


def test_a_trial_that_was_pruned_is_no_finalist() -> None:
    trials = study([0.5, 0.7, 0.6]).trials
    trials[1].state = TrialState.PRUNED
    assert [one.number for one in chosen_finalists(trials, SEARCH)] == [0, 2]


def outcome(values: list[float]) -> Outcome:
    """Of trials whose scores are on another machine."""
    return outcome_of(study(values), [], [], SEARCH, cast("ValidationRows", Elsewhere()), "run")


class Elsewhere:
    def measured(self, folders: list[Path]) -> None:
        return None


def test_of_equal_trials_the_first_wins() -> None:
    assert outcome([0.5, 0.7, 0.7]).winner.trial == 1


@pytest.mark.parametrize(("low", "noise"), [(-0.001, True), (0.0, True), (0.001, False)])
def test_a_gain_whose_interval_reaches_0_is_told_as_noise(low: float, noise: bool) -> None:
    found = outcome([0.5, 0.7])
    found.winner = replace(found.winner, gain=Interval(0.01, low, 0.02))
    assert ("within noise, the rows cannot tell it" in "\n".join(lines_of(found))) is noise


def test_a_worker_that_lost_its_trial_ends_its_training() -> None:
    trials, renewal = optuna.create_study(direction="maximize"), SimpleNamespace(lost=False)
    evaluation: Any = SimpleNamespace(metrics=lambda: {"auc": 0.5})
    part: Any = SimpleNamespace(search=SEARCH)
    report = Trials._reporting(part, trials.ask(), renewal)  # type: ignore[arg-type]
    report(evaluation)
    report(evaluation)
    renewal.lost = True
    with pytest.raises(StopTraining, match="another worker has this trial now"):
        report(evaluation)
    assert trials.trials[0].intermediate_values == {1: 0.5, 2: 0.5}


def test_finals_are_planned_once() -> None:
    finals, trials = optuna.create_study(direction="maximize"), study([0.5, 0.7, 0.6]).trials
    assert plan_finals(finals, trials, SEARCH, seed=7) == 6
    assert plan_finals(finals, trials, SEARCH, seed=7) == 6
    queued = [(one.user_attrs[OF], one.user_attrs[SEED], one.system_attrs["fixed_params"]) for one in finals.trials]
    dropouts = {0: 0.0, 1: 0.01, 2: 0.02}
    assert queued == [(number, seed, {"model.dropout": dropouts[number]}) for seed in (7, 8) for number in (0, 1, 2)]


def test_a_plan_that_was_interrupted_is_completed() -> None:
    finals, trials = optuna.create_study(direction="maximize"), study([0.5, 0.7, 0.6]).trials
    plan_finals(finals, trials, SEARCH, seed=7)
    half_way = optuna.create_study(direction="maximize")
    for one in finals.trials[:4]:
        half_way.add_trial(one)
    assert plan_finals(half_way, trials, SEARCH, seed=7) == 6
    assert [one.user_attrs for one in half_way.trials] == [one.user_attrs for one in finals.trials]


def test_a_study_that_got_more_trials_has_more_finalists() -> None:
    """The fourth trial is the best one now: it joins those that are planned, and nothing is planned twice."""
    finals = optuna.create_study(direction="maximize")
    plan_finals(finals, study([0.5, 0.7, 0.6]).trials, SEARCH, seed=7)
    assert plan_finals(finals, study([0.5, 0.7, 0.6, 0.8]).trials, SEARCH, seed=7) == 8
    assert [(one.user_attrs[OF], one.user_attrs[SEED]) for one in finals.trials[6:]] == [(3, 7), (3, 8)]


def final(number: int, seed: int, value: float, folder: Path) -> FrozenTrial:
    return optuna.create_trial(value=value, user_attrs={OF: number, SEED: seed, RUN: str(folder)})


def test_finalists_are_judged_by_their_mean_and_against_the_current_settings(
    feature_set: FeatureSet, tmp_path: Path
) -> None:
    rows = ValidationRows(feature_set, "auc")
    skills = {(0, 1): 0.2, (0, 2): 0.2, (3, 1): 0.5, (3, 2): 0.6}
    folders = {key: scored(feature_set, tmp_path / f"{key}", key[1], skill) for key, skill in skills.items()}
    values = {key: float(rows.measured([folder]).by_seed[0]) for key, folder in folders.items()}  # type: ignore[union-attr]
    best, current = judged([final(*key, values[key], folders[key]) for key in skills], 0, SEARCH, rows)
    assert (best.trial, current.trial) == (3, 0)
    assert best.value == pytest.approx((values[3, 1] + values[3, 2]) / 2)
    assert best.gain is not None and current.gain is None
    assert best.gain.value == pytest.approx(best.value - current.value) and best.gain.low > 0
    assert best.interval is not None and best.interval.low < best.value < best.interval.high


def test_finalists_of_another_machine_have_a_mean_and_no_interval(feature_set: FeatureSet, tmp_path: Path) -> None:
    rows = ValidationRows(feature_set, "auc")
    best, _ = judged([final(0, 1, 0.6, tmp_path / "a"), final(3, 1, 0.7, tmp_path / "b")], 0, SEARCH, rows)
    assert (best.trial, best.value, best.interval, best.gain) == (3, 0.7, None, None)


def test_a_loss_is_judged_the_lower_the_better(feature_set: FeatureSet, tmp_path: Path) -> None:
    search = SEARCH.model_copy(update={"metric": "log_loss"})
    trials = [final(0, 1, 0.6, tmp_path / "a"), final(3, 1, 0.7, tmp_path / "b")]
    assert [one.trial for one in judged(trials, 0, search, ValidationRows(feature_set, "log_loss"))] == [0, 3]


@pytest.mark.parametrize(("workers", "threads"), [(0, 8), (1, 8), (2, 4), (3, 2), (9, 1)])
def test_workers_of_a_host_share_its_cores(workers: int, threads: int) -> None:
    assert threads_of(workers, 8) == threads


def test_threads_are_a_workers_part_while_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tune.workers.host.cores", lambda: 4)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with sharing_cores(1) as alone:
            assert alone == torch.get_num_threads() == 4
        with sharing_cores(2) as shared:
            assert shared == torch.get_num_threads() == 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_trees_grow_on_a_workers_part_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """So do products of numpy's: each library may have threads of its own, which torch's number says nothing to."""
    monkeypatch.setattr("pipelines.tune.workers.host.cores", lambda: 2)
    before = threads_of_trees()
    with sharing_cores(2):
        assert threads_of_trees() == 1
        assert {one["num_threads"] for one in threadpool_info()} == {1}
    assert threads_of_trees() == before


def test_this_process_has_a_core() -> None:
    assert cores() >= 1


def test_free_memory_is_the_smaller_of_host_and_container(tmp_path: Path) -> None:
    memory, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert free_bytes(memory, cgroup) is None
    memory.write_text("MemTotal:  99 kB\nMemAvailable:   2048 kB\n")
    assert free_bytes(memory, cgroup) == 2048 * 1024
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("1000000\n")
    (cgroup / "memory.current").write_text("400000\n")
    assert free_bytes(memory, cgroup) == 600_000
    # Files that the kernel keeps while nobody needs the memory are counted as used, and are free.
    (cgroup / "memory.stat").write_text("anon 7\nfile 9\nactive_file 50000\ninactive_file 250000\ninactive_anon 3\n")
    assert free_bytes(memory, cgroup) == 900_000
    (cgroup / "memory.max").write_text("max\n")
    assert free_bytes(memory, cgroup) == 2048 * 1024


def test_memory_grows_with_parameters_and_with_positions(feature_set: FeatureSet) -> None:
    small = Preset(model=ModelConfig(attention="mean"), train=TrainConfig(batch_size=256))
    wide = replace_model(small, embedding_dim=512)
    din = replace_model(small, attention="din")
    assert estimated_bytes(wide, feature_set) > 5 * estimated_bytes(small, feature_set)
    assert estimated_bytes(din, feature_set) > 1.3 * estimated_bytes(small, feature_set)


def test_memory_counts_the_rows_that_trees_are_grown_on(feature_set: FeatureSet) -> None:
    """Of each feature 13 bytes: single and double precision, and its bin."""
    config = ModelConfig(tower="none", base="boosting")
    windows, width = feature_set.manifest.windows, TabularFeatures(feature_set.schema, past=True).width
    rows = windows["train"].rows + windows["valid"].rows
    larger = feature_set_of(feature_set, 10_000)
    found = [estimated_bytes(Preset(model=config), one) for one in (feature_set, larger)]
    assert found[0] > rows * width * 13
    # The batch is full in both.
    assert found[1] - found[0] == 10_000 * width * 13


def test_memory_of_a_tower_grows_with_the_batch(feature_set: FeatureSet) -> None:
    """Two layers of 512 outputs and one of 1, four numbers of four bytes each: 16,400 bytes a row."""
    model = ModelConfig(attention="mean", tower="mlp", hidden=(512, 512))
    found = [
        estimated_bytes(Preset(model=model, train=TrainConfig(batch_size=size)), feature_set) for size in (500, 600)
    ]
    assert found[1] - found[0] >= 100 * 1025 * 16


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 GiB"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_training_that_ran_out_of_memory_is_explained(error: Exception) -> None:
    with pytest.raises(ConfigError, match=r"ran out of memory: .*Narrow the ranges"), explaining_memory():
        raise error


def test_another_error_of_torch_is_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), explaining_memory():
        raise RuntimeError("shapes differ")


def test_a_batch_is_no_larger_than_the_rows(feature_set: FeatureSet) -> None:
    rows = feature_set.manifest.windows["train"].rows
    of = [Preset(model=ModelConfig(attention="din"), train=TrainConfig(batch_size=size)) for size in (rows, 100 * rows)]
    assert estimated_bytes(of[0], feature_set) == estimated_bytes(of[1], feature_set)


def test_what_would_not_fit_is_refused_with_both_figures(feature_set: FeatureSet) -> None:
    preset = Preset(model=ModelConfig(embedding_dim=256))
    needed = estimated_bytes(preset, feature_set)
    require_memory(preset, feature_set, None)
    require_memory(preset, feature_set, needed)
    with pytest.raises(ConfigError, match=rf"needs about {needed / GIB:.1f} GiB of memory, and 0\.0 GiB are free"):
        require_memory(preset, feature_set, 1000)


def feature_set_of(whole: FeatureSet, more: int) -> FeatureSet:
    """The same feature set with more training rows, by its manifest."""
    found = FeatureSet(whole.path, whole.manifest)
    train = whole.manifest.windows["train"]
    windows = {**whole.manifest.windows, "train": train.model_copy(update={"rows": train.rows + more})}
    found.manifest = whole.manifest.model_copy(update={"windows": windows})
    return found


def replace_model(preset: Preset, **changed: object) -> Preset:
    return preset.model_copy(update={"model": preset.model.model_copy(update=changed)})
