"""What a gradient remembers of the units it came by: its moments given the Gaussian below a shortcut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from headwater.theory.forecast.pointwise import Function, function_stats
from headwater.theory.forecast.stats import Stats

__all__ = ["Branch", "Memory"]


@dataclass(frozen=True, eq=False)
class Branch:
    """The Gaussian f that was added to φ(t).

    Attributes:
        mean: E f, averaged over positions as all that follow.
        variance: Var f.
        within: its correlation between two positions of one sample.
        aligned: between two samples at one position.
        between: between two samples at two positions.
    """

    mean: float
    variance: float
    within: float
    aligned: float
    between: float

    @staticmethod
    def of(stats: Stats) -> Branch:
        """From its statistics."""
        centred = stats.centred()
        variance = float(centred.square.mean())
        one = centred.pooled(stats.atoms) if centred.dense else centred
        scale = variance if variance > 0.0 else 1.0
        within, aligned, between = (
            min(1.0, max(-1.0, float(v.mean()) / scale)) for v in (one.within, one.aligned, one.between)
        )
        return Branch(float(stats.mean.mean()), variance, within, aligned, between)


@dataclass(frozen=True, eq=False)
class Memory:
    """Weights with which a gradient's moments depend on a Gaussian t: E[δ²|t] ∝ w(t)², E[δ δ'|t, t'] ∝ w(t) w(t').

    Attributes:
        square: w for one sample and position.
        within: w for two positions of one sample.
        aligned: w for two samples at one position.
        between: w for two samples at two positions.
    """

    square: Function
    within: Function
    aligned: Function
    between: Function

    def factor(self, function: Function, base: Stats) -> Stats:
        """What a product with f(t) multiplies each moment by: E w² f²/E w², and E w w' f f'/E w w' of pairs.

        Args:
            function: f.
            base: statistics of t.

        Returns:
            The factors.
        """

        def pair(weight: Function) -> tuple[Stats, Stats]:
            return function_stats(_product(function, weight), base), function_stats(weight, base)

        one, within, aligned, between = (pair(w) for w in (self.square, self.within, self.aligned, self.between))
        return replace(
            base,
            mean=one[0].mean / one[1].mean,
            square=one[0].square / one[1].square,
            within=within[0].within / within[1].within,
            aligned=aligned[0].aligned / aligned[1].aligned,
            between=between[0].between / between[1].between,
        ).fixed_diagonals()


def _product(first: Function, second: Function) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: first(t) * second(t)
