"""Drawn contracts, drawn small logs, and drawn sequences of what happens to a log between two builds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

FIRST = date(2026, 3, 1)
DAYS, USERS, ITEMS = 9, 5, 9
SECONDS_A_DAY = 86_400
Content = dict[str, Any]

CONTEXT: dict[str, Content] = {
    "device": {"type": "categorical"},
    "device_often": {"type": "categorical", "source": "device", "min_count": 3, "max_size": 2},
    "device_hash": {"type": "hashed", "source": "device", "buckets": 50},
    "load": {"type": "numeric", "scale": "none"},
    "load_scaled": {"type": "numeric", "source": "load", "transform": "log1p", "clip": [0.1, 0.8]},
    "load_bin": {"type": "buckets", "source": "load", "edges": [0.2, 0.6]},
    "load_decile": {"type": "buckets", "source": "load", "count": 4},
    "hour": {"type": "date", "source": "time", "part": "hour"},
}
EVENT: dict[str, Content] = {
    "label": {"type": "categorical"},
    "device": {"type": "categorical"},
    "device_hash": {"type": "hashed", "source": "device", "buckets": 50},
    "load": {"type": "numeric"},
    "load_bin": {"type": "buckets", "source": "load", "edges": [0.3, 0.5, 0.9]},
    "pause": {"type": "gap", "buckets": 30},
    "hour": {"type": "date", "source": "time", "part": "weekday"},
}
ITEM_COLUMNS: dict[str, Content] = {
    "genre": {"type": "categorical"},
    "tags": {"type": "tags", "max_len": 3},
    "price": {"type": "numeric"},
    "price_bin": {"type": "buckets", "source": "price", "edges": [3, 6]},
}
SHAPES = st.sampled_from(["rated", "rated", "positives", "impressions"])


@dataclass(frozen=True)
class Case:
    """One drawn example.

    Args:
        content: of the contract, without its root.
        seed: of the log.
        text_ids: ids are text.
        steps: (what, number) in turn; `build` has (as-of day or None, window).
        shape: rated, positives or impressions.
    """

    content: Content
    seed: int
    text_ids: bool
    steps: tuple[tuple[str, Any], ...]
    shape: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A contract over all options, a log, and what happens to it. The last step is a build."""
    # Such a contract alone carries events on from one build to the next.
    plain = not draw(st.integers(0, 2))
    shape = draw(st.sampled_from(["rated", "impressions"]) if plain else SHAPES)
    content: Content = {
        "name": "drawn",
        "interactions": draw(_interactions(shape)),
        "history": draw(_history(shape)),
        "counters": draw(_counters(shape)),
        "checks": draw(_checks()),
        "split": {"by": "days", "valid": 1, "test": draw(st.integers(1, 2))},
    }
    if plain:
        content["counters"] = {}
        content["history"] = draw(_history(shape).filter(lambda one: "given" not in one)) | {"tables": []}
        if content["history"].get("repeats") == "first":
            content["history"]["repeats"] = "consecutive"
    residuals = [name for name, one in content["counters"].items() if (one["of"], one["value"]) == ("item", "rate")]
    if "given" in content["history"]:
        content["counters"] = {}
    elif residuals and draw(st.booleans()):
        content["history"]["columns"]["surprise"] = {"type": "residual", "counter": residuals[0]}
    if draw(st.integers(0, 3)):
        content["items"] = {"path": "items.parquet", "id": "item", "columns": draw(_some(ITEM_COLUMNS))}
        if content["items"]["columns"] and draw(st.booleans()):
            content["items"]["valid_from"] = "since"
    if draw(st.booleans()):
        columns = {"segment": {"type": "categorical"}}
        content["users"] = {"path": "users.parquet", "id": "user", "columns": columns}
        if draw(st.booleans()):
            content["users"]["valid_from"] = "since"
    if not draw(st.integers(0, 4)):
        content |= draw(_vectors())
    if not any("load" in (name, one.get("source")) for name, one in content["interactions"]["context"].items()):
        content["checks"].pop("ranges", None)
    least = content["split"]["test"] + 2
    return Case(content, draw(st.integers(0, 10_000)), draw(st.booleans()), draw(_steps(least)), shape)


