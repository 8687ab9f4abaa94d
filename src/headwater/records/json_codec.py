"""Frozen dataclasses to strict JSON and back, by their type hints."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
import tempfile
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from headwater.errors import OutputError, RecordError

__all__ = ["decode", "encode", "read_document", "write_document", "write_text"]

T = TypeVar("T")
# JSON has no NaN or infinity; a field that may be one of them is written as this string.
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: Any) -> Any:
    """Turn dataclasses, tuples, mappings and enums into plain JSON values.

    Args:
        value: what to encode; a non-finite float becomes ``"nan"``, ``"inf"`` or ``"-inf"``.

    Returns:
        Dicts, lists, strings, numbers, booleans and None.

    Raises:
        TypeError: a value has no JSON form.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def decode(cls: type[T], data: Any, *, schema: str | None = None, version: int | None = None) -> T:
    """Rebuild a dataclass from :func:`encode`'s output.

    Args:
        cls: the dataclass.
        data: the mapping.
        schema: the expected ``schema`` entry, checked when given.
        version: the newest ``schema_version`` that is understood.

    Returns:
        An instance of ``cls``.

    Raises:
        RecordError: the data is something else, damaged, or newer than this program.
    """
    if not isinstance(data, Mapping):
        raise RecordError(f"expected a JSON object for {cls.__name__}, got {type(data).__name__}")
    if schema is not None:
        found = data.get("schema")
        if found != schema:
            raise RecordError(f"this is not a {schema} file (its schema is {found!r})")
        newest = data.get("schema_version")
        if not isinstance(newest, int) or (version is not None and newest > version):
            raise RecordError(
                f"{schema} version {newest!r} is newer than this headwater reads (up to {version}): upgrade headwater"
            )
    result: T = _decode(cls, data, cls.__name__)
    return result


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        errors = []
        for option in (a for a in arguments if a is not type(None)):
            try:
                return _decode(option, value, where)
            except RecordError as error:
                errors.append(str(error))
        raise RecordError(errors[-1] if errors else f"{where}: unexpected {value!r}")
    if origin is typing.Literal:
        if value not in arguments:
            raise RecordError(f"{where}: {value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecordError(f"{where}: expected a list, got {type(value).__name__}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise RecordError(f"{where}: expected {len(arguments)} values, got {len(value)}")
        return tuple(_decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise RecordError(f"{where}: expected an object, got {type(value).__name__}")
        return {k: _decode(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(hint, value, where)
    if hint is float:
        if isinstance(value, str) and value in _NONFINITE:
            return _NONFINITE[value]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RecordError(f"{where}: expected a number, got {value!r}")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise RecordError(f"{where}: expected an integer, got {value!r}")
        return value
    if hint in (str, bool):
        if not isinstance(value, hint):
            raise RecordError(f"{where}: expected {hint.__name__}, got {value!r}")
        return value
    return value


def _decode_dataclass(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise RecordError(f"{where}: expected an object, got {type(value).__name__}")
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if f.name in value:
            arguments[f.name] = _decode(hints[f.name], value[f.name], f"{where}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise RecordError(f"{where}: field {f.name!r} is missing; the file is damaged or of another version")
    return cls(**arguments)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file whole or not at all.

    Args:
        text: its contents.
        path: where; parent folders must exist.

    Raises:
        OutputError: the place cannot be written.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise OutputError(f"cannot write {target}: it is not a regular file; name a file in a folder that is writable")
    if target.is_symlink():
        target = target.resolve()  # the file it points to is replaced, not the link
    temporary: str | None = None
    try:
        # A temporary neighbour and a rename: a crash leaves the old file or the new one, never half of one.
        handle, temporary = tempfile.mkstemp(dir=target.parent or Path(), prefix=f".{target.name}.", suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would surprise who shares the folder
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; name a file in a folder that exists and is writable"
        ) from error


def write_document(document: Mapping[str, Any], path: str | Path | None) -> str:
    """Serialise to strict JSON and, when a path is given, write it whole or not at all.

    Args:
        document: plain JSON values.
        path: where to write, or None.

    Returns:
        The JSON text.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    if path is not None:
        write_text(text + "\n", path)
    return text


def read_document(source: str | Path) -> Any:
    """Parse JSON from a path or from the text itself.

    Args:
        source: a path, or a text that starts with ``{``.

    Returns:
        The parsed value.

    Raises:
        RecordError: no such file, or not JSON.
    """
    text = str(source)
    where = "the text"
    if isinstance(source, Path) or not text.lstrip().startswith("{"):
        where = text
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise RecordError(f"cannot read {where}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{where} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "the file is damaged or something else"
        ) from error
