"""Slope, dead units and saturation of an activation, from the activation's own derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from headwater.capture.guard import untouched
from headwater.records import Statistics
from headwater.stats import zero_columns

__all__ = [
    "DEAD_SLOPE",
    "ONE_HOT_GINI",
    "SATURATED_SLOPE",
    "Elementwise",
    "Slope",
    "SlopeReader",
    "slope_statistics",
    "softmax_saturation",
]

DEAD_SLOPE = 1e-3
"""A unit whose |φ'| stays below this share of the activation's largest slope, for every sample, learns nothing.
Chosen by us: three decades, the order at which a unit's gradient is lost in the sum over its neighbours."""
SATURATED_SLOPE = 0.05
"""An element of a bounded activation below this share of the largest slope is saturated: |x| > 4.36 for the
sigmoid, |x| > 2.18 for tanh. Chosen by us; a standard-normal input has 1.3e-5 and 2.9 % of them."""
ONE_HOT_GINI = 0.02
"""A softmax row with 1 - Σp² below this passes almost no gradient (largest p above about 0.99). Chosen by us."""

MASKED_SCORE = -9e3
"""A score below this is a mask (-1e4, -1e9, -inf are in use), not a logit. Chosen by us."""

_BLOCK = 1 << 18  # elements whose slope is computed at once: temporaries stay in cache and never scale with the layer

SlopeFromOutput = Callable[[Tensor], Tensor]
# Cheap, and right also when the activation overwrote its input.
_FROM_OUTPUT: dict[str, SlopeFromOutput] = {
    "relu": lambda y: (y > 0).to(y.dtype),
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
}
_MODULE_NAMES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}


