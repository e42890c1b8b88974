"""Drift: its measures by hand, bins of feature sets fitted apart, no alarms without drift, an alarm for each plant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.errors import ConfigError
from features.monitor.drift.bins import Common, in_common
from features.monitor.drift.compare import Drift, DriftSettings, RowSelection, compare
from features.monitor.drift.measures import jensen_shannon, measure_column, psi
from features.monitor.drift.noise import Counts, noise
from features.monitor.profile.bins import GROUPS, Edges, Grid, Values, rest_bin
from features.monitor.profile.file import Profile
from features.simulator.simulate import simulate
from tests.features.by_hand import CATEGORY, LOG_COST, NUMBER, TAGS, profiled

DAY = 86_400_000_000
COLUMNS = {
    "context": {"device": CATEGORY, "position": CATEGORY, "load": NUMBER},
    "event": {"clicked": CATEGORY},
    "item": {"category": CATEGORY, "tags": TAGS, "price": LOG_COST},
    "user": {"age_group": CATEGORY, "country": CATEGORY},
}


def even(total: list[float], clusters: int = 10) -> Counts:
    """Counts without any spread between days or users."""
    rows = np.tile(np.array(total) / clusters, (clusters, 1))
    return Counts(rows, rows)


def test_measures_by_hand() -> None:
    base, new = np.array([50_000.0, 50_000.0]), np.array([25_000.0, 75_000.0])
    # (.5 - .25) ln 2 + (.5 - .75) ln(2/3) = .25 ln 3
    assert psi(base, new) == pytest.approx(0.25 * np.log(3), rel=1e-4)
    # .5 [.5 ln(.5/.375) + .5 ln(.5/.625)] + .5 [.25 ln(.25/.375) + .75 ln(.75/.625)] = 0.0338
    assert jensen_shannon(base / 1e5, new / 1e5) == pytest.approx(0.033822, abs=1e-6)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(np.log(2))
    # .25^2 / .375 and .25^2 / .625
    assert noise(even([50, 50]), even([25, 75])).squares.tolist() == pytest.approx([0.0625 / 0.375, 0.0625 / 0.625])


def test_psi_of_independent_rows_is_what_is_subtracted() -> None:
    """Yurdakul: (K - 1)(1/n + 1/m) on average; and chances are spread evenly over [0, 1]."""
    rng = np.random.default_rng(0)
    shares, n, m = np.array([0.1, 0.2, 0.3, 0.4]), 2_000, 1_000
    found, chances, doubled = [], [], []
    for _ in range(1_500):
        base, new = rng.multinomial(n, shares).astype(float), rng.multinomial(m, shares).astype(float)
        found.append(psi(base, new))
        found_noise = noise(Counts(base[None], base[None]), Counts(new[None], new[None]))
        assert found_noise.expected == pytest.approx(3 * (1 / n + 1 / m))
        chances.append(found_noise.spreads[0].chance(float(found_noise.squares.sum())))
        doubled.append(found_noise.chance)
    assert np.mean(found) == pytest.approx(3 * (1 / n + 1 / m), rel=0.06)
    assert np.quantile(chances, [0.05, 0.5, 0.95]) == pytest.approx([0.05, 0.5, 0.95], abs=0.03)
    # Of two tests, the better one counts twice: never more alarms than promised.
    assert np.mean(np.array(doubled) < 0.05) <= 0.06


def test_noise_between_users_by_the_literal_formula() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(1, 400, (GROUPS, 2)).astype(float)
    side = Counts(groups.sum(axis=0, keepdims=True), groups)
    # Ratio estimator: var(p) = G/(G-1) sum (n_g/n)^2 (p_g - p)^2, once for each side.
    total, p = groups.sum(), groups[:, 1].sum() / groups.sum()
    variance = 0.0
    for zeros, ones in groups:
        variance += ((zeros + ones) / total * (ones / (zeros + ones) - p)) ** 2
    variance *= GROUPS / (GROUPS - 1)
    spread = noise(side, side)
    assert spread.expected == pytest.approx(2 * variance * (1 / p + 1 / (1 - p)))
    # Half of the rows chosen: twice the noise on that side.
    half = Counts(side.periods / 2, groups)
    assert noise(side, half).expected == pytest.approx(1.5 * spread.expected)


def test_noise_between_days_reaches_a_side_of_one_day() -> None:
    rng = np.random.default_rng(2)
    truth = 0.3 + 0.05 * rng.normal(size=400)
    days = np.stack([1 - truth, truth], axis=1) * 10_000
    smooth = np.tile(days.sum(axis=0) / GROUPS, (GROUPS, 1))
    many, one = Counts(days, smooth), Counts(days[:1], smooth / 400)
    # A day deviates by 0.05; the mean of 400 by 0.0025.
    expected = 0.05**2 * (1 + 1 / 400) * (1 / 0.3 + 1 / 0.7)
    assert noise(many, one).expected == pytest.approx(expected, rel=0.15)


def test_names_are_matched_and_the_rest_is_found_by_its_hash() -> None:
    base_bins, new_bins = Values(names=("a", "b"), rest=8), Values(names=("b", "c"), rest=8)
    base, new = even([30, 50, *[0] * 8, 7]), even([60, 40, *[0] * 8, 9])
    common = in_common(base_bins, base, new_bins, new)
    assert common is not None and common.names[0] == "b" and len(common.names) <= 4
    shares = {name: i for i, name in enumerate(common.names)}
    a, c = (f"others {rest_bin(name) + 1}" for name in "ac")
    assert common.base.total[shares[a]] == 30 and common.new.total[shares[c]] == 40
    assert common.base.rows == 80  # the missing ones are tested apart


def test_a_value_is_named_where_the_other_side_named_all_it_saw() -> None:
    common = in_common(Values(names=("a", "b")), even([50, 50, 0]), Values(names=("b", "c")), even([70, 30, 0]))
    assert common is not None and common.names[:3] == ("a", "b", "c")
    assert common.base.total[:3].tolist() == [50, 50, 0] and common.new.total[:3].tolist() == [0, 70, 30]


def test_rare_values_are_judged_together() -> None:
    names = tuple(f"v{i:02d}" for i in range(30))
    counts = even([9_000, *[30] * 29, 0])
    common = in_common(Values(names=names), counts, Values(names=names), counts)
    assert common is not None and common.names == ("v00", "rare values")


def test_grids_of_different_width_meet_at_the_coarser() -> None:
    fine, coarse = Grid(step=-2, first=0, inner=8), Grid(step=0, first=0, inner=2)
    #  low | 8 bins of a quarter | high | missing      low | 2 bins of one | high | missing
    base = even([0, 10, 10, 10, 10, 20, 20, 20, 20, 0, 5])
    new = even([0, 40, 80, 0, 5])
    common = in_common(fine, base, coarse, new)
    assert common is not None
    assert common.base.shares.tolist() == pytest.approx([1 / 3, 2 / 3]) == common.new.shares.tolist()


def test_buckets_with_other_edges_are_no_drift_by_themselves() -> None:
    numbers = np.random.default_rng(0).lognormal(size=100_000)

    def bucketed(edges: list[float], values: np.ndarray) -> Counts:
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 2)
        return even(counts.astype(float).tolist())

    ours, theirs = [0.3, 0.6, 1.0, 2.0, 4.0], [0.25, 0.7, 1.0, 1.5, 3.0]
    same = in_common(
        Edges(edges=tuple(ours)), bucketed(ours, numbers), Edges(edges=tuple(theirs)), bucketed(theirs, numbers)
    )
    assert same is not None and len(same.names) == 6
    assert psi(same.base.total, same.new.total) < 1e-4
    far = [edge * 1_000 for edge in ours]
    moved = in_common(
        Edges(edges=tuple(ours)), bucketed(ours, numbers), Edges(edges=tuple(far)), bucketed(far, numbers * 1_000)
    )
    assert moved is not None and psi(moved.base.total, moved.new.total) > 1


def test_a_column_of_another_kind_cannot_be_compared() -> None:
    grid, values = Grid(step=0, first=0, inner=2), Values(names=("a",))
    assert measure_column("item.x", grid, values, even([1] * 5), even([1, 1])) is None


# The rest stands on one simulated log.


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("raw")
    simulate(folder, rows=24_000, users=500, items=300, seed=3)
    log = pl.read_parquet(folder / "interactions.parquet").select(
        user="user_id",
        item="item_id",
        time=pl.col("timestamp").dt.epoch("us"),
        label=pl.col("clicked").cast(pl.Float32),
        device="device",
        position="position",
        clicked="clicked",
        load=pl.col("hour").cast(pl.Float64),
        split=pl.lit(0),
    )
    # Its last hours are no whole day.
    log = log.filter(pl.col("time") // DAY < pl.col("time").max() // DAY)
    return {
        "log": log,
        "items": pl.read_parquet(folder / "items.parquet").rename({"item_id": "item"}),
        "users": pl.read_parquet(folder / "users.parquet").rename({"user_id": "user"}),
        "image": pl.read_parquet(folder / "image.parquet"),
    }


Profiler = Callable[..., Profile]


@pytest.fixture(scope="module")
def profile(raw: dict[str, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Profiler:
    folder = tmp_path_factory.mktemp("set")

    def make(log: pl.DataFrame, items: pl.DataFrame | None = None, image: set[int] | None = None) -> Profile:
        vectors: Mapping[str, set[Any]] = {"image": set(raw["image"]["item_id"]) if image is None else image}
        return profiled(folder, log, raw["items"] if items is None else items, raw["users"], COLUMNS, vectors)

    return make


def halves(rng: np.random.Generator, keys: np.ndarray) -> np.ndarray:
    """Which entries belong to a random half of the distinct keys."""
    distinct = np.unique(keys)
    return np.isin(keys, rng.permutation(distinct)[: len(distinct) // 2])


def between_splits(profile: Profile) -> Drift:
    return compare(profile, profile, DriftSettings(), RowSelection("train"), RowSelection("valid"))


@pytest.mark.parametrize(
    ("halves_of_users", "chosen_days", "alarms"), [(6, 12, 1), pytest.param(60, 100, 3, marks=pytest.mark.slow)]
)
def test_at_most_one_comparison_in_a_hundred_alarms_without_drift(
    raw: dict[str, pl.DataFrame], profile: Profiler, halves_of_users: int, chosen_days: int, alarms: int
) -> None:
    """302 comparisons: halves of the users, halves of the days, weeks of random days, each day with all others.

    Of a tenth as many, one may alarm by chance.
    """
    rng = np.random.default_rng(7)
    log = raw["log"]
    users, days = log["user"].to_numpy(), log["time"].to_numpy() // DAY
    drifts: list[Drift] = []
    for _ in range(halves_of_users):
        mine = halves(rng, users)
        # Two feature sets, each with its own vocabularies and scales.
        drifts.append(compare(profile(log.filter(pl.Series(mine))), profile(log.filter(pl.Series(~mine)))))
    every_day = np.unique(days)
    chosen = [halves(rng, days) for _ in range(chosen_days)]
    chosen += [np.isin(days, rng.permutation(every_day)[:7]) for _ in range(chosen_days)]
    chosen += [days == day for day in every_day[:chosen_days]]
    for some_rows in chosen:
        drifts.append(between_splits(profile(log.with_columns(split=pl.Series(some_rows.astype(int))))))
    assert len(drifts) == halves_of_users + 2 * chosen_days + min(chosen_days, len(every_day))
    assert sum(drift.found for drift in drifts) <= alarms


def test_rows_taken_as_independent_would_alarm(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    """The test above can fail: by multinomial noise alone, user columns of two halves look like drift."""
    rng = np.random.default_rng(8)
    log = raw["log"]
    alarms = 0
    for _ in range(10):
        mine = halves(rng, log["user"].to_numpy())
        both = profile(log.with_columns(split=pl.Series(mine.astype(int))))
        column = "user.country"
        sides = [
            Counts(table, table)
            for table in (
                np.array(
                    [sum(np.array(row or (0,) * both.bins[column].size) for row in both.tallies[name][column].periods)]
                )
                for name in ("train", "valid")
            )
        ]
        alarms += noise(*sides).chance < 0.001 / 30
    assert alarms >= 3


def halved(raw: dict[str, pl.DataFrame], profile: Profiler) -> tuple[Profile, pl.DataFrame]:
    """The base, of half of the users, and the rows of the other half."""
    mine = pl.Series(halves(np.random.default_rng(9), raw["log"]["user"].to_numpy()))
    return profile(raw["log"].filter(mine)), raw["log"].filter(~mine)


def some(log: pl.DataFrame, share: float) -> pl.Expr:
    return pl.lit(pl.Series(np.random.default_rng(10).random(log.height) < share))


PLANTS: dict[str, tuple[str, str, Callable[[pl.DataFrame], dict[str, pl.Expr]]]] = {
    "the mix of devices moves": (
        "context.device",
        "psi",
        lambda log: {"device": pl.when(some(log, 0.25)).then(pl.lit("tv")).otherwise("device")},
    ),
    "a number in another unit": ("context.load", "psi", lambda log: {"load": pl.col("load") * 1_000}),
    "30 % more clicks": (
        "label",
        "label_rate",
        lambda log: {"label": pl.when(some(log, 0.3 * 0.2575 / 0.7425)).then(1.0).otherwise("label")},
    ),
    "10 % on a device never seen": (
        "context.device",
        "psi",
        lambda log: {"device": pl.when(some(log, 0.1)).then(pl.lit("watch")).otherwise("device")},
    ),
    "5 % of a column missing": (
        "context.device",
        "missing",
        lambda log: {"device": pl.when(some(log, 0.05)).then(None).otherwise("device")},
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_change_is_found_and_nothing_else(
    raw: dict[str, pl.DataFrame], profile: Profiler, plant: str
) -> None:
    base, log = halved(raw, profile)
    column, measure, change = PLANTS[plant]
    drift = compare(base, profile(log.with_columns(**change(log))))
    assert [one.column for one in drift.columns if one.alarm] == [column] == [drift.columns[0].column]
    found = drift.columns[0].change(measure)
    assert found is not None and found.alarm and found.size >= found.threshold


def test_missing_vectors_and_prices_of_another_unit_are_found(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    base, log = halved(raw, profile)
    items = raw["items"].with_columns(pl.col("price") * 1_000)
    all_items = raw["image"]["item_id"].to_list()
    left = set(np.random.default_rng(11).permutation(all_items)[len(all_items) // 5 :].tolist())
    drift = compare(base, profile(log, items, left))
    alarms = {one.column for one in drift.columns if one.alarm}
    assert alarms == {"item.price", "vectors.image", "vectors.image (items)"}


def test_a_set_does_not_drift_from_itself(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    base, _ = halved(raw, profile)
    drift = compare(base, base)
    assert not drift.found and drift.base_rows == drift.new_rows == sum(split.rows for split in base.splits.values())
    assert {one.verdict for one in drift.columns} == {"stable"}
    assert {one.column for one in drift.columns} == {*base.bins, "vectors.image (items)"}


def test_a_new_value_that_sorts_first_shifts_indices_and_nothing_else(
    raw: dict[str, pl.DataFrame], profile: Profiler
) -> None:
    base, _ = halved(raw, profile)
    mine = halves(np.random.default_rng(9), raw["log"]["user"].to_numpy())
    log = raw["log"].filter(pl.Series(mine))
    rare = pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("aaa")).otherwise("device")
    drift = compare(base, profile(log.with_columns(device=rare)))
    device = next(one for one in drift.columns if one.column == "context.device")
    change = device.change("psi")
    assert device.verdict == "stable" and change is not None and change.size < 1e-3


def test_a_column_on_one_side_alone_is_drift(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    base, _ = halved(raw, profile)
    less = base.model_copy(update={"bins": {name: one for name, one in base.bins.items() if name != "item.price"}})
    for pair, verdict in (((base, less), "only in base"), ((less, base), "only in new")):
        drift = compare(*pair)
        assert drift.found and drift.columns[0].column == "item.price" and drift.columns[0].verdict == verdict


def test_the_newest_days_of_a_split_can_be_compared(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    log = raw["log"]
    day = log["time"] // DAY
    late = day > day.max() - 3  # type: ignore[operator]
    moved = log.with_columns(device=pl.when(late).then(pl.lit("tv")).otherwise("device"), split=late.cast(pl.Int32) * 2)
    new = profile(moved)
    drift = compare(profile(log), new, new_selection=RowSelection(newest_days=3))
    assert drift.new_rows == int(late.sum()) == compare(new, new, new_selection=RowSelection("test")).new_rows
    assert drift.columns[0].column == "context.device" and drift.columns[0].verdict == "drift"
    with pytest.raises(ConfigError, match="--split valid: the base feature set has no rows there, only in train, test"):
        compare(new, new, base_selection=RowSelection("valid"))


def test_a_day_without_rows_is_one_of_the_newest_days(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    """Of a log without its last day but one, the newest two days are the last alone."""
    day = raw["log"]["time"] // DAY
    last = int(day.max())  # type: ignore[arg-type]
    new = profile(raw["log"].filter(day != last - 1))
    drift = compare(new, new, new_selection=RowSelection(newest_days=2))
    assert drift.new_rows == int((day == last).sum())
    assert drift.new_days[0] == drift.new_days[1]


def test_the_days_that_are_compared_are_told(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    """A profile of more than 64 days counts them in runs, and of a run either all days are compared or none."""
    spread = raw["log"].with_columns(time=pl.col("time").min() + (pl.col("time") - pl.col("time").min()) * 10)
    new = profile(spread)
    days = sorted({day for split in new.splits.values() for day in split.days})
    length = -(-len(days) // 64)
    assert length > 1
    drift = compare(new, new, new_selection=RowSelection(newest_days=1))
    assert drift.base_days == (days[0], days[-1])
    assert drift.new_days == (new.periods[-1], days[-1])


def test_a_handful_of_rows_is_said_to_be_too_few(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    base, log = halved(raw, profile)
    few = np.zeros(log.height, int)
    few[np.random.default_rng(3).permutation(log.height)[:25]] = 2
    drift = compare(base, profile(log.with_columns(split=pl.Series(few))), new_selection=RowSelection("test"))
    verdicts = {one.column: one.verdict for one in drift.columns}
    assert drift.new_rows == 25 and verdicts["item.category"] == "too few rows" and not drift.found


def test_thresholds_decide(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    base, log = halved(raw, profile)
    new = profile(log.with_columns(**PLANTS["the mix of devices moves"][2](log)))
    assert compare(base, new).found
    assert not compare(base, new, DriftSettings(psi=2.0, js=0.9)).found


def test_common_bins_are_kept_for_the_picture(raw: dict[str, pl.DataFrame], profile: Profiler) -> None:
    base, _ = halved(raw, profile)
    device = next(one for one in compare(base, base).columns if one.column == "context.device")
    assert isinstance(device.common, Common) and "phone" in device.common.names
