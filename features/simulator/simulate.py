"""Writes a raw log of known click probabilities, so that a pipeline can be measured against the optimum.

Users with a few interests open sessions of page requests; a page shows distinct items, some popular, some
after the user's interests; each is clicked with a probability that `simulator_world` knows exactly. The
files look like any user's own log. `truth.parquet` lies beside them for evaluation alone.

Shapes: Q requests, K slots of a page, I items.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError
from features.simulator.traffic import Requests, Shelf, chunks, draw_requests
from features.simulator.world import (
    AGE_GROUPS,
    CATEGORIES,
    COUNTRIES,
    DAY,
    DEVICES,
    END,
    MAX_POSITION,
    START,
    World,
    build_world,
    tag_names,
    with_changing_tastes,
)

# The two logs are moved into place last: they are what a reader of the folder needs all the others for.
FILES = (
    "items.parquet",
    "users.parquet",
    "text.parquet",
    "image.parquet",
    "truth.parquet",
    "interactions.parquet",
)

MIN_ITEMS = 30  # a page of MAX_POSITION distinct items can be filled from those that exist at the start
ROW_GROUP = 250_000
AUC_BINS = 1 << 16

TIMESTAMP = pa.timestamp("us", tz="UTC")
INTERACTIONS = pa.schema(
    {
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "timestamp": TIMESTAMP,
        "hour": pa.int8(),
        "device": pa.string(),
        "position": pa.int16(),
        "clicked": pa.int8(),
        "liked": pa.int8(),
        "seconds": pa.float32(),
    }
)
TRUTH = pa.schema({"user_id": pa.int64(), "item_id": pa.int64(), "timestamp": TIMESTAMP, "probability": pa.float32()})


@dataclass(frozen=True)
class SimulationSummary:
    """What was written: counts, the share of clicks, and the AUC of the true probabilities."""

    rows: int
    users: int
    items: int
    click_rate: float
    optimal_auc: float
    seconds: float


def simulate(
    out: Path,
    *,
    rows: int = 600_000,
    users: int = 5_000,
    items: int = 3_000,
    seed: int = 1,
    drift: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> SimulationSummary:
    """Write `interactions`, `items`, `users`, `text`, `image` and `truth` (all .parquet) into `out`.

    The log covers six weeks in order of time; (user, item, timestamp) is unique; the items of a page share
    their timestamp. The same arguments give the same files. Rows pass through memory in chunks; only
    users, items and page requests (one for about six rows) are held: 0.5 GiB for 10 million rows.

    Args:
        out: folder, made if missing. Files of an earlier simulation there are replaced.
        rows: impressions, at least one a user.
        users: rows of `users.parquet`; about 60 impressions a user make histories worth reading.
        items: rows of `items.parquet`, at least 30; a third appears during the six weeks.
        seed: of everything random.
        drift: how far the interests of users have gone towards others when the six weeks end, 0 to 1. At 0 they stay.
        progress: called with (rows done, rows in all) after each chunk.

    Raises:
        ConfigError: impossible arguments, or `out` cannot be written.
    """
    _check(out, rows, users, items, seed, drift)
    began = time.perf_counter()
    world_rng, *log_rngs = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5))
    request_rng, page_rng, reaction_rng, taste_rng = log_rngs
    work = out / f".simulating-{secrets.token_hex(4)}"
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error}") from None
    try:
        world = build_world(world_rng, users, items)
        if drift:
            world = with_changing_tastes(world, taste_rng, drift)
        _write_tables(work, world)
        requests = draw_requests(request_rng, world.users, rows)
        click_rate, optimal_auc = _write_log(work, world, requests, (page_rng, reaction_rng), rows, progress)
        for name in FILES:
            (work / name).replace(out / name)
    finally:
        shutil.rmtree(work)
    return SimulationSummary(rows, users, items, click_rate, optimal_auc, time.perf_counter() - began)


def _check(out: Path, rows: int, users: int, items: int, seed: int, drift: float) -> None:
    if not 0 <= drift <= 1:
        raise ConfigError(f"drift {drift}: the share of the way that interests go is from 0 to 1.")
    if users < 1:
        raise ConfigError(f"--users {users}: simulate at least 1 user.")
    if items < MIN_ITEMS:
        raise ConfigError(f"--items {items}: simulate at least {MIN_ITEMS} items, or pages cannot be filled.")
    if rows < users:
        raise ConfigError(f"--rows {rows}: fewer rows than the {users} users. Raise --rows or lower --users.")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: give 0 or a positive number.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: a file, not a folder. Name another folder.")


def _write_log(
    work: Path,
    world: World,
    requests: Requests,
    rngs: tuple[np.random.Generator, np.random.Generator],
    rows: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[float, float]:
    """Serve the requests, draw the clicks, write log and truth; returns click rate and AUC of the truth.

    What follows a click is drawn from a generator of its own (the second): pages and clicks do not depend on it.
    """
    impressions, done = np.zeros(AUC_BINS, dtype=np.int64), 0
    clicks = np.zeros(AUC_BINS, dtype=np.int64)
    with (
        _RowGroups(work / "interactions.parquet", INTERACTIONS) as log,
        _RowGroups(work / "truth.parquet", TRUTH) as truth,
    ):
        for shelf, chunk in chunks(world.items, requests):
            columns, probability, match = _serve(world, shelf, chunk, rngs[0])
            log.write(columns | _reactions(columns["clicked"], match, rngs[1]))
            truth.write({**{name: columns[name] for name in TRUTH.names[:3]}, "probability": probability})
            bins = np.minimum((probability * AUC_BINS).astype(np.int64), AUC_BINS - 1)
            impressions += np.bincount(bins, minlength=AUC_BINS)
            clicks += np.bincount(bins[columns["clicked"] == 1], minlength=AUC_BINS)
            done += len(probability)
            if progress is not None:
                progress(done, rows)
    return float(clicks.sum() / rows), _binned_auc(clicks, impressions - clicks)


def _serve(
    world: World, shelf: Shelf, requests: Requests, rng: np.random.Generator
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The impressions of some requests as log columns, their true probabilities, and the match of user and item."""
    page_QK = shelf.pages(rng, world.users, requests.user)
    request, slot = np.nonzero(np.arange(MAX_POSITION) < requests.size[:, None])
    item, user, device = page_QK[request, slot], requests.user[request], requests.device[request]
    at = requests.time[request]
    hour, position = at // (DAY // 24) % 24, slot + 1
    passed = (at - START) / (END - START)
    probability = world.probability(
        user=user,
        item=item,
        hour=hour,
        device=device,
        position=position,
        popularity=shelf.popularity[item],
        passed=passed,
    )
    columns = {
        "user_id": world.users.id[user],
        "item_id": world.items.id[item],
        "timestamp": at,
        "hour": hour.astype(np.int8),
        "device": _names(DEVICES, device),
        "position": position.astype(np.int16),
        "clicked": (rng.random(len(item)) < probability).astype(np.int8),
    }
    return columns, probability, world.match(user, item, passed)


