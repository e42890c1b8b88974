"""The simulated log: its files, its uniqueness, and labels that follow the written truth."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from features.calendar import DAY
from features.contract.contract import load_contract
from features.errors import ConfigError
from features.simulator import simulate as simulator
from features.simulator import traffic as simulator_traffic
from features.simulator.simulate import FILES, SimulationSummary, simulate
from features.simulator.world import DEVICES, END, START, build_world, repeated, with_changing_tastes

ROWS, USERS, ITEMS = 60_000, 1_000, 800
CONTRACT = Path(__file__).parents[3] / "conf" / "data" / "simulated.yaml"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationSummary]:
    out = tmp_path_factory.mktemp("simulated")
    return out, simulate(out, rows=ROWS, users=USERS, items=ITEMS, seed=3)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_files_have_the_promised_columns(log: tuple[Path, SimulationSummary]) -> None:
    out, summary = log
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    stamp = pl.Datetime("us", "UTC")
    schemas = {name: pl.read_parquet_schema(out / name) for name in FILES}
    assert schemas["interactions.parquet"] == {
        "user_id": pl.Int64, "item_id": pl.Int64, "timestamp": stamp, "hour": pl.Int8,
        "device": pl.String, "position": pl.Int16, "clicked": pl.Int8,
        "liked": pl.Int8, "seconds": pl.Float32,
    }  # fmt: skip
    assert schemas["items.parquet"] == {
        "item_id": pl.Int64, "category": pl.String, "tags": pl.List(pl.String),
        "price": pl.Float64, "created": stamp,
    }  # fmt: skip
    assert schemas["users.parquet"] == {"user_id": pl.Int64, "age_group": pl.String, "country": pl.String}
    assert schemas["text.parquet"] == {"item_id": pl.Int64, "vector": pl.Array(pl.Float32, 64)}
    assert schemas["image.parquet"] == {"item_id": pl.Int64, "vector": pl.Array(pl.Float32, 96)}
    assert schemas["truth.parquet"] == {
        "user_id": pl.Int64, "item_id": pl.Int64, "timestamp": stamp, "probability": pl.Float32,
    }  # fmt: skip
    counts = {name: pl.scan_parquet(out / name).select(pl.len()).collect().item() for name in FILES}
    assert counts["interactions.parquet"] == counts["truth.parquet"] == summary.rows == ROWS
    assert counts["users.parquet"] == summary.users == USERS
    assert counts["items.parquet"] == counts["text.parquet"] == summary.items == ITEMS


def test_the_contract_in_conf_names_existing_files_and_columns(log: tuple[Path, SimulationSummary]) -> None:
    contract = load_contract(CONTRACT, root=str(log[0]))
    interactions = contract.interactions
    columns = pl.read_parquet_schema(contract.resolve(interactions.path))
    named = {interactions.user, interactions.item, interactions.time, interactions.label}
    of_events = {name for name, column in contract.history.columns.items() if column.type != "residual"}
    assert named | set(interactions.context) | of_events <= set(columns)
    for table in (contract.items, contract.users):
        assert table is not None
        assert {table.id, *table.columns} <= set(pl.read_parquet_schema(contract.resolve(table.path)))
    for vectors in contract.embeddings.values():
        assert {vectors.id, vectors.vector} <= set(pl.read_parquet_schema(contract.resolve(vectors.path)))
    assert contract.truth is not None
    assert contract.truth.probability in pl.read_parquet_schema(contract.resolve(contract.truth.path))


def test_log_is_ordered_unique_and_refers_to_the_tables(log: tuple[Path, SimulationSummary]) -> None:
    out, _ = log
    rows = pl.read_parquet(out / "interactions.parquet")
    key = ["user_id", "item_id", "timestamp"]
    assert rows["timestamp"].is_sorted()
    assert not rows.select(key).is_duplicated().any()
    assert rows.select(key).equals(pl.read_parquet(out / "truth.parquet").select(key))
    assert set(rows["item_id"]) <= set(pl.read_parquet(out / "items.parquet")["item_id"])
    assert set(rows["user_id"]) <= set(pl.read_parquet(out / "users.parquet")["user_id"])
    times = rows["timestamp"].to_physical()
    # The last sessions may run on past the end, at most a few minutes a page.
    assert (times >= START).all() and (times < END + DAY // 24).all()
    assert (rows["timestamp"].dt.hour() == rows["hour"]).all()


def test_a_page_is_one_user_one_device_and_positions_from_one(log: tuple[Path, SimulationSummary]) -> None:
    rows = pl.read_parquet(log[0] / "interactions.parquet")
    pages = rows.group_by("user_id", "timestamp").agg(
        pl.col("position").sort(), pl.col("device").n_unique(), size=pl.len()
    )
    assert (pages["device"] == 1).all()
    assert (pages["position"] == pages.select(pl.int_ranges(1, pl.col("size") + 1, dtype=pl.Int16)).to_series()).all()
    # Only the last page may be cut short, to give exactly the rows asked for.
    assert pages["size"].max() == 8 and (pages["size"] < 4).sum() <= 1
    assert set(rows["device"].unique()) == set(DEVICES)


def test_items_are_not_shown_before_they_exist(log: tuple[Path, SimulationSummary]) -> None:
    items = pl.read_parquet(log[0] / "items.parquet")
    rows = pl.read_parquet(log[0] / "interactions.parquet").join(items, on="item_id")
    assert (rows["timestamp"] >= rows["created"]).all()


def test_test_window_has_items_without_training_rows(log: tuple[Path, SimulationSummary]) -> None:
    rows = pl.read_parquet(log[0] / "interactions.parquet")
    seen = rows[: int(0.8 * ROWS)]["item_id"].unique()
    new = ~np.isin(rows[int(0.9 * ROWS) :]["item_id"].to_numpy(), seen.to_numpy())
    assert 0.06 < new.mean() < 0.25


def test_clicks_follow_the_truth(log: tuple[Path, SimulationSummary]) -> None:
    out, summary = log
    clicked = pl.read_parquet(out / "interactions.parquet")["clicked"].to_numpy()
    probability = pl.read_parquet(out / "truth.parquet")["probability"].to_numpy().astype(float)
    assert summary.click_rate == pytest.approx(clicked.mean())
    assert 0.15 < summary.click_rate < 0.30
    assert summary.optimal_auc == pytest.approx(roc_auc_score(clicked, probability), abs=1e-5)
    assert 0.78 < summary.optimal_auc < 0.85
    # Within each tenth of the probabilities, clicks differ from their expectation by chance alone (4.5 σ).
    for tenth in np.array_split(np.argsort(probability), 10):
        expected, deviation = (
            probability[tenth].sum(),
            np.sqrt((probability * (1 - probability))[tenth].sum()),
        )
        assert abs(clicked[tenth].sum() - expected) < 4.5 * deviation


def test_likes_and_long_views_follow_clicks_and_the_match(log: tuple[Path, SimulationSummary]) -> None:
    rows = pl.read_parquet(log[0] / "interactions.parquet")
    rows = rows.with_columns(pl.read_parquet(log[0] / "truth.parquet")["probability"])
    skipped, clicked = rows.filter(clicked=0), rows.filter(clicked=1)
    assert skipped["liked"].sum() == 0 and skipped["seconds"].sum() == 0
    assert 0.2 < clicked["liked"].mean() < 0.6 and 0.2 < (clicked["seconds"] > 30).mean() < 0.6
    for name in ("liked", "seconds"):
        assert clicked.select(pl.corr(name, "probability", method="spearman")).item() > 0.1


def test_world_depends_on_interests() -> None:
    """Swapping users' interests alone moves the probabilities of the same impressions."""
    world = build_world(np.random.default_rng(0), users=400, items=300)
    rng = np.random.default_rng(1)
    user, item = rng.integers(0, 400, size=5_000), rng.integers(0, 300, size=5_000)
    zeros, ones = np.zeros(5_000, dtype=int), np.ones(5_000, dtype=int)
    shown = {"item": item, "hour": zeros, "device": zeros, "position": ones, "popularity": zeros, "passed": zeros}
    probability = world.probability(user=user, **shown)
    users = world.users
    users.interest[:] = users.interest[::-1].copy()
    swapped = world.probability(user=user, **shown)
    assert np.abs(probability - swapped).mean() > 0.05


