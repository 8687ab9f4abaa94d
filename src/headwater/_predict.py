"""The third verb: the gradient profile of a network before it runs, at any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from headwater.capture.meta_prediction import Prediction
from headwater.capture.meta_run import predict_run
from headwater.capture.tensors import tensors_in
from headwater.errors import InputError
from headwater.records.budget import Budget, BudgetStep, WeightShare
from headwater.records.forecast import Forecast, ForecastCoverage, LayerForecast, ParameterForecast
from headwater.records.time_forecast import TimeForecast
from headwater.theory.assumptions import NARROW, about_inputs, about_laws, about_widths

__all__ = ["predict"]


def predict(
    model: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    targets: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    input_moments: tuple[float, float] = (0.0, 1.0),
) -> Forecast:
    """Forecast activations and gradients at initialisation without running the model on numbers.

    Forward and backward run on the meta device, where tensors have shapes and no values; beside each operation the mean,
    the second moment and the covariances between positions and between samples of its result are computed, from the
    initial law of every parameter. No memory is taken for parameters or activations.

    Args:
        model: a function without arguments that makes the model (called under ``torch.device("meta")``, its
            initialisers recorded), or a model with values, whose laws are read off the values. Only read.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments. Real tensors give their own
            moments and covariances; meta tensors stand for independent numbers with ``input_moments``. Or a function
            that gives them for the model: it is called once, with the model on the meta device.
        targets: passed on to ``loss_fn``.
        loss_fn: as for ``measure``; without it the output's own loss or a Gaussian cotangent of unit variance.
        input_moments: E x and E x² of inputs that hold no values.

    Returns:
        The forecast; its ``coverage`` names every operation without a rule and every broken assumption.

    Raises:
        InputError: a wrong argument, or a model on the meta device that was not made by a factory.

    Example:
        >>> import torch, headwater as hw
        >>> def make():
        ...     return torch.nn.Sequential(*[m for _ in range(20) for m in (torch.nn.Linear(100, 100), torch.nn.Sigmoid())])
        >>> forecast = predict(make, torch.empty(64, 100, device="meta"))
        >>> import math
        >>> first, last = forecast.layer("0").gradient_rms, forecast.layer("38").gradient_rms
        >>> round(math.log10(first / last), 1)
        -16.2

    References:
        Poole et al., NeurIPS 2016; Schoenholz et al., ICLR 2017; Hanin, NeurIPS 2018 (the band).
    """
    _check(model, targets, loss_fn, input_moments)
    used = inputs

    def given(made: nn.Module) -> Any:
        nonlocal used
        used = inputs(made) if callable(inputs) else inputs
        _check_inputs(used)
        return used

    if not callable(inputs):
        _check_inputs(inputs)  # before the model is made
    prediction = predict_run(model, given, targets, loss_fn, input_moments=input_moments)
    return _forecast(prediction, used)


def _check(model: Any, targets: Any, loss_fn: Any, moments: Any) -> None:
    if not callable(model):
        raise InputError(f"model should be a torch.nn.Module or a function that makes one, got {type(model).__name__}")
    if isinstance(model, nn.Module):
        parameters = list(model.parameters())
        if not parameters:
            raise InputError(f"{type(model).__name__} has no parameters: there is no gradient to forecast")
        if any(p.is_meta for p in parameters):
            raise InputError(
                f"{type(model).__name__} lives on the meta device, so how it was initialised is lost; "
                "pass the function that makes it instead: predict(lambda: Model(...), inputs)"
            )
    if targets is not None and loss_fn is None:
        raise InputError(
            "targets were given without a loss_fn: pass loss_fn(output, targets), for example F.cross_entropy"
        )
    mean, square = moments
    if not (math.isfinite(mean) and math.isfinite(square) and square >= mean**2):
        raise InputError(f"input_moments should be (E x, E x²) with E x² ≥ (E x)², got {moments!r}")


def _check_inputs(inputs: Any) -> None:
    if not any(True for _ in tensors_in(inputs)):
        raise InputError("inputs should hold a tensor; torch.empty(shape, device='meta') stands for a shape alone")
    for path, tensor in tensors_in(inputs):
        if tensor.numel() == 0:
            raise InputError(f"inputs{path} is empty (shape {tuple(tensor.shape)})")


def _forecast(prediction: Prediction, inputs: Any) -> Forecast:
    from headwater import __version__

    scale = 2.0 * math.log(10.0)
    layers = []
    for row in prediction.layers:
        a, g = row.activation, row.gradient
        layers.append(
            LayerForecast(
                name=row.name,
                type=row.type,
                kind=row.kind,
                on_trunk=row.on_trunk,
                shape=row.shape,
                aliases=row.aliases,
                parameters=row.parameters,
                activation_rms_log10=None if a is None else a.rms_log10,
                activation_band_decades=None if a is None else math.sqrt(a.spread) / scale,
                gradient_rms_log10=None if g is None else g.rms_log10,
                gradient_band_decades=None if g is None else math.sqrt(g.spread) / scale,
                unknown=row.unknown,
            )
        )
    parameters = [
        ParameterForecast(
            name=p.name,
            aliases=p.aliases,
            shape=p.shape,
            layer=p.layer,
            value_mean=p.value_mean,
            value_variance=p.value_variance,
            gradient_rms_log10=None if p.gradient is None else p.gradient.rms_log10,
            gradient_band_decades=None if p.gradient is None else math.sqrt(p.gradient.spread) / scale,
            unknown=p.unknown,
        )
        for p in prediction.parameters
    ]
    return Forecast(
        layers=tuple(layers),
        parameters=tuple(parameters),
        budget=_budget(prediction),
        coverage=ForecastCoverage(
            operations=prediction.operations,
            unruled=dict(prediction.unruled),
            unknown_layers=tuple(r.name for r in prediction.layers if r.gradient is None and r.unknown is not None),
            unknown_parameters=tuple(p.name for p in prediction.parameters if p.unknown is not None),
            assumptions=tuple(_assumptions(prediction, inputs)),
        ),
        loss_source=prediction.loss_source,
        model_type=prediction.model_type,
        batch_size=prediction.batch_size,
        parameter_count=sum(math.prod(p.shape) for p in prediction.parameters),
        dtype=prediction.dtype,
        torch_version=str(torch.__version__),
        headwater_version=__version__,
        times=tuple(
            TimeForecast(
                layer=name,
                state=t.state,
                stack=t.stack,
                reverse=t.reverse,
                activation_rms_log10=t.activation_rms_log10,
                gradient_rms_log10=t.gradient_rms_log10,
            )
            for name, states in prediction.times.items()
            for t in states
        ),
    )


def _budget(prediction: Prediction) -> Budget:
    """The same account as of a measurement: what lies between two points of the trunk changed the gradient."""
    steps = []
    cut: str | None = None
    for upper, lower in itertools.pairwise(reversed(prediction.trunk)):
        a, b = upper.gradient, lower.gradient
        if a is None or b is None or not (math.isfinite(a.rms_log10) and math.isfinite(b.rms_log10)):
            cut = lower.layer or lower.kind
            break
        change = b.rms_log10 - a.rms_log10
        width = 0.5 * (math.log10(max(1, lower.elements)) - math.log10(max(1, upper.elements)))
        steps.append(BudgetStep(lower.next_layer or "loss", lower.kind, change, change + width))
    return Budget(tuple(steps), tuple(_weight_shares(prediction)), cut)


def _weight_shares(prediction: Prediction) -> Iterator[WeightShare]:
    """What makes up each weight's gradient, as of a measurement."""
    layers = {row.name: row for row in prediction.layers}
    for p in prediction.parameters:
        layer = layers.get(p.layer or "")
        if p.role not in ("weight", "attention") or p.gradient is None or layer is None or layer.gradient is None:
            continue
        weight, activation, gradient = p.gradient.rms_log10, layer.input_rms_log10, layer.gradient.rms_log10
        if activation is None or not all(math.isfinite(v) for v in (weight, activation, gradient)):
            continue
        yield WeightShare(p.name, weight, activation, gradient, weight - activation - gradient)


def _assumptions(prediction: Prediction, inputs: Any) -> list[str]:
    """Assumptions of the theory that do not hold here, each with what to do instead."""
    narrow = [
        row.name
        for row in prediction.layers
        if row.kind in ("linear", "convolution") and row.gradient is not None and row.shape and _width(row) < NARROW
    ]
    inner = narrow[:-1] if prediction.layers and narrow and narrow[-1] == prediction.layers[-1].name else narrow
    found = [*prediction.assumptions, *about_widths(inner)]
    found += about_laws((p.name, p.value_mean, p.value_variance) for p in prediction.parameters if len(p.shape) >= 2)
    return found + about_inputs(tensors_in(inputs))


def _width(row: Any) -> int:
    return int(row.shape[1] if row.kind == "convolution" and len(row.shape) > 1 else row.shape[-1])