def _reactions(clicked: np.ndarray, match: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What follows a click: the better the match, the likelier a like and the longer the stay. Else nothing."""
    liked = rng.random(len(match)) < 1 / (1 + np.exp(2.2 - 3.0 * match))
    seconds = np.exp(rng.normal(2.6 + 1.2 * match, 0.9))
    return {"liked": (clicked * liked).astype(np.int8), "seconds": (clicked * seconds).round(1).astype(np.float32)}


def _binned_auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """AUC from counts by rising score; NaN where one class is missing. A pair in one bin counts half."""
    if not positives.sum() or not negatives.sum():
        return float("nan")
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / (positives.sum() * negatives.sum()))


class _RowGroups:
    """A Parquet file written in row groups of about `ROW_GROUP` rows, whatever the size of the pieces."""

    def __init__(self, path: Path, schema: Any) -> None:
        self._writer, self._schema = pq.ParquetWriter(path, schema, compression="zstd"), schema
        self._waiting: list[Any] = []

    def __enter__(self) -> _RowGroups:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def write(self, columns: dict[str, Any]) -> None:
        arrays = [pa.array(columns[field.name], type=field.type) for field in self._schema]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        if sum(len(table) for table in self._waiting) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting = []


def _write_tables(work: Path, world: World) -> None:
    """The tables of users and items and the two vector sets, each in order of its ids."""
    users, items = world.users, world.items
    by_id = np.argsort(users.id)
    age = pa.array(users.age[by_id], mask=users.age[by_id] == len(AGE_GROUPS))
    columns = {
        "user_id": users.id[by_id],
        "age_group": pa.array(AGE_GROUPS).take(age),
        "country": _names(COUNTRIES, users.country[by_id]),
    }
    pq.write_table(pa.table(columns), work / "users.parquet")

    by_id = np.argsort(items.id)
    price = items.price[by_id]
    columns = {
        "item_id": items.id[by_id],
        "category": _names(CATEGORIES, items.category[by_id]),
        "tags": _tag_lists(items.tags[by_id]),
        "price": pa.array(price, mask=np.isnan(price)),
        "created": pa.array(items.created[by_id], type=TIMESTAMP),
    }
    pq.write_table(pa.table(columns), work / "items.parquet")
    _write_vectors(work / "text.parquet", items.id[by_id], items.text[by_id])
    by_id = by_id[items.has_image[by_id]]
    _write_vectors(work / "image.parquet", items.id[by_id], items.image[by_id])


def _write_vectors(path: Path, ids: np.ndarray, vectors: np.ndarray) -> None:
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    pq.write_table(pa.table({"item_id": ids, "vector": vector}), path)


def _tag_lists(tags_IM: np.ndarray) -> Any:
    ends = np.cumsum((tags_IM >= 0).sum(axis=1))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, _names(tag_names(), tags_IM[tags_IM >= 0]))


def _names(names: Any, index: np.ndarray) -> Any:
    return pa.array(names).take(pa.array(index))
