"""Run a model's forward and backward on the meta device and follow the moments of every tensor beside it."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from headwater.capture._torch_compat import OperationMode, functions_unseen, memory_key, truncated_normal_on_meta
from headwater.capture.graph import walk
from headwater.capture.loss_run import LossRun
from headwater.capture.meta_model import (
    batch_dimension_of,
    draw_truncated,
    initialise_late,
    input_twins,
    law_of_values,
    model_on_meta,
    silent_initialisers_heard,
)
from headwater.capture.names import ROOT, clean_names
from headwater.capture.parameters import NamedParameter, list_parameters
from headwater.capture.recorder import Call, Recorder, Row
from headwater.capture.recurrent_on_meta import PredictedTimes, StateOverTime, recurrences_followed
from headwater.capture.session import _Naming, _owners, _scalar
from headwater.capture.tensors import tensors_in
from headwater.capture.trunk import Trunk, find_trunk
from headwater.errors import NothingObservedError
from headwater.records import LayerKind, Statistics
from headwater.records.profile import LossSource, TrunkKind
from headwater.theory.assumptions import about_values
from headwater.theory.forecast import SAMPLES_ALONG_TIME, Engine, Known, Law, Signal, Source

__all__ = ["Moments", "PredictedLayer", "PredictedParameter", "Prediction", "predict_run"]

_LARGEST_SAMPLE = 1 << 22  # elements of known values that moments are taken of; chosen by us
_NO_STATISTICS = Statistics.of([])


@dataclass(frozen=True)
class Moments:
    """What is forecast of one tensor.

    Attributes:
        rms_log10: mean over draws of log10 rms; -inf for zeros.
        spread: relative variance of the mean square between draws.
    """

    rms_log10: float
    spread: float


@dataclass
class PredictedLayer:
    """One tensor of one module call."""

    name: str
    type: str
    kind: LayerKind
    on_trunk: bool
    shape: tuple[int, ...]
    aliases: tuple[str, ...]
    parameters: tuple[str, ...]
    activation: Moments | None
    gradient: Moments | None
    unknown: str | None


@dataclass
class PredictedParameter:
    """One parameter's gradient."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    layer: str | None
    value_mean: float
    value_variance: float
    gradient: Moments | None
    unknown: str | None


@dataclass
class PredictedPoint:
    """One tensor on the trunk."""

    kind: TrunkKind
    layer: str | None
    next_layer: str | None
    elements: int
    gradient: Moments | None


@dataclass
class Prediction:
    """What a run on the meta device showed."""

    layers: list[PredictedLayer]
    parameters: list[PredictedParameter]
    trunk: list[PredictedPoint]
    unruled: dict[str, str]
    operations: int
    loss_source: LossSource
    batch_size: int | None
    model_type: str
    dtype: str
    times: dict[str, list[StateOverTime]] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)


_VIEWS_IN_PLACE = {"transpose_", "t_", "squeeze_", "unsqueeze_"}


