"""The figures of a sweep show the trials that they were given."""

from __future__ import annotations

import numpy as np
import pytest

from ctr.reporting.sweep_figures import TrialPoint, history, importances, parallel_coordinates, pareto, slices

TRIALS = [
    TrialPoint(0, 0.60, True, {"train.rate": 0.001, "model.tower": "mlp"}),
    TrialPoint(1, 0.50, False, {"train.rate": 0.01, "model.tower": "cross"}),
    TrialPoint(2, 0.55, True, {"train.rate": 0.1, "model.tower": "cross", "model.rows": 2}),
    TrialPoint(3, None, False, {}),
    TrialPoint(4, 0.70, True, {"train.rate": 0.01, "model.tower": "mlp"}),
]


@pytest.mark.parametrize(("maximize", "best"), [(True, [0.6, 0.6, 0.7]), (False, [0.6, 0.55, 0.55])])
def test_the_history_shows_each_trial_and_the_best_so_far(maximize, best):
    ended, done, line = history(TRIALS, "auc", maximize).axes[0].lines
    np.testing.assert_array_equal(ended.get_xydata(), [[1, 0.5]])
    np.testing.assert_array_equal(done.get_xydata(), [[0, 0.6], [2, 0.55], [4, 0.7]])
    np.testing.assert_array_equal(line.get_ydata(), best)


def test_the_history_of_a_study_without_a_complete_trial_is_empty():
    assert len(history(TRIALS[1:2], "auc", True).axes[0].lines) == 2


def test_importances_come_largest_first():
    axes = importances({"a": 0.1, "b": 0.7, "c": 0.2}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]
    assert [bar.get_width() for bar in axes.patches] == [0.7, 0.2, 0.1]


def test_slices_have_a_panel_a_setting_with_its_complete_trials():
    shown = [axes for axes in slices(TRIALS, "auc", ["train.rate"]).axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in shown] == ["train.rate", "model.tower", "model.rows"]
    assert [axes.get_xscale() for axes in shown] == ["log", "linear", "linear"]
    np.testing.assert_array_equal(shown[0].collections[0].get_offsets(), [[0.001, 0.6], [0.1, 0.55], [0.01, 0.7]])
    np.testing.assert_array_equal(shown[2].collections[0].get_offsets(), [[2, 0.55]])


@pytest.mark.parametrize(("maximize", "marked"), [(True, [0.5, 1.0]), (False, [1.0, 0.0, 0.5])])
def test_parallel_coordinates_mark_the_best_tenth(maximize, marked):
    """The rate is logarithmic: 0.01 lies in the middle of 0.001 and 0.1; towers lie in alphabetical order."""
    lines = parallel_coordinates(TRIALS, "auc", ["train.rate"], maximize).axes[0].lines
    assert len(lines) == 3
    best = max(lines, key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(best.get_ydata(), marked)


def test_a_front_is_joined_by_its_time():
    every = [(0.70, 3.0), (0.60, 1.0), (0.55, 2.0)]
    points, front = pareto(every, [(0.70, 3.0), (0.60, 1.0)], "auc").axes[0].lines
    assert len(points.get_xdata()) == 3
    np.testing.assert_array_equal(front.get_xydata(), [[1.0, 0.6], [3.0, 0.7]])
