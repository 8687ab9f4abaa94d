"""The JSON Schema of a record, by its type hints: what the JSON of a command holds, for programs in any language."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from importlib import resources
from typing import Any

from headwater.records.saved import Saved

__all__ = ["json_schema", "shipped_schema"]

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    # JSON has no NaN and no infinity: such a number is one of three strings.
    float: {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]},
}


def json_schema(record: type[Saved]) -> dict[str, Any]:
    """Describe the JSON that ``to_json`` of a record writes.

    Args:
        record: the class; a frozen dataclass.

    Returns:
        A schema in the words of JSON Schema 2020-12 (json-schema.org): every entry of the record and of the records in
        it with its type and description. Entries that a newer headwater adds are allowed, as its readers allow them.
    """
    parts: dict[str, Any] = {}
    schema = _of_class(record, parts)
    schema["properties"] = {
        "schema": {"const": record.SCHEMA},
        "schema_version": {"const": record.SCHEMA_VERSION},
        **schema["properties"],
    }
    schema["required"] = ["schema", "schema_version", *schema["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{record.SCHEMA} version {record.SCHEMA_VERSION}",
        **schema,
        "$defs": dict(sorted(parts.items())),
    }


def shipped_schema(name: str) -> dict[str, Any]:
    """Read a schema that comes with the package.

    Args:
        name: such as ``headwater.run_summary``.

    Returns:
        The schema.

    Raises:
        FileNotFoundError: the package has none of this name.
    """
    text = resources.files("headwater.records").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _of_class(cls: Any, parts: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    described = _descriptions(cls)
    properties = {}
    for field in dataclasses.fields(cls):
        properties[field.name] = _of_hint(hints[field.name], parts)
        if field.name in described:
            properties[field.name] = {"description": described[field.name], **properties[field.name]}
    return {
        "description": inspect.cleandoc(cls.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }


def _of_hint(hint: Any, parts: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    if hint is type(None):
        return {"type": "null"}
    if origin in (typing.Union, types.UnionType):
        options = [_of_hint(option, parts) for option in arguments]
        return {"anyOf": [one for option in options for one in option.get("anyOf", [option])]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _of_hint(arguments[0], parts)}
    if origin is tuple:
        count = len(arguments)
        items = [_of_hint(one, parts) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of_hint(arguments[1], parts)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [one.value for one in hint]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in parts:
            parts[hint.__name__] = {}  # a record may hold its own kind
            parts[hint.__name__] = _of_class(hint, parts)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    raise TypeError(f"{hint!r} has no JSON Schema")


def _descriptions(cls: Any) -> dict[str, str]:
    """The attributes of a docstring, each on one line."""
    _, _, text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    text = re.split(r"\n(?=\S)", text)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", text, re.MULTILINE)
    return {name: " ".join(words.replace("``", "").split()) for name, words in found}
