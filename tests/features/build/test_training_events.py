"""Which events vectors are learned from: those of pasts, of the training window alone; and builds that learn them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.build.training_events import training_events
from features.contract.contract import Contract
from features.contract.settings import validate
from features.errors import ConfigError
from features.monitor.drift.vectors import other_encoders
from features.sources.log import Log
from features.store.feature_set import FeatureSet
from features.vectors.read import learned_file
from tests.features.build.days import build, contract, day_of_log, write_days

COVISIT: dict[str, Any] = {"learn": "history", "id": "item", "width": 4, "normalize": "centre"}


def learning(folder: Path, over: Any = None) -> Contract:
    """The daily contract with a learned set; events from which one is learned alone hold ratings above 1."""
    return contract(folder, {"embeddings": {"covisit": COVISIT}, "history": {"events": "rating > 1"}} | (over or {}))


def file_of(built: FeatureSet) -> bytes:
    return learned_file(built.path, "covisit").read_bytes()


def test_no_row_of_validation_or_test_moves_a_vector(tmp_path):
    write_days(tmp_path, range(7))
    before = build(learning(tmp_path), 6)
    for number in (5, 6):
        moved = day_of_log(number)
        moved = moved.with_columns(pl.col("user").reverse(), pl.col("item").shuffle(1), rating=pl.lit(5))
        moved.write_parquet(tmp_path / f"log/day-{number:02d}.parquet")
    after = build(learning(tmp_path), 6)
    assert after.manifest.version != before.manifest.version
    assert file_of(after) == file_of(before)
    np.testing.assert_array_equal(after.vectors("covisit"), before.vectors("covisit"))


def test_an_event_of_training_gives_a_new_set(tmp_path):
    write_days(tmp_path, range(7))
    before = build(learning(tmp_path), 6)
    moved = day_of_log(4).with_columns(pl.col("user").reverse())
    moved.write_parquet(tmp_path / "log/day-04.parquet")
    assert file_of(build(learning(tmp_path), 6)) != file_of(before)


def test_two_builds_learn_the_same_to_the_bit(tmp_path):
    write_days(tmp_path, range(7))
    one, other = (build(learning(tmp_path), 6, out) for out in ("one", "other"))
    learned = {name: one.manifest.files[name].sha256 for name in one.manifest.files if "covisit" in name}
    assert len(learned) == 5, "the file, its vectors, who has one, and what was learned of them: settings and a mean"
    assert learned == {name: other.manifest.files[name].sha256 for name in learned}


def test_learned_day_by_day_is_learned_at_once(tmp_path):
    over = {"vectors": {"semantic_ids": {"code": {"set": "both", "levels": 1, "size": 3}}}}
    over["vectors"]["fusion"] = {"both": {"sets": ["covisit", "likewise"], "dim": 3, "keep_parts": True}}
    over["embeddings"] = {
        "covisit": COVISIT,
        "likewise": COVISIT | {"shift": 1.2, "reduce": {"method": "pca", "dim": 2}},
    }
    declared = learning(tmp_path, over)
    write_days(tmp_path, range(7))
    build(declared, 6, window=6)
    write_days(tmp_path, range(9))
    build(declared, 7, window=6)
    daily, whole = build(declared, 8, window=6), build(declared, 8, "whole", window=6)
    assert daily.manifest.days and file_of(daily) == file_of(whole)
    for kept, fresh in zip(meaning(daily), meaning(whole), strict=True):
        np.testing.assert_allclose(kept, fresh, atol=1e-5)


def meaning(built: FeatureSet) -> list[np.ndarray]:
    """Vectors of every set, and codes, in the order of the items' ids."""
    ids = pl.read_ipc(built.path / "vocabularies/items.arrow")
    order = np.argsort(ids[ids.columns[0]].to_numpy()) + 2
    return [*(built.vectors(one.name)[order] for one in built.schema.vectors), built.items["code_1"][order]]


def test_a_set_that_is_learned_anew_is_not_taken_for_another_encoder(tmp_path):
    write_days(tmp_path, range(9))
    over = {"embeddings": {"covisit": COVISIT | {"normalize": "l2"}}}
    earlier, later = build(learning(tmp_path, over), 5), build(learning(tmp_path, over), 8)
    assert other_encoders(earlier, later) == ()


