"""The build: point-in-time correct, fitted on the training window alone, the same on every run."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build import build as build_module
from features.build.build import build_feature_set
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.point_in_time.encoded_log import request_keys
from features.sources import log
from features.store.feature_set import MANIFEST, SPLITS, FeatureSet
from tests.features.raw import ROWS, START, Tables, decoded_rows, in_order, make_tables, raw_log, vectors_of

PCA = {"embeddings": {"text": {"reduce": {"method": "pca", "dim": 2}}}}
LATE = START + (ROWS // 3) * 60  # the first instant after the log's last


def events_of(built: FeatureSet) -> int:
    return sum(len(part["item"]) for part in built.events("train"))


def build(folder: Path, *args: Any) -> FeatureSet:
    return build_feature_set(raw_log(folder / "raw", *args), folder / "out").feature_set


def append_later(tables: Tables) -> None:
    """As many rows again, all after the log's last; half of them of users and items that are new."""
    rng = np.random.default_rng(5)
    new_items, new_users = np.arange(50, 60), np.arange(200, 205)
    later = tables["log"].with_columns(
        time=pl.Series(LATE + np.arange(ROWS) // 2),
        user_id=pl.Series(np.where(rng.random(ROWS) < 0.5, rng.choice(new_users, ROWS), tables["log"]["user_id"])),
        item_id=pl.Series(np.where(rng.random(ROWS) < 0.5, rng.choice(new_items, ROWS), tables["log"]["item_id"])),
        hour=pl.lit(99, pl.Int64),
        load=pl.lit(1e6),
    )
    tables["log"] = pl.concat([tables["log"], later])
    more = pl.DataFrame({"item_id": new_items, "genre": "western", "tags": [["a", "z"]] * 10, "price": 1e6})
    tables["items"] = pl.concat([more, tables["items"]])
    tables["users"] = pl.concat([pl.DataFrame({"user_id": new_users, "segment": "new"}), tables["users"]])
    tables["text"] = pl.concat([vectors_of(new_items, seed=9), tables["text"]])


def test_appending_later_events_changes_no_feature_of_an_earlier_row(tmp_path: Path) -> None:
    """Features, tables and vectors of everything known before stay bit for bit, with one training window."""
    first = build(tmp_path / "a", None, PCA)
    # Twice the rows: shares that end the training window at the same row as before.
    shares = {"split": {"valid": 0.1, "test": 0.55}}
    second = build(tmp_path / "b", append_later, PCA | shares)
    assert first.manifest.windows["train"] == second.manifest.windows["train"]

    def rows(built: FeatureSet) -> list[str]:
        return in_order([{**row, "split": None} for row in decoded_rows(built) if row["time"] < LATE * 1_000_000])

    assert len(rows(first)) == ROWS and rows(first) == rows(second)
    assert sum(len(row["history"]) for row in decoded_rows(first)) > ROWS  # there is something to compare
    old, new = Encoder.load(first.path), Encoder.load(second.path)
    items = old.items.values.to_list()
    here, there = ([encoder.items.index(item) for item in items] for encoder in (old, new))
    assert here != there  # the new ids sort in front, so numbering did move
    for name in first.items:
        np.testing.assert_array_equal(first.items[name][here], second.items[name][there], err_msg=name)
    np.testing.assert_array_equal(first.vectors("text")[here], second.vectors("text")[there])
    for user in old.users.values:
        for name in first.users:
            assert first.users[name][old.users.index(user)] == second.users[name][new.users.index(user)]


def brute_force(log: pl.DataFrame, max_len: int, keep: Any = lambda row: True) -> list[tuple[Any, ...]]:
    """(user, item, time, history items, history ratings) of every row, straight from the definition."""
    rows = log.to_dicts()
    events: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: r["time"]):
        if keep(row):
            events[row["user_id"]].append(row)
    result = []
    for row in rows:
        past = [e for e in events[row["user_id"]] if e["time"] < row["time"]][-max_len:]
        items, ratings = [e["item_id"] for e in past], [e["rating"] for e in past]
        result.append((row["user_id"], row["item_id"], row["time"] * 1_000_000, items, ratings))
    return sorted(result)


def histories(built: FeatureSet) -> list[tuple[Any, ...]]:
    event: Any = Encoder.load(built.path).event
    rating = event["rating"].vocabulary
    result = []
    for row in decoded_rows(built):
        ratings = [rating.value(index) for index in row["history.rating"]]
        result.append((row["user"], row["item"], row["time"], row["history"], ratings))
    return sorted(result)


