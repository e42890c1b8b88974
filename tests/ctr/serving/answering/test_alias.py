"""What `--bundle` and `--model` ask for, and an alias of an MLflow server: its answers, credentials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ctr.serving.answering.versions import AliasSource, PointerSource, source_of
from features.errors import ConfigError, DataError
from tests.ctr.serving.tracking import ALIAS, Tracking, tracking_server

A = Path("/bundles/a")
VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@pytest.fixture
def tracking() -> Iterator[Tracking]:
    with tracking_server() as tracking:
        yield tracking


def test_an_alias_names_the_bundle_of_its_model_version(tracking, tmp_path):
    address, answers = tracking.address, tracking.answers
    source = source_of("models:/shop@champion", None, address, tmp_path)
    assert source == AliasSource(address, "shop", "champion", tmp_path / "shop")
    with pytest.raises(DataError, match="models:/shop@champion: the tracking server does not say"):
        source.wanted()
    answers[ALIAS] = {"model_version": {"version": "3", "tags": [{"key": "model_version", "value": "run-3"}]}}
    with pytest.raises(DataError, match="'run-3' is not in"):
        source.wanted()
    for folder in ("shop", "other"):
        (tmp_path / folder / "run-3").mkdir(parents=True)
    assert source.wanted() == tmp_path / "shop" / "run-3"
    answers[ALIAS] = {"model_version": {"version": "4", "tags": [{"key": "model_version", "value": "../other/run-3"}]}}
    assert source.wanted() == tmp_path / "shop" / "run-3", "no path leads out of the folder of bundles"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\ncontent-length: 500\r\n\r\n{",
        b"no status\r\n\r\n",
        b"",
        b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.0 200 OK\r\n\r\n\xff",
        b"HTTP/1.0 200 OK\r\n\r\nnull",
        {"model_version": [3]},
        {"model_version": {"tags": None}},
        {"model_version": {"tags": [{"key": "model_version", "value": 3}]}},
    ],
)
def test_an_answer_that_is_none_is_a_data_error(tracking, tmp_path, answer):
    address, answers = tracking.address, tracking.answers
    answers[ALIAS] = answer
    with pytest.raises(DataError, match="models:/shop@champion: the tracking server does not say"):
        AliasSource(address, "shop", "champion", tmp_path).wanted()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((None, None, None), None),
        (("me", "pass:wörd", None), "Basic bWU6cGFzczp3w7ZyZA=="),
        ((None, None, "a-token"), "Bearer a-token"),
        (("me", "pass", "a-token"), "Basic bWU6cGFzcw=="),  # as MLflow has it
        (("me", None, "a-token"), "Bearer a-token"),
        (("", "", ""), None),
    ],
)
def test_credentials_are_those_of_mlflow(tracking, tmp_path, monkeypatch, given, told):
    for name, value in zip(VARIABLES, given, strict=True):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    (tmp_path / "run-3").mkdir()
    tracking.name("run-3")
    tracking.authorization = told
    assert AliasSource(tracking.address, "shop", "champion", tmp_path).wanted() == tmp_path / "run-3"
    assert tracking.told == [told]


def test_credentials_are_neither_sent_elsewhere_nor_named(tracking, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    source = AliasSource(tracking.address, "shop", "champion", tmp_path)
    with tracking_server() as other:
        tracking.answers[ALIAS] = other.address + ALIAS
        with pytest.raises(DataError) as caught:
            source.wanted()
        assert tracking.told == ["Bearer a-token"] and other.told == [None]
    assert "a-token" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "two\nlines")
    with pytest.raises(DataError) as caught:
        source.wanted()
    assert "lines" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "bundle", "server", "message"),
    [
        ("", None, "http://h", "either --bundle"),
        ("models:/shop@champion", A, "http://h", "either --bundle"),
        ("models:/shop/3", None, "http://h", "names no alias"),
        ("shop@champion", None, "http://h", "names no alias"),
        ("models:/shop@champion", None, "sqlite:///mlflow.db", "needs an MLflow server"),
        ("models:/shop@champion", None, None, "needs an MLflow server"),
    ],
)
def test_what_names_no_bundle_is_refused(model, bundle, server, message):
    with pytest.raises(ConfigError, match=message):
        source_of(model, bundle, server, Path())


@pytest.mark.parametrize("name", ["CURRENT", "NEWEST", "run-3"])
def test_a_pointer_or_folder_that_is_not_there_names_no_bundle(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: "):
        PointerSource(tmp_path / name).wanted()


def test_a_folder_needs_no_server():
    assert source_of("", A, None, Path()) == PointerSource(A)
