"""A gradient that passes an activation after a sum and then, by the shortcut, the one before it: both see the same units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwater.theory.forecast.pointwise import Function, function_stats
from headwater.theory.forecast.signals import Root, Signal, Term
from headwater.theory.forecast.stats import Stats

__all__ = ["remembering"]

_POINTS = 400  # at which the mean slope behind a shortcut is tabulated; chosen by us
_REACH = 7.0  # standard deviations over which it is
_CELLS = 400


def remembering(slope: Signal, total: Signal, share: float) -> Signal | None:
    """The gradient of a residual block's input as a product with a function of that input's own Gaussian.

    With u = φ(t) + f (the sum of a block, f independent of t), the gradient is δ φ'(u) along the shortcut, plus that of the
    branch. Given t, its second moment is proportional to g(t) = s E_f φ'(φ(t) + f)²/E φ'(u)² + 1 - s, s the shortcut's
    share. Where φ is a ReLU, a unit that is on at t stays on at u more often than not, and φ'(t) comes next: the two
    slopes are no independent factors, and what units are on is shared between samples for several blocks. √g(t) is
    taken as the factor that depends on t, for one sample and for two; the moments of the sum itself stay as they are.

    Args:
        slope: δ φ'(u), the part along the shortcut.
        total: the sum with the branch.
        share: s, of its mean square.

    Returns:
        The sum as a carrier times √g(t); None where u is no such sum.
    """
    assert slope.base is not None
    assert slope.function is not None
    root = slope.base.root
    if root.skip is None or len(root.stats.atoms) != len(slope.base.atoms):
        return None
    term, inner = root.skip
    names = dict(zip(root.stats.atoms, slope.base.atoms, strict=True))
    term = term.renamed(names)
    if any(atom not in total.atoms for atom in term.atoms):
        return None
    own = term.stats
    before, after = function_stats(inner, own), root.stats
    mean = float(after.mean.mean() - before.mean.mean())
    variance = float((after.square - after.mean**2).mean() - (before.square - before.mean**2).mean())
    if not (variance > 0.0 and math.isfinite(variance)):
        return None
    factor = _root_of_mean(slope.function, inner, own, mean, variance, share)
    if factor is None:
        return None
    values = function_stats(factor, own).broadcast(total.atoms)
    carried = _divided(total.stats, values)
    if carried is None:
        return None
    assert total.carrier is not None
    of_total = total.carrier.root
    kept = Root(carried, of_total.spread, main_share=of_total.main_share, removed=of_total.removed)
    return Signal(total.axes, Term(kept, carried.atoms), term, factor, samples=total.samples)


def _root_of_mean(
    slope: Function, inner: Function, own: Stats, mean: float, variance: float, share: float
) -> Function | None:
    """√g as a function of t."""
    deviation = float((own.square - own.mean**2).clamp_min(0.0).max().sqrt())
    centre = float(own.mean.mean())
    t = centre + deviation * torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    z = -6.0 + 12.0 / _CELLS * (torch.arange(_CELLS, dtype=torch.float64) + 0.5)
    weight = torch.exp(-0.5 * z * z)
    weight = weight / weight.sum()
    psi = slope(inner(t)[:, None] + mean + math.sqrt(variance) * z[None, :]) ** 2 @ weight
    density = torch.exp(-0.5 * ((t - centre) / deviation) ** 2)
    average = float((psi * density).sum() / density.sum())
    if not (average > 0.0 and math.isfinite(average)):
        return None
    table = (share * psi / average + 1.0 - share).clamp_min(0.0).sqrt()

    def factor(x: Tensor) -> Tensor:
        place = ((x - t[0]) / (t[1] - t[0])).clamp(0, _POINTS - 1)
        left = place.floor().clamp(max=_POINTS - 2)
        index, part = left.long(), place - left
        return table[index] * (1.0 - part) + table[index + 1] * part

    return factor


def _divided(whole: Stats, part: Stats) -> Stats | None:
    """The statistics of a tensor whose independent product with ``part`` has those of ``whole``."""
    pairs = ((part.square, part.within), (part.aligned, part.between))
    if any(float(x.min()) <= 0.0 for pair in pairs for x in pair):
        return None
    mean = torch.where(part.mean == 0.0, 0.0, whole.mean / torch.where(part.mean == 0.0, 1.0, part.mean))
    return Stats(
        whole.atoms,
        mean,
        whole.square / part.square,
        whole.within / part.within,
        whole.aligned / part.aligned,
        whole.between / part.between,
    )