def events_of(
    train: dict[str, list[Any]],
    tables: list[dict[str, list[Any]]],
    history: dict[str, Any] | None = None,
    tables_alone: bool = False,
) -> list[tuple[int, str]]:
    """The users' numbers and items that are learned from: rows of the training window, and events of tables."""
    rows = pl.DataFrame(train, schema={"_user": pl.String, "_item": pl.String, "_time": pl.Int64, "_event": pl.Boolean})
    earlier = tuple(pl.LazyFrame(one) for one in tables)
    declared = Contract.model_validate(
        {
            "name": "c",
            "interactions": {"path": "p", "user": "u", "item": "i", "time": "t", "label": "y"},
            "history": history or {},
        }
    )
    found = training_events(declared, Log(rows.lazy(), "p", len(rows), earlier), rows.lazy(), tables_alone)
    return list(zip(found.user_E.tolist(), found.items.to_list(), strict=True))


def columns(*events: tuple[str, str, int]) -> dict[str, list[Any]]:
    user, item, time = zip(*events, strict=True)
    return {"_user": list(user), "_item": list(item), "_time": list(time)}


ROWS = columns(("v", "b", 5), ("u", "c", 7), ("u", "a", 3), ("u", "b", 3), ("v", "x", 6))
TRAIN = ROWS | {"_event": [True, True, True, True, False]}


def test_events_stand_by_user_and_time_and_of_one_instant_by_item():
    assert events_of(TRAIN, []) == [(1, "a"), (1, "b"), (1, "c"), (2, "b")]


def test_events_of_tables_are_those_of_training_users_up_to_its_newest_row():
    table = columns(("u", "d", 1), ("u", "e", 7), ("u", "late", 8), ("stranger", "f", 1))
    assert events_of(TRAIN, [table]) == [(1, "d"), (1, "a"), (1, "b"), (1, "c"), (1, "e"), (2, "b")]


def test_events_of_tables_alone_are_those_before_the_oldest_row_of_training():
    table = columns(("u", "d", 1), ("u", "a", 2), ("v", "late", 3), ("stranger", "f", 1))
    assert events_of(TRAIN, [table], tables_alone=True) == [(1, "d"), (1, "a")]


def test_what_log_and_tables_have_both_counts_once():
    table = columns(("u", "a", 3), ("u", "d", 1), ("u", "a", 2))
    assert events_of(TRAIN, [table, columns(("u", "d", 1))]) == [
        (1, "d"),
        (1, "a"),
        (1, "a"),
        (1, "b"),
        (1, "c"),
        (2, "b"),
    ]


@pytest.mark.parametrize(("repeats", "kept"), [("keep", "aaba"), ("consecutive", "aba"), ("first", "ab")])
def test_repeats_are_those_of_histories(repeats, kept):
    train = columns(*(("u", item, time) for time, item in enumerate("aaba"))) | {"_event": [True] * 4}
    assert "".join(item for _, item in events_of(train, [], {"repeats": repeats})) == kept


def test_whole_numbers_of_any_width_are_one_id():
    train = columns(("u", "1", 3)) | {"_event": [True]}
    table = {"_user": ["u"], "_item": pl.Series(["2"], dtype=pl.Categorical), "_time": [1]}
    assert events_of(train, [table]) == [(1, "2"), (1, "1")]


def test_the_newest_events_are_learned_from(monkeypatch):
    monkeypatch.setattr("features.build.training_events.MOST_EVENTS", 2)
    assert events_of(TRAIN, [columns(("u", "d", 1), ("u", "e", 6))]) == [(1, "e"), (1, "c")]


