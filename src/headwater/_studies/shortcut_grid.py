"""The same weights with no shortcut, with a shortcut, and with a scaled one, at many widths and depths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater._studies.ensemble import log10_rms
from headwater._studies.trends import interval_of_mean
from headwater.studies import ShortcutGrid, initialization
from headwater.studies.activations import activation_layer

__all__ = ["ARMS", "GridCell", "run_grid"]

ARMS = ("plain", "shortcut", "scaled")
"""f(x); x + f(x); x + f(x)/√L."""


@dataclass(frozen=True, slots=True)
class GridCell:
    """One width, depth and initialisation.

    Attributes:
        initialization: name of the rule.
        width: n.
        depth: L.
        draws: seeds.
        decades: per arm, mean over draws of log10 of rms(∂L/∂x₁) / rms(∂L/∂x_L): what the gradient gains (+) or
            loses (−) between the output of the last layer and that of the first.
        gain: decades that the unscaled shortcut gains over the plain network, paired by seed.
        gain_low: lower end of its 95 % interval.
        gain_high: upper end.
    """

    initialization: str
    width: int
    depth: int
    draws: int
    decades: dict[str, float]
    gain: float
    gain_low: float
    gain_high: float


def run_grid(grid: ShortcutGrid, seed: int, advance: Callable[[int], None] | None = None) -> list[GridCell]:
    """Run every cell.

    A network of depth L uses the first L layers of its draw, so that depths and arms differ in nothing else. The
    loss is a fixed random projection of the output: it brings the same gradient to the last layer of every arm.

    Args:
        grid: what to run.
        seed: of the random stream.
        advance: called with 1 after every draw of one width and initialisation.

    Returns:
        One cell per initialisation, width and depth.
    """
    cells = []
    for rule_name in grid.initializations:
        for width in grid.widths:
            generator = torch.Generator().manual_seed(seed)
            results: dict[int, list[list[float]]] = {depth: [] for depth in grid.depths}
            for _ in range(grid.draws):
                for depth, row in _one_draw(grid, rule_name, width, generator).items():
                    results[depth].append(row)
                if advance is not None:
                    advance(1)
            for depth, rows in results.items():
                values = torch.tensor(rows, dtype=torch.float64)
                paired = values[:, 1] - values[:, 0]
                paired = paired[torch.isfinite(paired)]
                gain = interval_of_mean(paired) if len(paired) > 1 else (math.nan, math.nan, math.nan)
                means = dict(zip(ARMS, values.mean(0).tolist(), strict=True))
                cells.append(GridCell(rule_name, width, depth, len(rows), means, *gain))
    return cells


def _one_draw(grid: ShortcutGrid, rule_name: str, width: int, generator: torch.Generator) -> dict[int, list[float]]:
    rule = initialization(rule_name)
    deepest = max(grid.depths)
    # drawn in single precision, which is faster, and used in double: plain networks lose more than 45 decades
    weights = torch.empty(deepest, width, width)
    rule.weight_(weights, width, width, generator)
    biases = torch.empty(deepest, width)
    rule.bias_(biases, width, generator)
    x = torch.randn(width, generator=generator).double()
    projection = torch.randn(width, generator=generator).double()
    matrices, shifts = weights.double(), biases.double()
    return {
        depth: [_change(grid, matrices[:depth], shifts[:depth], x, projection, arm) for arm in ARMS]
        for depth in grid.depths
    }


def _change(grid: ShortcutGrid, weights: Tensor, biases: Tensor, x: Tensor, projection: Tensor, arm: str) -> float:
    """log10 rms(∂L/∂x₁) − log10 rms(∂L/∂x_L)."""
    activation = activation_layer(grid.activation)
    scale = 1.0 / math.sqrt(len(weights)) if arm == "scaled" else 1.0

    def layer(x: Tensor, index: int) -> Tensor:
        out: Tensor = activation(torch.addmv(biases[index], weights[index], x))
        return out if arm == "plain" else x + scale * out

    first = layer(x, 0).requires_grad_()
    last = first
    for index in range(1, len(weights)):
        last = layer(last, index)
    (gradient,) = torch.autograd.grad(last @ projection, [first])
    return float(log10_rms(gradient[None]) - log10_rms(projection[None]))
