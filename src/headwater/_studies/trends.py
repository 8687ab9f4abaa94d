"""Rates along depth with intervals, and what theory expects of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater._studies.ensemble import Ensemble
from headwater.records.study import Curve, Trend
from headwater.studies import Data, Network
from headwater.theory.gaussian import ActivationMoments

__all__ = ["WideTheory", "curve", "interval_of_mean", "slopes", "split", "trends", "wide_theory"]

_NORMAL_95 = 1.959963984540054  # 97.5 % quantile of the standard normal


@dataclass(frozen=True, slots=True)
class WideTheory:
    """What a wide network of the same kind does to ∂L/∂h per layer, on its way to the input.

    Attributes:
        slope_decades: ½ log10 E[φ'(√q z)²], averaged over the hidden layers.
        weight_decades: ½ log10 σ_w².
        preactivation_variance: q of each hidden layer.
    """

    slope_decades: float
    weight_decades: float
    preactivation_variance: tuple[float, ...]

    @property
    def decades_per_layer(self) -> float:
        """Their sum, ½ log10 χ."""
        return self.slope_decades + self.weight_decades


def wide_theory(network: Network, data: Data) -> WideTheory | None:
    """Signal propagation through the hidden layers of a wide network.

    q_l = σ_w² E[φ(√q_{l−1} z)²] + σ_b² forward, χ_l = σ_w² E[φ'(√q_l z)²] for δ² backward.

    Args:
        network: equal hidden widths, no shortcuts.
        data: its second moment starts the recursion.

    Returns:
        The prediction; None with shortcuts, or with fewer than two hidden layers.

    References:
        Poole et al., *Exponential expressivity in deep neural networks through transient chaos*, 2016;
        Schoenholz et al., *Deep information propagation*, 2017.
    """
    if network.shortcut != "none" or network.hidden < 2:
        return None
    moments = ActivationMoments(network.activation)
    n_in, width = network.sizes[0], network.width
    rule = network.rule
    weight_variance = network.weight_variance
    bias_variance = rule.bias_variance(width) if network.bias else 0.0
    moment = data.input_second_moment(n_in)
    if network.activation_on_input:
        moment = moments.second_moment(moment)
    q = rule.weight_variance(n_in, width) * moment + (rule.bias_variance(n_in) if network.bias else 0.0)
    variances, slopes_decades = [q], []
    for _ in range(network.hidden - 1):
        slopes_decades.append(0.5 * math.log10(moments.slope_second_moment(q)))
        q = weight_variance * moments.second_moment(q) + bias_variance
        variances.append(q)
    return WideTheory(
        slope_decades=math.fsum(slopes_decades) / len(slopes_decades),
        weight_decades=0.5 * math.log10(weight_variance),
        preactivation_variance=tuple(variances),
    )


def slopes(log10_values: Tensor) -> Tensor:
    """Least-squares slope of each row over the column index.

    Args:
        log10_values: (D, L).

    Returns:
        Decades per layer for every row without an infinite entry; at most (D,).
    """
    rows = log10_values[torch.isfinite(log10_values).all(1)]
    x = torch.arange(rows.shape[1], dtype=rows.dtype)
    x = x - x.mean()
    return (rows @ x) / (x @ x)


def interval_of_mean(values: Tensor) -> tuple[float, float, float]:
    """Mean and its 95 % interval by the normal approximation.

    Args:
        values: independent draws, two or more.

    Returns:
        Mean, lower end, upper end.
    """
    mean = float(values.mean())
    half = _NORMAL_95 * float(values.std(correction=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def trends(network: Network, ensemble: Ensemble, theory: WideTheory | None) -> tuple[Trend, ...]:
    """The rates of ∂L/∂h, ∂L/∂W and the activation over the hidden layers.

    Args:
        network: the architecture.
        ensemble: its draws.
        theory: the wide-network prediction for ∂L/∂h, or None.

    Returns:
        One trend each; none where fewer than two hidden layers or draws are left.
    """
    hidden = network.hidden
    # the gradient is followed towards the input, the activation towards the output
    quantities = (
        ("∂L/∂h", -1.0, ensemble.preactivation_gradient[:, :hidden], theory.decades_per_layer if theory else None),
        ("∂L/∂W", -1.0, ensemble.weight_gradient[:, :hidden], None),
        ("activation", 1.0, ensemble.layer_input[:, :hidden], None),
    )
    found = []
    for quantity, direction, values, expected in quantities:
        if values.shape[1] < 2:
            continue
        per_draw = direction * slopes(values)
        if len(per_draw) < 2:
            continue
        mean, low, high = interval_of_mean(per_draw)
        edges = torch.quantile(per_draw, torch.tensor([0.025, 0.975], dtype=per_draw.dtype))
        found.append(
            Trend(
                quantity=quantity, decades_per_layer=mean, low=low, high=high, single_low=float(edges[0]),
                single_high=float(edges[1]), draws=len(per_draw), layers=values.shape[1], theory=expected,
            )
        )  # fmt: skip
    return tuple(found)


def split(network: Network, ensemble: Ensemble) -> tuple[float, float] | None:
    """What the activation's slope and the weights each do to the gradient, per hidden layer.

    From h_l+1 to h_l the gradient passes the weights (∂L/∂h_l+1 → ∂L/∂a_l) and then the slope (∂L/∂a_l → ∂L/∂h_l);
    the two parts, averaged over layers and draws, add up to the end-to-end rate.

    Args:
        network: the architecture, without shortcuts.
        ensemble: its draws.

    Returns:
        Decades per layer of the slope and of the weights; None with shortcuts or fewer than two hidden layers.
    """
    hidden = network.hidden
    if network.shortcut != "none" or hidden < 2:
        return None
    h, a = ensemble.preactivation_gradient[:, :hidden], ensemble.output_gradient[:, :hidden]
    kept = torch.isfinite(h).all(1) & torch.isfinite(a).all(1)
    if not bool(kept.any()):
        return None
    h, a = h[kept], a[kept]
    return float((h[:, :-1] - a[:, :-1]).mean()), float((a[:, :-1] - h[:, 1:]).mean())


def curve(quantity: str, labels: tuple[str, ...], log10_values: Tensor) -> Curve:
    """Median and central 95 % of a quantity layer by layer.

    Args:
        quantity: what it is.
        labels: one name per column.
        log10_values: (D, L).

    Returns:
        The curve; None where the quantile is an exact zero.
    """
    levels = torch.tensor([0.025, 0.5, 0.975], dtype=log10_values.dtype)
    # "nearest" never mixes a finite value with the -inf of an exact zero
    low, median, high = torch.quantile(log10_values, levels, dim=0, interpolation="nearest").tolist()

    def finite(values: list[float]) -> tuple[float | None, ...]:
        return tuple(v if math.isfinite(v) else None for v in values)

    return Curve(quantity=quantity, labels=labels, median=finite(median), low=finite(low), high=finite(high))
