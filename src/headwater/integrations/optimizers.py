"""The plain optimizer inside a framework's wrapper, and the part of a model that an optimizer trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from headwater.errors import InputError

__all__ = ["bare_optimizer", "optimizers_in", "pairs"]


def bare_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer that really steps: Accelerate's and Lightning's wrappers keep it in ``.optimizer``.

    Args:
        optimizer: a ``torch.optim.Optimizer`` or a wrapper of one.

    Returns:
        The innermost one.

    Raises:
        InputError: there is none inside.
    """
    seen = optimizer
    while (inner := getattr(seen, "optimizer", None)) is not None and inner is not seen:
        seen = inner
    if not isinstance(seen, Optimizer):
        raise InputError(f"expected a torch optimizer or a wrapper of one, got {type(optimizer).__name__}")
    return seen


def optimizers_in(*things: Any) -> list[Optimizer]:
    """Every optimizer in what :func:`headwater.watch` takes: one, or a list, tuple or dict of them and of models.

    Args:
        things: at any depth.

    Returns:
        The plain optimizers, in order.
    """
    found: list[Optimizer] = []
    for thing in things:
        if isinstance(thing, Mapping):
            found += optimizers_in(*thing.values())
        elif isinstance(thing, list | tuple):
            found += optimizers_in(*thing)
        elif isinstance(thing, Optimizer):
            found.append(bare_optimizer(thing))
    return found


def pairs(model: Module, optimizers: Sequence[Optimizer]) -> dict[str, tuple[Module, Optimizer]]:
    """A name and a module for each of several optimizers of one model: the smallest module that holds what it trains.

    Args:
        model: holds all parameters.
        optimizers: two or more, such as those of a GAN's generator and discriminator.

    Returns:
        Name to (module, optimizer), in order. The name is the module's attribute path, with its position behind it
        where two would be the same (``optimizer_0`` for the whole model).
    """
    owners = [_owner(model, optimizer) for optimizer in optimizers]
    found: dict[str, tuple[Module, Optimizer]] = {}
    for position, (owner, optimizer) in enumerate(zip(owners, optimizers, strict=True)):
        name = owner.replace(".", "_") or "optimizer"
        if owner == "" or owners.count(owner) > 1:
            name = f"{name}_{position}"
        found[name] = (model.get_submodule(owner), optimizer)
    return found


def _owner(model: Module, optimizer: Optimizer) -> str:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    paths = [name.split(".")[:-1] for name, parameter in model.named_parameters() if id(parameter) in trained]
    if not paths:
        return ""
    common = paths[0]
    for path in paths[1:]:
        length = next((i for i, (a, b) in enumerate(zip(common, path, strict=False)) if a != b), None)
        common = common[: min(len(common), len(path)) if length is None else length]
    return ".".join(common)
