"""The policies of the checks: what stops, what is put aside with its reason, what is only told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import features.checks.group_rules
import features.sources.log
from features.build.build import build_feature_set
from features.checks import quarantine
from features.checks.check_log import Checked, Finding, check_log
from features.checks.group_rules import EventKeys, IdCounts
from features.checks.quarantine import QUARANTINE
from features.checks.row_rules import ROW, RowRules, Violation, numbered, row_rules
from features.chunk import ITEM, LABEL, TIME, USER
from features.contract.contract import Contract
from features.contract.settings import validate
from features.errors import ConfigError, DataError
from features.sources.log import open_log

SECOND, DAY = 1_000_000, 86_400_000_000
START = 1_700_000_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAIN: dict[str, Any] = {"path": "log.parquet", "user": "u", "item": "i", "time": "t", "label": "y"}


def clean(rows: int = 20) -> pl.DataFrame:
    """Rows a second apart, labels in turn."""
    number = np.arange(rows)
    return pl.DataFrame(
        {"u": number % 3 + 1, "i": number % 5 + 11, "t": START + number, "y": number % 2, "note": number}
    )


def contract_of(folder: Path, log: pl.DataFrame, checks: dict[str, Any] | None = None, **over: Any) -> Contract:
    """Write the log and return a contract for it."""
    folder.mkdir(parents=True, exist_ok=True)
    log.write_parquet(folder / "log.parquet")
    content = {
        "name": "plain",
        "root": str(folder),
        "interactions": PLAIN | over.pop("interactions", {}),
        "checks": {"max_quarantine": 1.0, **(checks or {})},
        **over,
    }
    return validate(Contract, content, "plain")


def check(contract: Contract, items: list[int] | None = None, users: list[int] | None = None) -> Checked:
    """Check the contract's log; the staging folder is `versions/staging` beside it."""
    staging = Path(contract.root) / "versions" / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    opened = open_log(contract)
    known_items, known_users = (None if ids is None else pl.Series(ids) for ids in (items, users))
    return check_log(opened, contract, known_items, known_users, staging, NOW)


def aside(contract: Contract) -> pl.DataFrame:
    """What was put aside."""
    return pl.read_parquet(Path(contract.root) / "versions" / "staging" / QUARANTINE)