@pytest.mark.parametrize("shuffled", [False, True])
def test_histories_equal_brute_force(tmp_path: Path, shuffled: bool) -> None:
    """Also for a log in no order of time; rows of one instant never see each other."""

    def change(tables: Tables) -> None:
        log = tables["log"].with_columns(user_id=pl.col("user_id") % 2)  # two users: many ties
        # Ties keep the log's order, so shuffle instants, not the rows within.
        order = np.random.default_rng(0).permutation(ROWS // 3)
        places = (order[:, None] * 3 + np.arange(3)).reshape(-1) if shuffled else np.arange(ROWS)
        tables["log"] = log[places]

    over = {"users": None}
    built = build(tmp_path, change, over)
    log = pl.read_parquet(tmp_path / "raw" / "log.parquet")
    ties = log.group_by("user_id", "time").len()["len"]
    assert (ties > 1).sum() > 20
    assert histories(built) == brute_force(log, max_len=5)


def test_an_event_filter_keeps_only_such_events(tmp_path: Path) -> None:
    built = build(tmp_path, None, {"history": {"events": "rating >= 4 AND hour <> 20", "max_len": 3}})
    log = make_tables()["log"]
    expected = brute_force(log, 3, lambda row: row["rating"] >= 4 and row["hour"] != 20)
    assert histories(built) == expected
    assert events_of(built) == log.filter((pl.col("rating") >= 4) & (pl.col("hour") != 20)).height


def test_an_event_filter_that_is_null_keeps_nothing(tmp_path: Path) -> None:
    def some_null(tables: Tables) -> None:
        hour = pl.when(pl.int_range(ROWS) % 2 == 0).then(None).otherwise("hour")
        tables["log"] = tables["log"].with_columns(hour=hour)

    built = build(tmp_path, some_null, {"history": {"events": "hour >= 0"}})
    assert events_of(built) == ROWS // 2
    assert sum(len(events["item"]) for events in built.events("train")) == ROWS // 2


@pytest.mark.parametrize("condition", ["label == 1", "label = 1 AND rating < 9", "_label = 1"])
def test_an_event_filter_may_name_the_computed_label(tmp_path: Path, condition: str) -> None:
    expected = brute_force(make_tables()["log"], 5, lambda row: row["rating"] >= 4)
    assert histories(build(tmp_path, None, {"history": {"events": condition}})) == expected


def test_beside_a_column_called_label_the_computed_one_is_still_to_be_had(tmp_path: Path) -> None:
    def opposite(tables: Tables) -> None:
        tables["log"] = tables["log"].with_columns(label=(pl.col("rating") < 4).cast(pl.Int64))

    expected = brute_force(make_tables()["log"], 5, lambda row: row["rating"] >= 4)
    assert histories(build(tmp_path, opposite, {"history": {"events": "_label = 1"}})) == expected


def test_a_computed_label_can_be_an_event_column(tmp_path: Path) -> None:
    built = build(tmp_path, None, {"history": {"columns": {"label": {"type": "categorical"}}}})
    for row in decoded_rows(built):
        assert set(row["history.label"]) <= {2, 3} and row["label"] in (0.0, 1.0)
    label = Encoder.load(built.path).event["label"]
    assert [label.encode_one(value)[0] for value in (0, 1, True)] == [2, 3, 3]


def late_only(tables: Tables) -> None:
    """The last tenth of the log brings a new hour, load, user and item; the tables bring their columns."""
    late = pl.int_range(ROWS) >= ROWS - ROWS // 10
    tables["log"] = tables["log"].with_columns(
        hour=pl.when(late).then(77).otherwise("hour"),
        load=pl.when(late).then(1e6).otherwise("load"),
        user_id=pl.when(late).then(900).otherwise("user_id"),
        item_id=pl.when(late).then(901).otherwise("item_id"),
        rating=pl.when(late).then(6).otherwise("rating"),
    )
    item = pl.DataFrame({"item_id": [901], "genre": ["western"], "tags": [["z", "a"]], "price": [1e6]})
    tables["items"] = pl.concat([tables["items"], item])
    tables["users"] = pl.concat([tables["users"], pl.DataFrame({"user_id": [900], "segment": ["late"]})])
    tables["text"] = pl.concat([tables["text"], vectors_of([901], seed=4)])


def test_what_only_the_test_window_has_is_unknown(tmp_path: Path) -> None:
    built = build(tmp_path, late_only)
    encoder: Any = Encoder.load(built.path)
    item, user = encoder.items.index(901), encoder.users.index(900)
    assert item >= 2 and user >= 2  # a catalogue row of its own ...
    assert built.items["item_id"][item] == built.users["user_id"][user] == 1  # ... without an id embedding
    assert built.items["genre"][item] == built.users["segment"][user] == 1
    assert built.items["tags"][item].tolist() == [encoder.item["tags"].vocabulary.index("a"), 0]
    assert built.present("text")[item]
    assert encoder.event["rating"].encode_one(6)[0] == encoder.context["hour"].encode_one(77)[0] == 1
    late = [row for row in decoded_rows(built) if row["user"] == 900]
    assert len(late) == ROWS // 10 and all(row["split"] == "test" and row["hour"] == 1 for row in late)
    train = make_tables()["log"][: int(ROWS * 0.7)]
    load = train["load"].to_numpy()
    assert (encoder.context["load"].mean, encoder.context["load"].deviation) == pytest.approx((load.mean(), load.std()))
    items = make_tables()["items"].filter(pl.col("item_id").is_in(train["item_id"].implode()))
    prices = np.log1p(items["price"].drop_nulls().to_numpy())
    price = encoder.item["price"]
    assert (price.mean, price.deviation) == pytest.approx((prices.mean(), prices.std()))
    row = encoder.items.index(103)
    assert built.items["price"][row] == pytest.approx((np.log(3) - prices.mean()) / prices.std(), rel=1e-6)


def test_rare_ids_have_no_embedding_of_their_own(tmp_path: Path) -> None:
    over = {"interactions": {"item_min_count": 8, "user_min_count": 11}}
    built = build(tmp_path, None, over)
    train = make_tables()["log"][: int(ROWS * 0.7)]
    encoder = Encoder.load(built.path)
    for name, column, own, catalogue, least in (
        ("item_id", "item_id", built.items, encoder.items, 8),
        ("user_id", "user_id", built.users, encoder.users, 11),
    ):
        counts = dict(train[column].value_counts().iter_rows())
        known = {value: bool(own[name][catalogue.index(value)] > 1) for value in catalogue.values}
        assert known == {value: counts.get(value, 0) >= least for value in catalogue.values}
        assert set(known.values()) == {True, False}


def test_tables_begin_with_padding_and_unknown(tmp_path: Path) -> None:
    built = build(tmp_path)
    assert built.items["genre"][:2].tolist() == [0, 1] and built.items["item_id"][:2].tolist() == [0, 1]
    assert built.items["tags"][:2].tolist() == [[0, 0], [1, 0]] and np.isnan(built.items["price"][:2]).all()
    assert not built.present("text")[:2].any() and not built.vectors("text")[:2].any()
    assert built.schema.items == len(built.items["genre"]) == 14 and built.schema.users == 10
    assert [field.name for field in built.schema.item] == ["item_id", "genre", "tags", "price"]
    assert min(int(rows["item"].min()) for split in SPLITS for rows in built.rows(split)) >= 2


def test_items_of_the_log_alone_are_in_the_catalogue(tmp_path: Path) -> None:
    def without_two(tables: Tables) -> None:
        silent = tables["items"][:1].with_columns(item_id=pl.lit(3, pl.Int64))
        tables["items"] = pl.concat([tables["items"].filter(~pl.col("item_id").is_in([101, 105])), silent])
        tables["text"] = tables["text"].filter(pl.col("item_id") != 102)

    built = build(tmp_path, without_two)
    items = Encoder.load(built.path).items
    assert items.values.to_list() == [3, *range(101, 113)]
    row = items.index(101)
    assert built.items["item_id"][row] >= 2 and built.items["genre"][row] == 1
    assert built.items["tags"][row].tolist() == [1, 0] and np.isnan(built.items["price"][row])
    assert built.present("text").sum() == 11 and not built.schema.vectors[0].complete


def test_neither_tables_nor_vectors_nor_context_are_needed(tmp_path: Path) -> None:
    def change(tables: Tables) -> None:
        tables["log"] = tables["log"].with_columns(pl.format("u{}", "user_id").alias("user_id"))

    over = {"items": None, "users": None}
    contract = raw_log(tmp_path / "raw", change, over).model_copy(update={"embeddings": {}})
    built = build_feature_set(contract, tmp_path / "out").feature_set
    assert built.schema.vectors == () and list(built.items) == ["item_id"] and list(built.users) == ["user_id"]
    assert {row["user"] for row in decoded_rows(built)} == {f"u{i}" for i in range(1, 9)}


def files(built: FeatureSet) -> dict[str, bytes]:
    found = {p.relative_to(built.path).as_posix(): p.read_bytes() for p in built.path.rglob("*") if p.is_file()}
    manifest = json.loads(found.pop(MANIFEST))
    manifest["seconds"], manifest["contract"]["root"] = None, None
    found = {name: content.replace(b"/a/raw", b"/b/raw") for name, content in found.items()}
    manifest["files"].pop("encoder.json")  # holds the contract with its root
    return found | {MANIFEST: json.dumps(manifest).encode()}


def test_two_builds_are_equal_byte_for_byte(tmp_path: Path) -> None:
    first, second = (build(tmp_path / name, None, PCA) for name in "ab")
    assert first.path.name == second.path.name
    assert files(first) == files(second)


@pytest.mark.parametrize(("part", "chunk"), [(30, 1_000), (30, 7), (1, 50), (1_000, 11)])
def test_parts_and_chunks_change_nothing_but_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, chunk: int
) -> None:
    whole = build(tmp_path / "a")
    monkeypatch.setattr(build_module, "ROWS_A_SHARD", part)
    monkeypatch.setattr(log, "ROWS_A_CHUNK", chunk)
    divided = build(tmp_path / "b")
    assert divided.manifest.shards == min(-(-ROWS // part), 64)
    assert in_order(decoded_rows(divided)) == in_order(decoded_rows(whole))
    assert divided.manifest.windows == whole.manifest.windows and events_of(divided) == events_of(whole)
    assert (divided.path / "profile.json").read_text() == (whole.path / "profile.json").read_text()
    assert not (divided.path / build_module.SCRATCH).exists()
    for i, rows in enumerate(divided.rows("train")):
        assert (rows["user"] % divided.manifest.shards == i).all()


@pytest.mark.parametrize(
    ("unit", "dtype"),
    [("s", None), ("ms", None), ("us", None), ("s", pl.Datetime("ms", "Europe/Paris")), ("s", pl.Datetime("ns"))],
)
def test_times_of_every_kind_are_the_same_instants(tmp_path: Path, unit: str, dtype: Any) -> None:
    factor = {"s": 1, "ms": 1_000, "us": 1_000_000}[unit]

    def change(tables: Tables) -> None:
        time = pl.col("time") * factor
        if dtype is not None:
            time = pl.from_epoch("time", "s").dt.replace_time_zone("UTC").cast(dtype)
        tables["log"] = tables["log"].with_columns(time=time)

    built = build(tmp_path, change, {"interactions": {"time_unit": unit}})
    assert min(row["time"] for row in decoded_rows(built)) == START * 1_000_000
    assert built.path.name.startswith("2023-11-14-")


def test_weight_and_request_are_carried(tmp_path: Path) -> None:
    def change(tables: Tables) -> None:
        tables["log"] = tables["log"].with_columns(
            importance=pl.when(pl.int_range(ROWS) == 0).then(None).otherwise(2.5), page=pl.format("p{}", "time")
        )

    built = build(tmp_path, change, {"interactions": {"weight": "importance", "request": "page"}})
    rows = [part for split in SPLITS for part in built.rows(split)]
    weights = np.concatenate([part["weight"] for part in rows])
    assert sorted(set(weights.tolist())) == [1.0, 2.5] and (weights == 1.0).sum() == 1
    pages = {(int(t), int(r)) for part in rows for t, r in zip(part["time"], part["request"], strict=True)}
    assert len(pages) == ROWS // 3 == len({request for _, request in pages})


def test_request_keys_are_the_same_in_every_build() -> None:
    """Days that are built apart are read together: a number a build counts up itself would mean two requests."""
    assert request_keys(pl.Series([7, None, 2**62])).tolist() == [7, -1, 2**62]
    # The first 8 bytes of sha256(b"p7") and of sha256(b""), without their last bit.
    expected = [int.from_bytes(hashlib.sha256(text).digest()[:8], "big") // 2 for text in (b"p7", b"")]
    assert request_keys(pl.Series(["p7", None, ""])).tolist() == [expected[0], -1, expected[1]]
    assert request_keys(pl.Series([None, None], dtype=pl.String)).tolist() == [-1, -1]


def test_a_request_id_below_zero_is_an_id_and_none_is_not() -> None:
    """Hashes that are stored with a sign: half of them are below 0."""
    keys = request_keys(pl.Series([-1, None, -(2**63), 5, -5, -1]))
    assert keys.tolist() == [2**63 - 1, -1, 0, 5, 2**63 - 5, 2**63 - 1]


def test_a_label_column_may_bear_any_name(tmp_path: Path) -> None:
    """Also one that SQL would read as something else."""

    def change(tables: Tables) -> None:
        tables["log"] = tables["log"].with_columns((pl.col("rating") >= 4).alias("click-through"))

    named = build(tmp_path / "a", change, {"interactions": {"label": "click-through"}})
    assert in_order(decoded_rows(named)) == in_order(decoded_rows(build(tmp_path / "b")))


@pytest.mark.parametrize("kind", ["csv", "tsv", "arrow"])
def test_every_kind_of_table_reads_the_same(tmp_path: Path, kind: str) -> None:
    def rewrite(name: str) -> None:
        table = pl.read_parquet(tmp_path / "b" / "raw" / f"{name}.parquet")
        path = tmp_path / "b" / "raw" / f"{name}.{kind}"
        table.write_ipc(path) if kind == "arrow" else table.write_csv(path, separator="\t" if kind == "tsv" else ",")

    paths = {"interactions": {"path": f"log.{kind}"}, "users": {"path": f"users.{kind}"}}
    contract = raw_log(tmp_path / "b" / "raw", None, paths)
    rewrite("log")
    rewrite("users")
    other = build_feature_set(contract, tmp_path / "b" / "out").feature_set
    assert in_order(decoded_rows(other)) == in_order(decoded_rows(build(tmp_path / "a")))


def test_a_glob_names_many_files(tmp_path: Path) -> None:
    contract = raw_log(tmp_path / "b", None, {"interactions": {"path": "log/*.parquet"}})
    (tmp_path / "b" / "log").mkdir()
    for i, piece in enumerate(make_tables()["log"].iter_slices(50)):
        piece.write_parquet(tmp_path / "b" / "log" / f"day-{i}.parquet")
    many = build_feature_set(contract, tmp_path / "b" / "out").feature_set
    assert in_order(decoded_rows(many)) == in_order(decoded_rows(build(tmp_path / "a")))


def test_a_path_may_hold_what_a_glob_would_read(tmp_path: Path) -> None:
    assert events_of(build(tmp_path / "[prod]")) == ROWS


def test_opening_what_is_no_feature_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a feature set"):
        FeatureSet.open(tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match=r"not a manifest of format 6 \(\d+ problems\)"):
        FeatureSet.open(tmp_path)


def test_a_feature_set_of_another_format_is_refused(tmp_path: Path) -> None:
    built = build(tmp_path)
    manifest = json.loads((built.path / MANIFEST).read_text())
    (built.path / MANIFEST).write_text(json.dumps(manifest | {"format": 5}))
    with pytest.raises(
        DataError, match=r"MANIFEST\.json: is of format 5, .* reads format 6\. Build the feature set again"
    ):
        FeatureSet.open(built.path)


def test_a_current_that_names_a_missing_version_is_explained(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_text("2026-01-31-aaaaaaaa")
    with pytest.raises(DataError, match=r"CURRENT: names '2026-01-31-aaaaaaaa', and there is no such folder"):
        FeatureSet.open(tmp_path)


@pytest.mark.parametrize(
    ("negatives", "splits"),
    [({"how": "in_window", "window": "1s"}, "train, valid, test"), ({"per_positive": 1, "how": "uniform"}, None)],
)
def test_positives_for_which_no_negative_was_drawn_are_told_of(
    tmp_path: Path, negatives: dict[str, Any], splits: str | None
) -> None:
    found = build(tmp_path, None, {"interactions": {"label": None, "negatives": negatives}}).manifest.findings
    told = [finding for finding in found if finding.startswith("interactions.negatives: ")]
    expected = f"interactions.negatives: none could be drawn in {splits}: all rows are positives"
    assert [finding.partition(". ")[0] for finding in told] == ([] if splits is None else [expected])
