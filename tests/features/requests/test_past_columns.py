"""The past of a request, as the log has it, to history columns: values worked out by hand."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import EncodedRequest, Encoder, Snapshot
from features.encoding.past import PastEvent
from features.encoding.request import parse_request
from features.errors import ConfigError
from features.requests.past_columns import RequestEncoder
from features.requests.raw_columns import Compared, Computed, Given

NOON = 1_767_268_800  # Thursday 2026-01-01T12:00:00Z, in seconds
ITEMS = 5  # 100 to 104: rows 2 to 6


def encoder_of(folder: Path, history: dict[str, Any] | None = None, **log: Any) -> Encoder:
    rows = 40
    pl.DataFrame(
        {
            "user": np.arange(rows) % 4,
            "item": 100 + np.arange(rows) % ITEMS,
            "time": NOON + 60 * np.arange(rows),
            "clicked": (np.arange(rows) % 3 == 0).astype(np.int8),
            "page": ["home", "list"] * (rows // 2),
            "load": np.arange(rows) / 10,
        }
    ).write_parquet(folder / "log.parquet")
    interactions = {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "label": "clicked", **log}
    columns = {
        "clicked": {"type": "categorical"},
        "page": {"type": "categorical"},
        "pause": {"type": "gap"},
        "residual": {"type": "residual", "counter": "item_rate"},
    }
    content = {
        "name": "shop",
        "root": str(folder),
        "interactions": interactions,
        "counters": {"item_rate": {"of": "item", "value": "rate"}},
        "history": {"max_len": 4, "columns": columns} | (history or {}),
    }
    return Encoder.load(build_feature_set(Contract.model_validate(content), folder / "out").feature_set.path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("past")
    return encoder_of(folder, context={"hour": {"type": "date", "part": "hour", "source": "time"}})


def encoded(encoder: Encoder, history: list[Any], past: Any = (), snapshot: Any = None, **more: Any) -> EncodedRequest:
    request = parse_request({"candidates": [100], "time": NOON, "history": history, **more}, encoder.contract)
    return RequestEncoder(encoder).encode(request, past, snapshot)


def event(item: int, seconds: int, **columns: Any) -> dict[str, Any]:
    """An event so many seconds before noon."""
    return {"item": item, "time": NOON - seconds, **columns}


def test_a_past_in_any_order(encoder: Encoder) -> None:
    """Of five events before noon the newest four; pauses of 100, 50, 20 and 9 s; indices by hand."""
    later = [event(104, 0, clicked=1), event(104, -5, clicked=1)]
    ago = {180: (100, 1), 80: (101, 0), 30: (102, 1), 10: (103, 0), 1: (999, 1)}
    sent = [event(item, at, clicked=label, page="list", item_rate=0.25) for at, (item, label) in ago.items()]
    found = encoded(encoder, [sent[3], *later, sent[0], sent[4], sent[2], sent[1]])
    assert found.history == (101, 102, 103, 999) and found.history_item.tolist() == [3, 4, 5, 1]
    assert found.history_events["clicked"].tolist() == [2, 3, 2, 3]
    assert found.history_events["page"].tolist() == [3, 3, 3, 3]
    # Buckets double from 2 s on, index 2 below it: 64 to 128, 32 to 64, 16 to 32, 8 to 16.
    assert found.history_events["pause"].tolist() == [8, 7, 6, 5]
    assert found.history_events["residual"].tolist() == [-0.25, 0.75, -0.25, 0.75]
    assert (found.unknown_history, found.missing) == (1, {})
    assert {name: values.dtype for name, values in found.history_events.items()} == {
        "clicked": np.int64, "page": np.int64, "pause": np.int64, "residual": np.float32
    }  # fmt: skip


def test_a_counter_that_an_event_does_not_bring_is_the_snapshots(encoder: Encoder) -> None:
    sent = [event(101, 9, clicked=1, page="home", item_rate=0.5), event(102, 5, clicked=1, page="home")]
    last = encoder.snapshot.items["item_rate"]
    assert 0 < last[4] < 1 and last[4] != last[3]
    known = encoded(encoder, sent)
    assert known.history_events["residual"].tolist() == pytest.approx([0.5, 1 - last[4]], abs=1e-7)
    assert known.missing == {}
    fresher = Snapshot({"item_rate": np.full_like(last, 0.125)}, {})
    found = encoded(encoder, sent, snapshot=fresher)
    assert found.history_events["residual"].tolist() == [0.5, 0.875]
    assert found.candidate["item_rate"] == encoder.candidate["item_rate"].encode_one(0.125)


def test_what_events_do_not_give_is_counted(encoder: Encoder) -> None:
    sent = [event(101, 30, page="home"), event(102, 20, clicked=None), event(103, 10, clicked=0, page="home")]
    found = encoded(encoder, sent)
    assert found.missing == {"clicked": 2, "page": 1, "residual": 2}
    assert np.isnan(found.history_events["residual"]).tolist() == [True, True, False]
    assert found.history_events["clicked"].tolist() == [1, 1, 2]


def test_only_events_of_the_history_count_as_missing(encoder: Encoder) -> None:
    old = [event(100, 100 + i) for i in range(3)]
    new = [event(101, 10 - i, clicked=1, page="home") for i in range(4)]
    assert encoded(encoder, old + new).missing == {}


def test_events_that_the_filter_could_not_read_are_counted(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, {"events": "label = 1 AND load < 2"})
    sent = [
        event(101, 40, clicked=1, load=1, page="home"),
        event(102, 30, clicked=1, page="home"),
        event(103, 20, load=1, page="home"),
        event(104, 10, clicked=0, load=1, page="home"),
    ]
    found = encoded(encoder, sent)
    assert (found.history, found.missing) == ((101,), {"load": 1, "clicked": 1})


def test_a_source_adds_to_what_is_sent(encoder: Encoder) -> None:
    source = [PastEvent(102, (NOON - 20) * 10**6, {"clicked": 0, "page": "list", "of_another": 3})]
    source.append(PastEvent(101, (NOON - 10) * 10**6, {"clicked": 0, "page": "list"}))
    sent = [event(101, 10, clicked=1, page="home"), event(103, 20, clicked=1, page="home")]
    found = encoded(encoder, sent, source)
    # Of one instant the source's stand first; what is sent wins.
    assert found.history == (102, 103, 101) and found.history_events["clicked"].tolist() == [2, 3, 3]
    assert encoded(encoder, [], source).history == (102, 101)
    assert encoded(encoder, [104], source).history == (104,)


def test_new_items_are_told_apart(tmp_path: Path) -> None:
    """All unknown ids share a row, yet two of them are no repeat."""
    encoder = encoder_of(tmp_path, {"repeats": "consecutive", "columns": {}})
    sent = [event(item, 100 - i) for i, item in enumerate([998, 999, 999, 998])]
    assert encoded(encoder, sent).history == (998, 999, 998)


def test_unknown_keys_are_refused_and_columns_of_the_log_are_not(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match=r"history\[1\]: unknown key 'cliked'\. Did you mean 'clicked'|clicked"):
        encoded(encoder, [event(101, 9), event(102, 5, cliked=1)])
    assert encoded(encoder, [event(101, 9, load=2, user=3, clicked=1)]).history == (101,)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"clicked": 2}, r"history\[1\]: its label is 2, expected 0 or 1"),
        ({"clicked": "yes"}, r"history\[1\]\.clicked: "),
        ({"clicked": [1]}, r"history\[1\]\.clicked: expected text or a whole number"),
        ({"page": 3}, r"history\[1\]\.page: "),
        ({"item_rate": "high"}, r"history\[1\]\.item_rate: expected a finite number"),
        ({"item": "x"}, r"history\[1\]: 'x'|history.*'x'"),
    ],
)
def test_a_value_of_another_type_is_named(encoder: Encoder, columns: dict[str, Any], message: str) -> None:
    """By its place in the request, whatever its time."""
    with pytest.raises(ConfigError, match=message):
        encoded(encoder, [event(101, 5, clicked=1, page="home"), event(102, 9) | columns])


def test_the_hour_is_that_of_the_request(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoded(encoder, []).context["hour"].tolist() == [2 + 12]
    assert encoded(encoder, [], time="2026-01-01T07:59:59Z").context["hour"].tolist() == [2 + 7]
    monkeypatch.setattr(time, "time_ns", lambda: (NOON + 3 * 3600) * 10**9)
    now = encoded(encoder, [event(101, 0, clicked=1, page="home")], time=None)
    assert now.context["hour"].tolist() == [2 + 15] and now.history == (101,) and now.missing == {}
    given = encoded(encoder, [], context={"hour": NOON - 3600})
    assert given.context["hour"].tolist() == [2 + 11]
    # Said to be unknown, it is.
    unknown = encoded(encoder, [], context={"hour": None})
    assert (unknown.context["hour"].tolist(), unknown.missing) == ([1], {"hour": 1})


def test_context_of_the_time_alone(tmp_path: Path) -> None:
    """By an expression too; not what reads another column, nor what has a default."""
    context = {
        "minute": {"type": "numeric", "source": "time / 60 % 60", "scale": "none"},
        "month": {"type": "date", "part": "month", "source": "time", "default": "2026-05-01"},
        "late": {"type": "categorical", "source": "CASE WHEN load > 1 THEN time % 60 ELSE 0 END"},
    }
    encoder = encoder_of(tmp_path, context=context)
    found = encoded(encoder, [], time=NOON + 7 * 60)
    assert found.context["minute"].tolist() == [7.0] and found.context["month"].tolist() == [2 + 4]
    assert found.missing == {"late": 1}


def test_what_an_expression_reads_has_the_type_of_the_log(tmp_path: Path) -> None:
    """A client's 4 is the log's 4.0; a value that the column cannot hold is named."""
    columns = {"half": {"type": "numeric", "source": "load * 2 + clicked * 0", "scale": "none"}}
    encoder = encoder_of(tmp_path, {"columns": columns})
    found = encoded(encoder, [event(101, 9, load=4, clicked=1), event(102, 8, load=0.5, clicked=0.0), event(103, 7)])
    assert found.history_events["half"].tolist() == pytest.approx([8, 1, np.nan], nan_ok=True)
    assert found.missing == {"half": 1}
    with pytest.raises(ConfigError, match=r"history\[1\]\.load: 'x' is not what the log has there, Float64\. Send"):
        encoded(encoder, [event(101, 9, load=4), event(102, 8, load="x")])
    with pytest.raises(ConfigError, match=r"history\[0\]\.clicked: 300 is not what the log has there, Int8"):
        encoded(encoder, [event(101, 9, load=4, clicked=300)])


def test_a_computed_value_that_its_column_cannot_have_is_refused(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, {"columns": {"ten": {"type": "categorical", "source": "ROUND(load * 10 + 0, 1)"}}})
    assert encoded(encoder, [event(101, 9, load=2)]).history_events["ten"][0] > 1
    with pytest.raises(ConfigError, match=r"history: column 'ten': 1 values, e.g. 2.5, are not whole numbers"):
        encoded(encoder, [event(101, 9, load=0.25)])


def test_a_bundle_of_an_earlier_version_takes_no_raw_events(encoder: Encoder) -> None:
    from dataclasses import replace

    old = replace(encoder, log_columns=pl.Schema())
    with pytest.raises(ConfigError, match="does not say what the log's columns are"):
        encoded(old, [event(101, 5)])
    assert encoded(old, [101]).history == (101,)


def test_plain_columns_and_comparisons_need_no_table(tmp_path: Path) -> None:
    columns = {
        "page": {"type": "categorical"},
        "good": {"type": "categorical", "source": "load >= 2"},
        "label": {"type": "categorical"},
    }
    encoder = encoder_of(tmp_path, {"events": "load <= 3.5", "columns": columns}, label="load >= 1")
    read = RequestEncoder(encoder).columns
    assert isinstance(read.events, Compared) and isinstance(read.label, Compared)
    assert isinstance(read.columns["page"], Given) and isinstance(read.columns["good"], Computed)
    assert read.columns["label"] is None
    found = encoded(encoder, [event(101, 9, load=0.5), event(102, 8, load=2), event(103, 7, load=4)])
    assert found.history == (101, 102)
    assert found.history_events["label"].tolist() == [2, 3] and found.history_events["good"].tolist() == [2, 3]


def test_what_is_infinite_in_the_log_is_read_from_a_source_of_pasts_as_a_build_reads_it(tmp_path: Path) -> None:
    """A number that is infinite is missing, lies in the last bucket, and is above 3; a client sends no such number."""
    columns = {
        "load": {"type": "numeric"},
        "level": {"type": "buckets", "edges": [1, 2], "source": "load"},
        "above": {"type": "categorical", "source": "CAST(load > 3 AS INT)"},
    }
    encoder = encoder_of(tmp_path, {"events": "load > 1", "columns": columns})
    past = [PastEvent(100, (NOON - 60) * 10**6, {"load": float("inf"), "clicked": 1})]
    found = encoded(encoder, [], past)
    assert np.isnan(found.history_events["load"]).tolist() == [True]
    assert found.history_events["level"].tolist() == [4]
    assert found.history_events["above"].tolist() == encoder.event["above"].encode_many([1]).tolist()
    assert encoded(encoder, [event(101, 70, load=2.5)], past).history == (101, 100)
    with pytest.raises(ConfigError, match=r"history\[0\]\.load: expected a finite number, got inf"):
        encoded(encoder, [event(101, 70, load=float("inf"))], past)


def test_whole_and_broken_numbers_and_text_are_decimals_of_a_log(tmp_path: Path) -> None:
    """As JSON has the decimals of a log's table: 2, 2.5 and "3.5"; each is what it is alone."""
    columns = {"twice": {"type": "numeric", "source": "load * 2", "scale": "none"}}
    encoder = encoder_of(tmp_path, {"columns": columns})
    encoder = replace(encoder, log_columns=pl.Schema({**encoder.log_columns, "load": pl.Decimal(10, 2)}))
    sent = [event(101, 40 - i, load=value) for i, value in enumerate([2, 2.5, "3.5", None])]
    found = encoded(encoder, sent)
    np.testing.assert_array_equal(found.history_events["twice"], np.array([4, 5, 7, np.nan], np.float32))
    with pytest.raises(ConfigError, match=r"history\[1\]\.load: 'much' is not what the log has there, Decimal"):
        encoded(encoder, [sent[0], event(101, 10, load="much"), sent[1]])