def kept(checked: Checked) -> list[int]:
    """Seconds since START of the rows that stay; in `clean` these are the rows' numbers."""
    return [(time - START * SECOND) // SECOND for time in checked.frame.collect()[TIME].to_list()]


@pytest.fixture(params=[7, 500_000], ids=["many chunks", "one chunk"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.sources.log, "ROWS_A_CHUNK", request.param)


def put(column: str, values: dict[int, Any]) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Replace some rows' values."""

    def change(log: pl.DataFrame) -> pl.DataFrame:
        old = log[column].to_list()
        return log.with_columns(pl.Series(column, [values.get(row, value) for row, value in enumerate(old)]))

    return change


def test_a_clean_log_passes_untouched(tmp_path: Path, chunked: None) -> None:
    contract = contract_of(tmp_path, clean())
    checked = check(contract, items=[11, 12, 13, 14, 15], users=[1, 2, 3])
    before = open_log(contract).frame.collect()
    assert checked.frame.collect().equals(before.with_columns(pl.col(LABEL).cast(pl.Float32)))
    assert (checked.rows, checked.findings) == (20, ())
    assert not list((tmp_path / "versions").rglob("*.parquet"))


def test_rows_are_put_aside_as_the_log_had_them(tmp_path: Path, chunked: None) -> None:
    """Row 3 has no user, row 9 neither an item nor a label of 0 or 1, row 16 a time in ms: 17 rows stay, in order."""
    log = put("t", {16: (START + 16) * 1000})(put("y", {9: 2})(put("i", {9: None})(put("u", {3: None})(clean()))))
    policies = dict.fromkeys(("null", "label", "time_range"), "quarantine")
    contract = contract_of(tmp_path, log, policies)
    checked = check(contract)
    assert kept(checked) == [row for row in range(20) if row not in (3, 9, 16)]
    assert checked.rows == 17
    assert aside(contract).to_dict(as_series=False) == {
        "reason": ["null: u", "null: i; label: y", "time_range: t"],
        "row": [3, 9, 16],
        "u": [None, 1, 2],
        "i": [14, None, 12],
        "t": [START + 3, START + 9, (START + 16) * 1000],
        "y": [1, 2, 0],
        "note": [3, 9, 16],
    }
    assert [(one.check, one.rows, one.policy) for one in checked.findings] == [
        ("null", 1, "quarantine"),
        ("null", 1, "quarantine"),
        ("label", 1, "quarantine"),
        ("time_range", 1, "quarantine"),
    ]
    assert checked.findings[2].message == (
        "label 'y': 1 of 20 rows are neither 0 nor 1, e.g. 2 in row 9. They were put aside in quarantine.parquet."
    )


def test_columns_of_the_log_may_be_called_reason_and_row(tmp_path: Path) -> None:
    log = put("u", {2: None})(clean(8)).with_columns(row=pl.lit("R"), reason=pl.lit("why"))
    contract = contract_of(tmp_path, log, {"null": "quarantine"})
    check(contract)
    assert aside(contract).select("reason", "row", "log.reason", "log.row").rows() == [("null: u", 2, "why", "R")]


def test_candidates_are_put_aside_one_by_one(tmp_path: Path) -> None:
    """Rows are candidates here, not lines of the file: 2 lines, 5 candidates, the fourth below 0."""
    log = pl.DataFrame({"u": [1, 2], "t": [START, START + 1], "s": [[11, 12, 13], [-4, 15]], "c": [[12], [15]]})
    shown = {"candidates": {"column": "s", "clicked": "c"}, "label": None, "context": {"u2": CATEGORY}}
    contract = contract_of(tmp_path, log, {"negative_id": "quarantine"}, interactions=shown)
    checked = check(contract)
    assert checked.frame.collect()[ITEM].to_list() == [11, 12, 13, 15]
    row = aside(contract).to_dicts()
    when = datetime.fromtimestamp(START + 1, UTC).replace(tzinfo=None)
    assert row == [{"reason": "negative_id: i", "row": 3, "u": 2, "i": -4, "t": when, "label": 0, "context.u2": 2}]


CATEGORY = {"type": "categorical", "source": "u"}


@pytest.mark.parametrize(("limit", "stops"), [(0.1, False), (0.09, True)])
def test_too_many_stop_the_build_and_are_kept(tmp_path: Path, limit: float, stops: bool) -> None:
    """2 of 20 rows are 10 %."""
    log = put("u", {4: None, 5: None})(clean())
    contract = contract_of(tmp_path, log, {"null": "quarantine", "max_quarantine": limit})
    if not stops:
        assert check(contract).rows == 18
        return
    with pytest.raises(DataError) as caught:
        check(contract)
    (file,) = (tmp_path / "versions").glob("quarantine-*.parquet")
    for words in ("2 of 20 rows (10.00%)", "2 for null: u", "checks.max_quarantine 0.09", str(file), "nothing was"):
        assert words in str(caught.value)
    assert pl.read_parquet(file)["row"].to_list() == [4, 5]
    assert not (tmp_path / "versions" / "staging" / QUARANTINE).exists()


def test_a_log_put_aside_entirely_stops_the_build(tmp_path: Path) -> None:
    contract = contract_of(tmp_path, clean().with_columns(y=pl.lit(5)), {"label": "quarantine"})
    with pytest.raises(DataError, match="20 of 20 rows"):
        check(contract)


def test_all_failing_checks_are_told_worst_first(tmp_path: Path) -> None:
    log = put("u", {0: -1, 1: -2})(put("y", dict.fromkeys(range(5), 7))(put("i", {19: None})(clean())))
    with pytest.raises(DataError) as caught:
        check(contract_of(tmp_path, log))
    label, negative, null = str(caught.value).splitlines()
    assert all(line.startswith(f"{tmp_path}/log.parquet: ") for line in (label, negative, null))
    assert "label 'y': 5 of 20 rows are neither 0 nor 1, e.g. 7 in row 0. Write it as" in label
    assert "column 'u': 2 of 20 rows are negative ids, e.g. -1 in row 0" in negative
    assert "column 'i': 1 of 20 rows are null, e.g. row 19 (user 2, item None)" in null


def test_a_warning_lets_everything_pass(tmp_path: Path, chunked: None) -> None:
    log = put("u", {8: -5})(clean())
    checked = check(contract_of(tmp_path, log, {"negative_id": "warn"}))
    assert kept(checked) == list(range(20))
    message = (
        "column 'u': 1 of 20 rows are negative ids, e.g. -5 in row 8. No request can name "
        "such an id; number the ids from 0 in the export."
    )
    assert checked.findings == (Finding("negative_id", "warn", "u", 1, 20, "-5 in row 8", message),)


@pytest.mark.parametrize("name", ["null", "label", "weight"])
def test_rows_that_teach_nothing_cannot_just_be_warned_of(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"checks.{name}: Input should be 'error' or 'quarantine'"):
        contract_of(tmp_path, clean(), {name: "warn"})


ROWS_OF_A_LOG = st.lists(
    st.tuples(st.none() | st.integers(-2, 2), st.none() | st.integers(0, 2), st.none() | st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS_OF_A_LOG, text=st.booleans())
def test_repeats_are_those_of_the_literal_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[int | None, ...]], text: bool
) -> None:
    """A row repeats if an earlier one has its user, item and time; a row with one of them missing never does."""
    monkeypatch.setattr(features.sources.log, "ROWS_A_CHUNK", 7)
    expected = [n for n, row in enumerate(rows) if None not in row and row in rows[:n]]
    log = pl.DataFrame(
        # The last row keeps the log from being put aside entirely.
        [(u, i, None if t is None else START + t) for u, i, t in [*rows, (9, 9, 9)]],
        schema={"u": pl.Int64, "i": pl.Int64, "t": pl.Int64},
        orient="row",
    ).with_columns(y=pl.int_range(pl.len()) % 2)
    if text:
        log = log.with_columns(pl.col("u", "i").cast(pl.String))
    policies = {"null": "quarantine", "negative_id": "warn", "duplicate": "quarantine"}
    contract = contract_of(tmp_path, log, policies)
    (Path(contract.root) / "versions" / "staging" / QUARANTINE).unlink(missing_ok=True)
    checked = check(contract)
    found = [one for one in checked.findings if one.check == "duplicate"]
    assert [one.rows for one in found] == ([len(expected)] if expected else [])
    if found:
        told = aside(contract).filter(pl.col("reason").str.contains("duplicate"))
        assert told["row"].to_list() == expected
        assert told["reason"].unique().to_list() == ["duplicate: u, i, t"]


@pytest.mark.parametrize("text", [False, True])
def test_different_events_have_different_keys(text: bool) -> None:
    """A million events whose parts differ in their last bits alone."""
    side = pl.DataFrame({"v": np.arange(100)})
    grid = (
        side.rename({"v": USER}).join(side.rename({"v": ITEM}), how="cross").join(side.rename({"v": TIME}), how="cross")
    )
    if text:
        grid = grid.with_columns(pl.col(USER, ITEM).cast(pl.String))
    assert len(np.unique(EventKeys().of(grid, 0)["key"])) == 1_000_000


def test_text_keeps_its_number_from_chunk_to_chunk() -> None:
    """Each event in a chunk of its own: equal events alone have equal keys."""
    keys = EventKeys()
    events = [("a", "x", 1), ("b", "x", 1), ("a", "x", 1), ("a", "y", 1), ("b", "x", 1)]
    found = [keys.of(pl.DataFrame([event], schema=[USER, ITEM, TIME], orient="row"), 0)["key"][0] for event in events]
    assert [found.index(key) for key in found] == [0, 1, 0, 3, 1]


def test_counts_of_ids_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.checks.group_rules, "MOST_PENDING", 3)
    counts = IdCounts()
    for part in ([5, 5, 1], [1, 2, None], [9, 5], [2]):
        counts.add(pl.Series(part, dtype=pl.Int64))
    assert counts.counts().rows() == [(1, 2), (2, 2), (5, 3), (9, 1)]


