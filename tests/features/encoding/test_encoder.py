"""Online equals offline: log rows replayed as requests encode to exactly the rows of the feature set."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract, load_contract
from features.encoding.category import TagsEncoder
from features.encoding.encoder import Encoder
from features.encoding.number import NumericEncoder
from features.encoding.request import Request, parse_request
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError, DataError
from features.simulator.simulate import simulate
from features.store.feature_set import FeatureSet
from tests.features.raw import Tables, raw_log

# Without counters, whose replay is tested in test_counters_built.
SIMULATED = Path(__file__).parents[3] / "benchmarks" / "inputs" / "feature_build.yaml"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contract, FeatureSet]:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, rows=2_100, users=70, items=60, seed=1)
    contract = load_contract(SIMULATED, {"history": {"max_len": 20}}, root=str(folder))
    return contract, build_feature_set(contract, folder / "out").feature_set


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contract, FeatureSet]:
    """Numeric context and user columns, tags of users: what the simulated log has none of."""

    def change(tables: Tables) -> None:
        users = tables["users"]
        age = [None if i == 0 else 20.5 + i for i in range(len(users))]
        # An impression is then named by user, item and time.
        tables["log"] = tables["log"].with_columns(item_id=101 + pl.int_range(pl.len()) % 12)
        tables["users"] = users.with_columns(age=pl.Series(age), likes=pl.lit(["a", "b"]))

    folder = tmp_path_factory.mktemp("tiny")
    columns = {"age": {"type": "numeric"}, "likes": {"type": "tags", "max_len": 3}}
    contract = raw_log(folder, change, {"users": {"columns": columns}})
    return contract, build_feature_set(contract, folder / "out").feature_set


def same(where: str, offline: Any, online: np.ndarray) -> list[str]:
    """No problem, or one: shapes, values (NaN equals NaN) and float or whole must agree exactly."""
    offline = np.asarray(offline)
    equal = offline.shape == online.shape and offline.dtype.kind == online.dtype.kind
    if equal and np.array_equal(offline, online, equal_nan=offline.dtype.kind == "f"):
        return []
    return [f"{where}: offline {offline.tolist()}, online {online.tolist()}"]


def differences(contract: Contract, built: FeatureSet, splits: Any = ("valid", "test")) -> list[str]:
    """Replay every row of these splits from the raw log as a request, and compare with the stored row."""
    log = pl.read_parquet(contract.resolve(contract.interactions.path))
    names = contract.interactions
    times = pl.col(names.time) if log[names.time].dtype.is_integer() else pl.col(names.time).dt.epoch("s")
    seconds = log.with_columns(_at=times)
    encoder, users = Encoder.load(built.path), contract.users
    attributes = pl.read_parquet(contract.resolve(users.path)) if users else None
    problems: list[str] = []
    for split in splits:
        for rows, events in zip(built.rows(split), built.events(split), strict=True):
            for i in range(len(rows["user"])):
                user, item = encoder.users.value(rows["user"][i]), encoder.items.value(rows["item"][i])
                at = int(rows["time"][i]) // 1_000_000
                past = seconds.filter((pl.col(names.user) == user) & (pl.col("_at") < at)).sort(
                    "_at", maintain_order=True
                )
                shown = seconds.filter(
                    (pl.col(names.user) == user) & (pl.col("_at") == at) & (pl.col(names.item) == item)
                ).row(0, named=True)
                raw = {
                    "user": user,
                    "context": {name: shown[name] for name in names.context},
                    "history": [
                        {"item": event[names.item], **{name: event[name] for name in contract.history.columns}}
                        for event in past.to_dicts()
                    ],
                    "candidates": [item],
                }
                if attributes is not None and users is not None:
                    [known] = attributes.filter(pl.col(users.id) == user).select(list(users.columns)).to_dicts()
                    raw["user_columns"] = known
                encoded = encoder.encode_request(parse_request(raw, contract))
                without = encoder.encode_request(parse_request({**raw, "user_columns": None}, contract))
                end, length = int(rows["history_end"][i]), int(rows["history_len"][i])
                past_rows = slice(end - length, end)
                problems += same("candidate", [rows["item"][i]], encoded.candidate_item)
                problems += same("history", events["item"][past_rows], encoded.history_item)
                for name in contract.history.columns:
                    problems += same(name, events[name][past_rows], encoded.history_events[name])
                for name in names.context:
                    problems += same(name, rows[name][i : i + 1], encoded.context[name])
                for name, table in built.users.items():
                    stored = table[int(rows["user"][i])][None]
                    problems += same(name, stored, encoded.user[name]) + same(name, stored, without.user[name])
    return problems


def test_replayed_rows_of_a_simulated_log(simulated: tuple[Contract, FeatureSet]) -> None:
    contract, built = simulated
    assert sum(window.rows for window in built.manifest.windows.values()) == 2_100
    assert max(int(rows["history_len"].max()) for rows in built.rows("test")) == 20
    assert differences(contract, built, splits=("train", "valid", "test")) == []


def test_replayed_rows_of_every_semantic_type(tiny: tuple[Contract, FeatureSet]) -> None:
    assert differences(*tiny, splits=("train", "valid", "test")) == []


def off_by_a_hair(self: NumericEncoder, value: Any) -> np.ndarray:
    return self._standardised(np.array([np.nan if value is None else value + 1e-5]))


def backwards(self: TagsEncoder, value: Any) -> np.ndarray:
    known = [self.vocabulary.index(tag) for tag in reversed(value or [])]
    return np.array([known + [0] * (self.max_len - len(known))])


indices_from_two = Vocabulary.indices


def from_one(self: Vocabulary, values: Any) -> np.ndarray:
    return np.maximum(indices_from_two(self, values) - 1, 1)


@pytest.mark.parametrize(
    ("owner", "method", "mutant", "seen_in"),
    [
        (NumericEncoder, "encode_one", off_by_a_hair, "load"),
        (TagsEncoder, "encode_one", backwards, "likes"),
        (Vocabulary, "indices", from_one, "history"),
    ],
)
def test_a_mutated_online_path_is_caught(
    tiny: tuple[Contract, FeatureSet],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    method: str,
    mutant: Any,
    seen_in: str,
) -> None:
    monkeypatch.setattr(owner, method, mutant)
    assert any(problem.startswith(f"{seen_in}:") for problem in differences(*tiny, splits=("test",)))


def encode(tiny: tuple[Contract, FeatureSet], **raw: Any) -> Any:
    contract, built = tiny
    return Encoder.load(built.path).encode_request(parse_request({"candidates": [101], **raw}, contract))


def test_an_anonymous_user_is_the_unknown_row(tiny: tuple[Contract, FeatureSet]) -> None:
    for user in (None, 4_000):
        encoded = encode(tiny, user=user)
        assert encoded.user["user_id"].tolist() == encoded.user["segment"].tolist() == [1]
        assert np.isnan(encoded.user["age"]).all() and encoded.user["likes"].tolist() == [[1, 0, 0]]
    given = encode(tiny, user_columns={"segment": "s0", "age": 23.5, "likes": ["b", "no"]})
    assert given.user["user_id"].tolist() == [1] and given.user["segment"].tolist() == [2]
    assert given.user["likes"].tolist() == [[3, 0, 0]]
    known = encode(tiny, user=4)  # the fourth has age 23.5
    assert given.user["age"].tolist() == known.user["age"].tolist()


def test_unknown_ids_are_legal_and_reported(tiny: tuple[Contract, FeatureSet]) -> None:
    encoded = encode(tiny, candidates=[101, 7, 103, 2**62], history=[102, 9])
    items = Encoder.load(tiny[1].path).items
    assert encoded.candidate_item.tolist() == [items.index(101), 1, items.index(103), 1]
    assert encoded.unknown_candidates == (7, 2**62) and encoded.unknown_history == 1
    assert encoded.history_item.tolist() == [items.index(102), 1]
    assert encoded.history_events["rating"].tolist() == [1, 1]  # not given


def test_a_long_history_is_cut_to_its_newest(tiny: tuple[Contract, FeatureSet]) -> None:
    history = [{"item": 101 + i % 12, "rating": 1 + i % 5} for i in range(40)]
    long, short = encode(tiny, history=history), encode(tiny, history=history[-5:])
    assert len(long.history_item) == 5 and long.history_item.tolist() == short.history_item.tolist()
    assert long.history_events["rating"].tolist() == short.history_events["rating"].tolist() == [2, 3, 4, 5, 6]


def test_context_that_is_not_given_takes_its_default(tmp_path: Path) -> None:
    context = {"hour": {"default": 5}, "load": {"default": 0.25}}
    contract = raw_log(tmp_path, None, {"interactions": {"context": context}})
    encoder = Encoder.load(build_feature_set(contract, tmp_path / "out").feature_set.path)

    def of(**given: Any) -> Any:
        return encoder.encode_request(Request(candidates=(101,), history_events={"rating": ()}, context=given)).context

    hour, load = encoder.context["hour"], encoder.context["load"]
    assert of()["hour"].tolist() == hour.encode_one(5).tolist() and hour.encode_one(5)[0] > 1
    assert of()["load"].tolist() == load.encode_one(0.25).tolist()
    assert of(hour=6)["hour"].tolist() == hour.encode_one(6).tolist() != of()["hour"].tolist()
    assert of(hour=None)["hour"].tolist() == [1] and np.isnan(of(load=None)["load"]).all()


@pytest.mark.parametrize(
    ("raw", "where"),
    [({"candidates": ["101"]}, "candidates"), ({"history": ["x"]}, "history"), ({"user": "1"}, "user")],
)
def test_text_where_ids_are_whole_numbers(tiny: tuple[Contract, FeatureSet], raw: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{where}: '.+' is of the wrong type: ids .* are whole numbers, e.g. \d"):
        encode(tiny, **raw)


@pytest.mark.parametrize(
    ("raw", "where", "kind"),
    [
        ({"context": {"hour": "3"}}, "context.hour: '3'", "whole numbers, e.g. 0"),
        ({"history": [{"item": 101, "rating": "5"}]}, "history[0].rating: '5'", "whole numbers, e.g. 1"),
        ({"user_columns": {"segment": 0}}, "user_columns.segment: 0", "text, e.g. 's0'"),
        ({"user_columns": {"likes": ["a", 1]}}, "user_columns.likes: 1", "text, e.g. 'a'"),
    ],
    ids=["context", "history", "user column", "user tags"],
)
def test_a_column_is_of_one_type_online_as_offline(
    tiny: tuple[Contract, FeatureSet], raw: Any, where: str, kind: str
) -> None:
    """A build refuses such a column; online it would otherwise pass for unknown."""
    with pytest.raises(ConfigError) as caught:
        encode(tiny, **raw)
    assert str(caught.value) == f"{where} is of the wrong type: values of this column are {kind}."


def test_values_that_training_never_saw_stay_legal(tiny: tuple[Contract, FeatureSet]) -> None:
    given = {"segment": "new", "likes": ["new", None]}
    encoded = encode(tiny, context={"hour": 99}, history=[{"item": 101, "rating": None}], user_columns=given)
    assert encoded.context["hour"].tolist() == encoded.history_events["rating"].tolist() == [1]
    assert encoded.user["segment"].tolist() == [1] and encoded.user["likes"].tolist() == [[1, 0, 0]]


def test_whole_numbers_where_ids_are_text(tmp_path: Path) -> None:
    def change(tables: Tables) -> None:
        for name in ("log", "items", "text"):
            tables[name] = tables[name].with_columns(pl.format("i{}", "item_id").alias("item_id"))

    contract = raw_log(tmp_path, change)
    tiny = contract, build_feature_set(contract, tmp_path / "out").feature_set
    assert encode(tiny, candidates=["i101"]).candidate_item[0] >= 2
    with pytest.raises(ConfigError, match=r"candidates: 101 is of the wrong type: ids .* are text, e.g. 'i101'"):
        encode(tiny)


def test_dtypes_are_those_the_graph_takes(tiny: tuple[Contract, FeatureSet]) -> None:
    encoded = encode(tiny, user=3, history=[101], context={"hour": 3, "load": 1})
    whole = [*encoded.history_events.values(), encoded.history_item, encoded.candidate_item, encoded.context["hour"]]
    whole += [encoded.user["user_id"], encoded.user["segment"], encoded.user["likes"]]
    assert {array.dtype for array in whole} == {np.dtype(np.int64)}
    assert {encoded.user["age"].dtype, encoded.context["load"].dtype} == {np.dtype(np.float32)}
    assert encoded.user["likes"].shape == (1, 3)


def test_saved_and_loaded_encoders_are_the_same(tiny: tuple[Contract, FeatureSet], tmp_path: Path) -> None:
    contract, built = tiny
    encoder = Encoder.load(built.path)
    encoder.save(tmp_path)
    (tmp_path / "users.arrow").write_bytes((built.path / "users.arrow").read_bytes())
    again = Encoder.load(tmp_path)
    assert again.schema == encoder.schema == built.schema and again.contract == contract
    for section in ("item", "user", "context", "event"):
        first, second = getattr(encoder, section), getattr(again, section)
        assert list(first) == list(second)
        for name in first:
            assert first[name].field(name) == second[name].field(name)
    assert vars(again.context["load"]) == vars(encoder.context["load"])
    with pytest.raises(DataError, match=r"encoder.json: cannot be read"):
        Encoder.load(tmp_path / "nowhere")


def test_an_encoder_is_finished_when_it_is_made(tiny: tuple[Contract, FeatureSet]) -> None:
    encoder = Encoder.load(tiny[1].path)
    for name in ("schema", "items", "context", "candidate", "snapshot", "user_table"):
        with pytest.raises(FrozenInstanceError):
            setattr(encoder, name, None)
    for columns in (encoder.item, encoder.user, encoder.context, encoder.candidate, encoder.event, encoder.user_table):
        with pytest.raises(TypeError, match="does not support item assignment"):
            columns["another"] = None  # type: ignore[index]


def test_an_encoder_keeps_its_columns_when_those_it_was_made_of_change(tiny: tuple[Contract, FeatureSet]) -> None:
    encoder = Encoder.load(tiny[1].path)
    context = dict(encoder.context)
    other = replace(encoder, context=context)
    context.clear()
    assert other.context == encoder.context and encoder.context
