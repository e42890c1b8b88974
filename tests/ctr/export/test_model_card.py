"""`MODEL_CARD.md` says of a model what is true of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctr.config import ModelConfig
from ctr.export.model_card import _data, _drawn_negatives, _table
from ctr.serving.bundle import MODEL_CARD, BundleMetadata
from features.contract.log import Negatives
from features.store.feature_set import Window
from tests.ctr.serving.shop import export
from tests.trained import built_feature_set, random_model, raw_contract


@pytest.fixture(scope="module")
def card_without_history(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("card")
    feature_set = built_feature_set(folder)
    model = random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4, use_history=False))
    return (export(model, feature_set, folder / "bundle").path / MODEL_CARD).read_text(encoding="utf-8")


def test_a_model_without_a_history_is_said_to_read_none(card_without_history: str) -> None:
    assert "positive label, given a user and a context: it reads no history.\n" in card_without_history
    assert "| `history` | not read by this model, and may be left out: events as the log has" in card_without_history
    assert "history" not in card_without_history.split("## Limits")[1]


@pytest.mark.parametrize(("time", "head"), [("time", "| from (UTC) | to (UTC) |"), (None, "|")])
def test_rows_without_times_have_no_dates(time: str | None, head: str) -> None:
    """The feature set has 0 as their time, which is the first of January 1970."""
    contract = raw_contract(Path("raw"))
    log = contract.interactions.model_copy(update={"time": time})
    window = Window(rows=4, positives=1, first_time=0, last_time=0)
    said: dict[str, Any] = {"feature_set": "v1", "fingerprint": "f", "windows": {"train": window}}
    metadata = BundleMetadata.model_construct(None, **said)
    lines = _data(metadata, contract.model_copy(update={"interactions": log})).splitlines()
    assert lines[0] == f"| split | rows | positive {head}"
    assert ("1970" in lines[2]) == (time is not None)
    assert lines[2].startswith("| train | 4 | 25.00% |")


def test_a_bar_in_an_expression_does_not_end_its_cell() -> None:
    rows = [("`history`", "read of: `first || second`")]
    assert _table(("field", "what"), rows).splitlines()[2] == r"| `history` | read of: `first \|\| second` |"


@pytest.mark.parametrize(
    ("how", "meaning"),
    [
        ("uniform", "A score is the rate among all items that could have been drawn, which is lower."),
        ("popularity", "Drawn in proportion to popularity, they stand for no log: scores rank, and are no rates."),
    ],
)
def test_what_drawn_negatives_make_of_a_score_is_told(tmp_path: Path, how: str, meaning: str) -> None:
    contract = built_feature_set(tmp_path).contract
    assert _drawn_negatives(contract) == []
    drawn = contract.interactions.model_copy(update={"negatives": Negatives.model_validate({"how": how})})
    assert _drawn_negatives(contract.model_copy(update={"interactions": drawn})) == [
        "- The log has positives alone. 4 negatives were drawn for each, and the shares of positives and the metrics "
        f"above are of these rows. {meaning}"
    ]
