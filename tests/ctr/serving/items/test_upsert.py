"""New and changed items in a new version of a bundle, against the bundle that had them in its catalogue."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ctr.export.parity import item_inputs
from ctr.export.serving_graph import ItemGraph
from ctr.serving.agreement import TOLERANCE, logit_difference
from ctr.serving.bundle import GOLDEN, ITEM_TABLE, MODEL_CARD, open_bundle
from ctr.serving.items import upsert
from ctr.serving.items.delta import IDS, ROWS, ItemDelta
from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import Upserted, upsert_items
from ctr.serving.ranker import Ranker, graph_inputs
from features.encoding.encoder import Encoder
from features.encoding.request import parse_request
from features.errors import ConfigError, DataError
from tests.ctr.serving.items.worlds import FIRST_NEW, NEW, Worlds, new_json, two_worlds

NEW_IDS = list(range(FIRST_NEW, FIRST_NEW + NEW))
REQUEST: dict[str, Any] = {
    "user": "u3",
    "context": {"device": "desk", "load": 2.5},
    "history": [{"item": 101, "label": 1}, {"item": 503, "label": 1}, {"item": 107, "label": 0}],
    "candidates": [110, *NEW_IDS, 112],
}
OF_OLD = REQUEST | {"history": [101, 107], "candidates": [110, 111, 112, 999]}


def given(entries: list[dict[str, Any]]) -> Any:
    return lambda encoder: items_of_json(encoder, {"items": entries}, 1000)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return two_worlds(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def made(worlds: Worlds) -> Upserted:
    return upsert_items(worlds.bundle.path, given(new_json()))


@pytest.fixture
def copy(worlds: Worlds, tmp_path: Path) -> Path:
    return shutil.copytree(worlds.bundle.path, tmp_path / "bundles" / "run-1")


def width_of(folder: Path) -> int:
    encoder = Encoder.load(folder)
    return (folder / ITEM_TABLE).stat().st_size // 4 // encoder.schema.items


def table_of(folder: Path) -> np.ndarray:
    return np.fromfile(folder / ITEM_TABLE, np.float32).reshape(-1, width_of(folder))


def delta_of(folder: Path) -> ItemDelta:
    found = ItemDelta.load(folder, width_of(folder))
    assert found is not None
    return found


def scores(folder: Path, request: dict[str, Any]) -> dict[Any, tuple[float, ...]]:
    ranked = Ranker.load(folder).rank(request).ranked
    return {one.item: (one.score, *one.tasks.values()) for one in ranked}


def test_rows_are_those_of_a_catalogue_that_had_the_items(worlds: Worlds, made: Upserted) -> None:
    delta = delta_of(made.path)
    assert delta.new.to_list() == NEW_IDS and delta.changed.to_list() == []
    np.testing.assert_allclose(delta.rows_KD, worlds.offline_rows(delta.new), atol=1e-6)
    assert (made.new, made.changed, made.rows) == (NEW, 0, NEW)


def test_inputs_are_those_of_the_feature_build(worlds: Worlds) -> None:
    """Semantic ids exactly; vectors reduced, filled, fused and rounded; the id is the unknown one."""
    folder, whole = worlds.bundle.path, worlds.whole.feature_set
    feed = given(new_json())(Encoder.load(folder)).inputs(folder, Encoder.load(folder))
    rows = Encoder.load(whole.path).items.encode(pl.Series(NEW_IDS))
    expected = item_inputs(whole, rows, rows)
    assert set(feed) == set(expected) and {"item_code_1", "item_code_12", "vector_both"} < set(feed)
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(feed[name], values, atol=1e-6, err_msg=name)
        else:
            assert feed[name].tolist() == values.tolist(), name
    assert set(feed["item_item_id"].tolist()) == {1}
    assert feed["present_image"].tolist() == [False, True, False, True, True, True]


def test_new_items_are_ranked_as_the_model_ranks_items_of_its_catalogue(worlds: Worlds, made: Upserted) -> None:
    """As candidates and in the history, with the counters of an item without rows."""
    before, expected = Ranker.load(worlds.bundle.path), worlds.offline_scores(REQUEST)
    assert before.rank(REQUEST).unknown_candidates == tuple(NEW_IDS)
    assert Ranker.load(made.path).rank(REQUEST).unknown_candidates == ()
    assert Ranker.load(made.path).rank(REQUEST).unknown_history == 0
    got = scores(made.path, REQUEST)
    for item, of in expected.items():
        assert logit_difference(np.array(got[item]), np.array(of)) <= TOLERANCE, item
    assert len({round(of[0], 6) for item, of in got.items() if item in NEW_IDS}) == NEW


def test_requests_without_new_items_are_scored_as_before(worlds: Worlds, made: Upserted) -> None:
    assert scores(made.path, OF_OLD) == scores(worlds.bundle.path, OF_OLD)


def test_the_item_table_is_the_same_file_and_all_is_verified(worlds: Worlds, made: Upserted) -> None:
    for name in (ITEM_TABLE, GOLDEN, "ranker.onnx", "vocabularies/items.arrow"):
        assert (made.path / name).samefile(worlds.bundle.path / name)
    old, new = open_bundle(worlds.bundle.path).manifest, open_bundle(made.path).manifest
    assert set(new.files) - set(old.files) == {ROWS, IDS}
    assert (made.path / ROWS).stat().st_size == NEW * 4 * width_of(made.path)
    assert (new.model_version, new.upserts, made.path.name) == ("run-1+items.1", 1, "run-1+items.1")
    assert new.metrics == old.metrics and new.inputs == old.inputs
    card = (made.path / MODEL_CARD).read_text(encoding="utf-8")
    assert card.startswith((worlds.bundle.path / MODEL_CARD).read_text(encoding="utf-8").rstrip())
    assert f"{NEW} items came new and 0 of the catalogue changed" in card


def test_a_flipped_bit_of_the_delta_is_refused(made: Upserted, tmp_path: Path) -> None:
    for name in (ROWS, IDS):
        broken = shutil.copytree(made.path, tmp_path / name)
        content = bytearray((broken / name).read_bytes())
        content[len(content) // 2] ^= 1
        (broken / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: changed since"):
            Ranker.load(broken)


def test_a_changed_item_is_replaced_whole_and_keeps_its_id_and_counters(worlds: Worlds, copy: Path) -> None:
    entry = {"item": 110, "columns": {"genre": "crime", "price": 3.0}, "vectors": {"text": [0.5] * 8}}
    made = upsert_items(copy, given([entry]))
    assert (made.new, made.changed) == (0, 1)
    encoder = Encoder.load(copy)
    feed = given([entry])(encoder).inputs(copy, encoder)
    assert feed["item_item_id"].tolist() == [encoder.item["item_id"].encode_one(110)[0]] != [1]
    graph = ItemGraph(worlds.model)
    row = graph(*(torch.from_numpy(feed[name]) for name in graph.input_names)).detach().numpy()[0]
    np.testing.assert_allclose(delta_of(made.path).rows_KD[0], row, atol=1e-6)
    place = encoder.items.index(110)
    assert np.abs(table_of(copy)[place] - row).max() > 0.1
    ranker, request = Ranker.load(made.path), REQUEST | {"candidates": [109, 110, 111]}
    then, now = scores(copy, request), scores(made.path, request)
    assert now[110] != then[110] and (now[109], now[111]) == (then[109], then[111])
    # The graph of the export with the torch row in place of the old one, and the counters of the item.
    old = Ranker.load(copy)
    encoded = ranker.encoder.encode_request(_parsed(ranker, request))
    kept = old.encoder.encode_request(_parsed(old, request))
    assert encoded.candidate_item.tolist() != kept.candidate_item.tolist()
    for name, values in kept.candidate.items():
        assert encoded.candidate[name].tolist() == values.tolist()


def _parsed(ranker: Ranker, request: dict[str, Any]) -> Any:
    return parse_request(request, ranker.encoder.contract)


def test_golden_requests_are_replayed_with_the_items_as_they_were_exported(copy: Path) -> None:
    """Also where each item of theirs changed since, and an id that they hold as unknown came."""
    golden = open_bundle(copy).golden()
    ids = {one["item"] if isinstance(one, dict) else one for case in golden.cases for one in case.request["candidates"]}
    unknown = [item for item in ids if item not in range(100, 140)]
    made = upsert_items(copy, given([{"item": item, "columns": {"genre": "crime"}} for item in sorted(ids)]))
    assert made.changed > 10 and made.new == len(unknown)
    ranker = Ranker.load(made.path)
    assert ranker.replay() <= Ranker.load(copy).replay() + 1e-12
    first = golden.cases[0]
    assert sorted(one.score for one in ranker.rank(first.request).ranked) != pytest.approx(sorted(first.scores))


def test_upserts_add_up(worlds: Worlds, copy: Path) -> None:
    entries = new_json()
    first = upsert_items(copy, given([*entries[:2], {"item": 110, "columns": {"genre": "crime"}}]))
    again = {"item": NEW_IDS[0], "columns": {"genre": "drama", "price": 1.0}}
    second = upsert_items(first.path, given([*entries[2:], again]))
    assert second.path.name == second.model_version == "run-1+items.2"
    assert (first.new, first.changed, first.rows) == (2, 1, 3)
    assert (second.new, second.changed, second.rows) == (NEW - 2, 1, NEW + 1)
    delta, one = delta_of(second.path), delta_of(first.path)
    assert sorted(delta.new.to_list()) == NEW_IDS and delta.changed.to_list() == [110]
    kept = {item: delta.rows_KD[place] for place, item in enumerate([*delta.new, *delta.changed])}
    np.testing.assert_array_equal(kept[110], one.rows_KD[2])
    np.testing.assert_array_equal(kept[NEW_IDS[1]], one.rows_KD[1])
    assert np.abs(kept[NEW_IDS[0]] - one.rows_KD[0]).max() > 0.01
    whole = worlds.offline_scores(REQUEST | {"history": [], "candidates": NEW_IDS[1:]})
    got = scores(second.path, REQUEST | {"history": [], "candidates": NEW_IDS[1:]})
    for item, of in whole.items():
        assert logit_difference(np.array(got[item]), np.array(of)) <= TOLERANCE, item
    assert (second.path / MODEL_CARD).read_text().count("## Items upserted") == 1
    # From the bundle as it was exported once more: a number that no folder has.
    assert upsert_items(copy, given(entries[:1])).model_version == "run-1+items.3"


def test_where_links_fail_files_are_copied(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(os, "link", no_links)
    made = upsert_items(copy, given(new_json()))
    assert not (made.path / ITEM_TABLE).samefile(copy / ITEM_TABLE)
    assert Ranker.load(made.path).rank(REQUEST).unknown_candidates == ()


@pytest.mark.parametrize("at", ["item_rows", "_link", "_write_card", "seal"])
def test_an_upsert_that_ends_early_leaves_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(upsert, at, killed)
    with pytest.raises(KeyboardInterrupt):
        upsert_items(copy, given(new_json()))
    assert [path.name for path in copy.parent.iterdir()] == ["run-1"]
    open_bundle(copy)


def test_an_upsert_whose_name_is_taken_meanwhile_takes_the_next(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = upsert._link

    def meanwhile(bundle: Any, folder: Path) -> None:
        linked(bundle, folder)
        (copy.parent / "run-1+items.1").mkdir(exist_ok=True)
        (copy.parent / "run-1+items.1" / "file").touch()

    monkeypatch.setattr(upsert, "_link", meanwhile)
    made = upsert_items(copy, given(new_json()))
    assert made.path.name == "run-1+items.2" and made.model_version.endswith("+items.2")
    assert open_bundle(made.path).manifest.model_version == made.model_version
    assert {path.name for path in copy.parent.iterdir()} == {"run-1", "run-1+items.1", "run-1+items.2"}


def test_an_upsert_goes_where_it_is_told(copy: Path, tmp_path: Path) -> None:
    made = upsert_items(copy, given(new_json()), tmp_path / "elsewhere" / "v2")
    assert made.path == tmp_path / "elsewhere" / "v2"
    assert re.fullmatch(r"run-1\+items\.1\.[0-9a-f]{8}", made.model_version)
    assert Ranker.load(made.path).model_version == made.model_version
    again = upsert_items(made.path, given(new_json()), tmp_path / "elsewhere" / "v3")
    assert re.fullmatch(r"run-1\+items\.2\.[0-9a-f]{8}", again.model_version)
    with pytest.raises(ConfigError, match="exists, and an existing folder is never overwritten"):
        upsert_items(copy, given(new_json()), made.path)


def test_no_two_versions_have_one_name_whatever_their_folders_are_called(copy: Path, tmp_path: Path) -> None:
    """A number alone would tell only those apart that lie beside each other."""
    entries = new_json()
    other = shutil.copytree(copy, copy.parent / "other")
    made = [
        upsert_items(copy, given(entries[:1])),
        upsert_items(other, given(entries[1:2])),
        upsert_items(copy, given(entries[:1]), tmp_path / "one"),
        upsert_items(copy, given(entries[1:3]), tmp_path / "two"),
    ]
    made.append(upsert_items(made[2].path, given(entries[3:4])))
    assert [one.path.name for one in made] == ["run-1+items.1", "other+items.1", "one", "two", "one+items.2"]
    assert made[0].model_version == "run-1+items.1"
    assert len({one.model_version for one in made}) == len(made)
    same = upsert_items(copy, given(entries[:1]), tmp_path / "three")
    assert same.model_version == made[2].model_version


def test_encoded_rows_beyond_the_table_are_refused(made: Upserted) -> None:
    """The graph has a row of zeros behind the table, which nobody may read."""
    ranker = Ranker.load(made.path)
    encoded = ranker.encoder.encode_request(_parsed(ranker, REQUEST))
    items = ranker.encoder.schema.items
    feed = {name: graph_inputs(encoded)[name] for name in (node.name for node in ranker.inputs)}
    np.testing.assert_allclose(ranker.run(feed)["score"], ranker.score(encoded), atol=0)
    for name in ("candidate_item", "history_item"):
        wrong = feed | {name: np.where(np.arange(len(feed[name])) == 1, items, feed[name])}
        with pytest.raises(ConfigError, match=f"{name}: item row {items} is outside the item table"):
            ranker.run(wrong)
