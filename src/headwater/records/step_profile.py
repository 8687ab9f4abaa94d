"""The profile of one recorded training step: the same record that a single measurement gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from headwater.records.profile import (
    Coverage,
    GradientState,
    LayerKind,
    LayerProfile,
    ParameterProfile,
    Profile,
    TrunkKind,
    TrunkPoint,
)
from headwater.records.statistics import Statistics
from headwater.records.step import STATISTICS_COLUMNS, Block, StepRecord, WatchedTensor

__all__ = ["RunContext", "profile_of_step"]

_TRUNK_KINDS: dict[LayerKind, TrunkKind] = {
    "linear": "weights",
    "convolution": "weights",
    "activation": "activation",
    "normalization": "normalization",
    "attention": "attention",
    "recurrent": "recurrent",
    "embedding": "embedding",
    "pooling": "pooling",
    "dropout": "dropout",
}
_TINY = {"float16": 6.1e-5, "float64": 2.3e-308}  # smallest normal number; float32 and bfloat16 share 1.2e-38


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a profile says about the run as a whole.

    Attributes:
        model_type: the model's class name.
        torch_version: of the run.
        headwater_version: of the run.
        device: of the first parameter.
        dtype: of the first floating-point parameter.
        seed: ``torch.initial_seed()`` when watching began.
        output_shape: of the model's first output tensor, where it is known.
        batch_size: first dimension of the first layer's output, where it is known.
        modules_unseen: module name to reason, for modules that give no rows.
    """

    model_type: str = ""
    torch_version: str = ""
    headwater_version: str = ""
    device: str = ""
    dtype: str = ""
    seed: int = 0
    output_shape: tuple[int, ...] | None = None
    batch_size: int | None = None
    modules_unseen: Mapping[str, str] = field(default_factory=dict)


def profile_of_step(record: StepRecord, context: RunContext, values: Mapping[str, Statistics] | None = None) -> Profile:
    """The gradient profile of one recorded step.

    The gradient is the one the optimizer used. Layer rows are there for the steps at which layers were looked at;
    what a training run does not record (copies of units, positions, the loss' shapes) is None, as in a measurement that
    could not see it.

    Args:
        record: the step.
        context: what the profile says about the run.
        values: statistics of parameters' values by name, for parameters whose values this record does not hold (the
            latest ones known).

    Returns:
        The profile.
    """
    layers = _layers(record)
    known = {**(values or {}), **_statistics(record.block("value"))}
    gradient_block = record.block("gradient")
    gradients = _statistics(gradient_block)
    watched = {t.name: t for b in record.blocks for t in b.tensors if t.kind == "parameter"}
    parameters = tuple(
        _parameter(tensor, known.get(tensor.name, Statistics.empty()), gradients.get(tensor.name))
        for tensor in sorted(watched.values(), key=lambda t: t.order)
    )
    trainable = [q for q in parameters if q.state != "frozen"]
    missing = dict(record.missing)
    missing.update({q.name: q.state for q in parameters if q.state in ("none", "frozen") and q.name not in missing})
    return Profile(
        layers=layers,
        parameters=parameters,
        trunk=_trunk(record, layers),
        times=(),
        coverage=Coverage(
            observed=len(gradients),
            trainable=max(len(trainable), len(gradients)),
            missing=missing,
            modules_observed=len(layers),
            modules_unseen=dict(context.modules_unseen),
        ),
        loss=math.nan if record.loss is None else record.loss,
        loss_source="unrecorded" if record.loss is None else "loss",
        output_shape=context.output_shape,
        target_shape=None,
        batch_size=context.batch_size,
        model_type=context.model_type,
        training=True,
        torch_version=context.torch_version,
        headwater_version=context.headwater_version,
        device=context.device,
        dtype=context.dtype,
        seed=context.seed,
    )


