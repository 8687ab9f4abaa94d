"""Parameter rows: every parameter once, its role, its gradient and the state of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from headwater.capture.names import parameter_role, weight_fans
from headwater.records import GradientState, LayerProfile, ParameterProfile, ParameterRole, Statistics
from headwater.stats import duplicate_row_count, summarize_many, zero_column_count, zero_row_count

__all__ = ["NamedParameter", "list_parameters", "parameter_rows"]


@dataclass(frozen=True)
class NamedParameter:
    """A parameter, where it lives, and its other names.

    Attributes:
        name: the first name, wrapper prefixes stripped.
        aliases: other names of the same tensor.
        tensor: the parameter.
        owner: the module that registers it.
        attribute: its name in the owner.
    """

    name: str
    aliases: tuple[str, ...]
    tensor: nn.Parameter
    owner: nn.Module
    attribute: str


def list_parameters(names: Mapping[nn.Module, tuple[str, ...]]) -> list[NamedParameter]:
    """Every parameter once, in registration order; tied ones are told by identity of the tensor.

    Args:
        names: modules with their clean names.

    Returns:
        The parameters.
    """
    found: dict[int, tuple[list[str], nn.Parameter, nn.Module, str]] = {}
    for module, module_names in names.items():
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            entry = found.setdefault(id(parameter), ([], parameter, module, attribute))
            for name in module_names:
                full = f"{name}.{attribute}" if name else attribute
                if full not in entry[0]:
                    entry[0].append(full)
    return [
        NamedParameter(all_[0], tuple(all_[1:]), tensor, owner, attribute)
        for all_, tensor, owner, attribute in found.values()
    ]


def _role(parameter: NamedParameter) -> ParameterRole:
    attribute = parameter.attribute
    return parameter_role(parameter.owner, attribute, parameter.tensor.dim())


def _state(parameter: Tensor, gradient: Tensor | None, statistics: Statistics | None) -> GradientState:
    if not parameter.requires_grad:
        return "frozen"
    if gradient is None or statistics is None:
        return "none"
    if statistics.nonfinite_count:
        return "nonfinite"
    if statistics.zero_count == statistics.count:
        return "exact_zero"
    if statistics.max_abs < torch.finfo(gradient.dtype).tiny:
        return "underflow"
    return "finite"


def parameter_rows(
    parameters: Sequence[NamedParameter],
    gradients: Mapping[int, Tensor],
    owners: Mapping[int, str],
) -> list[ParameterProfile]:
    """Statistics of parameters and of their gradients.

    Args:
        parameters: which.
        gradients: ``id(parameter)`` to ∂L/∂parameter, for those that have one.
        owners: ``id(parameter)`` to the name of the layer row it belongs to.

    Returns:
        One row per parameter, in the given order.
    """
    values = summarize_many([p.tensor for p in parameters])
    present = [p for p in parameters if id(p.tensor) in gradients]
    summaries = summarize_many([gradients[id(p.tensor)] for p in present])
    of_gradient = {id(p.tensor): s for p, s in zip(present, summaries, strict=True)}
    rows = []
    for parameter, value in zip(parameters, values, strict=True):
        tensor = parameter.tensor
        gradient, statistics = gradients.get(id(tensor)), of_gradient.get(id(tensor))
        role = _role(parameter)
        fans = weight_fans(parameter.owner, tensor.shape) if role in ("weight", "attention", "recurrent") else None
        has_units = role in ("weight", "recurrent") and tensor.dim() >= 2 and not tensor.is_complex()
        dense = gradient is not None and not gradient.is_sparse
        zero_rows, zero_columns = _zero_slices(gradient, statistics) if has_units else (None, None)
        rows.append(
            ParameterProfile(
                name=parameter.name,
                aliases=parameter.aliases,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                role=role,
                layer=owners.get(id(tensor)),
                state=_state(tensor, gradient, statistics),
                value=value,
                gradient=statistics,
                fan_in=None if fans is None else fans[0],
                fan_out=None if fans is None else fans[1],
                duplicate_units=duplicate_row_count(tensor.detach(), gradient)
                if has_units and (dense or gradient is None)
                else None,
                zero_rows=zero_rows,
                zero_columns=zero_columns,
            )
        )
    return rows


def _zero_slices(gradient: Tensor | None, statistics: Statistics | None) -> tuple[int | None, int | None]:
    """Rows and columns of a weight's gradient that are exactly zero."""
    if gradient is None or statistics is None:
        return None, None
    rows, columns = gradient.shape[0], gradient.shape[1]
    # A row has numel / rows elements: with fewer zeros than that there is none to look for.
    return (
        zero_row_count(gradient) if statistics.zero_count * rows >= statistics.count else 0,
        zero_column_count(gradient) if statistics.zero_count * columns >= statistics.count else 0,
    )


def with_underflow(rows: Sequence[ParameterProfile], layers: Sequence[LayerProfile]) -> list[ParameterProfile]:
    """Tell a gradient that underflowed on the way from one that is zero by construction.

    Going from the loss towards the input, a gradient that shrinks below the smallest subnormal number becomes exactly
    zero and stays so. An exactly zero parameter gradient is therefore ``underflow`` when the nearest trunk gradient
    on the loss side that is not zero, at its largest, is so small that one more rounding unit of its dtype would take
    it below the smallest normal number (max_abs · eps < tiny; chosen by us).

    Args:
        rows: parameter rows.
        layers: layer rows in execution order.

    Returns:
        The rows, some with state ``underflow`` instead of ``exact_zero``.
    """
    fades: dict[str, bool] = {}
    fading = False
    for layer in reversed(layers):
        if layer.on_trunk and layer.gradient is not None and (largest := layer.gradient.max_abs) > 0:
            numbers = torch.finfo(getattr(torch, layer.dtype))
            fading = largest * numbers.eps < numbers.tiny
        fades[layer.name] = fading
    return [
        replace(row, state="underflow") if row.state == "exact_zero" and fades.get(row.layer or "", False) else row
        for row in rows
    ]
