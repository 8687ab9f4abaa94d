"""The first verb: one forward and one backward, and the profile of activations and gradients along depth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from headwater.capture import LossRun, Observation, observe, tensors_in
from headwater.errors import GradModeError, InputError
from headwater.records import LayerProfile, ParameterProfile, Profile, Spread, Statistics

__all__ = ["measure"]


def measure(
    model: nn.Module,
    inputs: Any = None,
    targets: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    loss: Callable[[nn.Module], Tensor] | None = None,
    draws: int = 1,
    make: Callable[[], nn.Module] | None = None,
    include: object = None,
    exclude: object = None,
) -> Profile:
    """Measure activations and gradients along depth with one forward and one backward.

    The model is left exactly as it was: parameters, ``.grad``, buffers, the mode of every submodule, hooks and random
    states, also when the forward or the backward raises.

    Args:
        model: any module. A compiled model is measured eagerly; wrapper prefixes are stripped from names.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments.
        targets: passed on to ``loss_fn``; None calls ``loss_fn(output)``.
        loss_fn: ``loss_fn(output, targets)`` gives a scalar. Without it the output's own ``loss`` is used where it
            has one (Hugging Face), else the output is probed with a Gaussian cotangent of unit variance.
        loss: instead of the three: a function of the model that gives a scalar.
        draws: with more than one, a copy of the model is re-initialised that often through each module's own
            ``reset_parameters``; statistics are over all draws, and ``spread`` holds the mean and standard deviation of
            their log10.
        make: a function without arguments that gives a fresh model of the same architecture: each draw calls it instead,
            for models that are initialised by other code than their modules' own.
        include: only modules and parameters that match: a glob over names, a compiled regular expression, a class, a
            callable of (name, object), or a list of these.
        exclude: leave out what matches.

    Returns:
        The profile.

    Raises:
        InputError: no parameters, all of them frozen, a meta-device model, empty or non-finite inputs, a wrong
            argument.
        LossError: the loss is not a real scalar.
        GradModeError: under ``torch.no_grad`` or ``torch.inference_mode``.
        NothingObservedError: the loss depends on no trainable parameter.

    Example:
        >>> import torch, headwater as hw
        >>> _ = torch.manual_seed(0)
        >>> layers = [m for _ in range(8) for m in (torch.nn.Linear(32, 32), torch.nn.Sigmoid())]
        >>> profile = hw.measure(torch.nn.Sequential(*layers), torch.randn(16, 32))
        >>> first, last = profile.layers[0].gradient.rms, profile.layers[-1].gradient.rms
        >>> first / last < 1e-5
        True
    """
    refuse_nonfinite(inputs)
    return profile_of(
        model, inputs, targets, loss_fn, loss=loss, draws=draws, make=make, include=include, exclude=exclude
    )


def profile_of(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss_fn: Callable[..., Tensor] | None,
    *,
    loss: Callable[[nn.Module], Tensor] | None,
    draws: int,
    include: object,
    exclude: object,
    make: Callable[[], nn.Module] | None = None,
) -> Profile:
    """As :func:`measure`, also of inputs that hold NaN or infinity: what they do is then for a diagnosis to say."""
    _check_arguments(model, inputs, targets, loss_fn, loss, draws)
    run = LossRun(inputs, targets, loss_fn, loss)
    if draws == 1:
        observation = observe(model, lambda: run(model), batch_size=run.batch_size, include=include, exclude=exclude)
        spreads = None
    else:

        def observed(twin: nn.Module) -> Observation:
            return observe(twin, lambda: run(twin), batch_size=run.batch_size, include=include, exclude=exclude)

        with torch.random.fork_rng(devices=_devices(model)):
            observations = [observed(twin) for twin in _fresh_models(model, draws, make)]
        observation, spreads = observations[0], observations
    parameter = next(model.parameters())
    floating = next((p for p in model.parameters() if p.is_floating_point()), parameter)
    profile = Profile(
        layers=observation.layers,
        parameters=observation.parameters,
        trunk=observation.trunk,
        times=observation.times,
        coverage=observation.coverage,
        loss=observation.loss,
        loss_source=run.source,
        output_shape=run.output_shape,
        target_shape=run.target_shape,
        target_dtype=run.target_dtype,
        batch_size=run.batch_size,
        model_type=observation.model_type,
        training=model.training,
        torch_version=str(torch.__version__),
        headwater_version=_version(),
        device=str(parameter.device),
        dtype=str(floating.dtype).removeprefix("torch."),
        seed=torch.initial_seed(),
        draws=draws,
        warnings=observation.warnings,
        nonfinite_inputs={where: bad for where, bad, _ in _nonfinite_inputs(inputs)},
    )
    return profile if spreads is None else _over_draws(profile, spreads)


def _version() -> str:
    from headwater import __version__

    return __version__


# -------------------------------------------------------------------- checks


def _check_arguments(model: Any, inputs: Any, targets: Any, loss_fn: Any, loss: Any, draws: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model should be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise InputError(f"draws should be a positive integer, got {draws!r}")
    if loss is not None and not (inputs is None and targets is None and loss_fn is None):
        raise InputError("loss replaces inputs, targets and loss_fn: pass either loss=callable(model) or the three")
    for name, function in (("loss_fn", loss_fn), ("loss", loss)):
        if function is not None and not callable(function):
            raise InputError(f"{name} should be callable, got {type(function).__name__}")
    if targets is not None and loss_fn is None:
        raise InputError(
            "targets were given without a loss_fn: pass loss_fn(output, targets), for example F.cross_entropy"
        )
    if inputs is None and loss is None:
        raise InputError("nothing to run the model on: pass inputs, or loss=callable(model)")
    if torch.is_inference_mode_enabled():
        raise GradModeError("measure() needs autograd and was called under torch.inference_mode(); call it outside")
    if not torch.is_grad_enabled():
        raise GradModeError("measure() needs autograd and was called under torch.no_grad(); call it outside")
    parameters = list(model.parameters())
    if not parameters:
        raise InputError(f"{type(model).__name__} has no parameters: there is no gradient to measure")
    lazy = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if is_lazy(t)]
    if lazy:
        raise InputError(
            f"{', '.join(lazy[:3])} of {type(model).__name__} is uninitialised: a lazy module takes its shape from its "
            "first forward; call the model once before measuring it"
        )
    if any(p.is_meta for p in parameters):
        raise InputError(
            f"{type(model).__name__} lives on the meta device and holds no values; materialise it with "
            "model.to_empty(device=...) and initialise it"
        )
    if not any(p.requires_grad for p in parameters):
        raise InputError(
            f"all {len(parameters)} parameters of {type(model).__name__} are frozen (requires_grad=False); "
            "unfreeze what is to be trained"
        )
    for path, tensor in tensors_in(inputs):
        where = f"inputs{path}"
        if tensor.numel() == 0:
            raise InputError(f"{where} is empty (shape {tuple(tensor.shape)}): measure needs at least one sample")
        if tensor.is_meta:
            raise InputError(f"{where} lives on the meta device and holds no values; make it with device='cpu'")
        if tensor.is_inference():
            raise GradModeError(f"{where} was made under torch.inference_mode(); pass a .clone() made outside")


def _nonfinite_inputs(inputs: Any) -> Iterator[tuple[str, int, int]]:
    """Where inputs are not finite: path, how many elements, of how many."""
    for path, tensor in tensors_in(inputs):
        if (tensor.is_floating_point() or tensor.is_complex()) and not tensor.is_meta:
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                yield f"inputs{path}", bad, tensor.numel()


def refuse_nonfinite(inputs: Any) -> None:
    """Raise ``InputError`` for inputs that hold NaN or infinity."""
    for where, bad, count in _nonfinite_inputs(inputs):
        raise InputError(
            f"{where} holds {bad} NaN or infinite value(s) among {count}: a gradient measured on them says nothing "
            "about the model; clean the data first"
        )


# -------------------------------------------------------------------- several draws of the weights


def _reset_method(module: nn.Module) -> Callable[[], None] | None:
    # nn.MultiheadAttention and nn.Transformer call theirs _reset_parameters.
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def _check_resettable(model: nn.Module) -> None:
    lacking = [
        f"{name or type(module).__name__} ({type(module).__name__})"
        for name, module in model.named_modules()
        if any(p is not None for p in module._parameters.values()) and _reset_method(module) is None
    ]
    if lacking:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        raise InputError(
            f"draws > 1 re-initialises every module, and these own parameters but have no reset_parameters(): {shown}; "
            "add the method, or call measure(draws=1) on models that you build yourself"
        )


def _reset(model: nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            method = _reset_method(module)
            if method is not None:
                method()


def _fresh_models(model: nn.Module, draws: int, make: Callable[[], nn.Module] | None) -> Iterator[nn.Module]:
    if make is None:
        _check_resettable(model)
        twin = copy.deepcopy(model)
        for _ in range(draws):
            _reset(twin)
            yield twin
        return
    for _ in range(draws):
        fresh = make()
        if not isinstance(fresh, nn.Module):
            raise InputError(f"make should give a torch.nn.Module, it gave {type(fresh).__name__}")
        yield fresh.train(model.training)


def _devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def _spread(values: Sequence[float]) -> Spread:
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return Spread(math.nan, math.nan, 0)
    mean = math.fsum(finite) / len(finite)
    variance = math.fsum((v - mean) ** 2 for v in finite) / (len(finite) - 1) if len(finite) > 1 else 0.0
    return Spread(mean, math.sqrt(variance), len(finite))


_LOG_STATISTICS = ("rms", "mean_abs", "l2_norm", "max_abs")


def _log_spreads(parts: Mapping[str, Sequence[Statistics]]) -> dict[str, Spread]:
    return {
        f"{name}.{statistic}": _spread(
            [math.log10(v) if (v := getattr(s, statistic)) > 0 else math.nan for s in values]
        )
        for name, values in parts.items()
        if values
        for statistic in _LOG_STATISTICS
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def _over_draws(profile: Profile, observations: Sequence[Observation]) -> Profile:
    """Merge the draws row by row; a row that some draw lacks (data-dependent flow) is merged over the others."""
    layer_draws: dict[str, list[LayerProfile]] = {}
    parameter_draws: dict[str, list[ParameterProfile]] = {}
    for observation in observations:
        for layer in observation.layers:
            layer_draws.setdefault(layer.name, []).append(layer)
        for row in observation.parameters:
            parameter_draws.setdefault(row.name, []).append(row)
    layers = tuple(_merged_layer(layer, layer_draws[layer.name]) for layer in profile.layers)
    parameters = tuple(_merged_parameter(row, parameter_draws[row.name]) for row in profile.parameters)
    trunk = tuple(
        replace(
            point,
            gradient=_merged([o.trunk[i].gradient for o in observations if len(o.trunk) == len(profile.trunk)]),
        )
        for i, point in enumerate(profile.trunk)
    )
    times = tuple(
        replace(
            time,
            steps=tuple(
                _merged([o.times[i].steps[t] for o in observations if len(o.times) == len(profile.times)])
                for t in range(len(time.steps))
            ),
        )
        for i, time in enumerate(profile.times)
    )
    return profile.replace(layers=layers, parameters=parameters, trunk=trunk, times=times)


def _merged(parts: Sequence[Statistics | None]) -> Statistics | None:
    known = [p for p in parts if p is not None]
    return Statistics.merge(known) if known else None


def _merged_layer(layer: LayerProfile, draws: Sequence[LayerProfile]) -> LayerProfile:
    gradients = [d.gradient for d in draws if d.gradient is not None]
    return replace(
        layer,
        activation=Statistics.merge(d.activation for d in draws),
        gradient=_merged(gradients),
        dead_fraction=_mean([d.dead_fraction for d in draws]),
        dead_units=(),
        saturated_fraction=_mean([d.saturated_fraction for d in draws]),
        slope_mean_square=_mean([d.slope_mean_square for d in draws]),
        between_sample_fraction=_mean([d.between_sample_fraction for d in draws]),
        position_cosine=_mean([d.position_cosine for d in draws]),
        spread=_log_spreads({"activation": [d.activation for d in draws], "gradient": gradients}),
    )


def _merged_parameter(row: ParameterProfile, draws: Sequence[ParameterProfile]) -> ParameterProfile:
    gradients = [d.gradient for d in draws if d.gradient is not None]
    return replace(
        row,
        value=Statistics.merge(d.value for d in draws),
        gradient=_merged(gradients),
        spread=_log_spreads({"value": [d.value for d in draws], "gradient": gradients}),
    )