def _some(options: dict[str, Content]) -> st.SearchStrategy[dict[str, Content]]:
    return st.sets(st.sampled_from(sorted(options)), max_size=4).map(
        lambda names: {n: options[n] for n in sorted(names)}
    )


@st.composite
def _interactions(draw: st.DrawFn, shape: str) -> Content:
    found: Content = {
        "path": draw(st.sampled_from(["log/*.parquet", "log"])),
        "user": "user",
        "item": "item",
        "time": "time",
        "context": draw(_some(CONTEXT)),
        "item_min_count": draw(st.integers(1, 2)),
        "user_min_count": draw(st.integers(1, 2)),
    }
    if shape == "rated":
        found["label"] = "rating >= 4"
    elif shape == "impressions":
        found["candidates"] = {"column": "shown", "clicked": "clicked"}
    else:
        how = draw(st.sampled_from(["uniform", "popularity", "in_window"]))
        exclude = draw(st.sampled_from(["seen", "none"]))
        found["negatives"] = {"per_positive": draw(st.integers(1, 2)), "how": how, "window": "2d", "exclude": exclude}
    if draw(st.booleans()):
        found["request"] = "request"
    if draw(st.booleans()):
        found["weight"] = "weight"
    if draw(st.booleans()):
        found["labels"] = {"long": "dwell > 4"}
    return found


@st.composite
def _history(draw: st.DrawFn, shape: str) -> Content:
    if not draw(st.integers(0, 6)):
        return {"max_len": draw(st.integers(1, 4)), "given": {"column": "past"}}
    options = EVENT if shape != "rated" else EVENT | {"rating": {"type": "categorical"}}
    found: Content = {"max_len": draw(st.integers(1, 6)), "columns": draw(_some(options))}
    if draw(st.booleans()):
        found["repeats"] = draw(st.sampled_from(["keep", "consecutive", "first"]))
    if draw(st.booleans()):
        found["within"] = draw(st.sampled_from(["12h", "1d", "3d"]))
    if draw(st.booleans()):
        found["session_gap"] = draw(st.sampled_from(["6h", "1d"]))
    if draw(st.booleans()):
        # One that hides more than a day is refused beside a shorter age or session.
        limited = "within" in found or "session_gap" in found
        found["delay"] = draw(st.sampled_from(["1s", "2h", "5h"] if limited else ["1s", "5h", "30h"]))
    if draw(st.booleans()):
        found["events"] = "label == 1" if shape == "impressions" else "load < 0.7"
    if not draw(st.integers(0, 3)):
        columns = {name: name for name in found["columns"] if name in ("load", "device")}
        table = {"path": "past.parquet", "user": "user", "item": "item", "time": "time", "columns": columns}
        found["tables"] = [table]
    return found


@st.composite
def _counters(draw: st.DrawFn, shape: str) -> Content:
    value = st.just("count") if shape == "positives" else st.sampled_from(["count", "rate"])
    found: Content = {}
    for name in ("first", "second", "third")[: draw(st.sampled_from([0, 0, 1, 2, 3]))]:
        found[name] = {
            "of": draw(st.sampled_from(["item", "user"])),
            "value": draw(value),
            "as_of": draw(st.sampled_from(["event", "hour", "day"])),
            "prior": 3,
        }
        if draw(st.booleans()):
            found[name]["half_life"] = draw(st.sampled_from(["6h", "2d"]))
    return found


@st.composite
def _checks(draw: st.DrawFn) -> Content:
    found: Content = {"max_quarantine": 1.0}
    if draw(st.booleans()):
        return found
    policy = st.sampled_from(["warn", "quarantine"])
    names = ("duplicate", "unknown_item", "unknown_user", "bot", "range")
    found |= {name: draw(policy) for name in names}
    found["null"] = draw(st.sampled_from(["error", "quarantine"]))
    found["ranges"] = {"load": [0, 0.9]}
    found["max_rows_per_user"] = draw(st.sampled_from([4, 5_000]))
    return found