class _Following(OperationMode):
    """Hands every operation to the engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.engine = engine
        self.operations = 0
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in _VIEWS_IN_PLACE:  # what is known of the tensor is known under its layout before
            self.paused = True
            try:
                before = args[0].detach()
            finally:
                self.paused = False
            result = func(*args, **kwargs)
            self._follow(name.rstrip("_"), (before, *args[1:]), kwargs, result, func)
            return result
        if name == "_local_scalar_dense":
            known = self.engine.look_up(args[0])
            if isinstance(known, Known):
                return known.value.item()
        result = func(*args, **kwargs)
        self._follow(name, args, kwargs, result, func)
        return result

    def _follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, func: Any) -> None:
        self.operations += 1
        first = next((t for t in _flat(result)), None)
        if first is not None and first.is_meta:
            self.paused = True
            try:
                self.engine.apply(name, args, kwargs, result, func)
            finally:
                self.paused = False


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _flat(v)


class _MomentRecorder(Recorder):
    """Rows like those of a measurement, with what the engine knows instead of statistics."""

    def __init__(self, names: Mapping[nn.Module, tuple[str, ...]], batch_size: int | None, engine: Engine) -> None:
        super().__init__(names, lambda name, thing, *owner: True, batch_size)
        self.engine = engine
        self.activations: dict[int, Any] = {}
        self.gradients: dict[int, list[Any]] = {}

    def _new_row(self, call: Call, path: str, kind: LayerKind, type_name: str, tensor: Tensor) -> Row:
        row = Row(call, path, kind, type_name, tuple(tensor.shape), tensor.dtype, _NO_STATISTICS)
        row.requires_grad = tensor.requires_grad
        self.rows.append(row)
        self.activations[id(row)] = self.engine.look_up(tensor)
        if tensor.requires_grad:
            row.node, row.output_number = tensor.grad_fn, tensor.output_nr
            if row.node is not None:
                self._by_node[row.node, row.output_number] = row
            found = self.gradients.setdefault(id(row), [])

            def arrived(gradient: Tensor | None) -> None:
                if self.phase == "backward" and gradient is not None:
                    found.append(self.engine.look_up(gradient))

            self._handles.append(tensor.register_hook(arrived))
        else:
            self._by_identity[id(tensor)] = (weakref.ref(tensor), tensor._version, row)
        return row

    def _watch_recurrent(self, call: Any, output: Any) -> None:
        pass  # the engine follows the gradient over time

    def _rms_log10(self, call: Call, source: Tensor) -> float | None:
        return None

    def _record(self, call: Call, path: str, tensor: Tensor, args: tuple[Any, ...]) -> None:
        known = self._known(tensor)
        if known is not None:
            known.aliases += [n for n in self.names[call.module] if n not in known.aliases and n != known.call.name]
            return
        row = self._new_row(call, path, call.kind, type(call.module).__name__, tensor)
        row.aliases += self.names[call.module][1:]

    def function_called(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        with torch.no_grad(), functions_unseen():
            self._functional_row(name.rstrip("_"), "activation", out)

    def softmax_called(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        with torch.no_grad(), functions_unseen():
            self._functional_row("softmax", "softmax", out)


# -------------------------------------------------------------------- moments out of what is known


def moments_of(thing: Any) -> tuple[Moments | None, str | None]:
    """Mean over draws of log10 rms of a tensor, or why it is unknown.

    E log10 √Q ≈ log10 √E Q - v / (4 ln 10), v the relative variance of the mean square Q: the mean of the logarithm of a
    narrow log-normal law (Hanin, NeurIPS 2018: v = 5 Σ 1/n for ReLU networks).

    Args:
        thing: what the engine knows.

    Returns:
        The moments, or None and the operation that nothing is known after.
    """
    if isinstance(thing, Source):
        return None, thing.operation
    if thing is None:
        return None, "it was not seen"
    if isinstance(thing, Known):
        value = thing.value.detach().reshape(-1)
        value = value[:: max(1, value.numel() // _LARGEST_SAMPLE)].abs().double()
        square = float(value.square().mean()) if value.numel() else 0.0
        return Moments(_half_log10(square), 0.0), None
    if isinstance(thing, Law):
        return Moments(_half_log10(thing.square), 0.0), None
    assert isinstance(thing, Signal)
    if thing.structure is not None:
        return None, None  # attention weights, log-probabilities and losses: what matters of them is not their size
    average, spread = thing.stats.average(), max(0.0, thing.spread)
    if not (math.isfinite(average) and math.isfinite(spread)):
        return None, "moments beyond the range of float64"
    # Layers add to v one by one, as they do to the variance of the logarithm.
    return Moments(_half_log10(average) - spread / (4.0 * math.log(10.0)), spread), None


def _half_log10(square: float) -> float:
    return 0.5 * math.log10(square) if square > 0.0 else -math.inf


# -------------------------------------------------------------------- the run


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def predict_run(
    model: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    targets: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    input_moments: tuple[float, float] = (0.0, 1.0),
) -> Prediction:
    """Forward and backward on the meta device, moments beside them.

    Args:
        model: a module (materialised: its values are read, once; on meta: built outside, its laws are unknown) or a
            function that makes one, called under ``torch.device("meta")`` while its initialisers are recorded.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments; or a function that gives
            them for the model on the meta device.
        targets: passed on to ``loss_fn``.
        loss_fn: gives a scalar; None as for ``measure``.
        input_moments: E x and E x² of inputs that hold no values.

    Returns:
        The prediction.

    Raises:
        NothingObservedError: the loss depends on no trainable parameter.
    """
    prediction = _predict_run(model, inputs, targets, loss_fn, input_moments, None)
    if isinstance(prediction, int):  # a recurrence runs along what was taken for samples
        prediction = _predict_run(model, inputs, targets, loss_fn, input_moments, prediction)
    assert isinstance(prediction, Prediction)
    return prediction


def _predict_run(
    model: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    targets: Any,
    loss_fn: Callable[..., Tensor] | None,
    input_moments: tuple[float, float],
    samples_along: int | None,
) -> Prediction | int:
    """The run; or, where a recurrence runs along what was taken for samples, the dimension to take instead."""
    engine = Engine(memory_key)
    mode = _Following(engine)
    if isinstance(model, nn.Module):
        twin = model_on_meta(model, engine)
    else:
        with truncated_normal_on_meta(draw_truncated), silent_initialisers_heard(), mode, _quiet():
            with torch.device("meta"):
                twin = model()
            initialise_late(twin)
        given = list(twin.parameters())
        if given and not any(p.is_meta for p in given):  # a function that gives a ready model
            model, twin = twin, model_on_meta(twin, engine)
    if callable(inputs):
        inputs = inputs(twin)
    first = next((t for _, t in tensors_in(inputs)), None)
    if samples_along is None:
        batch_dimension = batch_dimension_of(twin)
        dimension = batch_dimension if first is not None and first.dim() >= 3 and first.is_floating_point() else 0
    else:
        batch_dimension = dimension = samples_along
    engine.samples = first.shape[dimension] if first is not None and first.dim() > 0 else 1
    meta_inputs = input_twins(inputs, engine, batch_dimension, input_moments, samples_along is not None)
    meta_targets = input_twins(targets, engine, batch_dimension, input_moments)
    run = LossRun(meta_inputs, meta_targets, loss_fn, None)
    names = clean_names(twin)
    recorder = _MomentRecorder(names, engine.samples, engine)
    with ExitStack() as stack:
        for context in (sdpa_kernel(SDPBackend.MATH), _quiet(), torch.enable_grad(), mode, recorder.attached()):
            stack.enter_context(context)
        times = stack.enter_context(recurrences_followed(twin, engine))
        with recorder.functions():
            loss = _scalar(run(twin))
        if samples_along is None and engine.notes.get(SAMPLES_ALONG_TIME):
            return 1 - dimension
        parameters = list_parameters(names)
        trainable = {id(p.tensor): p.tensor for p in parameters if p.tensor.requires_grad}
        graph = walk([loss.grad_fn])
        trunk = find_trunk(graph, recorder.rows, recorder.calls, trainable)
        arrived = _watch_points(trunk, engine, recorder)
        recorder.phase = "backward"
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    found = {key: g for key, g in zip(trainable, gradients, strict=True) if g is not None}
    if not found:
        raise NothingObservedError(
            f"the loss does not depend on any of the {len(trainable)} trainable parameters: every gradient is None"
        )
    naming = _Naming(recorder, names)
    owners = _owners(parameters, recorder, naming, names)
    floating = next((p.tensor for p in parameters if p.tensor.is_floating_point()), None)
    return Prediction(
        layers=_layers(recorder, trunk, naming, owners, parameters, times),
        parameters=[_parameter(p, found, owners, engine) for p in parameters],
        trunk=_points(trunk, arrived, naming),
        unruled={name: engine.reasons[name] for name in engine.unruled},
        operations=mode.operations,
        loss_source=run.source,
        batch_size=run.batch_size,
        model_type=type(twin).__name__,
        dtype="float32" if floating is None else str(floating.dtype).removeprefix("torch."),
        times=_times(recorder, naming, times),
        assumptions=[
            *times.assumptions(lambda module: names[module][0]),
            *about_values(_values(model, parameters, engine)),
        ],
    )


def _values(
    model: nn.Module | Callable[[], nn.Module], parameters: Sequence[NamedParameter], engine: Engine
) -> Iterator[tuple[str, Tensor]]:
    """Parameters that have values: of a model, or copied in (from a checkpoint) by the function that makes one."""
    if isinstance(model, nn.Module):
        yield from model.named_parameters()
        return
    for parameter in parameters:
        known = engine.look_up(parameter.tensor)
        if isinstance(known, Known):
            yield parameter.name, known.value


# -------------------------------------------------------------------- rows


def _times(recorder: Recorder, naming: _Naming, times: PredictedTimes) -> dict[str, list[StateOverTime]]:
    """By name of the row, as ``TimeProfile.layer``."""
    found: dict[str, list[StateOverTime]] = {}
    for row in recorder.rows:
        if isinstance(row.call.module, nn.RNNBase | nn.RNNCellBase) and row.path in ("", "[0]"):
            states = times.of(row.call.module, row.call.index)
            if states:
                found[naming.of_row(row)] = states
    return found


def _layers(
    recorder: _MomentRecorder,
    trunk: Trunk,
    naming: _Naming,
    owners: Mapping[int, str],
    parameters: Sequence[NamedParameter],
    times: PredictedTimes,
) -> list[PredictedLayer]:
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
            )
        )
    return layers


def _parameter(
    parameter: NamedParameter, gradients: Mapping[int, Tensor], owners: Mapping[int, str], engine: Engine
) -> PredictedParameter:
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
        value_mean=law.mean if isinstance(law, Law) else math.nan,
        value_variance=law.variance if isinstance(law, Law) else math.nan,
        gradient=moments,
        unknown=lost,
    )


def _watch_points(trunk: Trunk, engine: Engine, recorder: Recorder) -> dict[Any, tuple[int, Any]]:
    arrived: dict[Any, tuple[int, Any]] = {}
    for node in _trunk_nodes(trunk):

        def keep(gradients: tuple[Tensor | None, ...], node: Any = node) -> None:
            if gradients and gradients[0] is not None:
                arrived[node] = gradients[0].numel(), engine.look_up(gradients[0])

        recorder._handles.append(node.register_prehook(keep))
    return arrived


def _points(trunk: Trunk, arrived: Mapping[Any, tuple[int, Any]], naming: _Naming) -> list[PredictedPoint]:
    points = []
    for point, node in zip(trunk.points(naming.of_call), reversed(_trunk_nodes(trunk)), strict=False):
        elements, thing = arrived.get(node, (0, None))
        moments, _ = moments_of(thing)
        points.append(PredictedPoint(point.kind, point.layer, point.next_layer, elements, moments))
    return points


def _trunk_nodes(trunk: Trunk) -> list[Any]:
    """The nodes of ``trunk.points()``, loss side first."""
    return [point.node for point in trunk._points]
