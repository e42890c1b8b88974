"""Every shipped contract builds its data set's miniature without code, and what it says of the data is so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from features.build.build import build_feature_set
from features.contract.contract import Contract, load_contract
from features.datasets.public import DATASETS
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.sources.log import open_log
from features.store.feature_set import FeatureSet
from tests.features.raw import decoded_rows
from tests.miniatures import MINIATURES

ROOT = Path(__file__).parents[3]
CONTRACTS = ROOT / "conf/data"
REAL_DATA = Path(os.environ.get("QUADRANK_REAL_DATA", ROOT / "data"))


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, FeatureSet]]:
    """Raw files and feature set of a data set's miniature, built once."""
    made: dict[str, tuple[Path, FeatureSet]] = {}

    def build(name: str) -> tuple[Path, FeatureSet]:
        if name not in made:
            raw = tmp_path_factory.mktemp(name)
            MINIATURES[name](raw, 1)
            contract = load_contract(CONTRACTS / f"{name}.yaml", root=str(raw))
            # Thirty items span no more dimensions.
            narrow = {key: one.model_copy(update={"width": 8}) for key, one in contract.embeddings.items() if one.learn}
            contract = contract.model_copy(update={"embeddings": contract.embeddings | narrow})
            made[name] = raw, build_feature_set(contract, raw / "out").feature_set
        return made[name]

    return build


Miniature = Callable[[str], tuple[Path, FeatureSet]]


def item_column(built: FeatureSet, column: str) -> dict[Any, list[Any]]:
    """Raw values of an item column by raw item id, through the vocabularies; what is missing is an empty list."""
    encoder, table = Encoder.load(built.path), built.items[column]
    values = {}
    for row in range(2, len(table)):
        raw = encoder.item[column].raw_value(table[row])
        values[encoder.items.value(row)] = [] if raw is None else raw if isinstance(raw, list) else [raw]
    return values


def windows(built: FeatureSet) -> dict[str, tuple[int, int]]:
    return {name: (window.rows, window.positives) for name, window in built.manifest.windows.items()}


def lines(path: Path, separator: str, encoding: str = "utf-8") -> list[list[str]]:
    return [line.split(separator) for line in path.read_text(encoding=encoding).splitlines()]


def before(ratings: list[tuple[int, int, float, int]], user: int, time: int, most: int) -> list[int]:
    """Films that a user rated strictly before a second, oldest first: the literal rule."""
    return [i for u, i, _, t in sorted(ratings, key=lambda rating: rating[3]) if u == user and t < time][-most:]


RATINGS = {
    "movielens": lambda raw: pl.read_parquet(raw / "interactions.parquet").rows(),
    "movielens_100k": lambda raw: [tuple(map(int, row)) for row in lines(raw / "u.data", "\t")],
    "movielens_1m": lambda raw: [tuple(map(int, row)) for row in lines(raw / "ratings.dat", "::")],
    "movielens_latest": lambda raw: [
        (int(u), int(i), float(stars), int(t)) for u, i, stars, t in lines(raw / "ratings.csv", ",")[1:]
    ],
}