def test_missing_values_and_vectors(log: tuple[Path, SimulationSummary]) -> None:
    out, _ = log
    items, image = pl.read_parquet(out / "items.parquet"), pl.read_parquet(out / "image.parquet")
    assert 0.09 < 1 - len(image) / ITEMS < 0.16
    assert set(image["item_id"]) < set(items["item_id"])
    price = items["price"].drop_nulls().to_numpy()
    assert 0.04 < 1 - len(price) / ITEMS < 0.13
    assert np.isfinite(price).all() and (price > 0).all()
    tags = items["tags"].to_list()
    assert any(not of_item for of_item in tags)
    for of_item in tags:
        assert len(of_item) <= 5 and None not in of_item and len(set(of_item)) == len(of_item)
    entries = image["vector"].to_numpy()
    assert np.isfinite(entries).all() and np.quantile(entries, 0.02) > 0.5 and np.quantile(entries, 0.98) < 2.5
    users = pl.read_parquet(out / "users.parquet")
    assert 0 < users["age_group"].null_count() / USERS < 0.08


def test_same_seed_same_bytes_and_another_seed_another_log(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"rows": 3_000, "users": 100, "items": 60}
    for name, seed in {"a": 5, "b": 5, "c": 6}.items():
        simulate(tmp_path / name, **arguments, seed=seed)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert all(hashes(tmp_path / "a")[name] != hashes(tmp_path / "c")[name] for name in FILES)


