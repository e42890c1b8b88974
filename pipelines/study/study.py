"""A study: which models, on which data, with how many seeds. `compare` and `ablate` read it from `conf/studies`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from ctr.config import Preset, load_preset
from features.contract.contract import Contract, load_contract
from features.contract.settings import Settings, load_yaml, merge, validate
from features.errors import ConfigError
from pipelines.shipped import CONF, default_settings, shipped_conf

Control = Literal["popularity", "counters", "boosting"]
Peer = Literal["fuxictr_din", "fuxictr_dcnv2", "fuxictr_finalmlp"]
# A variant's name is that of a folder, whose old files go when a trial begins.
VARIANT_NAME = re.compile(r"\w[^/\\\n]*")


class Variant(Settings):
    """One model of a study: a preset, with what it changes of it and of the data."""

    model: Path | None = Field(None, description="preset; default: the study's base")
    set: dict[str, dict[str, Any]] = Field({}, description="sections model and train, over the preset")
    data: dict[str, Any] = Field({}, description="sections that replace those of the data contract; rows must stay")
    modalities: tuple[str, ...] | None = Field(
        None, description="embedding sets that are kept, and what is made of them alone"
    )
    shuffle_vectors: bool = Field(False, description="control: every item has another item's vectors")
    why: str = Field("", description="its purpose; shown beside its result")


class Study(Settings):
    """Variants that are trained on the same rows, each with the same seeds."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    data: Path
    base: Path = Path("conf/model/qin_plus.yaml")
    reference: str | None = Field(None, description="ranker that differences are taken from; default: first variant")
    seeds: PositiveInt = 5
    variants: dict[str, Variant] = Field(min_length=1)
    controls: tuple[Control, ...] = ()
    peers: tuple[Peer, ...] = Field((), description="public libraries in an environment of their own (benchmarks/)")

    @model_validator(mode="after")
    def _names_fit(self) -> Study:
        for name in self.variants:
            if not VARIANT_NAME.fullmatch(name):
                raise ValueError(
                    f"variants: {name!r} is no name of a variant, for it names a folder. Begin with a letter or digit, "
                    "and use no slash"
                )
        for kind, names in (("control", self.controls), ("peer", self.peers)):
            if twice := sorted(name for name in set(names) if names.count(name) > 1):
                raise ValueError(f"{kind}s: {twice[0]!r} is named twice; name each once")
            if both := [name for name in names if name in self.variants]:
                raise ValueError(
                    f"variants: {both[0]!r} is both a variant and a {kind}, and one would hide the other. Give the "
                    "variant another name"
                )
        rankers = [*self.variants, *self.controls, *self.peers]
        if self.reference is not None and self.reference not in rankers:
            raise ValueError(f"reference: no ranker {self.reference!r}; there are {', '.join(rankers)}")
        return self


@dataclass(frozen=True)
class Plan:
    """A variant whose files were read and checked, before anything is trained.

    Args:
        name: of the variant.
        contract: its data.
        preset: its model and training.
        shuffle_vectors: whether vectors are exchanged among items.
        why: its purpose.
    """

    name: str
    contract: Contract
    preset: Preset
    shuffle_vectors: bool
    why: str


def load_study(path: Path, overrides: dict[str, Any] | None = None) -> Study:
    """Read a study, `--set study.…` on top.

    Raises:
        ConfigError: missing file, unknown key (nearest valid one named), impossible value.
    """
    return validate(Study, merge(load_yaml(path), overrides or {}), str(path))


def default_ablation(path: Path) -> Path:
    """The study of an ablation whose user names none: this one, or the only other `*_ablation.yaml` beside it.

    Raises:
        ConfigError: there is none, or there are several.
    """
    found = sorted(path.parent.glob("*_ablation.yaml"))
    if path in found or len(found) == 1:
        return path if path in found else found[0]
    studies = ", ".join(sorted(one.stem for one in path.parent.glob("*.yaml")))
    there = f"{path.parent} holds {studies or 'none'}. Its form is in docs/proof.md"
    if not path.parent.is_dir():
        there = f"there is no folder {path.parent} here. `quadrank init DIR` writes one"
    raise ConfigError(f"ablate: name the variants to compare, --study FILE; {there}.")


