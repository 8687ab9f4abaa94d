"""TARGET: the model, and perhaps its batch, that a command line names."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from headwater.cli.failures import raised_at
from headwater.errors import TargetError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Target", "help_text", "is_path", "load_target", "open_target"]

_TARGET_HELP = (
    "TARGET is package.module:name or path/to/file.py:name. The name is a function without arguments (or a class, or "
    "a ready object) that gives a model, a tuple (model, inputs[, targets[, loss_fn]]), or a mapping with these keys."
)


def help_text(summary: str, body: str) -> str:
    """Compose the help of a command that takes a TARGET.

    Args:
        summary: one sentence.
        body: what follows the explanation of TARGET; its indentation is removed.

    Returns:
        The text for click.
    """
    return f"{summary}\n\n{_TARGET_HELP}\n\n{inspect.cleandoc(body)}"


_KEYS = ("model", "inputs", "targets", "loss_fn", "loss")
_FORM = "write package.module:name or path/to/file.py:name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a TARGET gave.

    Attributes:
        name: the TARGET as it was typed.
        model: the model.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments; None when only a model
            came back.
        targets: the second argument of ``loss_fn``.
        loss_fn: ``loss_fn(output, targets)``.
        loss: a callable that takes the model and returns the loss; replaces the three above.
    """

    name: str
    model: nn.Module
    inputs: Any = None
    targets: Any = None
    loss_fn: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None


def load_target(spec: str) -> Target:
    """Import a TARGET and call it.

    Args:
        spec: ``package.module:name`` (searched from the current folder first) or ``path/to/file.py:name``.

    Returns:
        The model and what came with it.

    Raises:
        TargetError: it cannot be imported, found, called or understood; the message says which and what to do.
    """
    return open_target(spec)()


def open_target(spec: str) -> Callable[[], Target]:
    """Import a TARGET without calling it: what is made when a file is imported keeps its values.

    Args:
        spec: as for :func:`load_target`.

    Returns:
        A function that calls it, on whatever device is the default then, and raises ``TargetError`` when it cannot be
        called or understood.

    Raises:
        TargetError: it cannot be imported or found.
    """
    place, separator, name = spec.rpartition(":")
    if not separator:
        raise TargetError(f"TARGET {spec!r} names no function: {_FORM}{_offer(_names_in_source(spec), spec)}")
    if not place or not name:
        raise TargetError(f"TARGET {spec!r} is incomplete: {_FORM}")
    module = _import_file(place, spec) if is_path(place) else _import_module(place, spec)
    value = _attribute(module, name, spec)
    return lambda: _understood(spec, _called(value, name, spec))


# ---------------------------------------------------------------- import


def is_path(place: str) -> bool:
    """Whether the first half of a TARGET names a file rather than a module.

    Args:
        place: what stands before the colon.

    Returns:
        True for ``models.py`` and ``src/models``.
    """
    return place.endswith(".py") or "/" in place or "\\" in place


def _import_file(place: str, spec: str) -> ModuleType:
    path = Path(place).expanduser()
    if path.is_dir():
        raise TargetError(f"TARGET {spec!r}: {place} is a folder; name a Python file in it")
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TargetError(f"TARGET {spec!r}: there is no file {place}{_near(path.name, siblings)}")
    path = path.resolve()
    # As `python file.py` does: the file's own folder comes first, so that its neighbours can be imported.
    _first_on_path(path.parent)
    module_name = path.stem if path.stem.isidentifier() else "headwater_target"
    known = sys.modules.get(module_name)
    if known is not None or module_name in sys.stdlib_module_names:
        if known is not None and getattr(known, "__file__", None) == str(path):
            return known
        module_name = f"headwater_target_{module_name}"  # its own name is taken by another module
    loader = importlib.util.spec_from_file_location(module_name, path)
    if loader is None or loader.loader is None:
        raise TargetError(f"TARGET {spec!r}: {place} is not a Python file; {_FORM}")
    run = loader.loader.exec_module
    module = importlib.util.module_from_spec(loader)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up by name
    try:
        _guarded(lambda: run(module), f"TARGET {spec!r}: importing {place}")
    except TargetError:
        del sys.modules[module_name]
        raise
    return module


def _import_module(place: str, spec: str) -> ModuleType:
    _first_on_path(Path.cwd())
    try:
        found = importlib.util.find_spec(place)
    except ModuleNotFoundError as error:  # a parent package is missing
        raise TargetError(_no_module(spec, error.name or place)) from error
    except (ImportError, ValueError) as error:
        raise TargetError(f"TARGET {spec!r}: {place} cannot be imported: {error}; {_FORM}") from error
    if found is None:
        raise TargetError(_no_module(spec, place))
    module: ModuleType = _guarded(lambda: importlib.import_module(place), f"TARGET {spec!r}: importing {place}")
    return module


def _no_module(spec: str, missing: str) -> str:
    here = Path.cwd()
    local = [p.stem for p in here.glob("*.py")] + [p.parent.name for p in here.glob("*/__init__.py")]
    path = here / (missing.replace(".", "/") + ".py")
    hint = f"; did you mean {path.name}?" if path.is_file() else _near(missing, local)
    return (
        f"TARGET {spec!r}: no module named {missing!r}, neither installed nor in the current folder {here}{hint}. "
        "A file is named by its path: path/to/file.py:name"
    )


