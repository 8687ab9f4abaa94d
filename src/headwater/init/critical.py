"""Set every layer to the critical point of the activation that follows it."""

from __future__ import annotations

import logging
import math

import torch
from torch import nn

from headwater.errors import InputError
from headwater.init.plan import Change, Plan
from headwater.init.sites import Site, find_sites
from headwater.theory.elementwise import Elementwise
from headwater.theory.gaussian import ActivationMoments
from headwater.theory.propagation import critical_init

__all__ = ["critical_", "plan_critical"]

_LOG = logging.getLogger("headwater.init")


def plan_critical(model: nn.Module, bias_variance: float = 0.0, *, only: object = None) -> Plan:
    """Say what :func:`critical_` would change, and change nothing.

    Args:
        model: only read; its parameters may live on the meta device.
        bias_variance: as in :func:`critical_`.
        only: as in :func:`critical_`.

    Returns:
        The plan; ``print`` it.

    Raises:
        InputError: as in :func:`critical_`.

    Example:
        >>> print(plan_critical(nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.LayerNorm(50))))
        0.weight: normal, std 0.2 (fan_in · Var = 2, ReLU)
        0.bias: zeros
        kept (normalisation: weight 1 and bias 0 are its neutral values): 2.weight, 2.bias
    """
    return _plan(model, bias_variance, only)[0]


@torch.no_grad()
def critical_(
    model: nn.Module, bias_variance: float = 0.0, *, only: object = None, generator: torch.Generator | None = None
) -> nn.Module:
    """Draw the weights of a model anew, in place, so that a deep stack of its layers neither loses nor blows up.

    Each weight becomes N(0, σ_w²/fan_in) and its bias N(0, σ_b²), with (σ_w², q) the critical point of the activation φ
    that follows the layer: σ_w² E[φ'(√q z)²] = 1 and q = σ_w² E[φ(√q z)²] + σ_b² (:func:`headwater.critical_init`).
    ReLU: σ_w² = 2, He's rule; tanh: 1.

    - Nothing elementwise follows (heads, projections, the value and output of attention): σ_w² = 1, bias 0.
    - A normalisation gives the layer its input: the input has second moment 1, so q = σ_w² + σ_b².
    - No critical point, or without a bias one that the signal runs away from (GELU, SiLU, Mish): the σ_w² that keeps the
      gradient at q = 1, and the plan says so. GELU and Mish have a stable point from a bias variance of 0.2, SiLU and
      Hardswish from 1; with a smaller one, above 0, theirs repels, which the plan says as well.
    - The last layer before a sigmoid, a softplus or another function with φ(0) ≠ 0 is an output layer: σ_w² = 1.
    - Query and key, embeddings, normalisations, recurrent layers, shared, frozen, sharded and reparametrised parameters
      and parameters of your own stay as they are; so do layers whose successor cannot be told.
    - Residual branches get the same rule and still add up: see :func:`depth_scaled_residual_`.

    :func:`plan_critical` lists all this without doing it; the same list is logged at level INFO. The theory holds for wide
    layers (fan_in of 16 or more), independent weights and equal widths.

    Args:
        model: on any device, also meta.
        bias_variance: σ_b², where the layer has a bias and an activation follows.
        only: which parameters: a glob over their names or their modules' names, a compiled regular expression, a class,
            a callable of (name, object), or a list of these; None for all.
        generator: of the random numbers; None for torch's global one.

    Returns:
        The same model.

    Raises:
        InputError: not a module, no parameters, lazy parameters, a negative ``bias_variance``, or ``only`` matches
            nothing.

    Example:
        >>> model = critical_(nn.Sequential(nn.Linear(400, 400), nn.Tanh()))
        >>> round(400 * model[0].weight.var().item(), 1)
        1.0

    References:
        Schoenholz et al., *Deep Information Propagation*, ICLR 2017 (the critical line). He et al., *Delving Deep into
        Rectifiers*, ICCV 2015.
    """
    plan, sites = _plan(model, bias_variance, only)
    stds = {change.name: change.std for change in plan.changes}
    for site in sites:
        std = stds.get(site.name)
        if std is None:
            continue
        site.part.normal_(0.0, std, generator=generator)
        bias_std = stds.get(site.bias_name)
        if site.bias is not None and bias_std is not None:
            if bias_std > 0.0:
                site.bias.normal_(0.0, bias_std, generator=generator)
            else:
                site.bias.zero_()
    _LOG.info("%s", plan)
    return model


