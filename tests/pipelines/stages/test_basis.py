"""Keys of stages, and how a difference is told."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from pipelines.stages.basis import Basis, differences, flat

BASIS = Basis({"log": "a1", "items": "b2"}, {"train.epochs": 3, "as_of": None}, "c0de")


def test_a_key_does_not_depend_on_the_order_of_names():
    assert replace(BASIS, inputs={"items": "b2", "log": "a1"}).key == BASIS.key and len(BASIS.key) == 64


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"inputs": {"log": "a2", "items": "b2"}}, "inputs changed: log"),
        ({"inputs": {"log": "a1"}}, "inputs changed: items (gone)"),
        ({"inputs": {"log": "a1", "items": "b2", "day=2": "d4"}}, "inputs changed: day=2 (new)"),
        ({"inputs": {"log": "a1", "users": "b2"}}, "inputs changed: users in place of items"),
        ({"settings": {"train.epochs": 3, "until": None}}, "settings changed: as_of (gone), until (new)"),
        ({"settings": {"train.epochs": 4, "as_of": "2026-01-31"}}, "settings changed: as_of, train.epochs"),
        ({"code": "f00d"}, "code changed: c0de is now f00d"),
        (
            {"settings": {"train.epochs": 4, "as_of": None}, "code": "f00d"},
            "settings changed: train.epochs; code changed: c0de is now f00d",
        ),
    ],
)
def test_every_part_changes_the_key_and_is_named(changed, reason):
    now = replace(BASIS, **changed)
    assert now.key != BASIS.key
    assert now.changes(BASIS) == reason


def test_a_run_of_today_stands_in_place_of_yesterdays_which_is_not_said_to_be_gone():
    yesterday, today = replace(BASIS, inputs={"run-1": "a1"}), replace(BASIS, inputs={"run-2": "b2"})
    assert today.changes(yesterday) == "inputs changed: run-2 in place of run-1"


def test_nothing_changed_is_no_reason():
    assert BASIS.changes(replace(BASIS)) == ""
    of_many = replace(BASIS, settings={"model.hidden": [64, 32], "train.learning_rate": 0.002, "seed": 20_231_114})
    read_back = Basis(**json.loads(json.dumps(asdict(of_many))))  # as the job's record keeps it
    assert read_back.key == of_many.key
    assert of_many.changes(read_back) == ""


def test_of_many_names_three_are_told():
    before, now = {}, {f"day={number}": "x" for number in range(1, 6)}
    assert differences(before, now) == [f"day={number} (new)" for number in range(1, 6)]
    reason = replace(BASIS, inputs=now).changes(replace(BASIS, inputs=before))
    assert reason == "inputs changed: day=1 (new), day=2 (new), day=3 (new) and 2 more"


def test_none_is_a_value_and_not_the_absence_of_one():
    assert differences({"as_of": None}, {}) == ["as_of (gone)"]


def test_settings_are_flat_and_an_empty_section_stays():
    content = {"train": {"epochs": 3, "checkpoint": {"steps": 0}, "task_weights": {}}, "name": "shop"}
    assert flat(content, "") == {
        "train.epochs": 3,
        "train.checkpoint.steps": 0,
        "train.task_weights": {},
        "name": "shop",
    }
    assert flat({"epochs": 3}, "train") == {"train.epochs": 3}
