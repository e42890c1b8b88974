"""Models: written against the schema's semantic types, never against column names."""

from __future__ import annotations

from ctr.config import ModelConfig
from ctr.model.click_model import ClickModel
from features.store.schema import Schema


def build_model(config: ModelConfig, schema: Schema) -> ClickModel:
    """A fresh model of these settings for the fields of `schema`; attach its tables before use."""
    return ClickModel(config, schema)