def study_of_models(models: Sequence[str], data: Path, seeds: int) -> Study:
    """A study of presets, with every control; that of boosting is left out where the preset is compared.

    Args:
        models: names in conf/model, or paths.
        data: contract.
        seeds: of each.

    Raises:
        ConfigError: there is no such preset, or a name stands for two rankers.
    """
    found = [Path(model) if model.endswith(".yaml") else default_settings(f"model/{model}.yaml") for model in models]
    if missing := [path for path in found if not path.is_file()]:
        folders = (CONF / "model", shipped_conf() / "model")
        known = ", ".join(sorted({path.stem for folder in folders for path in folder.glob("*.yaml")}))
        raise ConfigError(f"--models: no preset {missing[0]}; conf/model has {known}.")
    first = found[0]
    trained: dict[str, dict[str, Any]] = {
        "target_only": {"model": str(first), "set": {"model": {"use_history": False}}},
        "shuffled_vectors": {"model": str(first), "shuffle_vectors": True},
    }
    variants: dict[str, dict[str, Any]] = {}
    for path in found:
        if path.stem in variants:
            raise ConfigError(f"--models: two presets are named {path.stem!r}. Name each once, or rename a file.")
        if path.stem in ("popularity", *trained):
            raise ConfigError(f"--models: {path}: {path.stem!r} is the name of a control. Rename the file.")
        variants[path.stem] = {"model": str(path)}
    content = {
        "name": re.sub("[^a-z0-9]+", "_", "_".join(path.stem for path in (data, *found)).lower()),
        "data": str(data),
        "base": str(first),
        "seeds": seeds,
        "variants": variants | trained,
        "controls": [name for name in ("popularity", "boosting") if name not in variants],
    }
    return validate(Study, content, "--models")


def plan(study: Study, train_defaults: Path, root: str | None, data: Mapping[str, Any] | None = None) -> list[Plan]:
    """Read all files of a study.

    Args:
        study: what is compared.
        train_defaults: file of training defaults.
        root: of the raw files, instead of the contract's.
        data: settings over those of the contract; sections that a variant replaces go before them.

    Raises:
        ConfigError: a file is missing, or a setting does not exist or has an impossible value.
    """
    contract = load_contract(study.data, dict(data or {}), root)
    return [_planned(name, variant, study, train_defaults, contract) for name, variant in study.variants.items()]


def _planned(name: str, variant: Variant, study: Study, train_defaults: Path, contract: Contract) -> Plan:
    content = contract.model_dump(mode="json") | variant.data
    if variant.modalities is not None:
        known = content["embeddings"]
        if unknown := [name_of_set for name_of_set in variant.modalities if name_of_set not in known]:
            raise ConfigError(f"variants.{name}.modalities: no set {unknown[0]!r}; there are {', '.join(known)}.")
        content = content | _without_others(content, variant.modalities)
    changed = variant.data or variant.modalities is not None
    if changed:
        # Under a name of its own: it must not become the CURRENT feature set of the study's data.
        content["name"] = f"{contract.name}_{re.sub('[^a-z0-9-]+', '_', name.lower())}"
    preset = load_preset(variant.model or study.base, train_defaults, variant.set)
    return Plan(
        name=name,
        contract=validate(Contract, content, f"variants.{name}.data") if changed else contract,
        preset=preset,
        shuffle_vectors=variant.shuffle_vectors,
        why=variant.why,
    )


def _without_others(content: Mapping[str, Any], kept: Sequence[str]) -> dict[str, Any]:
    """The sections of a contract on vectors without the sets that are not kept, and without what is made of those."""
    vectors = content["vectors"]
    fusion = {name: spec for name, spec in vectors["fusion"].items() if set(spec["sets"]) <= set(kept)}
    available = {*kept, *fusion}
    codes = {name: spec for name, spec in vectors["semantic_ids"].items() if spec["set"] in available}
    embeddings = {name: content["embeddings"][name] for name in kept}
    return {"embeddings": embeddings, "vectors": vectors | {"fusion": fusion, "semantic_ids": codes}}
