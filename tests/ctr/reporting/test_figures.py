"""The plots show the numbers they were given, and save without a display."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ctr.evaluation.metrics import ece, reliability
from ctr.reporting.figures import control_bars, learning_curve, reliability_diagram, save_png

CURVE = [
    {"step": 10, "auc": 0.60, "log_loss": 0.60},
    {"step": 20, "auc": 0.70, "log_loss": 0.50},
    {"step": 30, "auc": 0.65, "log_loss": 0.55},
]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_learning_curve_marks_the_best_look():
    auc_axes, loss_axes = learning_curve(CURVE).axes
    np.testing.assert_array_equal(auc_axes.lines[0].get_xydata(), [[10, 0.6], [20, 0.7], [30, 0.65]])
    np.testing.assert_array_equal(loss_axes.lines[0].get_ydata(), [0.6, 0.5, 0.55])
    assert texts(auc_axes)[1] == "best 0.7000 at 20"
    assert texts(loss_axes)[1] == "best 0.5000 at 20"
    assert "training" not in texts(loss_axes)
    trained = learning_curve([{**look, "train_click_loss": 0.4, "train_loss": 9.0} for look in CURVE])
    assert "training" in texts(trained.axes[1])
    # The loss with other terms is not on the axis of the validation loss.
    np.testing.assert_array_equal(trained.axes[1].lines[-1].get_ydata(), [0.4] * 3)


def test_the_reliability_diagram_shows_bins_and_every_row():
    draw = np.random.default_rng(0)
    scores = draw.uniform(0.1, 0.5, 4000)
    labels = draw.random(4000) < scores
    axes, below = reliability_diagram(labels, scores).axes
    table = reliability(labels, scores)
    np.testing.assert_allclose(axes.lines[1].get_xydata(), np.column_stack([table.score, table.label]))
    assert f"{ece(labels, scores):.4f}" in axes.get_title()
    assert sum(bar.get_height() for bar in below.patches) == 4000


def test_a_bar_may_end_outside_of_its_interval():
    """Resamples of few users hold more pairs of one user than the rows do: all of them may lie below the AUC."""
    axes = control_bars({"qin": {"auc": 0.42, "auc_low": 0.25, "auc_high": 0.39}}).axes[0]
    (whisker,) = axes.collections
    assert whisker.get_segments()[0].tolist() == [[pytest.approx(0.25), 0.0], [pytest.approx(0.39), 0.0]]


def test_the_bars_reach_the_auc_and_the_whiskers_its_interval():
    results = {
        "qin": {"auc": 0.75, "auc_low": 0.74, "auc_high": 0.77},
        "target_only": {"auc": 0.7},
        "popularity": {"auc": 0.45},
    }
    axes = control_bars(results).axes[0]
    assert [bar.get_x() + bar.get_width() for bar in axes.patches] == pytest.approx([0.75, 0.7, 0.45])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["qin", "target-only", "popularity"]
    whisker = axes.containers[1].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(whisker[:, 0], [0.74, 0.77])


def test_every_axis_is_titled_and_figures_stay_out_of_pyplot(tmp_path):
    labels, scores = np.array([0, 1] * 20), np.linspace(0.1, 0.9, 40)
    figures = [
        learning_curve(CURVE),
        reliability_diagram(labels, scores),
        control_bars({"qin": {"auc": 0.7}}),
    ]
    for place, figure in enumerate(figures):
        assert all(axes.get_title() for axes in figure.axes[:1])
        assert figure.axes[-1].get_xlabel()
        save_png(figure, tmp_path / "plots" / f"{place}.png")
        assert (tmp_path / "plots" / f"{place}.png").read_bytes().startswith(b"\x89PNG")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