@st.composite
def _vectors(draw: st.DrawFn) -> Content:
    text: Content = {"path": "text.parquet", "id": "item", "normalize": draw(st.sampled_from(["none", "l2", "centre"]))}
    image: Content = {"path": "image.parquet", "id": "item", "dtype": draw(st.sampled_from(["float32", "int8"]))}
    if draw(st.booleans()):
        text["reduce"] = {"method": draw(st.sampled_from(["pca", "truncate"])), "dim": 2}
    if draw(st.booleans()):
        by_clicks: Content = {"by": "clicks", "k": 2}
        image["missing"] = draw(st.sampled_from(["zero", "mean", by_clicks]))
    vectors: Content = {}
    if draw(st.booleans()):
        vectors["fusion"] = {"both": {"sets": ["text", "image"], "dim": 2, "keep_parts": True}}
    if draw(st.booleans()):
        vectors["semantic_ids"] = {"code": {"set": "text", "levels": 1, "size": 2}}
    sets = {"text": text, "image": image}
    if not draw(st.integers(0, 3)):
        sets["covisit"] = {"learn": "history", "id": "item", "width": 1}
    return {"embeddings": sets, "vectors": vectors}


@st.composite
def _steps(draw: st.DrawFn, least: int) -> tuple[tuple[str, Any], ...]:
    """Some days are there at first; each further step brings one, or something that goes wrong in a daily job."""
    there = draw(st.integers(least + 1, 6))
    window = draw(st.integers(least, 6))
    steps: list[tuple[str, Any]] = [("days", there), ("build", (None, window))]
    for _ in range(draw(st.integers(1, 3))):
        usual = ["day", "day", "late", "missing", "rewrite", "items", "retry", "window", "back", "copy"]
        what = draw(st.sampled_from(usual))
        last = None
        if what in ("day", "missing"):
            there = min(there + (1 if what == "day" else 4), DAYS)
            steps.append(("days" if what == "day" else "gap", there))
        elif what in ("late", "rewrite", "copy"):
            steps.append((what, draw(st.integers(0, there - 1))))
        elif what == "items":
            steps.append((what, draw(st.integers(0, 9))))
        elif what == "window":
            window = draw(st.integers(least, 6))
        elif what == "back":
            last = max(there - 2, least)
        steps.append(("build", (last, window)))
    if draw(st.booleans()):
        steps += [("days", min(there + 1, DAYS)), ("build", (None, window))]
    return tuple(steps)


def start_of(day: int) -> int:
    """Seconds since 1970 of a day's beginning."""
    moment = datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC) + timedelta(days=day)
    return int(moment.timestamp())


