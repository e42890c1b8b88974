"""Labels: unknown ones stay unknown, no feature reads them, and no column of the log gives way to them in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import validate
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError
from features.store.feature_set import FeatureSet

BY_FILES = {"by": "files", "valid": "valid.parquet", "test": "test.parquet"}


def contract(folder: Path, interactions: dict[str, Any], **more: Any) -> Contract:
    log = {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "user_min_count": 1}
    content = {"name": "labels", "root": str(folder), "interactions": log | {"item_min_count": 1} | interactions}
    return validate(Contract, content | {"checks": {"earliest": "1970-01-01"}} | more, "labels.yaml")


def built(folder: Path, files: dict[str, pl.DataFrame], interactions: dict[str, Any], **more: Any) -> FeatureSet:
    for name, table in files.items():
        table.write_parquet(folder / f"{name}.parquet")
    return build_feature_set(contract(folder, interactions, **more), folder / "out").feature_set


def column(found: FeatureSet, split: Any, name: str) -> list[Any]:
    """A row column by raw item, in order of time."""
    items = Encoder.load(found.path).items
    rows = [row for part in found.rows(split) for row in zip(part["time"], part["item"], part[name], strict=True)]
    return [(items.value(item), value.item()) for _, item, value in sorted(rows, key=lambda row: row[:2])]


LOG = pl.DataFrame(
    {
        "user": [1, 2, 1, 2, 1, 2, 1, 1, 2],
        "item": [11, 12, 12, 11, 11, 12, 13, 11, 12],
        "time": [1, 2, 3, 4, 5, 6, 7, 8, 9],
        "stars": [5, 1, 4, 2, 5, 1, 3, 5, 2],
        "liked": [1, 0, 1, 0, 1, 0, 0, 1, 0],
        "dwell": [9, 1, 8, 2, 9, 1, 3, 9, 2],
    }
)


def three_files(*lacking: str) -> dict[str, pl.DataFrame]:
    """Four rows to train, one to validate, four to test, whose file lacks some columns."""
    return {"log": LOG[:4], "valid": LOG[4:5], "test": LOG[5:].drop(lacking)}


def nan(values: list[tuple[Any, float]]) -> list[bool]:
    return [bool(np.isnan(value)) for _, value in values]


@pytest.mark.parametrize(("label", "column_name"), [("liked", "liked"), ("stars >= 4", "stars")])
def test_a_test_file_may_lack_what_the_label_is_made_of(tmp_path: Path, label: str, column_name: str) -> None:
    found = built(tmp_path, three_files(column_name), {"label": label}, split=BY_FILES)
    assert nan(column(found, "test", "label")) == [True] * 4
    assert column(found, "valid", "label") == [(11, 1.0)]
    assert [found.manifest.windows[name].labelled for name in ("train", "valid", "test")] == [True, True, False]


def test_test_files_of_which_only_some_have_labels_are_an_error(tmp_path: Path) -> None:
    files = three_files() | {"test-1": LOG[5:7], "test-2": LOG[7:].drop("liked")}
    split = BY_FILES | {"test": "test-*.parquet"}
    with pytest.raises(DataError, match=r"test-2\.parquet: has no column 'liked', which .*test-1\.parquet has"):
        built(tmp_path, files, {"label": "liked"}, split=split)


def test_a_further_label_may_be_lacking_alone(tmp_path: Path) -> None:
    log = {"label": "liked", "labels": {"long": "dwell > 5"}}
    found = built(tmp_path, three_files("dwell"), log, split=BY_FILES)
    assert nan(column(found, "test", "label.long")) == [True] * 4
    assert column(found, "test", "label") == [(12, 0.0), (13, 0.0), (11, 1.0), (12, 0.0)]


def test_a_feature_may_not_be_lacking_even_if_the_label_is_made_of_it(tmp_path: Path) -> None:
    log = {"label": "stars >= 4", "allow_label_features": ["stars"], "context": {"stars": {"type": "numeric"}}}
    with pytest.raises(DataError, match=r"test.parquet: no column 'stars'"):
        built(tmp_path, three_files("stars"), log, split=BY_FILES)


def test_only_the_test_file_may_be_unlabelled(tmp_path: Path) -> None:
    files = three_files() | {"valid": LOG[4:5].drop("liked")}
    with pytest.raises(DataError, match=r"valid.parquet: no column 'liked'"):
        built(tmp_path, files, {"label": "liked"}, split=BY_FILES)


def test_a_missing_label_in_a_labelled_test_file_is_an_error(tmp_path: Path) -> None:
    files = three_files() | {"test": LOG[5:].with_columns(liked=pl.Series([0, None, 1, 0]))}
    with pytest.raises(DataError, match=r"column 'liked': 1 of 9 rows are null"):
        built(tmp_path, files, {"label": "liked"}, split=BY_FILES)


def test_an_unlabelled_event_says_nothing_of_its_label(tmp_path: Path) -> None:
    history = {"columns": {"label": {"type": "categorical"}, "stars": {"type": "categorical"}}}
    found = built(tmp_path, three_files("stars"), {"label": "stars >= 4"}, history=history, split=BY_FILES)
    encoder = Encoder.load(found.path)
    events = found.events("test")[0]
    place = int(found.rows("test")[0]["history_end"].max())
    # User 1's events before its last row: 11, 12, 11 labelled; 13 of the test file, not 0 but unknown (index 1).
    of_one = [(encoder.items.value(events["item"][i]), events["label"][i], events["stars"][i]) for i in range(place)]
    zero, one = (encoder.event["label"].encode_one(value)[0] for value in (0, 1))
    unknown = {(label, stars) for item, label, stars in of_one if item == 13}
    assert unknown == {(1, 1)} and zero != 1 != one
    assert {label for item, label, _ in of_one[:2]} <= {zero, one}


def test_an_unlabelled_row_is_no_event_of_a_filter_by_label(tmp_path: Path) -> None:
    files = three_files("stars")
    found = built(tmp_path, files, {"label": "stars >= 4"}, history={"events": "label = 1"}, split=BY_FILES)
    # Of user 1's test rows 13 and 11: both see 11, 12, 11, the likes of the files before.
    assert column(found, "test", "history_len") == [(12, 0), (13, 3), (11, 3), (12, 0)]


IMPRESSIONS = pl.DataFrame(
    {
        "user": ["a", "b", "a", "b", "a"],
        "time": [10, 20, 30, 40, 50],
        "text": ["N1-0 N2-1", "N1-1", "N2-1", "N1-0 N2-1", "N2-0"],
        "shown": [["N1", "N2"], ["N1"], ["N2"], ["N1", "N2"], ["N2"]],
        "taken": [["N2"], ["N1"], ["N2"], ["N2"], []],
    }
)


@pytest.mark.parametrize("candidates", [{"column": "text", "flag": "-"}, {"column": "shown", "clicked": "taken"}])
def test_impressions_without_clicks_are_unlabelled(tmp_path: Path, candidates: dict[str, str]) -> None:
    test = IMPRESSIONS[3:].drop("taken").with_columns(text=pl.col("text").str.replace_all("-[01]", ""))
    files = {"log": IMPRESSIONS[:2], "valid": IMPRESSIONS[2:3], "test": test}
    found = built(tmp_path, files, {"candidates": candidates}, history={"events": "label = 1"}, split=BY_FILES)
    assert [item for item, _ in column(found, "test", "label")] == ["N1", "N2", "N2"]
    assert nan(column(found, "test", "label")) == [True] * 3
    assert column(found, "train", "label") == [("N1", 0.0), ("N2", 1.0), ("N1", 1.0)]
    # b clicked N1; a clicked N2 twice.
    assert column(found, "test", "history_len") == [("N1", 1), ("N2", 1), ("N2", 2)]


def test_test_files_of_which_only_some_have_clicks_are_an_error(tmp_path: Path) -> None:
    files = {"log": IMPRESSIONS[:2], "valid": IMPRESSIONS[2:3]}
    files |= {"test-1": IMPRESSIONS[3:4], "test-2": IMPRESSIONS[4:].drop("taken")}
    split, candidates = BY_FILES | {"test": "test-*.parquet"}, {"column": "shown", "clicked": "taken"}
    with pytest.raises(DataError, match=r"test-2\.parquet: has no column 'taken', which .*test-1\.parquet has"):
        built(tmp_path, files, {"candidates": candidates}, split=split)


def test_what_is_made_of_a_click_is_as_unknown_as_the_click(tmp_path: Path) -> None:
    files = {"log": IMPRESSIONS[:2], "valid": IMPRESSIONS[2:3], "test": IMPRESSIONS[3:].drop("taken")}
    shown = {"candidates": {"column": "shown", "clicked": "taken"}}
    log = shown | {"label": "CASE WHEN clicked = 1 THEN 1 ELSE 0 END", "labels": {"early": "clicked = 1 AND time < 15"}}
    found = built(tmp_path, files, log, split=BY_FILES)
    assert nan(column(found, "test", "label")) == nan(column(found, "test", "label.early")) == [True] * 3
    assert column(found, "train", "label") == [("N1", 0.0), ("N2", 1.0), ("N1", 1.0)]
    assert column(found, "train", "label.early") == [("N1", 0.0), ("N2", 1.0), ("N1", 0.0)]


def test_a_test_file_with_some_flags_is_broken(tmp_path: Path) -> None:
    files = {"log": IMPRESSIONS[:2], "valid": IMPRESSIONS[2:3]}
    files["test"] = IMPRESSIONS[3:].with_columns(text=pl.Series(["N1 N2-1", "N2-0"]))
    with pytest.raises(DataError, match=r"test.parquet: candidates column 'text': 1 candidates do not end in -0 or -1"):
        built(tmp_path, files, {"candidates": {"column": "text", "flag": "-"}}, split=BY_FILES)


def test_a_validation_file_without_flags_is_broken(tmp_path: Path) -> None:
    files = {"log": IMPRESSIONS[:2], "valid": IMPRESSIONS[2:3].with_columns(text=pl.lit("N2")), "test": IMPRESSIONS[3:]}
    with pytest.raises(DataError, match=r"valid.parquet: candidates column 'text': 1 candidates do not end in -0"):
        built(tmp_path, files, {"candidates": {"column": "text", "flag": "-"}}, split=BY_FILES)


def test_a_flag_is_as_wide_as_its_characters(tmp_path: Path) -> None:
    dashes = IMPRESSIONS.with_columns(text=pl.col("text").str.replace_all("-", "–"))
    found = built(tmp_path, {"log": dashes}, {"candidates": {"column": "text", "flag": "–"}},
                  split={"valid": 0.3, "test": 0.2})  # fmt: skip
    assert {item for split in ("train", "valid", "test") for item, _ in column(found, split, "label")} == {"N1", "N2"}


# A column `label` of the log's own, which is not the label.
OWN = LOG.with_columns(label=pl.Series(["news", "sport"] * 4 + ["news"]))
SHARES = {"valid": 0.2, "test": 0.2}


def test_a_column_called_label_that_no_expression_uses_is_no_trouble(tmp_path: Path) -> None:
    found = built(tmp_path, {"log": OWN}, {"label": "liked"}, split=SHARES)
    assert column(found, "train", "label") == [(11, 1.0), (12, 0.0), (12, 1.0), (11, 0.0), (11, 1.0)]


@pytest.mark.parametrize(
    ("history", "where"),
    [
        ({"events": "label = 1"}, "history.events"),
        ({"columns": {"label": {"type": "categorical"}}}, "history.columns.label"),
        ({"columns": {"kind": {"type": "categorical", "source": "label"}}}, "history.columns.kind"),
    ],
)
def test_a_column_called_label_is_ambiguous_where_it_is_used(tmp_path: Path, history: Any, where: str) -> None:
    with pytest.raises(DataError, match=rf"log.parquet: {where} reads 'label'.*Write `_label` for the computed label"):
        built(tmp_path, {"log": OWN}, {"label": "liked"}, history=history, split=SHARES)


@pytest.mark.parametrize("condition", ["label = 1", "_label = 1"])
def test_a_column_called_label_that_is_the_label_is_no_ambiguity(tmp_path: Path, condition: str) -> None:
    log = LOG.rename({"liked": "label"})
    found = built(tmp_path, {"log": log}, {"label": "label"}, history={"events": condition}, split=SHARES)
    assert column(found, "valid", "history_len")[-1] == (13, 3)


def test_a_column_with_the_name_of_the_computed_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log.parquet: column '_label' has the name of the computed label"):
        built(tmp_path, {"log": OWN.rename({"label": "_label"})}, {"label": "liked"}, split=SHARES)


def test_the_computed_label_has_a_name_of_its_own(tmp_path: Path) -> None:
    found = built(tmp_path, {"log": OWN}, {"label": "liked"}, history={"events": "_label = 1"}, split=SHARES)
    # User 1 likes 11, 12, 11 before its row of 13.
    assert column(found, "valid", "history_len")[-1] == (13, 3)


def test_the_logs_own_label_column_can_be_allowed_as_a_feature(tmp_path: Path) -> None:
    topic = {"context": {"topic": {"type": "categorical", "source": "label"}}}
    with pytest.raises(ConfigError, match=r"interactions\.context\.topic: reads 'label'"):
        contract(tmp_path, {"label": "liked"} | topic)
    allowed = {"label": "liked", "allow_label_features": ["label"]} | topic
    found = built(tmp_path, {"log": OWN}, allowed, split=SHARES)
    topics = Encoder.load(found.path).context["topic"]
    news, sport = topics.encode_one("news")[0], topics.encode_one("sport")[0]
    assert [value for _, value in column(found, "train", "topic")] == [news, sport, news, sport, news]


def test_an_unlabelled_test_file_leaves_rates_and_residuals_as_they_are(tmp_path: Path) -> None:
    counters = {"rate": {"of": "item", "value": "rate", "prior": 2}, "shown": {"of": "item", "value": "count"}}
    history = {"columns": {"surprise": {"type": "residual", "counter": "rate"}}}
    for name in ("labelled", "unlabelled"):
        (tmp_path / name).mkdir()
    lacking = {"labelled": (), "unlabelled": ("liked",)}
    known, found = (
        built(tmp_path / name, three_files(*columns), {"label": "liked"}, counters=counters, history=history,
              split=BY_FILES)
        for name, columns in lacking.items()
    )  # fmt: skip
    for split in ("train", "valid"):
        assert column(found, split, "rate") == column(known, split, "rate")
    # Item 12 before the test file: labels 0 and 1; the row at 6 counts for neither rate, so the last one sees the same.
    rates = [value for item, value in column(found, "test", "rate") if item == 12]
    assert rates[0] == rates[1] and np.isfinite(rates).all()
    snapshot = Encoder.load(found.path)
    item = snapshot.items.index(12)
    # Labels 0, 1 and the mean 0.5 of training twice: (1 + 2 * 0.5) / (2 + 2). Shown four times in all.
    assert snapshot.snapshot.items["rate"][item] == 0.5 and snapshot.snapshot.items["shown"][item] == 4
    events = found.events("test")[0]
    surprise = list(zip(map(snapshot.items.value, events["item"]), events["time"], events["surprise"], strict=True))
    assert [bool(np.isnan(value)) for _, time, value in sorted(surprise, key=lambda event: event[1])] == (
        [False] * 5 + [True] * 4
    )