@dataclass(frozen=True)
class Elementwise:
    """A function that acts on each element alone.

    Attributes:
        key: equal for equal functions; properties are cached by it.
        function: the function itself; it may work in place.
        name: ``relu``, ``sigmoid`` or ``tanh`` where the slope follows from the output, else None.
        device: where its parameters live.
    """

    key: object
    function: Callable[[Tensor], Tensor]
    name: str | None = None
    device: torch.device | None = None

    @classmethod
    def of_module(cls, module: nn.Module) -> Elementwise | None:
        """The function of an activation module; None for a stochastic one, whose slope cannot be asked for twice."""
        if isinstance(module, nn.RReLU) and module.training:
            return None
        parameter = next(module.parameters(), None)
        if parameter is None:
            return cls((type(module), repr(module)), module.forward, _MODULE_NAMES.get(type(module)))
        return cls(id(module), module.forward, None, parameter.device)

    @classmethod
    def of_call(
        cls, name: str, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Elementwise:
        """The function of a call such as ``F.leaky_relu(x, 0.1)``, its other arguments fixed."""
        key = (name, repr(args[1:]), repr(sorted(kwargs.items())))
        return cls(
            key,
            lambda x: function(x, *args[1:], **kwargs),
            name.rstrip("_") if name.rstrip("_") in _FROM_OUTPUT else None,
        )

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        """φ'(x) for each element.

        Args:
            x: its input, any shape.
            y: its output, the same shape.

        Returns:
            The derivative, the same shape.
        """
        return _FROM_OUTPUT[self.name](y) if self.name else _differentiate(self.function, x)


@dataclass(frozen=True)
class Slope:
    """What an activation did to one batch: see :class:`headwater.records.LayerProfile` for the definitions."""

    slope_mean_square: float
    dead_fraction: float
    unit_count: int
    dead_units: tuple[int, ...]
    saturated_fraction: float | None = None
    saturated_at_unit_normal: float | None = None


@dataclass
class _Shape:
    """Properties of the function itself: its largest slope, and whether it is flat at both ends."""

    largest: float
    bounded: bool
    saturated_at_unit_normal: float


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _differentiate(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    # Inside a checkpoint every saved tensor is counted; what headwater saves is none of its business.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
        leaf = x.detach().clone().requires_grad_()
        # A second copy, so that an in-place activation does not touch the leaf.
        out = function(leaf.clone())
        (slope,) = torch.autograd.grad(out.sum(), leaf)
    return slope


@dataclass
class SlopeReader:
    """Derivatives of activations, with what must be found out about each function only once.

    Attributes:
        shapes: properties by :attr:`Elementwise.key`.
        elementwise: whether a module of a foreign class acts on each element alone, by class.
    """

    shapes: dict[object, _Shape] = field(default_factory=dict)
    elementwise: dict[type[nn.Module], bool] = field(default_factory=dict)

    def is_elementwise(self, module: nn.Module) -> bool:
        """Whether a leaf module of a foreign class is an activation, found by trying it on a vector.

        A function acts elementwise when a vector and its two halves give the same numbers, and is an activation
        when it is not the identity.

        Args:
            module: a module without children, parameters or buffers.

        Returns:
            True for an activation such as transformers' ``NewGELUActivation``.
        """
        cls = type(module)
        if cls not in self.elementwise:
            self.elementwise[cls] = _acts_elementwise(module)
        return self.elementwise[cls]

    def shape(self, activation: Elementwise) -> _Shape:
        """The largest slope of the function on [-8, 8], whether it is flat at both -50 and 50, how much of N(0, 1) is.

        Args:
            activation: the function.

        Returns:
            All three, cached.
        """
        if activation.key not in self.shapes:
            grid = torch.linspace(-8, 8, 257, device=activation.device)
            ranks = (torch.arange(1000, device=activation.device) + 0.5) / 1000
            normal = torch.special.ndtri(ranks)  # a standard normal input, by its quantiles
            ends = torch.tensor([-50.0, 50.0], device=activation.device)
            function = _per_channel(activation)
            largest = float(_differentiate(function, grid).abs().max())
            tails = _differentiate(function, ends).abs()
            flat = _differentiate(function, normal).abs() < SATURATED_SLOPE * largest
            bounded = bool((tails < 1e-3 * largest).all())
            self.shapes[activation.key] = _Shape(largest, bounded, float(flat.float().mean()))
        return self.shapes[activation.key]


def _per_channel(activation: Elementwise) -> Callable[[Tensor], Tensor]:
    module = getattr(activation.function, "__self__", None)
    if isinstance(module, nn.PReLU):
        weight = module.weight.detach().float().abs().max()
        return lambda x: torch.where(x >= 0, x, weight * x)
    return activation.function


def _acts_elementwise(module: nn.Module) -> bool:
    x = torch.linspace(-3, 3, 64)
    # forward(), not a call: the user's hooks have no business here, and the guard restores what forward() sets.
    with untouched(module), torch.no_grad():
        try:
            whole = module.forward(x.clone())
            halves = torch.cat([module.forward(x[:32].clone()), module.forward(x[32:].clone())])
        except Exception:  # a class that cannot take a vector is no elementwise activation: that is the answer
            return False
    return (
        isinstance(whole, Tensor)
        and whole.shape == x.shape
        and bool(torch.allclose(whole, halves, rtol=1e-5, atol=1e-6))
        and not bool(torch.allclose(whole, x))
    )


def slope_statistics(
    reader: SlopeReader,
    activation: Elementwise,
    x: Tensor,
    y: Tensor,
    statistics: Statistics,
    *,
    channels_first: bool,
) -> Slope | None:
    """Slope, dead units and saturation of one call of an activation.

    Args:
        reader: where properties of the function are cached.
        activation: the function.
        x: its input, (B, D), (B, T, D) or (B, C, ...).
        y: its output.
        statistics: those of ``y``.
        channels_first: whether dimension 1 holds the units of a tensor with more than two dimensions.

    Returns:
        The statistics, or None for an empty or complex tensor.
    """
    if y.numel() == 0 or y.dim() == 0 or y.is_complex():
        return None
    unit_dimension = 1 if y.dim() == 2 or (channels_first and y.dim() > 2) else y.dim() - 1
    if y.dim() == 1:
        unit_dimension = 0
    units = y.shape[unit_dimension]
    rest = [d for d in range(y.dim()) if d != unit_dimension]
    if activation.name == "relu":
        # The slope is 1 where the output is not zero: both numbers are known, or one pass away.
        on = statistics.count - statistics.zero_count - statistics.nan_count
        # An output is never negative: a dead unit is a column of zeros.
        if y.dim() >= 2 and (unit_dimension == 1 or y.is_contiguous()):
            dead = zero_columns(y.detach() if unit_dimension == 1 else y.detach().flatten(0, -2))
            return Slope(on / y.numel(), len(dead) / units, units, tuple(dead[:64]))
        top = y.detach().amax(rest) if rest else y.detach()
        return _slope(units, top <= 0, on, y.numel())
    shape = reader.shape(activation)
    lead = y.shape[0] if unit_dimension != 0 else 1
    per_sample = max(1, y.numel() // max(1, lead))
    step = max(1, _BLOCK // per_sample)
    square = 0.0
    saturated = 0
    highest: Tensor | None = None
    limit = SATURATED_SLOPE * shape.largest
    for start in range(0, lead, step):
        part = slice(start, start + step) if unit_dimension != 0 else slice(None)
        slope = activation.slope(x[part].detach(), y[part].detach()).float()
        flat = slope.reshape(-1)
        square += float(torch.dot(flat, flat))
        size = slope.abs()
        if shape.bounded:
            saturated += int((size < limit).sum())
        top = size.amax(rest) if rest else size
        highest = top if highest is None else torch.maximum(highest, top)
    assert highest is not None
    off = highest < DEAD_SLOPE * shape.largest
    found = _slope(units, off, square, y.numel())
    if not shape.bounded:
        return found
    return replace(
        found, saturated_fraction=saturated / y.numel(), saturated_at_unit_normal=shape.saturated_at_unit_normal
    )


def _slope(units: int, off: Tensor, square: float, count: int) -> Slope:
    dead = off.nonzero().flatten()
    return Slope(
        slope_mean_square=square / count,
        dead_fraction=len(dead) / units,
        unit_count=units,
        dead_units=tuple(dead[:64].tolist()),
    )


def softmax_saturation(probabilities: Tensor, dimension: int, scores: Tensor | None = None) -> float | None:
    """Share of softmax rows that are one-hot, so that p(1 - p) passes almost no gradient.

    Args:
        probabilities: output of a softmax.
        dimension: the dimension that sums to one.
        scores: what entered it, where it is known: a row in which a mask leaves one candidate is not counted.

    Returns:
        A fraction, 0 to 1; None when there are fewer than two classes or no row with a choice.
    """
    if probabilities.numel() == 0 or probabilities.shape[dimension] < 2:
        return None
    one_hot = 1 - probabilities.detach().float().square().sum(dimension) < ONE_HOT_GINI
    if scores is not None and scores.shape == probabilities.shape and bool(one_hot.any()):
        one_hot = one_hot[(scores.detach() > MASKED_SCORE).sum(dimension) >= 2]
    return float(one_hot.float().mean()) if one_hot.numel() else None
