"""`quadrank drift` as a user types it: exit codes, table, JSON, picture and messages, on feature sets just built."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctr.reporting.figures import save_png
from features.build.build import build_feature_set
from features.monitor.drift.bins import Common
from features.monitor.drift.compare import Change, ColumnDrift, Drift
from features.monitor.drift.noise import Counts
from pipelines.cli.commands import main
from pipelines.inspect.drift import _table
from pipelines.inspect.drift_figure import drift_figure
from tests.features.raw import Tables, raw_log, vectors_of

Run = Callable[..., tuple[int, str, str]]
ROWS, USERS, ITEMS = 4_000, 80, 40
START = 1_700_000_000


def larger(tables: Tables, seed: int) -> None:
    """Ten days of a log large enough to tell drift from chance."""
    rng = np.random.default_rng(seed)
    time = np.sort(START + rng.integers(0, 10 * 86_400, ROWS))
    item, user = np.arange(1, 1 + ITEMS), np.arange(1, 1 + USERS)
    tables["log"] = pl.DataFrame(
        {
            "user_id": rng.choice(user, ROWS),
            "item_id": rng.choice(item, ROWS),
            "time": time,
            "rating": rng.integers(1, 6, ROWS),
            "hour": time // 3600 % 24,
            "load": rng.random(ROWS),
        }
    )
    tables["items"] = pl.DataFrame(
        {
            "item_id": item,
            "genre": [("drama", "comedy", "noir")[i % 3] for i in item],
            "tags": [["a", "b", "c"][: i % 4] for i in item],
            "price": item.astype(float),
        }
    )
    tables["users"] = pl.DataFrame({"user_id": user, "segment": [f"s{i % 3}" for i in user]})
    tables["text"] = vectors_of(item)


def built(folder: Path, seed: int, change: Callable[[pl.DataFrame], pl.DataFrame] = lambda log: log) -> Path:
    def changed(tables: Tables) -> None:
        larger(tables, seed)
        tables["log"] = change(tables["log"])

    return build_feature_set(raw_log(folder / "raw", changed), folder / "out").feature_set.path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        "base": built(folder / "base", 1),
        "same": built(folder / "same", 2),
        "drifted": built(folder / "drifted", 3, lambda log: log.with_columns(load=pl.col("load") * 1_000)),
    }


@pytest.fixture
def quadrank(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["drift", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def between(sets: dict[str, Path], new: str) -> list[Any]:
    return ["--base", sets["base"], "--new", sets[new]]


def test_no_drift_ends_with_0(quadrank: Run, sets: dict[str, Path]) -> None:
    code, out, _ = quadrank(*between(sets, "same"))
    assert code == 0 and "no drift in" in out
    assert "context.load" in out and "label rate" in out and "4,000 rows" in out


def test_drift_ends_with_3_and_one_json_line(quadrank: Run, sets: dict[str, Path]) -> None:
    code, out, err = quadrank(*between(sets, "drifted"), "--json")
    (line,) = out.strip().splitlines()
    result = json.loads(line)
    assert code == 3 == result["exit_code"] and result["status"] == "drift"
    assert result["rows"] == {"base": ROWS, "new": ROWS} and result["thresholds"]["psi"] == 0.1
    first = result["columns"][0]
    assert (first["column"], first["verdict"]) == ("context.load", "drift")
    assert first["changes"]["psi"]["alarm"] and first["changes"]["psi"]["size"] > 0.25
    assert first["changes"]["missing"] == {"base": 0.0, "new": 0.0, "size": 0.0, "chance": 1.0, "alarm": False}
    # How users part into three segments is known badly from 80 users.
    verdicts = {one["column"]: one["verdict"] for one in result["columns"][1:]}
    assert set(verdicts.values()) <= {"stable", "too few rows"} and verdicts["context.hour"] == "stable"
    # The table went to stderr, for people.
    assert "drift in 1 of" in err and "context.load" in err


def test_a_name_folder_and_a_profile_will_do(quadrank: Run, sets: dict[str, Path]) -> None:
    code, out, _ = quadrank("--base", sets["base"].parent, "--new", sets["drifted"] / "profile.json")
    assert code == 3 and "drift in 1 of" in out


def test_thresholds_splits_and_days_are_chosen(quadrank: Run, sets: dict[str, Path]) -> None:
    lenient = ["--set", "drift.psi=100", "--set", "drift.js=1.1"]
    assert quadrank(*between(sets, "drifted"), *lenient)[0] == 0
    code, out, _ = quadrank(*between(sets, "drifted"), "--split", "train", "--json")
    assert code == 3 and json.loads(out)["rows"] == {"base": 2_800, "new": 2_800}
    code, out, _ = quadrank(*between(sets, "drifted"), "--new-days", 2, "--base-days", "5", "--json")
    rows = json.loads(out)["rows"]
    assert code == 3 and rows["new"] < rows["base"] < ROWS


def test_fewer_days_than_the_profile_tells_apart_are_said_to_be_more(quadrank: Run, tmp_path: Path) -> None:
    """130 days are counted in runs of three, and the 130th is a run of its own, after the 127th to 129th."""
    day = START // 86_400 * 86_400
    long = built(tmp_path, 4, lambda log: log.with_columns(time=day + (pl.col("time") - START) * 13))
    days = [f"{datetime.fromtimestamp(day, UTC) + timedelta(days=number):%Y-%m-%d}" for number in (126, 129)]
    _, out, _ = quadrank("--base", long, "--new", long, "--new-days", 2)
    assert f"--new-days 2: 4 days are compared, {days[0]} to {days[1]}. Of so many days" in out
    assert "--base-days" not in out
    _, out, _ = quadrank("--base", long, "--new", long, "--new-days", 2, "--json")
    told = json.loads(out)["days"]
    assert told == {"base": [f"{datetime.fromtimestamp(day, UTC):%Y-%m-%d}", days[1]], "new": days}
    _, out, _ = quadrank("--base", long, "--new", long, "--new-days", 1)
    assert "--new-days" not in out


@pytest.mark.filterwarnings("error")
def test_a_terminal_of_80_columns_shows_every_number_whole() -> None:
    """A name that is too long goes on in the next line."""
    days = ("2026-03-01", "2026-03-07")
    changes = (
        Change("psi", None, None, 1.294, 0.1, 7e-115, True),
        Change("js", None, None, 0.449, 0.15, 7e-115, True),
        Change("label_rate", 0.2461, 0.2543, 0.2, 0.1, 0.4, True),
    )
    drift = Drift(100, 100, days, days, (ColumnDrift("candidate.item_count_1h", "drift", changes),))
    console = Console(file=io.StringIO(), width=80)
    console.print(_table(drift, "old against new"))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    wanted = ("candidate.ite", "m_count_1h", "1.294 *", "0.449 *", "24.61%", "25.43%", "7e-115")
    assert [one for one in wanted if one not in printed] == []


def test_values_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    """A price of `$5 to $10` is no mathematics; and signs that the font of pictures lacks print no warning."""
    base, new = (Counts(counts, counts) for counts in (np.array([[50.0, 50.0]]), np.array([[90.0, 10.0]])))
    common = Common(("$\\frac{$", "电影"), base, new)
    psi = Change("psi", None, None, 0.5, 0.1, 1e-9, True)
    column = ColumnDrift("context.$a$_^", "drift", (psi,), common)
    figure = drift_figure(Drift(100, 100, ("2026-01-01",) * 2, ("2026-01-02",) * 2, (column,)))
    save_png(figure, tmp_path / "drift.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [r"\$\frac{\$", "电影"]
    assert figure.axes[0].get_title() == r"context.\$a\$_^: drift, PSI 0.50"


def test_the_axis_of_shares_says_what_its_ticks_are() -> None:
    """Ticks at steps of 2.5 % are no 2 %, 5 % and 8 %."""
    base, new = (Counts(counts, counts) for counts in (np.full((1, 10), 10.0), np.array([[20.0] * 4 + [10 / 3] * 6])))
    column = ColumnDrift("context.load", "drift", (), Common(tuple("abcdefghij"), base, new))
    figure = drift_figure(Drift(100, 100, ("2026-01-01",) * 2, ("2026-01-02",) * 2, (column,)))
    shares = figure.axes[0].xaxis.get_major_formatter()
    assert [shares(share, None) for share in (0.0, 0.025, 0.07, 0.002)] == ["0%", "2.5%", "7%", "0.2%"]


@pytest.mark.parametrize("new", ["same", "drifted"])
def test_the_picture_is_a_png(quadrank: Run, sets: dict[str, Path], tmp_path: Path, new: str) -> None:
    path = tmp_path / "pictures" / "drift.png"
    _, out, _ = quadrank(*between(sets, new), "--out", path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and "picture:" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--split", "holdout"], 2, "--split holdout: choose one of train, valid, test"),
        (["--set", "drift.pis=0.2"], 2, "unknown key 'pis'. Did you mean 'psi'?"),
        (["--set", "drift.psi=-1"], 2, "psi: Input should be greater than 0"),
        (["--set", "train.epochs=1"], 2, "It reads: drift"),
        (["--new", "nowhere"], 4, "nowhere: no such file. Name a feature set's folder"),
    ],
)
def test_mistakes_are_explained(
    quadrank: Run, sets: dict[str, Path], arguments: list[str], code: int, message: str
) -> None:
    found, _, err = quadrank(*between(sets, "same"), *arguments)
    assert found == code and message in err