@pytest.mark.parametrize(("rows", "users", "items"), [(1, 1, 30), (37, 5, 30), (1_000, 1, 30), (4_000, 4_000, 31)])
def test_smallest_logs_have_exactly_the_rows_asked_for(tmp_path: Path, rows: int, users: int, items: int) -> None:
    calls: list[tuple[int, int]] = []
    simulate(tmp_path, rows=rows, users=users, items=items, progress=lambda *done: calls.append(done))
    log = pl.read_parquet(tmp_path / "interactions.parquet")
    assert len(log) == rows and not log.select("user_id", "item_id", "timestamp").is_duplicated().any()
    assert calls[-1] == (rows, rows) and calls == sorted(calls)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 99}, "--rows 99: fewer rows than the 100 users"),
        ({"users": 0}, "--users 0"),
        ({"items": 29}, "--items 29: simulate at least 30 items"),
        ({"seed": -1}, "--seed -1"),
        ({"drift": 1.5}, "drift 1.5: the share of the way"),
    ],
)
def test_impossible_arguments_are_explained_and_write_nothing(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tmp_path / "log", **{"rows": 1_000, "users": 100, "items": 60, "seed": 1, **change})
    assert not (tmp_path / "log").exists()


def test_out_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("mine")
    with pytest.raises(ConfigError, match="a file, not a folder"):
        simulate(tmp_path / "log", rows=1_000, users=100, items=60)
    assert (tmp_path / "log").read_text() == "mine"


def test_an_interrupted_simulation_leaves_the_earlier_log_as_it_was(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"rows": 1_000, "users": 100, "items": 60}
    simulate(tmp_path, **arguments, seed=1)
    before = hashes(tmp_path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, **arguments, seed=2, progress=interrupt)
    assert hashes(tmp_path) == before


def test_small_row_groups_change_nothing_but_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"rows": 2_000, "users": 100, "items": 60}
    simulate(tmp_path / "a", **arguments)
    monkeypatch.setattr(simulator, "ROW_GROUP", 100)
    simulate(tmp_path / "b", **arguments)
    for name in FILES:
        assert pl.read_parquet(tmp_path / "a" / name).equals(pl.read_parquet(tmp_path / "b" / name))


def test_repeated_marks_all_but_the_first() -> None:
    values = np.array([[3, 1, 3, 3], [1, 2, 3, 4], [2, 2, 1, 1]])
    expected = [[False, False, True, True], [False] * 4, [False, True, False, True]]
    assert repeated(values).tolist() == expected


def test_binned_auc_by_hand() -> None:
    # Bins rising: negatives 2, 1, 0; positives 0, 1, 1. Pairs won: 1 * (2 + half of 1) + 1 * 3 = 5.5 of 6.
    auc = simulator._binned_auc(np.array([0, 1, 1]), np.array([2, 1, 0]))
    assert auc == pytest.approx(5.5 / 6)
    assert np.isnan(simulator._binned_auc(np.array([0, 0]), np.array([1, 1])))


def test_distinct_times_moves_only_collisions() -> None:
    user = np.array([7, 7, 7, 8, 7])
    at = np.array([5_000, 5_000, 6_000, 5_000, 9_000])
    assert simulator_traffic._distinct_times(user, at).tolist() == [5_000, 6_000, 7_000, 5_000, 9_000]


def test_interests_go_as_far_as_they_should_by_the_end_of_the_window() -> None:
    """Half of the way at the end of it, none at its beginning; who stays is as in a world that stays."""
    world = build_world(np.random.default_rng(0), users=50, items=40)
    changing = with_changing_tastes(world, np.random.default_rng(1), drift=0.5)
    assert changing.tastes is not None
    user, item = np.repeat(np.arange(50), 40), np.tile(np.arange(40), 50)
    start, end = np.zeros(2_000), np.ones(2_000)
    np.testing.assert_allclose(changing.match(user, item, start), world.match(user, item, start), atol=1e-6)
    assert (world.match(user, item, end) == world.match(user, item, start)).all()
    halfway = world.users.interest + changing.tastes.later
    halfway /= np.linalg.norm(halfway, axis=-1, keepdims=True)
    cosine = np.einsum("rjd,rd->rj", halfway[user], world.items.latent[item])
    expected = np.log((world.users.interest_weight[user] * np.exp(6 * cosine)).sum(axis=1)) / 6
    np.testing.assert_allclose(changing.match(user, item, end), expected, atol=1e-6)
    assert np.abs(expected - world.match(user, item, end)).mean() > 0.05


def test_a_log_of_changing_tastes_follows_its_truth(tmp_path: Path) -> None:
    """Pages are the same; only what is clicked differs, and the more the later."""
    for name, drift in (("stays", 0.0), ("changes", 1.0)):
        simulate(tmp_path / name, rows=20_000, users=200, items=100, seed=2, drift=drift)
    stays, changes = (pl.read_parquet(tmp_path / name / "truth.parquet") for name in ("stays", "changes"))
    assert stays.drop("probability").equals(changes.drop("probability"))
    apart = (stays["probability"] - changes["probability"]).abs().to_numpy()
    assert apart[:2_000].mean() < 0.02 < 0.05 < apart[-2_000:].mean()
    clicks = pl.read_parquet(tmp_path / "changes" / "interactions.parquet")["clicked"].mean()
    mean = changes["probability"].mean()
    # Five standard deviations of a mean of 20,000 clicks.
    assert abs(clicks - mean) < 5 * (mean * (1 - mean) / 20_000) ** 0.5  # type: ignore[operator]
