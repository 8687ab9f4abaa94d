"""Run a model's forward and backward on the meta device and follow the moments of every tensor beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from headwater.capture._torch_compat import OperationMode, memory_key, truncated_normal_on_meta
from headwater.capture.graph import walk
from headwater.capture.loss_run import LossRun
from headwater.capture.meta_model import (
    batch_dimension_of,
    draw_truncated,
    initialise_late,
    input_twins,
    model_on_meta,
    silent_initialisers_heard,
)
from headwater.capture.meta_prediction import Prediction
from headwater.capture.meta_recorder import MomentRecorder
from headwater.capture.meta_rows import (
    predicted_layer_rows,
    predicted_parameter,
    predicted_points,
    predicted_times,
    watch_points,
)
from headwater.capture.meta_shapes import made_empty
from headwater.capture.names import clean_names
from headwater.capture.parameters import NamedParameter, list_parameters
from headwater.capture.recurrent_on_meta import recurrences_followed
from headwater.capture.session import _Naming, _owners, _scalar
from headwater.capture.tensors import tensors_in
from headwater.capture.trunk import find_trunk
from headwater.errors import NothingObservedError
from headwater.theory.assumptions import about_values
from headwater.theory.forecast import SAMPLES_ALONG_TIME, Engine, Known

__all__ = ["predict_run"]

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
        result = made_empty(name, func._overloadname, args, kwargs)
        if result is None:
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
    recorder = MomentRecorder(names, engine.samples, engine)
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
        arrived = watch_points(trunk, engine, recorder)
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
    layers = predicted_layer_rows(recorder, trunk, naming, owners, parameters, times)
    return Prediction(
        layers=layers,
        parameters=[predicted_parameter(p, found, owners, engine) for p in parameters],
        trunk=predicted_points(trunk, arrived, naming),
        unruled={name: engine.reasons[name] for name in engine.unruled},
        operations=mode.operations,
        loss_source=run.source,
        batch_size=run.batch_size,
        model_type=type(twin).__name__,
        dtype="float32" if floating is None else str(floating.dtype).removeprefix("torch."),
        times=predicted_times(recorder, naming, layers, times),
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
