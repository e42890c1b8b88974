"""Each command that README, docs/, conf/ and messages name is one that exists, with options that it has."""

from __future__ import annotations

import pytest

from ctr.config import load_preset
from features.contract.settings import parse_overrides
from tests.command_lines import (
    Command,
    heads_of_yaml,
    messages,
    of_projects,
    problem,
    recipes,
    written_in_blocks,
    written_inline,
)
from tests.documents import ROOT

PLACES = {
    "blocks": written_in_blocks,
    "inline": written_inline,
    "yaml": heads_of_yaml,
    "messages": messages,
    "recipes": recipes,
    "projects": of_projects,
}


@pytest.mark.parametrize("place", PLACES)
def test_commands_exist_and_have_these_options(place):
    commands = PLACES[place]()
    assert len(commands) > 3
    wrong = [f"{command.origin}: {command.text}: {found}" for command in commands if (found := problem(command))]
    assert wrong == []


def test_settings_of_model_and_train_exist():
    """`--set model.…` and `--set train.…` of every whole command are keys that are there."""
    assignments = {
        words[place + 1]
        for command in [*written_in_blocks(), *heads_of_yaml()]
        for words in [command.words]
        for place, word in enumerate(words[:-1])
        if word == "--set" and words[place + 1].startswith(("model.", "train."))
    }
    assert len(assignments) > 3
    for assignment in assignments - {"model.key=value"}:
        load_preset(ROOT / "conf/model/qin.yaml", ROOT / "conf/train.yaml", parse_overrides([assignment]))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("quadrank trian --data conf/data/simulated.yaml", "no command trian"),
        ("quadrank train --model conf/model/qin.yaml", "train needs data"),
        ("quadrank train --data conf/data/nothing.yaml", "no file conf/data/nothing.yaml"),
        ("quadrank rank --bundle b --best 5", "rank has no option --best"),
        ("quadrank download a b", "download takes 1 arguments"),
        ("make trian", "no target trian"),
        ("make train DATA=nothing", "no conf/data/nothing.yaml"),
        ("make train ROW=5", "the Makefile reads no ROW"),
        ("quadrank rank --bundle B --top 5", None),
        ("make train DATA=yours ROWS=5", None),
    ],
)
def test_a_wrong_command_is_told(line, why):
    assert problem(Command("here", tuple(line.split()), whole=True)) == why
