"""Rules by family; importing this package registers them all."""

from headwater.theory.forecast.rules import (
    attention,
    convolution,
    elementwise,
    gating,
    linear,
    losses,
    max_pooling,
    normalization,
    pooling,
    recurrent,
    resampling,
    selection,
    shapes,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "gating",
    "linear",
    "losses",
    "max_pooling",
    "normalization",
    "pooling",
    "recurrent",
    "resampling",
    "selection",
    "shapes",
]
