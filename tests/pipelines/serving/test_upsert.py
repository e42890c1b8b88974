"""`quadrank items upsert`: files of new items, what is wrong with them, and the pointer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctr.config import ModelConfig
from ctr.serving.bundle import open_bundle
from ctr.serving.items.delta import ItemDelta
from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import upsert_items
from features.errors import ConfigError, DataError
from features.store.pointer import follow, point_at
from pipelines.cli.commands import main
from pipelines.serving.upsert import _read_items, upsert_files
from tests.ctr.serving.items.worlds import FIRST_NEW, NEW, WIDTHS, is_new, new_files, new_json, tables, world
from tests.ctr.serving.shop import export
from tests.trained import random_model, raw_contract


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    feature_set = world(folder, whole=False).feature_set
    model = random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4, use_history=False))
    return export(model, feature_set, folder / "bundle").path


@pytest.fixture
def shop(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`bundles/run-1`, a pointer to it, and files of new items; the working folder holds them."""
    shutil.copytree(exported, tmp_path / "bundles" / "run-1")
    point_at(tmp_path / "bundles", "run-1")
    new_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


VECTORS = [f"{name}=new_{name}.parquet" for name in WIDTHS]
POINTER = Path("bundles/CURRENT")


def upserted(vectors: list[str] = VECTORS, bundle: Path = POINTER, out: Path | None = None) -> dict[str, Any]:
    return upsert_files(bundle, Path("new_items.parquet"), vectors, out, Console(quiet=True))


