"""The gain of an activation: what to multiply 1/√fan_in by, so that a signal keeps its size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwater.errors import InputError
from headwater.theory.elementwise import ACTIVATIONS, Activation
from headwater.theory.gaussian import ActivationMoments

__all__ = ["GainKind", "GainRow", "gain", "gain_table", "torch_gain"]

GainKind = Literal["backward", "forward", "std"]

# torch.nn.init.calculate_gain's names for what it knows; everything else raises there.
_TORCH_NAMES: dict[Any, str] = {
    torch.relu: "relu", F.relu: "relu", F.relu_: "relu", torch.relu_: "relu", Tensor.relu: "relu", nn.ReLU: "relu",
    torch.tanh: "tanh", F.tanh: "tanh", Tensor.tanh: "tanh", nn.Tanh: "tanh",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", Tensor.sigmoid: "sigmoid", nn.Sigmoid: "sigmoid",
    torch.selu: "selu", F.selu: "selu", nn.SELU: "selu",
    F.leaky_relu: "leaky_relu", nn.LeakyReLU: "leaky_relu", nn.Identity: "linear",
    ACTIVATIONS["linear"]: "linear",
}  # fmt: skip


def gain(fn: Activation, kind: GainKind = "backward", variance: float = 1.0) -> float:
    """The gain g that keeps a quantity through ``y = W φ(h)`` or its gradient, when Var(W) = g²/fan.

    With z ~ N(0, 1) and q = ``variance``:

    - ``backward``: g = 1/√E[φ'(√q z)²] keeps the second moment of the gradient (use fan_out).
    - ``forward``: g = √(q / E[φ(√q z)²]) keeps the second moment of the pre-activation (use fan_in).
    - ``std``: g = √(q / Var[φ(√q z)]), the same without the part of the second moment that is a constant offset.

    The three agree for no activation but the positively homogeneous ones (backward and forward: ReLU, √2).

    Args:
        fn: an elementwise function, a module, a module class or a name such as ``"gelu"``.
        kind: which quantity is to be kept.
        variance: q of the pre-activation, above 0.

    Returns:
        The gain, above 0.

    Raises:
        InputError: no elementwise activation, an unknown kind, a bad variance, or a gain that would be infinite (a
            constant function).

    Example:
        >>> round(gain("relu"), 6), round(gain("gelu", "forward"), 4), round(gain("gelu", "backward"), 4)
        (1.414214, 1.5335, 1.4811)

    References:
        He et al., *Delving Deep into Rectifiers*, ICCV 2015 (second moments forward and backward). Klambauer et al.,
        *Self-Normalizing Neural Networks*, NeurIPS 2017 (SELU: gain 1).
    """
    if kind not in ("backward", "forward", "std"):
        raise InputError(f"kind should be 'backward', 'forward' or 'std', got {kind!r}")
    if not (isinstance(variance, int | float) and math.isfinite(variance) and variance > 0.0):
        raise InputError(f"variance should be a finite number above 0, got {variance!r}")
    return _gain(ActivationMoments(fn), kind, float(variance))


def _gain(moments: ActivationMoments, kind: GainKind, variance: float) -> float:
    name = moments.activation.name
    if kind == "backward":
        slopes = moments.slope_second_moment(variance)
        if slopes <= 0.0:
            raise InputError(f"the derivative of {name} is zero almost everywhere: no gain lets a gradient through")
        return 1.0 / math.sqrt(slopes)
    second = moments.second_moment(variance)
    if kind == "std":
        spread = second - moments.mean(variance) ** 2
        if spread <= 1e-12 * second:  # what remains of a constant after rounding; chosen by us
            raise InputError(f"{name} is constant over the inputs it sees: no gain gives its output a spread")
        return math.sqrt(variance / spread)
    if second <= 0.0:
        raise InputError(f"{name} is zero over the inputs it sees: no gain keeps a signal through it")
    return math.sqrt(variance / second)


def torch_gain(fn: Activation) -> float | None:
    """What ``torch.nn.init.calculate_gain`` gives for this activation.

    torch's values are conventions: 5/3 for tanh and 3/4 for SELU were found empirically, 1 for sigmoid is not a
    second-moment gain.

    Args:
        fn: as in :func:`gain`.

    Returns:
        The value, or None where torch has none and raises (GELU, SiLU, Mish, ELU, ...).

    Example:
        >>> torch_gain("tanh") == 5 / 3, torch_gain(nn.GELU())
        (True, None)
    """
    if isinstance(fn, str):
        known = ACTIVATIONS.get(fn.lower())
        return None if known is None else torch_gain(known)
    key: Any = type(fn) if isinstance(fn, nn.Module) else fn
    try:
        name = _TORCH_NAMES.get(key)
    except TypeError:  # an unhashable callable is none of torch's
        return None
    if name is None:
        return None
    slope = fn.negative_slope if isinstance(fn, nn.LeakyReLU) else None
    return float(nn.init.calculate_gain(name, slope))  # type: ignore[arg-type]  # a str, not the literals torch lists


@dataclass(frozen=True, slots=True)
class GainRow:
    """The gains of one activation at unit pre-activation variance.

    Attributes:
        name: of the activation.
        forward: 1/√E[φ²].
        backward: 1/√E[φ'²].
        std: 1/√Var[φ].
        torch: what ``calculate_gain`` gives; None where it raises.
    """

    name: str
    forward: float
    backward: float
    std: float
    torch: float | None


def gain_table(activations: dict[str, Callable[[Tensor], Tensor]] | None = None) -> tuple[GainRow, ...]:
    """The gains of every elementwise activation in torch, beside torch's own.

    Args:
        activations: name to function; None for :data:`headwater.theory.elementwise.ACTIVATIONS`.

    Returns:
        One row per activation, in the given order.
    """
    rows = []
    for name, fn in (ACTIVATIONS if activations is None else activations).items():
        moments = ActivationMoments(fn)
        rows.append(
            GainRow(
                name,
                forward=_gain(moments, "forward", 1.0),
                backward=_gain(moments, "backward", 1.0),
                std=_gain(moments, "std", 1.0),
                torch=torch_gain(fn),
            )
        )
    return tuple(rows)
