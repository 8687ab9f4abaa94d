"""What finite width, finite depth and finite precision add to the mean-field picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch

from headwater.errors import InputError

__all__ = ["born_dead_probability", "log_gradient_variance", "underflow_depth"]

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def log_gradient_variance(widths: Iterable[int]) -> float:
    """How much the log of the squared gradient differs between draws of a ReLU network: Var ln|δ|² ≈ 5 Σ 1/n_l.

    Holds for plain fully connected ReLU networks at He's initialisation, one input; the band in decades of the RMS is
    √(that) / (2 ln 10).

    Args:
        widths: n_l of every hidden layer, each at least 1.

    Returns:
        The variance of the natural logarithm of the squared gradient.

    Raises:
        InputError: a width is below 1.

    References:
        Hanin, *Which Neural Net Architectures Give Rise to Exploding and Vanishing Gradients?*, NeurIPS 2018. Hanin &
        Rolnick, *How to Start Training*, NeurIPS 2018.
    """
    widths = list(widths)
    if any(n < 1 for n in widths):
        raise InputError(f"widths should be at least 1, got {widths}")
    return 5.0 * sum(1.0 / n for n in widths)


def born_dead_probability(width: int, depth: int) -> float:
    """P(some layer of a ReLU network is all dead for one input) = 1 - (1 - 2^-N)^L, zero biases.

    Args:
        width: N, units per layer.
        depth: L, hidden layers.

    Returns:
        The probability, 0 to 1.

    References:
        Lu et al., *Dying ReLU and Initialization*, 2019.
    """
    return -math.expm1(depth * math.log1p(-(2.0**-width)))


def underflow_depth(
    decades_per_layer: float,
    dtype: str | torch.dtype = "float32",
    start: float = 1.0,
    limit: Literal["normal", "subnormal"] = "normal",
) -> float:
    """How many layers back a shrinking gradient can go before a number format cannot hold it.

    Layers d with ``start`` · 10^(rate · d) = smallest; ``normal`` is where precision starts to be lost, ``subnormal``
    where half of the smallest step is reached and values round to zero.

    Args:
        decades_per_layer: log10 of the RMS factor per layer; negative when it shrinks.
        dtype: ``float32``, ``bfloat16``, ``float16``, ``float64`` (or ``fp32``, ``bf16``, ``fp16``), or a torch dtype.
        start: size of the gradient where the count begins, above 0.
        limit: which end of the format.

    Returns:
        The depth in layers, not rounded; 0 when ``start`` is already below, ``inf`` when the gradient does not shrink.

    Raises:
        InputError: an unknown dtype or limit, or ``start`` not above 0.

    Example:
        >>> round(underflow_depth(-0.845, "float32"), 1), round(underflow_depth(-0.845, "float16"), 1)
        (44.9, 5.0)
    """
    name = str(dtype).removeprefix("torch.")
    name = _SHORT.get(name, name)
    if name not in _DTYPES:
        raise InputError(f"dtype should be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if limit not in ("normal", "subnormal"):
        raise InputError(f"limit should be 'normal' or 'subnormal', got {limit!r}")
    if not 0.0 < start < math.inf:
        raise InputError(f"start should be a finite number above 0, got {start!r}")
    info = torch.finfo(_DTYPES[name])
    # The smallest subnormal is tiny · eps; half of it rounds to zero (ties to even).
    smallest_log10 = math.log10(info.tiny) + (0.0 if limit == "normal" else math.log10(info.eps / 2.0))
    room = math.log10(start) - smallest_log10
    if room <= 0.0:
        return 0.0
    return room / -decades_per_layer if decades_per_layer < 0.0 else math.inf
