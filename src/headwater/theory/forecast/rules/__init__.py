"""Rules by family; importing this package registers them all."""

from headwater.theory.forecast.rules import (
    attention,
    convolution,
    elementwise,
    linear,
    losses,
    max_pooling,
    normalization,
    pooling,
    recurrent,
    selection,
    shapes,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "linear",
    "losses",
    "max_pooling",
    "normalization",
    "pooling",
    "recurrent",
    "selection",
    "shapes",
]
