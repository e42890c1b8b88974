"""Strict YAML settings: load, override with `--set`, validate, and explain what is wrong."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from features.errors import ConfigError


class AbsentSettingsError(ConfigError):
    """There is no settings file at `path`."""

    def __init__(self, path: Path, hint: str = "") -> None:
        super().__init__(f"{path}: no such file.{hint}")
        self.path = path


class Settings(BaseModel):
    """Base of every configuration section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _exponents(cls, content: Any) -> Any:
        """YAML 1.1 reads `1e5` as text. Pydantic itself makes a float of it where one is due; here whole numbers."""
        if not isinstance(content, dict):
            return content
        whole = {name for name, field in cls.model_fields.items() if _is_whole_number(field.annotation)}
        return {name: _whole(value) if name in whole else value for name, value in content.items()}


S = TypeVar("S", bound=BaseModel)


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which no mapping has a key twice: PyYAML keeps the last of them without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As of yaml, before `<<` is followed. Raises ConfigError, without the file's name."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(
                    f"line {line}: {key.value!r} stands twice in one mapping, first in line {lines[name]}, and the "
                    "last alone would count. Remove or rename one."
                )
            lines[name] = line
        return node


def load_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping. Raises ConfigError naming the file when it is missing or malformed."""
    try:
        content = _EachKeyOnce(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        siblings = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f" Files there: {', '.join(siblings)}." if siblings else ""
        raise AbsentSettingsError(path, hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping at the top level, found {type(content).__name__}.")
    return content


def parse_overrides(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Turn `["train.epochs=3"]` into `{"train": {"epochs": 3}}`; values are YAML.

    Whether `1e5` is a number or text is the field's to say, when `validate` reads it.

    Raises:
        ConfigError: an assignment is not of the form `section.key=value`.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        keys = name.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys):
            raise ConfigError(f"--set {assignment!r}: write it as section.key=value, e.g. --set train.epochs=3.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment!r}: the value is not valid YAML: {error}") from None
        node = result
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {assignment!r}: {key} was already set to a value.")
        node[keys[-1]] = value
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` laid on top, mappings merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def validate(model: type[S], content: Mapping[str, Any], origin: str) -> S:
    """Build `model` from `content`; `origin` (a file, or `--set`) is named in the error.

    Raises:
        ConfigError: every problem in one message, an unknown key with the nearest valid one.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [_explain(model, problem) for problem in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(problems)) from None


def unknown_key(key: str, valid: Sequence[str]) -> str:
    """One sentence on an unknown key: the nearest valid key, or all of them."""
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Valid keys: {', '.join(sorted(valid))}."


def _whole(value: Any) -> Any:
    """Text such as `1e5` as the whole number that it is; anything else as it is."""
    if isinstance(value, str) and "e" in value.lower():
        with suppress(ValueError):
            return int(number) if (number := float(value)).is_integer() else value
    return value


def _is_whole_number(annotation: Any) -> bool:
    """Whether an annotation is `int`, with bounds or without, or that or None."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return _is_whole_number(parts[0])
    if types.NoneType in parts and len(parts) == 2:
        return any(map(_is_whole_number, parts))
    return annotation is int


def _explain(model: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}. {unknown_key(location[-1], _keys_at(model, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{where!r} is required"
    if problem["input"] is None and problem["type"] in ("dict_type", "model_type"):
        return f"{where}: has no settings. Write some below it, or remove the key"
    message = problem["msg"].removeprefix("Value error, ")
    given = f" (got {problem['input']!r})" if not isinstance(problem["input"], Mapping) else ""
    return f"{where or 'the file'}: {message}{given}"


def _keys_at(annotation: Any, path: Sequence[Any]) -> list[str]:
    """Valid keys of the (possibly nested, optional or tagged-union) model found at `path`."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _keys_at(typing.get_args(annotation)[0], path)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return list(annotation.model_fields)
        field = annotation.model_fields.get(str(path[0]))
        if field is not None:
            return _keys_at(field.annotation, path[1:])
        # A tagged union puts the tag of the chosen member into the location.
        return _keys_at(annotation, path[1:])
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        tagged = [a for a in arguments if path and _has_tag(a, path[0])]
        keys = [_keys_at(a, path[1:] if tagged else path) for a in tagged or arguments]
        return sorted({key for found in keys for key in found})
    if arguments and path:
        return _keys_at(arguments[-1], path[1:])
    return []


def _has_tag(annotation: Any, tag: Any) -> bool:
    fields = getattr(annotation, "model_fields", {})
    return "type" in fields and tag in typing.get_args(fields["type"].annotation)
