"""Public data sets in small: files of the exact published layout and quirks, with invented content.

Each function writes into a folder that takes the place of its contract's `root`. Nothing in them is taken from the
data sets but names of files and columns, types, and the shape of values.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

GENRES = ["Action", "Comedy", "Drama", "Sci-Fi", "War"]
OCCUPATIONS = ["artist", "doctor", "none", "student"]
FLAGS = 19
DAY = 86_400


def movielens(folder: Path, seed: int) -> None:
    """MovieLens as five parquet files: ratings, films with lists of names, users, and two sets of vectors."""
    rng = np.random.default_rng(seed)
    user, item, rating, time = _ratings(rng, 400, users=20, items=30)
    write(folder / "interactions.parquet", user_id=user, item_id=item, rating=rating.astype(np.int8), timestamp=time)
    films = np.arange(1, 31)
    names = [f"Person {i}" for i in range(12)]

    def some(of: list[str], most: int) -> list[list[str]]:
        return [rng.permutation(of)[: rng.integers(0, most + 1)].tolist() for _ in films]

    write(
        folder / "items.parquet",
        item_id=films,
        title=[f"Film {i} (19{60 + i})" for i in films],
        genre=some(GENRES, 3),
        director=some(names, 1),
        actors=some(names, 4),
        year=pl.Series([None if i == 7 else 1960 + i for i in films], dtype=pl.Int16),
    )
    users = np.arange(1, 21)
    write(
        folder / "users.parquet",
        user_id=users,
        age=18 + users,
        gender=rng.choice(["F", "M"], 20),
        occupation=rng.choice(OCCUPATIONS, 20),
        zip_code=[f"{55000 + i}" for i in users],
    )
    for name, width, covered in (("text_minilm384", 384, 29), ("poster_visual312", 312, 25)):
        vectors = pl.Series(rng.normal(size=(covered, width)).astype(np.float32), dtype=pl.Array(pl.Float32, width))
        write(folder / f"{name}.parquet", item_id=films[:covered], embedding=vectors)


def movielens_100k(folder: Path, seed: int) -> None:
    """`u.data` by tabs; `u.item` and `u.user` by `|`, the former in latin-1 with 19 genre flags; no headers."""
    rng = np.random.default_rng(seed)
    _lines(folder / "u.data", "\t", zip(*_ratings(rng, 400, users=130, items=30), strict=True))
    films = []
    for item in range(1, 31):
        released = "" if item == 30 else f"{item % 28 + 1:02d}-Jan-19{60 + item}"
        title = {3: 'Chambermaid, "La Fée" (1963)', 30: "unknown"}.get(item, f"Film {item} (19{60 + item})")
        flags = [int(flag == item % FLAGS or flag == 8) for flag in range(FLAGS)]
        films.append([item, title, released, "", f"http://us.imdb.com/M/title-exact?{item}", *flags])
    _lines(folder / "u.item", "|", films, "latin-1")
    # The first postal code with letters stands behind a hundred that look like numbers.
    people = [
        [user, 10 + user % 50, "FM"[user % 2], OCCUPATIONS[user % 4], "V3N4P" if user == 120 else 55000 + user]
        for user in range(1, 131)
    ]
    _lines(folder / "u.user", "|", people)


def movielens_1m(folder: Path, seed: int) -> None:
    """Three `.dat` files separated by `::`, without headers; `movies.dat` in latin-1."""
    rng = np.random.default_rng(seed)
    _lines(folder / "ratings.dat", "::", zip(*_ratings(rng, 400, users=20, items=30), strict=True))
    titles = {3: "Mission: Impossible (1963)", 4: "Misérables, Les (1964)"}
    films = [[i, titles.get(i, f"Film {i} (19{60 + i})"), "|".join(GENRES[: 1 + i % 3])] for i in range(1, 31)]
    _lines(folder / "movies.dat", "::", films, "latin-1")
    ages = [1, 18, 25, 35, 45, 50, 56]
    people = [[user, "FM"[user % 2], ages[user % 7], user % 21, f"{55000 + user}-1234"] for user in range(1, 21)]
    _lines(folder / "users.dat", "::", people)


def movielens_latest(folder: Path, seed: int) -> None:
    """`ratings.csv` with half stars and `movies.csv` with `A|B` genres, both with headers, in UTF-8."""
    rng = np.random.default_rng(seed)
    user, item, rating, time = _ratings(rng, 400, users=20, items=30)
    stars = np.where(item % 2 == 0, rating - 0.5, rating)
    _lines(
        folder / "ratings.csv", ",", zip(user, item, stars, time, strict=True), header="userId,movieId,rating,timestamp"
    )
    titles = {3: '"Misérables, Les (1963)"', 4: "Film without year", 5: "Film 5 (1965) "}
    genres = {6: "(no genres listed)"}
    films = [
        [i, titles.get(i, f"Film {i} (19{60 + i})"), genres.get(i, "|".join(GENRES[: 1 + i % 3]))] for i in range(1, 31)
    ]
    _lines(folder / "movies.csv", ",", films, header="movieId,title,genres")


def mind(folder: Path, seed: int) -> None:
    """`behaviors.tsv` and `news.tsv` without headers: all candidates of an impression with flags, a history column."""
    rng = np.random.default_rng(seed)
    news = [f"N{10_000 + i}" for i in range(40)]
    articles = []
    for i, name in enumerate(news[:30]):  # the others are shown and not described
        entities = '[{"Label": "Place", "Type": "G", "Confidence": 1.0, "SurfaceForms": ["Place"]}]' if i % 3 else "[]"
        title = 'One "quote too many' if i == 2 else f"Headline {i}"
        abstract = "" if i % 4 == 0 else f"Text {i}, and more."
        topic = ("sports", "news", "finance")[i % 3]
        url = f"https://assets.msn.com/labs/mind/{i}.html"
        articles.append([name, topic, f"{topic}_{i % 2}", title, abstract, url, entities, entities])
    _lines(folder / "news.tsv", "\t", articles)
    pasts = {user: " ".join(rng.choice(news, rng.integers(0, 7))) for user in range(12)}
    start = datetime(2019, 11, 9)
    impressions = []
    for number in range(120):
        user = int(rng.integers(12))
        shown = rng.permutation(news)[: rng.integers(2, 9)]
        clicked = int(rng.integers(len(shown)))
        when = start + timedelta(seconds=int(rng.integers(6 * DAY)))
        # 11/9/2019 7:05:09 AM: no leading zeros before the minutes.
        time = f"{when.month}/{when.day}/{when.year} {when.hour % 12 or 12}:{when:%M:%S} {when:%p}"
        text = " ".join(f"{name}-{int(place == clicked)}" for place, name in enumerate(shown))
        impressions.append([number + 1, f"U{user}", time, pasts[user], text])
    _lines(folder / "behaviors.tsv", "\t", impressions)


def mmctr(folder: Path, seed: int) -> None:
    """MicroLens_1M_MMCTR: histories left-padded with 0, levels in the rows and in item_feature, test without labels."""
    rng = np.random.default_rng(seed)
    items, length = np.arange(1, 41), 12
    likes, views = rng.integers(1, 11, 41), rng.integers(1, 11, 41)

    def rows(count: int) -> dict[str, object]:
        item = rng.integers(1, 41, count)
        pasts = [rng.integers(1, 41, rng.integers(0, length + 1)).tolist() for _ in range(count)]
        return {
            "user_id": rng.integers(1, 60, count),
            "item_seq": [[0] * (length - len(past)) + past for past in pasts],
            "item_id": item,
            "likes_level": likes[item],
            "views_level": views[item],
            "label": (rng.random(count) < 0.25).astype(np.int64),
        }

    write(folder / "train.parquet", **rows(240))
    write(folder / "valid.parquet", **rows(40))
    test = {name: values for name, values in rows(50).items() if name != "label"}
    write(folder / "test.parquet", ID=np.arange(50), **test)
    tags = [rng.permutation(np.arange(1, 15))[: i % 6].tolist() for i in range(41)]
    padded = [[0] * (5 - len(one)) + one for one in tags]
    vectors = rng.normal(size=(41, 128)).astype(np.float32)
    vectors[0] = 0  # row 0 of item_info is padding
    write(folder / "item_info.parquet", item_id=np.arange(41), item_tags=padded, item_emb_d128=vectors.tolist())
    write(
        folder / "item_feature.parquet",
        item_id=items,
        item_title=[f"Video {i}" for i in items],
        item_tags=padded[1:],
        likes_level=likes[1:],
        views_level=views[1:],
        txt_emb_BERT=rng.normal(size=(40, 768)).astype(np.float32).tolist(),
        img_emb_CLIPRN50=rng.normal(size=(40, 1024)).astype(np.float32).tolist(),
    )


def ebnerd(folder: Path, seed: int) -> None:
    """EB-NeRD: impressions with lists of what was in view and what was clicked, histories as lists a user, articles."""
    rng = np.random.default_rng(seed)
    articles = np.arange(9_700_000, 9_700_030)
    users = np.arange(101, 113)
    week = datetime(2023, 5, 18, 7)
    reading = _ebnerd_reading(rng, week - timedelta(days=21), articles, users)
    for name in ("train", "validation"):
        _ebnerd_impressions(folder / name / "behaviors.parquet", rng, week, articles, users)
        # The three weeks before each week: what the two have in common stands in both files.
        past = reading.filter(pl.col("impression_time_fixed").is_between(week - timedelta(days=21), week, "left"))
        past.group_by("user_id", maintain_order=True).agg(pl.all()).write_parquet(folder / name / "history.parquet")
        week += timedelta(days=7)
    count = len(articles)
    published = [datetime(2023, 5, 1) + timedelta(hours=int(hours)) for hours in rng.integers(0, 700, count)]
    write(
        folder / "articles.parquet",
        article_id=pl.Series(articles, dtype=pl.Int32),
        title=[f"Overskrift {i} på dansk" for i in range(count)],
        subtitle=["" if i % 5 == 0 else f"Underrubrik {i}" for i in range(count)],
        last_modified_time=published,
        premium=rng.random(count) < 0.2,
        body=["Tekst" for _ in range(count)],
        published_time=published,
        image_ids=[None if i % 4 == 0 else [3_000_000 + i] for i in range(count)],
        article_type=["article_default" if i % 6 else "article_video" for i in range(count)],
        url=[f"https://ekstrabladet.dk/{i}" for i in range(count)],
        ner_clusters=[["København"] if i % 2 else [] for i in range(count)],
        entity_groups=[["LOC"] if i % 2 else [] for i in range(count)],
        topics=[["Kriminalitet", "Politik"][: i % 3] for i in range(count)],
        category=pl.Series([118 + i % 4 for i in range(count)], dtype=pl.Int16),
        subcategory=pl.Series([[127, 133][: i % 3] for i in range(count)], dtype=pl.List(pl.Int16)),
        category_str=[("nyheder", "sport", "krimi", "auto")[i % 4] for i in range(count)],
        total_inviews=pl.Series([None if i % 7 == 0 else 1000 * i for i in range(count)], dtype=pl.Int32),
        total_pageviews=pl.Series([None if i % 7 == 0 else 100 * i for i in range(count)], dtype=pl.Int32),
        total_read_time=pl.Series([None if i % 7 == 0 else 9.5 * i for i in range(count)], dtype=pl.Float32),
        sentiment_score=rng.random(count).astype(np.float32),
        sentiment_label=rng.choice(["Negative", "Neutral", "Positive"], count),
    )


def ebnerd_week(folder: Path, seed: int) -> None:
    """The same files, of which the contract reads those of the first week."""
    ebnerd(folder, seed)


def _ebnerd_reading(rng: np.random.Generator, start: datetime, articles: np.ndarray, users: np.ndarray) -> pl.DataFrame:
    """Four weeks of articles read, by user and time."""
    count = 120
    when = [start + timedelta(seconds=int(second)) for second in np.sort(rng.integers(0, 28 * DAY, count))]
    return pl.DataFrame(
        {
            "user_id": pl.Series(rng.choice(users, count), dtype=pl.UInt32),
            "impression_time_fixed": when,
            "scroll_percentage_fixed": pl.Series(
                [None if i % 6 == 0 else 50.0 for i in range(count)], dtype=pl.Float32
            ),
            "article_id_fixed": pl.Series(rng.choice(articles, count), dtype=pl.Int32),
            "read_time_fixed": pl.Series(rng.integers(0, 400, count), dtype=pl.Float32),
        }
    ).sort("user_id", "impression_time_fixed")


def _ebnerd_impressions(
    path: Path, rng: np.random.Generator, week: datetime, articles: np.ndarray, users: np.ndarray
) -> None:
    count = 70
    when = [week + timedelta(seconds=int(second)) for second in np.sort(rng.integers(0, 7 * DAY, count))]
    shown = [rng.permutation(articles)[: rng.integers(5, 9)].tolist() for _ in range(count)]
    on_page = [None if rng.random() < 0.7 else int(rng.choice(articles)) for _ in range(count)]
    often_missing = [None if rng.random() < 0.9 else 1 for _ in range(count)]
    write(
        path,
        impression_id=pl.Series(rng.permutation(10**6)[:count], dtype=pl.UInt32),
        article_id=pl.Series(on_page, dtype=pl.Int32),
        impression_time=when,
        read_time=rng.integers(0, 200, count).astype(np.float32),
        scroll_percentage=pl.Series([None if one is None else 80.0 for one in on_page], dtype=pl.Float32),
        device_type=pl.Series(rng.integers(1, 4, count), dtype=pl.Int8),
        article_ids_inview=pl.Series(shown, dtype=pl.List(pl.Int32)),
        article_ids_clicked=pl.Series([[int(rng.choice(one))] for one in shown], dtype=pl.List(pl.Int32)),
        user_id=pl.Series(rng.choice(users, count), dtype=pl.UInt32),
        is_sso_user=rng.random(count) < 0.1,
        gender=pl.Series(often_missing, dtype=pl.Int8),
        postcode=pl.Series(often_missing, dtype=pl.Int8),
        age=pl.Series([None if one is None else 50 for one in often_missing], dtype=pl.Int8),
        is_subscriber=rng.random(count) < 0.1,
        session_id=pl.Series(np.arange(count) // 2, dtype=pl.UInt32),
        next_read_time=pl.Series([None if i % 20 == 0 else 7.0 * (i % 9) for i in range(count)], dtype=pl.Float32),
        next_scroll_percentage=pl.Series([None if i % 3 else 100.0 for i in range(count)], dtype=pl.Float32),
    )


def clickstream(folder: Path, seed: int) -> None:
    """Twenty days of clicks, a hive folder and a gzipped csv each."""
    rng = np.random.default_rng(seed)
    first = datetime(2026, 3, 1)
    for day in range(20):
        seconds = np.sort(rng.integers(0, DAY, 25)) + int((first - datetime(1970, 1, 1)).total_seconds()) + day * DAY
        rows = [
            [
                f"u{rng.integers(15)}",
                500 + int(rng.integers(40)),
                second,
                f"s{day}-{place // 3}",
                "phone" if place % 3 else "",
            ]
            for place, second in enumerate(seconds)
        ]
        path = folder / f"clicks/day={first + timedelta(days=day):%Y-%m-%d}/part-0.csv.gz"
        _lines(path, ",", rows, header="user,item,time,session,device")


MINIATURES: dict[str, Callable[[Path, int], None]] = {
    one.__name__: one
    for one in (
        movielens,
        movielens_100k,
        movielens_1m,
        movielens_latest,
        mind,
        mmctr,
        ebnerd,
        ebnerd_week,
        clickstream,
    )
}


def write(path: Path, **columns: object) -> None:
    """One parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(path)


def _ratings(rng: np.random.Generator, rows: int, users: int, items: int) -> tuple[np.ndarray, ...]:
    """User, item, stars and time, no film twice by one user; every third one shares its second with the one before."""
    pairs = rng.permutation(users * items)[:rows]
    seconds = np.sort(rng.integers(0, 200 * DAY, rows))
    seconds[2::3] = seconds[1::3][: len(seconds[2::3])]
    user, item = pairs // items + 1, pairs % items + 1
    return user, item, rng.integers(1, 6, rows), 874_724_710 + seconds


def _lines(path: Path, separator: str, rows: object, encoding: str = "utf-8", header: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header] if header else []
    lines += [separator.join(map(str, row)) for row in rows]  # type: ignore[attr-defined]
    content = "".join(f"{line}\n" for line in lines).encode(encoding)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