def test_ids_that_their_tables_do_not_list(tmp_path: Path, chunked: None) -> None:
    """Item 15 has rows 4, 9, 14, 19; user 3 rows 2, 5, 8, 11, 14, 17."""
    contract = contract_of(
        tmp_path,
        clean(),
        {"unknown_item": "quarantine", "unknown_user": "warn"},
        items={"path": "items.parquet", "id": "i"},
        users={"path": "users.parquet", "id": "u"},
    )
    checked = check(contract, items=[11, 12, 13, 14, 99], users=[1, 2])
    assert kept(checked) == [row for row in range(20) if row % 5 != 4]
    assert aside(contract)["row"].to_list() == [4, 9, 14, 19]
    user, item = checked.findings
    assert (user.check, user.rows, user.example) == ("unknown_user", 6, "3 in row 2")
    assert (item.check, item.rows, item.example) == ("unknown_item", 4, "15 in row 4")
    assert "1 users that users.parquet does not list" in user.message


BEYOND = 2**33  # rows before the log's first: numbers of 32 bits end at 2^32


def test_rules_number_rows_beyond_32_bits(tmp_path: Path) -> None:
    contract = contract_of(tmp_path, clean(4), {"null": "quarantine"})
    opened = open_log(contract)
    rules = RowRules(row_rules(opened.frame.collect_schema(), contract, NOW))
    chunk = opened.frame.collect().with_columns(pl.when(pl.int_range(4) == 2).then(None).otherwise(ITEM).alias(ITEM))
    rules.add(chunk, first=BEYOND)
    (found,) = rules.violations()
    assert (found.first, found.places_N.tolist()) == (BEYOND + 2, [BEYOND + 2])


