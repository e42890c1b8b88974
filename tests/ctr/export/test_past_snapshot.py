"""The pasts that a bundle brings are the newest events of the raw log, user by user."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctr.export import past_snapshot
from ctr.export.past_snapshot import write_pasts
from ctr.serving.bundle import open_bundle
from ctr.serving.pasts.snapshot import SnapshotPasts
from ctr.serving.pasts.stores import Stores
from ctr.serving.settings import PastsSettings
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.encoding.past import PastEvent
from features.errors import ConfigError, DataError
from features.store.feature_set import FeatureSet

START = datetime(2026, 1, 1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSet, pl.DataFrame]:
    """A feature set, and the log that it was built from; the log has grown since."""
    folder = tmp_path_factory.mktemp("stars")
    draw = np.random.default_rng(3)
    log = pl.DataFrame(
        {
            "who": draw.integers(12, size=200),
            "what": 100 + draw.integers(30, size=200),
            "at": [START + timedelta(seconds=int(one)) for one in draw.integers(400, size=200)],
            "stars": [None if i % 7 == 3 else float(i % 6) for i in range(200)],
            "heard": [float("nan") if i % 5 == 2 else i / 8 for i in range(200)],
            "seen": [(START + timedelta(days=i)).date() for i in range(200)],
            "said": pl.Series(["yes" if i % 2 else "no" for i in range(200)], dtype=pl.Categorical),
            "other": range(200),
        }
    )
    log.write_parquet(folder / "log.parquet")
    columns = {
        "label": {"type": "categorical"},
        "heard": {"type": "numeric"},
        "day": {"type": "date", "part": "weekday", "source": "seen"},
        "when": {"type": "date", "part": "hour", "source": "at"},
        "answer": {"type": "categorical", "source": "said"},
    }
    log_of = {"path": "log.parquet", "user": "who", "item": "what", "time": "at", "label": "coalesce(stars, 0) >= 4"}
    content = {"name": "stars", "root": str(folder), "interactions": log_of}
    contract = Contract.model_validate(content | {"history": {"max_len": 5, "columns": columns}})
    feature_set = build_feature_set(contract, folder / "out").feature_set
    later = log.tail(5).with_columns(pl.col("at") + pl.duration(days=1))
    pl.concat([log, later]).write_parquet(folder / "log.parquet")
    return feature_set, log


def expected(log: pl.DataFrame, user: int) -> list[PastEvent]:
    """The newest six, value by value."""
    found = []
    for row in log.sort("at", maintain_order=True).filter(pl.col("who") == user).tail(6).to_dicts():
        heard = None if row["heard"] != row["heard"] else row["heard"]
        columns = {"stars": row["stars"], "heard": heard, "seen": row["seen"].isoformat(), "said": row["said"]}
        found.append(PastEvent(row["what"], int((row["at"] - datetime(1970, 1, 1)).total_seconds()) * 10**6, columns))
    return found


def opened(bundle: Path, encoder: Encoder, outcomes: list[str]) -> SnapshotPasts:
    pasts = Stores(PastsSettings(kind="snapshot"), outcomes.append).of(bundle, encoder)
    assert isinstance(pasts, SnapshotPasts)
    return pasts


@pytest.mark.parametrize("block", [5, 10_000])
def test_each_user_has_the_newest_events_of_the_log(
    built: tuple[FeatureSet, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    feature_set, log = built
    monkeypatch.setattr(past_snapshot, "USERS_A_BLOCK", block)
    encoder, outcomes = Encoder.load(feature_set.path), list[str]()
    write_pasts(feature_set, encoder, tmp_path)
    pasts = opened(tmp_path, encoder, outcomes)
    for user in range(12):
        assert pasts.newest(user) == expected(log, user)
    assert outcomes == ["found"] * 12
    assert pasts.newest(99) == [] and pasts.newest("text") == [] and outcomes[12:] == ["absent"] * 2
    pasts.add(3, [PastEvent(1, 10**18)])
    assert pasts.newest(3) == expected(log, 3)


def test_of_users_that_the_bundle_does_not_know_nobody_reads_anything(
    built: tuple[FeatureSet, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that has grown may hold late events of users who came after the build; they share no row."""
    feature_set, _ = built
    late = {"_user": [3, 77, 78], "_item": [101, 102, 103], "_time": [1, 2, 3]}
    monkeypatch.setattr(past_snapshot, "newest_events", lambda *_: pl.DataFrame(late))
    encoder, outcomes = Encoder.load(feature_set.path), list[str]()
    write_pasts(feature_set, encoder, tmp_path)
    pasts = opened(tmp_path, encoder, outcomes)
    assert pasts.newest(77) == pasts.newest(99) == pasts.newest(None) == []
    assert [event.item for event in pasts.newest(3)] == [101]


def test_of_another_contract_nothing_is_read(built: tuple[FeatureSet, pl.DataFrame], tmp_path: Path) -> None:
    encoder, outcomes = Encoder.load(built[0].path), list[str]()
    write_pasts(built[0], encoder, tmp_path)
    other = encoder.contract.model_copy(update={"name": "other"})
    assert SnapshotPasts(tmp_path, other, encoder.users, outcomes.append).newest(3) == []
    assert outcomes == ["foreign"]


def test_a_bundle_without_pasts_says_how_to_get_them(built: tuple[FeatureSet, pl.DataFrame], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path.name} was exported without pasts.*quadrank export --pasts"):
        opened(tmp_path, Encoder.load(built[0].path), [])


def test_a_log_without_events_gives_empty_pasts(
    built: tuple[FeatureSet, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        past_snapshot,
        "newest_events",
        lambda *_: pl.DataFrame(schema={"_user": pl.Int64, "_item": pl.Int64, "_time": pl.Int64}),
    )
    encoder, outcomes = Encoder.load(built[0].path), list[str]()
    write_pasts(built[0], encoder, tmp_path)
    assert opened(tmp_path, encoder, outcomes).newest(3) == [] and outcomes == ["absent"]


def test_an_export_brings_them_where_that_is_asked_for(tmp_path: Path) -> None:
    from ctr.config import ModelConfig
    from ctr.export.export_bundle import Extras, export_bundle
    from tests.trained import built_feature_set, random_model

    feature_set = built_feature_set(tmp_path)
    model = random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4), seed=5)
    common: dict[str, Any] = {"architecture": "qin", "controls": {}, "git_revision": "0123abcd", "model_version": "a"}
    metrics = {"test": {"auc": 0.71, "auc_low": 0.69, "log_loss": 0.512}}
    export_bundle(model, feature_set, tmp_path / "with", metrics=metrics, extras=Extras(pasts=True), **common)
    assert {"pasts/offsets.npy", "pasts/events.bin"} <= set(open_bundle(tmp_path / "with").manifest.files)
    user = Encoder.load(tmp_path / "with").users.value(2)
    log = pl.read_parquet(tmp_path / "raw" / "log.parquet").filter(pl.col("user") == user)
    newest = opened(tmp_path / "with", Encoder.load(tmp_path / "with"), []).newest(user)
    wanted = log.select("item", "clicked").tail(7).rows()
    assert [(event.item, event.columns["clicked"]) for event in newest] == wanted
    (tmp_path / "raw" / "log.parquet").unlink()
    with pytest.raises(DataError, match=r"log\.parquet"):
        export_bundle(model, feature_set, tmp_path / "gone", metrics=metrics, extras=Extras(pasts=True), **common)
    assert not (tmp_path / "gone").exists()
