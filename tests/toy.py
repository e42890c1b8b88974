"""A small feature set on disk, made without the builder: every semantic type, labels that can be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from features.contract.contract import Contract
from features.point_in_time.counters import running
from features.store.feature_set import (
    FORMAT,
    MANIFEST,
    SPLITS,
    Code,
    FeatureSet,
    FileEntry,
    Manifest,
    PartEntry,
    Window,
    sha256_of,
    write_arrow,
)
from features.store.schema import FIRST_VALUE, UNKNOWN, Field, Schema, VectorSet

GENRES, TAGS, SEGMENTS, HOURS = 4, 7, 4, 6
TAGS_LEN, HISTORY_LEN = 3, 8
WIDTHS = {"text": 12, "image": 6}
HOUR_US = 3_600_000_000
DAYS = 30

CONTRACT = Contract.model_validate(
    {
        "name": "toy",
        "interactions": {
            "path": "interactions.parquet",
            "user": "user_id",
            "item": "item_id",
            "time": "time",
            "label": "clicked",
            "weight": "importance",
            "context": {"hour": {"type": "categorical"}, "load": {"type": "numeric"}},
        },
        "items": {
            "path": "items.parquet",
            "id": "item_id",
            "columns": {
                "genre": {"type": "categorical"},
                "tags": {"type": "tags", "max_len": TAGS_LEN},
                "price": {"type": "numeric"},
            },
        },
        "users": {
            "path": "users.parquet",
            "id": "user_id",
            "columns": {"segment": {"type": "categorical"}},
        },
        "embeddings": {"text": {"path": "text.parquet"}, "image": {"path": "image.parquet"}},
        "counters": {"item_rate": {"of": "item", "value": "rate"}},
        "history": {
            "max_len": HISTORY_LEN,
            "columns": {
                "label": {"type": "categorical"},
                "residual": {"type": "residual", "counter": "item_rate"},
            },
        },
    }
)


def toy_feature_set(
    folder: Path, *, rows: int = 2000, users: int = 100, items: int = 60, parts: int = 2, seed: int = 0
) -> FeatureSet:
    """Write a feature set into `folder` and open it.

    Each user likes one genre: a click has probability 0.75 there and 0.15 elsewhere. The genre stands in a
    column, behind both vector sets (`text` for all items, `image` for two thirds), and the user's segment
    tells it half of the time; the clicks of the history tell the rest. The newest tenth of the items is
    seen only after training, so its id index is 1. Times lie on whole hours: a user's rows tie sometimes.
    A tenth of the rows has no item rate, and so no residual as an event.

    Files the trainer does not read (vocabularies, encoder.json, profile.json) are not written.
    """
    draw = np.random.default_rng(seed)
    genre = draw.integers(GENRES, size=items)
    taste = draw.integers(GENRES, size=users)
    log = _draw_log(draw, rows, genre, taste)
    split = np.digitize(log["time"], np.quantile(log["time"], [0.8, 0.9]))
    new = np.arange(items) >= items - max(1, items // 10)
    log["item"] = np.where((split == 0) & new[log["item"]], 0, log["item"])
    liked = genre[log["item"]] == taste[log["user"]]
    log["label"] = (draw.random(rows) < np.where(liked, 0.75, 0.15)).astype(np.int64)
    rate = running(log["item"], log["time"], log["label"], CONTRACT.counters["item_rate"], mean=0.3)
    log["item_rate"] = np.where(np.arange(rows) % 10 == 7, np.nan, rate)

    windows = _write_log(folder, log, split, parts)
    item_seen = np.bincount(log["item"][split == 0], minlength=items)
    user_seen = np.bincount(log["user"][split == 0], minlength=users)
    item_id, item_ids = _id_column(item_seen)
    user_id, user_ids = _id_column(user_seen)
    _write_items(folder, draw, genre, item_id)
    known = draw.random(users) < 0.5
    segment = np.where(known, taste, draw.integers(SEGMENTS, size=users))
    write_arrow(folder / "users.arrow", {"user_id": user_id, "segment": _catalogue(segment + FIRST_VALUE)})
    complete = _write_vectors(folder, draw, genre)

    schema = Schema(
        items=items + FIRST_VALUE,
        users=users + FIRST_VALUE,
        item=(
            _category("item_id", item_ids),
            _category("genre", GENRES + FIRST_VALUE),
            Field(name="tags", kind="tags", size=TAGS + FIRST_VALUE, max_len=TAGS_LEN),
            _number("price"),
        ),
        user=(_category("user_id", user_ids), _category("segment", SEGMENTS + FIRST_VALUE)),
        context=(_category("hour", HOURS + FIRST_VALUE), _number("load")),
        candidate=(_number("item_rate"),),
        event=(_category("label", 2 + FIRST_VALUE), _number("residual")),
        vectors=tuple(VectorSet(name=name, width=width, complete=complete[name]) for name, width in WIDTHS.items()),
        history_max_len=HISTORY_LEN,
    )
    _write_manifest(folder, schema, windows, parts)
    return FeatureSet.open(folder)


def _number(name: str) -> Field:
    return Field(name=name, kind="numeric", edges=(-3.0, -1.0, -0.3, 0.3, 1.0, 3.0))


def _category(name: str, size: int) -> Field:
    return Field(name=name, kind="categorical", size=size)


def _draw_log(draw: np.random.Generator, rows: int, genre: np.ndarray, taste: np.ndarray) -> dict[str, np.ndarray]:
    """Impressions by user and time; users and items count from 0 here."""
    log = {
        "user": draw.integers(len(taste), size=rows),
        "item": draw.integers(len(genre), size=rows),
        "time": draw.integers(24 * DAYS, size=rows) * HOUR_US,
    }
    order = np.lexsort([log["time"], log["user"]])
    log = {name: values[order] for name, values in log.items()}
    log["hour"] = draw.integers(HOURS, size=rows) + FIRST_VALUE
    load = draw.standard_normal(rows)
    log["load"] = np.where(draw.random(rows) < 0.1, np.nan, load)
    log["weight"] = draw.choice([0.5, 1.0, 2.0], size=rows)
    return log


def _write_log(folder: Path, log: dict[str, np.ndarray], split: np.ndarray, parts: int) -> dict[Any, Window]:
    for part in range(parts):
        inside = log["user"] % parts == part
        columns = {name: values[inside] for name, values in log.items()}
        user, time, index = columns["user"], columns["time"], np.arange(int(inside.sum()))
        user_start = np.searchsorted(user, user, side="left")
        # Events of one user and time share the first one's place: none of them sees another.
        tied = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
        history_end = np.maximum.accumulate(np.where(np.r_[False, tied], 0, index))
        history_len = np.minimum(history_end - user_start, HISTORY_LEN)
        events = {
            "item": columns["item"] + FIRST_VALUE,
            "time": time,
            "label": columns["label"] + FIRST_VALUE,
            "residual": columns["label"] - columns["item_rate"],
        }
        dtypes = {"time": np.int64, "residual": np.float32}
        write_arrow(folder / f"events/part-{part:05d}.arrow", _typed(events, dtypes))
        for number, name in enumerate(SPLITS):
            chosen = split[inside] == number
            table = {
                "user": user + FIRST_VALUE,
                "item": columns["item"] + FIRST_VALUE,
                "label": columns["label"],
                "time": time,
                "weight": columns["weight"],
                "hour": columns["hour"],
                "load": columns["load"],
                "item_rate": columns["item_rate"],
                "history_end": history_end,
                "history_len": history_len,
            }
            floats = dict.fromkeys(("label", "weight", "load", "item_rate"), np.float32)
            wide = dict.fromkeys(("time", "history_end"), np.int64)
            table = _typed({n: v[chosen] for n, v in table.items()}, {**floats, **wide})
            write_arrow(folder / f"rows/{name}/part-{part:05d}.arrow", table)
    return {name: _window(log, split == number) for number, name in enumerate(SPLITS)}


def _typed(columns: dict[str, np.ndarray], dtypes: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: values.astype(dtypes.get(name, np.int32)) for name, values in columns.items()}


def _window(log: dict[str, np.ndarray], chosen: np.ndarray) -> Window:
    time = log["time"][chosen]
    return Window(
        rows=int(chosen.sum()),
        positives=int(log["label"][chosen].sum()),
        first_time=int(time.min()),
        last_time=int(time.max()),
    )


def _id_column(seen: np.ndarray) -> tuple[np.ndarray, int]:
    """Id-embedding index of each catalogue row, 1 for ids seen less than twice in training; and its size."""
    known = seen >= 2
    index = np.where(known, np.cumsum(known) - 1 + FIRST_VALUE, UNKNOWN)
    return _catalogue(index), int(known.sum()) + FIRST_VALUE


def _catalogue(values: np.ndarray) -> np.ndarray:
    """Values of the real rows, with padding row 0 and unknown row 1 in front."""
    return np.concatenate([[0, UNKNOWN], values]).astype(np.int32)


def _write_items(folder: Path, draw: np.random.Generator, genre: np.ndarray, item_id: np.ndarray) -> None:
    items = len(genre)
    tags = draw.integers(FIRST_VALUE, TAGS + FIRST_VALUE, size=(items, TAGS_LEN))
    tags[np.arange(TAGS_LEN) >= draw.integers(TAGS_LEN + 1, size=(items, 1))] = 0
    padding, unknown = np.zeros((1, TAGS_LEN)), np.array([[UNKNOWN, 0, 0]])
    price = np.where(draw.random(items) < 0.2, np.nan, draw.standard_normal(items))
    columns = {
        "item_id": item_id,
        "genre": _catalogue(genre + FIRST_VALUE),
        "tags": np.concatenate([padding, unknown, tags]).astype(np.int32),
        "price": np.concatenate([[np.nan, np.nan], price]).astype(np.float32),
    }
    write_arrow(folder / "items.arrow", columns)


def _write_vectors(folder: Path, draw: np.random.Generator, genre: np.ndarray) -> dict[str, bool]:
    """Unit vectors around their genre's centre; returns which sets have a vector for every item."""
    (folder / "embeddings").mkdir(parents=True, exist_ok=True)
    complete = {}
    for name, width in WIDTHS.items():
        centres = draw.standard_normal((GENRES, width))
        vectors = centres[genre] + 0.5 * draw.standard_normal((len(genre), width))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        has = np.ones(len(genre), bool) if name == "text" else draw.random(len(genre)) < 2 / 3
        present = np.concatenate([[False, False], has])
        table = np.concatenate([np.zeros((2, width)), vectors * has[:, None]]).astype(np.float32)
        np.save(folder / f"embeddings/{name}.npy", table)
        np.save(folder / f"embeddings/{name}.present.npy", present)
        complete[name] = bool(has.all())
    return complete


def _write_manifest(folder: Path, schema: Schema, windows: dict[Any, Window], parts: int) -> None:
    files = {
        path.relative_to(folder).as_posix(): FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    fingerprint = CONTRACT.fingerprint()
    manifest = Manifest(
        format=FORMAT,
        name=CONTRACT.name,
        version=f"1970-01-31-{fingerprint[:8]}",
        fingerprint=fingerprint,
        contract=CONTRACT,
        schema_=schema,
        windows=windows,
        shards=parts,
        parts=tuple(
            PartEntry(split=split, rows=f"rows/{split}/part-{i:05d}.arrow", events=f"events/part-{i:05d}.arrow")
            for split in SPLITS
            for i in range(parts)
        ),
        files=files,
        code=Code(sha256="", revision="toy"),
        versions={},
        seconds={},
        source="tests/toy.py",
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
