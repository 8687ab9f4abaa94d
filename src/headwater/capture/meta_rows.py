"""The rows of a prediction: layers, parameters, points of the trunk, states over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from headwater.capture.meta_model import law_of_values
from headwater.capture.meta_prediction import Moments, PredictedLayer, PredictedParameter, PredictedPoint
from headwater.capture.meta_recorder import MomentRecorder, moments_of
from headwater.capture.names import ROOT, parameter_role
from headwater.capture.parameters import NamedParameter
from headwater.capture.recorder import Recorder
from headwater.capture.recurrent_on_meta import PredictedTimes, StateOverTime
from headwater.capture.session import _Naming
from headwater.capture.trunk import Trunk
from headwater.theory.forecast import Engine, Known, Law

__all__ = ["predicted_layer_rows", "predicted_parameter", "predicted_points", "predicted_times", "watch_points"]


def predicted_times(
    recorder: MomentRecorder, naming: _Naming, layers: Sequence[PredictedLayer], times: PredictedTimes
) -> dict[str, list[StateOverTime]]:
    """The states of recurrent calls over time, by the name that ``TimeProfile.layer`` has.

    Args:
        recorder: holds the rows.
        naming: their names.
        layers: what is forecast of each row, in the same order.
        times: what the engine kept of every recurrent call.

    Returns:
        By layer; a cell that is called once per step is one state over its calls.
    """
    found: dict[str, list[StateOverTime]] = {}
    cells: dict[tuple[str, Literal["hidden", "cell"]], list[PredictedLayer]] = {}
    for row, layer in zip(recorder.rows, layers, strict=True):
        if isinstance(row.call.module, nn.RNNBase) and row.path in ("", "[0]"):
            states = times.of(row.call.module, row.call.index)
            if states:
                found[naming.of_row(row)] = states
        elif isinstance(row.call.module, nn.RNNCellBase):
            state: Literal["hidden", "cell"] = "cell" if row.path == "[1]" else "hidden"
            cells.setdefault((row.call.name or ROOT, state), []).append(layer)
    for (name, state), steps in cells.items():
        if len(steps) > 1:
            values, slopes = ([_log(getattr(step, what)) for step in steps] for what in ("activation", "gradient"))
            found.setdefault(name, []).append(StateOverTime(state, 0, False, tuple(values), tuple(slopes)))
    return found


def _log(moments: Moments | None) -> float | None:
    return None if moments is None else moments.rms_log10


def predicted_layer_rows(
    recorder: MomentRecorder,
    trunk: Trunk,
    naming: _Naming,
    owners: Mapping[int, str],
    parameters: Sequence[NamedParameter],
    times: PredictedTimes,
) -> list[PredictedLayer]:
    """Every tensor that a module call made.

    Args:
        recorder: holds the rows and what is known of them.
        trunk: tells which rows lie on it.
        naming: the rows' names.
        owners: name of the row that owns a parameter, by its ``id``.
        parameters: of the model.
        times: knows the whole gradient of an LSTM cell's state.

    Returns:
        One entry per row, in execution order.
    """
    owned: dict[str, list[str]] = {}
    for parameter in parameters:
        if id(parameter.tensor) in owners:
            owned.setdefault(owners[id(parameter.tensor)], []).append(parameter.name)
    layers = []
    for row in recorder.rows:
        activation, lost = moments_of(recorder.activations[id(row)])
        arrived = recorder.gradients.get(id(row), [])
        gradient, no_gradient = moments_of(arrived[-1]) if arrived else (None, None)
        if row.path == "[1]" and (whole := times.cell_gradient(row.call.module, row.call.index)) is not None:
            gradient, no_gradient = Moments(whole, 0.0), None  # h comes from c inside the cell, out of the hook's sight
        entering = moments_of(recorder.inputs[id(row)])[0] if id(row) in recorder.inputs else None
        name = naming.of_row(row)
        layers.append(
            PredictedLayer(
                name=name,
                type=row.type,
                kind=row.kind,
                on_trunk=trunk.on_trunk(row),
                shape=row.shape,
                aliases=tuple(dict.fromkeys(a or ROOT for a in row.aliases)),
                parameters=tuple(owned.get(name, ())),
                activation=activation,
                gradient=gradient,
                unknown=no_gradient or lost,
                input_rms_log10=_log(entering),
            )
        )
    return layers


def predicted_parameter(
    parameter: NamedParameter, gradients: Mapping[int, Tensor], owners: Mapping[int, str], engine: Engine
) -> PredictedParameter:
    """One parameter's law and the moments of its gradient.

    Args:
        parameter: of the model.
        gradients: by ``id`` of the parameter; those without are left out.
        owners: name of the row that owns a parameter, by its ``id``.
        engine: knows the tensors.

    Returns:
        The entry.
    """
    gradient = gradients.get(id(parameter.tensor))
    law = engine.look_up(parameter.tensor)
    if isinstance(law, Known) and law.value.numel():
        law = law_of_values(law.value)
    moments, lost = (None, None) if gradient is None else moments_of(engine.look_up(gradient))
    return PredictedParameter(
        name=parameter.name,
        aliases=tuple(parameter.aliases),
        shape=tuple(parameter.tensor.shape),
        layer=owners.get(id(parameter.tensor)),
        role=parameter_role(parameter.owner, parameter.attribute, parameter.tensor.dim()),
        value_mean=law.mean if isinstance(law, Law) else math.nan,
        value_variance=law.variance if isinstance(law, Law) else math.nan,
        gradient=moments,
        unknown=lost,
    )


def watch_points(trunk: Trunk, engine: Engine, recorder: Recorder) -> dict[Any, tuple[int, Any]]:
    """Note what reaches each node of the trunk in the backward pass that follows.

    Args:
        trunk: of the run.
        engine: knows the tensors.
        recorder: keeps the handles.

    Returns:
        Elements and what is known of the gradient, by node; filled by the backward pass.
    """
    arrived: dict[Any, tuple[int, Any]] = {}
    for node in _trunk_nodes(trunk):

        def keep(gradients: tuple[Tensor | None, ...], node: Any = node) -> None:
            if gradients and gradients[0] is not None:
                arrived[node] = gradients[0].numel(), engine.look_up(gradients[0])

        recorder._handles.append(node.register_prehook(keep))
    return arrived


def predicted_points(trunk: Trunk, arrived: Mapping[Any, tuple[int, Any]], naming: _Naming) -> list[PredictedPoint]:
    """The trunk from the input side to the loss.

    Args:
        trunk: of the run.
        arrived: from ``watch_points``, after the backward pass.
        naming: the rows' names.

    Returns:
        The points.
    """
    points = []
    for point, node in zip(trunk.points(naming.of_call), reversed(_trunk_nodes(trunk)), strict=False):
        elements, thing = arrived.get(node, (0, None))
        moments, _ = moments_of(thing)
        points.append(PredictedPoint(point.kind, point.layer, point.next_layer, elements, moments))
    return points


def _trunk_nodes(trunk: Trunk) -> list[Any]:
    """The nodes of ``trunk.points()``, loss side first."""
    return [point.node for point in trunk._points]
