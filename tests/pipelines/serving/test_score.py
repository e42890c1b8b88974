"""`quadrank score`: a table of rows gets the scores that `quadrank rank` gives each of them alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ctr.config import ModelConfig
from ctr.export.past_snapshot import write_pasts
from ctr.export.precision.put import VariantChoice, put_variant
from ctr.export.serving_graph import RequestGraph
from ctr.model.click_model import ClickModel
from ctr.serving.agreement import TOLERANCE, logit_difference
from ctr.serving.bundle import SCORER, Bundle, Golden, open_bundle, seal
from ctr.serving.items.new_items import items_of_table
from ctr.serving.items.upsert import upsert_items
from ctr.serving.ranker import Ranker
from ctr.serving.scoring import batches
from ctr.serving.scoring.scorer import Scorer
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError, NumericalError
from features.requests.request_rows import RowEncoder
from features.store.feature_set import FeatureSet
from pipelines.cli.commands import main
from pipelines.serving import score
from pipelines.serving.score import score_file
from tests.ctr.serving.shop import export
from tests.ctr.serving.test_golden_replay import with_a_wrong_weight
from tests.trained import HISTORY_LEN, built_feature_set, random_model

NEW = 900  # an item that is upserted


def modelled(folder: Path) -> tuple[ClickModel, FeatureSet]:
    feature_set = built_feature_set(folder)
    parts = {"match_features": True, "evidence_heads": 2, "evidence_values": 2, "tasks": ("like", "stay")}
    return random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4, **parts), seed=5), feature_set


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `raw/log.parquet`, `bundle` and `rows.parquet`."""
    folder = tmp_path_factory.mktemp("shop")
    model, feature_set = modelled(folder)
    export(model, feature_set, folder / "bundle", scorer=True)
    draw = np.random.default_rng(1)
    count = 60
    pl.DataFrame(
        {
            # u20 to u22 and items 95 to 99 and 140 to 144 are unknown; two moments before the log have no history.
            "user": [f"u{user}" for user in draw.integers(0, 23, count)],
            "item": draw.integers(95, 145, count),
            "time": [0, 1, *draw.integers(0, 10**6, count - 2)],
            "device": [("phone", "tv", None)[place] for place in draw.integers(0, 3, count)],
            "load": [None if i % 7 == 0 else value for i, value in enumerate(draw.exponential(3, count))],
            "item_rate": [None if i % 2 else value for i, value in enumerate(draw.random(count))],
        }
    ).write_parquet(folder / "rows.parquet")
    return folder


@pytest.fixture(scope="module")
def rows(shop: Path) -> pl.DataFrame:
    return pl.read_parquet(shop / "rows.parquet")


def scored(shop: Path, out: Path, table: pl.DataFrame, events: bool = True, **settings: Any) -> dict[str, Any]:
    """Score a table; the summary."""
    table.write_parquet(out / "input.parquet")
    return score_file(
        settings.get("bundle", shop / "bundle"),
        out / "input.parquet",
        out / "output.parquet",
        shop / "raw/log.parquet" if events else None,
        settings.get("batch", 1000),
        1,
        Console(quiet=True),
        **{name: settings[name] for name in ("pasts", "strict") if name in settings},
    )


def outputs(out: Path) -> np.ndarray:
    return pl.read_parquet(out / "output.parquet").select("score", "score_like", "score_stay").to_numpy()


def alone(ranker: Ranker, request: dict[str, Any]) -> list[float]:
    """Scores of a request of one candidate, by the path of a server."""
    (ranked,) = ranker.rank(request).ranked
    return [ranked.score, *ranked.tasks.values()]


def request_of(row: dict[str, Any], history: list[Any]) -> dict[str, Any]:
    candidate = {"item": row["item"]} | ({"item_rate": row["item_rate"]} if row["item_rate"] is not None else {})
    context = {"device": row["device"], "load": row["load"]}
    asked = {"user": row["user"], "context": context, "history": history, "candidates": [candidate]}
    return asked | ({"time": row["time"]} if "time" in row else {})


def logged(shop: Path, user: str) -> list[dict[str, Any]]:
    """The whole log of a user, later events included."""
    log = pl.read_parquet(shop / "raw/log.parquet").filter(pl.col("user") == user)
    return log.drop("user").to_dicts()