class RawFiles:
    """The raw files of one case, below a folder."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder = folder
        self.case = case
        self._missing: set[int] = set()
        (folder / "log").mkdir(parents=True)
        self._tables()

    def day(self, number: int, name: str | None = None, salt: int = 0, rows: int = 8) -> None:
        """Write one file of a day: few users and items, several rows an instant, later days with new ones of both."""
        rng = np.random.default_rng([self.case.seed, number, salt])
        count = rows + int(rng.integers(0, 5))
        table = pl.DataFrame(
            {
                "user": self._ids(rng.integers(0, USERS + number // 3, count)),
                "item": self._ids(rng.integers(100, 100 + ITEMS + number // 2, count)),
                "time": start_of(number) + rng.integers(0, 12, count) * (SECONDS_A_DAY // 12),
                "rating": pl.Series(rng.integers(1, 6, count), dtype=pl.Int64),
                "device": rng.choice(["phone", "desk", f"watch{number // 3}", f"glass{salt}"], count),
                "load": rng.random(count).round(2),
                "dwell": pl.Series(
                    [None if one == 0 else one for one in rng.integers(0, 9, count).tolist()], dtype=pl.Int64
                ),
                "weight": rng.integers(1, 4, count).astype(np.float64),
                "past": [self._ids(rng.integers(100, 112, length)) for length in rng.integers(0, 4, count)],
            }
        )
        # Requests of eight hours; some go on over midnight.
        table = table.with_columns(request=(pl.col("time") + SECONDS_A_DAY // 6) // (SECONDS_A_DAY // 3))
        table = pl.concat([table, table.head(2)])  # legal duplicates
        if self.case.content["checks"].get("null") == "quarantine" and number % 2:
            table = table.with_columns(user=pl.when(pl.int_range(pl.len()) != 3).then("user"))
        if self.case.shape == "impressions":
            shown = [
                self._ids(rng.choice(np.arange(100, 109), size, replace=False))
                for size in rng.integers(1, 4, len(table))
            ]
            clicked = [one[: int(rng.integers(0, 2))] for one in shown]
            table = table.drop("item", "rating").with_columns(
                shown=pl.Series(shown),
                clicked=pl.Series(clicked, dtype=pl.List(pl.String if self.case.text_ids else pl.Int64)),
            )
        table.write_parquet(self.folder / "log" / f"{name or 'day'}-{number:02d}.parquet")

    def step(self, what: str, number: int) -> None:
        """Let something happen to the files."""
        if what == "days":
            for one in range(number):
                if not (self.folder / f"log/day-{one:02d}.parquet").exists() and one not in self._missing:
                    self.day(one)
        elif what == "gap":
            self._missing.add(number - 4)
            self.step("days", number)
        elif what == "late":
            self.day(number, "late", salt=1, rows=2)
        elif what == "rewrite":
            self.day(number, salt=2 + len(list(self.folder.iterdir())))
        elif what == "copy":
            file = self.folder / f"log/day-{number:02d}.parquet"
            if file.exists():
                (self.folder / f"log/day-{number:02d}-again.parquet").write_bytes(file.read_bytes())
        elif what == "items":
            self._items(salt=1 + number)

    def _ids(self, numbers: np.ndarray) -> list[Any]:
        return [f"i{one}" if self.case.text_ids else int(one) for one in numbers.tolist()]

    def _tables(self) -> None:
        rng = np.random.default_rng(self.case.seed)
        self._items(salt=0)
        users = [one for one in range(USERS + 3) if one != 2]
        since = [start_of(int(one)) for one in rng.integers(-3, DAYS, len(users))]
        table = {"user": self._ids(np.array(users)), "segment": [f"s{one % 3}" for one in users], "since": since}
        pl.DataFrame(table).write_parquet(self.folder / "users.parquet")
        count = 12
        past = {
            "user": self._ids(rng.integers(0, USERS + 2, count)),
            "item": self._ids(rng.integers(100, 112, count)),
            "time": start_of(0) + rng.integers(-5, 60, count) * (SECONDS_A_DAY // 12),
            "load": rng.random(count).round(2),
            "device": rng.choice(["phone", "desk"], count),
        }
        pl.DataFrame(past).write_parquet(self.folder / "past.parquet")
        every = np.arange(100, 100 + ITEMS + DAYS)
        for name, width in (("text", 4), ("image", 3)):
            some = every[rng.random(len(every)) < 0.9]
            vectors = {
                "item": self._ids(some),
                "vector": rng.normal(size=(len(some), width)).astype(np.float32).tolist(),
            }
            pl.DataFrame(vectors).write_parquet(self.folder / f"{name}.parquet")

    def _items(self, salt: int) -> None:
        rng = np.random.default_rng([self.case.seed, salt])
        ids = [one for one in range(100, 100 + ITEMS + 4) if one != 103 + salt % 4]
        versions = ids + ids if "valid_from" in self.case.content.get("items", {}) else ids
        table = {
            "item": self._ids(np.array(versions)),
            "genre": rng.choice(["drama", "noir", "jazz"], len(versions)),
            "tags": [
                rng.choice(["a", "b", "c"], size, replace=False).tolist() for size in rng.integers(0, 4, len(versions))
            ],
            "price": rng.integers(1, 9, len(versions)).astype(np.float64),
            "since": [start_of(-5)] * len(ids)
            + [start_of(int(one)) for one in rng.integers(0, DAYS, len(versions) - len(ids))],
        }
        pl.DataFrame(table).write_parquet(self.folder / "items.parquet")
