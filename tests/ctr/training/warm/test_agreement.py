"""What a warm start refuses to go on from, and what it says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.config import ModelConfig
from ctr.model.click_model import ClickModel
from ctr.training.warm.agreement import require_agreement
from ctr.training.warm.parent import Parent
from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from tests import grown
from tests.grown import grown_feature_set

MODEL = ModelConfig(embedding_dim=4, vector_dim=3, attention="mean", tower="linear")


def parent_on(feature_set: FeatureSet, config: ModelConfig = MODEL) -> Parent:
    model = ClickModel(config, feature_set.schema)
    encoder = Encoder.load(feature_set.path)
    return Parent("monday", 0, model, model.state_dict(), None, feature_set, encoder)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSet, FeatureSet]:
    folder = tmp_path_factory.mktemp("days")
    return grown_feature_set(folder, 1), grown_feature_set(folder, 2)


def test_a_later_day_of_the_same_contract_agrees(days):
    changed = {"architecture": "other", "dropout": 0.5, "id_dropout": 0.1}
    require_agreement(parent_on(days[0]), MODEL.model_copy(update=changed), days[1])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"embedding_dim": 8}, "model.embedding_dim is 8, it had 4"),
        ({"tower": "mlp", "hidden": (8,)}, "model.hidden is (8,), it had (256, 128, 64); model.tower is 'mlp', it had"),
        ({"tower": "none", "base": "boosting"}, "trees alone (model.tower none) are grown anew by each run"),
    ],
)
def test_another_model_is_refused_by_name(days, changed: dict[str, Any], reason: str):
    with pytest.raises(ConfigError) as error:
        require_agreement(parent_on(days[0]), MODEL.model_copy(update=changed), days[1])
    assert reason in str(error.value) and "Train once without --warm-start" in str(error.value)
    assert "cannot go on from run monday" in str(error.value)


@pytest.mark.parametrize(
    ("over", "reasons"),
    [
        (
            {"interactions": {"context": {"pressure": {"type": "numeric", "source": "load"}}}},
            ["context columns 'pressure' are new"],
        ),
        ({"counters": {"user_rate": {"of": "user", "value": "rate"}}}, ["context columns 'user_rate' are new"]),
        (
            {"items": {"columns": {"price": {"type": "categorical"}}}},
            ["item column 'price' is categorical, it was numeric"],
        ),
        (
            {"embeddings": {"text": {"reduce": {"method": "truncate", "dim": 2}}}},
            ["its vector sets (name: width) were {'text': 4}, they are {'text': 2}"],
        ),
    ],
)
def test_other_columns_are_refused_by_name(days, tmp_path: Path, over: dict[str, Any], reasons: list[str]):
    other = grown_feature_set(tmp_path, 2, over)
    with pytest.raises(ConfigError) as error:
        require_agreement(parent_on(days[0]), MODEL, other)
    assert all(reason in str(error.value) for reason in reasons), str(error.value)
    with pytest.raises(ConfigError, match=r"are gone|was categorical|they are \{'text': 4\}"):
        require_agreement(parent_on(other), MODEL, days[1])


def declared(**context: Any) -> dict[str, Any]:
    return {"interactions": {"context": context}}


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (
            {"device": {"type": "categorical"}},
            {"device": {"type": "hashed", "buckets": 50}},
            "context column 'device' is hashed, it was categorical",
        ),
        (
            {"device": {"type": "hashed", "buckets": 50}},
            {"device": {"type": "categorical"}},
            "context column 'device' is categorical, it was hashed",
        ),
        (
            {"level": {"type": "categorical", "source": "depth"}},
            {"level": {"type": "buckets", "count": 5, "source": "depth"}},
            "context column 'level' is buckets, it was categorical",
        ),
        (
            {"when": {"type": "date", "part": "hour", "source": "time"}},
            {"when": {"type": "date", "part": "weekday", "source": "time"}},
            "context column 'when' is date (weekday), it was date (hour)",
        ),
    ],
)
def test_a_column_that_is_read_another_way_is_refused_by_name(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], reason: str
):
    """To the model each of them stays categorical; its indices mean something else."""
    first = grown_feature_set(tmp_path / "a", 1, declared(**before))
    second = grown_feature_set(tmp_path / "b", 2, declared(**after))
    with pytest.raises(ConfigError) as error:
        require_agreement(parent_on(first), MODEL, second)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (
            {"history": {"columns": {"mood": {"type": "numeric", "source": "load"}}}},
            {"history": {"columns": {"mood": {"type": "residual", "counter": "item_rate"}}}},
            "event column 'mood' is residual (item_rate), it was numeric",
        ),
        (
            {"history": {"columns": {"mood": {"type": "numeric", "source": "load"}}}},
            {"history": {"columns": {"mood": {"type": "numeric", "source": "load", "transform": "log1p"}}}},
            "event column 'mood' is numeric (log1p), it was numeric",
        ),
        (
            {"counters": {"seen": {"of": "user", "value": "count"}}},
            {"counters": {"seen": {"of": "user", "value": "rate"}}},
            "context column 'seen' is numeric (rate of user), it was numeric (count of user)",
        ),
        (
            {"counters": {"seen": {"of": "item", "value": "sum", "number": "load"}}},
            {"counters": {"seen": {"of": ["item", "device"], "value": "sum", "number": "depth"}}},
            "candidate column 'seen' is numeric (sum of item, device: depth), it was numeric (sum of item: load)",
        ),
    ],
)
def test_a_number_of_another_kind_under_the_same_name_is_refused(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], reason: str
):
    """Each of them is encoded as a number, and a weight of the one says nothing of the other."""
    first = grown_feature_set(tmp_path / "a", 1, before)
    with pytest.raises(ConfigError) as error:
        require_agreement(parent_on(first), MODEL, grown_feature_set(tmp_path / "b", 2, after))
    assert reason in str(error.value)


def test_a_counter_that_forgets_faster_agrees(tmp_path: Path):
    slow, fast = ({"counters": {"seen": {"of": "user", "value": "rate", "half_life": days}}} for days in ("30d", "7d"))
    first = grown_feature_set(tmp_path / "a", 1, slow)
    require_agreement(parent_on(first), MODEL, grown_feature_set(tmp_path / "b", 2, fast))


def test_more_buckets_of_the_same_column_agree(tmp_path: Path):
    """Their rows are moved by what they mean (`index_map`)."""
    fewer, more = (declared(depth={"type": "buckets", "count": count}) for count in (4, 6))
    first = grown_feature_set(tmp_path / "a", 1, fewer)
    require_agreement(parent_on(first), MODEL, grown_feature_set(tmp_path / "b", 2, more))


def test_vectors_of_another_encoder_are_refused(days, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """But those of a few items may change: somebody edited these."""
    known = grown.vector_of

    def edited(below: int) -> Any:
        return lambda item: [-x for x in known(item)] if item < below else known(item)

    monkeypatch.setattr(grown, "vector_of", edited(below=105))
    require_agreement(parent_on(days[0]), MODEL, grown_feature_set(tmp_path / "few", 2))
    monkeypatch.setattr(grown, "vector_of", edited(below=1_000))
    # Of the 30 items of the first day 28 had a vector.
    with pytest.raises(
        ConfigError, match=r"vector set 'text': 28 of 28 items .* other vectors, e\.g\. item 100: of another"
    ):
        require_agreement(parent_on(days[0]), MODEL, grown_feature_set(tmp_path / "all", 2))


def test_vectors_that_each_build_learns_anew_are_refused(tmp_path: Path):
    over = {"embeddings": {"covisit": {"learn": "history", "width": 4}}}
    parent = parent_on(grown_feature_set(tmp_path / "a", 1, over))
    with pytest.raises(ConfigError, match=r"vector set 'covisit': .* each build learns them anew \(`learn`\)"):
        require_agreement(parent, MODEL, grown_feature_set(tmp_path / "b", 2, over))


def test_other_codes_of_the_same_items_are_refused(tmp_path: Path):
    """Each of two builds of the whole log learns codes of its own; those that are the same are gone on from."""
    over = {"vectors": {"semantic_ids": {"theme": {"set": "text", "levels": 1, "size": 8}}}}
    first = grown_feature_set(tmp_path / "a", 1, over)
    torch.manual_seed(0)
    require_agreement(parent_on(first), MODEL, grown_feature_set(tmp_path / "b", 1, over))
    with pytest.raises(
        ConfigError, match=r"semantic ids 'theme(_0|_1)?': \d+ of 30 items that both know have other codes"
    ):
        require_agreement(parent_on(first), MODEL, grown_feature_set(tmp_path / "c", 2, over))
