"""Names of modules and parameters as people know them, and what sort each one is."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules import activation as torch_activation
from torch.nn.modules import dropout as torch_dropout
from torch.nn.modules import pooling as torch_pooling

from headwater.errors import InputError
from headwater.records import LayerKind, ParameterRole

__all__ = ["ROOT", "Filter", "clean_names", "layer_kind", "make_filter", "parameter_role", "weight_fans"]

ROOT = "(model)"
_ALWAYS_STRIPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_SOFTMAX = (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin)
_NOT_ELEMENTWISE = (*_SOFTMAX, nn.MultiheadAttention, nn.GLU)
_TORCH_ACTIVATIONS = tuple(
    cls
    for name in torch_activation.__all__
    if isinstance(cls := getattr(torch_activation, name), type) and not issubclass(cls, _NOT_ELEMENTWISE)
)
_POOLING = tuple(getattr(torch_pooling, name) for name in torch_pooling.__all__)
_DROPOUT = tuple(getattr(torch_dropout, name) for name in torch_dropout.__all__)
_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def clean_names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Every module with its names, wrapper prefixes stripped, the first registered name first.

    ``_orig_mod``, ``_fsdp_wrapped_module`` and ``_checkpoint_wrapped_module`` always go. ``module`` goes where its
    parent is a wrapper: it has no other child and no parameter or buffer of its own (DataParallel and its kin).

    Args:
        model: the root.

    Returns:
        Module to names, in registration order; the root's name is the empty string.
    """
    names: dict[nn.Module, list[str]] = {}

    # named_children() drops a child registered twice under one parent; the registry itself does not.
    def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
        return [(n, c) for n, c in module._modules.items() if c is not None]

    stack: list[tuple[nn.Module, str, frozenset[int]]] = [(model, "", frozenset())]
    while stack:
        module, name, ancestors = stack.pop()
        known = names.setdefault(module, [])
        if name in known:
            continue
        known.append(name)
        if id(module) in ancestors:
            continue
        below = ancestors | {id(module)}
        for child_name, child in reversed(children(module)):
            transparent = child_name in _ALWAYS_STRIPPED or (child_name == "module" and _is_wrapper(module))
            child_path = name if transparent else f"{name}.{child_name}" if name else child_name
            stack.append((child, child_path, below))
    return {module: tuple(known) for module, known in names.items()}


def _is_wrapper(module: nn.Module) -> bool:
    own = any(p is not None for p in (*module._parameters.values(), *module._buffers.values()))
    return len(module._modules) == 1 and not own


def layer_kind(module: nn.Module) -> LayerKind:
    """What sort of layer a module is, by its class; ``other`` for a leaf that is none of the known ones.

    Args:
        module: any module.

    Returns:
        The kind. Classes of other libraries are told by their name where that is unambiguous (``*Norm*``).
    """
    name = type(module).__name__
    if isinstance(module, _SOFTMAX):
        return "softmax"
    if isinstance(module, _TORCH_ACTIVATIONS):
        return "activation"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, nn.Linear | nn.Bilinear) or (name == "Conv1D" and hasattr(module, "nf")):
        return "linear"
    if isinstance(module, _CONVOLUTIONS):
        return "convolution"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, _RECURRENT):
        return "recurrent"
    if isinstance(module, _POOLING):
        return "pooling"
    if isinstance(module, _DROPOUT):
        return "dropout"
    if "Norm" in name:
        return "normalization"
    return "container" if module._modules else "other"


def parameter_role(module: nn.Module, attribute: str, dimensions: int) -> ParameterRole:
    """What sort of parameter ``module.attribute`` is.

    Args:
        module: the module that owns it.
        attribute: its name in that module.
        dimensions: of the parameter.

    Returns:
        The role.
    """
    kind = layer_kind(module)
    if kind == "normalization":
        return "normalization"
    if attribute.startswith("bias") or attribute.endswith("_bias") or attribute == "bias":
        return "bias"
    if kind == "embedding":
        return "embedding"
    if kind == "recurrent":
        return "recurrent"
    if kind == "attention":
        return "attention"
    return "weight" if dimensions >= 2 else "other"


def weight_fans(module: nn.Module, shape: Sequence[int]) -> tuple[int, int] | None:
    """Inputs per output unit and outputs per input unit of a weight.

    Args:
        module: the module that owns the weight.
        shape: of the weight; (out, in, ...) as in Linear and convolutions.

    Returns:
        (fan_in, fan_out), or None when the weight has fewer than two dimensions.
    """
    if len(shape) < 2:
        return None
    field = 1
    for size in shape[2:]:
        field *= size
    groups = getattr(module, "groups", 1)
    if getattr(module, "transposed", False):  # stored as (in, out / groups, ...)
        return shape[0] * field // groups, shape[1] * field
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return shape[0] * field, shape[1] * field
    return shape[1] * field, shape[0] * field // groups  # stored as (out, in / groups, ...)


Filter = Callable[..., bool]
"""Of (name, module), or (name, parameter, its owner's name, its owner): whether to look at it."""
_Pattern = str | re.Pattern[str] | type | Callable[..., bool]


def make_filter(include: object, exclude: object) -> Filter:
    """A test of a module or parameter from ``include`` and ``exclude``; a parameter also matches through its owner.

    Args:
        include: None for everything, or a glob, a compiled regular expression (searched), a class, a callable of
            (name, object), or a sequence of these, any of which may match.
        exclude: the same; what matches is left out.

    Returns:
        A function that says whether to look at an object.
    """
    wanted = None if include is None else _matcher("include", include)
    unwanted = None if exclude is None else _matcher("exclude", exclude)

    def keep(name: str, thing: Any, *owner: Any) -> bool:
        known_as = [(name, thing), owner] if owner else [(name, thing)]
        return (wanted is None or any(wanted(*k) for k in known_as)) and not (
            unwanted is not None and any(unwanted(*k) for k in known_as)
        )

    return keep


def _matcher(argument: str, pattern: object) -> Callable[[str, Any], bool]:
    if isinstance(pattern, str):
        return lambda name, thing: fnmatch.fnmatchcase(name, pattern)
    if isinstance(pattern, re.Pattern):
        return lambda name, thing: pattern.search(name) is not None
    if isinstance(pattern, type):
        return lambda name, thing: isinstance(thing, pattern)
    if isinstance(pattern, list | tuple | set | frozenset):
        parts = [_matcher(argument, p) for p in pattern]
        return lambda name, thing: any(part(name, thing) for part in parts)
    if callable(pattern):
        return lambda name, thing: bool(pattern(name, thing))
    raise InputError(
        f"{argument} should be a glob, a compiled regular expression, a class, a callable(name, object) "
        f"or a list of these, got {type(pattern).__name__}"
    )
