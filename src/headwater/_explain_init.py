"""The verb ``explain_init``: what each weight was initialised with, and what that does to signal and gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from headwater.capture.initialization import Matrix, read_weights
from headwater.records.initialization import BiasInitialization, InitializationReport, WeightInitialization
from headwater.theory.gaussian import ActivationMoments
from headwater.theory.propagation import fixed_point

__all__ = ["explain_init"]

# Where factors are evaluated when the stacked layer shrinks or grows its signal without end. Chosen by us.
_SMALLEST, _LARGEST = 1e-12, 1e8


def explain_init(model: nn.Module) -> InitializationReport:
    """Say for every weight which initialiser drew it, and how far it is from keeping the signal and the gradient.

    The values are read, nothing is run and nothing is changed. Per weight: σ_w² = fan_in·Var(W), the law the values
    follow, the initialiser that this corresponds to, the activation that follows, the σ_w² that would keep signal and
    gradient, and the factor per layer by which it misses. Factors hold for wide layers at initialisation; on trained
    weights they are what random weights of the same variance would do.

    Args:
        model: any module with values.

    Returns:
        The report: ``.rows``, ``.biases``, ``.skipped``; ``print`` it for a table.

    Raises:
        InputError: not a module, no parameters, or parameters without values (meta device, lazy modules).

    Example:
        >>> report = explain_init(nn.Sequential(nn.Linear(256, 256), nn.ReLU()))
        >>> report.rows[0].initializer, round(report.rows[0].weight_variance, 1)
        ('torch default: U(±1/√fan_in)', 0.3)

    References:
        He et al., *Delving Deep into Rectifiers*, ICCV 2015. Poole et al., NeurIPS 2016. Schoenholz et al., ICLR 2017.
    """
    from headwater import __version__

    matrices, biases, skipped = read_weights(model)
    known: dict[Any, ActivationMoments] = {}
    return InitializationReport(
        rows=tuple(_row(matrix, known) for matrix in matrices),
        biases=tuple(
            BiasInitialization(
                name=b.parameter.name,
                layer=b.layer,
                layer_type=type(b.parameter.owner).__name__,
                shape=tuple(b.parameter.tensor.shape),
                mean=math.nan if b.values.moments is None else b.values.moments.mean,
                std=math.nan if b.values.moments is None else math.sqrt(b.values.moments.variance),
                is_zero=b.values.moments is not None and b.values.moments.max_abs == 0.0,
                initializer=b.values.initializer,
            )
            for b in biases
        ),
        skipped=skipped,
        model_type=type(model).__name__,
        torch_version=str(torch.__version__),
        headwater_version=__version__,
    )


def _row(matrix: Matrix, known: dict[Any, ActivationMoments]) -> WeightInitialization:
    moments, name = matrix.values.moments, matrix.parameter.name
    variance = math.nan if moments is None else matrix.fan_in * moments.variance
    notes = list(matrix.notes)
    if moments is None:
        notes.append("holds NaN or infinity")
    elif not moments.mean_is_zero and matrix.values.distribution not in ("identity", "constant"):
        notes.append("the mean is not 0: the formulas for zero-mean weights leave out what it adds")
    return WeightInitialization(
        name=name if matrix.block is None else f"{name}[{matrix.block}]",
        parameter=name,
        block=matrix.block,
        aliases=matrix.parameter.aliases,
        layer=matrix.layer,
        layer_type=type(matrix.parameter.owner).__name__,
        shape=matrix.shape,
        fan_in=matrix.fan_in,
        fan_out=matrix.fan_out,
        mean=math.nan if moments is None else moments.mean,
        std=math.nan if moments is None else math.sqrt(moments.variance),
        max_abs=math.nan if moments is None else moments.max_abs,
        zero_fraction=matrix.values.zero_fraction,
        kurtosis=math.nan if moments is None else moments.kurtosis,
        weight_variance=variance,
        weight_second_moment=math.nan if moments is None else matrix.fan_in * moments.second_moment,
        distribution=matrix.values.distribution,
        initializer=matrix.values.initializer,
        also=matrix.values.also,
        activation=matrix.activation,
        bias_variance=matrix.bias_variance,
        **_targets(matrix, variance, known, notes),
        notes=tuple(notes),
    )


def _targets(matrix: Matrix, variance: float, known: dict[Any, ActivationMoments], notes: list[str]) -> dict[str, Any]:
    """The fields that need a rule for what follows the layer; an empty mapping where there is none."""
    if not math.isfinite(variance):
        return {}
    if matrix.kind == "lookup":
        # A row is handed out as it is: the signal starts at the weights' own RMS, and has second moment 1 at Var = 1.
        return {"forward_weight_variance": 1.0, "forward_factor": math.sqrt(variance)}
    if matrix.kind == "logits":
        notes.append("query and key set the attention logits: no rule for one layer's signal applies")
        return {}
    if matrix.kind == "gate":
        return {}
    if matrix.activation is None:
        notes.append("what follows cannot be told from the modules and their source, so no target is given")
        return {}
    key = matrix.function if matrix.function is not None else matrix.activation
    moments = known.setdefault(key, ActivationMoments(key)) if key not in known else known[key]
    slope, second = moments.slope_second_moment(1.0), moments.second_moment(1.0)
    fields: dict[str, Any] = {
        "forward_gain": 1.0 / math.sqrt(second) if second > 0.0 else None,
        "backward_gain": 1.0 / math.sqrt(slope) if slope > 0.0 else None,
    }
    if matrix.normalized_output:
        notes.append("a normalisation follows: the size of this weight changes neither the signal nor the gradient")
        return fields
    if matrix.normalized_input:
        signal, q = "normalized input", variance + matrix.bias_variance
    else:
        signal, q = "repeated layer", fixed_point(moments, variance, matrix.bias_variance)
    at = min(max(q, _SMALLEST), _LARGEST)
    slope, second = moments.slope_second_moment(at), moments.second_moment(at)
    forward = at / second if second > 0.0 else None
    backward = matrix.fan_in / matrix.fan_out / slope if slope > 0.0 else None
    return fields | {
        "signal": signal,
        "preactivation_variance": q,
        "forward_weight_variance": forward,
        "backward_weight_variance": backward,
        "forward_factor": None if forward is None else math.sqrt(variance / forward),
        "backward_factor": 0.0 if backward is None else math.sqrt(variance / backward),
    }