def _statistics(block: Block | None) -> dict[str, Statistics]:
    if block is None or tuple(block.columns) != STATISTICS_COLUMNS:
        return {}
    return {
        t.name: Statistics(*(int(x) for x in row[:5]), *row[5:])
        for t, row in zip(block.tensors, block.rows, strict=True)
        if not math.isnan(row[0])
    }


def _units(block: Block | None) -> dict[str, dict[str, float]]:
    if block is None:
        return {}
    return {
        t.name: dict(zip(block.columns, row, strict=True)) for t, row in zip(block.tensors, block.rows, strict=True)
    }


def _layers(record: StepRecord) -> tuple[LayerProfile, ...]:
    block = record.block("activation")
    activations, gradients = _statistics(block), _statistics(record.block("output_gradient"))
    units = _units(record.block("units"))
    owned: dict[str, list[str]] = {}
    for other in record.blocks:
        for tensor in other.tensors:
            if tensor.kind == "parameter" and tensor.layer is not None:
                names = owned.setdefault(tensor.layer, [])
                if tensor.name not in names:
                    names.append(tensor.name)
    rows = []
    for order, tensor in enumerate(sorted(block.tensors if block else (), key=lambda t: t.order)):
        if tensor.name not in activations:
            continue
        gradient, of_units = gradients.get(tensor.name), units.get(tensor.name, {})
        count = of_units.get("unit_count")
        rows.append(
            LayerProfile(
                name=tensor.name,
                type=tensor.type,
                kind=tensor.layer_kind or "other",
                order=order,
                aliases=tensor.aliases,
                on_trunk=bool(tensor.on_trunk),
                shape=tensor.shape,
                dtype=tensor.dtype,
                activation=activations[tensor.name],
                gradient=gradient,
                gradient_missing=None if gradient is not None else "no gradient came back to it",
                parameters=tuple(owned.get(tensor.name, ())),
                dead_fraction=of_units["dead_count"] / count if count else None,
                unit_count=int(count) if count else None,
                saturated_fraction=_known(of_units.get("saturated_fraction")),
            )
        )
    return tuple(rows)


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _parameter(tensor: WatchedTensor, value: Statistics, gradient: Statistics | None) -> ParameterProfile:
    return ParameterProfile(
        name=tensor.name,
        aliases=tensor.aliases,
        shape=tensor.shape,
        dtype=tensor.dtype,
        role=tensor.role or "other",
        layer=tensor.layer,
        state=_state(tensor, gradient),
        value=value,
        gradient=gradient,
        fan_in=tensor.fan_in,
        fan_out=tensor.fan_out,
    )


def _state(tensor: WatchedTensor, gradient: Statistics | None) -> GradientState:
    if not tensor.trainable:
        return "frozen"
    if gradient is None:
        return "none"
    if gradient.nonfinite_count:
        return "nonfinite"
    if gradient.zero_count == gradient.count:
        return "exact_zero"
    return "underflow" if gradient.max_abs < _TINY.get(tensor.dtype, 1.2e-38) else "finite"


def _trunk(record: StepRecord, layers: Sequence[LayerProfile]) -> tuple[TrunkPoint, ...]:
    """The layers' outputs on the trunk; what lies between two of them is told by the one on the loss side."""
    on_trunk = [layer for layer in layers if layer.on_trunk and layer.gradient is not None]
    points = []
    for position, (layer, following) in enumerate(zip_longest(on_trunk, on_trunk[1:])):
        kind: TrunkKind = "loss"
        if following is not None:
            kind = _TRUNK_KINDS.get(following.kind, "other")
            # A module whose own output is on the trunk while layers inside it are not: a shortcut goes around them.
            if kind == "other" and any(layer.order < row.order < following.order for row in layers if not row.on_trunk):
                kind = "residual"
        points.append(
            TrunkPoint(
                order=position,
                operation=layer.type,
                kind=kind,
                layer=layer.name,
                next_layer=None if following is None else following.name,
                gradient=layer.gradient,
            )
        )
    return tuple(points)
