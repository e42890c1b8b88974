"""Study files: the names of their rankers, which are checked before anything is built or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from features.errors import ConfigError
from pipelines.study.study import Study, load_study, plan, study_of_models


def loaded(folder: Path, **changes: Any) -> Study:
    content = {"name": "tiny", "data": "conf/data/simulated.yaml", "variants": {"qin": {}, "lr": {}}} | changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_study(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "qni"}, r"reference: no ranker 'qni'; there are qin, lr"),
        ({"variants": {"popularity": {}}, "controls": ["popularity"]}, r"'popularity' is both a variant and a control"),
        ({"variants": {"fuxictr_din": {}}, "peers": ["fuxictr_din"]}, r"'fuxictr_din' is both a variant and a peer"),
        ({"controls": ["boosting", "boosting"]}, r"controls: 'boosting' is named twice"),
        ({"peers": ["fuxictr_din", "fuxictr_din"]}, r"peers: 'fuxictr_din' is named twice"),
        ({"variants": {"": {}}}, r"variants: '' is no name of a variant"),
        ({"variants": {"/tmp/qin": {}}}, r"variants: '/tmp/qin' is no name of a variant"),
        ({"variants": {"../qin": {}}}, r"variants: '\.\./qin' is no name of a variant"),
        ({"variants": {"..": {}}}, r"variants: '\.\.' is no name of a variant"),
    ],
)
def test_a_name_that_would_stop_or_hide_a_result_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, **changes)


@pytest.mark.parametrize("reference", ["lr", "popularity", "fuxictr_din"])
def test_any_ranker_may_be_the_reference(tmp_path: Path, reference: str) -> None:
    found = loaded(tmp_path, reference=reference, controls=["popularity"], peers=["fuxictr_din"])
    assert found.reference == reference


@pytest.mark.parametrize("name", ["QIN+", "no vectors", "rate-0.5", "長い"])
def test_a_variant_may_be_called_what_a_folder_may(tmp_path: Path, name: str) -> None:
    assert list(loaded(tmp_path, variants={name: {}}).variants) == [name]


@pytest.mark.parametrize(
    ("name", "expected"), [("QIN+", "simulated_qin_"), ("長い", "simulated__"), ("a.b c", "simulated_a_b_c")]
)
def test_a_variant_of_any_name_may_change_its_data(tmp_path: Path, name: str, expected: str) -> None:
    """The name of its feature set is one that a contract may have."""
    study = loaded(tmp_path, variants={name: {"data": {"history": {"max_len": 4}}}})
    (found,) = plan(study, Path("conf/train.yaml"), None)
    assert found.contract.name == expected


def test_boosting_as_a_model_is_not_hidden_by_the_control_of_its_name() -> None:
    found = study_of_models(["boosting", "qin"], Path("conf/data/simulated.yaml"), seeds=1)
    assert list(found.variants) == ["boosting", "qin", "target_only", "shuffled_vectors"]
    assert found.controls == ("popularity",)


def test_studies_of_two_data_sets_lie_apart(tmp_path: Path) -> None:
    own = tmp_path / "My-Model.yaml"
    own.write_text("model: {}\n")
    models = [str(own), "qin", "din", "lr"]
    names = [study_of_models(models, Path(f"conf/data/{data}.yaml"), seeds=1).name for data in ("mind", "ebnerd_week")]
    assert names == ["mind_my_model_qin_din_lr", "ebnerd_week_my_model_qin_din_lr"]


@pytest.mark.parametrize("names", [["qin", "qin"], ["qin", "conf/model/qin.yaml"]])
def test_two_presets_of_one_name_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--models: two presets are named 'qin'"):
        study_of_models(names, Path("conf/data/simulated.yaml"), seeds=1)


def test_a_preset_with_the_name_of_a_control_is_refused(tmp_path: Path) -> None:
    preset = tmp_path / "target_only.yaml"
    preset.write_text("model: {}\n")
    with pytest.raises(ConfigError, match=r"--models: .*target_only\.yaml.*is the name of a control"):
        study_of_models(["qin", str(preset)], Path("conf/data/simulated.yaml"), seeds=1)
