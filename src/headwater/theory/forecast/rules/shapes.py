"""Views, permutations, copies and expansions: the same elements under other dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, Splits, viewed
from headwater.theory.forecast.engine import AXES, Call, rule
from headwater.theory.forecast.signals import Known, Law, Signal, Thing

Reshaping: TypeAlias = Callable[[Call, Axes], "tuple[Axes, list[Splits]]"]


def _dimension(value: int, count: int) -> int:
    return value % count if count else 0


def _same(call: Call, axes: Axes) -> tuple[Axes, list[Splits]]:
    return axes, []


def _view(call: Call, axes: Axes) -> tuple[Axes, list[Splits]]:
    return viewed(axes, call.shape)


def _transpose(call: Call, axes: Axes) -> tuple[Axes, list[Splits]]:
    if call.name in ("t", "numpy_T", "mT", "adjoint"):
        first, second = len(axes) - 2, len(axes) - 1
        if first < 0:
            return axes, []
    else:
        first = _dimension(call.argument(1, "dim0"), len(axes))
        second = _dimension(call.argument(2, "dim1"), len(axes))
    order = list(axes)
    order[first], order[second] = order[second], order[first]
    return tuple(order), []


def _permute(call: Call, axes: Axes) -> tuple[Axes, list[Splits]]:
    return tuple(axes[_dimension(d, len(axes))] for d in call.argument(1, "dims")), []


def _squeeze(call: Call, axes: Axes) -> tuple[Axes, list[Splits]]:
    # What is left has the same atoms in the same order.
    return viewed(axes, call.shape)


def _expand(call: Call, axes: Axes) -> tuple[Axes, list[Splits]]:
    shape = call.shape
    padded = ((),) * (len(shape) - len(axes)) + tuple(axes)
    return tuple(
        (Atom("unknown", size),) if not atoms and size != 1 else atoms
        for atoms, size in zip(padded, shape, strict=True)
    ), []


for _names, _function in {
    ("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten"): _view,
    ("t", "transpose", "mT", "adjoint", "numpy_T"): _transpose,
    ("permute",): _permute,
    ("unsqueeze", "squeeze"): _squeeze,
    ("expand",): _expand,
    (
        "clone", "contiguous", "_to_copy", "to", "detach", "alias", "lift_fresh", "lift_fresh_copy", "copy", "positive",
        "fused_dropout_identity", "view_as", "_conj", "resolve_conj", "resolve_neg",
    ): _same,
}.items():  # fmt: skip
    for _name in _names:
        AXES[_name] = _function


def apply_axes(call: Call, thing: Thing) -> Thing:
    """A tensor after an operation that only renames its dimensions.

    Args:
        call: the operation.
        thing: what is known of its argument.

    Returns:
        The same under its new dimensions.
    """
    axes, splits = AXES[call.name](call, thing.axes)
    if isinstance(thing, Signal):
        return thing.split(splits).with_axes(axes)
    if isinstance(thing, Known) and tuple(thing.value.shape) != call.shape:
        raise NoRuleError("a constant too large to compute")
    if isinstance(thing, Law) and AXES[call.name] is not _same:
        return Law(axes, thing.mean, thing.variance)
    return replace(thing, axes=axes)


def _reshaped(call: Call) -> Thing:
    # copy_(target, source) tells about its source.
    return apply_axes(call, call.thing(1 if call.name == "copy" else 0))


for _name in AXES:
    rule(_name)(_reshaped)


@rule("expand_copy", "repeat")
def _repeated(call: Call) -> Thing:
    """Repetition along dimensions: like an expansion where the size was 1."""
    thing = call.thing(0)
    counts = list(call.argument(1, "repeats"))
    padded = ((),) * (len(counts) - len(thing.axes)) + tuple(thing.axes)
    axes = []
    for count, atoms in zip(counts, padded, strict=True):
        if count == 1:
            axes.append(atoms)
        elif not atoms:
            axes.append((Atom("unknown", count),))
        else:
            axes.append((Atom("unknown", count), *atoms))
    return replace(thing, axes=tuple(axes))


def size_of(atoms: tuple[Atom, ...]) -> int:
    """Elements along a dimension."""
    return math.prod(a.size for a in atoms)
