"""Which `key=value` words are there? Every key with its sentence, its default and what it may be, from the pydantic models.

Nothing is typed twice: a key that a model gains stands in the help the same day.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["Group", "Key", "groups_of", "only", "typed", "values_of"]


@dataclass(frozen=True)
class Key:
    """One word.

    Attributes:
        name: Dotted, as it is typed.
        sentence: What it is.
        default: As it is typed.
        allowed: What it may be, in words; empty where the sentence says it, or anything goes.
    """

    name: str
    sentence: str
    default: str
    allowed: str


@dataclass(frozen=True)
class Group:
    """Keys that belong together, under the sentence of their section."""

    title: str
    keys: tuple[Key, ...]


def groups_of(model: type[BaseModel], title: str, prefix: str = "") -> list[Group]:
    """The keys of a model and of the models in it.

    Args:
        model: Every field a key, or a section of its own.
        title: Heading of the fields that lie in `model` itself.
        prefix: In front of every name, e.g. `mining.`.
    """
    schema, own, inner = model.model_json_schema()["properties"], [], []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            inner += groups_of(section, _title(section), f"{prefix}{name}.")
        else:
            own.append(_key(prefix + name, field, schema[name]))
    return [Group(title, tuple(own)), *inner] if own else inner


def only(groups: Iterable[Group], starts: Sequence[str]) -> list[Group]:
    """The groups without the keys that begin with none of `starts` (`evaluation.`, or `data=` for one key)."""
    chosen = [
        replace(group, keys=tuple(key for key in group.keys if f"{key.name}=".startswith(tuple(starts))))
        for group in groups
    ]
    return [group for group in chosen if group.keys]


def values_of(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values, as they are typed, of a dumped model."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from values_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name, typed(value)


def typed(value: object) -> str:
    """A value as one types it: `null`, `true`, `1e-05`, `[1,5]`, `rgb`."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def _title(section: type[BaseModel]) -> str:
    return (section.__doc__ or section.__name__).strip().splitlines()[0].rstrip(".")


def _key(name: str, field: FieldInfo, schema: Mapping[str, Any]) -> Key:
    sentence = field.description or ""
    return Key(name, sentence, typed(schema.get("default")), _allowed(schema, sentence))


def _allowed(schema: Mapping[str, Any], sentence: str = "") -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        parts = [_allowed(part, sentence) for part in schema["anyOf"]]
        return " or ".join(dict.fromkeys(part for part in parts if part))
    if "enum" in schema or "const" in schema:
        choices = [typed(choice) for choice in schema.get("enum", [schema.get("const")])]
        told = all(re.search(rf"(?<![\w-]){re.escape(choice)}(?![\w-])", sentence) for choice in choices)
        return "" if told else " | ".join(choices)
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return _number(schema, "whole number" if kind == "integer" else "number")
    if kind == "array":
        return _list(schema)
    return {"boolean": "true | false", "null": "null", "string": "text"}.get(str(kind), "")


def _number(schema: Mapping[str, Any], noun: str) -> str:
    bounds = {
        sign: _bound(schema[word])
        for word, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if word in schema
    }
    if bounds.keys() == {"≥", "≤"}:
        told = f"{bounds['≥']} to {bounds['≤']}"
    else:
        told = " and ".join(f"{sign} {bound}" for sign, bound in bounds.items())
    multiple = f", a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
    return f"{noun} {told}".strip() + multiple


def _bound(value: float) -> str:
    return f"{value:g}" if abs(value) >= 1e9 or not float(value).is_integer() else str(int(value))


def _list(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return "[" + ", ".join(_allowed(item) for item in schema["prefixItems"]) + "]"
    item = _allowed(schema.get("items", {}))
    return f"list of {item}" if item else "list"
