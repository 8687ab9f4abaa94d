"""Plain weight matrices: every exact zero of a gradient explained, and the notebook's observations tested."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater._studies.ensemble import Forward, draw_parameters, forward_backward
from headwater.records.study import MatrixView
from headwater.studies import Network, Variant
from headwater.studies.activations import activation_layer

__all__ = ["REASONS", "ZeroCensus", "matrix_views", "one_run", "zero_census", "zero_reasons"]

REASONS: dict[str, str] = {
    "column": "the unit that this weight feeds is inactive (φ' = 0) for every sample: its whole column is 0",
    "row": "the unit that feeds this weight gives 0 for every sample: its whole row is 0",
    "no path": "the unit that this weight feeds is active, but nothing behind it reaches the loss",
    "disjoint": "no sample has both a value coming in and a gradient coming back",
    "underflow": "the terms are too small for the number format, or cancel exactly",
}
"""Why an element of ∂L/∂W = aᵀδ is exactly zero; the first that applies."""


def zero_reasons(activation: Callable[[Tensor], Tensor] | None, run: Forward, layer: int) -> Tensor:
    """Why each element of one weight gradient is exactly zero.

    Args:
        activation: what follows this layer, or None.
        run: a forward and backward of D draws.
        layer: which weight, from 0.

    Returns:
        (D, out, in) integers: 0 not zero, else 1 + the position in :data:`REASONS`.
    """
    gradient = run.weight_gradients[layer]
    a, h, delta = run.inputs[layer], run.preactivations[layer], run.preactivation_gradients[layer]
    if activation is None:
        inactive = torch.zeros(gradient.shape[:2], dtype=torch.bool)
    else:
        leaf = h.clone().requires_grad_()
        (slope,) = torch.autograd.grad(activation(leaf).sum(), [leaf])
        inactive = (slope == 0).all(1)
    silent = (a == 0).all(1)[:, None].expand_as(gradient)
    pathless = (delta == 0).all(1)[:, :, None].expand_as(gradient)
    together = torch.bmm((delta != 0).float().mT, (a != 0).float())
    reasons = torch.full_like(gradient, 5, dtype=torch.long)
    reasons[together == 0] = 4
    reasons[pathless] = 3
    reasons[silent] = 2
    reasons[inactive[:, :, None].expand_as(gradient)] = 1
    reasons[gradient != 0] = 0
    return reasons


def one_run(network: Network, model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Forward:
    """Every tensor of one built network, forward and backward.

    Args:
        network: its description, raw.
        model: the module.
        x: samples (B, D).
        y: targets.
        loss: a key of :data:`headwater.studies.LOSSES`.

    Returns:
        The run, one draw.
    """
    weights = [model.get_parameter(name).detach().T[None].clone() for name in network.weight_names]
    return forward_backward(network, weights, [], x[None], y[None], loss)


def matrix_views(variant: Variant, run: Forward) -> tuple[MatrixView, ...]:
    """Each weight matrix of a network beside its gradient, in the notebook's (in, out) layout.

    Args:
        variant: which network.
        run: its forward and backward.

    Returns:
        One view per matrix.
    """
    network = variant.network
    activation = activation_layer(network.activation)
    names = ("", *REASONS)
    views = []
    for i, name in enumerate(network.weight_names):
        codes = zero_reasons(activation if network.is_activated(i) else None, run, i)[0].T
        views.append(
            MatrixView(
                variant=variant.name,
                parameter=name,
                rows_are="input units",
                weight=_rows(run.weights[i][0].T),
                gradient=_rows(run.weight_gradients[i][0].T),
                reasons=tuple(tuple(names[c] for c in row) for row in codes.tolist()),
                explanation=_explain(name, codes),
            )
        )
    return tuple(views)


def _rows(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _explain(name: str, codes: Tensor) -> str:
    zeros = int((codes > 0).sum())
    if not zeros:
        return f"∂L/∂{name}: no element is exactly zero."
    parts = []
    columns = [str(c + 1) for c in range(codes.shape[1]) if bool((codes[:, c] == 1).all())]
    rows = [str(r + 1) for r in range(codes.shape[0]) if bool(((codes[r] == 2) | (codes[r] == 1)).all())]
    rows = [r for r in rows if bool((codes[int(r) - 1] == 2).any())]
    if columns:
        parts.append(f"column{'s' * (len(columns) > 1)} {', '.join(columns)}: the unit it feeds is inactive throughout")
    if rows:
        parts.append(f"row{'s' * (len(rows) > 1)} {', '.join(rows)}: the unit that feeds it is 0 throughout")
    counts = Counter(codes.flatten().tolist())
    names = tuple(REASONS)
    parts += [f"{counts[code]} × {names[code - 1]}: {REASONS[names[code - 1]]}" for code in (3, 4, 5) if counts[code]]
    return f"∂L/∂{name}: {zeros} of {codes.numel()} elements are exactly zero. " + "; ".join(parts) + "."


_BATCH = 200  # draws at a time, chosen by us: they fit the processor's cache


@dataclass(frozen=True, slots=True)
class ZeroCensus:
    """Zeros of weight gradients over many draws of one network. Rows: draws D.

    Attributes:
        zero_fraction: share of exact zeros over all weights, (D,).
        zero_if_negative: share of zeros among the weights below 0, (D,).
        zero_if_positive: share of zeros among the others, (D,).
        reasons: how often each of :data:`REASONS` explains a zero, over all draws.
        negative_into_inactive: share of negative weights among those that feed an inactive unit; NaN without any.
        negative_into_active: the same among those that feed an active one.
    """

    zero_fraction: Tensor
    zero_if_negative: Tensor
    zero_if_positive: Tensor
    reasons: dict[str, int]
    negative_into_inactive: float
    negative_into_active: float


def zero_census(variant: Variant, *, loss: str, draws: int, seed: int) -> ZeroCensus:
    """Count the exact zeros of fresh draws, and ask whether a weight's sign has to do with them.

    Args:
        variant: which network and data.
        loss: a key of :data:`headwater.studies.LOSSES`.
        draws: how many.
        seed: of the random stream.

    Returns:
        The counts.
    """
    network = variant.network
    generator = torch.Generator().manual_seed(seed)
    activation = activation_layer(network.activation)
    all_codes, all_signs = [], []
    for start in range(0, draws, _BATCH):
        count = min(_BATCH, draws - start)
        weights, biases = draw_parameters(network, count, generator)
        x, y = variant.data.draw(network.sizes[0], network.sizes[-1], generator, (count,))
        run = forward_backward(network, weights, biases, x, y, loss)
        codes = [zero_reasons(activation if network.is_activated(i) else None, run, i) for i in range(len(weights))]
        all_codes.append(torch.cat([c.flatten(1) for c in codes], 1))
        all_signs.append(torch.cat([(w < 0).flatten(1) for w in run.weights], 1))
    code, negative = torch.cat(all_codes), torch.cat(all_signs)
    zero, fed_active = code > 0, code != 1
    # a column is "inactive" as a whole, so its elements are the ones with that reason
    counts = torch.bincount(code.flatten(), minlength=len(REASONS) + 1).tolist()
    return ZeroCensus(
        zero_fraction=zero.double().mean(1),
        zero_if_negative=_share(zero, negative),
        zero_if_positive=_share(zero, ~negative),
        reasons={name: counts[i + 1] for i, name in enumerate(REASONS)},
        negative_into_inactive=float(negative[~fed_active].double().mean()) if bool((~fed_active).any()) else math.nan,
        negative_into_active=float(negative[fed_active].double().mean()) if bool(fed_active.any()) else math.nan,
    )


def _share(flags: Tensor, among: Tensor) -> Tensor:
    """Share of ``flags`` in each row among the marked elements; NaN in a row without any."""
    return (flags & among).double().sum(1) / among.double().sum(1)