@pytest.mark.parametrize("engine", ["streaming", "in-memory"])
def test_rows_of_a_frame_are_numbered_beyond_32_bits(engine: Any) -> None:
    frame = pl.concat([pl.LazyFrame({"a": range(7)}), pl.LazyFrame({"a": range(7, 10)})])
    found = numbered(frame, BEYOND).filter(pl.col("a") % 4 == 0).collect(engine=engine)
    assert found[ROW].to_list() == [BEYOND, BEYOND + 4, BEYOND + 8]


def test_rows_beyond_32_bits_are_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = contract_of(tmp_path, clean(5))
    one = Violation("bot", "quarantine", "u", "", "", "", 2, BEYOND + 1, np.array([BEYOND + 1, BEYOND + 3]))
    monkeypatch.setattr(quarantine, "numbered", lambda frame: numbered(frame, BEYOND))
    (tmp_path / "staging").mkdir()
    opened = open_log(contract)
    stay, gone = quarantine.quarantine(opened.frame, opened.path, contract, [one], 5, tmp_path / "staging")
    written = pl.read_parquet(tmp_path / "staging" / QUARANTINE)
    assert gone == 2 and [time % 10 for time in (stay.collect()[TIME] // SECOND - START).to_list()] == [0, 2, 4]
    assert written.select("row", "note").rows() == [(BEYOND + 1, 1), (BEYOND + 3, 3)]


def test_columns_that_say_nothing_are_told_of(tmp_path: Path) -> None:
    log = clean().with_columns(y=pl.lit(1), mood=pl.lit(None, pl.Int64))
    checked = check(contract_of(tmp_path, log, interactions={"context": {"mood": {"type": "categorical"}}}))
    assert [(one.check, one.column, one.rows) for one in checked.findings] == [
        ("empty", "mood", 20),
        ("constant", "y", 20),
    ]
    assert "label 'y': is 1 in all 20 rows" in checked.findings[1].message


@pytest.mark.parametrize(
    ("moment", "found"),
    [
        ("2023-11-13 23:59:59.999999", 1),
        ("2023-11-14 00:00:00", 0),
        ("2023-11-20 23:59:59.999999", 0),
        ("2023-11-21 00:00:00", 1),
    ],
)
def test_earliest_and_latest_are_whole_days(tmp_path: Path, moment: str, found: int) -> None:
    log = clean(4).with_columns(t=pl.lit(moment).str.to_datetime(time_unit="us"), i=pl.int_range(pl.len()))
    between = {"earliest": "2023-11-14", "latest": date(2023, 11, 20), "time_range": "warn"}
    findings = check(contract_of(tmp_path, log, between)).findings
    assert [one.rows for one in findings] == [4] * found


def test_the_default_latest_is_a_day_from_now(tmp_path: Path) -> None:
    now = int(NOW.timestamp())
    log = put("t", {6: now + 86_400, 7: now + 86_401})(clean())
    (found,) = check(contract_of(tmp_path, log, {"time_range": "warn"})).findings
    assert (found.rows, found.example) == (1, f"{now + 86_401} in row 7")


def test_no_policy_lets_a_time_without_a_calendar_pass(tmp_path: Path) -> None:
    """Year 55840 in seconds; a time of 1980 is merely early."""
    with pytest.raises(DataError, match="1 of 20 rows leave the years 1 to 9999"):
        check(contract_of(tmp_path, put("t", {5: START * 1000})(clean()), {"time_range": "warn"}))
    assert len(check(contract_of(tmp_path, put("t", {5: 330_000_000})(clean()), {"time_range": "warn"})).findings) == 1


@pytest.mark.parametrize(
    ("column", "place"),
    [
        ({"type": "numeric"}, "They count as missing"),
        ({"type": "buckets", "edges": [0, 1]}, "They are in an outer bucket"),
    ],
)
def test_what_becomes_of_infinity_is_told_as_its_encoder_takes_it(
    tmp_path: Path, column: dict[str, Any], place: str
) -> None:
    log = clean(3).with_columns(n=pl.Series([0.5, float("inf"), 0.1]))
    (found,) = check(contract_of(tmp_path, log, interactions={"context": {"n": column}})).findings
    assert place in found.message


def test_ranges_hold_of_whatever_the_log_calls_the_column(tmp_path: Path) -> None:
    """Missing and NaN are not out of range; 7 and -3 are."""
    log = clean(6).with_columns(dwell=pl.Series([0.0, 5.0, 7.0, None, float("nan"), -3.0]))
    seconds = {"context": {"seconds": {"type": "numeric", "source": "dwell"}}}
    (found,) = check(contract_of(tmp_path, log, {"ranges": {"dwell": [0, 5]}}, interactions=seconds)).findings
    assert (found.check, found.column, found.rows, found.example) == ("range", "dwell", 2, "7.0 in row 2")
    with pytest.raises(ConfigError, match=r"checks.ranges: the contract reads no column 'dwel'.* 'dwell'\?"):
        check(contract_of(tmp_path, log, {"ranges": {"dwel": [0, 5]}}, interactions=seconds))


def test_without_times_nothing_is_early_repeated_or_a_bot(tmp_path: Path) -> None:
    log = pl.DataFrame({"u": [1] * 6, "i": [11] * 6, "y": [0, 1] * 3, "h": [[12]] * 6})
    for name in ("valid", "test"):
        log.write_parquet(tmp_path / f"{name}.parquet")
    files = {"split": {"by": "files", "valid": "valid.parquet", "test": "test.parquet"}}
    given = {"history": {"given": {"column": "h"}}, "interactions": {"time": None}}
    checked = check(contract_of(tmp_path, log, {"max_rows_per_user": 1}, **files, **given))
    assert (checked.rows, checked.findings) == (18, ())


def test_the_file_is_part_of_the_feature_set(tmp_path: Path) -> None:
    contract = contract_of(tmp_path, put("u", {3: None})(clean(60)), {"null": "quarantine"})
    built = build_feature_set(contract, tmp_path / "out").feature_set
    assert QUARANTINE in built.manifest.files
    built.verify()
    assert sum(window.rows for window in built.manifest.windows.values()) == 59
    assert built.manifest.findings == (
        "column 'u': 1 of 60 rows are null, e.g. row 3 (user None, item 14). They were put "
        "aside in quarantine.parquet.",
    )


def test_too_many_leave_the_version_before(tmp_path: Path) -> None:
    contract = contract_of(tmp_path, clean(60))
    before = build_feature_set(contract, tmp_path / "out").feature_set
    broken = contract_of(tmp_path, put("u", {3: None})(clean(60)), {"null": "quarantine", "max_quarantine": 0.01})
    with pytest.raises(DataError, match="1 of 60 rows"):
        build_feature_set(broken, tmp_path / "out")
    left = sorted(path.name for path in (tmp_path / "out" / "plain").iterdir())
    assert left == sorted(
        [".lock", "CURRENT", before.manifest.version, f"quarantine-{broken.fingerprint()[:8]}.parquet"]
    )
    assert (tmp_path / "out" / "plain" / "CURRENT").read_text() == before.manifest.version
    before.verify()


def test_a_column_of_nulls_alone_is_missing_in_every_row(tmp_path: Path) -> None:
    """A parquet of nulls does not know their type: a missing weight counts as 1, and a missing number is in range."""
    log = clean().with_columns(w=pl.lit(None), n=pl.lit(None))
    over = {"weight": "w", "context": {"n": {"type": "numeric"}}}
    checked = check(contract_of(tmp_path, log, {"ranges": {"n": [0, 1]}}, interactions=over))
    assert checked.rows == 20
    assert [(finding.check, finding.column) for finding in checked.findings] == [("empty", "n"), ("empty", "w")]