def _first_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


# ---------------------------------------------------------------- look-up and call


def _attribute(module: ModuleType, name: str, spec: str) -> Any:
    value: Any = module
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            names = [n for n in vars(value) if not n.startswith("_")] if hasattr(value, "__dict__") else []
            own = [n for n in names if getattr(getattr(value, n, None), "__module__", None) == module.__name__]
            where = getattr(value, "__name__", type(value).__name__)
            raise TargetError(
                f"TARGET {spec!r}: {where} has no {part!r}{_near(part, names) or _offer(own, where)}"
            ) from None
    return value


def _called(value: Any, name: str, spec: str) -> Any:
    from torch import nn

    if isinstance(value, nn.Module | tuple | Mapping):
        return value
    if not callable(value):
        raise TargetError(
            f"TARGET {spec!r}: {name} is a {type(value).__name__}, neither a function nor a model; "
            "name a function that returns the model"
        )
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some built-ins have none: calling tells
        signature = None
    if signature is not None:
        try:
            signature.bind()
        except TypeError:
            needed = [
                p.name
                for p in signature.parameters.values()
                if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            ]
            raise TargetError(
                f"TARGET {spec!r}: {name} needs arguments ({', '.join(needed)}); give them defaults, or write a "
                f"function without arguments that calls it: def make(): return {name}(...)"
            ) from None
    return _guarded(value, f"TARGET {spec!r}: calling {name}()")


def _guarded(action: Callable[[], Any], doing: str) -> Any:
    """Run the user's code; an exception of any kind becomes a TargetError that says where it came from."""
    try:
        return action()
    except SyntaxError as error:
        raise TargetError(f"{doing} failed: {error.msg} ({error.filename}, line {error.lineno})") from error
    except SystemExit as error:
        raise TargetError(
            f"{doing} ended the program (sys.exit({error.code!r})); put the script's own part under "
            'if __name__ == "__main__":'
        ) from error
    except Exception as error:
        raise TargetError(
            f"{doing} raised {type(error).__name__}: {error}{raised_at(error)}\n"
            "HEADWATER_DEBUG=1 shows the whole traceback."
        ) from error


# ---------------------------------------------------------------- what came back


def _understood(spec: str, value: Any) -> Target:
    from torch import nn

    if isinstance(value, nn.Module):
        return Target(name=spec, model=value)
    if isinstance(value, Mapping):
        unknown = [str(k) for k in value if k not in _KEYS]
        if "model" not in value or unknown:
            problem = f"unknown key {unknown[0]!r}{_near(unknown[0], _KEYS)}" if unknown else "no key 'model'"
            raise TargetError(f"TARGET {spec!r} gave a mapping with {problem}; its keys may be {', '.join(_KEYS)}")
        return _checked(spec, dict(value))
    if isinstance(value, tuple | list):
        if not 1 <= len(value) <= 4:
            raise TargetError(
                f"TARGET {spec!r} gave {len(value)} values; expected (model, inputs[, targets[, loss_fn]])"
            )
        return _checked(spec, dict(zip(_KEYS, value, strict=False)))
    raise TargetError(
        f"TARGET {spec!r} gave a {type(value).__name__}; expected a torch.nn.Module, "
        "a tuple (model, inputs[, targets[, loss_fn]]) or a mapping" + _returned_nothing(value)
    )


def _returned_nothing(value: Any) -> str:
    return ". Does the function return the model?" if value is None else ""


def _checked(spec: str, parts: dict[str, Any]) -> Target:
    import torch
    from torch import nn

    model = parts["model"]
    if not isinstance(model, nn.Module):
        hint = " (the class itself: call it)" if isinstance(model, type) and issubclass(model, nn.Module) else ""
        raise TargetError(f"TARGET {spec!r}: the model is a {type(model).__name__}{hint}, not a torch.nn.Module")
    inputs = parts.get("inputs")
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    if inputs is not None and not isinstance(inputs, torch.Tensor | tuple | Mapping):
        raise TargetError(
            f"TARGET {spec!r}: the inputs are a {type(inputs).__name__}; expected a tensor, a tuple of positional "
            "arguments or a mapping of keyword arguments"
        )
    for key in ("loss_fn", "loss"):
        if parts.get(key) is not None and not callable(parts[key]):
            raise TargetError(f"TARGET {spec!r}: {key} is a {type(parts[key]).__name__}, which cannot be called")
    if parts.get("loss_fn") is not None and inputs is None:
        raise TargetError(f"TARGET {spec!r}: it gives a loss_fn without inputs; give both")
    return Target(name=spec, **{**parts, "inputs": inputs})


# ---------------------------------------------------------------- suggestions


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _offer(names: list[str], where: str) -> str:
    return f". {where} defines {', '.join(names[:8])}{' …' if len(names) > 8 else ''}" if names else ""


def _names_in_source(place: str) -> list[str]:
    """Functions and classes that a file or module defines, read without running it."""
    path = Path(place).expanduser()
    if not path.is_file():
        path = Path(place.replace(".", "/") + ".py")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []  # only a suggestion is lost
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
