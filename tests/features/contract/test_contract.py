"""The contract and the settings beneath it: strict keys, overrides, a fingerprint of what and not of where."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import PositiveInt, ValidationError

from features.contract.contract import Contract, load_contract
from features.contract.log import History
from features.contract.settings import Settings, load_yaml, merge, parse_overrides, validate
from features.errors import ConfigError
from tests.features.raw import CONTENT

CONF = Path(__file__).parents[3] / "conf" / "data"


def contract(over: Any = None) -> Contract:
    return validate(Contract, merge(CONTENT, over or {}), "raw.yaml")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_contract_in_conf_is_valid(path: Path) -> None:
    assert load_contract(path).name == path.stem


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"interaction": {}}, "unknown key 'interaction'. Did you mean 'interactions'?"),
        ({"interactions": {"usr": "u"}}, "unknown key 'interactions.usr'. Did you mean 'user'?"),
        ({"history": {"colums": {}}}, "unknown key 'history.colums'. Did you mean 'columns'?"),
        ({"embeddings": {"text": {"normalise": "l2"}}}, "Did you mean 'normalize'?"),
        ({"embeddings": {"text": {"reduce": {"method": "pca", "dims": 3}}}}, "Did you mean 'dim'?"),
        ({"items": {"columns": {"genre": {"min_cont": 3}}}}, "Did you mean 'min_count'?"),
        ({"interactions": {"context": {"load": {"transfrom": "none"}}}}, "Did you mean 'transform'?"),
        (
            {"vectors": {"neighbours": {"near": {"set": "text"}}}},
            "unknown key 'vectors.neighbours'. Valid keys: fusion, semantic_ids.",
        ),
        ({"split": {"xyz": 1}}, "unknown key 'split.xyz'. Valid keys: by, test, valid."),
        ({"items": {"columns": {"genre": {"zzz": 3}}}}, "Valid keys: default, max_size, min_count, source, type."),
        ({"interactions": {"user": None}}, "interactions.user"),
        ({"split": {"valid": 0.5, "test": 0.5}}, "valid + test must stay below 1, got 0.5 + 0.5"),
        ({"split": {"valid": 0}}, "split: valid: must be a number above 0, got 0.0"),
        ({"split": {"by": "item"}}, "split.by: Input should be 'time', 'user', 'days' or 'files'"),
        ({"history": {"max_len": 0}}, "history.max_len"),
        (
            {"items": {"columns": {"genre": {"type": "vector"}}}},
            "'categorical', 'hashed', 'numeric', 'buckets'",
        ),
        (
            {"items": {"columns": {"label": {"type": "numeric"}}}},
            "items.columns: 'label' is a name the feature set uses",
        ),
        ({"interactions": {"context": {"user": {"type": "numeric"}}}}, "interactions.context: 'user' is a name"),
        ({"history": {"columns": {"item": {"type": "categorical"}}}}, "history.columns: 'item' is a name"),
        ({"items": {"columns": {"item_id": {"type": "categorical"}}}}, "the id column is embedded by itself"),
        ({"embeddings": {"a/b": {"path": "x"}}}, "embedding set 'a/b'"),
        ({"name": "Not A Name"}, "name: String should match pattern"),
        ({"interactions": {"context": {"_event": {"type": "numeric"}}}}, "interactions.context: '_event' is a name"),
        ({"history": {"columns": {"_row": {"type": "categorical"}}}}, "history.columns: '_row' is a name"),
        ({"counters": {"_sampled": {"of": "item", "value": "rate"}}}, "counters: '_sampled' is a name"),
        ({"interactions": {"labels": {"_split": "like"}}}, "interactions.labels: '_split' is a name"),
        ({"interactions": {"labels": {"item": "like"}}}, "or `label.`); give the target another name"),
        ({"counters": {"item": {"of": "item", "value": "rate"}}}, "or `label.`); give the counter another name"),
        (
            {"items": {"columns": {"user": {"type": "numeric"}}}},
            "or `label.`); rename the column: what the data calls it can be its `source`",
        ),
        (
            {"interactions": {"context": {"^x$": {"type": "numeric", "source": "hour"}}}},
            "interactions.context: '^x$' would be read as a pattern of column names; rename the column",
        ),
        (
            {"counters": {"*": {"of": "item", "value": "rate"}}},
            "counters: '*' would be read as a pattern of column names; give the counter another name",
        ),
        (
            {"interactions": {"item": "^shown$"}},
            "interactions: '^shown$' would be read as a pattern of column names; rename the column in the export",
        ),
        ({"items": {"columns": {"_history.x": {"type": "numeric"}}}}, "items.columns: '_history.x' is a name"),
        (
            {"interactions": {"labels": {"like": "like"}, "context": {"label.like": {"type": "numeric"}}}},
            "interactions.context: 'label.like' is a name the feature set uses itself (so is any that begins with `_` "
            "or `label.`)",
        ),
        (
            {"interactions": {"negatives": {"per_positive": 2}}},
            "interactions.negatives: are drawn for a log of positives alone, in which no row has a label",
        ),
        (
            {
                "interactions": {"label": None, "negatives": {"per_positive": 2}},
                "counters": {"n": {"of": "item", "value": "count"}, "r": {"of": "item", "value": "rate"}},
            },
            "counters.r: every row of a log without `interactions.label` is a positive, so that each rate is 1",
        ),
    ],
)
def test_what_is_refused(over: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        contract(over)
    assert str(caught.value).startswith("raw.yaml: ") and words in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"split: valid: .*; unknown key 'nam'"):
        contract({"nam": 1, "split": {"valid": 2}})


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ({"delay": "1h", "within": "60m"}, "history.delay: must be shorter than history.within"),
        ({"delay": "2h", "session_gap": "90m"}, "history.delay: must be shorter than history.session_gap"),
        ({"delay": "5"}, "'5' is no duration"),
    ],
)
def test_delays_that_cannot_be(history: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        contract({"history": history})


def test_a_given_history_has_no_delay() -> None:
    with pytest.raises(ValidationError, match=r"a precomputed history is taken as it is; remove history\.delay"):
        History.model_validate({"given": {"column": "past"}, "delay": "5m"})


CATEGORY = {"type": "categorical"}
SHOWN = {"label": None, "candidates": {"column": "shown", "clicked": "taken"}}
FLAGGED = {"label": None, "candidates": {"column": "shown", "flag": "-"}}


@pytest.mark.parametrize(
    ("log", "read", "key"),
    [
        ({"context": {"rating": CATEGORY}}, "rating", "interactions.label"),
        ({"context": {"good": CATEGORY | {"source": "rating > 2"}}}, "rating", "interactions.label"),
        ({"context": {"good": CATEGORY | {"source": "UPPER(label)"}}}, "label", "interactions.label"),
        ({"context": {"good": CATEGORY | {"source": "_label"}}}, "_label", "interactions.label"),
        ({"label": "click-through", "context": {"click-through": CATEGORY}}, "click-through", "interactions.label"),
        ({"labels": {"long": "dwell > 9"}, "context": {"dwell": CATEGORY}}, "dwell", "interactions.labels.long"),
        (SHOWN | {"context": {"n": CATEGORY | {"source": "ARRAY_LENGTH(taken)"}}}, "taken",
         "interactions.candidates.clicked"),
        (SHOWN | {"context": {"clicked": CATEGORY}}, "clicked", "interactions.candidates.clicked"),
        (FLAGGED | {"context": {"shown": CATEGORY}}, "shown", "interactions.candidates.column"),
    ],
)  # fmt: skip
def test_no_feature_reads_what_the_label_is_made_of(log: Any, read: str, key: str) -> None:
    name = next(iter(log["context"]))
    words = f"interactions.context.{name}: reads {read!r}, which the label is made of ({key}): it would tell the answer"
    with pytest.raises(ConfigError) as caught:
        contract({"interactions": log})
    assert words in str(caught.value) and f"`interactions.allow_label_features: [{read}]`" in str(caught.value)
    allowed = contract({"interactions": log | {"allow_label_features": [read]}})
    assert name in allowed.interactions.context


def test_what_the_label_is_not_made_of_needs_no_leave() -> None:
    words = "interactions.allow_label_features: no label reads 'rating2'; remove it from the list"
    with pytest.raises(ConfigError, match=words):
        contract({"interactions": {"allow_label_features": ["rating2"]}})


def test_a_column_of_the_logs_own_file_reads_the_log() -> None:
    with pytest.raises(ConfigError, match=r"items\.columns\.rating: reads 'rating', which the label is made of"):
        contract({"items": {"path": "log.parquet", "columns": {"rating": {"type": "numeric"}}}})
    assert contract({"items": {"columns": {"rating": {"type": "numeric"}}}}).items is not None


def test_every_request_knows_its_user_and_time() -> None:
    log = {"label": "back - time < 60 AND user_id > 0", "context": {"hour": {"type": "date", "part": "hour",
           "source": "time"}, "who": CATEGORY | {"source": "user_id"}}}  # fmt: skip
    assert set(contract({"interactions": log}).interactions.context) == {"hour", "load", "who"}


def test_events_may_read_the_label() -> None:
    history = {"events": "rating > 2", "columns": {"rating": CATEGORY, "good": CATEGORY | {"source": "label"}}}
    assert set(contract({"history": history}).history.columns) == {"rating", "good"}


def test_the_label_may_be_an_event_column() -> None:
    assert "label" in contract({"history": {"columns": {"label": {"type": "categorical"}}}}).history.columns


def test_fields_take_the_tables_names_where_there_are_tables() -> None:
    both = contract({"items": {"id": "iid"}, "users": {"id": "uid"}})
    assert (both.item_field, both.user_field) == ("iid", "uid")
    neither = contract({"items": None, "users": None})
    assert (neither.item_field, neither.user_field) == ("item_id", "user_id")


def test_the_fingerprint_says_what_not_where() -> None:
    first = contract()
    assert len(first.fingerprint()) == 64
    assert contract({"root": "/elsewhere", "truth": {"path": "t"}}).fingerprint() == first.fingerprint()
    shuffled = validate(Contract, dict(reversed(list(CONTENT.items()))), "raw.yaml")
    assert shuffled.fingerprint() == first.fingerprint()
    for over in ({"history": {"max_len": 6}}, {"interactions": {"label": "rating >= 3"}}, {"name": "other"}):
        assert contract(over).fingerprint() != first.fingerprint()


def test_paths_start_from_the_root() -> None:
    root = contract({"root": "/data"})
    assert root.resolve("a/log.csv") == "/data/a/log.csv"
    assert root.resolve("/abs/log.csv") == "/abs/log.csv" and root.resolve("s3://b/log") == "s3://b/log"


def test_loading_with_root_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "raw.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    loaded = load_contract(path, {"history": {"max_len": 7}}, root="/data")
    assert loaded.history.max_len == 7 and loaded.root == "/data"
    assert loaded.history.columns == contract().history.columns


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such file. Files there: other.yaml."), ("a: [", "not valid YAML"), ("- 1", "expected a mapping"),
     ("", "the contract is empty"), (b"\xff\xfe\xfa", "cannot be read")],
)  # fmt: skip
def test_what_is_no_contract_file(tmp_path: Path, text: Any, words: str) -> None:
    (tmp_path / "other.yaml").write_text("{}")
    path = tmp_path / "raw.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_contract(path)
    assert str(caught.value).startswith(str(path)) and words in str(caught.value)


def test_overrides_by_hand() -> None:
    given = ["train.epochs=3", "train.lr=1e-3", "data.split.by=user", "a.b=[1, 2]", "a.c=", "a.d=x=y", "a.e=true"]
    assert parse_overrides(given) == {
        "train": {"epochs": 3, "lr": "1e-3"},
        "data": {"split": {"by": "user"}},
        "a": {"b": [1, 2], "c": None, "d": "x=y", "e": True},
    }


class Kinds(Settings):
    text: str = ""
    text_or_number: str | int | None = None
    real: float = 0.0
    whole: int = 0
    positive: PositiveInt | None = None
    several: list[int] | None = None


@pytest.mark.parametrize(
    ("assignment", "value"),
    [("text=1e5", "1e5"), ("text=12e3", "12e3"), ("text=nan", "nan"), ("text=infinity", "infinity"),
     ("text_or_number=1e5", "1e5"), ("text_or_number=7", 7), ("real=1e-3", 0.001), ("real=5", 5.0),
     ("whole=1e5", 100_000), ("positive=2e3", 2000), ("positive=", None)],
)  # fmt: skip
def test_an_exponent_is_a_number_where_the_field_is_one(assignment: str, value: Any) -> None:
    given = parse_overrides([f"kinds.{assignment}"])["kinds"]
    (read,) = (getattr(validate(Kinds, given, "--set"), name) for name in given)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "assignment", ["whole=1e-3", "whole=1e999", "whole=nan", "positive=-1e3", "real=1e5x", "several=1e5"]
)
def test_an_exponent_that_does_not_fit_its_field(assignment: str) -> None:
    with pytest.raises(ConfigError, match=assignment.partition("=")[0]):
        validate(Kinds, parse_overrides([f"kinds.{assignment}"])["kinds"], "--set")


@pytest.mark.parametrize("text", ["epochs=3", "train.epochs", "train.=3", ".epochs=3", "a.b=[1"])
def test_overrides_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_overrides([text])


def test_an_override_below_a_value() -> None:
    with pytest.raises(ConfigError, match="already set to a value"):
        parse_overrides(["a.b=1", "a.b.c=2"])


def test_merge_goes_key_by_key() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"b": 9}, "e": 4}) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert merge(base, {"a": None})["a"] is None
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "x.yaml") == {}


@pytest.mark.parametrize("key", ["a", "'a'", '"a"'])
def test_a_key_that_stands_twice_is_refused_where_the_last_would_hide_the_first(tmp_path: Path, key: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"top:\n  a: 1\n  b: {{a: 2}}\n  {key}: 3\n")
    said = f"{path}: line 4: 'a' stands twice in one mapping, first in line 2, and the last alone would count. "
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_yaml(path)


def test_a_key_that_stands_twice_in_one_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("top: {1: a, 2: b, 1: c}\n")
    with pytest.raises(ConfigError, match="line 1: '1' stands twice in one mapping, first in line 1,"):
        load_yaml(tmp_path / "x.yaml")


def test_a_key_over_one_of_an_anchor_is_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("one: &one {a: 1, b: 2}\ntwo: {<<: *one, a: 3}\n")
    assert load_yaml(path) == {"one": {"a": 1, "b": 2}, "two": {"a": 3, "b": 2}}


def test_a_mapping_that_is_merged_before_it_is_read_itself_repeats_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("zero: &zero {a: 1}\nx: {deep: &one {<<: *zero, a: 3}}\ntwo: {<<: *one}\n")
    assert load_yaml(path) == {"zero": {"a": 1}, "x": {"deep": {"a": 3}}, "two": {"a": 3}}


@pytest.mark.parametrize("section", ["embeddings", "vectors", "history", "counters", "split", "checks"])
def test_a_section_without_settings_is_told_with_the_way_out(section: str) -> None:
    log = {"path": "log.parquet", "user": "u", "item": "i", "time": "t", "label": "l"}
    with pytest.raises(ConfigError) as error:
        validate(Contract, {"name": "shop", "interactions": log, section: None}, "shop.yaml")
    assert str(error.value) == f"shop.yaml: {section}: has no settings. Write some below it, or remove the key"


def test_a_section_of_another_kind_is_not_said_to_have_no_settings() -> None:
    log = {"path": "log.parquet", "user": "u", "item": "i", "time": "t", "label": "l"}
    with pytest.raises(ConfigError, match=r"shop\.yaml: checks: .*\(got 3\)"):
        validate(Contract, {"name": "shop", "interactions": log, "checks": 3}, "shop.yaml")