@pytest.mark.parametrize(
    ("embeddings", "words"),
    [
        (
            {"covisit": {"learn": "history", "path": "v.npy"}},
            r"covisit: path: says where vectors are read, but .* learned",
        ),
        ({"covisit": {"learn": "history", "ids": "v.csv"}}, r"covisit: ids: says where vectors are read"),
        (
            {"covisit": {"path": "v.npy", "width": 8}},
            r"covisit: width: says how vectors are learned, but .* `learn: hist",
        ),
        ({"covisit": {"path": "v.npy", "shift": 2}}, r"covisit: shift: says how vectors are learned"),
        ({"covisit": {}}, r"covisit: path: name the file of the vectors, or `learn: history`"),
        ({"covisit": {"learn": "history", "shift": 0.5}}, r"covisit.shift: Input should be greater than or equal to 1"),
        ({"covisit": {"learn": "past"}}, r"covisit.learn: Input should be 'history' or 'tables'"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, embeddings, words):
    with pytest.raises(ConfigError, match=words):
        contract(tmp_path, {"embeddings": embeddings})


def test_a_log_without_tables_of_the_past_has_none_to_learn_from(tmp_path):
    words = r"embeddings.covisit.learn: `tables` reads the events of `history.tables`, and none is named. Name one, or"
    with pytest.raises(ConfigError, match=words):
        contract(tmp_path, {"embeddings": {"covisit": COVISIT | {"learn": "tables"}}})


def before(folder: Path, **over: Any) -> Contract:
    """The daily contract with a table of visits two days before the log, of which vectors are learned."""
    visits = day_of_log(0).with_columns(pl.col("time") - 2 * 86_400).select("user", "item", "time")
    visits.write_parquet(folder / "visits.parquet")
    table = {"path": "visits.parquet", "user": "user", "item": "item", "time": "time"}
    embeddings = {"covisit": COVISIT | {"learn": "tables"}, **over}
    return contract(folder, {"embeddings": embeddings, "history": {"events": "rating > 1", "tables": [table]}})


def test_no_row_of_training_moves_a_vector_that_is_learned_of_tables(tmp_path):
    write_days(tmp_path, range(4))
    first = build_feature_set(before(tmp_path), tmp_path / "out").feature_set
    moved = day_of_log(1).with_columns(pl.col("item").shuffle(1), rating=pl.lit(5))
    moved.write_parquet(tmp_path / "log/day-01.parquet")
    second = build_feature_set(before(tmp_path), tmp_path / "out").feature_set
    assert second.manifest.version != first.manifest.version
    assert file_of(second) == file_of(first)


def test_a_build_warns_of_vectors_that_leak_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("features.build.label_leakage.FEWEST_ROWS", 1)
    write_days(tmp_path, range(4))
    declared = learning(tmp_path, {"history": {"events": "rating > 1 and item < 120"}})
    monkeypatch.setattr("features.build.label_leakage.LOWEST_SHARE", 0.0)
    assert not any(
        "covisit" in one for one in build_feature_set(declared, tmp_path / "quiet").feature_set.manifest.findings
    )
    monkeypatch.setattr("features.build.label_leakage.LOWEST_SHARE", 100.0)
    (warning,) = [
        one for one in build_feature_set(declared, tmp_path / "out").feature_set.manifest.findings if "covisit" in one
    ]
    assert "training rows whose item has no vector" in warning


def test_sets_of_both_sources_are_learned_each_from_its_own(tmp_path):
    write_days(tmp_path, range(4))
    built = build_feature_set(before(tmp_path, lately=COVISIT), tmp_path / "out").feature_set
    learned = json.loads((built.path / "vectors.json").read_text())["learned"]
    assert learned["covisit"]["events"] < learned["lately"]["events"]
    assert file_of(built) != learned_file(built.path, "lately").read_bytes()


def test_a_given_history_has_no_events_to_learn_from(tmp_path):
    content = contract(tmp_path).model_dump(exclude_unset=True)
    content |= {"history": {"given": {"column": "past"}}, "embeddings": {"covisit": COVISIT}}
    with pytest.raises(ConfigError, match=r"embeddings.covisit.learn: needs the log's own events .* `history.given`"):
        validate(Contract, content, "daily.yaml")


def test_a_build_of_all_days_learns_too(tmp_path):
    write_days(tmp_path, range(4))
    built = build_feature_set(learning(tmp_path), tmp_path / "out").feature_set
    assert [one.name for one in built.schema.vectors] == ["covisit"] and built.schema.vectors[0].width == 4
