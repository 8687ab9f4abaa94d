"""Sums φ(t) + f around a branch: their law, and a gradient that passes the activations on both sides of one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwater.theory.forecast.memory import Branch, Memory
from headwater.theory.forecast.pointwise import Function, function_stats
from headwater.theory.forecast.signals import Root, Shortcut, Signal, Term
from headwater.theory.forecast.stats import Stats
from headwater.theory.forecast.transport import transported

__all__ = ["remembering", "sum_around"]

_POINTS = 401  # at which weights are tabulated; chosen by us
_REACH = 7.0  # standard deviations over which they are
_CELLS = 200  # of a Gaussian average; chosen by us


def sum_around(shortcut: Signal, branch: Signal, total: Signal) -> Signal:
    """The sum of φ(t) and an independent Gaussian, with its own law instead of a Gaussian one.

    Args:
        shortcut: φ(t).
        branch: f.
        total: their sum, as a root.

    Returns:
        The sum as a function of a Gaussian, which remembers t; ``total`` with the memory where it is as good as Gaussian.
    """
    assert shortcut.base is not None
    assert shortcut.function is not None
    assert total.carrier is not None
    root = total.carrier.root
    found = transported(shortcut.function, shortcut.base.stats, branch.stats, root.stats)
    parts = Branch.of(branch.stats)
    root.shortcut = Shortcut(shortcut.base, shortcut.function, parts, None)
    if found is None:
        return total
    law, stats = found
    below = Root(stats, root.spread, main_share=root.main_share, parts=root.parts)
    below.shortcut = Shortcut(shortcut.base, shortcut.function, parts, law)
    return Signal(
        total.axes,
        None,
        Term(below, stats.atoms),
        law.forward,
        samples=total.samples,
        _stats=total.stats,
        _spread=root.spread,
    )


def remembering(slope: Signal, total: Signal, other: Stats) -> None:
    """Leave with the gradient of a residual block's input what it knows of that input.

    With u = φ(t) + f (the sum of a block, f independent of t), the gradient is δ φ'(u) along the shortcut plus that of the
    branch. Given t, its second moment is proportional to w(t)² = s E_f S(φ(t) + f)²/E S² + 1 - s, with S = φ' times the
    weight that δ brought along from the block above and s the shortcut's share. Where φ is a ReLU, a unit that is on at
    t stays on at u more often than not, and φ'(t) comes next: the two slopes are no independent factors. Two samples or
    positions have branches of correlation ρ, and E[S(φ(t) + f) S(φ(t) + f')] in place of E S² (t = t', whose root
    is the factor of either), and the shortcut's share of their covariance. Derived by us.

    Args:
        slope: δ φ'(u), the part along the shortcut.
        total: the sum with the branch's part, a root; it gets the memory.
        other: statistics of the branch's part.
    """
    assert slope.base is not None
    assert slope.function is not None
    assert total.carrier is not None
    root = slope.base.root
    if root.shortcut is None or len(root.stats.atoms) != len(slope.base.atoms):
        return
    shortcut = root.shortcut
    term = shortcut.term.renamed(dict(zip(root.stats.atoms, slope.base.atoms, strict=True)))
    if any(atom not in total.atoms for atom in term.atoms):
        return
    branch = shortcut.branch
    if not (branch.variance > 0.0 and math.isfinite(branch.variance)):
        return
    mine = slope.stats.broadcast(total.atoms)
    before = slope.memory()
    weights = []
    for name, correlation in (
        ("square", 1.0),
        ("within", branch.within),
        ("aligned", branch.aligned),
        ("between", branch.between),
    ):
        one, two = (float(getattr(s, name).mean()) for s in (mine, other))
        share = min(1.0, max(0.0, one / (one + two))) if one + two != 0.0 else 1.0
        carried = None if before is None else getattr(before, name)
        weights.append(_weight(slope.function, carried, shortcut, term.stats, correlation, share, name))
    total.carrier.root.memory = term, Memory(*weights)


def _weight(
    slope: Function,
    carried: Function | None,
    shortcut: Shortcut,
    own: Stats,
    correlation: float,
    share: float,
    name: str,
) -> Function:
    """The weight as a function of t, for one kind of pair."""
    centre = float(own.mean.mean())
    deviation = float((own.square - own.mean**2).clamp_min(0.0).max().sqrt())
    t = centre + deviation * torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    z = -6.0 + 12.0 / _CELLS * (torch.arange(_CELLS, dtype=torch.float64) + 0.5)
    gauss = torch.exp(-0.5 * z * z)
    gauss = gauss / gauss.sum()
    law, branch = shortcut.law, shortcut.branch
    width = math.sqrt(branch.variance)
    rho = min(1.0, max(0.0, correlation))

    def behind(u: Tensor) -> Tensor:
        w = u if law is None else law.inverse(u)
        return slope(w) if carried is None else slope(w) * carried(w)

    middle = shortcut.function(t) + branch.mean
    if rho > 0.999:
        mean_square = behind(middle[:, None] + width * z[None, :]) ** 2 @ gauss
    else:  # f = √ρ F + √(1-ρ) e with F shared by the two: S̄(x) = E_e S(x + √(1-ρ) e), then E_F S̄²
        reach = math.sqrt(rho) * width * 6.0
        x = torch.linspace(float(middle.min()) - reach, float(middle.max()) + reach, 1001, dtype=torch.float64)
        smooth = behind(x[:, None] + math.sqrt(1.0 - rho) * width * z[None, :]) @ gauss
        shared = _read(x, smooth, middle[:, None] + math.sqrt(rho) * width * z[None, :])
        mean_square = shared**2 @ gauss
    root = mean_square.clamp_min(0.0).sqrt()
    average = float(getattr(function_stats(lambda s: _read(t, root, s), own), name).mean())
    if not (average > 0.0 and math.isfinite(average)):
        return torch.ones_like
    table = (share * mean_square / average + 1.0 - share).clamp_min(1e-12).sqrt()
    return lambda s: _read(t, table, s)


def _read(points: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """Values of a table over equally spaced points, constant beyond its ends."""
    place = ((x - points[0]) / (points[1] - points[0])).clamp(0, len(points) - 1)
    left = place.floor().clamp(max=len(points) - 2)
    index, part = left.long(), place - left
    return values[index] * (1.0 - part) + values[index + 1] * part