@pytest.mark.parametrize("name", RATINGS)
def test_movielens_of_every_layout(miniature: Miniature, name: str) -> None:
    raw, built = miniature(name)
    ratings = RATINGS[name](raw)
    assert sum(rows for rows, _ in windows(built).values()) == len(ratings) == 400
    rows = decoded_rows(built)
    liked = {(u, i): float(stars >= 4) for u, i, stars, _ in ratings}
    assert {(row["user"], row["item"]): row["label"] for row in rows} == liked
    for row in rows[::17]:
        # Films of one second have no order of their own.
        assert sorted(row["history"]) == sorted(before(ratings, row["user"], row["time"] // 1_000_000, 100))
    assert any(row["history"] for row in rows)


def test_movielens_100k_joins_flags_and_years(miniature: Miniature) -> None:
    raw, built = miniature("movielens_100k")
    genres = item_column(built, "genre")
    rated = {int(row[1]) for row in lines(raw / "u.data", "\t")}
    assert genres.keys() == rated | set(range(1, 31))
    names = "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror"
    names += "|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
    for film in lines(raw / "u.item", "|", "latin-1"):
        assert sorted(genres[int(film[0])]) == sorted(
            name for name, flag in zip(names.split("|"), film[5:], strict=True) if flag == "1"
        )
    years = built.items["year"][2:]
    assert np.isnan(years[29]) and not np.isnan(years[:29]).any() and (np.diff(years[:29]) > 0).all()


def test_movielens_1m_and_latest_split_genres_and_find_years(miniature: Miniature) -> None:
    for name, missing_year in (("movielens_1m", None), ("movielens_latest", 4)):
        _, built = miniature(name)
        genres = item_column(built, "genre")
        assert (genres[3], genres[5]) == (["Action"], ["Action", "Comedy", "Drama"])
        assert genres[6] == ([] if name == "movielens_latest" else ["Action"])
        years = built.items["year"][2:]
        assert [int(i) + 1 for i in np.flatnonzero(np.isnan(years))] == ([missing_year] if missing_year else [])


def test_movielens_latest_counts_half_stars(miniature: Miniature) -> None:
    raw, built = miniature("movielens_latest")
    stars = {(u, i): int(2 * stars) for u, i, stars, _ in RATINGS["movielens_latest"](raw)}
    encoder = Encoder.load(built.path)
    for row in decoded_rows(built)[::17]:
        halves = [encoder.event["stars"].raw_value(index) for index in row["history.stars"]]
        assert halves == [stars[row["user"], item] for item in row["history"]]


def test_mind(miniature: Miniature) -> None:
    raw, built = miniature("mind")
    impressions = {
        int(number): (user, past.split(), dict(candidate.rsplit("-", 1) for candidate in shown.split()))
        for number, user, _, past, shown in lines(raw / "behaviors.tsv", "\t")
    }
    rows = decoded_rows(built)
    assert len(rows) == sum(len(shown) for _, _, shown in impressions.values())
    assert sum(row["label"] for row in rows) == 120  # one click an impression
    pasts = {user: past for user, past, _ in impressions.values()}
    for row in rows[::11]:
        assert row["history"] == pasts[row["user"]]
        assert any(
            shown.get(row["item"]) == str(int(row["label"])) for u, _, shown in impressions.values() if u == row["user"]
        )
    requests = np.concatenate([part["request"] for split in ("train", "valid", "test") for part in built.rows(split)])
    assert len(np.unique(requests)) == 120
    categories = item_column(built, "category")
    assert categories["N10002"] == ["finance"] and categories["N10035"] == []  # shown, but not described
    # 11/9/2019 2:14:46 PM is 14 o'clock on a Saturday.
    hour, weekday = (pl.Series([row[name] - 2 for row in rows]) for name in ("hour", "weekday"))
    time = pl.Series([row["time"] for row in rows]).cast(pl.Datetime("us"))
    assert hour.to_list() == time.dt.hour().to_list() and weekday.to_list() == (time.dt.weekday() - 1).to_list()


def test_mind_of_two_folders_has_each_article_once(tmp_path: Path) -> None:
    for seed, folder in enumerate(("MINDsmall_train", "MINDsmall_dev")):
        MINIATURES["mind"](tmp_path / folder, seed)
    both = {
        "interactions": {"path": "{MINDsmall_train,MINDsmall_dev}/behaviors.tsv"},
        "items": {"path": "{MINDsmall_train,MINDsmall_dev}/news.tsv"},
    }
    contract = load_contract(CONTRACTS / "mind.yaml", both, str(tmp_path))
    built = build_feature_set(contract, tmp_path / "out").feature_set
    assert sum(positives for _, positives in windows(built).values()) == 240
    news = tmp_path / "MINDsmall_dev/news.tsv"
    news.write_text(news.read_text(encoding="utf-8").replace("sports", "sport"), encoding="utf-8")
    with pytest.raises(DataError, match=r"news.tsv: item id 'news_id': 10 ids appear more than once"):
        build_feature_set(contract, tmp_path / "out")


def test_mmctr_has_levels_on_the_history(miniature: Miniature) -> None:
    raw, built = miniature("mmctr")
    train = pl.read_parquet(raw / "train.parquet")
    assert windows(built) == {"train": (240, train["label"].sum()), "valid": (40, 9), "test": (50, 0)}
    assert not built.manifest.windows["test"].labelled
    rows = [row for row in decoded_rows(built) if row["split"] == "train"]
    told = sorted(
        (user, item, [past for past in sequence if past], float(label))
        for user, sequence, item, label in train.select("user_id", "item_seq", "item_id", "label").iter_rows()
    )
    assert sorted((row["user"], row["item"], row["history"], row["label"]) for row in rows) == told
    features = pl.read_parquet(raw / "item_feature.parquet")
    likes = dict(features.select("item_id", "likes_level").iter_rows())
    known = {item: value for item, value in item_column(built, "likes_level").items() if value}
    assert known == {item: [likes[item]] for item in known} and len(known) == 40
    tags = item_column(built, "tags")
    for item, padded in features.select("item_id", "item_tags").iter_rows():
        assert tags[item] == [str(tag) for tag in padded if tag]
    present = built.present("fused")[2:]
    encoder = Encoder.load(built.path)
    assert present.all() and np.allclose(np.linalg.norm(built.vectors("fused")[encoder.items.index(7)], axis=0), 1)


def test_the_first_week_of_ebnerd_counts_articles_of_which_it_knows_nothing_else(miniature: Miniature) -> None:
    raw, built = miniature("ebnerd_week")
    log = pl.read_parquet(raw / "train/behaviors.parquet")
    assert sum(rows for rows, _ in windows(built).values()) == log["article_ids_inview"].list.len().sum()
    assert [field.name for field in built.schema.item] == ["article_id"]
    assert {"clicks_lately_1h", "shown_lately_1d", "item_age", "seen"} <= {one.name for one in built.schema.candidate}
    assert {"user_rate_7d", "user_since", "user_hour"} <= {one.name for one in built.schema.context}


def test_ebnerd_histories_come_from_clicks_and_from_what_was_read_before(miniature: Miniature) -> None:
    raw, built = miniature("ebnerd")
    impressions = pl.concat([pl.read_parquet(raw / f"{week}/behaviors.parquet") for week in ("train", "validation")])
    rows = decoded_rows(built)
    assert len(rows) == impressions["article_ids_inview"].list.len().sum()
    assert sum(row["label"] for row in rows) == 140
    past = [pl.read_parquet(raw / f"{week}/history.parquet") for week in ("train", "validation")]
    read = pl.concat(past).explode(pl.exclude("user_id")).select("user_id", "impression_time_fixed", "article_id_fixed")
    assert read.is_duplicated().any()  # the weeks overlap
    clicked = impressions.explode("article_ids_clicked").select("user_id", "impression_time", "article_ids_clicked")
    events = sorted({*read.rows(), *clicked.rows()}, key=lambda event: event[1])
    for row in rows[::13]:
        time = pl.Series([row["time"]]).cast(pl.Datetime("us"))[0]
        seen = [article for user, when, article in events if user == row["user"] and when < time]
        consecutive = [article for place, article in enumerate(seen) if place == 0 or article != seen[place - 1]]
        assert row["history"] == consecutive[-50:]
    assert item_column(built, "topics")[9_700_002] == ["Kriminalitet", "Politik"]
    days = {name: {row["time"] // 86_400_000_000 for row in rows if row["split"] == name} for name in ("train", "test")}
    assert max(days["train"]) < min(days["test"]) and max(days["test"]) - min(days["test"]) == 3


def test_clickstream_draws_negatives(miniature: Miniature) -> None:
    raw, built = miniature("clickstream")
    clicks = pl.concat([pl.read_csv(file.read_bytes()) for file in sorted(raw.rglob("*.csv.gz"))])
    rows = decoded_rows(built)
    taken = [row for row in rows if row["label"] == 1]
    assert sorted((row["user"], row["item"]) for row in taken) == sorted(clicks.select("user", "item").iter_rows())
    assert built.manifest.windows["test"].positives == 25 and 3 * len(taken) < len(rows) - len(taken) <= 4 * len(taken)
    assert all(len(row["history"]) < 2 or (np.diff(row["history"]) != 0).all() for row in rows)


def test_a_day_of_the_clickstream_at_a_time(tmp_path: Path) -> None:
    MINIATURES["clickstream"](tmp_path, 1)
    contract = load_contract(CONTRACTS / "clickstream.yaml", root=str(tmp_path))
    built = build_feature_set(contract, tmp_path / "out", as_of="2026-03-18", window=14).feature_set
    assert [windows(built)[name][1] for name in ("train", "valid", "test")] == [12 * 25, 25, 25]


def test_every_contract_has_a_miniature_and_a_page() -> None:
    names = {path.stem for path in CONTRACTS.glob("*.yaml")} - {"simulated"}
    assert names == MINIATURES.keys()
    assert names - {"clickstream", "ebnerd_week"} == DATASETS.keys()
    index = (ROOT / "docs/datasets/README.md").read_text(encoding="utf-8")
    for name in names:
        assert f"`{name}`" in index, f"docs/datasets/README.md does not name {name}"
    for dataset in DATASETS.values():
        assert (ROOT / dataset.contract).is_file()
        assert dataset.page.startswith("https://") and (dataset.archive is None) == bool(dataset.steps)
        assert dataset.archive is None or dataset.archive.url.startswith("https://")


def test_the_whole_of_movielens_lies_behind_an_url(tmp_path: Path, miniature: Miniature) -> None:
    import fsspec

    MINIATURES["movielens_1m"](tmp_path, 1)
    system = fsspec.filesystem("memory")
    for file in tmp_path.glob("*.dat"):
        system.pipe(f"/bucket/ml/{file.name}", file.read_bytes())
    contract = load_contract(CONTRACTS / "movielens_1m.yaml", root="memory://bucket/ml")
    built = build_feature_set(contract, tmp_path / "out").feature_set
    assert windows(built) == windows(miniature("movielens_1m")[1])
    assert build_feature_set(contract, tmp_path / "out").reused
    system.rm("/bucket", recursive=True)


def test_contracts_read_what_is_published_lazily(tmp_path: Path) -> None:
    """Opening a log reads no row of a parquet file: its plan still scans."""
    MINIATURES["ebnerd"](tmp_path, 1)
    contract: Contract = load_contract(CONTRACTS / "ebnerd.yaml", root=str(tmp_path))
    assert open_log(contract).frame.explain().count("Parquet SCAN") >= 1


@pytest.mark.parametrize("path", sorted(CONTRACTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_raw_files_are_looked_for_in_the_working_folder(path: Path) -> None:
    """No shipped contract names a folder of one machine."""
    root = Path(yaml.safe_load(path.read_text(encoding="utf-8"))["root"])
    assert root.parts[0] == "data" and ".." not in root.parts


@pytest.mark.parametrize(("name", "rows", "positives"), [("movielens", 100_000, 55_375), ("mind", 189_359, 7_542)])
def test_the_real_data_builds_from_the_shipped_contract(tmp_path: Path, name: str, rows: int, positives: int) -> None:
    """Every impression and rating of the real files comes out, where QUADRANK_REAL_DATA, or data/, has them."""
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"{REAL_DATA / name} is not there: the data is not part of the project")
    contract = load_contract(CONTRACTS / f"{name}.yaml", root=str(REAL_DATA / name))
    built = build_feature_set(contract, tmp_path).feature_set
    found = windows(built).values()
    assert (sum(count for count, _ in found), sum(count for _, count in found)) == (rows, positives)
