"""Rules by family; importing this package registers them all."""

from headwater.theory.forecast.rules import (
    attention,
    batch_norm,
    constants,
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
    "batch_norm",
    "constants",
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