def delta_of(folder: Path) -> ItemDelta:
    rows = (folder / "item_delta.bin").stat().st_size // 4
    found = ItemDelta.load(folder, rows // len(pl.read_ipc(folder / "item_delta.arrow")))
    assert found is not None
    return found


def test_the_command_makes_a_version_and_moves_the_pointer(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [word for text in VECTORS for word in ("--vectors", text)]
    with pytest.raises(SystemExit) as stop:
        main(["items", "upsert", "--bundle", str(POINTER), "--items", "new_items.parquet", *options, "--json"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not stop.value.code
    assert summary | {"seconds": 0} == {
        "bundle": str((shop / "bundles" / "run-1+items.1").resolve()),
        "model_version": "run-1+items.1",
        "new": NEW,
        "changed": 0,
        "upserted": NEW,
        "pointer_moved": True,
        "seconds": 0,
    }
    assert follow(POINTER).name == "run-1+items.1" == open_bundle(POINTER).manifest.model_version


def test_items_of_two_commands_at_once_are_both_served(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, from the same version, moves the pointer while this one still writes."""
    ours = upsert_items

    def overtaken(before: Path, *arguments: Any) -> Any:
        if before.name == "run-1":
            theirs = {"items": [new_json()[0] | {"item": 5_000}]}
            made = ours(before, lambda one: items_of_json(one, theirs, 1))
            assert point_at(shop / "bundles", made.path.name)
        return ours(before, *arguments)

    monkeypatch.setattr("pipelines.serving.upsert.upsert_items", overtaken)
    summary = upserted()
    assert summary["pointer_moved"]
    assert follow(POINTER).resolve() == Path(summary["bundle"])
    assert delta_of(follow(POINTER)).new.sort().to_list() == sorted([5_000, *range(FIRST_NEW, FIRST_NEW + NEW)])


def test_files_give_the_rows_that_json_gives(shop: Path) -> None:
    of_files = delta_of(Path(upserted()["bundle"]))
    made = upsert_items(shop / "bundles/run-1", lambda one: items_of_json(one, {"items": new_json()}, NEW), Path("own"))
    of_json = delta_of(made.path)
    assert of_files.new.to_list() == of_json.new.to_list() == list(range(FIRST_NEW, FIRST_NEW + NEW))
    np.testing.assert_array_equal(of_files.rows_KD, of_json.rows_KD)


def test_vectors_of_npy_stand_in_the_order_of_the_items(shop: Path) -> None:
    expected = delta_of(Path(upserted(VECTORS[:1], out=Path("of_parquet"))["bundle"]))
    text = tables()["text"]
    has = is_new(tables()["items"])["item_id"].is_in(is_new(text)["item_id"].implode())
    items = is_new(tables()["items"]).filter(has)
    items.reverse().write_parquet("new_items.parquet")
    np.save("new_text.npy", is_new(text).reverse()["vector"].to_numpy())
    of_npy = delta_of(Path(upserted(["text=new_text.npy"], out=Path("of_npy"))["bundle"]))
    rows = dict(zip(expected.new, expected.rows_KD, strict=True))
    for item, row in zip(of_npy.new, of_npy.rows_KD, strict=True):
        np.testing.assert_array_equal(row, rows[item])
    np.save("new_text.npy", np.zeros((2, 8)))
    with pytest.raises(DataError, match=r"new_text\.npy: shape \(2, 8\) does not fit the 4 items"):
        upserted(["text=new_text.npy"])


def test_vectors_of_other_items_are_left_out(shop: Path) -> None:
    expected = delta_of(Path(upserted(out=Path("first"))["bundle"]))
    tables()["text"].reverse().write_parquet("new_text.parquet")
    np.testing.assert_array_equal(delta_of(Path(upserted(out=Path("second"))["bundle"])).rows_KD, expected.rows_KD)


def test_of_several_versions_of_an_item_the_newest_holds(tmp_path: Path) -> None:
    contract = raw_contract(tmp_path)
    assert contract.items is not None
    versioned = contract.model_copy(update={"items": contract.items.model_copy(update={"valid_from": "since"})})
    genres, prices, since = ["crime", "drama", "crime"], [2.0, 1.0, 3.0], [20, 10, 5]
    table = {"item_id": [7, 7, 8], "genre": genres, "tags": [["new"]] * 3, "price": prices, "since": since}
    pl.DataFrame(table).write_parquet(tmp_path / "new.parquet")
    found = _read_items(versioned, tmp_path / "new.parquet", Console(quiet=True))
    assert dict(found.select("item_id", "price").iter_rows()) == {7: 2.0, 8: 3.0}


def test_columns_that_the_contract_does_not_read_are_named(shop: Path) -> None:
    pl.read_parquet("new_items.parquet").with_columns(colour=pl.lit("red")).write_parquet("new_items.parquet")
    console = Console(record=True, width=200)
    upsert_files(POINTER, Path("new_items.parquet"), VECTORS[:1], None, console)
    said = console.export_text()
    assert "new_items.parquet: the contract reads no column colour: left out" in said
    assert "no vectors of image: the items have none there" in said and "CURRENT names it now" in said


def test_a_folder_or_another_place_moves_no_pointer(shop: Path) -> None:
    assert not upserted(bundle=Path("bundles/run-1"))["pointer_moved"]
    assert not upserted(out=Path("elsewhere/v2"))["pointer_moved"]
    assert POINTER.read_text() == "run-1" and open_bundle(Path("elsewhere/v2")).manifest.upserts == 1


def renamed(table: pl.DataFrame) -> pl.DataFrame:
    return table.rename({"genre": "gener"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, r"new_items\.parquet: no column 'genre'\. Did you mean 'gener'"),
        (lambda table: table.head(0), "the item table is empty"),
        (lambda table: pl.concat([table, table.head(1)]), r"1 ids appear more than once in 7 rows, e\.g\. 500"),
        (lambda table: table.with_columns(item_id=-pl.col("item_id")), "id -500 is negative"),
        (lambda table: table.with_columns(pl.col("item_id").cast(pl.String)), "ids are String.*are whole numbers"),
        (lambda table: table.with_columns(item_id=pl.col("item_id") + 0.5), "cannot be ids"),
        (lambda table: table.with_columns(item_id=pl.lit(None, pl.Int64)), "6 of 6 rows are null"),
        (lambda table: table.with_columns(price=pl.lit("cheap")), "'price': declared a number but is String"),
        (lambda table: table.with_columns(genre=pl.lit(3)), "'genre': holds Int32 where text was learned"),
        (lambda table: table.with_columns(tags=pl.lit("new")), "'tags': declared `tags`, which are lists"),
    ],
)
def test_wrong_items_are_told_and_leave_nothing(shop: Path, change: Any, words: str) -> None:
    change(pl.read_parquet("new_items.parquet")).write_parquet("new_items.parquet")
    with pytest.raises(DataError, match=words):
        upserted()
    assert sorted(path.name for path in (shop / "bundles").iterdir()) == ["CURRENT", "run-1"]


def of_widths(*widths: int, first: float = 0.0) -> Any:
    vectors = [[first] * widths[0], *([0.0] * width for width in widths[1:])]
    return lambda table: table.with_columns(pl.Series("vector", vectors))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_widths(7, 7, 7, 7), "set 'text' is 7 wide, not 8"),
        (of_widths(7, 8, 8, 8), "another width than 8, e.g. 7"),
        (of_widths(8, 8, 8, 8, first=float("nan")), "1 of 4 vectors hold NaN"),
        (lambda table: pl.concat([table, table.head(1)]), "1 ids appear more than once, e.g. 500"),
        (lambda table: table.with_columns(pl.col("item_id") + 1000), "none of its 4 ids .e.g. 1500. is one of the"),
        (lambda table: table.with_columns(pl.col("item_id").cast(pl.String)), "holds String where whole numbers"),
        (lambda table: table.rename({"vector": "vectro"}), "no column 'vector'. Did you mean 'vectro'"),
    ],
)
def test_wrong_vectors_are_told_and_leave_nothing(shop: Path, change: Any, words: str) -> None:
    change(pl.read_parquet("new_text.parquet").select("item_id", pl.col("vector").arr.to_list())).write_parquet(
        "new_text.parquet"
    )
    with pytest.raises(DataError, match=words):
        upserted()
    assert sorted(path.name for path in (shop / "bundles").iterdir()) == ["CURRENT", "run-1"]


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (["texts=new_text.parquet"], "the bundle has no vector set 'texts'. Did you mean 'text'"),
        (["both=new_text.parquet"], "no vector set 'both'"),
        (["new_text.parquet"], "write it as NAME=FILE"),
        (["=new_text.parquet"], "write it as NAME=FILE"),
        (["text="], "write it as NAME=FILE"),
        ([*VECTORS, "text=other.parquet"], "'text' is given twice"),
    ],
)
def test_what_names_no_set_is_told(shop: Path, vectors: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        upserted(vectors)


def test_missing_files_are_told(shop: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.parquet: no such file"):
        upserted(["text=nothing.parquet"])
    Path("new_items.parquet").unlink()
    with pytest.raises(DataError, match=r"new_items\.parquet: no such file"):
        upserted()
