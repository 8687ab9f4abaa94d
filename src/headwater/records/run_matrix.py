"""The numbers of a run over its steps as log10, with a mark wherever an element was NaN or infinite."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping

from headwater.records.profile import ParameterRole
from headwater.records.run import RunSource, StatisticMatrix
from headwater.records.step import Quantity, WatchedTensor

__all__ = ["WEIGHT_ROLES", "in_order", "is_nonfinite", "observed_log10", "rms_matrix", "weights_first"]

WEIGHT_ROLES: tuple[ParameterRole, ...] = ("weight", "recurrent", "attention", "embedding")
"""Roles that a picture of depth shows; biases and gains of normalization are other populations (R23)."""


def observed_log10(value: float | None) -> float | None:
    """log10 of a statistic that is never negative.

    Args:
        value: such as an rms; None when it was not observed.

    Returns:
        -inf for an exact zero, NaN for NaN, inf for infinity, None for None.

    Example:
        >>> observed_log10(1e-3), observed_log10(0.0), observed_log10(None)
        (-3.0, -inf, None)
    """
    if value is None or value == math.inf:
        return value
    if not math.isfinite(value):
        return math.nan
    return math.log10(value) if value > 0.0 else -math.inf


def is_nonfinite(value_log10: float | None) -> bool:
    """Whether a log10 stands for NaN or infinity.

    Args:
        value_log10: as :func:`observed_log10` gives it.

    Returns:
        False for what was not observed, and for -inf, which is an exact zero.

    Example:
        >>> is_nonfinite(math.nan), is_nonfinite(math.inf), is_nonfinite(-math.inf), is_nonfinite(None)
        (True, True, False, False)
    """
    return value_log10 is not None and (math.isnan(value_log10) or value_log10 == math.inf)


def weights_first(tensors: Iterable[WatchedTensor]) -> list[WatchedTensor]:
    """The parameters that a picture of depth shows.

    Args:
        tensors: parameters in order.

    Returns:
        Those of the roles :data:`WEIGHT_ROLES`; all of them when there is none.
    """
    everything = [tensor for tensor in tensors if tensor.kind == "parameter"]
    return [tensor for tensor in everything if tensor.role in WEIGHT_ROLES] or everything


def rms_matrix(
    run: RunSource,
    quantity: Quantity,
    max_columns: int,
    *,
    unmarked: Mapping[str, Collection[int]] | None = None,
) -> StatisticMatrix:
    """Read log10 of an rms over the run.

    A run keeps the rms of the finite elements, which says nothing about the others. Here a cell is NaN as soon as one
    element of the tensor was NaN at one of the cell's steps, else inf as soon as one was infinite: the rms of all
    elements.

    Args:
        run: the run.
        quantity: ``gradient``, ``activation``, ``output_gradient`` or ``value``.
        max_columns: of the matrix.
        unmarked: by group, steps whose elements that are not finite do not count, such as those that were skipped.

    Returns:
        The matrix in execution order, -inf for exactly zero; of parameters, only those of :func:`weights_first`.
    """
    of_layers = quantity in ("activation", "output_gradient")
    names = None if of_layers else [tensor.name for tensor in weights_first(run.tensors)]
    found = in_order(run.matrix(quantity, "rms_log10", tensors=names, max_columns=max_columns))
    broken = run.nonfinite(quantity)
    values = list(found.values)
    for i, tensor in enumerate(found.tensors):
        if tensor.name not in broken:
            continue
        left_out = (unmarked or {}).get(tensor.group, ())
        marks: dict[int, float] = {}
        for step, nans, _ in broken[tensor.name]:
            column = bisect_right(found.steps, step) - 1  # the last that begins at the step or before
            if column >= 0 and step not in left_out:
                marks[column] = math.nan if nans or math.isnan(marks.get(column, 0.0)) else math.inf
        values[i] = tuple(marks.get(j, value) for j, value in enumerate(values[i]))
    return StatisticMatrix(tensors=found.tensors, steps=found.steps, values=tuple(values), stride=found.stride)


def in_order(found: StatisticMatrix) -> StatisticMatrix:
    """Put the rows in execution order, one model after the other.

    Args:
        found: a matrix.

    Returns:
        The same numbers.
    """
    tensors = found.tensors
    groups = {tensor.group: i for i, tensor in reversed(list(enumerate(tensors)))}
    order = sorted(range(len(tensors)), key=lambda i: (groups[tensors[i].group], tensors[i].order, i))
    return StatisticMatrix(
        tensors=tuple(tensors[i] for i in order),
        steps=found.steps,
        values=tuple(found.values[i] for i in order),
        stride=found.stride,
    )
