"""Models and optimizers, in every form that :func:`headwater.watch` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from headwater.errors import InputError

__all__ = ["pairs_of"]


def pairs_of(model: Any, optimizer: Any) -> list[tuple[str, nn.Module, list[Optimizer]]]:
    """The models and their optimizers, as :func:`headwater.watch` takes them.

    Args:
        model: a model, a dict ``{name: (model, optimizer)}`` or a list of models.
        optimizer: one or several of them.

    Returns:
        Name, model and optimizers of each.

    Raises:
        InputError: it is something else.
    """
    if isinstance(model, Mapping):
        if optimizer is not None:
            raise InputError("a dict of models holds the optimizers too: {name: (model, optimizer)}")
        if not model:
            raise InputError("no model was given: the dict is empty")
        return [(str(name), *_pair(entry, name)) for name, entry in model.items()]
    if isinstance(model, list | tuple) and not isinstance(model, nn.Module):
        optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else []
        if not model:
            raise InputError("no model was given: the list is empty")
        if len(model) != len(optimizers):
            raise InputError(f"{len(model)} models need as many optimizers, got {len(optimizers)}")
        if len(model) == 1:
            return [("", *_pair((model[0], optimizers[0]), "0"))]
        return [(str(i), *_pair(entry, i)) for i, entry in enumerate(zip(model, optimizers, strict=True))]
    return [("", *_pair((model, optimizer), ""))]


def _pair(entry: Any, name: object) -> tuple[nn.Module, list[Optimizer]]:
    try:
        model, optimizer = entry
    except (TypeError, ValueError) as error:
        raise InputError(f"{name!r} should be (model, optimizer), got {type(entry).__name__}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"the model should be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(optimizer, Mapping):
        optimizer = list(optimizer.values())
    given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    found = [_unwrapped(o) for o in given]
    if not found:
        raise InputError("at least one optimizer is needed: its steps are what is recorded")
    return model, found


def _unwrapped(optimizer: Any) -> Optimizer:
    """The torch optimizer inside Accelerate's, Lightning's or another wrapper."""
    seen = optimizer
    while isinstance(inner := getattr(seen, "optimizer", None), Optimizer):
        seen = inner
    if not isinstance(seen, Optimizer):
        raise InputError(f"the optimizer should be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return seen
