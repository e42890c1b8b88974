"""The models, each written against the schema's semantic types; `build_model` picks one by its config."""

from __future__ import annotations

from ctr.config import ModelConfig
from ctr.models.qin import QIN
from features.schema import Schema

ARCHITECTURES = {"qin": QIN}


def build_model(config: ModelConfig, schema: Schema) -> QIN:
    """A fresh model of `config.architecture` for the fields of `schema`; attach its tables before use."""
    return ARCHITECTURES[config.architecture](config, schema)