@pytest.fixture(scope="module")
def with_pasts(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with the newest events of each user."""
    bundle = shutil.copytree(shop / "bundle", tmp_path_factory.mktemp("pasts") / "bundle")
    (feature_set,) = (shop / "feature_sets" / "shop").glob("[!.]*/MANIFEST.json")
    write_pasts(FeatureSet.open(feature_set.parent), Encoder.load(bundle), bundle)
    seal(bundle, open_bundle(shop / "bundle").manifest)
    return bundle


def test_rows_score_with_the_pasts_of_the_bundle(
    shop: Path, rows: pl.DataFrame, with_pasts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctr.serving.scoring.bundle_pasts.USERS_A_BLOCK", 7)
    table = rows.with_columns(user=pl.when(pl.int_range(60) % 11 == 5).then(None).otherwise("user"))
    scored(shop, tmp_path, table, events=False, bundle=with_pasts, pasts=True)
    ranker = Ranker.load(shop / "bundle")

    def newest(user: str | None) -> list[dict[str, Any]]:
        log = pl.read_parquet(shop / "raw/log.parquet").filter(pl.col("user") == user)
        # One more than the longest history, for the pause before its first event.
        return log.sort("time", maintain_order=True).tail(HISTORY_LEN + 1).drop("user").to_dicts()

    expected = np.array([alone(ranker, request_of(row, newest(row["user"]))) for row in table.to_dicts()])
    assert logit_difference(outputs(tmp_path), expected) <= TOLERANCE
    scored(shop, tmp_path, table, events=False)
    assert (np.abs(outputs(tmp_path) - expected).max(axis=1) > 1e-4).sum() > 10


@pytest.mark.parametrize("users", [["u90", None], ["u3"]])
def test_users_without_a_past_have_none(
    shop: Path, rows: pl.DataFrame, with_pasts: Path, tmp_path: Path, users: list[str | None]
) -> None:
    table = pl.concat([rows.head(1).with_columns(user=pl.lit(user), time=pl.lit(1)) for user in users])
    scored(shop, tmp_path, table, events=False, bundle=with_pasts, pasts=True)
    first = outputs(tmp_path)
    scored(shop, tmp_path, table, events=False)
    assert logit_difference(first, outputs(tmp_path)) <= TOLERANCE


def test_pasts_are_given_once_and_by_a_bundle_that_has_them(
    shop: Path, rows: pl.DataFrame, with_pasts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"bundle was exported without pasts\. Export the run with `quadrank export"):
        scored(shop, tmp_path, rows, events=False, pasts=True)
    with pytest.raises(ConfigError, match="--pasts and --events both give histories"):
        scored(shop, tmp_path, rows, bundle=with_pasts, pasts=True)
    with pytest.raises(ConfigError, match="rows have a column `history`, but --pasts gives histories too"):
        scored(shop, tmp_path, rows.with_columns(history=[101]), events=False, bundle=with_pasts, pasts=True)
    with pytest.raises(DataError, match="'user': holds Int64 where text"):
        scored(shop, tmp_path, rows.with_columns(user=pl.lit(7, pl.Int64)), events=False, bundle=with_pasts, pasts=True)
    assert [path.name for path in tmp_path.iterdir()] == ["input.parquet"]


def test_strict_refuses_rows_that_lack_what_the_model_was_trained_on(
    shop: Path, rows: pl.DataFrame, tmp_path: Path
) -> None:
    lacking = rows["load"].null_count()
    with pytest.raises(
        ConfigError, match=rf"missing: device \({rows['device'].null_count()} rows\), load \({lacking} rows"
    ):
        scored(shop, tmp_path, rows, strict=True)
    # A column that lacks has the contract's default, where it declares one.
    with pytest.raises(ConfigError, match=r"missing: load \(60 rows\)\. The model was trained on these values"):
        scored(shop, tmp_path, rows.drop("device", "load"), strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["input.parquet"]
    nan = rows.with_columns(pl.col("load").fill_null(float("nan"))).drop("device")
    assert scored(shop, tmp_path, nan)["missing"] == {"load": lacking}
    whole = nan.fill_nan(1.0)
    assert scored(shop, tmp_path, whole, strict=True)["missing"] == {}


def test_rows_with_raw_events_score_as_requests_do(shop: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    summary = scored(shop, tmp_path, rows)
    ranker = Ranker.load(shop / "bundle")
    expected = [alone(ranker, request_of(row, logged(shop, row["user"]))) for row in rows.to_dicts()]
    assert logit_difference(outputs(tmp_path), np.array(expected)) <= TOLERANCE
    unknown = rows.filter(~pl.col("item").is_between(100, 139)).height
    missing = {"device": rows["device"].null_count(), "load": rows["load"].null_count()}
    assert unknown > 5 and min(missing.values()) > 5
    assert (summary["rows"], summary["unknown"], summary["missing"]) == (60, unknown, missing)
    assert summary["rows_per_s"] == pytest.approx(60 / summary["seconds"])


@pytest.mark.parametrize("variant", ["int8_table", "int8_products"])
def test_both_graphs_read_a_table_of_fewer_bits(shop, rows, tmp_path, monkeypatch, variant) -> None:
    monkeypatch.setattr("ctr.export.precision.products.FEWEST_WEIGHTS", 100)
    (tmp_path / "again").mkdir()
    model, feature_set = modelled(tmp_path / "again")
    small = shutil.copytree(shop / "bundle", tmp_path / "small")
    blocks = RequestGraph(model).table_blocks
    manifest = open_bundle(small).manifest
    seal(small, put_variant(small, manifest, blocks, feature_set, VariantChoice(variant, 1.0)))
    scored(shop, tmp_path, rows, bundle=small)
    requests = [request_of(row, logged(shop, row["user"])) for row in rows.to_dicts()]
    single = np.array([alone(Ranker.load(shop / "bundle"), request) for request in requests])
    fewer = np.array([alone(Ranker.load(small), request) for request in requests])
    assert 1e-4 < logit_difference(fewer, single) < 0.3
    # The graph of many requests keeps its products in single precision.
    wanted = fewer if variant == "int8_table" else single
    assert logit_difference(outputs(tmp_path), wanted) <= TOLERANCE


def test_rows_that_differ_in_their_time_alone_have_their_own_histories(shop: Path, tmp_path: Path) -> None:
    times = [0, 200_000, 500_000, 500_000, 10**6]
    table = pl.DataFrame({"user": "u3", "item": 110, "time": times, "device": "tv", "load": 1.0, "item_rate": 0.5})
    scored(shop, tmp_path, table)
    ranker = Ranker.load(shop / "bundle")
    expected = [alone(ranker, request_of(row, logged(shop, "u3"))) for row in table.to_dicts()]
    assert len({score for score, *_ in expected}) == 4
    assert logit_difference(outputs(tmp_path), np.array(expected)) <= TOLERANCE


def test_the_output_has_the_rows_of_the_input_in_its_order(shop: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    kept = rows.with_columns(campaign=pl.lit("mail"))
    scored(shop, tmp_path, kept, batch=7)
    written = pl.read_parquet(tmp_path / "output.parquet")
    assert written.drop("score", "score_like", "score_stay").equals(kept)
    assert written["score"].dtype == pl.Float32
    assert pq.ParquetFile(tmp_path / "output.parquet").num_row_groups == 9
    in_parts = outputs(tmp_path)
    scored(shop, tmp_path, kept)
    np.testing.assert_allclose(outputs(tmp_path), in_parts, rtol=0, atol=1e-6)


def test_lists_of_ready_columns_score_as_requests_do(shop: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    lengths = [0, 1, HISTORY_LEN, HISTORY_LEN + 3, *draw.integers(0, 9, 56)]
    pasts = [
        [
            {
                "item": int(item),
                "label": int(draw.integers(2)),
                "residual": float(draw.normal()),
                "pause": float(draw.integers(1, 4000)) if draw.random() < 0.8 else None,
            }
            for item in draw.integers(95, 145, length)
        ]
        for length in lengths
    ]
    lists = {
        "history": pl.Series([[one["item"] for one in past] for past in pasts], dtype=pl.List(pl.Int64)),
        "history_label": pl.Series([[one["label"] for one in past] for past in pasts], dtype=pl.List(pl.Int8)),
        "history_residual": pl.Series([[one["residual"] for one in past] for past in pasts], dtype=pl.List(pl.Float64)),
        "history_pause": pl.Series([[one["pause"] for one in past] for past in pasts], dtype=pl.List(pl.Float64)),
    }
    scored(shop, tmp_path, rows.drop("time").with_columns(**lists), events=False)
    ranker = Ranker.load(shop / "bundle")
    expected = [
        alone(ranker, request_of(row, past)) for row, past in zip(rows.drop("time").to_dicts(), pasts, strict=True)
    ]
    assert logit_difference(outputs(tmp_path), np.array(expected)) <= TOLERANCE


def test_without_any_history_rows_score_as_such_requests(shop: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    scored(shop, tmp_path, rows.drop("time"), events=False)
    ranker = Ranker.load(shop / "bundle")
    expected = [alone(ranker, request_of(row, [])) for row in rows.drop("time").to_dicts()]
    assert logit_difference(outputs(tmp_path), np.array(expected)) <= TOLERANCE


def test_items_upserted_since_the_export_are_scored(shop: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    items = pl.DataFrame(
        {"item_id": [NEW, 101], "genre": ["drama"] * 2, "tags": [["new"], ["old"]], "price": [1.0, 30]}
    )
    bundle = tmp_path / "upserted"
    upsert_items(shop / "bundle", lambda encoder: items_of_table(encoder, items), bundle)
    asked = rows.with_columns(item=pl.Series([NEW, 101] * 30))
    assert scored(shop, tmp_path, asked, bundle=bundle)["unknown"] == 0
    ranker = Ranker.load(bundle)
    expected = [alone(ranker, request_of(row, logged(shop, row["user"]))) for row in asked.to_dicts()]
    assert logit_difference(outputs(tmp_path), np.array(expected)) <= TOLERANCE
    scores = outputs(tmp_path)
    scored(shop, tmp_path, asked)
    assert np.abs(outputs(tmp_path) - scores).min(axis=1).max() > 1e-4


def test_what_is_unknown_or_missing_is_counted_over_all_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pl.DataFrame({"item": range(5)}).write_parquet(tmp_path / "input.parquet")
    monkeypatch.setattr(score, "whole_lists", lambda batches, rows: batches)
    monkeypatch.setattr(score, "score_rows", lambda scorer, encoded: np.zeros((encoded.rows, 1), np.float32))

    def encoded(part: pl.DataFrame) -> Any:
        return SimpleNamespace(rows=part.height, unknown=1, missing={"load": part.height})

    rows: Any = SimpleNamespace(encode=encoded)
    scorer: Any = SimpleNamespace(outputs=("score",))
    counts: Counter[str] = Counter()
    with pq.ParquetFile(tmp_path / "input.parquet") as file:
        score._write(file, tmp_path / "output.parquet", Path("input"), rows, scorer, 2, counts, False)
    assert counts == {"unknown": 3, "missing load": 5}


@pytest.mark.parametrize("most", [2, 256])
def test_every_row_stands_in_one_batch_beside_rows_of_its_request(
    shop: Path, rows: pl.DataFrame, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_CANDIDATES", most)
    monkeypatch.setattr(batches, "MOST_CELLS", 8)
    table = pl.concat([rows.drop("time").head(6).with_columns(device=pl.lit("tv"), load=1.0, user=pl.lit("u1"))] * 2)
    table = pl.concat([table, table.head(3).with_columns(user=pl.lit("u2"))])
    encoded = RowEncoder(Ranker.load(shop / "bundle").encoder, table.schema).encode(table)
    assert encoded.request_R[:12].tolist() == [encoded.request_R[0]] * 12 and len(set(encoded.request_R)) == 2
    seen = []
    for row_UN, feed in batches.batches(encoded):
        assert row_UN.size <= max(8, most) and row_UN.shape[1] <= most
        for row_N, item_N in zip(row_UN, feed["candidate_item"], strict=True):
            real = row_N[row_N >= 0]
            assert len(set(encoded.request_R[real])) == 1
            assert encoded.item_R[real].tolist() == item_N[row_N >= 0].tolist()
            seen += real.tolist()
    assert sorted(seen) == list(range(15))


WRONG = {
    "no item": (lambda rows: rows.drop("item"), "no column 'item'. A row to score needs `user` and `item`"),
    "scores": (lambda rows: rows.with_columns(score=1.0), "has a column 'score' already"),
    "ids": (lambda rows: rows.with_columns(item=pl.lit("a")), "'item': holds String where whole numbers"),
    "time": (lambda rows: rows.with_columns(time=pl.lit("now")), "time column 'time' holds String"),
    "no time": (lambda rows: rows.with_columns(time=pl.lit(None, pl.Int64)), "column 'time': None is no time"),
    "context": (lambda rows: rows.with_columns(load=pl.lit("much")), "column 'load': declared a number"),
    "two histories": (lambda rows: rows.with_columns(history=pl.lit([1])), "--events gives histories too"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_stop_with_a_message_and_leave_nothing(
    shop: Path, rows: pl.DataFrame, tmp_path: Path, case: str
) -> None:
    change, message = WRONG[case]
    with pytest.raises((DataError, ConfigError)) as error:
        scored(shop, tmp_path, change(rows))
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["input.parquet"]


def test_lists_need_each_event_column_in_the_length_of_the_history(
    shop: Path, rows: pl.DataFrame, tmp_path: Path
) -> None:
    table = rows.with_columns(history=pl.lit([101, 102]))
    with pytest.raises(DataError, match=r"no column 'history_label'\. The model was trained on it"):
        scored(shop, tmp_path, table, events=False)
    table = table.with_columns(history_label=[1], history_residual=[0.1, 0.2], history_pause=[1.0, 2.0])
    with pytest.raises(DataError, match="'history_label': 1 values beside 2 items of `history`"):
        scored(shop, tmp_path, table, events=False)


def test_events_must_have_what_the_contract_reads(shop: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    log = pl.read_parquet(shop / "raw/log.parquet")
    shutil.copytree(shop / "bundle", tmp_path / "bundle")
    for table, message in ((log.drop("clicked"), "no column 'clicked'"), (log.drop("user"), "no column 'user'")):
        table.write_parquet(tmp_path / "raw/log.parquet")
        with pytest.raises(DataError, match=message):
            scored(tmp_path, tmp_path, rows)
    assert not (tmp_path / "output.parquet").exists()


def test_a_bundle_without_the_graph_says_how_to_get_it(shop: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shop / "bundle", tmp_path / "bundle")
    (folder / "scorer.onnx").unlink()
    with pytest.raises(ConfigError, match="quadrank export --scorer"):
        Scorer.open(folder)


def test_golden_requests_are_replayed_by_the_scoring_graph(shop: Path) -> None:
    bundle = open_bundle(shop / "bundle")
    ranker, scorer = Ranker.of(bundle), Scorer.open(bundle.path)
    assert 0 < scorer.replay(bundle, ranker.encoder) <= TOLERANCE
    golden = bundle.golden()
    golden.cases[2].scores[1] += 0.01

    class Changed(Bundle):
        def golden(self) -> Golden:
            return golden

    with pytest.raises(NumericalError, match=golden.cases[2].name):
        scorer.replay(Changed(bundle.path, bundle.manifest), ranker.encoder)


def test_a_scoring_graph_that_is_not_the_model_is_not_published(shop, tmp_path, monkeypatch) -> None:
    (tmp_path / "again").mkdir()
    model, feature_set = modelled(tmp_path / "again")

    def wrong(graph: Any, schema: Any, path: Path) -> None:
        shutil.copyfile(shop / "bundle" / SCORER, path)
        with_a_wrong_weight(path)

    monkeypatch.setattr("ctr.export.export_bundle.export_scoring_graph", wrong)
    with pytest.raises(NumericalError, match=r"parity: scorer\.onnx and the trained model differ by"):
        export(model, feature_set, tmp_path / "bundle", scorer=True)
    assert not (tmp_path / "bundle").exists()


def test_the_command_scores(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--input", str(shop / "rows.parquet"), "--output", str(tmp_path / "scores.parquet")]
    events = ["--events", str(shop / "raw/log.parquet")]
    with pytest.raises(SystemExit) as ended:
        main(["score", "--bundle", str(shop / "bundle"), *files, *events, "--json"])
    assert ended.value.code == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["rows"] == 60 and summary["model_version"] == "run-1"
    assert pl.read_parquet(tmp_path / "scores.parquet").height == 60