def _plan(model: nn.Module, bias_variance: float, only: object) -> tuple[Plan, list[Site]]:
    if isinstance(bias_variance, bool) or not isinstance(bias_variance, int | float):
        raise InputError(f"bias_variance should be a number, got {bias_variance!r}")
    if not 0.0 <= bias_variance < math.inf:
        raise InputError(f"bias_variance should be a finite number, not negative; got {bias_variance!r}")
    sites, kept = find_sites(model, only)
    changes: list[Change] = []
    known: dict[tuple[str, bool], tuple[float, str]] = {}
    for index, site in enumerate(sites):
        if site.activation is None:
            reason = "what follows cannot be told from the modules and their source"
            kept[site.name] = reason
            if site.bias is not None:
                kept[site.bias_name] = reason
            continue
        weight_variance, note = 1.0, ""
        spread = 0.0
        if site.function is not None:
            spread = float(bias_variance) if site.bias is not None else 0.0
            if index == len(sites) - 1 and _has_offset(site.function):
                note, spread = "taken for the output layer: its activation shapes the output", 0.0
            else:
                key = (f"{site.activation}/{id(site.function)}/{spread}", site.normalized_input)
                if key not in known:
                    known[key] = _weight_variance(site.function, spread, site.normalized_input)
                weight_variance, note = known[key]
        if site.normalized_output:
            note = "; ".join(filter(None, [note, "a normalisation follows: the size of this weight is immaterial"]))
        changes.append(
            Change(
                name=site.name,
                rule="normal",
                std=math.sqrt(weight_variance / site.fan_in),
                weight_variance=weight_variance,
                activation=site.activation,
                note=note,
            )
        )
        if site.bias is not None:
            changes.append(Change(name=site.bias_name, rule="normal" if spread else "zeros", std=math.sqrt(spread)))
    return Plan(tuple(changes), kept), sites


def _has_offset(function: Elementwise) -> bool:
    return float(function(torch.zeros(1, dtype=torch.float64))) != 0.0


def _weight_variance(function: Elementwise, bias_variance: float, normalized_input: bool) -> tuple[float, str]:
    """σ_w² for one activation, and what to say about it."""
    moments = ActivationMoments(function)
    if normalized_input:
        return _after_normalisation(moments, bias_variance)
    try:
        weight_variance, q = critical_init(moments, bias_variance)
    except InputError:
        return _at_unit_variance(moments), (
            f"{function.name} has no critical point at this bias variance: the gradient is kept at q = 1"
        )
    # At q* = 0 the signal must fall back towards it: σ_w² E[φ²] <= q at q = 1, the usual size of an input.
    if q == 0.0 and weight_variance * moments.second_moment(1.0) > 1.0:
        return _at_unit_variance(moments), (
            f"the critical point of {function.name} without a bias ({weight_variance:.3g}) is one that signals run away "
            "from: the gradient is kept at q = 1"
        )
    if 0.0 < q < math.inf and moments.homogeneous_slope is None:
        around = moments.second_moment(1.001 * q) - moments.second_moment(0.999 * q)
        if weight_variance * around > 0.002 * q:  # dq'/dq > 1
            return weight_variance, f"this critical point (q = {q:.3g}) repels: over many layers the signal leaves it"
    return weight_variance, ""


def _at_unit_variance(moments: ActivationMoments) -> float:
    slopes = moments.slope_second_moment(1.0)
    if slopes <= 0.0:
        raise InputError(
            f"{moments.activation.name} lets no gradient through (its derivative is zero almost everywhere): no initial "
            "weights change that; leave its layers out with only"
        )
    return 1.0 / slopes


def _after_normalisation(moments: ActivationMoments, bias_variance: float) -> tuple[float, str]:
    """σ_w² E[φ'(√(σ_w² + σ_b²) z)²] = 1: one step from an input of second moment 1."""
    note = "a normalisation comes before: q = σ_w² + σ_b²"
    scale = moments.homogeneous_slope
    if scale is not None:
        return 1.0 / scale, note

    def excess(weight_variance: float) -> float:
        return weight_variance * moments.slope_second_moment(weight_variance + bias_variance) - 1.0

    low, high = 1e-3, 1e-3
    while excess(high) < 0.0:  # E[φ'²] of an activation that saturates falls like 1/√q: the product still grows
        low, high = high, high * 2.0
        if high > 1e6:
            return _at_unit_variance(moments), "a normalisation comes before: the gradient is kept at q = 1"
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if excess(middle) < 0.0 else (low, middle)
    return math.sqrt(low * high), note
